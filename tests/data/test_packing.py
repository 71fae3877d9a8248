"""Packing loses and duplicates nothing, never overfills, and gives rows whose segments are documents."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data.packing import Packing, pack, rows
from research.data.permutation import mix
from research.model.positions import documents as segments_to_documents

lengths_and_bins = st.tuples(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 24))


def alpaca_like(n: int) -> np.ndarray:
    """Lengths in tokens about as long as Alpaca's examples: log-normal, mean 113, at most 512.

    The card of the dataset tatsu-lab/alpaca gives 47.8 MB for 52,002 examples, each held twice, as fields and within its
    prompt: about 460 bytes a copy, hence 100 to 120 tokens. 512 is what Alpaca's training code keeps (model_max_length).
    The log-normal shape is an assumption.
    """
    drawn = np.random.Generator(np.random.PCG64(0)).lognormal(np.log(92), 0.65, n)
    return np.clip(drawn, 16, 512).astype(np.int64)


def contents(packing: Packing) -> list[list[tuple[int, int, int]]]:
    """(document, start, size) of the pieces of every bin."""
    bins = np.split(packing.pieces, packing.offsets[1:-1]) if packing.bins else []
    return [
        [(int(packing.documents[p]), int(packing.starts[p]), int(packing.sizes[p])) for p in pieces] for pieces in bins
    ]


@settings(deadline=None)
@given(lengths_and_bins, st.sampled_from(["split", "drop"]))
def test_every_token_is_in_one_bin_and_no_bin_is_overfull(drawn, long):
    lengths, T = drawn
    packing = pack(np.array(lengths, np.int64), T, long)
    bins = contents(packing)
    assert all(0 < sum(size for _, _, size in pieces) <= T for pieces in bins)
    found = sorted((d, start + i) for pieces in bins for d, start, size in pieces for i in range(size))
    kept = [(d, n) for d, n in enumerate(lengths) if long == "split" or n <= T]
    assert found == [(d, i) for d, n in kept for i in range(n)]
    long_ones = sum(n > T for n in lengths)
    assert (packing.cut, packing.dropped) == ((long_ones, 0) if long == "split" else (0, long_ones))


@settings(deadline=None)
@given(lengths_and_bins)
def test_a_document_is_cut_only_where_it_is_longer_than_a_bin(drawn):
    lengths, T = drawn
    packing = pack(np.array(lengths, np.int64), T)
    assert np.bincount(packing.documents, minlength=len(lengths)).tolist() == [-(-n // T) for n in lengths]


def best_fit_one_by_one(lengths: list[int], T: int) -> list[int]:
    """The rooms left, sorted, by the definition: longest first, into the least room that is enough."""
    rooms: list[int] = []
    for size in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= size]
        room = min(fitting, default=T)
        if fitting:
            rooms.remove(room)
        rooms.append(room - size)
    return sorted(rooms)


@settings(deadline=None)
@given(st.lists(st.integers(1, 24), max_size=60))
def test_it_is_best_fit_decreasing(lengths):
    packing = pack(np.array(lengths, np.int64), 24)
    assert sorted(24 - sum(size for _, _, size in pieces) for pieces in contents(packing)) == best_fit_one_by_one(
        lengths, 24
    )


def test_lengths_like_alpacas_fill_the_rows():
    lengths = alpaca_like(5000)
    assert 100 < lengths.mean() < 120
    packing = pack(lengths, 2048)
    assert packing.fill >= 0.98
    assert packing.fill == lengths.sum() / (packing.bins * 2048)


def test_the_same_lengths_give_the_same_packing_everywhere():
    packing = pack((mix(np.arange(500, dtype=np.uint64)) % np.uint64(300)).astype(np.int64) + 1, 512)
    flat = np.concatenate([packing.offsets, packing.pieces]).astype("<i8")
    assert hashlib.sha256(flat.tobytes()).hexdigest()[:16] == "172febfde90bd9e6"


def test_bad_lengths_and_long_documents_are_refused():
    with pytest.raises(UserError, match="1 documents are longer than the 8 tokens of a bin, the longest 9"):
        pack(np.array([3, 9, 8]), 8, "error")
    with pytest.raises(UserError, match="document 1 has -2 tokens"):
        pack(np.array([3, -2]), 8)
    with pytest.raises(UserError, match="bins of 0 tokens"):
        pack(np.array([3]), 0)
    with pytest.raises(ValueError, match="1-D array of whole numbers"):
        pack(np.array([3.0]), 8)


def test_no_documents_make_no_bins():
    packing = pack(np.array([], np.int64), 8)
    assert (packing.bins, packing.fill) == (0, 1.0)
    assert rows(packing, np.array([], int), np.array([], int), np.array([0]))["tokens"].shape == (0, 8)


def test_rows_by_hand():
    ids, offsets = np.arange(10, 21, dtype=np.uint16), np.array([0, 3, 5, 11])  # 10 11 12 | 13 14 | 15 .. 20
    packing = pack(np.diff(offsets), 5)
    learned = np.arange(11) % 2
    batch = rows(packing, np.array([1, 0]), ids, offsets, learned)
    assert contents(packing) == [[(2, 0, 5)], [(0, 0, 3), (1, 0, 2)], [(2, 5, 1)]]
    assert batch["tokens"].tolist() == [[10, 11, 12, 13, 14], [15, 16, 17, 18, 19]]
    assert batch["targets"].tolist() == [[11, 12, 0, 14, 0], [16, 17, 18, 19, 20]]
    assert batch["weights"].tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 1, 0]]
    assert batch["segments"].tolist() == [[1, 1, 1, 2, 2], [1, 1, 1, 1, 1]]
    last = rows(packing, np.array([2]), ids, offsets)
    assert [last[name].tolist() for name in ("tokens", "targets", "weights", "segments")] == [
        [[20, 0, 0, 0, 0]], [[0] * 5], [[0] * 5], [[1, 0, 0, 0, 0]],
    ]  # fmt: skip
    assert {name: array.dtype for name, array in batch.items()} == {
        "tokens": np.int32, "targets": np.int32, "weights": np.float32, "segments": np.int32,
    }  # fmt: skip


@settings(deadline=None)
@given(lengths_and_bins)
def test_rows_predict_each_token_but_the_first_of_a_document_once(drawn):
    lengths, T = drawn
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.arange(1, offsets[-1] + 1)  # each token is another, so that a row shows where it was read
    packing = pack(np.array(lengths, np.int64), T)
    batch = rows(packing, np.arange(packing.bins), ids, offsets)
    real = batch["segments"] > 0
    assert sorted(batch["tokens"][real]) == ids.tolist()
    first = offsets[:-1][np.diff(offsets) > 0] + 1
    assert sorted(batch["targets"][batch["weights"] > 0]) == np.setdiff1d(ids, first).tolist()
    assert (batch["targets"] == np.where(batch["weights"] > 0, batch["tokens"] + 1, 0)).all()
    assert not batch["tokens"][~real].any() and not batch["weights"][~real].any()


def test_segments_are_the_documents_that_a_model_reads():
    lengths = alpaca_like(60)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    document = np.repeat(np.arange(60), lengths)
    packing = pack(lengths, 1024)
    batch = rows(packing, np.arange(packing.bins), document, offsets)
    numbers, positions = map(np.asarray, segments_to_documents(batch["segments"]))
    for row in range(packing.bins):
        real = batch["segments"][row] > 0
        runs = np.concatenate([np.arange(lengths[d]) for d, _, _ in contents(packing)[row]])
        assert positions[row][real].tolist() == runs.tolist()
        assert len(np.unique(numbers[row][real])) == len(contents(packing)[row])
        assert not set(numbers[row][real]) & set(numbers[row][~real])


def test_documents_shorter_than_those_packed_are_refused():
    packing = pack(np.array([3, 4]), 8)
    with pytest.raises(ValueError, match="shorter than those that were packed"):
        rows(packing, np.array([0]), np.arange(6), np.array([0, 3, 6]))
