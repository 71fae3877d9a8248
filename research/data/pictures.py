"""Images and sounds drawn with the characters of a terminal."""

import numpy as np

UPPER_HALF = "\u2580"
SHADES = " \u2591\u2592\u2593\u2588"  # none to full, in quarters
WINDOW = 512  # samples of a spectrum
RANGE = 80.0  # decibels from the loudest shade to none


def picture(pixels: np.ndarray, width: int, colour: bool) -> list[str]:
    """Returns lines that show `pixels`, uint8 [height, width, channels], at most `width` characters wide; never enlarged.

    A character is two pixels, one above the other: with `colour` the upper half block with one as its foreground and the other as its background,
    in 24-bit colour; else a shade of their mean. Transparent pixels are black.
    """
    high, wide, _ = pixels.shape
    across = min(width, wide)
    down = 2 * max(1, round(high * across / wide / 2))
    colours = shrink(_on_black(pixels), min(down, high), across)
    if len(colours) % 2:
        colours = np.concatenate([colours, np.zeros_like(colours[:1])])
    upper, lower = colours[0::2], colours[1::2]
    if not colour:
        return shaded((upper + lower).mean(axis=-1) / 510)
    pairs = np.concatenate([upper, lower], axis=-1).round().astype(int).tolist()
    return ["".join(_two(*pair) for pair in row) + "\033[0m" for row in pairs]


def _two(*rgb: int) -> str:
    upper, lower = (";".join(map(str, part)) for part in (rgb[:3], rgb[3:]))
    return f"\033[38;2;{upper}m\033[48;2;{lower}m{UPPER_HALF}"


def _on_black(pixels: np.ndarray) -> np.ndarray:
    """Red, green and blue, float [height, width, 3]."""
    values = pixels.astype(np.float64)
    if values.shape[-1] == 4:
        values = values[..., :3] * values[..., 3:] / 255
    return np.broadcast_to(values, (*values.shape[:2], 3))


def shrink(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Returns the means over `rows` x `columns` boxes of nearly equal size, float [rows, columns, ...], of values [at least rows, at least columns,
    ...]."""
    for axis, count in ((0, rows), (1, columns)):
        edges = np.arange(count) * values.shape[axis] // count
        sizes = np.diff([*edges, values.shape[axis]]).reshape([-1 if d == axis else 1 for d in range(values.ndim)])
        values = np.add.reduceat(values, edges, axis=axis) / sizes
    return values


def shaded(values: np.ndarray) -> list[str]:
    """Returns a line for each row of values in [0, 1]."""
    steps = np.clip(np.rint(values * (len(SHADES) - 1)), 0, len(SHADES) - 1).astype(int)
    return ["".join(SHADES[step] for step in row) for row in steps.tolist()]


def spectrogram(samples: np.ndarray, width: int, height: int) -> list[str]:
    """Returns lines that show how loud each frequency is over time, of samples [n], the highest frequency on top: `height` lines of at most `width`
    characters."""
    return shaded(loudness(samples, height, width))


def loudness(samples: np.ndarray, rows: int, columns: int, window: int = WINDOW) -> np.ndarray:
    """Returns how loud each frequency is over time, of samples [n]: at most (rows, columns), the highest frequency first, from 1 for the loudest box
    to 0 for 80 dB below; all 0 where there is silence.

    Power of the short-time Fourier transform under Hann windows of `window` samples, half a window apart, averaged over boxes before the logarithm.
    """
    from scipy.signal import ShortTimeFFT
    from scipy.signal.windows import hann

    hop = window // 2
    padded = np.pad(samples.astype(np.float64), (0, max(0, window - len(samples))))
    power = ShortTimeFFT(hann(window, sym=False), hop, 1.0).spectrogram(padded, p0=0)
    power = power[::-1, : max(1, -(-len(samples) // hop))]
    boxes = shrink(power, min(rows, len(power)), min(columns, power.shape[1]))
    loudest = boxes.max()
    if loudest == 0:
        return boxes
    return (1 + 10 * np.log10(np.maximum(boxes / loudest, 1e-30)) / RANGE).clip(0, 1)
