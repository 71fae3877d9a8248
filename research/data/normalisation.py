"""Normalisation of images, sounds and numbers to mean 0 and standard deviation 1, fitted on the part to train on and on nothing else.

It is asked for with the tables of a source, not with records, and takes the part to train on by itself: what is held out, by name or by hash, has no
say in it.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from research.core.errors import UserError
from research.data.tables.decoding import decode_image, decode_wav
from research.data.tables.splits import split
from research.data.tables.table import Table, require_field


@dataclass(frozen=True, eq=False)
class Normalisation:
    """Means and standard deviations, float64: of an image's channels, in [0, 255], [3]; of a sound's samples, in [-1, 1], or a number, []."""

    field: str
    mean: np.ndarray
    std: np.ndarray
    records: int  # that it was fitted on

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Returns values, [..., channels] of images and of any shape else, with the mean taken off and divided by the standard deviation: float32.
        What never varies is divided by 1."""
        scale = np.where(self.std > 0, self.std, 1.0)
        return ((np.asarray(values, np.float32) - self.mean) / scale).astype(np.float32)


def fit(tables: Mapping[str, Table], field: str) -> Normalisation:
    """Returns the normalisation of a field over the part to train on of a source's tables (`tables/spec.open_tables`). `field`: `image`, `audio`,
    or one that holds numbers, as numbers or as text.

    One pass, in float64. Every pixel and sample counts once, whatever the size of its record. Raises UserError for a field that is not there, a
    record that cannot be decoded or is no finite number, and a part without records.
    """
    train = split(tables)["train"]
    require_field(train, field, "the field to normalise")
    if not len(train):
        raise UserError(f"{train.name} has no record to fit a normalisation on. Give more.")
    with ThreadPoolExecutor() as threads:  # decoding leaves Python's lock
        sums = list(threads.map(lambda i: _sums(train, field, i), range(len(train))))
    count = sum(number for number, _, _ in sums)
    mean = np.sum([total for _, total, _ in sums], axis=0) / count
    squares = np.sum([square for _, _, square in sums], axis=0)
    return Normalisation(field, mean, np.sqrt(np.maximum(squares / count - mean**2, 0)), len(train))


def _sums(table: Table, field: str, i: int) -> tuple[int, np.ndarray, np.ndarray]:
    """How many values of a kind a record has, their sums and the sums of their squares."""
    record = table.record(i)
    what = str(record.get("path", f"record {i} of {table.name}"))
    if field == "image":
        pixels = decode_image(record["image"], what)
        colours = pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels, 3, axis=-1)
        values = colours.reshape(-1, 3).astype(np.float64)
    elif field == "audio":
        values = decode_wav(record["audio"], what)[0].mean(axis=1, dtype=np.float64)
    else:
        values = np.array([_number(record[field], field, what)])
    return len(values), values.sum(axis=0), np.square(values).sum(axis=0)


def _number(value: object, field: str, what: str) -> float:
    try:
        number = float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number):
        raise UserError(f"{what}: field {field!r} is {value!r}; expected a finite number.")
    return number
