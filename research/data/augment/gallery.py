"""The pictures of docs/augment.md: `python -m research.data.augment.gallery docs` draws them anew and prints the table of texts.

Everything shown is generated here: scenes of a few shapes, a rising tone with its harmonics, one sentence.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from research.core import rng
from research.data.augment.audio import Noise
from research.data.augment.base import Augmentation
from research.data.augment.chain import parse
from research.data.augment.text import Insert, Replace, neighbours

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE, GAP, LINE, COLOURS = 64, 3, 15, 128  # pixels, and colours of a file
DRAWS = 4
IMAGES = (
    "flip:0.5",
    "flip_vertical:0.5",
    "rotate:30",
    "scale:0.4",
    "translate:0.25",
    "shear:0.3",
    "crop:0.8",
    "pad_crop:8",
    "jitter",
    "cutout:0.5",
    "randaugment:2:9",
    "randaugment:2:20",
    "mixup:1",
    "cutmix:1",
)
SOUNDS = ("shift:0.3", "noise:10", "gain:12", "speed:0.4", "mixup:1", "specaugment:16:30:2:2")
TEXTS = ("replace:0.3", "insert:0.3", "delete:0.3", "swap:0.5", "spans:0.3:2")
RATE = 8000
GROUPS = ("the a one", "quick fast swift", "brown red grey", "fox cat hare", "jumps leaps hops", "over past beyond")
GROUPS += ("lazy idle sleepy", "dog hound wolf", "near beside by", "river stream lake")
SENTENCE = "the quick brown fox jumps over the lazy dog near a river"


def scene(number: int) -> np.ndarray:
    """Returns a picture of a house, a boat, a tree or a balloon, float32 [SIDE, SIDE, 3] in [0, 1]."""
    from PIL import Image, ImageDraw

    big = 4 * SIDE
    canvas = Image.new("RGB", (big, big), ("#9ecbe8", "#f5c98a", "#bfe3d0", "#c9b8e8")[number])
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, 176, big, big), fill=("#5b9a4b", "#2f6d9e", "#7fae4f", "#c8a35c")[number])
    draw.ellipse((20, 20, 76, 76), fill=("#ffd84d", "#e8562f", "#fff2a8", "#f4f4f4")[number])
    if number == 0:
        draw.rectangle((96, 116, 204, 208), fill="#c9503c")
        draw.polygon([(80, 120), (150, 60), (220, 120)], fill="#5a3a2e")
        draw.rectangle((112, 156, 140, 208), fill="#3b2a55")
        draw.rectangle((160, 140, 188, 168), fill="#fdf3c4")
    elif number == 1:
        draw.polygon([(56, 168), (208, 168), (176, 208), (88, 208)], fill="#6b3f2a")
        draw.polygon([(132, 48), (132, 160), (212, 160)], fill="#fbfbf3")
        draw.polygon([(124, 72), (124, 160), (68, 160)], fill="#d8433b")
    elif number == 2:
        draw.rectangle((132, 136, 160, 216), fill="#6e4a2f")
        draw.ellipse((84, 44, 208, 152), fill="#2f7d3f")
        draw.ellipse((112, 76, 136, 100), fill="#d8433b")
        draw.ellipse((160, 96, 184, 120), fill="#d8433b")
    else:
        draw.ellipse((100, 36, 208, 144), fill="#d8433b")
        draw.ellipse((136, 36, 172, 144), fill="#fdf3c4")
        draw.line([(112, 116), (140, 176)], fill="#4a3320", width=4)
        draw.line([(196, 116), (168, 176)], fill="#4a3320", width=4)
        draw.rectangle((136, 172, 172, 204), fill="#8a5a33")
    small = canvas.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(small, np.float32) / 255


def sounds() -> np.ndarray:
    """Returns two sounds of a second at 8,000 samples a second, float32 [2, 8000]: a tone that rises, with harmonics, and a chord of beats."""
    t = np.arange(RATE) / RATE
    phase = 2 * np.pi * (250 * t + 225 * t**2)
    rising = sum(np.sin(k * phase) / k for k in (1, 2, 3, 4)) * np.clip(np.minimum(t - 0.1, 0.9 - t) * 20, 0, 1)
    beats = sum(np.sin(2 * np.pi * f * t) for f in (600, 1900, 3100)) / 2 * (np.sin(2 * np.pi * 4 * t) > 0)
    return np.stack([rising, beats]).astype(np.float32)


def spectrogram(samples: np.ndarray) -> np.ndarray:
    """Returns decibels [frames, 128] of samples [n] from 0 to 4,000 Hz, from 60 below a fixed loudness on."""
    from scipy.signal import stft

    power = np.abs(stft(samples, RATE, nperseg=256, noverlap=206)[2][:128].T) ** 2
    return np.maximum(10 * np.log10(power + 1e-12) + 10, -50).astype(np.float32)


def image_sheet() -> "Image":
    """Returns a sheet of every augmentation of images: the scene as it was and four draws."""
    scenes = np.stack([scene(number) for number in range(DRAWS)])
    rows = []
    for spec in IMAGES:
        mixes = spec.startswith(("mixup", "cutmix"))
        batch = {"image": jnp.asarray(scenes if mixes else np.stack([scenes[0]] * DRAWS))}
        made = np.asarray(parse((spec,))[0](batch, rng.key(1, spec))["image"])
        rows.append((spec, [scenes[0], *made]))
    return sheet(rows, 2)


def sound_sheet() -> "Image":
    """Returns a sheet of spectrograms, time to the right and up to 4,000 Hz: the sound as it was and what each augmentation makes of it."""
    rows = sounds()[[0, 1, 1, 1]]  # whose first is shown
    batch, bank = jnp.asarray(rows), jnp.asarray(rows[1:2])
    plain = np.stack([spectrogram(one) for one in rows])
    named = [*zip(SOUNDS, parse(SOUNDS, "audio"), strict=True), ("noise of a bank at 5 dB", Noise(snr=5.0, bank=bank))]
    tiles = [("as it was", plain[0])]
    for spec, one in named:
        made = one({"audio": batch, "mel": jnp.asarray(plain)}, rng.key(6, spec))
        covered = spec.startswith("specaugment")
        tiles.append((spec, np.asarray(made["mel"][0]) if covered else spectrogram(np.asarray(made["audio"][0]))))
    return sheet([(spec, [shaded(decibels)]) for spec, decibels in tiles], 4)


def shaded(decibels: np.ndarray) -> np.ndarray:
    """Returns a spectrogram [frames, bands] as colours [bands, frames, 3] in [0, 1], high bands on top."""
    import matplotlib

    return matplotlib.colormaps["magma"]((decibels.T[::-1] + 50) / 50)[..., :3]


def sheet(rows: Sequence[tuple[str, list[np.ndarray]]], across: int) -> "Image":
    """Returns pictures [h, w, 3] of one size side by side under their names, `across` names beside each other, in few colours."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = rows[0][1][0].shape[:2]
    wide, high = len(rows[0][1]) * (width + GAP) + 4 * GAP, height + LINE + 2 * GAP
    canvas = Image.new("RGB", (across * wide, -(-len(rows) // across) * high), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for place, (name, pictures) in enumerate(rows):
        left, top = 2 * GAP + place % across * wide, place // across * high
        draw.text((left, top), name, fill="black", font=font)
        for number, picture in enumerate(pictures):
            tile = Image.fromarray(np.round(picture * 255).astype(np.uint8))
            canvas.paste(tile, (left + number * (width + GAP), top + LINE))
    return canvas.quantize(COLOURS, dither=Image.Dither.NONE)


def text_table() -> str:
    """Returns a table in Markdown of what each augmentation of texts makes of a sentence."""
    groups = [group.split() for group in GROUPS]
    words = [word for group in groups for word in group]
    kinds = np.repeat(np.eye(len(groups), dtype=np.float32), [*map(len, groups)], axis=0)
    table = neighbours(kinds, 2)
    ids = [words.index(word) for word in SENTENCE.split()]
    size = len(ids) + 4
    batch = {"tokens": jnp.asarray([ids + [0] * (size - len(ids))]), "lengths": jnp.asarray([len(ids)])}
    sentinel = len(words) + 9
    named: list[tuple[str, Augmentation]] = [
        *zip(TEXTS, parse(TEXTS, "text", vocabulary=len(words), sentinel=sentinel), strict=True)
    ]
    named[1:1] = [("replace:0.3 by neighbours", Replace(0.3, neighbours=table))]
    named[3:3] = [("insert:0.3 by neighbours", Insert(0.3, neighbours=table))]

    def said(tokens: jax.Array, length: jax.Array) -> str:
        some = np.asarray(tokens[0, : int(length[0])]).tolist()
        return " ".join(f"`<{sentinel - token}>`" if token >= len(words) else words[token] for token in some)

    lines = ["| | |", "| --- | --- |", f"| as it was | {SENTENCE} |"]
    for spec, one in named:
        made = one(batch, rng.key(0, spec))
        if "inputs" in made:
            lines.append(f"| {spec}, inputs | {said(made['inputs'], made['inputs_length'])} |")
            lines.append(f"| targets | {said(made['targets'], made['targets_length'])} |")
        else:
            lines.append(f"| {spec} | {said(made['tokens'], made['lengths'])} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes `augment_images.png` and `augment_audio.png` to a folder and prints the table of texts."""
    parser = argparse.ArgumentParser(prog="python -m research.data.augment.gallery", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder
    folder.mkdir(parents=True, exist_ok=True)
    image_sheet().save(folder / "augment_images.png", optimize=True)
    sound_sheet().save(folder / "augment_audio.png", optimize=True)
    print(text_table())


if __name__ == "__main__":
    main()
