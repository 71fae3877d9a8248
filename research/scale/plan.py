"""A run on a topology before it runs: does it fit, how is it split, what does it send, how fast should it be?"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from research import families
from research.core import params as P
from research.core import sharding
from research.core.errors import UserError
from research.data.mixed import prepare
from research.model import moe, transformer
from research.model.config import ModelConfig
from research.scale import aot, hlo, roofline, search, traffic
from research.scale.topology import Topology
from research.tasks.lm import LMConfig, with_vocabulary
from research.train import config as C
from research.train import experiments, start
from research.train.program import Program, check_single, mesh_of

TRIED = 4  # ways to run that are compiled, of those that the search sorts first; as many again where none of them fits
LONGEST = 8192  # tokens of a row that a preset is planned with, where its context is longer


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was found out. Bytes are of one device; `collectives`: kind -> executions and bytes that they leave on a device in a step."""

    program: Program
    target: aot.Target
    compiled: aot.Compiled
    limit: int | None
    bytes: dict[str, int]
    collectives: list[hlo.Collective]
    traffic: list[traffic.Traffic]
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
            "collectives": dict(kinds), "traffic": [dataclasses.asdict(one) for one in self.traffic], "params": self.program.n_params,
            "flops_per_step": self.flops_per_step, "step_seconds": seconds,
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
    model = dataclasses.replace(
        model, remat="full", context=max(length, model.context if model.positions == "learned" else length)
    )
    return C.Config(model=model, sequence_length=length, batch_size=devices)


def base(name: str, devices: int) -> C.Config:
    """The config of an experiment, by name or path, or of a preset. Raises UserError for a name that is neither."""
    if name.endswith(".py") or name in experiments.names():
        return experiments.load(name).config
    try:
        return of_preset(families.preset(name), devices)
    except UserError as error:
        raise UserError(
            f"there is no experiment {name!r} (there are {', '.join(experiments.names())}), and {error}"
        ) from error


def program_for(config: C.Config, devices: list[Any]) -> Program:
    """The program of a config on some devices; data are read only where the vocabulary is the tokeniser's. Raises UserError where it does not fit."""
    check_single(config)
    mesh = mesh_of(config, devices)
    config = known(config)
    return Program(config, None, config.model, mesh, C.hypers(config))  # type: ignore[arg-type]


def known(config: C.Config) -> C.Config:
    """The config with the model that it starts from and the vocabulary of its tokeniser, for which its data are read."""
    if config.model.fills_blanks:
        raise UserError(
            "a model that fills blanks is not planned for: its rows are longer than they seem; plan for the preset it is made from"
        )
    if not isinstance(config.task, LMConfig):
        raise UserError(f"task.kind is {config.task.kind!r}; research plan knows language models: lm")
    if config.model.vocab_size is not None and config.init_from is None:
        return config
    begun = start.resolve(config)
    texts = {name: getattr(config, name) for name in ("text_field", "learn", "clean")}
    corpus = prepare(config.data, begun.tokenizer, **texts)
    return dataclasses.replace(
        begun.config, model=with_vocabulary(begun.config.model, corpus.tokenizer.vocab_size), init_from=None
    )


def make(program: Program, target: aot.Target, fast: bool = False) -> Plan:
    """Compiles the program's step and reads what comes out."""
    topology, compiled = target.topology, aot.compile_step(program, fast)
    chip, node = topology.chip, nodes(program, topology)
    found = hlo.collectives(compiled.text, node)
    limit = None if chip is None else int(chip.room)
    prediction = None if chip is None or not compiled.text else roofline.predict(program, chip, found, node)
    sent = traffic.measured(found, program, node)
    return Plan(program, target, compiled, limit, kinds_of_bytes(program, compiled), found, sent, prediction)


