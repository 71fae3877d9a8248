"""RandAugment (arXiv 1909.13719): a few of fourteen changes of an image, drawn uniformly, all of one magnitude.

Inside a compiled program every row takes its own change. Those that move the image differ in the map alone and share one resampler; those that
recolour it are branches of a switch.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from research.data.augment import colour, geometry
from research.data.augment.base import leaves
from research.data.augment.geometry import Fill
from research.data.augment.images import FILLS, Images

MOVES = ("identity", "rotate", "shear_x", "shear_y", "translate_x", "translate_y")
TONES = (
    "brightness",
    "saturation",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
OPERATIONS = MOVES + TONES
LARGEST = 30.0  # the magnitude of the whole range
DEGREES, SLANT, SHIFT, FACTOR, BITS = 30.0, 0.3, 150 / 331, 0.9, 4.0  # of the whole range, as torchvision has them


@leaves("strength")
@dataclass(frozen=True)
class RandAugment(Images):
    """Makes `operations` changes of magnitude `strength`, from 0 to 30, one after the other.

    Each is one of `OPERATIONS`. At magnitude m turns are by m degrees, slants by 0.01 m, shifts by 150 m / (30 x 331) of a side, factors of
    brightness, saturation, contrast and sharpness 1 +- 0.03 m, all of them with a random sign; values keep 8 - 4 m / 30 bits, and those above
    1 - m / 30 are inverted. Auto-contrast and equalisation have no magnitude, but do nothing at 0.
    """

    strength: ArrayLike = 9.0
    operations: int = 2
    fill: Fill = 0.5
    RANGES = {"strength": (0, LARGEST), "operations": (1, 100), "fill": (0, 1)}
    CHOICES = FILLS

    def row(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the image after its changes."""

        def change(image: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
            for_which, for_sign = jax.random.split(key)
            which = jax.random.randint(for_which, (), 0, len(OPERATIONS))
            sign = jax.random.rademacher(for_sign, (), jnp.float32)
            return operation(image, which, jnp.asarray(self.strength) / LARGEST, sign, self.fill), None

        return jax.lax.scan(change, x, jax.random.split(key, self.operations))[0]


def operation(image: jax.Array, which: ArrayLike, level: ArrayLike, sign: ArrayLike, fill: Fill = 0.5) -> jax.Array:
    """Returns an image (..., H, W, C) after the change of a number in `OPERATIONS`, at a level in [0, 1], with a sign of 1 or -1. All may be
    traced."""
    H, W = image.shape[-3:-1]
    signed = jnp.asarray(sign * level, jnp.float32)
    maps = (
        geometry.affine(),
        geometry.rotation(DEGREES * signed),
        geometry.shear(SLANT * signed, 0),
        geometry.shear(0, SLANT * signed),
        geometry.translation(SHIFT * W * signed, 0),
        geometry.translation(0, SHIFT * H * signed),
    )
    which = jnp.asarray(which)
    moved = geometry.warp(image, jnp.stack(maps)[jnp.where(which < len(MOVES), which, 0)], fill)
    factor, level = 1 + FACTOR * signed, jnp.asarray(level, jnp.float32)
    branches = (
        lambda x: x,
        lambda x: colour.brightness(x, factor),
        lambda x: colour.saturation(x, factor),
        lambda x: colour.contrast(x, factor),
        lambda x: colour.sharpness(x, factor),
        lambda x: colour.posterize(x, 8 - jnp.round(BITS * level)),
        lambda x: colour.solarize(x, 1 - level),
        lambda x: jnp.where(level > 0, colour.autocontrast(x), x),
        lambda x: jnp.where(level > 0, colour.equalize(x), x),
    )
    return jax.lax.switch(jnp.maximum(which - len(MOVES) + 1, 0), branches, moved)
