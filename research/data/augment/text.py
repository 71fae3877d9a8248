"""Augmentations of `tokens`: whole numbers (B, T), of which the first `lengths` (B,) of a row are its text and the rest is left alone.

After "easy data augmentation" (arXiv 1901.11196), with exact counts: at strength s a row of L tokens has round(s L) of them changed, at places drawn
uniformly without repetition. Shapes stay, and lengths follow. Documents on disk are not meant here; what stands in a batch is.
"""

import abc
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from research.core.errors import UserError
from research.data.augment.base import Augmentation, Batch, leaves


class Texts(Augmentation):
    """An augmentation of tokens and their lengths, each row by itself under a key of its own."""

    RANGES = {"strength": (0, 1)}

    def apply(self, batch: Batch, key: jax.Array) -> Batch:
        """Returns the batch with rows of tokens, and lengths, changed."""
        tokens, length = text_of(self, batch)
        made, lengths = jax.vmap(self.row)(tokens, length, jax.random.split(key, len(tokens)))
        return {**batch, "tokens": made.astype(tokens.dtype), "lengths": lengths.astype(length.dtype)}

    @abc.abstractmethod
    def row(self, tokens: jax.Array, length: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the tokens (T,) of a row, and their number, changed."""


@dataclass(frozen=True, eq=False)
class Drawn(Texts):
    """An augmentation that draws new tokens: uniformly from `first` to `vocabulary` - 1, or from the neighbours of a token.

    `neighbours`, whole numbers (V, K) as `neighbours` makes them, names K tokens for each. One of the two is needed.
    """

    strength: ArrayLike = 0.1
    vocabulary: int | None = None
    first: int = 0
    neighbours: jax.Array | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.vocabulary is None and self.neighbours is None:
            raise UserError(f"{type(self).__name__} has no tokens to draw; give vocabulary, its size, or neighbours")
        if self.vocabulary is not None and self.vocabulary - self.first < 2:
            raise UserError(
                f"{type(self).__name__} is to draw tokens from {self.first} to below {self.vocabulary}; expected at least two"
            )

    def other(self, tokens: jax.Array, key: jax.Array) -> jax.Array:
        """Returns a token in place of each of `tokens`, never the same."""
        if self.neighbours is not None:
            among = jax.random.randint(key, tokens.shape, 0, self.neighbours.shape[1])
            return jnp.asarray(self.neighbours)[tokens, among]
        size = (self.vocabulary or 0) - self.first
        return self.first + jnp.mod(tokens - self.first + jax.random.randint(key, tokens.shape, 1, size), size)


@leaves("strength", "neighbours")
@dataclass(frozen=True, eq=False)
class Replace(Drawn):
    """Puts other tokens in the place of a share `strength` of a row's: random ones, or neighbours of those that stood there."""

    def row(self, tokens: jax.Array, length: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the tokens with some replaced, and their number as it was."""
        for_place, for_token = jax.random.split(key)
        places = choose(for_place, jnp.arange(len(tokens)) < length, count(self.strength, length))
        return jnp.where(places, self.other(tokens, for_token), tokens), length


@leaves("strength", "neighbours")
@dataclass(frozen=True, eq=False)
class Insert(Drawn):
    """Inserts tokens, a share `strength` of a row's number but no more than T leaves room for: random ones, or neighbours of tokens of the row."""

    def row(self, tokens: jax.Array, length: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the tokens with others between them, and how many they are now."""
        T = len(tokens)
        for_place, for_token, for_source = jax.random.split(key, 3)
        made = length + jnp.minimum(count(self.strength, length), T - length)
        places = choose(for_place, jnp.arange(T) < made, made - length)
        old = tokens[jnp.cumsum(~places) - 1]
        source = tokens[jax.random.randint(for_source, (T,), 0, jnp.maximum(length, 1))]
        new = jnp.where(places, self.other(source, for_token), old)
        return jnp.where(jnp.arange(T) < made, new, tokens), made


@leaves("strength")
@dataclass(frozen=True)
class Delete(Texts):
    """Takes out a share `strength` of a row's tokens, of which at least one stays. What follows moves up, and `pad` takes the room at the end."""

    strength: ArrayLike = 0.1
    pad: int = 0

    def row(self, tokens: jax.Array, length: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the tokens that stay, and their number."""
        inside = jnp.arange(len(tokens)) < length
        gone = jnp.minimum(count(self.strength, length), jnp.maximum(length - 1, 0))
        kept = compact(tokens, inside & ~choose(key, inside, gone), len(tokens), self.pad)
        return jnp.where(inside, kept, tokens), length - gone


@leaves("strength")
@dataclass(frozen=True)
class Swap(Texts):
    """Lets pairs of tokens change places: a share `strength` of a row's tokens moves, floor(strength L / 2) pairs."""

    strength: ArrayLike = 0.1

    def row(self, tokens: jax.Array, length: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the tokens with some exchanged, and their number as it was."""
        order, rank = shuffled(key, jnp.arange(len(tokens)) < length)
        pairs = jnp.floor(jnp.asarray(self.strength, jnp.float32) * length * 0.5).astype(jnp.int32)
        partner = order[jnp.minimum(rank ^ 1, len(tokens) - 1)]
        return jnp.where(rank < 2 * pairs, tokens[partner], tokens), length


def text_of(who: Augmentation, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Returns `tokens` (B, T) and `lengths` (B,) of a batch. Raises UserError where they are missing or of a wrong kind."""
    return who.need(batch, "tokens", (2,), jnp.integer), who.need(batch, "lengths", (1,), jnp.integer)


def count(share: ArrayLike, length: jax.Array) -> jax.Array:
    """Returns `round(share length)` as int32, halves to even."""
    # rounded after the product alone, so that no fused operation gives another number
    return jnp.round(jnp.asarray(share, jnp.float32) * length).astype(jnp.int32)


def shuffled(key: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the places of `allowed` (T,) in random order, those not allowed last, and the rank of each place in it; both (T,)."""
    order = jnp.argsort(jnp.where(allowed, jax.random.uniform(key, allowed.shape), 2))
    return order, jnp.argsort(order)


def choose(key: jax.Array, allowed: jax.Array, number: ArrayLike) -> jax.Array:
    """Returns which places of `allowed` (T,) are among `number` of them drawn without repetition; all of them if there are no more."""
    return allowed & (shuffled(key, allowed)[1] < number)


def compact(values: jax.Array, keep: jax.Array, size: int, pad: int) -> jax.Array:
    """Returns the values (T,) to keep, in order, followed by `pad`: (size,). What goes beyond is cut off."""
    places = jnp.where(keep, jnp.cumsum(keep) - 1, size)
    return jnp.full((size,), pad, values.dtype).at[places].set(values, mode="drop")


def neighbours(embedding: ArrayLike, number: int, block: int = 256) -> jax.Array:
    """Returns for each row of an embedding table (V, D) the `number` other rows of largest cosine, nearest first: int32 (V, number).

    Cosines are made for `block` rows at a time, in float32. Raises UserError for a number that is not from 1 to V - 1.
    """
    table = jnp.asarray(embedding, jnp.float32)
    V = len(table)
    if not 1 <= number < V:
        raise UserError(f"{number} neighbours of each of {V} tokens are asked for; expected from 1 to {V - 1}")
    norms = jnp.linalg.norm(table, axis=1, keepdims=True)
    table = table / jnp.where(norms > 0, norms, 1)

    def nearest(one: tuple[jax.Array, jax.Array]) -> jax.Array:
        place, row = one
        cosines = jnp.matmul(table, row, precision="highest")
        return jax.lax.top_k(jnp.where(jnp.arange(V) == place, -jnp.inf, cosines), number)[1]

    return jax.lax.map(nearest, (jnp.arange(V), table), batch_size=min(block, V)).astype(jnp.int32)
