"""A segment's repeats as a pipeline: dealt out to the `stage` axis of a mesh, each stage at work on rows of its own at a time.

Rows pass through the stages in microbatches, handed on by a collective permute. GPipe (arXiv 1811.06965): a stage holds one stretch of the layers.
Circular (the interleaved schedule of arXiv 2104.04473): it holds `rounds` shorter ones, and rows pass all stages as many times, so that stages
wait for a smaller share of the time, (S - 1) / (M C + S - 1).

Each stage goes through one loop of turns, under `shard_map` over that axis alone, so that all other axes work within it as they do without stages;
differentiation makes the pipeline that runs back.

Letters: S stages, C rounds, M microbatches in W waves of S, b rows of a microbatch, R repeats in S C stretches of L.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from research.core import params as P
from research.core import rng, sharding
from research.core.errors import UserError
from research.model.config import ModelConfig

AXIS = "stage"
WAVES = 4  # unless more or fewer microbatches are asked for


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Who works on what when: in turn t stage s is at turn t - s of its own, of `rounds * stages` for each wave."""

    stages: int
    rounds: int
    waves: int

    @property
    def microbatches(self) -> int:
        return self.waves * self.stages

    @property
    def turns(self) -> int:
        return self.microbatches * self.rounds + self.stages - 1

    @property
    def idle(self) -> float:
        """The share of the time in which a stage waits."""
        return (self.stages - 1) / self.turns

    def at(self, turn):
        """`(round, microbatch)` of a stage's own turn."""
        wave, rest = turn // (self.rounds * self.stages), turn % (self.rounds * self.stages)
        return rest // self.stages, wave * self.stages + rest % self.stages


def schedule(config: ModelConfig, sizes: dict[str, int], rows: int) -> Schedule | None:
    """The schedule of so many rows in one pass on a mesh of these sizes; None where it has one stage, or does not divide them or the layers."""
    stages, rounds = sizes.get(AXIS, 1), config.pipeline_rounds
    each, rest = divmod(rows, sharding.spread(sizes, "batch"))
    if stages == 1 or rest or config.segments[0][1] % (stages * rounds):
        return None
    wanted = WAVES if config.pipeline_microbatches is None else config.pipeline_microbatches // stages
    return Schedule(stages, rounds, max(n for n in range(1, each + 1) if each % n == 0 and n <= max(1, wanted)))


def check(config: ModelConfig, sizes: dict[str, int], rows: int) -> None:
    """Raises UserError where the stages do not divide the layers, or the microbatches that are asked for not the rows of one pass."""
    stages, rounds, microbatches = sizes.get(AXIS, 1), config.pipeline_rounds, config.pipeline_microbatches
    if stages == 1:
        return
    repeats = config.segments[0][1]
    if repeats % (stages * rounds):
        of = (
            "layers"
            if len(config.segments[0][0]) == 1
            else f"repeats of a pattern of {len(config.segments[0][0])} layers"
        )
        raise UserError(
            f"{repeats} {of} cannot be split over {stages} stages in {rounds} round(s); use a mesh whose stage, times model.pipeline_rounds, "
            f"divides {repeats}"
        )
    each = rows // sharding.spread({**sizes, AXIS: 1}, "batch")
    if microbatches is not None and (microbatches % stages or each % microbatches):
        raise UserError(
            f"model.pipeline_microbatches is {microbatches}; expected a multiple of {stages} stages that divides the {each} rows of a pass that "
            f"stages share"
        )


