"""Optimisers from Optax parts, built inside the traced step from traced hyperparameters.

The kind of optimiser is static, its numbers are not: one compiled step serves a sweep. The learning rate follows
`schedules.rate` by the optimiser's own count of updates, and weight decay is decoupled (AdamW, arXiv 1711.05101): it is multiplied
by the rate and touches matrices and tables alone. Clipping belongs to the step, which has the gradient's norm anyway.
"""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import optax
from flax import struct

from research.core import params as P
from research.core.config import check_choices, require
from research.core.dtypes import compute_dtype
from research.core.errors import UserError
from research.core.hypers import Hypers
from research.train import schedules

# f(s) = a s + b s^3 + c s^5: five rounds take singular values in (0, 1] to about 1 (Jordan 2024, kellerjordan.github.io/posts/muon).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_ROUNDS = 5
MUON_RMS = 0.2  # root mean square of Muon's update, that of AdamW's, so that one rate serves both (arXiv 2502.16982, section 2.2)
ADAFACTOR_CLIP = 1.0  # largest root mean square of an update (arXiv 1804.04235, section 6)
SCHEDULE_FREE_POWER = 2.0  # the average weighs an iterate by its rate to this power (arXiv 2405.15682)


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves, in optimiser steps. See `schedules.rate` for the formulas."""

    kind: schedules.Schedule = "cosine"  # how the rate falls after the warmup
    warmup_steps: int = 100  # in which the rate rises from 0
    horizon: int | None = None  # where cosine, linear and wsd reach the floor; None: the run's steps
    floor: float = 0.1  # the final rate as a fraction of the peak
    cooldown: float = 0.2  # wsd: the decaying part as a fraction of the horizon

    def __post_init__(self):
        where, steps = "optimizer.schedule", self.horizon
        check_choices(self, where)
        require(self.warmup_steps >= 0, f"{where}.warmup_steps", self.warmup_steps, "a number of steps, at least 0")
        require(steps is None or steps >= 1, f"{where}.horizon", steps, "a number of steps, at least 1, or None")
        for name in ("floor", "cooldown"):
            require(0 <= getattr(self, name) <= 1, f"{where}.{name}", getattr(self, name), "a fraction in [0, 1]")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Which optimiser, and the defaults of its traced numbers.

    `sgd` reads momentum; `adam` (no weight decay), `adamw`, `lion` and `schedule-free-adamw` read the betas; `muon` reads momentum
    for matrices and the betas for the rest; `adafactor` reads neither, and its rate is relative to each leaf's root mean square.
    Schedule-free averaging replaces a decay of the rate, so it wants the schedule `constant`; its beta1 is the interpolation's.
    """

    # the update rule
    kind: Literal["sgd", "adam", "adamw", "lion", "adafactor", "muon", "schedule-free-adamw"] = "adamw"
    learning_rate: float = 1e-3  # the peak of the schedule
    weight_decay: float = 0.1  # of matrices and embeddings, times the rate; adam has none
    momentum: float = 0.9  # sgd, and matrices under muon
    beta1: float = 0.9  # decay of the mean of gradients
    beta2: float = 0.95  # decay of the mean of their squares
    eps: float = 1e-8  # added to the root of the mean of squares
    clip_norm: float | None = 1.0  # largest global norm of the gradient
    ema_decay: float | None = None  # keeps an exponential average of the weights, which evaluation uses
    adam_ratio: float = 1.0  # muon: the rate of the leaves that are no matrices, relative to learning_rate
    # muon: every attention head's projections are matrices of their own, smaller and cheaper
    muon_per_head: bool = False  # muon: the projections of every attention head are matrices of their own
    schedule: ScheduleConfig = ScheduleConfig()

    def __post_init__(self):
        check_choices(self, "optimizer")
        self._check(
            ("learning_rate", "weight_decay", "adam_ratio"), lambda x: 0 <= x < float("inf"), "a number of at least 0"
        )
        self._check(("momentum", "beta1", "beta2"), lambda x: 0 <= x < 1, "a number in [0, 1)")
        self._check(("eps",), lambda x: 0 < x < float("inf"), "a number above 0")
        self._check(("clip_norm",), lambda x: x is None or x > 0, "a number above 0, or None")
        self._check(("ema_decay",), lambda x: x is None or 0 <= x < 1, "a number in [0, 1), or None")
        if self.kind == "schedule-free-adamw":
            self._check(("beta1",), lambda x: x > 0, "a number in (0, 1) for schedule-free-adamw")

    def _check(self, names: tuple[str, ...], ok: Callable[[Any], bool], expected: str) -> None:
        for name in names:
            require(ok(getattr(self, name)), f"optimizer.{name}", getattr(self, name), expected)


