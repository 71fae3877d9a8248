"""How long a step should take: what it computes, moves and sends, over what the chip is published to do, times what of that programs reach.

    step = max(products / peak + attention / peak + bytes / bandwidth + waiting for other stages, messages that computation hides)
           + messages that it does not hide

One set of constants for all chips, `REACHED`, held against the published runs of docs/scale.md. Messages of weights and their gradients travel while
layers compute; those of activations (`tensor`, `sequence`, `expert`, `stage`) are waited for, but for what XLA hides of them.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from research.core import params as P
from research.core.chips import Chip
from research.model import flops, mlp, moe, pipeline, transformer
from research.model.config import ModelConfig
from research.scale import traffic
from research.scale.hlo import Collective
from research.train import config as C
from research.train.program import Program

# Of each published peak, what is reached; of messages of activations, what is waited for.
REACHED = {"products": 0.89, "attention": 0.4, "memory": 0.8, "link": 0.8, "network": 0.7, "waited": 0.6}
# Passes of every layer besides the forward one and the two of the gradient, and of attention alone, which its own backward kernel repeats.
RECOMPUTED = {"none": 0.0, "attention": 1.0, "matmuls": 0.0, "full": 1.0}
WAITED_FOR = {"tensor", "sequence", "expert", "stage"}  # mesh axes along which activations are sent, and nothing else
CAUSAL = 0.5  # of the keys that a causal kernel reads
BACKWARD_ATTENTION = 2.5  # of a fused kernel's forward products: scores again, then four for the gradients
LOGITS_PASSES = 5  # over bfloat16 logits, besides those of products: written, read for the maximum and the sum, read and written as their gradient
ACCUMULATION_PASSES = 3  # over a float32 gradient that a further pass adds to
OPTIMIZER_PASSES = 7  # over the float32 parameters: gradient, two moments and weights read, three of them written


@dataclasses.dataclass(frozen=True)
class Work:
    """What a device does in a step: FLOPs of matrix products and of attention, bytes that it moves besides, each with what is recomputed. `head`: the
    share of it that is not in the layers."""

    products: float
    attention: float
    moved: float
    head: float

    def seconds(self, chip: Chip) -> dict[str, float]:
        """Of each kind, at what the chip reaches."""
        return {
            "products": self.products / (chip.products * REACHED["products"]),
            "attention": self.attention / (chip.products * REACHED["attention"]),
            "memory": self.moved / (chip.bandwidth * REACHED["memory"]),
        }


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds of a step, and of each part of it; `bound_by`: the part that takes longest."""

    seconds: float
    parts: dict[str, float]

    @property
    def bound_by(self) -> str:
        return max(self.parts, key=lambda name: self.parts[name])


def work(config: C.Config, model: ModelConfig, sizes: dict[str, int]) -> Work:
    """What a device of a mesh of these sizes does in a step of a config, its share of an even split."""
    devices = math.prod(sizes.values())
    tokens, again = config.step_tokens / devices, RECOMPUTED[model.remat]
    head = 2 * model.V * model.width
    slots = [slot for slots, repeats in model.segments for slot in slots * repeats]
    seen = sum(4 * model.heads * model.H * flops.keys_per_query(slot, model, config.row_tokens) for slot in slots)
    layers = flops.forward_flops_per_token(model, config.row_tokens) - seen - head
    visits = moe.visits(model, config.row_tokens, sizes)
    sparse = [slot for slot in slots if slot.feed_forward == "moe"]
    expert = 2 * (len(mlp.inner_names(model)) + 1) * model.width * moe.expert_width(model)
    layers += len(sparse) * expert * (visits - model.moe.top_k)  # of experts that the token was not sent to
    tiled = 1 if config.task.head_tile is not None else 0
    attention = seen * CAUSAL * (1 + BACKWARD_ATTENTION + (1 if model.remat in ("full", "matmuls") else 0))
    moved = 2 * _elements(model, visits) * len(slots) * (3 + (1 if model.remat != "none" else 0))
    passes = OPTIMIZER_PASSES + (ACCUMULATION_PASSES * config.micro_batches if config.micro_batches > 1 else 0)
    state = passes * 4 * P.count(transformer.specs(model)) / devices
    moved += 2 * model.V * (LOGITS_PASSES + 3 * tiled)
    products, of_head = tokens * layers * (3 + again), tokens * head * (3 + tiled)
    total = products + of_head + tokens * attention
    return Work(products + of_head, tokens * attention, tokens * moved + state, of_head / total)


