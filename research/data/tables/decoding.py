"""From the bytes of an image or sound file to arrays. Pillow is imported where it is used."""

import io
import struct
import wave
from typing import Any

import numpy as np

from research.core.errors import UserError

# Pillow's modes (Pillow handbook, "Concepts", "Modes") with 8 bits a channel, and what they are read as.
_MODES = {"1": "L", "L": "L", "LA": "RGBA", "La": "RGBA", "PA": "RGBA", "RGB": "RGB", "RGBA": "RGBA", "RGBX": "RGB"}
_MODES |= {"RGBa": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB"}

# Formats of a WAV file's samples (Microsoft's mmreg.h): whole numbers, and a long header that says what they are.
_ADVICE = "Convert it: ffmpeg -i FILE -c:a pcm_s16le OUT.wav"

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE


def decode_image(content: bytes, what: str = "the image") -> np.ndarray:
    """Returns the pixels, uint8 [height, width, channels]: 1 channel for grey, 3 for colours, 4 with transparency. Of
    a moving picture the first frame; a rotation that a camera noted is not applied.

    Raises UserError, naming `what`, for bytes that are no image, one that is cut off, and more than 8 bits a channel.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            mode = ("RGBA" if "transparency" in image.info else "RGB") if image.mode == "P" else _MODES.get(image.mode)
            pixels = None if mode is None else np.asarray(image if image.mode == mode else image.convert(mode))
            found = image.mode
    except Exception as error:  # Pillow's readers raise whatever their format makes them
        raise UserError(f"{what} is no image that can be read ({len(content)} bytes): {_one_line(error)}") from error
    if pixels is None:
        raise UserError(
            f"{what} has pixels of Pillow's mode {found}, expected 8 bits a channel. Convert it, to PNG say."
        )
    return pixels[..., None] if pixels.ndim == 2 else pixels


def decode_wav(content: bytes, what: str = "the sound") -> tuple[np.ndarray, int]:
    """Returns (samples, float32 [samples, channels] in [-1, 1], the samples per second) of a WAV file with whole
    numbers of 8, 16, 24 or 32 bits. 8-bit ones are unsigned, as the format has them; full scale is 2^(bits - 1).

    Raises UserError, naming `what`, for other files, samples as floats, and a file that is cut off.
    """
    try:
        with wave.open(io.BytesIO(_with_plain_header(content))) as file:
            channels, width, rate, count = (
                file.getnchannels(),
                file.getsampwidth(),
                file.getframerate(),
                file.getnframes(),
            )
            data = file.readframes(count)
    except (wave.Error, EOFError, struct.error) as error:
        raise UserError(_unreadable(content, what, error)) from error
    if len(data) != count * channels * width:
        raise UserError(
            f"{what} is cut off: its header says {count} samples, and {len(data) // (channels * width)} are there."
        )
    if width not in (1, 2, 3, 4) or channels == 0:
        raise UserError(f"{what} has samples of {8 * width} bits, expected 8, 16, 24 or 32. {_ADVICE}")
    return _samples(data, width).reshape(-1, channels), rate


def _samples(data: bytes, width: int) -> np.ndarray:
    if width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:
        padded = np.zeros((len(data) // 3, 4), np.uint8)  # in the upper three bytes, so that the sign is right
        padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return padded.view("<i4")[:, 0].astype(np.float32) / 2**31
    return np.frombuffer(data, f"<i{width}").astype(np.float32) / 2 ** (8 * width - 1)


def _with_plain_header(content: bytes) -> bytes:
    """Python 3.11's `wave` does not know the long header; where that says PCM, the short one's number takes its place."""
    at = _format_chunk(content)
    if at is None or _tag(content, at) != _EXTENSIBLE or _tag(content, at + 24) != _PCM:
        return content
    return content[:at] + struct.pack("<H", _PCM) + content[at + 2 :]


def _format_chunk(content: bytes) -> int | None:
    """Where the content of the chunk `fmt ` begins (Multimedia Programming Interface 1.0, chapter 2 and 3), or None."""
    at = 12
    while content[:4] == b"RIFF" and at + 8 <= len(content):
        if content[at : at + 4] == b"fmt ":
            return at + 8
        size = struct.unpack_from("<I", content, at + 4)[0]
        at += 8 + size + size % 2
    return None


def _tag(content: bytes, at: int) -> int:
    return int.from_bytes(content[at : at + 2], "little")


def _unreadable(content: bytes, what: str, error: Exception) -> str:
    at = _format_chunk(content)
    tag = None if at is None else _tag(content, at)
    if at is not None and (tag == _FLOAT or (tag == _EXTENSIBLE and _tag(content, at + 24) == _FLOAT)):
        return f"{what} is a WAV file with samples as floats, expected whole numbers (PCM). {_ADVICE}"
    reason = _one_line(error) or "it ends too early"
    return f"{what} is no WAV file that can be read ({len(content)} bytes): {reason}. {_ADVICE}"


def _one_line(error: Any) -> str:
    return " ".join(str(error).split()).rstrip(".")
