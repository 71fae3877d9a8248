"""Batches as pure functions of the step, and of all kinds the plainest: windows of a token stream, shuffled anew in every epoch.

Record r = step * B + row of the run is window pi_e(r mod W) of epoch e = r div W, where pi_e is a permutation computed
by index and the W windows of an epoch start at phase_e + k * T, without overlap. The phase is drawn anew for every
epoch, so that windows are cut at other places each time. Nothing is kept between steps: any step can be asked for, in
any order, on any host.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Self

import numpy as np

from research.core.errors import UserError
from research.data.permutation import mix, permute
from research.data.prefetch import prefetch
from research.data.streams import Damaged, Ids

__all__ = ["Batch", "Batches", "ByIndex", "ByStep", "EvalBatches", "prefetch"]

Batch = dict[str, np.ndarray]
ORDERED = 1 << 14  # records whose order is computed at once
RUNS = 8  # epochs among them, from which they are not told apart


class Stretch(NamedTuple):
    """Tokens of a row that stand one behind the other in a stream to train on: of the source of that number, from `start` to below `stop`."""

    source: int
    start: int
    stop: int


class ByStep(ABC):
    """Training batches of every kind. Row i of step s is record r = s * B + i of the run, and what it holds depends on r alone."""

    batch_size: int
    context: int  # tokens of a row
    part: tuple[int, int]  # (index, count) of the processes that share a batch

    @abstractmethod
    def read(self, records: np.ndarray) -> Batch:
        """Returns the rows of records by their numbers, whole numbers [B] in any order."""

    @abstractmethod
    def stretches(self, records: np.ndarray) -> list[list[Stretch]]:
        """Returns what the rows of records are made of, in order."""

    def rows(self, process_index: int, process_count: int) -> Self:
        """Returns the same batches, of which this process reads only its rows; all processes' rows in order are the
        global batch."""
        return replace(self, part=(process_index, process_count))  # pyright: ignore[reportArgumentType]

    def records(self, step: int) -> np.ndarray:
        """Returns the numbers of this process's records in the batch of a step, uint64 [rows]."""
        if step < 0:
            raise ValueError(f"step must not be negative: {step}")
        first, count = _rows_of(self.part, self.batch_size)
        return np.arange(count, dtype=np.uint64) + np.uint64(step * self.batch_size + first)

    def __call__(self, step: int) -> Batch:
        return self.read(self.records(step))


