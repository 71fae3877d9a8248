"""One optimiser step as a pure function: `step(state, batch, hypers) -> (state, metrics)`.

Everything that happens between two steps is in the arguments, so the same function is jitted, sharded over a mesh, and vmapped over
hyperparameters.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from research.core import params as P
from research.core import rng, sharding
from research.core.dtypes import at_least_float32
from research.core.hypers import Hypers
from research.train import optim, schedules

LOSS_IS_BAD = -2  # `bad_leaf` when the loss itself is not finite; -1 when all is well
METRICS = ("loss", "weight", "grad_norm", "learning_rate", "update_ratio", "skipped", "skipped_in_a_row", "bad_leaf")


@struct.dataclass
class State:
    """All that training carries. `step` counts batches; the optimiser counts its own updates. `frozen` takes no gradient.

    `extra` holds `skipped` (updates refused so far), `skipped_in_a_row`, and `average` where the config keeps one.
    """

    step: jax.Array
    params: Any
    frozen: Any
    opt: Any
    extra: dict[str, Any]


def init_state(
    specs: P.Tree, config: optim.OptimizerConfig, hypers: Hypers, dtype=jnp.float32, params: Any = None
) -> State:
    """The state before the first step. Without `params` they are drawn: a pure function of the hypers' seed and initial scale."""
    if params is None:
        params = draw_params(specs, hypers, dtype)
    extra: dict[str, Any] = {"skipped": jnp.zeros((), jnp.int32), "skipped_in_a_row": jnp.zeros((), jnp.int32)}
    if config.ema_decay is not None:
        extra["average"] = jax.tree.map(jnp.copy, params)
    opt = optim.init(config, specs, hypers, params)
    return State(step=jnp.zeros((), jnp.int32), params=params, frozen={}, opt=opt, extra=extra)


def draw_params(specs: P.Tree, hypers: Hypers, dtype=jnp.float32) -> Any:
    """Initial parameters; those that are not constant are multiplied by the initial scale."""
    params = P.init(specs, rng.key(hypers.seed, "params"), dtype)
    drawn = P.mask(specs, lambda _, p: p.init.kind != "constant")
    return jax.tree.map(lambda p, random: p * hypers.init_scale.astype(dtype) if random else p, params, drawn)


def eval_params(state: State, config: optim.OptimizerConfig, specs: P.Tree, hypers: Hypers) -> Any:
    """The parameters that evaluation, sampling and export use: the average of weights where one is kept."""
    if "average" in state.extra:
        return state.extra["average"]
    return optim.eval_params(config, specs, hypers, state.params, state.opt)


def split_rows(batch: dict[str, jax.Array], parts: int) -> dict[str, jax.Array]:
    """Rows dealt out like cards, (B, ...) -> (parts, B / parts, ...): every device keeps its own rows in every part."""
    return {name: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1) for name, x in batch.items()}


def gradients(loss: Callable, params: Any, batch: dict[str, jax.Array], key, hypers: Hypers, micro_batches: int = 1):
    """`(gradient of the mean loss, mean loss, weight, the task's metrics as means)`, in `micro_batches` passes.

    Sums are added up and divided once by the whole weight, so unequal weights give the gradient of the large batch.
    """

    def total(params, batch, key):
        loss_sum, weight, metrics = loss(params, batch, key, hypers)
        return loss_sum, (weight, metrics)

    value_and_grad = jax.value_and_grad(total, has_aux=True)
    if micro_batches == 1:
        (loss_sum, (weight, metrics)), grads = value_and_grad(params, batch, key)
    else:

        def add(sums, inputs):
            part, index = inputs
            more = value_and_grad(params, part, None if key is None else rng.fold(key, index))
            return jax.tree.map(jnp.add, sums, more), None

        parts = split_rows(batch, micro_batches)
        shapes = jax.eval_shape(lambda: value_and_grad(params, jax.tree.map(lambda x: x[0], parts), key))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        sums, _ = jax.lax.scan(add, zeros, (parts, jnp.arange(micro_batches)))
        (loss_sum, (weight, metrics)), grads = sums
    scale = 1 / jnp.maximum(weight, jnp.finfo(weight.dtype).tiny)
    grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
    return grads, loss_sum * scale, weight, jax.tree.map(lambda x: x * scale, metrics)


