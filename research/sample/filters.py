"""From logits to a token: penalties, what is allowed, temperature, top-k, top-p, min-p, and the draw.

A filter that is None is absent from the compiled program; the value of one that is present is traced. They apply in
the order of this list, as Hugging Face's `generate` applies those it has. Nothing is sorted: a threshold is found bit by bit
(`largest_threshold`), which is exact and on a CPU 3 to 20 times faster than a sort or `lax.top_k`. So tokens of equal
logits are kept or dropped together.
"""

import jax
import jax.numpy as jnp
from flax import struct

TINY = 1e-20  # stands for temperature 0 in a division


@struct.dataclass
class Filters:
    """Scalars for the whole batch, or one value a row (B,). Without a temperature the draw is greedy: no noise."""

    temperature: jax.Array | None = None  # 0 is greedy too
    top_k: jax.Array | None = None  # at least 1
    top_p: jax.Array | None = None  # in (0, 1]
    min_p: jax.Array | None = None  # in [0, 1]
    repetition_penalty: jax.Array | None = None  # 1 changes nothing
    presence_penalty: jax.Array | None = None  # 0 changes nothing
    frequency_penalty: jax.Array | None = None  # 0 changes nothing

    @property
    def counts(self) -> bool:
        """Whether they need the tokens of the output counted."""
        return self.presence_penalty is not None or self.frequency_penalty is not None


@struct.dataclass
class Past:
    """What the filters know of a row besides its logits, (B, V) each; None where no filter asks."""

    seen_BV: jax.Array | None = None  # whether a token occurs in prompt or output
    counts_BV: jax.Array | None = None  # how often it occurs in the output
    allowed_BV: jax.Array | None = None  # whether it may come next


def make(**values: float | None) -> Filters:
    """Filters from Python numbers; None leaves one out. A number that its type cannot hold becomes the nearest that it can."""

    def scalar(name: str, value: float | None) -> jax.Array | None:
        if value is None:
            return None
        if name == "top_k":
            return jnp.asarray(min(int(value), jnp.iinfo(jnp.int32).max), jnp.int32)
        smallest = float(jnp.finfo(jnp.float32).tiny)
        return jnp.asarray(smallest if 0 < value < smallest else value, jnp.float32)

    return Filters(**{name: scalar(name, value) for name, value in values.items()})


def sample(logits_BV: jax.Array, filters: Filters, keys_B=None, past: Past | None = None) -> jax.Array:
    """One id a row, (B,) int32: where filtered logits plus Gumbel noise are largest, which draws from their softmax.

    A temperature needs `keys_B`, one for each row; penalties need their part of `past`.
    """
    if filters.temperature is None:
        return largest(penalised(logits_BV, filters, past))
    z_BV = filtered(logits_BV, filters, past)
    noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, z_BV.shape[1:], z_BV.dtype))(keys_B)
    greedy_B1 = _column(filters.temperature, z_BV) == 0
    return largest(z_BV + jnp.where(greedy_B1, 0, noise_BV))


def largest(x_BV: jax.Array) -> jax.Array:
    """`argmax` of every row, (B,) int32: the first of equal ones, or the first NaN. In two passes, each of which a CPU does with its vector
    instructions, as it does not XLA's own single one: 2 to 4 times as fast."""
    ids_V, V = jnp.arange(x_BV.shape[-1], dtype=jnp.int32), x_BV.shape[-1]
    best_B1 = jnp.max(x_BV, axis=-1, keepdims=True)
    return jnp.min(jnp.where((x_BV == best_B1) | jnp.isnan(x_BV), ids_V, V), axis=-1)


