"""Arrays as what a browser shows and plays: PNG, animated WebP and WAV in data URIs, each within a budget of pixels or samples."""

import base64
import io
import math
import wave
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from research.core.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

OVER = 0.01  # by how much a float may leave [0, 1]: a decoder's rounding, not another range
ENLARGED = 128  # pixels of the longer side up to which a picture is shown in squares
RAMP = np.array([(8, 6, 30), (74, 24, 110), (178, 48, 92), (246, 124, 50), (252, 240, 172)], np.float64)


def pixels(values: Any, what: str, dims: int) -> np.ndarray:
    """Returns pictures or videos as uint8 of `dims` dimensions, the last of 1, 3 or 4 channels; without the last, grey.

    Takes uint8 as it is, and floats from 0 to 1 (half values round to even). Raises UserError for other types, ranges and shapes, naming `what`.
    """
    array = np.asarray(values)
    if array.ndim == dims - 1:
        array = array[..., None]
    if array.ndim != dims or array.shape[-1] not in (1, 3, 4) or 0 in array.shape[1:]:
        axes = ", ".join(("n", "F", "H", "W", "C") if dims == 5 else ("n", "H", "W", "C"))
        raise UserError(f"{what} have shape {np.shape(values)}; expected ({axes}) with C 1, 3 or 4, or without C")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind in "iub":
        raise UserError(f"{what} have type {array.dtype}; expected uint8, or floats from 0 to 1")
    array = array.astype(np.float32)
    if array.size and not (array.min() >= -OVER and array.max() <= 1 + OVER):
        raise UserError(
            f"{what} have values from {array.min():.6g} to {array.max():.6g}; expected floats from 0 to 1, or uint8: rescale them first"
        )
    return np.rint(array.clip(0, 1) * 255).astype(np.uint8)


def fitting(shape: tuple[int, int], count: int, budget: int) -> tuple[int, int]:
    """Returns the (height, width) to which `count` pictures of `shape` shrink, at one ratio, to have at most about `budget` pixels together."""
    ratio = min(1.0, math.sqrt(budget / (max(count, 1) * shape[0] * shape[1])))
    return max(1, round(shape[0] * ratio)), max(1, round(shape[1] * ratio))


def picture(array: np.ndarray, size: tuple[int, int]) -> "Image":
    """Returns the uint8 pixels (H, W, C) as a picture of (height, width) `size`."""
    from PIL import Image

    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    return image if size == array.shape[:2] else image.resize((size[1], size[0]), Image.Resampling.LANCZOS)


def png(image: "Image") -> str:
    """Returns a PNG as a data URI."""
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return uri("image/png", content.getvalue())


def webp(frames: Sequence["Image"], durations: Sequence[int]) -> str:
    """Returns an animated WebP, without loss and without end, as a data URI; frame by frame, `durations` are in milliseconds."""
    content = io.BytesIO()
    frames[0].save(
        content, "WEBP", save_all=True, append_images=frames[1:], duration=list(durations), loop=0,
        lossless=True, method=0, quality=0,  # a tenth larger than with more effort, and ten times as fast
    )  # fmt: skip
    return uri("image/webp", content.getvalue())


def sixteen_bits(waveform: Any, name: str) -> tuple[np.ndarray, float]:
    """Returns samples [T, channels] as int16, and by what they were divided to fit: 1 unless floats go beyond [-1, 1].

    Takes int16, or floats, [T] or [T, channels] with 1 or 2 channels. Raises UserError for another type or shape, and for values that are not finite.
    """
    array = np.asarray(waveform)
    if array.ndim not in (1, 2) or not array.size or (array.ndim == 2 and array.shape[1] > 2):
        raise UserError(f"{name} has shape {array.shape}; expected samples (T,), or (T, channels) with 1 or 2 channels")
    array = array.reshape(len(array), -1)
    if array.dtype == np.int16:
        return array, 1.0
    if array.dtype.kind in "iub":
        raise UserError(f"{name} has type {array.dtype}; expected int16, or floats from -1 to 1")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise UserError(f"{name} has samples that are not finite; expected floats from -1 to 1")
    scale = max(1.0, float(np.abs(array).max()))
    return np.rint(array / scale * 32767).astype(np.int16), scale


def wav(samples: np.ndarray, rate: int) -> str:
    """Returns int16 samples [T, channels] as a WAV data URI."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return uri("audio/wav", content.getvalue())


def heat(values: np.ndarray) -> "Image":
    """Returns values [rows, columns] in [0, 1] as colours, from dark to bright."""
    from PIL import Image

    at = values.clip(0, 1) * (len(RAMP) - 1)
    channels = [np.interp(at, np.arange(len(RAMP)), RAMP[:, c]) for c in range(3)]
    return Image.fromarray(np.rint(np.stack(channels, axis=-1)).astype(np.uint8))


def uri(kind: str, content: bytes) -> str:
    """Returns bytes of a media type as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
