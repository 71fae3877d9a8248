"""Documents packed whole into rows of a fixed length by best fit, each its own segment: for fine-tuning without truncation.

Best-fit decreasing takes the documents from the longest to the shortest and puts each into the row with the least room that
is enough, or into a new row (Ding et al. 2024, "Fewer Truncations Improve Language Modeling", arXiv 2404.10830).
Rows are held in one stack for each size of room, and a whole number with a bit for each size that some row has gives the
best fit by shifts, so that a document costs T / 64 words at worst, whatever the number of rows.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from research.core.errors import UserError
from research.data.loader import Batch
from research.data.streams import Ids


@dataclass(frozen=True, eq=False)
class Packing:
    """Rows ("bins") of at most `length` tokens. Bin b holds the pieces `pieces[offsets[b] : offsets[b + 1]]`, in the order of
    their documents; piece p is the tokens from `starts[p]`, `sizes[p]` of them, of document `documents[p]`."""

    length: int
    offsets: np.ndarray  # int64 [bins + 1]
    pieces: np.ndarray  # int64 [pieces]
    documents: np.ndarray  # int64 [pieces]
    starts: np.ndarray  # int64 [pieces]
    sizes: np.ndarray  # int64 [pieces]
    cut: int  # documents longer than a bin that are in it as several pieces
    dropped: int  # documents longer than a bin that are left out

    @property
    def bins(self) -> int:
        return len(self.offsets) - 1

    @property
    def fill(self) -> float:
        """The share of the bins' places that hold a token; 1 where there is no bin."""
        return float(self.sizes.sum() / (self.bins * self.length)) if self.bins else 1.0


def pack(lengths: np.ndarray, T: int, long: Literal["split", "drop", "error"] = "split") -> Packing:
    """Returns the best-fit decreasing packing of documents of `lengths`, whole numbers [documents], into bins of T tokens.

    Every token is in exactly one bin, but for those of dropped documents. A document longer than T is cut into pieces of T and
    a rest ("split"), left out ("drop"), or refused ("error"). A document without tokens has no piece. Depends on the
    arguments alone. Raises UserError for negative lengths, T below 1 and documents that "error" refuses.
    """
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise ValueError(f"lengths are a 1-D array of whole numbers, not {lengths.dtype} of shape {lengths.shape}")
    if T < 1 or long not in ("split", "drop", "error"):
        raise UserError(f"packing into bins of {T} tokens, long={long!r}. Give 1 or more, and split, drop or error.")
    if lengths.size and lengths.min() < 0:
        raise UserError(f"document {lengths.argmin()} has {lengths.min()} tokens. Give lengths of 0 or more.")
    over = lengths > T
    if long == "error" and over.any():
        raise UserError(
            f"{over.sum()} documents are longer than the {T} tokens of a bin, the longest {lengths.max()}. Raise the length, or "
            "let long documents be split or dropped."
        )
    dropped = int(over.sum()) if long == "drop" else 0
    documents, starts, sizes = _cut(np.where(over, 0, lengths) if dropped else lengths, T)
    bins = _best_fit(sizes, T)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(bins))]).astype(np.int64)
    cut = 0 if dropped else int(over.sum())
    return Packing(T, offsets, np.argsort(bins, kind="stable"), documents, starts, sizes, cut, dropped)


def _cut(lengths: np.ndarray, T: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(documents, starts, sizes)` of the pieces of at most T tokens, int64 [pieces] each."""
    lengths = lengths.astype(np.int64)
    counts = -(-lengths // T)
    documents = np.repeat(np.arange(len(lengths)), counts)
    starts = T * _within(counts)
    return documents, starts, np.minimum(T, lengths[documents] - starts)


def _within(counts: np.ndarray) -> np.ndarray:
    """0 .. count - 1 for each count, one after another: int64 [sum of counts]."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _best_fit(sizes: np.ndarray, T: int) -> np.ndarray:
    """The bin of each piece, int64 [pieces]. Bins are numbered as they are opened; of equal ones the last changed is taken."""
    order = np.argsort(-sizes, kind="stable")
    room_for: list[list[int]] = [[] for _ in range(T + 1)]  # the bins that have room for so many tokens
    rooms = 0  # bit r is set where some bin has room for r tokens
    opened, taken = 0, []
    for size in sizes[order].tolist():
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            place = room_for[room].pop()
            if not room_for[room]:
                rooms ^= 1 << room
        else:
            room, place, opened = T, opened, opened + 1
        taken.append(place)
        room_for[room - size].append(place)
        rooms |= 1 << (room - size)
    bins = np.empty(len(sizes), np.int64)
    bins[order] = taken
    return bins


def rows(packing: Packing, bins: np.ndarray, ids: Any, offsets: np.ndarray, learned: Any = None) -> Batch:
    """Returns the batch of the given bins, whole numbers [B]. Document d is `ids[offsets[d] : offsets[d + 1]]`, its separator
    its last token where the tokeniser has one. `ids`: an array [n], or `streams.Ids`, of which only the rows' pieces are read.

    `tokens` int32 [B, T]; `targets` int32 [B, T], the next token of the same document; `weights` float32 [B, T]; `segments`
    int32 [B, T], 1, 2, 3, ... in each row as `model.positions.documents` reads them.

    The weight of a place is that of its target: `learned` of it, whole numbers as many as ids, likewise an array or `streams.Ids`, or 1
    if that is None. A document's last
    token has no target and weight 0; one at the end of a piece that was cut has the next piece's first token for its target.
    Padding has token, target, weight and segment 0. Raises ValueError for documents shorter than those that were packed, and what
    `ids` raises where they are damaged.
    """
    bins, offsets = np.asarray(bins, np.int64), np.asarray(offsets, np.int64)
    counts = packing.offsets[bins + 1] - packing.offsets[bins]
    pieces = packing.pieces[np.repeat(packing.offsets[bins], counts) + _within(counts)]
    documents, sizes = packing.documents[pieces], packing.sizes[pieces]
    begins, ends = offsets[documents] + packing.starts[pieces], offsets[documents + 1]
    if (begins + sizes > ends).any():
        raise ValueError("the documents are shorter than those that were packed")
    at = np.repeat(begins, sizes) + _within(sizes)
    has_target = at + 1 < np.repeat(ends, sizes)
    read = np.minimum(sizes + 1, ends - begins)  # with the target of the last token, where it has one
    found = _read(ids, begins, begins + read)
    place = np.repeat(np.cumsum(read) - read, sizes) + _within(sizes)
    per_bin = np.add.reduceat(sizes, np.cumsum(counts) - counts) if len(sizes) else counts
    places = np.repeat(packing.length * np.arange(len(bins)), per_bin) + _within(per_bin)

    weights = has_target if learned is None else has_target * _read(learned, begins, begins + read)[place + has_target]

    def laid_out(values: np.ndarray, dtype: type) -> np.ndarray:
        flat = np.zeros(len(bins) * packing.length, dtype)
        flat[places] = values
        return flat.reshape(len(bins), packing.length)

    return {
        "tokens": laid_out(found[place], np.int32),
        "targets": laid_out(np.where(has_target, found[place + has_target], 0), np.int32),
        "weights": laid_out(weights, np.float32),
        "segments": laid_out(np.repeat(_within(counts) + 1, sizes), np.int32),
    }


def _read(ids: Any, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The ids between each pair of places, one after another."""
    ids = Ids.of(ids)
    slices = [ids[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
    return np.concatenate([np.empty(0, ids.dtype), *slices])
