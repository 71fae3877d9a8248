"""The filters against their definitions by sorting, in NumPy and float64."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis.extra import numpy as hnp

from research.sample import filters as F

B, V = 3, 24
FRACTION = st.floats(0.015625, 1, width=32)
VALUES = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.25, 4, width=32),
        "top_k": st.integers(1, V + 3),
        "top_p": st.one_of(st.just(1.0), FRACTION),
        "min_p": st.one_of(st.just(0.0), FRACTION),
        "repetition_penalty": st.floats(0.5, 2, width=32),
        "presence_penalty": st.floats(-2, 2, width=16),
        "frequency_penalty": st.floats(-2, 2, width=16),
    }
)
filtered = jax.jit(F.filtered)


def reference(logits, seen, counts, allowed, *, temperature, top_k, top_p, min_p, repetition_penalty, **penalties):
    """One row's `(filtered logits, distance to the nearest decision that rounding could turn)`, the usual way: by sorting."""
    x = logits.astype(np.float64)
    x = np.where(seen, np.where(x > 0, x / repetition_penalty, x * repetition_penalty), x)
    x -= penalties["presence_penalty"] * (counts > 0) + penalties["frequency_penalty"] * counts
    x = np.where(allowed, x, -np.inf) / temperature
    ordered = np.sort(x)
    gaps = np.diff(ordered[np.isfinite(ordered)])
    doubt = min([1.0, *gaps[gaps > 0]])
    x = np.where(x < ordered[-min(top_k, V)], -np.inf, x)
    probabilities = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    order = np.argsort(x)
    below = np.cumsum(probabilities[order])  # what may be dropped: the least probable, up to 1 - p together
    removed = order[:-1][below[:-1] <= 1 - top_p]
    kept = np.setdiff1d(np.arange(V), removed)
    doubt = min([doubt, *(abs(below[:-1] - (1 - top_p))[below[:-1] > 0])]) if top_p < 1 else doubt
    x = np.where(x < x[kept].min(), -np.inf, x)
    if min_p > 0:
        ratio = np.exp(x - x.max())
        doubt = min([doubt, *abs(ratio[ratio < 1] - min_p)])
        x = np.where(ratio < min_p, -np.inf, x)
    return x - x.max(), doubt


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(st.integers(0, 2**32 - 1), VALUES)
def test_filters_equal_their_definitions(seed, values):
    draw = np.random.default_rng(seed)
    logits = draw.integers(-24, 24, (B, V)).astype(np.float32) / 4  # with ties
    seen, counts, allowed = draw.random((B, V)) < 0.5, draw.integers(0, 4, (B, V)), draw.random((B, V)) < 0.9
    allowed[:, 0] = True
    ours = np.asarray(filtered(logits, F.make(**values), F.Past(seen, counts, allowed)))
    rows = [reference(logits[row], seen[row], counts[row], allowed[row], **values) for row in range(B)]
    for mine, (theirs, doubt) in zip(ours, rows, strict=True):
        if doubt > 1e-5:
            np.testing.assert_array_equal(np.isfinite(mine), np.isfinite(theirs))
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
    hypothesis.assume(any(doubt > 1e-5 for _, doubt in rows))  # too many of the others are an error


NEUTRAL = {"temperature": 1.0, "top_k": V, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0,
           "presence_penalty": 0.0, "frequency_penalty": 0.0}  # fmt: skip
ACTIVE = {"temperature": 0.7, "top_k": 5, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.5,
          "presence_penalty": 0.7, "frequency_penalty": 0.4}  # fmt: skip


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_filter_alone_equals_it_among_neutral_ones(name):
    logits = jax.random.normal(jax.random.key(0), (B, V)) * 3
    seen = jax.random.bernoulli(jax.random.key(1), 0.5, (B, V))
    past = F.Past(seen, 3 * seen.astype(int))
    alone = F.filtered(logits, F.make(**{name: ACTIVE[name]}), past)
    among = F.filtered(logits, F.make(**{**NEUTRAL, name: ACTIVE[name]}), past)
    neutral = F.filtered(logits, F.make(**NEUTRAL), past)
    np.testing.assert_array_equal(alone, among)
    assert not np.array_equal(alone, neutral)
    np.testing.assert_allclose(neutral, logits - jnp.max(logits, axis=1, keepdims=True), rtol=1e-6)


def test_values_may_differ_from_row_to_row():
    logits = jnp.tile(jnp.arange(4.0), (3, 1))
    kept = jnp.isfinite(F.filtered(logits, F.Filters(top_k=jnp.array([1, 2, 4])))).sum(axis=1)
    assert kept.tolist() == [1, 2, 4]


def test_temperature_zero_is_the_first_of_the_largest_with_and_without_noise():
    logits = jnp.array([[1.0, 3.0, 3.0, 2.0], [-1.0, -2.0, -1.5, -0.5]])
    keys = jax.random.split(jax.random.key(0), 2)
    for filters in (F.make(), F.make(temperature=0.0), F.make(temperature=0.0, top_p=0.5, min_p=0.5, top_k=2)):
        assert F.sample(logits, filters, keys).tolist() == [1, 3]
    mixed = F.Filters(temperature=jnp.array([0.0, 50.0]))
    draws = [F.sample(logits, mixed, jax.random.split(jax.random.key(i), 2)).tolist() for i in range(20)]
    assert {draw[0] for draw in draws} == {1} and len({draw[1] for draw in draws}) > 1


def test_draws_follow_the_softmax_of_the_filtered_logits():
    logits = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.06, 0.04]))
    count = 40_000
    keys = jax.random.split(jax.random.key(3), count)
    filters = F.make(temperature=1.0, top_p=0.85)  # keeps 0.5, 0.25 and 0.15
    tokens = jax.jit(F.sample)(jnp.tile(logits, (count, 1)), filters, keys)
    expected = np.array([0.5, 0.25, 0.15, 0, 0]) / 0.9
    error = np.sqrt(expected * (1 - expected) / count)
    assert np.all(abs(np.bincount(tokens, minlength=5) / count - expected) <= 4 * error)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(hnp.arrays(np.float32, (1, V), elements=st.floats(width=32, allow_nan=False)), st.integers(1, V))
def test_the_kth_largest_is_found_exactly(x, k):
    kept = np.asarray(jax.jit(F.best)(x, jnp.array([[k]], jnp.float32)))[0]
    values = x[0] + np.float32(0)  # a negative zero sorts below a positive one here, and equal in NumPy
    kth = np.sort(values)[-k]
    assert kept[values > kth].all() and not kept[values < kth].any() and kept.sum() >= min(k, V)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(hnp.arrays(np.float32, (2, V), elements=st.sampled_from([-np.inf, -1, -0.0, 0, 2, np.inf, np.nan])))
def test_the_largest_is_argmax(x):
    assert F.largest(jnp.asarray(x)).tolist() == np.argmax(x, axis=-1).tolist()


def test_numbers_beyond_their_type_become_the_nearest():
    logits_BV = jnp.asarray([[0.0, 3.0, 1.0]])
    smallest = F.filtered(logits_BV, F.make(top_p=1e-300))
    assert jnp.isfinite(smallest).tolist() == [[False, True, False]]  # the most probable token alone, not none
    assert jnp.isfinite(F.filtered(logits_BV, F.make(top_k=10**11))).all()