@struct.dataclass
class OptState:
    """`count` updates done, and what the optimiser's parts carry between them."""

    count: jax.Array
    inner: Any


def transformation(config: OptimizerConfig, specs: P.Tree, hypers: Hypers) -> optax.GradientTransformation:
    """The optimiser at these hyperparameters, which may be traced: `init(params)`, `update(grads, state, params)`.

    The updates are to be added to the parameters. Hyperparameters are taken in the precision of the parameters.
    """

    def init(params) -> Any:
        h = jax.tree.map(jnp.copy, _matching(hypers, params))  # schedule-free keeps beta1: a donated state must own it
        return OptState(count=jnp.zeros((), jnp.int32), inner=_rule(config, specs, h, 0.0).init(params))

    def update(updates, state, params=None) -> Any:
        h = _matching(hypers, params)
        rule = _rule(config, specs, h, schedules.rate(config.schedule.kind, state.count, h))
        updates, inner = rule.update(updates, state.inner, params)
        return updates, OptState(count=state.count + 1, inner=inner)

    return optax.GradientTransformation(init, update)


def init(config: OptimizerConfig, specs: P.Tree, hypers: Hypers, params: P.Tree) -> OptState:
    """The state before the first update. It shares no buffer with `params` or `hypers`, so it can be donated beside them."""
    return cast(OptState, transformation(config, specs, hypers).init(params))


def apply(config: OptimizerConfig, specs: P.Tree, hypers: Hypers, grads: P.Tree, opt_state: OptState, params: P.Tree):
    """One update: `(params, opt_state, updates)`, where `updates` is what was added to the parameters."""
    updates, state = transformation(config, specs, hypers).update(grads, cast(Any, opt_state), params)
    return optax.apply_updates(params, updates), cast(OptState, state), updates


def updates_done(opt_state: OptState) -> jax.Array:
    """How many updates led to this state, a scalar: the count that the schedule goes by."""
    return opt_state.count


def eval_params(config: OptimizerConfig, specs: P.Tree, hypers: Hypers, params: P.Tree, opt_state: OptState) -> P.Tree:
    """The parameters to evaluate: the average x of schedule-free (training holds y = beta1 x + (1 - beta1) z), else `params`."""
    if config.kind != "schedule-free-adamw":
        return params
    state = opt_state.inner._replace(b1=_matching(hypers, params).beta1)
    return optax.contrib.schedule_free_eval_params(state, params)


def ema(average: P.Tree, params: P.Tree, decay: jax.Array) -> P.Tree:
    """`decay * average + (1 - decay) * params`, leaf by leaf."""
    return jax.tree.map(lambda a, p: a + jnp.asarray(1 - decay, a.dtype) * (p - a), average, params)


def state_shardings(opt_state: OptState, specs: P.Tree, param_shardings: P.Tree, replicated: Any) -> OptState:
    """The sharding of every leaf of an (abstract) state: moments as their parameter, counters and Adafactor's factors everywhere.

    A leaf belongs to a parameter when the dictionary keys at the end of its path are that parameter's and the shapes agree.
    """
    shapes, shardings = P.flatten(specs), P.flatten(param_shardings)

    def one(path, leaf):
        keys: list[str] = []
        for entry in reversed(path):
            if not isinstance(entry, jax.tree_util.DictKey):
                break
            keys.insert(0, str(entry.key))
        name = "/".join(keys)
        return shardings[name] if name in shapes and shapes[name].shape == leaf.shape else replicated

    return jax.tree_util.tree_map_with_path(one, opt_state)


def _matching(hypers: Hypers, params: P.Tree) -> Hypers:
    """Hypers in the parameters' precision, at least float32: otherwise float64 hypers would promote the state of float32 weights."""
    dtype = jnp.promote_types(jnp.result_type(*jax.tree.leaves(params)), jnp.float32)
    return jax.tree.map(lambda h: h.astype(dtype) if jnp.issubdtype(h.dtype, jnp.floating) else h, hypers)


