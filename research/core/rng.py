"""Random keys as functions of names and step numbers, so that nothing about randomness needs to be stored."""

import hashlib

import jax


def name_to_int(name: str) -> int:
    """A stable 32-bit number for a name (Python's own `hash` differs from process to process)."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def fold(key: jax.Array, *parts: str | int | jax.Array) -> jax.Array:
    """`fold_in` of each part in turn: strings by a stable hash, numbers (traced or not) as they are."""
    for part in parts:
        key = jax.random.fold_in(key, name_to_int(part) if isinstance(part, str) else part)
    return key


def key(seed, *parts: str | int | jax.Array) -> jax.Array:
    """The key of `parts` under a seed, which may be traced: `key(seed, "dropout", step)`."""
    return fold(jax.random.key(seed), *parts)
