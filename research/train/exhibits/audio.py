"""Sounds to listen to, each over its spectrogram."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.data.pictures import RANGE, loudness
from research.train import charts
from research.train.exhibits import media
from research.train.exhibits.pictures import same_number
from research.train.markup import escaped, left_out, note

SOUNDS = 12
SAMPLES = 2_000_000  # of all sounds of an exhibit: two bytes each, and a third more in the page
WINDOW = 0.032  # seconds of a spectrum: a few periods of a low voice
ROWS, COLUMNS = 160, 640  # of a spectrogram's picture, at most
WIDTH, HEIGHT = 470, 210


def sounds(waveforms: Sequence[Any], rate: int, captions: Sequence[str]) -> str:
    """Returns HTML of sounds of `rate` samples a second, each int16 or floats from -1 to 1, (T,) or (T, channels), to play as 16-bit WAV, with
    its log-power spectrogram and its caption.

    Floats beyond [-1, 1] are divided by their peak, and that is said. The first 12 are there, cut where all together are too long. Raises
    UserError for other types or shapes, for unequal numbers and for a rate that is not above 0.
    """
    same_number("sounds", waveforms, captions=captions)
    if int(rate) != rate or rate <= 0:
        raise UserError(f"{rate} samples a second; expected a whole number above 0")
    shown = list(waveforms)[:SOUNDS]
    longest = SAMPLES // max(1, len(shown))
    figures = [_figure(one, int(rate), str(captions[i]), longest, i) for i, one in enumerate(shown)]
    told = f"spectrograms: the brightest is the loudest of each sound, the darkest {RANGE:g} dB below" if shown else ""
    return f'<div class="small">{"".join(figures)}</div>' + note(told, left_out(len(shown), len(waveforms), "sounds"))


def _figure(waveform: Any, rate: int, caption: str, longest: int, number: int) -> str:
    samples, scale = media.sixteen_bits(waveform, f"sound {number}")
    whole = len(samples) / rate
    samples = samples[: longest // samples.shape[1]]
    seconds = len(samples) / rate
    said = f"{caption}, {seconds:.3g} s" + (f" of {whole:.3g} s" if seconds < whole else "")
    said += f", divided by {scale:.3g} to fit" if scale > 1 else ""
    player = (
        f'<audio controls preload="metadata" src="{media.wav(samples, rate)}" aria-label="{escaped(caption)}"></audio>'
    )
    drawing = _drawing(spectrogram(samples.mean(axis=1) / 32768, rate), seconds, rate, caption)
    return f'<figure class="sound"><figcaption dir="auto">{escaped(said)}</figcaption>{player}{drawing}</figure>'


def spectrogram(samples: np.ndarray, rate: int) -> np.ndarray:
    """Returns how loud each frequency is over time (`pictures.loudness`), of samples [T] in [-1, 1], windows of about 32 ms: at most (160, 640)."""
    return loudness(samples, ROWS, COLUMNS, 2 ** max(5, round(np.log2(rate * WINDOW))))


def _drawing(values: np.ndarray, seconds: float, rate: int, caption: str) -> str:
    """SVG of a spectrogram between its axes."""
    top = rate / 2000
    x_axis, y_axis = charts.axes([0, seconds], [0, top], WIDTH, HEIGHT, titled=(True, True))
    place = f'x="{x_axis.start}" y="{y_axis(top):.1f}" width="{x_axis.end - x_axis.start}" height="{y_axis.start - y_axis(top):.1f}"'
    image = f'<image href="{media.png(media.heat(values))}" {place} preserveAspectRatio="none"/>'
    said = escaped(f"spectrogram of {caption}: 0 to {top:g} kHz over {seconds:.3g} seconds")
    body = charts.grid(x_axis, y_axis, "time, s", "frequency, kHz") + image
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{body}</svg>'