def _rule(config: OptimizerConfig, specs: P.Tree, h: Hypers, rate: Any) -> optax.GradientTransformation:
    """One update at a given rate."""
    widths = _by_width(config, specs)
    decay = optax.add_decayed_weights(h.weight_decay, P.decay_mask(specs))
    step = optax.scale_by_learning_rate(rate)
    if config.kind == "adam":
        return optax.chain(optax.scale_by_adam(h.beta1, h.beta2, h.eps), widths, step)
    if config.kind == "muon":
        return optax.chain(
            _muon(specs, h, config.muon_per_head), widths, decay, step, _scale_others(specs, h.adam_ratio)
        )
    if config.kind == "schedule-free-adamw":
        rms = optax.scale_by_rms(h.beta2, h.eps, eps_in_sqrt=False, bias_correction=True)
        return optax.contrib.schedule_free(optax.chain(rms, widths, decay, step), rate, h.beta1, SCHEDULE_FREE_POWER)
    direction = {
        "sgd": lambda: optax.trace(h.momentum),
        "adamw": lambda: optax.scale_by_adam(h.beta1, h.beta2, h.eps),
        "lion": lambda: optax.scale_by_lion(h.beta1, h.beta2),
        "adafactor": lambda: _adafactor(specs),
    }[config.kind]()
    return optax.chain(direction, widths, decay, step)


def width_factor(config: OptimizerConfig, p: P.Param) -> float:
    """What a leaf's updates are multiplied by, so that the learning rate of its base width serves it (muP, arXiv 2203.03466, table 8).

    With fan in and fan out i and o times those of the base: o / i for SGD, 1 / i where the optimiser makes updates of one size (Adam, Lion).
    Of Muon's matrices the spectral norm has to grow as (o / i)^1/2 (arXiv 2310.17813) and does so as max(fan in, fan out)^1/2; an output
    projection that is taken head by head adds its heads up. Weight decay is the same at every width (arXiv 2405.13698). Raises UserError for
    adafactor, whose rates are relative to the weights.
    """
    if p.base is None or p.base == p.shape:
        return 1.0
    if config.kind == "adafactor":
        raise UserError(
            "adafactor's rates are relative to the weights, and no base_width scales them; take adamw or muon"
        )
    fan_in, fan_out = p.growth
    if config.kind == "sgd":
        return fan_out / fan_in
    if config.kind != "muon" or p.kind != "matrix":
        return 1 / fan_in
    base = dataclasses.replace(p, shape=p.base)
    ours, before, heads = p.matrix_shape, base.matrix_shape, 1.0
    axis = _heads_axis(p)
    if config.muon_per_head and axis is not None:
        side = 0 if axis < p.stacked + p.inputs else 1
        ours, before = (
            tuple(n // q.shape[axis] if place == side else n for place, n in enumerate(q.matrix_shape))
            for q in (p, base)
        )
        heads = p.shape[axis] / base.shape[axis] if side == 0 else 1.0
        fan_in, fan_out = (one / other for one, other in zip(ours, before, strict=True))
    return (fan_out / fan_in * max(before) / max(ours)) ** 0.5 / heads


def _heads_axis(p: P.Param) -> int | None:
    return next((i for i, axis in enumerate(p.axes) if axis in ("heads", "kv_heads")), None)


def _by_width(config: OptimizerConfig, specs: P.Tree) -> optax.GradientTransformation:
    """Updates at the rates of the base width."""
    factors = P.tree_map(lambda p: width_factor(config, p), specs)
    if all(factor == 1 for factor in jax.tree.leaves(factors)):
        return optax.identity()
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, factor: u * factor, updates, factors))


