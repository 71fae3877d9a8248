"""Augmentations of texts: counts are exact, nothing else changes, and what span corruption takes out can be put back."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from augment_cases import VOCABULARY, T, batch_of, keys, run
from hypothesis import given, settings
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data.augment import spans
from research.data.augment.spans import Spans
from research.data.augment.text import Delete, Insert, Replace, Swap, neighbours

strengths = st.floats(0, 1, width=32, allow_subnormal=False)
BATCH = batch_of("text")
CASES = list(zip(BATCH["tokens"], BATCH["lengths"].tolist(), strict=True))
SENTINEL = 99


def made_by(one, seed: int, batch=BATCH):
    """Each row before, its length, and both after."""
    out = jax.tree.map(np.asarray, run(batch, jax.random.key(seed), (one,)))
    return [
        (before, length, after, int(now))
        for before, length, after, now in zip(
            batch["tokens"], batch["lengths"].tolist(), out["tokens"], out["lengths"], strict=True
        )
    ]


def share(strength: float, length: int) -> int:
    return int(np.round(np.float32(strength) * np.float32(length)))


@settings(max_examples=25)
@given(keys, strengths)
def test_as_many_tokens_are_replaced_as_asked_for(seed, strength):
    for before, length, after, now in made_by(Replace(strength, VOCABULARY, first=5), seed):
        changed = before != after
        assert changed.sum() == share(strength, length) and now == length
        assert not changed[length:].any()
        assert ((after[changed] >= 5) & (after[changed] < VOCABULARY)).all()


def test_replacements_are_drawn_alike_from_all_other_tokens():
    batch = {"tokens": np.full((4000, 1), 7, np.int32), "lengths": np.ones(4000, np.int32)}
    counts = np.bincount(np.asarray(run(batch, jax.random.key(0), (Replace(1.0, 10, first=2),))["tokens"])[:, 0])
    assert counts.tolist()[:2] == [0, 0] and counts[7] == 0 and len(counts) == 10
    others = np.delete(counts[2:], 5)
    assert ((others - 4000 / 7) ** 2 / (4000 / 7)).sum() < 22.5  # chi-squared, 6 degrees: 1 in 1000


@settings(max_examples=25)
@given(keys, strengths)
def test_deleted_tokens_are_as_many_as_asked_for_and_the_others_keep_their_order(seed, strength):
    for before, length, after, now in made_by(Delete(strength, pad=98), seed):
        gone = min(share(strength, length), max(length - 1, 0))
        assert now == length - gone
        places = [before.tolist().index(token) for token in after[:now].tolist()]
        assert places == sorted(places) and all(place < length for place in places)
        assert (after[now:length] == 98).all() and (after[length:] == before[length:]).all()


@settings(max_examples=25)
@given(keys, strengths)
def test_inserted_tokens_are_as_many_as_there_is_room_for_and_the_others_all_stay(seed, strength):
    batch = {**BATCH, "tokens": BATCH["tokens"] + 100}  # those inserted are below 50
    for before, length, after, now in made_by(Insert(strength, VOCABULARY), seed, batch):
        assert now == length + min(share(strength, length), T - length)
        new = after[:now] < VOCABULARY
        assert new.sum() == now - length
        np.testing.assert_array_equal(after[:now][~new], before[:length])
        np.testing.assert_array_equal(after[now:], before[now:])


@settings(max_examples=25)
@given(keys, strengths)
def test_swapped_tokens_are_pairs_that_change_places(seed, strength):
    for before, length, after, now in made_by(Swap(strength), seed):
        moved = np.flatnonzero(before != after)
        assert len(moved) == 2 * int(np.float32(strength) * np.float32(length) * np.float32(0.5)) and now == length
        assert (moved < length).all()
        to = [before.tolist().index(token) for token in after[moved].tolist()]
        where = dict(zip(moved.tolist(), to, strict=True))
        assert all(where[where[place]] == place for place in where)


def test_every_place_is_chosen_alike():
    rows = 3000
    batch = {"tokens": np.tile(np.arange(6, dtype=np.int32), (rows, 1)), "lengths": np.full(rows, 5, np.int32)}
    kept = np.asarray(run(batch, jax.random.key(0), (Delete(0.4, pad=9),))["tokens"])
    sets, counts = np.unique(kept[:, :3], axis=0, return_counts=True)
    assert len(sets) == 10 and ((counts - 300) ** 2 / 300).sum() < 27.9  # chi-squared, 9 degrees: 1 in 1000


def test_neighbours_are_those_of_largest_cosine():
    table = np.random.default_rng(0).normal(size=(37, 5)).astype(np.float32)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    cosines = unit @ unit.T - 3 * np.eye(37)
    expected = np.argsort(-cosines, axis=1)[:, :4]
    for block in (8, 256):
        np.testing.assert_array_equal(neighbours(table, 4, block), expected)
    table[3] = 0  # a token never trained
    assert np.isfinite(neighbours(table, 36)).all()
    for number in (0, 37):
        with pytest.raises(UserError, match=f"{number} neighbours of each of 37 tokens"):
            neighbours(table, number)


@settings(max_examples=20)
@given(keys, strengths)
def test_neighbours_stand_in_for_tokens(seed, strength):
    table = (np.arange(VOCABULARY)[:, None] + np.array([[200, 300]])).astype(np.int32)
    for before, length, after, _ in made_by(Replace(strength, neighbours=jnp.asarray(table)), seed):
        changed = before != after
        assert changed.sum() == share(strength, length)
        assert np.isin(after[changed] - before[changed], [200, 300]).all()
    for before, length, after, now in made_by(Insert(strength, neighbours=jnp.asarray(table)), seed):
        new = after[:now] >= 200
        assert new.sum() == now - length
        assert np.isin(after[:now][new] % 100, np.concatenate([before[:length], before[:length]]) % 100).all()


def test_every_neighbour_is_drawn_alike():
    table = jnp.asarray(np.tile(np.arange(4, dtype=np.int32), (8, 1)))
    batch = {"tokens": np.full((2000, 1), 7, np.int32), "lengths": np.ones(2000, np.int32)}
    counts = np.bincount(np.asarray(run(batch, jax.random.key(0), (Replace(1.0, neighbours=table),))["tokens"])[:, 0])
    assert len(counts) == 4 and ((counts - 500) ** 2 / 500).sum() < 16.3  # chi-squared, 3 degrees: 1 in 1000


def put_together(inputs: list[int], targets: list[int], sentinels: range) -> list[int]:
    """What the tokens were, of inputs and targets without padding."""
    parts, out = {}, []
    for token in targets:
        if token in sentinels:
            assert token not in parts
            parts[token] = now = []
        else:
            now.append(token)
    last = targets[-1]
    assert last in sentinels and not parts.pop(last)
    for token in inputs:
        out += parts.pop(token) if token in sentinels else [token]
    assert not parts and last not in inputs
    return out


@pytest.mark.parametrize("step", [-1, 1])
@settings(max_examples=30)
@given(seed=keys, strength=strengths)
def test_spans_can_be_put_back(step, seed, strength):
    one = Spans(strength, sentinel=SENTINEL, step=step, pad=77)
    out = jax.tree.map(np.asarray, run(BATCH, jax.random.key(seed), (one,)))
    sentinels = range(SENTINEL, SENTINEL + step * (T + 1), step)
    for row, (tokens, length) in enumerate(CASES):
        inputs, targets = (out[name][row, : out[f"{name}_length"][row]].tolist() for name in ("inputs", "targets"))
        assert put_together(inputs, targets, sentinels) == tokens[:length].tolist()
        marks = [token for token in inputs if token in sentinels]
        assert marks == list(sentinels)[: len(marks)] == [t for t in targets if t in sentinels][:-1]
        gone = min(max(share(strength, length), 1), length - 1) if strength > 0 and length > 1 else 0
        parts = min(max(round(gone / 3), 1), gone, length - gone) if gone else 0
        assert (len(marks), len(targets)) == (parts, gone + parts + 1)
        assert not any(one in sentinels and two in sentinels for one, two in zip(inputs, inputs[1:], strict=False))
        assert (out["targets"][row, len(targets) :] == 77).all()
        if gone:
            assert (out["inputs"][row, len(inputs) :] == 77).all()
    assert out["targets"].shape == (len(CASES), T + 1) and out["inputs"].dtype == np.int32
    np.testing.assert_array_equal(out["tokens"], BATCH["tokens"])


def test_all_ways_to_take_out_spans_are_alike():
    rows = 6000
    batch = {"tokens": np.tile(np.arange(8, dtype=np.int32), (rows, 1)), "lengths": np.full(rows, 8, np.int32)}
    out = run(batch, jax.random.key(0), (Spans(0.5, sentinel=50, mean_span=2.0),))
    ways = collections.Counter(map(tuple, np.asarray(out["inputs"]).tolist()))
    assert len(ways) == 30  # 4 tokens in 2 spans: 3 ways; 4 before, between and behind them, some between: 10 ways
    assert sum((n - rows / 30) ** 2 / (rows / 30) for n in ways.values()) < 58.3  # chi-squared, 29 degrees: 1 in 1000


def test_sizes_are_those_of_t5():
    assert spans.sizes(568) == (511, 114)  # with the end of the text, 512 and 114 of the published pre-training
    assert spans.sizes(512) == (461, 104)
    assert spans.sizes(10, 0.0) == (10, 1) and spans.sizes(1) == (1, 1)


@pytest.mark.parametrize("strength", [0.15, 0.5, 0.9])
def test_rows_fit_the_sizes_that_are_asked_for(strength):
    inputs, targets = spans.sizes(T, strength)
    out = run(BATCH, jax.random.key(0), (Spans(strength, sentinel=SENTINEL, input_size=inputs, target_size=targets),))
    assert out["inputs"].shape[1] == inputs and out["targets"].shape[1] == targets
    assert (int(out["inputs_length"][0]), int(out["targets_length"][0])) == (inputs, targets)
    safe = run(BATCH, jax.random.key(0), (Spans(strength, sentinel=SENTINEL),))
    np.testing.assert_array_equal(out["targets"], safe["targets"][:, :targets])
    np.testing.assert_array_equal(out["inputs"][0], safe["inputs"][0, :inputs])
    np.testing.assert_array_equal(out["inputs_length"], safe["inputs_length"])


def test_what_does_not_fit_is_cut_off_and_lengths_say_so():
    out = run(BATCH, jax.random.key(0), (Spans(0.5, sentinel=SENTINEL, input_size=5, target_size=4),))
    safe = run(BATCH, jax.random.key(0), (Spans(0.5, sentinel=SENTINEL),))
    np.testing.assert_array_equal(out["targets"], safe["targets"][:, :4])
    assert out["inputs_length"][0] == 5 and out["targets_length"][0] == 4


def test_there_are_no_more_spans_than_sentinels():
    out = run(BATCH, jax.random.key(0), (Spans(0.5, sentinel=SENTINEL, mean_span=1.0, sentinels=4),))
    assert set(np.asarray(out["targets"])[0].tolist()) & set(range(50, 100)) == {99, 98, 97, 96}
