"""Augmentations of `image`: floating numbers in [0, 1], (B, H, W, C), or clips (B, F, H, W, C) whose frames all change alike.

Each draws what it does from a row's key and hands it to the functions of `geometry` and `colour`, which say what is done and not how much.
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from research.data.augment import colour, geometry
from research.data.augment.base import Rows, leaves
from research.data.augment.geometry import Fill

TRIES = 10  # boxes drawn for a crop, as torchvision does
FILLED = {"strength": (0, math.inf), "fill": (0, 1)}
FILLS = {"fill": ("nearest", "reflect")}


class Images(Rows):
    """An augmentation of images or clips."""

    ARRAY = "image"
    AXES = (4, 5)


@leaves("strength")
@dataclass(frozen=True)
class Flip(Images):
    """Mirrors images with probability `strength`, left to right or (vertical) top to bottom."""

    strength: ArrayLike = 0.5
    direction: Literal["horizontal", "vertical"] = "horizontal"
    RANGES = {"strength": (0, 1)}
    CHOICES = {"direction": ("horizontal", "vertical")}

    def row(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the image or its mirror image."""
        return jnp.where(jax.random.bernoulli(key, self.strength), geometry.flip(x, self.direction), x)


@leaves("strength")
@dataclass(frozen=True)
class Rotate(Images):
    """Turns images about their middle by up to `strength` degrees either way, uniformly."""

    strength: ArrayLike = 15.0
    fill: Fill = 0.0
    RANGES = FILLED
    CHOICES = FILLS

    def row(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the image turned."""
        return geometry.warp(x, geometry.rotation(either(key) * self.strength), self.fill)


@leaves("strength")
@dataclass(frozen=True)
class Scale(Images):
    """Enlarges images about their middle by a factor from 1 / (1 + strength) to 1 + strength, uniform in its logarithm."""

    strength: ArrayLike = 0.2
    fill: Fill = 0.0
    RANGES = FILLED
    CHOICES = FILLS

    def row(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the image enlarged or made smaller."""
        return geometry.warp(x, geometry.scaling(jnp.exp(either(key) * jnp.log1p(self.strength))), self.fill)


@leaves("strength")
@dataclass(frozen=True)
class Translate(Images):
    """Shifts images by up to a share `strength` of their sides, in both directions, uniformly and not by whole pixels."""

    strength: ArrayLike = 0.1
    fill: Fill = 0.0
    RANGES = {"strength": (0, 1), "fill": (0, 1)}
    CHOICES = FILLS

    def row(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the image shifted."""
        H, W = x.shape[-3:-1]
        for_x, for_y = jax.random.split(key)
        right, down = either(for_x) * self.strength * W, either(for_y) * self.strength * H
        return geometry.warp(x, geometry.translation(right, down), self.fill)


@leaves("strength")
@dataclass(frozen=True)
class Shear(Images):
    """Slants images: rows shift by up to `strength` pixels for each that they lie off the middle, and columns too, uniformly."""

    strength: ArrayLike = 0.2
    fill: Fill = 0.0
    RANGES = FILLED
    CHOICES = FILLS

    def row(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the image slanted."""
        across, down = (either(k) * self.strength for k in jax.random.split(key))
        return geometry.warp(x, geometry.shear(across, down), self.fill)


@leaves("strength")
@dataclass(frozen=True)
class Crop(Images):
    """Random-resized crops (arXiv 1409.4842, section 6): a box of the image, enlarged to all of it.

    The box's area is a share from 1 - strength to 1, uniform, its aspect ratio over that of the image from 1 / ratio to `ratio`, uniform in
    its logarithm; of 10 boxes the first that fits is taken, and the whole image if none does. For square images this is
    torchvision's RandomResizedCrop, with its defaults `scale=(0.08, 1)` and `ratio=(3/4, 4/3)` here.
    """

    strength: ArrayLike = 0.92
    ratio: float = 4 / 3
    RANGES = {"strength": (0, 1), "ratio": (1, math.inf)}

    def row(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the box enlarged."""
        return geometry.crop(x, *self.box(key, *x.shape[-3:-1]))

    def box(self, key: jax.Array, H: int, W: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Returns top, left, height and width of a box in an image of H x W pixels, whole numbers."""
        for_area, for_ratio, for_top, for_left = jax.random.split(key, 4)
        area = jax.random.uniform(for_area, (TRIES,), minval=1 - jnp.asarray(self.strength), maxval=1)
        bound = math.log(self.ratio)
        ratio = jnp.exp(jax.random.uniform(for_ratio, (TRIES,), minval=-bound, maxval=bound))
        heights, widths = jnp.round(H * jnp.sqrt(area / ratio)), jnp.round(W * jnp.sqrt(area * ratio))
        fits = (heights >= 1) & (heights <= H) & (widths >= 1) & (widths <= W) & (jnp.asarray(self.strength) > 0)
        first = jnp.argmax(fits)
        height, width = jnp.where(fits[first], heights[first], H), jnp.where(fits[first], widths[first], W)
        top = jnp.floor(jax.random.uniform(for_top) * (H - height + 1))
        left = jnp.floor(jax.random.uniform(for_left) * (W - width + 1))
        return top, left, height, width


@leaves("strength")
@dataclass(frozen=True)
class PadCrop(Images):
    """Pads images by `strength` pixels on every side and cuts their size out of that anywhere (arXiv 1512.03385, section 4.2)."""

    strength: ArrayLike = 4.0
    fill: Fill = 0.0
    RANGES = FILLED
    CHOICES = FILLS

    def row(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the image shifted by whole pixels."""
        most = jnp.floor(jnp.asarray(self.strength)).astype(jnp.int32)
        right, down = jax.random.randint(key, (2,), -most, most + 1)
        return geometry.warp(x, geometry.translation(right, down), self.fill)


@leaves("strength", "brightness", "contrast", "saturation", "hue")
@dataclass(frozen=True)
class Jitter(Images):
    """Changes brightness, contrast, saturation and hue, in this order.

    The first three by factors from 1 - s to 1 + s, where s is the field times `strength` and no factor is below 0; the hue by up to s of the colour
    circle either way, all uniformly. Saturation and hue are for three channels.
    """

    strength: ArrayLike = 1.0
    brightness: ArrayLike = 0.4
    contrast: ArrayLike = 0.4
    saturation: ArrayLike = 0.4
    hue: ArrayLike = 0.1
    RANGES = dict.fromkeys(("strength", "brightness", "contrast", "saturation"), (0, math.inf)) | {"hue": (0, 0.5)}

    def row(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the image recoloured."""
        keys = jax.random.split(key, 4)
        parts = (self.brightness, self.contrast, self.saturation)
        low = [jnp.maximum(1 - part * self.strength, 0) for part in parts]
        factors = [
            jax.random.uniform(k, minval=a, maxval=1 + part * self.strength)
            for k, a, part in zip(keys[:3], low, parts, strict=True)
        ]
        x = colour.contrast(colour.brightness(x, factors[0]), factors[1])
        return colour.hue(colour.saturation(x, factors[2]), either(keys[3]) * self.hue * self.strength)


@leaves("strength")
@dataclass(frozen=True)
class Cutout(Images):
    """Covers a box of each image with `fill` (Cutout, arXiv 1708.04552).

    The box's sides are a share `strength` of the image's, and its middle is any pixel, so that a part of the box may lie outside.
    """

    strength: ArrayLike = 0.5
    fill: float = 0.0
    RANGES = {"strength": (0, 1), "fill": (0, 1)}

    def row(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the image with its box covered."""
        H, W = x.shape[-3:-1]
        height, width = jnp.round(H * jnp.asarray(self.strength)), jnp.round(W * jnp.asarray(self.strength))
        inside = box_mask(H, W, *random_box(key, H, W, height, width))
        return jnp.where(jnp.broadcast_to(inside[..., None], x.shape), self.fill, x)


def either(key: jax.Array) -> jax.Array:
    """Returns a number uniform in [-1, 1)."""
    return jax.random.uniform(key, minval=-1)


def random_box(key: jax.Array, H: int, W: int, height: jax.Array, width: jax.Array) -> tuple[jax.Array, ...]:
    """Returns top, left, bottom and right of a box of this size around a pixel of an image of H x W, cut at the image's edges."""
    for_y, for_x = jax.random.split(key)
    top = jax.random.randint(for_y, (), 0, H) - height // 2
    left = jax.random.randint(for_x, (), 0, W) - width // 2
    return jnp.clip(top, 0, H), jnp.clip(left, 0, W), jnp.clip(top + height, 0, H), jnp.clip(left + width, 0, W)


def box_mask(H: int, W: int, top: jax.Array, left: jax.Array, bottom: jax.Array, right: jax.Array) -> jax.Array:
    """Returns which pixels (H, W) lie in a box; its last row and column are those before `bottom` and `right`."""
    y, x = jnp.meshgrid(jnp.arange(H), jnp.arange(W), indexing="ij")
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)
