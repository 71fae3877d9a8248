"""Batches of whole documents: rows are the bins of a best-fit packing (`packing.py`), shuffled anew in every epoch.

Record r of the run is bin pi_e(r mod W) of epoch e = r div W of W bins. The packing is computed once, about 2 seconds for a million documents;
no row needs more of the stream than its own documents.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.data.loader import Batch, ByIndex, ByStep, Stretch, Text, check, shuffled
from research.data.packing import Packing, pack, rows
from research.data.streams import Damaged


@dataclass(frozen=True, eq=False)
class Documents:
    """A stream's documents in bins. Document d is the ids from `offsets[d]` to below `offsets[d + 1]`."""

    text: Text
    offsets: np.ndarray = field(repr=False)  # int64 [documents + 1]
    packing: Packing = field(repr=False)

    @classmethod
    def of(cls, stream: Any, context: int, what: str, room: int = 0) -> "Documents":
        """Those of a TokenStream, of which each document is packed, or of an array [n], which is one document; longer ones than a bin of
        `context` tokens are cut, and `room` tokens are left free for each piece. Raises UserError, naming `what` it is, where no token
        follows another of its document, and for bins of no more than the room."""
        if isinstance(stream, cls):
            return stream
        if context <= room:
            raise UserError(f"rows of {context} tokens have no room for {room} besides a document's. Give longer rows.")
        text = Text.of(stream)
        begins = getattr(stream, "begins", np.zeros(1, np.int64))
        offsets = np.concatenate([[0], begins[begins > 0], [len(text.ids)]]).astype(np.int64)
        lengths = np.diff(offsets)
        if lengths.max() < 2:
            raise UserError(
                f"{what} has {len(text.ids)} token(s) in documents of at most {lengths.max()}: too few to predict one from another. "
                "Give documents of more than one token."
            )
        return cls(text, offsets, _with_room(lengths, context, room))

    def read(self, bins: np.ndarray, damaged: str) -> Batch:
        """The rows of bins as `packing.rows` lays them out. Bins beyond the last and, if what is damaged is skipped, those that touch it are
        zeros of weight 0."""
        there = bins < self.packing.bins
        try:
            found = self._rows(bins[there])
        except Damaged:
            if damaged != "skip":
                raise
            there = np.array([one and self._whole(number) for number, one in zip(bins, there, strict=True)])
            found = self._rows(bins[there])
        return found if there.all() else {name: _among(array, there) for name, array in found.items()}

    def _rows(self, bins: np.ndarray) -> Batch:
        return rows(self.packing, bins, self.text.ids, self.offsets, self.text.learned)

    def stretches(self, number: int) -> list[Stretch]:
        """The pieces of a bin."""
        packing = self.packing
        pieces = packing.pieces[packing.offsets[number] : packing.offsets[number + 1]]
        starts = self.offsets[packing.documents[pieces]] + packing.starts[pieces]
        return [
            Stretch(0, a, b) for a, b in zip(starts.tolist(), (starts + packing.sizes[pieces]).tolist(), strict=True)
        ]

    def _whole(self, number: int) -> bool:
        try:
            self._rows(np.array([number]))
        except Damaged:
            return False
        return True


def _with_room(lengths: np.ndarray, context: int, room: int) -> Packing:
    """The packing of documents into bins in which `room` tokens are free for each piece."""
    longest = context - room
    packing = pack(lengths + room * -(-lengths // longest), context)
    return replace(packing, starts=packing.starts // context * longest, sizes=packing.sizes - room)


def _among(found: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The rows found where they are there, among zeros."""
    whole = np.zeros((len(there), *found.shape[1:]), found.dtype)
    whole[there] = found
    return whole


@dataclass(frozen=True, eq=False)
class PackedBatches(ByStep):
    """Training batches of `batch_size` bins of `context` tokens. `stream` is a TokenStream, or an array of ids that is one document.

    Calling it with a step gives `tokens`, `targets` and `segments` int32 [B, T] and `weights` float32 [B, T], as `packing.rows` does.
    `room`: how many tokens of a bin are left free for each document, or piece of one, so that it may be made longer. Raises UserError where no
    document has two tokens and for rows that are no longer than the room.
    """

    stream: Any = field(repr=False)
    batch_size: int
    context: int
    seed: int
    part: tuple[int, int] = (0, 1)
    damaged: str = "fatal"  # "skip": a row of which a document lies in a damaged shard has weight 0
    room: int = 0

    def __post_init__(self):
        check(self)
        packed = Documents.of(self.stream, self.context, "the text to train on", self.room)
        object.__setattr__(self, "stream", packed)

    @property
    def bins(self) -> int:
        """Bins in an epoch."""
        return self.stream.packing.bins

    def read(self, records: np.ndarray) -> Batch:
        return self.stream.read(self._bins(records), self.damaged)

    def stretches(self, records: np.ndarray) -> list[list[Stretch]]:
        return [self.stream.stretches(number) for number in self._bins(records).tolist()]

    def _bins(self, records: np.ndarray) -> np.ndarray:
        return shuffled(records, self.bins, self.seed)[0].astype(np.int64)


@dataclass(frozen=True, eq=False)
class PackedEvalBatches(ByIndex):
    """Every document once: each token but its document's first is a target exactly once. Otherwise as `EvalBatches`."""

    stream: Any = field(repr=False)
    batch_size: int
    context: int
    limit_batches: int | None = None
    part: tuple[int, int] = (0, 1)
    damaged: str = "fatal"

    def __post_init__(self):
        check(self)
        object.__setattr__(self, "stream", Documents.of(self.stream, self.context, "the held-out text"))

    @property
    def count(self) -> int:
        return self.stream.packing.bins

    def read(self, numbers: np.ndarray) -> Batch:
        return self.stream.read(numbers, self.damaged)
