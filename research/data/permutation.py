"""Pseudo-random permutations of 0 .. n-1 that are computed for the indices asked for, with no list of all of them.

A Feistel network (Luby and Rackoff 1988) permutes the numbers of b bits, the smallest b with 2^b >= n, by rounds that
each change one half by a hash of the other; walking the cycle (Black and Rogaway 2002, section 3) until a number below
n comes up makes it a permutation of exactly n. Keys are mixed by the finaliser of SplitMix64 (Steele, Lea and Flood
2014); the rounds themselves hash by one multiplication, of which the upper bits are taken.
"""

import numpy as np

_ROUNDS = 8  # even, so that both halves are changed equally often; more than the 4 of the proof as the halves are small
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_UPPER = np.uint64(32)
# Orders of 3, 4, 5 and 6 things come out uniform over all the permutations (chi-squared) from 6 bits on, not from 4.
_LEAST_BITS = 6


def mix(values: np.ndarray) -> np.ndarray:
    """Returns a well mixed bijection of 64-bit numbers, elementwise: uint64 arrays (not 0-d) in and out."""
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permute(indices: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """Returns where the permutation of 0 .. n-1 that each key gives sends each index: uint64, [B], indices below n. `keys`: [B], or [1] of all."""
    if n == 1:
        return np.zeros_like(indices)
    bits = max(_LEAST_BITS, (n - 1).bit_length())
    shared = len(keys) == 1
    round_keys = mix(keys + np.arange(2 * _ROUNDS, dtype=np.uint64)[:, None] * _GOLDEN)
    result = _feistel(indices, bits, round_keys)
    while (outside := np.flatnonzero(result >= n)).size:
        result[outside] = _feistel(result[outside], bits, round_keys if shared else round_keys[:, outside])
    return result


def _feistel(values: np.ndarray, bits: int, round_keys: np.ndarray) -> np.ndarray:
    low_bits, high_bits = bits // 2, bits - bits // 2
    low_mask, high_mask = np.uint64((1 << low_bits) - 1), np.uint64((1 << high_bits) - 1)
    low, high = values & low_mask, values >> np.uint64(low_bits)
    for a, b, c, d in zip(*(round_keys[start::4] for start in range(4)), strict=True):
        high = high ^ (low * a + b >> _UPPER & high_mask)
        low = low ^ (high * c + d >> _UPPER & low_mask)
    return high << np.uint64(low_bits) | low
