"""Images recoloured. Images are (..., H, W, C) in [0, 1] and stay there; axes before H are frames, which change alike.

The formulas are those of Pillow's ImageEnhance and ImageOps, on floating numbers. What needs three colours leaves images of another number of
channels as they are.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
LEVELS = 256


def blend(image: jax.Array, other: ArrayLike, factor: ArrayLike) -> jax.Array:
    """Returns `factor image + (1 - factor) other`, cut to [0, 1]: the image itself, exactly, at a factor of 1, and beyond it above."""
    return jnp.clip(factor * image + (1 - factor) * other, 0, 1)


def grey(image: jax.Array) -> jax.Array:
    """Returns the lightness (..., H, W, 1) of three colours; the mean of another number of channels."""
    if image.shape[-1] != 3:
        return image.mean(axis=-1, keepdims=True)
    red, green, blue = (weight * image[..., i] for i, weight in enumerate(LUMA))
    return (red + green + blue)[..., None]


def brightness(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Returns the image away from black by a factor: 0 is black, 1 the image."""
    return blend(image, 0.0, factor)


def contrast(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Returns the image away from its mean lightness, that of all frames, by a factor: 0 is a grey field, 1 the image."""
    return blend(image, grey(image).mean(), factor)


def saturation(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Returns the image away from its lightness by a factor: 0 is without colour, 1 the image."""
    return blend(image, grey(image), factor) if image.shape[-1] == 3 else image


def sharpness(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Returns the image away from its mean over 3 x 3 pixels, the middle one counting 5 times, by a factor. Edge pixels stay."""
    H, W = image.shape[-3:-1]
    if min(H, W) < 3:
        return image
    around = sum(image[..., i : H - 2 + i, j : W - 2 + j, :] for i in range(3) for j in range(3))
    inner = image[..., 1:-1, 1:-1, :]
    return image.at[..., 1:-1, 1:-1, :].set(blend(inner, (around + 4 * inner) / 13, factor))


def hue(image: jax.Array, turns: ArrayLike) -> jax.Array:
    """Returns the image with its hues turned by a share of the circle: 1/3 makes red green, green blue and blue red; 0 is the image, exactly."""
    if image.shape[-1] != 3:
        return image
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value, chroma = image.max(axis=-1), image.max(axis=-1) - image.min(axis=-1)
    safe = jnp.where(chroma > 0, chroma, 1)
    # orders, and not equality with the largest, which a fused program may compute twice and round differently
    others = jnp.where(green >= blue, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    sixth = jnp.where((red >= green) & (red >= blue), (green - blue) / safe, others)
    sixth = sixth + 6 * jnp.asarray(turns)

    def channel(n: int) -> jax.Array:
        k = jnp.mod(n + sixth, 6)
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    made = jnp.stack([channel(5), channel(3), channel(1)], axis=-1)
    return jnp.where(jnp.asarray(turns) == 0, image, jnp.clip(made, 0, 1))


def posterize(image: jax.Array, bits: ArrayLike) -> jax.Array:
    """Returns the image with the highest `bits` of the 8 of each value; 8 is the image, exactly."""
    step = jnp.exp2(8 - jnp.asarray(bits, jnp.float32))
    made = jnp.floor(jnp.round(image * (LEVELS - 1)) / step) * step / (LEVELS - 1)
    return jnp.where(jnp.asarray(bits) >= 8, image, made)


def solarize(image: jax.Array, threshold: ArrayLike) -> jax.Array:
    """Returns the image with values above a threshold inverted; a threshold of 1 leaves it."""
    return jnp.where(image > threshold, 1 - image, image)


def autocontrast(image: jax.Array) -> jax.Array:
    """Returns the image with every channel stretched from 0 to 1 over all frames; a channel of one value stays."""
    axes = tuple(range(image.ndim - 1))
    low, high = image.min(axis=axes, keepdims=True), image.max(axis=axes, keepdims=True)
    return jnp.where(high > low, jnp.clip((image - low) / jnp.where(high > low, high - low, 1), 0, 1), image)


def equalize(image: jax.Array) -> jax.Array:
    """Returns the image with every channel's values spread evenly, in 256 levels over all frames; a channel of one value stays."""
    levels = jnp.round(image * (LEVELS - 1)).astype(jnp.int32).reshape(-1, image.shape[-1])

    def channel(values: jax.Array) -> jax.Array:
        counts = jnp.bincount(values, length=LEVELS)
        step = (len(values) - counts[values.max()]) // (LEVELS - 1)
        table = (jnp.cumsum(counts) - counts + step // 2) // jnp.maximum(step, 1)
        return jnp.where(step > 0, jnp.clip(table, 0, LEVELS - 1)[values], values)

    made = jax.vmap(channel, 1, 1)(levels).astype(image.dtype) / (LEVELS - 1)
    return jnp.where((levels == levels[:1]).all(), image, made.reshape(image.shape))
