"""What a device sends in a step along each axis of the mesh, beside what theory says that it has to."""

import dataclasses
import math
from collections import defaultdict
from typing import Any

import numpy as np

from research.core import params as P
from research.core import sharding
from research.model import moe, pipeline, transformer
from research.model.config import ModelConfig
from research.scale.hlo import Collective
from research.train import config as C


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Along some axes of the mesh: messages that a step executes, bytes that a device sends in them, and what theory says of these; None where it
    says nothing. `network`: whether they leave the slice or node."""

    axes: tuple[str, ...]
    executed: int
    sent: float
    theory: float | None
    network: bool


def sent(one: Collective) -> float:
    """Bytes that leave a device in one execution: by a ring, which is as good as any for large messages."""
    size = one.groups.shape[1]
    return {
        "all-gather": one.bytes * (size - 1) / size, "reduce-scatter": one.bytes * (size - 1), "all-reduce": 2 * one.bytes * (size - 1) / size,
        "all-to-all": one.bytes * (size - 1) / size, "collective-permute": one.bytes,
    }[one.kind]  # fmt: skip


def axes(one: Collective, mesh: Any) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ."""
    names, shape = list(mesh.shape), list(mesh.shape.values())
    places = np.array(np.unravel_index(one.groups[0], shape))
    return tuple(name for name, place in zip(names, places, strict=True) if len(set(place.tolist())) > 1)


def crosses(one: Collective, node: np.ndarray) -> bool:
    """Whether a group has devices of several slices or nodes; `node` says which each device of the mesh is on."""
    return len(set(node[one.groups[0]].tolist())) > 1


def measured(collectives: list[Collective], program: Any, node: np.ndarray) -> list[Traffic]:
    """The traffic of a compiled step by axes, the most first."""
    found: dict[tuple[tuple[str, ...], bool], list[float]] = defaultdict(lambda: [0, 0.0])
    for one in collectives:
        entry = found[axes(one, program.mesh), crosses(one, node)]
        entry[0] += one.executed
        entry[1] += one.executed * sent(one)
    expected = theory(program.config, program.model, dict(program.mesh.shape), computed_bytes(program))
    made = []
    for (along, network), (executed, size) in sorted(found.items(), key=lambda entry: -entry[1][1]):
        said = (
            expected.pop(along[0], None) if len(along) == 1 else None
        )  # of all that goes along an axis, beside the most of it
        made.append(Traffic(along, int(executed), size, said, network))
    return [one for one in made if one.axes]


def computed_bytes(program: Any) -> int:
    """Bytes of a number as a program computes with it: what it sends, and keeps for the gradient."""
    device = program.mesh.devices.flat[0]
    return {"float32": 4, "float64": 8}.get(
        program.model.dtype, 4 if device.platform == "cpu" and program.model.dtype == "auto" else 2
    )


def schedule(config: C.Config, sizes: dict[str, int]) -> pipeline.Schedule | None:
    """The pipeline of one pass on a mesh of these sizes; None without stages."""
    return pipeline.schedule(config.model, sizes, config.batch_size // config.micro_batches)


def turns_a_microbatch(plan: pipeline.Schedule | None) -> float:
    """How often a stage works for each microbatch and round, turns in which it has none to work on among them."""
    return 1.0 if plan is None else plan.turns / (plan.microbatches * plan.rounds)


def theory(config: C.Config, model: ModelConfig, sizes: dict[str, int], itemsize: int) -> dict[str, float]:
    """Bytes that a device sends in a step along each axis, numbers of `itemsize` bytes.

    `fsdp`: three passes over the parameters that it spreads (gathered going forward, gathered going back, gradients reduced; two where nothing is
    recomputed, and so what was gathered is kept), in every pass of a batch and every turn of a pipeline. `data`: the gradients,
    reduced once. `tensor`: a branch's input gathered and its output scattered, and back. `sequence`: keys and values gathered, and back.
    `stage`: rows to the next stage and up in the queue, and back. `expert`: rows to the experts and from them, and back.
    """
    size = {axis: sizes.get(axis, 1) for axis in sharding.MESH_AXES}
    plan, passes = schedule(config, sizes), config.micro_batches
    again = 1 if model.remat == "none" else 2  # what goes forward goes forward once more
    tokens = config.batch_size / passes / sharding.spread(sizes, "batch") * config.row_tokens / size["sequence"]
    turns = turns_a_microbatch(plan)
    layers, stream = model.layers * passes * turns, tokens * model.width * itemsize

    def share(axis: str) -> float:
        return 1 - 1 / size[axis]

    weights = other = 0.0
    for path, p in P.flatten(transformer.specs(model)).items():
        divided = p.size / math.prod(sharding.spread({**sizes, "fsdp": 1, "data": 1}, axis) for axis in p.axes if axis)
        weights += (
            divided * (plan.turns / plan.rounds if plan and path.startswith("decoder/0") else 1) * (p.kind != "vector")
        )
        other += divided / (size["fsdp"] if p.kind != "vector" else 1)
    kv = 2 * model.K * model.H / size["tensor"]
    sparse = sum(slot.feed_forward == "moe" for slots, n in model.segments for slot in slots * n) * passes * turns
    if model.moe.capacity_factor is None:  # every expert sees every row
        dealt = stream * (size["expert"] - 1)
    else:
        dealt = stream * moe.visits(model, config.row_tokens, sizes) * share("expert")
    handed = 0.0 if plan is None else plan.turns * stream * size["stage"] / plan.microbatches / size["tensor"]
    out = {
        "data": 2 * itemsize * other * share("data"),
        "fsdp": (1 + again) * passes * itemsize * weights * share("fsdp"),
        "tensor": layers * (4 + 4 * again) * stream * share("tensor"),
        "sequence": layers * (1 + again) * tokens * kv * itemsize * (size["sequence"] - 1),
        "stage": 4 * passes * handed,
        "expert": sparse * 2 * (1 + again) * dealt,
    }
    return {axis: bytes for axis, bytes in out.items() if size[axis] > 1}
