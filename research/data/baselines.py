"""What a language model's bits per byte are measured against: a compressor, and a model that looks two bytes back."""

import gzip
import math

import numpy as np


def gzip_bits_per_byte(text: bytes) -> float:
    """The size of `gzip -9` of the text, in bits per byte of it. The compressor starts from nothing."""
    return 8 * len(gzip.compress(text, 9, mtime=0)) / len(text)


def order2_bits_per_byte(train: bytes, text: bytes) -> float:
    """Cross-entropy of `text` under byte counts of `train` given the two bytes before, in bits per byte.

    Each order is smoothed towards the one below it (Witten and Bell, 1991), the lowest towards all bytes alike. The first two
    bytes of the text, which lack a context, are not scored.
    """
    seen, scored = np.frombuffer(train, np.uint8).astype(np.int64), np.frombuffer(text, np.uint8).astype(np.int64)
    p = np.full(max(len(scored) - 2, 0), 1 / 256)
    for order in range(3):
        p = _witten_bell(
            _contexts(seen, order), seen[order:], _contexts(scored, order)[2 - order :], scored[2:], order, p
        )
    return float(-np.log(p).mean() / math.log(2))


def _contexts(ids: np.ndarray, order: int) -> np.ndarray:
    """The `order` bytes before each byte from position `order` on, as one number."""
    if order == 0:
        return np.zeros(len(ids), np.int64)
    return ids[:-1] if order == 1 else ids[:-2] * 256 + ids[1:-1]


def _witten_bell(contexts, following, queries, targets, order: int, lower: np.ndarray) -> np.ndarray:
    """P(target | query): the share of the count, and of the number of kinds seen there for the lower order."""
    counts = np.bincount(contexts * 256 + following, minlength=256 ** (order + 1)).reshape(-1, 256)
    total, kinds = counts.sum(1)[queries], (counts > 0).sum(1)[queries]
    known = total > 0
    mixed = (counts[queries, targets] + kinds * lower) / np.where(known, total + kinds, 1)
    return np.where(known, mixed, lower)
