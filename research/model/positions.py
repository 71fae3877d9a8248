"""Where a token stands: rotary tables with the published scalings, sinusoids, ALiBi slopes, positions of packed documents."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from research.model.config import RopeConfig


def documents(segments_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`(documents, positions)`, each (B, T): runs of one segment id, numbered from the left, and positions that restart with each.

    An id that comes back later in its row is another document, so that no token sees one to its right.
    """
    t = jnp.arange(segments_BT.shape[1])[None]
    starts = jnp.concatenate(
        [jnp.ones_like(segments_BT[:, :1], bool), segments_BT[:, 1:] != segments_BT[:, :-1]], axis=1
    )
    return jnp.cumsum(starts, axis=1, dtype=jnp.int32), t - jax.lax.cummax(jnp.where(starts, t, 0), axis=1)


def rope_frequencies(config: RopeConfig, rotated: int, long: bool = False) -> tuple[np.ndarray, float]:
    """`(angles per position of each rotated pair, factor on cos and sin)`: shapes (rotated / 2,) and a scalar. `long`: longrope's second set."""
    exponent = np.arange(0, rotated, 2) / rotated
    if config.scaling == "ntk":
        return 1 / (config.base * config.factor ** (rotated / max(rotated - 2, 1))) ** exponent, 1.0
    plain = 1 / config.base**exponent
    if config.scaling == "linear":
        return plain / config.factor, 1.0
    if config.scaling == "llama3":
        return _llama3(plain, config), 1.0
    if config.scaling == "yarn":
        factor = config.attention_factor or 0.1 * math.log(config.factor) + 1.0
        return _yarn(plain, config, rotated), factor
    if config.scaling == "longrope":
        grown = math.sqrt(1 + math.log(config.factor) / math.log(config.original_context)) if config.factor > 1 else 1.0
        return plain / np.asarray(
            config.long_factors if long else config.short_factors
        ), config.attention_factor or grown
    return plain, 1.0


def _llama3(plain: np.ndarray, config: RopeConfig) -> np.ndarray:
    """Llama 3.1: long wavelengths are divided by the factor, short ones stay, the band between is interpolated."""
    turns = config.original_context * plain / (2 * math.pi)
    low, high = config.low_frequency_factor, config.high_frequency_factor
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return plain * (smooth + (1 - smooth) / config.factor)


def _yarn(plain: np.ndarray, config: RopeConfig, rotated: int) -> np.ndarray:
    """YaRN's ramp over dimensions between `beta_fast` and `beta_slow` turns within the original context (section 3.2)."""

    def dimension(turns: float) -> float:
        return rotated * math.log(config.original_context / (turns * 2 * math.pi)) / (2 * math.log(config.base))

    low = max(math.floor(dimension(config.beta_fast)), 0)
    high = min(math.ceil(dimension(config.beta_slow)), rotated - 1)
    ramp = np.clip((np.arange(rotated // 2) - low) / max(high - low, 0.001), 0, 1)
    return plain * ((1 - ramp) + ramp / config.factor)


def rope_table(
    config: RopeConfig, head_size: int, positions_BT: jax.Array, dtype, last_B: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """`(cos, sin)`, each (B, T, 1, rotated / 2), ready to broadcast over heads.

    `last_B` is the last position of each row that is no padding, by which longrope chooses its factors; None: the largest.
    """
    rotated = int(head_size * config.fraction)
    frequencies, factor = rope_frequencies(config, rotated)
    wide = jnp.promote_types(dtype, jnp.float32)
    per_pair = jnp.asarray(frequencies, wide)[None, None, None]
    if config.scaling == "longrope":
        last_B = jnp.max(positions_BT, axis=1) if last_B is None else last_B
        beyond = (last_B >= config.original_context)[:, None, None, None]
        per_pair = jnp.where(beyond, jnp.asarray(rope_frequencies(config, rotated, long=True)[0], wide), per_pair)
    angles = positions_BT[..., None, None].astype(wide) * per_pair
    return (jnp.cos(angles) * factor).astype(dtype), (jnp.sin(angles) * factor).astype(dtype)


def rotate(x_BTNH: jax.Array, table: tuple[jax.Array, jax.Array], layout: str) -> jax.Array:
    """The first `rotated` elements of every head turned by their position's angle; the others pass."""
    cos, sin = table
    half, rest = cos.shape[-1], x_BTNH.shape[-1] - 2 * cos.shape[-1]
    if layout == "interleaved":
        turned, passed = x_BTNH[..., : 2 * half], x_BTNH[..., 2 * half :]
        a, b = turned[..., ::2], turned[..., 1::2]
        parts = [jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turned.shape)]
    else:  # split, not sliced: the gradient of a split is one concatenation, that of slices a padded sum
        a, b, passed = jax.lax.split(x_BTNH, (half, half, rest), axis=x_BTNH.ndim - 1)
        parts = [a * cos - b * sin, b * cos + a * sin]
    return jnp.concatenate([*parts, passed] if rest else parts, axis=-1)


def sinusoids(positions: jax.Array, width: int, dtype) -> jax.Array:
    """Sines then cosines of geometric wavelengths ("Attention Is All You Need", section 3.5): `positions.shape + (width,)`."""
    half = (width + 1) // 2
    frequencies = 10000.0 ** (-jnp.arange(half) * 2 / width)
    angles = positions[..., None] * frequencies.reshape((1,) * positions.ndim + (-1,))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[..., :width].astype(dtype)


def alibi_slopes(heads: int) -> np.ndarray:
    """One slope a head (arXiv 2108.12409): a geometric series for powers of two, the paper's interleaving otherwise."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = 2.0 ** (-8 / power * np.arange(1, power + 1))
    extra = 2.0 ** (-4 / power * np.arange(1, 2 * (heads - power) + 1, 2))
    return np.concatenate([slopes, extra])