def filtered(logits_BV: jax.Array, filters: Filters, past: Past | None = None) -> jax.Array:
    """Logits (B, V), float32, whose softmax is drawn from: 0 at a row's best token, -inf where a filter drops one."""
    z_BV = penalised(logits_BV, filters, past)
    z_BV = (z_BV - jnp.max(z_BV, axis=-1, keepdims=True)).astype(jnp.float32)
    if filters.temperature is not None:
        z_BV = z_BV / jnp.maximum(_column(filters.temperature, z_BV), TINY)
    if filters.top_k is not None:
        z_BV = _keep(z_BV, best(z_BV, _column(filters.top_k, z_BV)))
    if filters.top_p is not None:
        z_BV = _keep(z_BV, nucleus(z_BV, _column(filters.top_p, z_BV)))
    if filters.min_p is not None:
        z_BV = _keep(z_BV, z_BV >= jnp.log(_column(filters.min_p, z_BV)))
    return z_BV


def penalised(logits_BV: jax.Array, filters: Filters, past: Past | None) -> jax.Array:
    """Logits (B, V) after the penalties, and -inf where `past` does not allow a token.

    CTRL's repetition penalty (arXiv 1909.05858, section 4.1) on the tokens seen, in the form that lowers every sign:
    positive logits are divided by it, negative ones multiplied. Then the presence and frequency penalties of OpenAI's
    API, on the output alone: each token that it holds loses the one, and the other times its count.
    """
    past = past or Past()
    if filters.repetition_penalty is not None and past.seen_BV is not None:
        by_B1 = _column(filters.repetition_penalty, logits_BV).astype(logits_BV.dtype)
        lowered_BV = jnp.where(logits_BV > 0, logits_BV / by_B1, logits_BV * by_B1)
        logits_BV = jnp.where(past.seen_BV, lowered_BV, logits_BV)
    if past.counts_BV is not None:
        if filters.presence_penalty is not None:
            logits_BV = logits_BV - _column(filters.presence_penalty, logits_BV) * (past.counts_BV > 0)
        if filters.frequency_penalty is not None:
            logits_BV = logits_BV - _column(filters.frequency_penalty, logits_BV) * past.counts_BV
    return logits_BV if past.allowed_BV is None else _keep(logits_BV, past.allowed_BV)


def best(z_BV: jax.Array, k_B1: jax.Array) -> jax.Array:
    """The k largest entries of a row, and those equal to the k-th: booleans (B, V)."""
    bits_BV = sortable(z_BV)
    return bits_BV >= largest_threshold(bits_BV, jnp.ones_like(z_BV), jnp.minimum(k_B1, z_BV.shape[1]))


def nucleus(z_BV: jax.Array, p_B1: jax.Array) -> jax.Array:
    """The fewest most probable tokens whose probabilities reach `p` together (arXiv 1904.09751): booleans (B, V)."""
    bits_BV, weights_BV = sortable(z_BV), jnp.exp(z_BV)
    target_B1 = p_B1 * jnp.sum(weights_BV, axis=-1, keepdims=True)
    return (bits_BV >= largest_threshold(bits_BV, weights_BV, target_B1)) | (p_B1 >= 1)


def sortable(x: jax.Array) -> jax.Array:
    """float32 as uint32 of the same order."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def largest_threshold(bits_BV: jax.Array, weights_BV: jax.Array, target_B1: jax.Array) -> jax.Array:
    """The largest t, (B, 1) uint32, for which the weights of the entries `bits >= t` sum to at least the target.

    Each of the 32 bits, from the highest, is set where the sum allows it. A row's sums are all taken in one order over
    non-negative terms, so rounding cannot make them grow as t grows.
    """

    def try_bit(i, t_B1):
        candidate_B1 = t_B1 | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        mass_B1 = jnp.sum(jnp.where(bits_BV >= candidate_B1, weights_BV, 0), axis=-1, keepdims=True)
        return jnp.where(mass_B1 >= target_B1, candidate_B1, t_B1)

    return jax.lax.fori_loop(0, 32, try_bit, jnp.zeros(target_B1.shape, jnp.uint32))


def _keep(z_BV: jax.Array, kept_BV: jax.Array) -> jax.Array:
    return jnp.where(kept_BV, z_BV, -jnp.inf)


def _column(value: jax.Array, like_BV: jax.Array) -> jax.Array:
    """A scalar or (B,) as (B, 1) float32."""
    return jnp.broadcast_to(jnp.asarray(value, jnp.float32), like_BV.shape[:1])[:, None]