def _muon(specs: P.Tree, h: Hypers, per_head: bool) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised, for matrices (Muon: Jordan 2024); Adam for the rest.

    Optax's own takes 1.4 to 1.6 times as long on a CPU, where the optimiser is a large part of a small model's step.
    """
    labels = P.tree_map(lambda p: "matrix" if p.kind == "matrix" else "other", specs)
    parts: dict[Hashable, optax.GradientTransformation] = {
        "matrix": optax.trace(h.momentum, nesterov=True),
        "other": optax.scale_by_adam(h.beta1, h.beta2, h.eps),
    }

    def one(p: P.Param, x: jax.Array) -> jax.Array:
        if p.kind != "matrix":
            return x
        heads = _heads_axis(p)
        if per_head and heads is not None:
            matrices = jnp.moveaxis(x, heads, p.stacked)
            return jnp.moveaxis(_orthogonal_update(matrices), p.stacked, heads)
        return _orthogonal_update(_one_layer(p, x)).reshape(x.shape)

    return optax.chain(
        optax.partition(parts, labels), optax.stateless(lambda updates, _: P.tree_map(one, specs, updates))
    )


def _orthogonal_update(x: jax.Array) -> jax.Array:
    """Matrices (..., rows, columns) orthogonalised, with entries of root mean square MUON_RMS."""
    return orthogonalize(x) * (MUON_RMS * max(x.shape[-2:]) ** 0.5)


def _scale_others(specs: P.Tree, ratio: jax.Array) -> optax.GradientTransformation:
    """Scales what is no matrix."""
    return optax.stateless(
        lambda updates, _: P.tree_map(lambda p, u: u if p.kind == "matrix" else u * ratio, specs, updates)
    )


def orthogonalize(x: jax.Array, dtype=None) -> jax.Array:
    """U V^T for x = U S V^T, nearly: matrices (..., rows, columns), with singular values between 0.65 and 1.25.

    What was below 0.002 of the norm (of all singular values together) ends lower: five rounds do not lift it. `dtype` is that of the
    products; None is bfloat16 on accelerators and the precision of `x` on a CPU.
    """
    if x.shape[-2] > x.shape[-1]:
        return orthogonalize(x.mT, dtype).mT
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True))
    y = (x / (norm + 1e-8)).astype(dtype or compute_dtype("auto", x.dtype))
    # Rounds on the Gram matrix alone square the condition number, which float32 bears and lower precisions do not.
    wide = 2 * y.shape[-2] <= y.shape[-1] and y.dtype != jnp.bfloat16
    return (_gram_rounds(y) if wide else _rounds(y)).astype(x.dtype)


def _rounds(x: jax.Array) -> jax.Array:
    """Newton-Schulz: X <- (a I + b A + c A^2) X with A = X X^T."""
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x


def _gram_rounds(x: jax.Array) -> jax.Array:
    """The same for matrices at least twice as wide as high, in less work: with P = a I + b A + c A^2, which commutes with A, a round
    is A <- P A P, and the product of all P multiplies X once at the end."""
    a, b, c = NEWTON_SCHULZ
    gram = x @ x.mT
    identity = jnp.broadcast_to(jnp.eye(x.shape[-2], dtype=x.dtype), gram.shape)

    def polynomial(gram):
        return a * identity + b * gram + c * (gram @ gram)

    product = p = polynomial(gram)
    for _ in range(NEWTON_SCHULZ_ROUNDS - 1):
        gram = (p @ gram) @ p
        p = polynomial(gram)
        product = p @ product
    return product @ x


def _one_layer(p: P.Param, x: jax.Array) -> jax.Array:
    """A leaf as matrices (fan in, fan out), tables as they are, vectors flat; a stacked leaf keeps its axes of layers and experts."""
    shape = {"matrix": p.matrix_shape, "table": p.shape[p.stacked :], "vector": (-1,)}[p.kind]
    return x.reshape(*p.shape[: p.stacked], *shape)


def _adafactor(specs: P.Tree) -> optax.GradientTransformation:
    """Adafactor (arXiv 1804.04235) without momentum, every layer (and expert) of every leaf by itself: its means run over one matrix.

    The state holds a whole Adafactor at every leaf, with leading axes of layers and experts where the leaf is stacked.
    """

    def decay(count, exponent):
        return 1 - (count + 1).astype(jnp.result_type(float)) ** -exponent

    rms = optax.scale_by_factored_rms(decay_rate_fn=decay)
    rule = optax.chain(rms, optax.clip_by_block_rms(ADAFACTOR_CLIP), optax.scale_by_param_block_rms())

    def on_layers(function: Callable, p: P.Param) -> Callable:
        for _ in range(p.stacked):
            function = jax.vmap(function)
        return function

    def init(params):
        return P.tree_map(lambda p, x: on_layers(rule.init, p)(_one_layer(p, x)), specs, params)

    def one(p: P.Param, grad, state, x):
        update, state = on_layers(rule.update, p)(_one_layer(p, grad), state, _one_layer(p, x))
        return update.reshape(grad.shape), state

    def update(updates, state, params=None) -> Any:
        pairs = P.tree_map(one, specs, updates, state, params)
        return P.tree_map(lambda _, pair: pair[0], specs, pairs), P.tree_map(lambda _, pair: pair[1], specs, pairs)

    return optax.GradientTransformation(init, update)
