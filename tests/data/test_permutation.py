"""Permutations by index: bijective for every n, different for every key, and not close to the identity."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data.permutation import mix, permute


def whole(n: int, key: int) -> np.ndarray:
    return permute(np.arange(n, dtype=np.uint64), n, np.full(n, key, np.uint64))


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_bijection_for_any_n_and_key(n, key):
    assert sorted(whole(n, key)) == list(range(n))


@given(st.integers(2**30, 2**50), st.integers(0, 2**64 - 1))
def test_large_n_stays_inside_and_distinct(n, key):
    indices = np.unique(np.linspace(0, n - 1, 50).astype(np.uint64))
    result = permute(indices, n, np.full(len(indices), key, np.uint64))
    assert result.max() < n
    assert len(np.unique(result)) == len(indices)


def test_rows_with_their_own_keys_equal_rows_alone():
    n, keys = 1000, mix(np.arange(7, dtype=np.uint64))
    indices = np.arange(100, 107, dtype=np.uint64)
    alone = [permute(indices[i : i + 1], n, keys[i : i + 1])[0] for i in range(7)]
    assert permute(indices, n, keys).tolist() == alone


@pytest.mark.parametrize("n", [3, 4, 5])
def test_every_order_of_a_few_things_is_equally_likely(n):
    draws = 20_000
    keys = mix(np.arange(draws, dtype=np.uint64))
    columns = [permute(np.full(draws, i, np.uint64), n, keys).astype(np.int64) for i in range(n)]
    _, counts = np.unique(sum(column * n**i for i, column in enumerate(columns)), return_counts=True)
    orders = math.factorial(n)
    assert len(counts) == orders
    expected = draws / orders
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared < orders - 1 + 5 * math.sqrt(2 * (orders - 1))


def test_neighbours_are_scattered_and_keys_differ():
    n = 100_000
    one, other = whole(n, 1).astype(np.int64), whole(n, 2).astype(np.int64)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.02
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(one, np.arange(n))[0, 1]) < 0.02