def best(
    config: C.Config, target: aot.Target, given: frozenset[str], fast: bool, say: Callable[[str], None]
) -> tuple[Plan, list[dict[str, Any]]]:
    """(the plan of a config, what was tried). Where the mesh is `auto`, the fastest of the few ways to run that the search sorts first; what is
    `given` on the command line stays."""
    topology = target.topology
    if config.mesh != "auto" or topology.chip is None:
        return make(program_for(config, target.devices), target, fast), []
    fixed = frozenset(name for name in ("micro_batches", "model.remat") if name in given)
    tried, plans, room = [], [], topology.chip.room
    over = dict.fromkeys(
        search.POLICIES, 1.0
    )  # by how much what does not fit exceeds its estimate, by policy of recomputation
    for choice in search.choices(known(config), topology, room, fixed):
        if len(tried) >= TRIED and (plans or len(tried) >= 2 * TRIED):
            break
        if choice.bytes * over[choice.config.model.remat] > room:
            continue
        made = make(program_for(choice.config, target.devices), target, fast=True)
        tried.append({**_choice(choice.config), "fits": made.fits, "peak_bytes_per_chip": made.compiled.peak,
                      "step_seconds": None if made.prediction is None else made.prediction.seconds})  # fmt: skip
        say(f"{_options(choice.config)}: {made.compiled.peak / 2**30:,.2f} GiB, "
            + (f"{made.prediction.seconds:.3g} s a step" if made.prediction else "does not fit"))  # fmt: skip
        if made.fits and made.prediction is not None:
            plans.append(made)
        elif not made.fits:
            policy = made.program.model.remat
            over[policy] = max(over[policy], made.compiled.peak / choice.bytes)
    if not plans:  # what is asked for as it is
        return make(program_for(config, target.devices), target, fast), tried
    chosen = min(plans, key=lambda made: made.prediction.seconds if made.prediction else math.inf)
    # a program of its own, since JAX remembers what it has compiled whatever the optimisation
    return chosen if fast else make(program_for(chosen.program.config, target.devices), target), tried


def _choice(config: C.Config) -> dict[str, Any]:
    return {"mesh": config.mesh, "micro_batches": config.micro_batches, "remat": config.model.remat}


def _options(config: C.Config) -> str:
    return f"--mesh {config.mesh} --micro-batches {config.micro_batches} --model.remat {config.model.remat}"


def smallest_change(made: Plan, target: aot.Target, fast: bool, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The least costly change of a plan that does not fit which was compiled and does; None where none of the likely ones does."""
    if made.limit is None:
        return None
    config = dataclasses.replace(
        made.program.config, mesh=",".join(f"{name}={size}" for name, size in made.program.mesh.shape.items())
    )
    for options, changed, topology in search.changes(config, target.topology, made.limit)[:TRIED]:
        there = target if topology.name == target.topology.name else aot.target(topology)
        one = make(program_for(changed, there.devices), there, fast)
        say(f"{options}: {one.compiled.peak / 2**30:,.2f} GiB, {'fits' if one.fits else 'does not fit'}")
        if one.fits:
            return {"options": options, "peak_bytes_per_chip": one.compiled.peak}
    return None


def nodes(program: Program, topology: Topology) -> np.ndarray:
    """Which slice or node each device of the mesh is on."""
    count = program.mesh.size
    slices = [sharding.node_of(device) for device in program.mesh.devices.reshape(-1)]
    if all(index is not None for index in slices):
        return np.array(slices)
    return np.arange(count) * topology.slices // count


def kinds_of_bytes(program: Program, compiled: aot.Compiled) -> dict[str, int]:
    """Bytes of a device by kind. `params` and `optimizer` are exact; `activations`: what the forward pass keeps of each layer for the gradient, by
    the policy of recomputation; `temporaries`: what else there is at the peak; `peak`: all of it."""
    state = program.abstract_state()

    def held(tree: Any) -> int:
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
        )

    params, optimizer = held(state.params), held((state.opt, state.extra, state.frozen, state.step))
    kept = saved(program)
    rest = compiled.peak - params - optimizer - kept
    return {
        "params": params,
        "optimizer": optimizer,
        "activations": kept,
        "temporaries": max(0, rest),
        "peak": compiled.peak,
    }


def saved(program: Program) -> int:
    """Bytes of a device that the forward pass of one micro-batch keeps of the layers."""
    config, mesh = program.config, dict(program.mesh.shape)
    rows = config.batch_size / config.micro_batches / sharding.batch_shards(program.mesh)
    tokens = rows * config.row_tokens / mesh.get("sequence", 1)
    turns = traffic.turns_a_microbatch(traffic.schedule(config, mesh))
    visits = moe.visits(program.model, config.row_tokens, mesh)
    kept = (
        roofline.kept_bytes(program.model, tokens, mesh.get("tensor", 1), visits) * traffic.computed_bytes(program) / 2
    )
    return round(turns * kept)


def table(program: Program) -> list[tuple[str, str, str, str, int]]:
    """(leaf, shape, logical axes, spec, bytes a device) of every parameter."""
    rows = []
    for path, p in P.flatten(transformer.specs(program.model)).items():
        spec = sharding.param_spec(p, program.mesh, sharding.stored_rules(program.config.zero))
        shard = jax.sharding.NamedSharding(program.mesh, spec).shard_shape(p.shape)
        said = ", ".join("-" if axis is None else "+".join(axis) if isinstance(axis, tuple) else axis for axis in spec)
        rows.append(
            (path, " x ".join(map(str, p.shape)), ", ".join(str(axis) for axis in p.axes), said, 4 * math.prod(shard))
        )
    return rows