def square_sums(tree: Any) -> list[jax.Array]:
    """The sum of squares of every leaf, in at least float32. Not finite exactly where the leaf's norm is not."""
    return [jnp.sum(jnp.square(at_least_float32(leaf))) for leaf in jax.tree.leaves(tree)]


def norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum(square_sums(tree), jnp.zeros(())))


def first_bad(loss: jax.Array, sums: list[jax.Array]) -> jax.Array:
    """Index of the first leaf (in tree order) whose gradient is not finite; -1 if none; LOSS_IS_BAD if all leaves are fine but the loss is not."""
    bad = ~jnp.isfinite(jnp.stack(sums))
    return jnp.where(jnp.any(bad), jnp.argmax(bad), jnp.where(jnp.isfinite(loss), -1, LOSS_IS_BAD)).astype(jnp.int32)


def make_step(
    loss: Callable, specs: P.Tree, config: optim.OptimizerConfig, micro_batches: int = 1, dropout: bool = False
):
    """`step(state, batch, hypers) -> (state, metrics)`.

    A non-finite loss or gradient never reaches the weights: the state keeps its parameters and optimiser, counts the skip, and
    `metrics["bad_leaf"]` says which leaf came first. Metrics are scalars: `loss` (nats, mean), `weight` (tokens), `grad_norm`
    before clipping, `learning_rate`, `update_ratio` (norm of the update / norm of the weights), `skipped`, `skipped_in_a_row`,
    `bad_leaf`, and the task's own, as means over the weight.
    """

    def step(state: State, batch: dict[str, jax.Array], hypers: Hypers) -> tuple[State, dict[str, jax.Array]]:
        key = rng.key(hypers.seed, "dropout", state.step) if dropout else None
        grads, mean, weight, task_metrics = gradients(loss, state.params, batch, key, hypers, micro_batches)
        sums = square_sums(grads)
        grad_norm, bad_leaf = jnp.sqrt(sum(sums)), first_bad(mean, sums)
        ok = bad_leaf == -1
        if config.clip_norm is not None:
            clip = jnp.minimum(1, hypers.clip_norm / jnp.maximum(grad_norm, jnp.finfo(grad_norm.dtype).tiny))
            grads = jax.tree.map(lambda g: g * clip.astype(g.dtype), grads)
        rate = schedules.rate(config.schedule.kind, optim.updates_done(state.opt), hypers)
        params, opt, updates = optim.apply(config, specs, hypers, grads, state.opt, state.params)
        extra = {"skipped": state.extra["skipped"], "skipped_in_a_row": jnp.zeros_like(bad_leaf)}
        if "average" in state.extra:
            extra["average"] = optim.ema(state.extra["average"], params, hypers.ema_decay)
        skipped = {**state.extra, **{name: state.extra[name] + 1 for name in ("skipped", "skipped_in_a_row")}}

        def choose(updated, kept):
            """A choice within the loop that computes the update, so it costs nothing; a branch would hold every gradient in memory."""
            return jax.tree.map(lambda new, old: jnp.where(ok, new, old), updated, kept)

        params, opt, extra = choose((params, opt, extra), (state.params, state.opt, skipped))
        metrics = {
            "loss": mean, "weight": weight, "grad_norm": grad_norm, "learning_rate": rate,
            "update_ratio": jnp.where(ok, norm(updates) / jnp.maximum(norm(state.params), 1e-30), 0),
            "skipped": extra["skipped"], "skipped_in_a_row": extra["skipped_in_a_row"], "bad_leaf": bad_leaf, **task_metrics,
        }  # fmt: skip
        return State(state.step + 1, params, state.frozen, opt, extra), metrics

    return step


def state_shardings(state: State, specs: P.Tree, mesh, zero: int = 3) -> State:
    """The sharding of every leaf of an (abstract) state: parameters as `zero` has them, optimiser and average spread, counters everywhere."""
    whole = sharding.replicated(mesh)
    spread, params = sharding.shardings(specs, mesh), sharding.shardings(specs, mesh, sharding.stored_rules(zero))
    extra = {
        name: spread if name == "average" else jax.tree.map(lambda _: whole, value)
        for name, value in state.extra.items()
    }
    opt = optim.state_shardings(state.opt, specs, spread, whole)
    frozen = jax.tree.map(lambda _: whole, state.frozen)
    return dataclasses.replace(state, step=whole, params=params, frozen=frozen, opt=opt, extra=extra)
