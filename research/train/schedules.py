"""Learning rate schedules as formulas of traced numbers: the kind is static, peak, warm-up, horizon and floor are not.

One compiled step therefore serves every schedule of a kind, and `vmap` over them is a sweep.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from research.core.hypers import Hypers

Schedule = Literal["constant", "cosine", "linear", "wsd", "inverse-sqrt"]


def rate(kind: Schedule, count: ArrayLike, hypers: Hypers) -> jax.Array:
    """The learning rate of the update after `count` updates (0 for the first), a scalar of the hypers' dtype.

    `learning_rate * min((count + 1) / warmup_steps, decay)`: the warm-up is linear, its first rate is above 0 and its last the peak.
    With c = count, W = warmup_steps, E = horizon, f = floor, and t running from 0 to 1 over the decaying part, `decay` is

        constant      1
        cosine        f + (1 - f) (1 + cos(pi t)) / 2     t over [W, E]     (SGDR, arXiv 1608.03983, equation 5)
        linear        1 - (1 - f) t                       t over [W, E]
        wsd           1 - (1 - f) t                       t over the last `cooldown` of E     (arXiv 2405.18392)
        inverse-sqrt  max(f, sqrt(W / max(c, W)))         (Transformer, arXiv 1706.03762, equation 3)

    Cosine, linear and wsd are at `floor * learning_rate` from the horizon on, also where the warm-up is longer than the horizon.
    Every value is finite, for warm-up and horizon of 0 too. Raises ValueError for an unknown kind.
    """
    step = jnp.asarray(count).astype(hypers.learning_rate.dtype)
    factor = _decay(kind, step, hypers)
    ramp = (step + 1) / jnp.maximum(hypers.warmup_steps, 1)
    factor = jnp.minimum(jnp.minimum(ramp, 1), factor)
    if kind in ("cosine", "linear", "wsd"):
        factor = jnp.where(step >= hypers.horizon, hypers.floor, factor)
    return hypers.learning_rate * factor


def _decay(kind: Schedule, step: jax.Array, hypers: Hypers) -> jax.Array:
    """The rate after the warm-up, relative to the peak."""
    start, floor = hypers.warmup_steps, hypers.floor
    if kind == "constant":
        return jnp.ones_like(step)
    if kind == "cosine":
        return floor + (1 - floor) * (1 + jnp.cos(jnp.pi * _progress(step, start, hypers.horizon))) / 2
    if kind == "linear":
        return 1 - (1 - floor) * _progress(step, start, hypers.horizon)
    if kind == "wsd":
        start = jnp.maximum(start, hypers.horizon * (1 - hypers.cooldown))
        return 1 - (1 - floor) * _progress(step, start, hypers.horizon)
    if kind == "inverse-sqrt":
        start = jnp.maximum(start, 1)
        return jnp.maximum(floor, jnp.sqrt(start / jnp.maximum(step, start)))
    raise ValueError(f"schedule {kind!r}; expected one of constant, cosine, linear, wsd, inverse-sqrt")


def _progress(step: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
    """0 up to `start`, 1 from `end` on, linear between. A stretch of less than one step counts as one, so nothing divides by 0."""
    return jnp.clip((step - start) / jnp.maximum(end - start, 1), 0, 1)
