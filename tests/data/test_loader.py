"""Batches are functions of the step; windows cover epochs and held-out streams exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data.loader import Batches, EvalBatches
from research.data.streams import TokenStream

sizes = st.tuples(st.integers(1, 9), st.integers(1, 13), st.integers(0, 300)).map(
    lambda drawn: (drawn[0], drawn[1], drawn[1] + 1 + drawn[2])
)  # batch size, context, tokens in the stream


def counting(n: int) -> np.ndarray:
    """A stream in which the token is its position, so that a batch shows where it was read."""
    return np.arange(n, dtype=np.uint16)


def starts_of_epoch(batches: Batches, epoch: int) -> np.ndarray:
    """The windows of one epoch in the order of the run, read from the batches themselves."""
    first, last = epoch * batches.windows, (epoch + 1) * batches.windows
    steps = range(first // batches.batch_size, -(-last // batches.batch_size))
    rows = np.concatenate([batches(step)["tokens"][:, 0] for step in steps])
    skip = first - steps[0] * batches.batch_size
    return rows[skip : skip + batches.windows]


@given(sizes, st.integers(-(2**65), 2**65), st.integers(0, 50))
def test_shapes_types_and_targets(size, seed, step):
    batch_size, context, n = size
    batch = Batches(counting(n), batch_size, context, seed)(step)
    assert {name: (array.dtype, array.shape) for name, array in batch.items()} == {
        "tokens": (np.int32, (batch_size, context)),
        "targets": (np.int32, (batch_size, context)),
        "weights": (np.float32, (batch_size, context)),
    }
    assert (batch["targets"] == batch["tokens"] + 1).all()
    assert (np.diff(batch["tokens"], axis=1) == 1).all()
    assert batch["weights"].all()


@given(sizes, st.integers(0, 99), st.integers(0, 6))
def test_every_window_of_an_epoch_once(size, seed, epoch):
    batch_size, context, n = size
    batches = Batches(counting(n), batch_size, context, seed)
    starts = np.sort(starts_of_epoch(batches, epoch))
    assert len(starts) == batches.windows
    assert (np.diff(starts) == context).all()  # side by side: no overlap, no gap
    assert starts[0] < context
    assert starts[-1] + context < n


def test_an_epoch_leaves_out_less_than_two_windows():
    for n in range(9, 60):
        assert n - Batches(counting(n), 2, 8, 0).windows * 8 < 16


def test_phases_and_orders_differ_between_epochs_and_seeds():
    batches = Batches(counting(4000), 4, 16, seed=3)
    epochs = [starts_of_epoch(batches, epoch) for epoch in range(30)]
    assert len({int(starts.min()) for starts in epochs}) > 8
    assert len({tuple(np.argsort(starts)) for starts in epochs}) == 30
    assert not np.array_equal(starts_of_epoch(Batches(counting(4000), 4, 16, seed=4), 0), epochs[0])
    assert not np.array_equal(np.sort(epochs[0]), epochs[0])


def test_all_phases_are_reachable():
    batches = Batches(counting(9), 1, 5, seed=0)  # one window of 5 + 1 in 9 tokens: phases 0 to 3
    assert {int(batches(step)["tokens"][0, 0]) for step in range(100)} == {0, 1, 2, 3}


@given(sizes, st.integers(0, 200))
def test_a_step_does_not_depend_on_what_was_read_before(size, step):
    batch_size, context, n = size
    used = Batches(counting(n), batch_size, context, 5)
    for other in (7, 0, step + 1):
        used(other)
    fresh = Batches(counting(n), batch_size, context, 5)
    for name, array in fresh(step).items():
        assert np.array_equal(array, used(step)[name])


def test_the_batches_of_a_seed_never_change():
    """A run continued after an update of the project must see the same data: these numbers are part of the format."""
    batches = Batches(counting(1000), 3, 10, seed=0)
    assert [[row[0].start for row in batches.stretches(batches.records(step))] for step in (0, 40)] == [
        [192, 62, 212],
        [718, 128, 878],
    ]


@given(sizes, st.integers(1, 4), st.integers(0, 40))
def test_rows_of_all_processes_are_the_global_batch(size, processes, step):
    batch_size, context, n = size[0] * processes, size[1], size[2]
    whole = Batches(counting(n), batch_size, context, 1)
    parts = [whole.rows(index, processes)(step) for index in range(processes)]
    for name, array in whole(step).items():
        assert np.array_equal(np.concatenate([part[name] for part in parts]), array)
    evaluation = EvalBatches(counting(n), batch_size, context)
    index = step % len(evaluation)
    parts = [evaluation.rows(part, processes)(index) for part in range(processes)]
    for name, array in evaluation(index).items():
        assert np.array_equal(np.concatenate([part[name] for part in parts]), array)


@given(st.integers(1, 9), st.integers(1, 13), st.integers(2, 300))
def test_evaluation_covers_the_stream_exactly_once(batch_size, context, n):
    batches = EvalBatches(counting(n), batch_size, context)
    read = list(batches)
    assert len(read) == len(batches)
    targets = np.concatenate([batch["targets"][batch["weights"] > 0] for batch in read])
    tokens = np.concatenate([batch["tokens"][batch["weights"] > 0] for batch in read])
    assert targets.tolist() == list(range(1, n))
    assert tokens.tolist() == list(range(n - 1))
    assert all(batch["tokens"].shape == (batch_size, context) for batch in read)
    padded = np.concatenate([batch["targets"][batch["weights"] == 0] for batch in read])
    assert not padded.any()
    assert sum(batch["weights"].sum() for batch in read[:-1]) == (len(read) - 1) * batch_size * context


def test_limited_evaluation_is_spread_over_the_stream():
    batches = EvalBatches(counting(1001), 5, 10, limit_batches=4)
    starts = np.concatenate([batch["tokens"][:, 0] for batch in batches])
    assert starts.tolist() == list(range(0, 1000, 50))
    assert len(EvalBatches(counting(1001), 5, 10, limit_batches=100)) == 20
    with pytest.raises(IndexError):
        batches(4)


def test_token_streams_and_arrays_are_read_alike():
    array = np.random.default_rng(0).integers(0, 60_000, 500).astype(np.uint16)
    from_stream = Batches(TokenStream(array, 500), 4, 8, 0)(3)
    from_array = Batches(array.astype(np.int64), 4, 8, 0)(3)
    for name in from_stream:
        assert np.array_equal(from_stream[name], from_array[name])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Batches(counting(8), 1, 8, 0), r"8 tokens.*8 \+ 1"),
        (lambda: Batches(counting(0), 1, 8, 0), "0 tokens"),
        (lambda: Batches(counting(99), 0, 8, 0), "batch_size must be at least 1"),
        (lambda: Batches(counting(99), 1, 0, 0), "context must be at least 1"),
        (lambda: Batches(counting(99), 6, 8, 0).rows(0, 4), "6 rows cannot be split equally among 4"),
        (lambda: EvalBatches(counting(1), 1, 8), r"1 token\(s\)"),
        (lambda: EvalBatches(counting(99), 1, 8, 0), "at least 1 batch"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_shortest_stream():
    assert Batches(counting(9), 2, 8, 0)(0)["targets"].tolist() == [list(range(1, 9))] * 2


@pytest.mark.parametrize("stream", [np.zeros((3, 4), np.int32), np.zeros(9, np.float32)])
def test_streams_are_flat_integers(stream):
    with pytest.raises(ValueError, match="1-D array of integers"):
        Batches(stream, 1, 2, 0)
