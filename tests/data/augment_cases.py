"""Small batches, and every augmentation of a kind in one compiled program over keys and strengths."""

import functools

import jax
import numpy as np
from hypothesis import strategies as st

from research.data.augment.chain import REGISTRY, augment, parse

ROWS, T, VOCABULARY = 6, 24, 50
SIZES = {"classes": 4, "vocabulary": VOCABULARY}
keys = st.integers(0, 2**32 - 1)
run = jax.jit(augment)


@functools.cache
def batch_of(what: str) -> dict[str, np.ndarray]:
    """ROWS rows of random images of 12 x 16, sounds and spectrograms, or distinct tokens of different lengths."""
    draw = np.random.default_rng(7)
    if what == "image":
        image = draw.random((ROWS, 12, 16, 3), np.float32)
        return {"image": image, "label": np.arange(ROWS, dtype=np.int32) % 4}
    if what == "audio":
        audio, mel = draw.normal(size=(ROWS, 600)), draw.normal(size=(ROWS, 40, 20))
        return {"audio": audio.astype(np.float32), "mel": mel.astype(np.float32)}
    tokens = np.stack([draw.permutation(VOCABULARY - 10)[:T] for _ in range(ROWS)]).astype(np.int32)
    return {"tokens": tokens, "lengths": np.array([T, 20, 10, 2, 1, 0], np.int32)}


def names(what: str) -> list[str]:
    return list(REGISTRY[what])


@functools.cache
def _each(what: str):
    chain = dict(zip(names(what), parse(names(what), what, **SIZES), strict=True))

    @jax.jit
    def program(batch, key, strengths):
        return {name: one(batch, key, strengths[name]) for name, one in chain.items()}

    return program, {name: np.float32(one.strength) for name, one in chain.items()}


def each(what: str, seed: int, share: float = 1.0, batch=None) -> dict[str, dict[str, np.ndarray]]:
    """What every augmentation by itself makes of a batch at a share of its default strength, by its name."""
    program, defaults = _each(what)
    strengths = {name: np.float32(share * strength) for name, strength in defaults.items()}
    made = program(batch_of(what) if batch is None else batch, jax.random.key(seed), strengths)
    return jax.tree.map(np.asarray, made)
