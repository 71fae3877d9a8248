"""Images moved: one bilinear resampler, and the affine maps that it is given.

Images are (..., H, W, C); axes before H are frames, which move alike. A map is a matrix (2, 3) that takes a place of the output to the place of the
input that is shown there, both as (x, y, 1) in pixels from the middle, x to the right and y down. Places outside show `fill`: a
number, or the nearest edge, or the image mirrored at its edges.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike

Fill = float | Literal["nearest", "reflect"]


def sample(image: jax.Array, y: jax.Array, x: jax.Array, fill: Fill = 0.0) -> jax.Array:
    """Returns an image (..., H, W, C) at the places `y`, `x`, both (h, w) in pixels from the middle of the first pixel: (..., h, w, C), bilinear.

    Values stay in [0, 1], which rounding alone would leave. A place that is a pixel gives its value exactly.
    """
    mode, value = (fill, 0.0) if isinstance(fill, str) else ("constant", fill)

    def plane(pixels: jax.Array) -> jax.Array:
        return map_coordinates(pixels, [y, x], order=1, mode=mode, cval=value)

    frames = image.reshape(-1, *image.shape[-3:])
    made = jax.vmap(jax.vmap(plane, -1, -1))(frames)
    return jnp.clip(made, 0, 1).reshape(*image.shape[:-3], *y.shape, image.shape[-1])


def warp(image: jax.Array, matrix: jax.Array, fill: Fill = 0.0) -> jax.Array:
    """Returns an image (..., H, W, C) under an affine map (2, 3), of the same shape. The identity gives the image exactly."""
    H, W = image.shape[-3:-1]
    middle_y, middle_x = (H - 1) / 2, (W - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(H) - middle_y, jnp.arange(W) - middle_x, indexing="ij")
    # no matrix product, which accelerators would round
    from_x = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] + middle_x
    from_y = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] + middle_y
    return sample(image, from_y, from_x, fill)


def affine(
    xx: ArrayLike = 1, xy: ArrayLike = 0, dx: ArrayLike = 0, yx: ArrayLike = 0, yy: ArrayLike = 1, dy: ArrayLike = 0
):
    """Returns the matrix (2, 3) of `x' = xx x + xy y + dx` and `y' = yx x + yy y + dy`; the identity by default."""
    return jnp.stack([jnp.asarray(v, jnp.float32) for v in (xx, xy, dx, yx, yy, dy)]).reshape(2, 3)


def rotation(degrees: ArrayLike) -> jax.Array:
    """Returns the map that turns an image counter-clockwise about its middle."""
    angle = jnp.deg2rad(jnp.asarray(degrees, jnp.float32))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return affine(xx=cos, xy=-sin, yx=sin, yy=cos)


def scaling(factor: ArrayLike) -> jax.Array:
    """Returns the map that enlarges an image about its middle, or makes it smaller if the factor is below 1."""
    inverse = 1 / jnp.asarray(factor, jnp.float32)
    return affine(xx=inverse, yy=inverse)


def translation(right: ArrayLike, down: ArrayLike) -> jax.Array:
    """Returns the map that shifts an image by pixels, which need not be whole."""
    return affine(dx=-jnp.asarray(right, jnp.float32), dy=-jnp.asarray(down, jnp.float32))


def shear(across: ArrayLike, down: ArrayLike) -> jax.Array:
    """Returns the map that shifts rows by `across` pixels for each that they lie below the middle, and columns by `down`, to the left and up."""
    return affine(xy=across, yx=down)


def flip(image: jax.Array, direction: Literal["horizontal", "vertical"]) -> jax.Array:
    """Returns an image (..., H, W, C) mirrored left to right (horizontal) or top to bottom (vertical)."""
    return image[..., ::-1, :] if direction == "horizontal" else image[..., ::-1, :, :]


def crop(image: jax.Array, top: ArrayLike, left: ArrayLike, height: ArrayLike, width: ArrayLike) -> jax.Array:
    """Returns a box of an image (..., H, W, C) enlarged to the image's shape.

    Bilinear between middles of pixels, and the box's edge pixels go on outwards, so that nothing outside the box shows. The four numbers
    may be traced.
    """
    H, W = image.shape[-3:-1]

    def places(size: int, start: ArrayLike, length: ArrayLike) -> jax.Array:
        last = jnp.asarray(length) - 1
        return jnp.asarray(start) + jnp.clip((jnp.arange(size) + 0.5) * (length / size) - 0.5, 0, last)

    y, x = jnp.meshgrid(places(H, top, height), places(W, left, width), indexing="ij")
    return sample(image, y, x, "nearest")
