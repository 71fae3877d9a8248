"""Streams of tokens: what was prepared on disk (`shards.py`), or an array, read by position.

A block's checksum is looked at when its bytes are first asked for: damage is named by file and offset.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from research.core.errors import UserError

BLOCK = 1 << 20  # bytes under one checksum


@dataclass(frozen=True, eq=False)
class Ids:
    """The ids of a split as one sequence over its shards. What is asked for is read, and no more."""

    arrays: tuple[np.ndarray, ...] = field(repr=False)
    checks: tuple["Checks | None", ...] = field(repr=False)

    @classmethod
    def of(cls, array: Any) -> "Ids":
        """Those of a TokenStream or of an array in memory, [n]. Raises ValueError for what is no 1-D array of integers."""
        array = getattr(array, "tokens", array)
        if isinstance(array, cls):
            return array
        ids = np.asarray(array)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(f"a stream of tokens is a 1-D array of integers, not {ids.dtype} of shape {ids.shape}")
        return cls((ids.view(np.ndarray),), (None,))  # the bookkeeping of a np.memmap takes longer than a small read

    @classmethod
    def ones(cls, size: int) -> "Ids":
        """So many ones, which take no memory."""
        return cls.of(np.broadcast_to(np.uint8(1), size))

    @classmethod
    def joined(cls, parts: Sequence["Ids"]) -> "Ids":
        """Sequences one after the other, nothing copied."""
        return cls(tuple(a for one in parts for a in one.arrays), tuple(c for one in parts for c in one.checks))

    @cached_property
    def bounds(self) -> np.ndarray:
        """Where each shard begins, and the end: int64 [shards + 1]."""
        return np.cumsum([0, *(len(array) for array in self.arrays)])

    def __len__(self) -> int:
        return int(self.bounds[-1])

    @property
    def dtype(self) -> np.dtype:
        return self.arrays[0].dtype

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype)

    def __getitem__(self, where: slice) -> np.ndarray:
        """The ids of a slice without a step. Raises Damaged, naming file and offset, where they are not what was written."""
        start, stop, _ = where.indices(len(self))
        parts, at = [np.empty(0, self.dtype)], start
        while at < stop:
            shard = int(np.searchsorted(self.bounds, at, side="right")) - 1
            begin, array = at - int(self.bounds[shard]), self.arrays[shard]
            end = min(begin + stop - at, len(array))
            self._see(shard, np.array([begin]), end - begin)
            parts.append(array[begin:end])
            at += end - begin
        return parts[1] if len(parts) == 2 else np.concatenate(parts)

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """`length` ids from each start, int64 [B]: int32 (B, length). Raises Damaged likewise."""
        if len(self.arrays) == 1:
            self._see(0, starts, length)
            return self._windows(length)[starts].astype(np.int32)
        shards = np.searchsorted(self.bounds, starts, side="right") - 1
        begins = starts - self.bounds[shards]
        inside = starts + length <= self.bounds[shards + 1]
        out = np.empty((len(starts), length), np.int32)
        for shard in np.unique(shards[inside]):
            rows = np.flatnonzero(inside & (shards == shard))
            self._see(shard, begins[rows], length)
            out[rows] = sliding_window_view(self.arrays[shard], length)[begins[rows]]
        for row in np.flatnonzero(~inside):
            out[row] = self[int(starts[row]) : int(starts[row]) + length]
        return out

    @cached_property
    def _windows(self) -> Callable[[int], np.ndarray]:
        return cache(lambda length: sliding_window_view(self.arrays[0], length))

    def _see(self, shard: int, begins: np.ndarray, length: int) -> None:
        checks = self.checks[shard]
        if checks is not None:
            checks.see(begins * self.dtype.itemsize, length * self.dtype.itemsize)


@dataclass(frozen=True, eq=False)
class Checks:
    """The checksums of a file's blocks, each looked at when its bytes are first asked for."""

    path: Path
    content: np.ndarray = field(repr=False)  # the file's bytes
    sums: np.ndarray = field(repr=False)  # uint32, one a block
    seen: np.ndarray = field(repr=False)  # bool, one a block

    def see(self, begins: np.ndarray, size: int) -> None:
        """Raises Damaged if a byte of the `size` from any of `begins` is in a block that is not as it was written."""
        first, last = begins // BLOCK, np.maximum(begins, begins + size - 1) // BLOCK
        if size <= BLOCK and self.seen[first].all() and self.seen[last].all():
            return
        for a, b in zip(first, last, strict=True):
            for block in range(a, b + 1):
                if not self.seen[block]:
                    self._look(block)

    def _look(self, block: int) -> None:
        if zlib.crc32(self.content[block * BLOCK : (block + 1) * BLOCK].tobytes()) != self.sums[block]:
            raise Damaged(
                f"{self.path} is damaged between the byte offsets {block * BLOCK} and {(block + 1) * BLOCK}. "
                f"Remove {self.path.parent}, and the data is prepared again; or go on without what is damaged: --damaged skip"
            )
        self.seen[block] = True


class Damaged(UserError):
    """A shard whose content is not what was written."""


@dataclass(frozen=True, eq=False)
class TokenStream:
    """Ids of one split. `tokens`: an array [n], or `Ids`; `bytes`: the UTF-8 bytes of the text that they stand for; `begins` and `records`:
    where each document begins among them and the number of its record, int64 [documents]; `learned`, `Ids` or an array [n]: 1 for what is
    learned, 0 for what is only read; None: all is."""

    tokens: Any = field(repr=False)
    bytes: int
    begins: np.ndarray = field(repr=False, default_factory=lambda: np.zeros(1, np.int64))
    records: np.ndarray = field(repr=False, default_factory=lambda: np.zeros(1, np.int64))
    learned: Any = field(repr=False, default=None)

    def __len__(self) -> int:
        return len(self.tokens)


def join(streams: Sequence[TokenStream]) -> TokenStream:
    """Returns the streams one after the other, nothing copied."""
    before = np.cumsum([0, *map(len, streams)])
    none = np.empty(0, np.int64)
    masked = any(stream.learned is not None for stream in streams)
    masks = [Ids.ones(len(stream)) if stream.learned is None else Ids.of(stream.learned) for stream in streams]
    return TokenStream(
        Ids.joined([Ids.of(stream) for stream in streams]),
        sum(stream.bytes for stream in streams),
        np.concatenate([none, *(stream.begins + first for stream, first in zip(streams, before[:-1], strict=True))]),
        np.concatenate([none, *(stream.records for stream in streams)]),
        Ids.joined(masks) if masked else None,
    )