class ByIndex(ABC):
    """Evaluation batches of every kind: `count` rows one after another, each once; what fills up the last batch has weight 0.

    `len()` batches, by index or by iteration. With `limit_batches` at most so many, of rows spread evenly over all.
    """

    batch_size: int
    context: int
    limit_batches: int | None
    part: tuple[int, int]

    @property
    @abstractmethod
    def count(self) -> int:
        """Rows that cover the split once."""

    @abstractmethod
    def read(self, numbers: np.ndarray) -> Batch:
        """Returns rows by their numbers, whole numbers [B]; from `count` on they are zeros of weight 0."""

    def rows(self, process_index: int, process_count: int) -> Self:
        """Returns the same batches, of which this process reads only its rows."""
        return replace(self, part=(process_index, process_count))  # pyright: ignore[reportArgumentType]

    def __len__(self) -> int:
        return min(-(-self.count // self.batch_size), self.limit_batches or self.count)

    def __iter__(self) -> Iterator[Batch]:
        return (self(index) for index in range(len(self)))

    def __call__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        first, rows = _rows_of(self.part, self.batch_size)
        numbers = index * self.batch_size + first + np.arange(rows)
        chosen = len(self) * self.batch_size
        return self.read(numbers * self.count // chosen if chosen < self.count else numbers)


def shuffled(records: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `(numbers, keys)`, uint64 [B] each: what stands at the records in epochs of `count` things, each of which is in its own
    order, and a number drawn for the epoch."""
    epochs, within = np.divmod(records.astype(np.uint64, copy=False), np.uint64(count))
    seeded = mix(np.array([seed % 2**64], np.uint64))
    cuts = np.flatnonzero(epochs[1:] != epochs[:-1]) + 1
    if len(cuts) >= RUNS:
        keys = mix(epochs ^ seeded)
        return permute(within, count, keys), keys
    numbers, keys = np.empty_like(within), np.empty_like(within)
    for start, stop in zip([0, *cuts.tolist()], [*cuts.tolist(), len(epochs)], strict=True):
        keys[start:stop] = key = mix(epochs[start : start + 1] ^ seeded)  # of one epoch, which saves most of the work
        numbers[start:stop] = permute(within[start:stop], count, key)
    return numbers, keys


def by_blocks(of_block: Callable[[int], np.ndarray], records: np.ndarray) -> np.ndarray:
    """Returns what `of_block(n)` has for the records from n * ORDERED on, at these ones: a few are as dear to compute as a block, which is kept."""
    blocks, places = np.divmod(records.astype(np.uint64, copy=False), np.uint64(ORDERED))
    if len(blocks) and (blocks == blocks[0]).all():
        return of_block(int(blocks[0]))[places]
    tables = {block: of_block(block) for block in np.unique(blocks).tolist()}
    return np.array(
        [tables[block][place] for block, place in zip(blocks.tolist(), places.tolist(), strict=True)], np.int64
    )


class Text(NamedTuple):
    """The ids of a stream and, where some are only read, what is learned of them."""

    ids: Ids
    learned: Ids | None

    @classmethod
    def of(cls, stream: Any) -> "Text":
        """That of a TokenStream, or of an array [n], of which all is learned."""
        learned = getattr(stream, "learned", None)
        return cls(Ids.of(stream), None if learned is None else Ids.of(learned))


@dataclass(frozen=True, eq=False)
class Batches(ByStep):
    """Training batches of `batch_size` rows of `context` tokens. `stream` is a TokenStream or an array of ids, [n].

    Calling it with a step gives `tokens` int32 [B, T], `targets` int32 [B, T] (the next tokens) and `weights` float32
    [B, T]: 1, or 0 where the target is not learned; shared, so not to be written. Raises UserError where the stream is shorter than
    one context and its targets.
    """

    stream: Any = field(repr=False)
    batch_size: int
    context: int
    seed: int
    part: tuple[int, int] = (0, 1)  # (index, count) of the processes that share a batch
    damaged: str = "fatal"  # "skip": a row that lies in a damaged shard has weight 0

    def __post_init__(self):
        check(self)
        if len(self._text.ids) < self.context + 1:
            raise UserError(
                f"the text to train on has {len(self._text.ids)} tokens, fewer than one context and its targets "
                f"({self.context} + 1). Give more text, or lower the context."
            )

    @cached_property
    def _text(self) -> Text:
        return Text.of(self.stream)

    @property
    def windows(self) -> int:
        """Windows in an epoch: as many as fit whatever the phase, and at least one."""
        return max(1, (len(self._text.ids) - self.context) // self.context)

    def __call__(self, step: int) -> Batch:
        first, count = _rows_of(self.part, self.batch_size)
        block, place = divmod(step * self.batch_size + first, ORDERED)
        if step < 0 or place + count > ORDERED:
            return super().__call__(step)
        return _whole(self._text, self._starts(block)[place : place + count], self.context, self.damaged)

    def read(self, records: np.ndarray) -> Batch:
        return _whole(self._text, by_blocks(self._starts, records), self.context, self.damaged)

    def stretches(self, records: np.ndarray) -> list[list[Stretch]]:
        starts = by_blocks(self._starts, records).tolist()
        return [[Stretch(0, start, start + self.context)] for start in starts]

    @cached_property
    def _starts(self) -> Callable[[int], np.ndarray]:
        """Where the rows of a block of ORDERED records begin, int64; the last few blocks are kept."""
        windows, spare = self.windows, len(self._text.ids) - self.windows * self.context

        @lru_cache(maxsize=16)
        def of_block(block: int) -> np.ndarray:
            records = np.arange(ORDERED, dtype=np.uint64) + np.uint64(block) * np.uint64(ORDERED)
            numbers, keys = shuffled(records, windows, self.seed)
            phases = mix(~keys) % np.uint64(min(self.context, spare))
            return (phases + numbers * np.uint64(self.context)).astype(np.int64)

        return of_block


@dataclass(frozen=True, eq=False)
class EvalBatches(ByIndex):
    """The stream from its first token to its last, each but the first a target exactly once; what fills up the last
    batch has weight 0.

    `len()` batches of the same form as `Batches`, by index or by iteration. With `limit_batches` at most so many, of
    windows spread evenly over the stream. Raises UserError where the stream has no target, that is, fewer than 2
    tokens.
    """

    stream: Any = field(repr=False)
    batch_size: int
    context: int
    limit_batches: int | None = None
    part: tuple[int, int] = (0, 1)
    damaged: str = "fatal"

    def __post_init__(self):
        check(self)
        if len(self._text.ids) < 2:
            raise UserError(
                f"the held-out text has {len(self._text.ids)} token(s): too few to predict one from another. Give more text."
            )

    @cached_property
    def _text(self) -> Text:
        return Text.of(self.stream)

    @property
    def count(self) -> int:
        """Windows that cover the stream; the last may be shorter than the context."""
        return -(-(len(self._text.ids) - 1) // self.context)

    def read(self, numbers: np.ndarray) -> Batch:
        return _cut(self._text, numbers * self.context, self.context, self.damaged)


def check(batches: ByStep | ByIndex, length: str = "context") -> None:
    """Raises UserError for a batch size or `length` of a row below 1 and a batch that its processes cannot share equally."""
    for name in ("batch_size", length):
        if getattr(batches, name) < 1:
            raise UserError(f"{name} must be at least 1, not {getattr(batches, name)}.")
    limit = getattr(batches, "limit_batches", None)
    if limit is not None and limit < 1:
        raise UserError(f"at least 1 batch has to be evaluated, not {limit}.")
    index, count = batches.part
    if not 0 <= index < count:
        raise ValueError(f"process {index} of {count}")
    if batches.batch_size % count:
        raise UserError(f"a batch of {batches.batch_size} rows cannot be split equally among {count} processes.")


def _rows_of(part: tuple[int, int], batch_size: int) -> tuple[int, int]:
    """(first row, number of rows) of a process."""
    index, count = part
    return index * batch_size // count, batch_size // count


def _cut(text: Text, starts: np.ndarray, context: int, damaged: str) -> Batch:
    """Windows of `context` tokens and their successors from each start; past the stream's end zeros of weight 0."""
    known = np.clip(len(text.ids) - 1 - starts, 0, context)
    if known.min(initial=context) == context:
        return _whole(text, starts, context, damaged)
    return _batch(*_what_is_whole(text, starts, known, context, damaged))


def _whole(text: Text, starts: np.ndarray, context: int, damaged: str) -> Batch:
    """Windows and their successors that all lie within the stream."""
    try:
        rows = text.ids.windows(starts, context + 1)
        if text.learned is None:
            return _batch(rows, _ones(len(starts), context))
        return _batch(rows, text.learned.windows(starts + 1, context).astype(np.float32))
    except Damaged:
        if damaged != "skip":
            raise
        return _batch(*_what_is_whole(text, starts, np.full(len(starts), context), context, damaged))


@lru_cache(maxsize=16)
def _ones(rows: int, context: int) -> np.ndarray:
    """Weights of 1, which batches share: nobody may write into them."""
    ones = np.ones((rows, context), np.float32)
    ones.flags.writeable = False
    return ones


def _batch(rows: np.ndarray, weights: np.ndarray) -> Batch:
    return {"tokens": rows[:, :-1], "targets": rows[:, 1:], "weights": weights}


def _what_is_whole(text: Text, starts, known, context: int, damaged: str) -> tuple[np.ndarray, np.ndarray]:
    """Row by row: zeros of weight 0 past the stream's end and, if what is damaged is skipped, for a row that touches it."""
    rows = np.zeros((len(starts), context + 1), np.int32)
    weights = np.zeros((len(starts), context), np.float32)
    for row, (start, length) in enumerate(zip(starts.tolist(), known.tolist(), strict=True)):
        try:
            found = text.ids[start : start + length + 1]
            learned = 1 if text.learned is None else text.learned[start + 1 : start + 1 + length]
        except Damaged:
            if damaged != "skip":
                raise
            continue
        rows[row, : len(found)], weights[row, :length] = found, learned
    return rows, weights
