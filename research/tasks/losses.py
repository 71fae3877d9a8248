"""Losses as pure functions: arrays in, arrays out.

Every reduction runs in at least float32, and float64 stays float64. Each docstring gives the defining formula and the form that is
computed, which neither overflows nor loses the small differences. Natural logarithms throughout: losses are in nats.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from research.core.dtypes import at_least_float32


def _floats(x: ArrayLike) -> jax.Array:
    """`x` as an array of at least float32."""
    return at_least_float32(jnp.asarray(x))


def softmax_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, *, label_smoothing: ArrayLike | None = None, z_loss: ArrayLike | None = None
) -> jax.Array:
    """Losses in nats of `logits` (..., V) against integer `labels` (...), one per position: shape (...).

    Defining formula, with p = softmax(logits): `-sum_v t_v log p_v + z_loss * (log sum_v exp logits_v)^2`, where the target t is
    `1 - label_smoothing` on the label plus `label_smoothing / V` on every entry, the label's included (Inception v3, arXiv
    1512.00567, section 7; z-loss: PaLM, arXiv 2204.02311, section 5). Stable form, with L = logsumexp(logits) around the largest:
    `L - (1 - label_smoothing) * logits_label - label_smoothing * mean_v logits_v + z_loss * L^2`.

    None leaves a term out of the program; a number may be traced. A label outside [0, V) gives NaN. Raises ValueError when the
    labels' shape is not that of the logits without V.
    """
    logits, labels = _floats(logits), jnp.asarray(labels)
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels of shape {labels.shape} for logits of shape {logits.shape}; expected {logits.shape[:-1]}"
        )
    return _penalised(logits, pick(logits, labels), label_smoothing, z_loss)


def soft_cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, label_smoothing: ArrayLike | None = None, z_loss: ArrayLike | None = None
) -> jax.Array:
    """`softmax_cross_entropy` against distributions `targets` (..., V), such as those of mixed examples: (..., V) to (...).

    Raises ValueError when the shapes differ.
    """
    logits, targets = _floats(logits), _floats(targets)
    if targets.shape != logits.shape:
        raise ValueError(f"targets of shape {targets.shape} for logits of shape {logits.shape}; expected equal shapes")
    return _penalised(logits, jnp.sum(targets * logits, axis=-1), label_smoothing, z_loss)


def _penalised(
    logits: jax.Array, target: jax.Array, label_smoothing: ArrayLike | None, z_loss: ArrayLike | None
) -> jax.Array:
    """The loss of logits (..., V) whose mean under the target distribution, before smoothing, is `target` (...)."""
    log_sum, smoothed = jax.nn.logsumexp(logits, axis=-1), target
    if label_smoothing is not None:
        smoothed = (1 - label_smoothing) * target + label_smoothing * jnp.mean(logits, axis=-1)
    losses = jnp.asarray(log_sum - smoothed)
    return losses if z_loss is None else losses + z_loss * jnp.square(log_sum)


@jax.custom_jvp
def pick(x: jax.Array, index: jax.Array) -> jax.Array:
    """`x[..., index]`: from (..., V) and integers (...) to (...); NaN where an index lies outside [0, V).

    The value is a gather, but the gradient a comparison with the index that fuses into its neighbours: the gather's own would be
    a scatter-add, which GPUs run far below memory speed.
    """
    valid = (index >= 0) & (index < x.shape[-1])
    picked = jnp.take_along_axis(x, jnp.where(valid, index, 0)[..., None], axis=-1, mode="promise_in_bounds")[..., 0]
    return jnp.where(valid, picked, jnp.nan)


@pick.defjvp
def _pick_jvp(primals, tangents):
    x, index = primals
    hit = jax.lax.broadcasted_iota(index.dtype, x.shape, x.ndim - 1) == index[..., None]
    return pick(x, index), jnp.sum(jnp.where(hit, tangents[0], 0), axis=-1)


def cross_entropy(probabilities: ArrayLike, targets: ArrayLike) -> jax.Array:
    """`-sum_v t_v log p_v` in nats: probabilities and targets (..., V), both distributions, to (...).

    The sum over classes is not divided by their number, and `0 log 0` is 0. Where logits are at hand, `softmax_cross_entropy` is
    the stable way: a probability that has rounded to 0 has lost its logarithm.
    """
    return -jnp.sum(jax.scipy.special.xlogy(_floats(targets), _floats(probabilities)), axis=-1)


def sigmoid_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Binary cross-entropy in nats, elementwise; labels in [0, 1].

    Defining formula, with p = sigmoid(logits): `-y log p - (1 - y) log(1 - p)`. Stable form: `y softplus(-x) + (1 - y) softplus(x)`,
    where softplus(x) = max(x, 0) + log(1 + exp(-|x|)); its gradient is `sigmoid(x) - y` everywhere, 0 included.
    """
    x, y = _floats(logits), _floats(labels)
    return y * jax.nn.softplus(-x) + (1 - y) * jax.nn.softplus(x)


def mean_squared_error(predictions: ArrayLike, targets: ArrayLike) -> jax.Array:
    """`mean_d (p_d - t_d)^2` over the last axis: (..., D) to (...), in squared units of the target.

    Raises ValueError when the shapes differ, since broadcasting would average over the wrong pairs.
    """
    p, t = _floats(predictions), _floats(targets)
    if p.shape != t.shape:
        raise ValueError(f"predictions of shape {p.shape} for targets of shape {t.shape}; expected equal shapes")
    return jnp.mean(jnp.square(p - t), axis=-1)


def weighted_sum(losses: ArrayLike, weights: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """`(sum_i w_i l_i, sum_i w_i)`, two scalars; their quotient is the weighted mean.

    The two are returned apart because sums over micro-batches, devices and documents add up exactly where means do not. A loss of
    weight 0 does not count even if it is infinite or NaN. Raises ValueError when the shapes differ.
    """
    losses, weights = _floats(losses), _floats(weights)
    if losses.shape != weights.shape:
        raise ValueError(f"weights of shape {weights.shape} for losses of shape {losses.shape}; expected equal shapes")
    return jnp.sum(jnp.where(weights == 0, 0, losses * weights)), jnp.sum(weights)
