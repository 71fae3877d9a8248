"""Batches of images and sounds as pure functions of the step: records in an order of each epoch's own, read and decoded by threads.

Decoding leaves Python's lock for nearly all of its time, so threads keep every core busy and no process has to be started.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from research.data.loader import Batch, ByStep, Stretch, check, shuffled
from research.data.tables.decoding import decode_image, decode_wav
from research.data.tables.table import Table, require_field


@dataclass(frozen=True, eq=False)
class MediaBatches(ByStep):
    """Training batches of a table of images or sounds (`tables/media.py`), each of one size.

    Images become `image` uint8 [B, size, size, 3], scaled bilinearly; sounds `audio` float32 [B, size], their channels' mean, cut at the
    end or followed by zeros, beside `rate` int32 [B] in samples a second. `label` int32 [B] where the table has labels, and `record` int64
    [B]: the numbers of the records. Raises UserError for a table of neither and for a file that cannot be decoded, by its path.
    """

    table: Table = field(repr=False)
    batch_size: int
    size: int  # pixels a side, or samples
    seed: int
    part: tuple[int, int] = (0, 1)
    threads: int | None = None  # None: as many as there are processors

    def __post_init__(self):
        if not {"image", "audio"} & set(self.table.fields):
            require_field(self.table, "image", "an images: or audio: source")
        check(self, "size")

    def read(self, records: np.ndarray) -> Batch:
        numbers = shuffled(records, len(self.table), self.seed)[0].astype(np.int64)
        first, rows = self._row(int(numbers[0])), len(numbers)
        batch = {name: np.empty((rows, *np.shape(value)), np.asarray(value).dtype) for name, value in first.items()}

        def fill(places: np.ndarray) -> None:
            for place in places.tolist():
                row = self._row(int(numbers[place])) if place else first
                for name, array in batch.items():
                    array[place] = row[name]

        list(self._pool.map(fill, np.array_split(np.arange(rows), min(rows, 4 * self._threads))))
        return {**batch, "record": numbers}

    def stretches(self, records: np.ndarray) -> list[list[Stretch]]:
        """Returns the record of each row."""
        numbers = shuffled(records, len(self.table), self.seed)[0].tolist()
        return [[Stretch(0, number, number + 1)] for number in numbers]

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads, "media")

    @property
    def _threads(self) -> int:
        return self.threads or os.cpu_count() or 1

    def _row(self, number: int) -> dict[str, Any]:
        record = self.table.record(number)
        what = str(record.get("path", f"record {number} of {self.table.name}"))
        row = (
            image_row(record["image"], self.size, what)
            if "image" in record
            else sound_row(record["audio"], self.size, what)
        )
        return row if record.get("label") is None else {**row, "label": np.int32(record["label"])}


def image_row(content: bytes, size: int, what: str) -> dict[str, Any]:
    """The picture of an encoded image in `size` x `size` pixels of three colours: transparency is left out, grey is repeated."""
    from PIL import Image

    pixels = decode_image(content, what)
    colours = pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels, 3, axis=-1)
    if colours.shape[:2] == (size, size):
        return {"image": colours}
    return {"image": np.asarray(Image.fromarray(colours).resize((size, size), Image.Resampling.BILINEAR))}


def sound_row(content: bytes, size: int, what: str) -> dict[str, Any]:
    """The first `size` samples of an encoded sound, one channel."""
    samples, rate = decode_wav(content, what)
    one = samples.mean(axis=1, dtype=np.float32)[:size]
    return {"audio": np.pad(one, (0, size - len(one))), "rate": np.int32(rate)}
