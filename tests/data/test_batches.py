"""Batches of every kind are functions of the step: any step alone, in any order, on any hosts, and every row once an epoch."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data import shards, streams
from research.data.fim import FilledIn, Sentinels
from research.data.loader import Batches, prefetch
from research.data.mixed import MixedBatches
from research.data.packed import PackedBatches, PackedEvalBatches
from research.data.shards import Piece
from research.data.streams import Damaged, Ids, TokenStream

SENTINELS = Sentinels(60_000, 60_001, 60_002)
KINDS = ("windows", "packed", "mixed windows", "mixed packed", "filled in windows", "filled in mixed packed")
seeds, steps = st.integers(-(2**65), 2**65), st.integers(0, 300)
lengths = st.lists(st.integers(1, 30), min_size=1, max_size=40).filter(lambda drawn: max(drawn) > 1)


def stream_of(lengths, first: int = 0) -> TokenStream:
    """Documents of these lengths, whose tokens are numbers from `first` on, so that a row shows what it was made of."""
    ids = np.arange(first, first + sum(lengths)).astype(np.uint16)
    begins = np.cumsum([0, *lengths[:-1]])
    return TokenStream(ids, 0, begins, np.arange(len(lengths)))


def batches_of(kind: str, lengths, batch_size: int, context: int, seed: int):
    """Batches of a kind over documents of these lengths; those of a second source are the same, backwards and longer."""
    one = PackedBatches if "packed" in kind else Batches
    sources = [
        one(stream_of(own, first), batch_size, context, seed)
        for own, first in (([*lengths, context + 1], 0), ([n + context for n in lengths[::-1]], 30_000))
    ]
    stages = ((0, (2, "1/3")), (20, (0, 1)), (31, (1, 1)))
    made = MixedBatches(sources, stages, batch_size) if "mixed" in kind else sources[1]
    return FilledIn(made, SENTINELS, 0.6, seed, 30_010) if "filled" in kind else made


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]) for name in a
    )


@given(st.sampled_from(KINDS), lengths, st.integers(2, 12), seeds, st.lists(steps, min_size=1, max_size=4))
def test_a_step_depends_on_itself_alone(kind, lengths, context, seed, asked):
    used = batches_of(kind, lengths, 4, context, seed)
    found = [used(step) for step in asked]
    for step, batch in sorted(zip(asked, found, strict=True), key=lambda pair: pair[0]):
        assert equal(batches_of(kind, lengths, 4, context, seed)(step), batch)


@given(st.sampled_from(KINDS), lengths, st.integers(2, 12), seeds, steps)
def test_one_two_four_or_eight_hosts_have_the_same_global_batch(kind, lengths, context, seed, step):
    whole = batches_of(kind, lengths, 16, context, seed)
    for hosts in (1, 2, 4, 8):
        parts = [whole.rows(host, hosts)(step) for host in range(hosts)]
        assert equal({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, whole(step))


@given(st.sampled_from(KINDS), lengths, st.integers(2, 12), seeds, steps, st.integers(1, 7))
def test_the_order_of_rows_does_not_depend_on_the_batch_size(kind, lengths, context, seed, step, batch_size):
    large = batches_of(kind, lengths, 2 * batch_size, context, seed)(step)
    small = batches_of(kind, lengths, batch_size, context, seed)
    halves = [small(2 * step), small(2 * step + 1)]
    assert equal({name: np.concatenate([half[name] for half in halves]) for name in halves[0]}, large)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumes_at_every_boundary(kind):
    def ahead(start):
        with contextlib.closing(
            prefetch(batches_of(kind, [5, 3, 17], 4, 8, 1), start, 12, lambda batch: batch)
        ) as found:
            return list(found)

    whole = ahead(0)
    for start in range(13):
        assert all(equal(a, b) for a, b in zip(ahead(start), whole[start:], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_batch_holds(kind):
    batch = batches_of(kind, [5, 3, 17], 4, 8, 1)(2)
    expected = {"tokens": np.int32, "targets": np.int32, "weights": np.float32}
    expected |= {"segments": np.int32} if "packed" in kind else {}
    assert {name: array.dtype for name, array in batch.items()} == expected
    assert all(array.shape == (4, 8) for array in batch.values()) and batch["weights"].any()


@given(lengths, st.integers(2, 12), st.integers(1, 6), seeds, st.integers(0, 4), st.integers(0, 4))
def test_packed_documents_are_there_once_an_epoch(lengths, context, batch_size, seed, epoch, room):
    batches = PackedBatches(stream_of(lengths, 1), batch_size, context + room, seed, room=room)
    rows = batches.read(np.arange(epoch * batches.bins, (epoch + 1) * batches.bins))
    real = rows["segments"] > 0
    assert sorted(rows["tokens"][real]) == list(range(1, sum(lengths) + 1))
    seen = rows["weights"] > 0
    assert (rows["targets"][seen] == rows["tokens"][seen] + 1).all()
    assert seen.sum() == sum(lengths) - len(lengths)
    assert ((~real).sum(1) >= room * rows["segments"].max(1)).all()


def test_epochs_of_packed_rows_have_orders_of_their_own():
    batches = PackedBatches(stream_of([7] * 60), 4, 8, 3)
    orders = [tuple(batches.read(np.arange(e * 60, e * 60 + 60))["tokens"][:, 0]) for e in range(20)]
    assert len(set(orders)) == 20 and orders[0] != tuple(sorted(orders[0]))


@given(lengths, st.integers(2, 12), st.integers(1, 6))
def test_packed_evaluation_has_every_document_once(lengths, context, batch_size):
    batches = PackedEvalBatches(stream_of(lengths, 1), batch_size, context)
    read = list(batches)
    tokens = np.concatenate([batch["tokens"][batch["segments"] > 0] for batch in read])
    targets = np.concatenate([batch["targets"][batch["weights"] > 0] for batch in read])
    firsts = 1 + np.cumsum([0, *lengths[:-1]])
    assert sorted(tokens) == list(range(1, sum(lengths) + 1))
    assert sorted(targets) == sorted(set(range(1, sum(lengths) + 1)) - set(firsts.tolist()))
    assert all(batch["tokens"].shape == (batch_size, context) for batch in read)
    parts = [[batches.rows(host, 2)(0) for host in range(2)]] if batch_size % 2 == 0 else []
    for pair in parts:
        assert equal({name: np.concatenate([half[name] for half in pair]) for name in pair[0]}, read[0])


def test_limited_packed_evaluation_is_spread_over_all_rows():
    batches = PackedEvalBatches(stream_of([8] * 40), 5, 8, limit_batches=2)
    found = np.concatenate([batch["tokens"][:, 0] for batch in batches])
    assert found.tolist() == list(range(0, 320, 32))


@given(lengths, st.integers(2, 12), seeds, st.sampled_from([Batches, PackedBatches]), st.data())
def test_a_mixture_is_its_sources_rows_in_order_within_one_of_their_shares(lengths, context, seed, kind, data):
    weights = data.draw(st.lists(st.integers(0, 5), min_size=2, max_size=3).filter(any))
    streams = [stream_of([n + context for n in lengths], 20_000 * k) for k in range(len(weights))]
    sources = [kind(stream, 1, context, seed) for stream in streams]
    later = data.draw(st.permutations(weights))
    batches = MixedBatches(sources, ((0, weights), (37, later)), 4)
    rows = batches.read(np.arange(120))
    chosen = rows["tokens"][:, 0] // 20_000
    share = np.zeros(len(weights))
    for n, source in enumerate(chosen):
        share += np.array(weights if n < 37 else later) / sum(weights)
        assert (np.abs(np.bincount(chosen[: n + 1], minlength=len(weights)) - share) < 1 + 1e-9).all(), source
    for k, source in enumerate(sources):
        here = chosen == k
        assert equal({name: array[here] for name, array in rows.items()}, source.read(np.arange(here.sum())))


def test_a_mixture_of_rows_is_one_of_tokens():
    sources = [Batches(stream_of([4000], 20_000 * k), 1, 10, 0) for k in range(2)]
    rows = [MixedBatches(sources, ((0, (0.75, 0.25)),), 8)(step) for step in range(50)]
    assert np.mean([batch["tokens"] < 20_000 for batch in rows]) == 0.75


def test_tokens_that_are_not_learned_weigh_nothing():
    learned = np.array([0, 0, 1, 1, 0, 1, 1, 0], np.uint8)
    stream = replace(stream_of([5, 3], 1), learned=learned)
    for batches in (PackedBatches(stream, 1, 8, 0), PackedEvalBatches(stream, 1, 8)):
        batch = batches.rows(0, 1)(0)
        assert batch["tokens"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
        assert batch["targets"].tolist() == [[2, 3, 4, 5, 0, 7, 8, 0]]
        assert batch["weights"].tolist() == [[0, 1, 1, 0, 0, 1, 0, 0]]
        assert batch["segments"].tolist() == [[1] * 5 + [2] * 3]


@pytest.fixture
def damaged(tmp_path, monkeypatch) -> TokenStream:
    """12 documents of 8 tokens of one byte, of which the block of tokens 48 to 63 is damaged."""
    monkeypatch.setattr(streams, "BLOCK", 16)
    begins = np.arange(0, 96, 8)
    pieces = {"train": Piece(np.arange(96, dtype=np.uint8), begins, begins // 8, 96)}
    shards.prepare(tmp_path / "c", 1, lambda unit: (pieces, {}), {}, lambda totals: None)
    path = tmp_path / "c" / "train-00000.bin"
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)
    return shards.read(tmp_path / "c", "train", np.dtype(np.uint8))


def test_what_is_damaged_ends_the_run_or_weighs_nothing(damaged):
    whole = PackedBatches(stream_of([8] * 12), 12, 8, 0)(0)
    with pytest.raises(Damaged, match="offsets 48 and 64"):
        PackedBatches(damaged, 12, 8, 0)(0)
    skipped = PackedBatches(damaged, 12, 8, 0, damaged="skip")
    touched = np.isin(whole["tokens"][:, 0], [48, 56])
    expected = {name: np.where(touched[:, None], 0, array).astype(array.dtype) for name, array in whole.items()}
    assert touched.sum() == 2 and equal(skipped(0), expected)
    assert equal(FilledIn(skipped, SENTINELS, 0, 1, None)(0), expected)
    other = PackedBatches(stream_of([8] * 12, 200), 1, 8, 0)
    mixed = MixedBatches([skipped, other], ((0, (1, 1)),), 24)(0)
    assert (mixed["weights"].sum(1) == 0).sum() == 2 and (mixed["tokens"] >= 200).sum() == 96
    held_out = list(PackedEvalBatches(damaged, 5, 8, damaged="skip"))
    assert sum(batch["weights"].sum() for batch in held_out) == 10 * 7
    with pytest.raises(Damaged):
        list(PackedEvalBatches(damaged, 5, 8))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(2, 6))
def test_packed_rows_of_shards_are_those_of_one_array(sizes, context):
    bounds = np.cumsum([0, *sizes, 2])
    ids = np.arange(bounds[-1]).astype(np.uint16)
    parts = tuple(ids[a:b] for a, b in zip(bounds, bounds[1:], strict=False))
    over = Ids(parts, (None,) * len(parts))
    streams = [replace(stream_of([3] * 9), tokens=one, begins=bounds[:-1]) for one in (ids, over)]
    one, other = (PackedBatches(stream, 4, context, 0)(3) for stream in streams)
    assert equal(one, other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PackedBatches(stream_of([1, 1]), 1, 8, 0), "to train on has 2 .* at most 1: too few"),
        (lambda: PackedBatches(stream_of([9]), 1, 4, 0, room=4), "rows of 4 tokens have no room for 4"),
        (lambda: PackedEvalBatches(np.zeros(0, int), 1, 8), "held-out text has 0"),
        (lambda: PackedEvalBatches(stream_of([4]), 1, 8, 0), "at least 1 batch"),
        (lambda: PackedBatches(stream_of([4]), 6, 8, 0).rows(0, 4), "6 rows cannot be split"),
        (
            lambda: MixedBatches([Batches(np.arange(99), 1, n, 0) for n in (4, 5)], ((0, (1, 1)),), 2),
            r"\[4, 5\] tokens",
        ),
        (lambda: MixedBatches([Batches(np.arange(99), 1, 4, 0)], ((0, (-1,)),), 2), "weight"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_the_batches_of_a_seed_never_change():
    """A run continued after an update of the project must see the same data: these numbers are part of the format."""
    packed = PackedBatches(stream_of([5, 9, 3, 7, 2, 8, 6]), 4, 10, 0)
    mixed = MixedBatches([packed, PackedBatches(stream_of([10] * 9, 100), 4, 10, 0)], ((0, (2, 1)),), 6)
    assert [packed(step)["tokens"][:, 0].tolist() for step in (0, 40)] == [[14, 24, 0, 34], [34, 5, 14, 0]]
    found = [mixed(step)["tokens"][:, 0].tolist() for step in (0, 40)]
    assert found == [[14, 24, 120, 0, 34, 110], [34, 5, 140, 14, 0, 140]]