def run(layers: Callable, params: P.Tree, indices_R, x_BTD, context: Any, key, plan: Schedule, *, at_once: bool):
    """`(x_BTD, load)` after all repeats. `layers(params, indices, x, context, key, pick)` applies a stretch, whose leaves are (L, C, ...), of
    which `pick` takes a round's; it returns `(x, taps, load)`. `load` comes out as means over the microbatches, (R, ...); there are no taps.
    `at_once`: weights are gathered before the turns and not in each, where there is one round."""
    S, C, M, B = plan.stages, plan.rounds, plan.microbatches, len(x_BTD)
    at_once = at_once and C == 1
    shared = jax.tree.map(lambda x: jnp.ndim(x) == 0 or len(x) != B, context)

    def of_microbatches(x, shared):
        if shared:
            return x
        x = _dealt(x, plan).reshape(M, B // M, *x.shape[1:])
        return sharding.constrain(x, None, "microbatch", *[None] * (x.ndim - 2))

    def of_a_stage(params, indices, queue_WSbTD, context, key):
        """What one stage does: leaves are its own consecutive repeats, and its places in the queue."""
        s, queue_WbTD = jax.lax.axis_index(AXIS), queue_WSbTD[:, 0]
        held, numbers = jax.tree.map(lambda w: _stretches(w, plan), (params, indices))

        def hand_on(done_bTD, queue_WbTD, t):
            """The next rows, and the queue: where a wave enters, stage 0 takes the next microbatch, and what the last stage is done with, of the wave
            before, takes the place that comes free."""
            wave, enters = t // (C * S), t % (C * S) < S
            waiting_bTD = _at(queue_WbTD, wave)
            next_bTD = jnp.where(enters & (s == 0), waiting_bTD, _sent(done_bTD, 1, S))
            left_bTD = jnp.where(s == S - 1, done_bTD, _sent(waiting_bTD, -1, S))
            left_bTD = jnp.where(enters, left_bTD, waiting_bTD)
            return next_bTD, jax.lax.dynamic_update_index_in_dim(queue_WbTD, left_bTD, wave, 0)

        def turn(carry, t):
            done_bTD, queue_WbTD = carry
            x_bTD, queue_WbTD = hand_on(done_bTD, queue_WbTD, t)
            c, n = plan.at(jnp.clip(t - s, 0, M * C - 1))
            here = jax.tree.map(lambda x, shared: x if shared else _at(x, n), context, shared)
            own_key = None if key is None else rng.fold(key, "microbatch", n)
            pick = functools.partial(jax.tree.map, lambda w_C: w_C[0] if at_once else _at(w_C, c))
            with sharding.each_along(AXIS):
                x_bTD, _, load = layers(held, numbers, x_bTD, here, own_key, pick)
            return (x_bTD, queue_WbTD), load

        # the last wave leaves as another one would enter
        queue_WbTD = jnp.concatenate([queue_WbTD, jnp.zeros_like(queue_WbTD[:1])])
        carry, load = jax.lax.scan(turn, (queue_WbTD[-1], queue_WbTD), jnp.arange(plan.turns))
        _, queue_WbTD = hand_on(*carry, plan.turns)
        return queue_WbTD[1:, None], jax.tree.map(lambda x: _means(x, s, plan), load)

    own, place, all = PartitionSpec(AXIS), PartitionSpec(None, AXIS), PartitionSpec()
    queue_WSbTD, load = jax.shard_map(
        of_a_stage, in_specs=(own, own, place, all, all), out_specs=(place, place), axis_names={AXIS}, check_vma=False
    )(params, indices_R, _held(_dealt(x_BTD, plan)), jax.tree.map(of_microbatches, context, shared), key)
    x_BTD = sharding.constrain(_collected(_held(queue_WSbTD), plan), "batch", "stream", None)
    return x_BTD, jax.tree.map(lambda x_CR: x_CR.reshape(-1, *x_CR.shape[2:]), load)


def _at(x, index):
    return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)


def _sent(x, by: int, S: int):
    """What the stage `by` places before this one has."""
    return jax.lax.ppermute(x, AXIS, [(s, (s + by) % S) for s in range(S)])


def _held(x_WSbTD):
    return sharding.constrain(x_WSbTD, None, "stages", "microbatch", "stream", None)


def _outer() -> tuple[int, int]:
    """Over how many devices rows are spread outside of the stages, and within."""
    return sharding.axis_size("data"), sharding.axis_size("fsdp") * sharding.axis_size("expert")


def _dealt(x_B, plan: Schedule):
    """Rows, (B, ...), as (W, S, b, ...). Every device keeps its own: those that it has at a stage become that stage's place in the queue."""
    outer, inner = _outer()
    x = x_B.reshape(outer, plan.stages, inner, plan.waves, -1, *x_B.shape[1:])
    return jnp.moveaxis(x, (3, 1), (0, 1)).reshape(plan.waves, plan.stages, -1, *x_B.shape[1:])


def _collected(x_WSb, plan: Schedule):
    """The way back."""
    outer, inner = _outer()
    x = x_WSb.reshape(plan.waves, plan.stages, outer, inner, -1, *x_WSb.shape[3:])
    return jnp.moveaxis(x, (0, 1), (3, 1)).reshape(-1, *x_WSb.shape[3:])


def _means(x_tL, s, plan: Schedule):
    """What a stage's turns say of its layers as means over the microbatches, (C, L, ...)."""
    S, C, M = plan.stages, plan.rounds, plan.microbatches
    c, n = np.ogrid[:C, :M]
    return jnp.mean(x_tL[(n // S * C + c) * S + n % S + s], axis=1)


def _stretches(w_R, plan: Schedule):
    """A stage's consecutive repeats, (R / S, ...), as those of its stretches, (L, C, ...): with several rounds each stretch is sent to the stage that
    it belongs to, once a step."""
    S, C = plan.stages, plan.rounds
    if C == 1:
        return w_R[:, None]
    w_CL, here = w_R.reshape(C, -1, *w_R.shape[1:]), jax.lax.axis_index(AXIS)
    dealt_CL = jnp.zeros_like(w_CL)
    for step in _sends(S, C):  # one stretch of each stage, each to another
        sent = jnp.asarray([j for j, _, _ in step])[here]
        place = jnp.asarray([c for _, _, c in sorted(step, key=lambda one: one[1])])[here]
        pairs = [(owner, stage) for owner, (_, stage, _) in enumerate(step)]
        came = jax.lax.ppermute(_at(w_CL, sent), AXIS, pairs)
        dealt_CL = jax.lax.dynamic_update_index_in_dim(dealt_CL, came, place, 0)
    return jnp.moveaxis(dealt_CL, 0, 1)


def _sends(S: int, C: int) -> list[list[tuple[int, int, int]]]:
    """For each of C steps, by owner: (which of its C stretches it sends, the stage that stretch belongs to, its round there). Stretch q belongs to
    stage q mod S and lies at owner q // C; owners begin at different ones, so that in no step two send to one stage."""
    period = S // math.gcd(S, C)
    steps = []
    for step in range(C):
        sent = [(step + owner // period) % C for owner in range(S)]
        steps.append([(j, (owner * C + j) % S, (owner * C + j) // S) for owner, j in enumerate(sent)])
    return steps