def kept_bytes(model: ModelConfig, tokens: float, tensor: int, visits: float) -> float:
    """Bytes that the forward pass of so many tokens keeps of all layers for the gradient, in bfloat16, by the policy of recomputation. `visits`: the
    experts that work on a token, in models that have some."""
    heads, keys = model.heads * model.H / tensor, 2 * model.K * model.H / tensor
    within, stream = len(mlp.inner_names(model)) * inner(model, visits) / tensor, model.width / tensor
    a_layer = {
        "full": stream, "attention": stream + heads, "matmuls": 3 * stream + heads + keys + within,
        "none": 8 * stream + 2 * heads + keys + 2 * within,
    }[model.remat]  # fmt: skip
    return 2 * tokens * a_layer * model.layers


def inner(model: ModelConfig, visits: float) -> float:
    """Elements between the products of a token's feed-forward, or of the experts that work on it."""
    return visits * moe.expert_width(model) if "moe" in model.feed_forward else model.F


def _elements(model: ModelConfig, visits: float) -> float:
    """Elements a token that a layer reads and writes outside of its products: the stream for norms and residuals, heads for rotations, the inner
    width for its non-linearity."""
    return 10 * model.width + 4 * inner(model, visits) + 6 * model.heads * model.H


def predict(program: Program, chip: Chip, collectives: list[Collective], node: np.ndarray) -> Prediction:
    """The step's prediction. `node`: which slice or node each device of the mesh is on, by its place among the partitions."""
    done = work(program.config, program.model, dict(program.mesh.shape))
    parts = done.seconds(chip)
    parts["waiting"] = waiting(sum(parts.values()), done, traffic.schedule(program.config, dict(program.mesh.shape)))
    computing = sum(parts.values())
    parts |= {"weights": 0.0, "activations": 0.0}
    for one in collectives:
        along = traffic.axes(one, program.mesh)
        kind = "activations" if along and set(along) <= WAITED_FOR else "weights"
        parts[kind] += message_seconds(one, chip, node, program)
    return Prediction(max(computing, parts["weights"]) + REACHED["waited"] * parts["activations"], parts)


def waiting(computing: float, done: Work, plan: pipeline.Schedule | None) -> float:
    """Seconds in which a stage waits for the others, beside those in which it computes."""
    return 0.0 if plan is None else computing * (1 - done.head) * plan.idle / (1 - plan.idle)


def message_seconds(one: Collective, chip: Chip, node: np.ndarray, program: Any) -> float:
    """Seconds of all executions of a collective, by the bytes that leave a device (of a ring, which is as good as any for large messages)."""
    sent = traffic.sent(one)
    if chip.link is None:
        return 0.0
    if traffic.crosses(one, node):
        # the members on one node share what leaves it, each over a network card of its own
        together = one.groups.shape[1] / len(set(node[one.groups[0]].tolist()))
        between = sent / together / ((chip.network or chip.link) * REACHED["network"])
        return one.executed * max(between, sent / (chip.link * REACHED["link"]) if together > 1 else 0.0)
    return one.executed * sent / (chip.link * share_of_links(one, chip, program) * REACHED["link"])


def share_of_links(one: Collective, chip: Chip, program: Any) -> float:
    """The share of a chip's links that lead along a group: of a torus, the dimensions in which its members differ; all of a switch's. A permute uses
    one direction of them at a time, and is counted with the one that runs the other way."""
    if chip.dimensions == 0:
        return 1.0
    devices = program.mesh.devices.reshape(-1)
    members = [getattr(devices[i], "coords", None) for i in one.groups[0]]
    if any(member is None for member in members):
        return 1.0
    differing = sum(len({member[i] for member in members if member is not None}) > 1 for i in range(3))
    return max(1, differing) / chip.dimensions
