"""Augmentations in a row: applied, read from text, and used to make a data set larger."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

import jax
import numpy as np
from jax.typing import ArrayLike

from research.core import rng
from research.core.errors import UserError
from research.data.augment import audio, images, mixing, spans, text
from research.data.augment.base import Augmentation, Batch
from research.data.augment.randaugment import RandAugment

What = Literal["image", "text", "audio"]
ARRAYS = ("image", "label", "targets", "tokens", "lengths", "audio", "mel")
"""The arrays that augmentations read."""


@dataclass(frozen=True)
class Entry:
    """An augmentation by name: its class, the fields that numbers after its name set, in order, fields of fixed value, and fields that come from
    the data, by what they are called there."""

    make: type[Augmentation]
    numbers: tuple[str, ...] = ("strength",)
    fixed: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, str] = field(default_factory=dict)


CLASSES, VOCABULARY = {"classes": "classes"}, {"vocabulary": "vocabulary"}
REGISTRY: dict[str, dict[str, Entry]] = {
    "image": {
        "flip": Entry(images.Flip),
        "flip_vertical": Entry(images.Flip, fixed={"direction": "vertical"}),
        "rotate": Entry(images.Rotate),
        "scale": Entry(images.Scale),
        "translate": Entry(images.Translate),
        "shear": Entry(images.Shear),
        "crop": Entry(images.Crop, ("strength", "ratio")),
        "pad_crop": Entry(images.PadCrop),
        "jitter": Entry(images.Jitter, ("brightness", "contrast", "saturation", "hue")),
        "cutout": Entry(images.Cutout),
        "randaugment": Entry(RandAugment, ("operations", "strength")),
        "mixup": Entry(mixing.Mixup, sizes=CLASSES),
        "cutmix": Entry(mixing.CutMix, sizes=CLASSES),
    },
    "text": {
        "replace": Entry(text.Replace, sizes=VOCABULARY),
        "insert": Entry(text.Insert, sizes=VOCABULARY),
        "delete": Entry(text.Delete),
        "swap": Entry(text.Swap),
        "spans": Entry(spans.Spans, ("strength", "mean_span"), sizes={"sentinel": "sentinel"}),
    },
    "audio": {
        "shift": Entry(audio.Shift),
        "noise": Entry(audio.Noise, ("snr",)),
        "gain": Entry(audio.Gain),
        "speed": Entry(audio.Speed),
        "specaugment": Entry(audio.SpecAugment, ("frequency", "time", "frequency_masks", "time_masks")),
        "mixup": Entry(mixing.Mixup, fixed={"array": "audio"}, sizes=CLASSES),
        "mixup_mel": Entry(mixing.Mixup, fixed={"array": "mel"}, sizes=CLASSES),
    },
}


def augment(
    batch: Batch,
    key: jax.Array,
    augmentations: Sequence[Augmentation],
    strengths: Sequence[ArrayLike | None] | None = None,
) -> Batch:
    """Returns the batch after augmentations, one after the other, each under a key of its own that its place in the row gives.

    `strengths`, one for each or None where that of the field is meant, may be traced. Raises UserError for another number of them, and
    what the augmentations raise.
    """
    strengths = [None] * len(augmentations) if strengths is None else strengths
    if len(strengths) != len(augmentations):
        raise UserError(
            f"{len(strengths)} strengths are given for {len(augmentations)} augmentations; expected one each"
        )
    for place, (one, strength) in enumerate(zip(augmentations, strengths, strict=True)):
        batch = one(batch, rng.fold(key, "augment", place), strength)
    return batch


def parse(specs: Sequence[str], what: What = "image", **sizes: int | None) -> tuple[Augmentation, ...]:
    """Returns the augmentations that texts name: `("flip", "crop:0.8", "randaugment:2:9")`, a name and numbers for its fields in `REGISTRY`.

    `sizes` are numbers of the data set: `classes` for mixed labels, `vocabulary` for random tokens, and `sentinel`, the first, for spans,
    by default the last of the vocabulary. Raises UserError for a name that is not there, with the nearest that is, for numbers that are not, are too
    many or out of range, and for a size that is needed and missing.
    """
    if what not in REGISTRY:
        raise UserError(f"there are no augmentations of {what!r}; expected one of {', '.join(REGISTRY)}")
    if sizes.get("sentinel") is None and sizes.get("vocabulary") is not None:
        sizes = {**sizes, "sentinel": (sizes["vocabulary"] or 0) - 1}
    return tuple(_one(spec, what, sizes) for spec in specs)


def _one(spec: str, what: str, sizes: dict[str, int | None]) -> Augmentation:
    name, *words = spec.strip().split(":")
    entry = REGISTRY[what].get(name)
    if entry is None:
        raise UserError(f"augmentation {spec!r}: {_unknown(name, what)}")
    if len(words) > len(entry.numbers):
        raise UserError(
            f"augmentation {spec!r} has {len(words)} numbers; expected at most {len(entry.numbers)}: {', '.join(entry.numbers)}"
        )
    kinds = get_type_hints(entry.make)
    values = {
        field: _number(word, kinds[field] is int, f"augmentation {spec!r}: {field}")
        for field, word in zip(entry.numbers, words, strict=False)
    }
    given = {field: sizes[size] for field, size in entry.sizes.items() if sizes.get(size) is not None}
    if entry.make is spans.Spans and not given:
        raise UserError(
            f"augmentation {spec!r} needs sentinel, the first of the ids that stand for spans, or vocabulary"
        )
    try:
        return entry.make(**{**entry.fixed, **given, **values})
    except UserError as error:
        raise UserError(f"augmentation {spec!r}: {error}") from None


def _unknown(name: str, what: str) -> str:
    elsewhere = [other for other, entries in REGISTRY.items() if name in entries]
    if elsewhere:
        return f"{name!r} is an augmentation of {' and '.join(elsewhere)}, and not of {what}"
    near = difflib.get_close_matches(name, REGISTRY[what], 1, 0.3)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"there is no {name!r} for {what}{hint} There are {', '.join(REGISTRY[what])}"


def _number(word: str, whole: bool, where: str) -> float | int:
    try:
        value = int(word) if whole else float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where} is {word!r}; expected a {'whole ' if whole else ''}number")
    return value


_augment = jax.jit(augment)


def expand(
    arrays: dict[str, np.ndarray],
    n: int,
    key: jax.Array,
    augmentations: Sequence[Augmentation],
    batch_size: int = 256,
) -> dict[str, np.ndarray]:
    """Returns a data set in memory `n` times over, each copy augmented under keys of its own: arrays (rows, ...) become (n rows, ...).

    Rows are augmented `batch_size` at a time on the device and mixed within those; the last batch takes rows of the one before to be full.
    Copies follow one another, each in the order of the rows. Arrays that no augmentation reads are repeated as they are, the others keep
    their dtypes.
    Raises UserError for no arrays, arrays of different numbers of rows, and an n or batch size below 1.
    """
    rows = {len(array) for array in arrays.values()}
    if len(rows) != 1 or not min(rows):
        raise UserError(
            f"arrays of {sorted(rows)} rows are to be expanded; expected arrays of one number of rows, at least 1"
        )
    if n < 1 or batch_size < 1:
        raise UserError(f"{n} copies in batches of {batch_size} are asked for; expected at least 1 of both")
    total, size = min(rows), min(batch_size, *rows)
    read = {name: array for name, array in arrays.items() if name in ARRAYS}
    made: dict[str, np.ndarray] = {
        name: np.concatenate([array] * n) for name, array in arrays.items() if name not in read
    }
    for copy in range(n):
        for number, start in enumerate(range(0, total, size)):
            first = min(start, total - size)
            batch = {name: array[first : first + size] for name, array in read.items()}
            done = _augment(batch, rng.fold(key, "expand", copy, number), tuple(augmentations))
            for name, array in done.items():
                array = np.asarray(array)[start - first :]
                dtype = arrays[name].dtype if name in arrays else array.dtype
                whole = made.setdefault(name, np.empty((n * total, *array.shape[1:]), dtype))
                whole[copy * total + start : copy * total + start + len(array)] = array
    return made
