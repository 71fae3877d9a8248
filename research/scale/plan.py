"""A run on a topology before it runs: does it fit, how is it split, what does it send, how fast should it be?"""

import dataclasses
import math
from collections import defaultdict
from typing import Any

import jax
import numpy as np

from research import families
from research.core import sharding
from research.core import params as P
from research.core.dtypes import compute_dtype
from research.core.errors import UserError
from research.model import transformer
from research.model.config import ModelConfig
from research.scale import aot, hlo, roofline
from research.scale.topology import Topology
from research.train import config as C
from research.train import experiments, start
from research.train.program import Program, with_vocabulary

LONGEST = 8192  # tokens of a row that a preset is planned with, where its context is longer


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was found out. Bytes are of one device; `collectives`: kind -> executions and bytes that they leave on a device in a step."""

    program: Program
    target: aot.Target
    compiled: aot.Compiled
    limit: float | None
    bytes: dict[str, float]
    collectives: list[hlo.Collective]
    prediction: roofline.Prediction | None

    @property
    def fits(self) -> bool:
        return self.compiled.fits and (self.limit is None or self.compiled.peak <= self.limit)

    @property
    def flops_per_step(self) -> float:
        """Of all devices, as the model asks for them: without what is computed again."""
        return self.program.flops_per_token * self.program.config.step_tokens

    def summary(self) -> dict[str, Any]:
        """The JSON object of the contract for scripts."""
        config, topology = self.program.config, self.target.topology
        kinds: dict[str, dict[str, int]] = defaultdict(lambda: {"executed": 0, "bytes": 0})
        for one in self.collectives:
            kinds[one.kind]["executed"] += one.executed
            kinds[one.kind]["bytes"] += one.total
        seconds = None if self.prediction is None else self.prediction.seconds
        chip = topology.chip
        return {
            "topology": topology.name, "devices": topology.devices, "chips": topology.chips, "compiled_for": "chip" if self.target.real else "cpu",
            "fits": self.fits, "peak_bytes_per_chip": self.compiled.peak, "limit_bytes_per_chip": self.limit, "bytes": self.bytes,
            "collectives": dict(kinds), "params": self.program.n_params, "flops_per_step": self.flops_per_step, "step_seconds": seconds,
            "tokens_per_second": None if seconds is None else config.step_tokens / seconds,
            "mfu": None if seconds is None or chip is None else self.flops_per_step / seconds / (chip.flops * topology.devices),
            "bound_by": None if self.prediction is None else self.prediction.bound_by,
            "seconds": {} if self.prediction is None else self.prediction.parts,
            "compile_seconds": self.compiled.seconds, "mesh": dict(self.program.mesh.shape), "batch": config.batch_size,
            "sequence": config.row_tokens, "micro_batches": config.micro_batches, "remat": self.program.model.remat,
        }  # fmt: skip


def of_preset(model: ModelConfig, devices: int) -> C.Config:
    """What a preset is planned with where nothing else is asked for: AdamW, rows of its context up to 8,192 tokens, one a device, each layer computed
    again for the gradient."""
    length = min(model.context, LONGEST)
    model = dataclasses.replace(model, remat="full", context=max(length, model.context if model.positions == "learned" else length))
    return C.Config(model=model, sequence_length=length, batch_size=devices)


def base(name: str, devices: int) -> C.Config:
    """The config of an experiment, by name or path, or of a preset. Raises UserError for a name that is neither."""
    if name in families.PRESETS:
        return of_preset(families.PRESETS[name], devices)
    if name.endswith(".py") or name in experiments.names():
        return experiments.load(name).config
    try:
        families.preset(name)
    except UserError as error:
        raise UserError(f"there is no experiment {name!r} (there are {', '.join(experiments.names())}), and {error}") from error
    raise AssertionError


def program_for(config: C.Config, devices: list[Any]) -> Program:
    """The program of a config on some devices. The data are read only where the vocabulary is the tokeniser's. Raises UserError where they do not fit."""
    mesh = sharding.make_mesh(config.mesh, devices)
    sharding.check_batch(config.batch_size // config.micro_batches, mesh, config.row_tokens)
    if config.model.fills_blanks:
        raise UserError("a model that fills blanks is not planned for: its rows are longer than they seem; plan for the preset it is made from")
    if config.model.vocab_size is None or config.init_from is not None:
        here = start.program_of(dataclasses.replace(config, mesh="auto", batch_size=jax.device_count(), micro_batches=1))
        config = dataclasses.replace(config, model=here.model)
    return Program(config, None, config.model, mesh, C.hypers(config))  # type: ignore[arg-type]


def make(program: Program, target: aot.Target, fast: bool = False) -> Plan:
    """Compiles the program's step and reads what comes out."""
    topology, compiled = target.topology, aot.compile_step(program, fast)
    found = hlo.collectives(compiled.text, topology.devices)
    chip = topology.chip
    limit = None if chip is None else chip.usable or chip.memory
    node = nodes(program, topology)
    prediction = None if chip is None or not compiled.text else roofline.predict(program, chip, found, node)
    return Plan(program, target, compiled, limit, kinds_of_bytes(program, compiled), found, prediction)


def nodes(program: Program, topology: Topology) -> np.ndarray:
    """Which slice or node each device of the mesh is on."""
    count = program.mesh.size
    slices = [getattr(device, "slice_index", None) for device in program.mesh.devices.reshape(-1)]
    if all(index is not None for index in slices):
        return np.array(slices)
    return np.arange(count) * topology.slices // count


def kinds_of_bytes(program: Program, compiled: aot.Compiled) -> dict[str, float]:
    """Bytes of a device by kind. `params` and `optimizer` are exact; `activations`: what the forward pass keeps of each layer for the gradient, by the
    policy of recomputation; `temporaries`: what else there is at the peak; `peak`: all of it."""
    state = program.abstract_state()

    def held(tree: Any) -> int:
        return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    params, optimizer = held(state.params), held((state.opt, state.extra, state.frozen, state.step))
    kept = saved(program)
    rest = compiled.peak - params - optimizer - kept
    return {"params": params, "optimizer": optimizer, "activations": kept, "temporaries": max(0.0, rest), "peak": compiled.peak}


def saved(program: Program) -> float:
    """Bytes of a device that the forward pass of one micro-batch keeps of the layers."""
    model, config, mesh = program.model, program.config, dict(program.mesh.shape)
    size = compute_dtype(model.dtype, "float32").itemsize if program.mesh.devices.flat[0].platform == "cpu" else 2
    rows = config.batch_size // config.micro_batches / sharding.batch_shards(program.mesh)
    tokens = rows * config.row_tokens / mesh.get("sequence", 1)
    tensor = mesh.get("tensor", 1)
    heads, keys = model.heads * model.H / tensor, 2 * model.K * model.H / tensor
    inner = (2 if model.activation in ("swiglu", "geglu", "geglu-tanh") else 1) * model.F / tensor
    stream = model.width / tensor
    a_layer = {
        "full": stream, "attention": stream + heads, "matmuls": 3 * stream + 2 * heads + keys + inner, "none": 6 * stream + 2 * heads + keys + 2 * inner,
    }[model.remat]  # fmt: skip
    return tokens * a_layer * size * model.layers


def table(program: Program) -> list[tuple[str, str, str, str, int]]:
    """(leaf, shape, logical axes, spec, bytes a device) of every parameter."""
    rows = []
    for path, p in P.flatten(transformer.specs(program.model)).items():
        spec = sharding.param_spec(p, program.mesh)
        shard = jax.sharding.NamedSharding(program.mesh, spec).shard_shape(p.shape)
        said = ", ".join("-" if axis is None else "+".join(axis) if isinstance(axis, tuple) else axis for axis in spec)
        rows.append((path, " x ".join(map(str, p.shape)), ", ".join(str(axis) for axis in p.axes), said, 4 * math.prod(shard)))
    return rows


