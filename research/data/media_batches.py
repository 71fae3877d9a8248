"""Batches of images and sounds as pure functions of the step: records in an order of each epoch's own, read and decoded ahead by all cores.

Decoding leaves Python's lock for nearly all of its time, so threads keep every core busy and no process has to be started. A `transform` in Python
holds it: with `workers`, processes of grain (extra `grain`) make whole batches ahead of the step. Either way a batch depends on its step alone.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.data.loader import Batch, ByStep, Stretch, check, shuffled
from research.data.permutation import mix
from research.data.tables.decoding import decode_image, decode_wav
from research.data.tables.table import Table, require_field

Row = dict[str, Any]
"""The arrays of one row of a batch, by name."""
AHEAD = 2  # batches that each worker has ready


@dataclass(frozen=True, eq=False)
class MediaBatches(ByStep):
    """Training batches of a table of images or sounds (`tables/media.py`), each of one size.

    Images become `image` uint8 [B, size, size, 3], scaled bilinearly; sounds `audio` float32 [B, size], their channels' mean, cut at the
    end or followed by zeros, beside `rate` int32 [B] in samples a second. `label` int32 [B] where the table has labels, and `record` int64
    [B]: the numbers of the records. `transform(row, key) -> row` is a pure function of a row's arrays and a uint64 that is drawn for every
    record of the run; rows that it makes have equal shapes. With `workers` processes it has to be importable, and steps should be asked for in order.
    Raises UserError for a table of neither and for a file that cannot be decoded, by its path.
    """

    table: Table = field(repr=False)
    batch_size: int
    size: int  # pixels a side, or samples
    seed: int
    part: tuple[int, int] = (0, 1)
    transform: Callable[[Row, int], Row] | None = None
    workers: int = 0  # processes; 0: threads of this one
    threads: int | None = None  # None: as many as there are processors

    def __post_init__(self):
        if not {"image", "audio"} & set(self.table.fields):
            require_field(self.table, "image", "an images: or audio: source")
        check(self, "size")
        if self.workers < 0:
            raise UserError(f"workers is {self.workers}; expected a number of processes, or 0 for threads")
        if self.workers:
            _grain()

    def __call__(self, step: int) -> Batch:
        return self._ahead(step) if self.workers else super().__call__(step)

    def read(self, records: np.ndarray) -> Batch:
        numbers, keys = self._chosen(records)
        first, rows = self._row(int(numbers[0]), keys[0]), len(numbers)
        batch = {name: np.empty((rows, *np.shape(value)), np.asarray(value).dtype) for name, value in first.items()}

        def fill(places: np.ndarray) -> None:
            for place in places.tolist():
                row = self._row(int(numbers[place]), keys[place]) if place else first
                for name, array in batch.items():
                    array[place] = row[name]

        if self._threads == 1:
            fill(np.arange(rows))
        else:
            list(self._pool.map(fill, np.array_split(np.arange(rows), min(rows, 4 * self._threads))))
        return {**batch, "record": numbers}

    def stretches(self, records: np.ndarray) -> list[list[Stretch]]:
        """Returns the record of each row."""
        return [[Stretch(0, number, number + 1)] for number in self._chosen(records)[0].tolist()]

    def close(self) -> None:
        """Ends the worker processes, if there are any. A later step starts them again."""
        self._ahead.close()

    def _chosen(self, records: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """The numbers of the records in the table, int64, and a key for each."""
        numbers = shuffled(records, len(self.table), self.seed)[0].astype(np.int64)
        keys = mix(mix(np.array([self.seed % 2**64], np.uint64)) ^ mix(records.astype(np.uint64)))
        return numbers, keys.tolist()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads, "media")

    @property
    def _threads(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))

    @cached_property
    def _ahead(self) -> "_Ahead":
        alone = MediaBatches(self.table, self.batch_size, self.size, self.seed, self.part, self.transform, 0, 1)
        return _Ahead(alone, self.workers)

    def _row(self, number: int, key: int) -> Row:
        record = self.table.record(number)
        what = str(record.get("path", f"record {number} of {self.table.name}"))
        row = (
            image_row(record["image"], self.size, what)
            if "image" in record
            else sound_row(record["audio"], self.size, what)
        )
        row = row if record.get("label") is None else {**row, "label": np.int32(record["label"])}
        return row if self.transform is None else self.transform(row, key)


class _Ahead:
    """Batches of one step after another made by processes of grain; a step out of order starts them anew from there."""

    def __init__(self, batches: MediaBatches, workers: int):
        self._batches, self._workers = batches, workers
        self._iterator: Any = None
        self._next = 0

    def __call__(self, step: int) -> Batch:
        if step < 0:
            raise ValueError(f"step must not be negative: {step}")
        if self._iterator is None or step != self._next:
            self.close()
            self._iterator = self._from(step)
        self._next = step + 1
        try:
            return next(self._iterator)
        except Exception as error:
            self.close()
            if (wrong := _told(error)) is not None:
                raise UserError(wrong) from error
            raise

    def _from(self, step: int) -> Iterator[Batch]:
        grain = _grain()
        steps = grain.MapDataset.source(_Steps(self._batches, step))
        read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        return iter(steps.to_iter_dataset(read).mp_prefetch(grain.MultiprocessingOptions(self._workers, AHEAD)))

    def close(self) -> None:
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()

    def __del__(self):
        self.close()


@dataclass(frozen=True)
class _Steps:
    """The batches from a step on, as a source of grain."""

    batches: MediaBatches
    first: int

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> Batch:
        try:
            return self.batches(self.first + int(index))
        except UserError as error:  # a process hands over the text of an error alone
            raise ValueError(f"{_WRONG}{error}{_WRONG}") from error


_WRONG = "\0"


def _told(error: Exception) -> str | None:
    """What a worker found wrong with the data."""
    parts = str(error).split(_WRONG)
    return parts[1] if len(parts) > 2 else None


def _grain() -> Any:
    """The library, which asks absl for flags that nobody has parsed here."""
    try:
        import grain
        from absl import flags
    except ModuleNotFoundError as error:
        raise UserError(f"workers need {error.name}, which is not installed: pip install 'purestep[grain]'") from error
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return grain


def image_row(content: bytes, size: int, what: str) -> Row:
    """The picture of an encoded image in `size` x `size` pixels of three colours: transparency is left out, grey is repeated."""
    from PIL import Image

    pixels = decode_image(content, what)
    colours = pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels, 3, axis=-1)
    if colours.shape[:2] == (size, size):
        return {"image": colours}
    return {"image": np.asarray(Image.fromarray(colours).resize((size, size), Image.Resampling.BILINEAR))}


def sound_row(content: bytes, size: int, what: str) -> Row:
    """The first `size` samples of an encoded sound, one channel."""
    samples, rate = decode_wav(content, what)
    one = samples.mean(axis=1, dtype=np.float32)[:size]
    return {"audio": np.pad(one, (0, size - len(one))), "rate": np.int32(rate)}
