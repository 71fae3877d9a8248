"""Span corruption (T5, arXiv 1910.10683, section 3.1.4): spans of tokens leave one sentinel each, and the targets say what they were.

tokens     thank you for inviting me to your party last week
inputs     thank you <X> me to your party <Y> week
targets    <X> for inviting <Y> last <Z>
"""

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from research.data.augment.base import Augmentation, Batch, leaves
from research.data.augment.text import choose, compact, count, text_of


@leaves("strength")
@dataclass(frozen=True)
class Spans(Augmentation):
    """Adds `inputs`, `inputs_length`, `targets` and `targets_length` to a batch of `tokens` (B, T) and `lengths` (B,).

    Of L tokens round(strength L) are taken out, at least 1 and at most L - 1, in round(that / mean_span) spans, at least 1; which, and how
    long each is, is uniform among all ways in which no two spans touch. Span j leaves `sentinel` + j `step`, T5's counting down from the end of
    the vocabulary, and there are no more than `sentinels` with the one that ends the targets. Arrays are (B, input_size) and (B, target_size),
    filled with `pad`; by default T and T + 1, which always suffice, while `sizes` gives what a strength needs. What goes beyond them
    is cut off. At strength 0, and for rows of a single token, inputs are the tokens.
    """

    strength: ArrayLike = 0.15
    sentinel: int = field(kw_only=True)
    mean_span: float = 3.0
    step: int = -1
    sentinels: int = 100
    input_size: int | None = None
    target_size: int | None = None
    pad: int = 0
    RANGES = {
        "strength": (0, 1),
        "sentinel": (0, math.inf),
        "mean_span": (1, math.inf),
        "sentinels": (2, math.inf),
        "input_size": (1, math.inf),
        "target_size": (1, math.inf),
    }

    def apply(self, batch: Batch, key: jax.Array) -> Batch:
        """Returns the batch with its inputs and targets."""
        tokens, length = text_of(self, batch)
        names = ("inputs", "inputs_length", "targets", "targets_length")
        made = jax.vmap(self.row)(tokens, length, jax.random.split(key, len(tokens)))
        return {**batch, **dict(zip(names, made, strict=True))}

    def row(self, tokens: jax.Array, length: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
        """Returns inputs and targets of one row, each followed by its length."""
        T = len(tokens)
        input_size, target_size = self.input_size or T, self.target_size or T + 1
        gone = jnp.clip(count(self.strength, length), 1, jnp.maximum(length - 1, 1))
        gone = jnp.where((length > 1) & (jnp.asarray(self.strength) > 0), gone, 0)
        most = jnp.minimum(jnp.minimum(gone, length - gone), self.sentinels - 1)
        parts = jnp.clip(jnp.round(gone / self.mean_span).astype(jnp.int32), jnp.minimum(1, most), most)
        inside = jnp.arange(T) < length
        noise = inside & span_mask(key, T, length, gone, parts)
        first = noise & ~jnp.pad(noise, (1, 0))[:-1]
        marks = (self.sentinel + self.step * (jnp.cumsum(first) - 1)).astype(tokens.dtype)

        inputs = compact(jnp.where(first, marks, tokens), inside & (first | ~noise), input_size, self.pad)
        if input_size == T:  # what follows the text stays where nothing was taken out
            inputs = jnp.where(inside | (gone > 0), inputs, tokens)
        pairs, kept = jnp.stack([marks, tokens], axis=1).ravel(), jnp.stack([first, noise], axis=1).ravel()
        last = (self.sentinel + self.step * parts).astype(tokens.dtype)
        targets = compact(pairs, kept, target_size, self.pad).at[gone + parts].set(last, mode="drop")
        lengths = jnp.minimum(length - gone + parts, input_size), jnp.minimum(gone + parts + 1, target_size)
        return inputs, lengths[0].astype(length.dtype), targets, lengths[1].astype(length.dtype)


def span_mask(key: jax.Array, T: int, length: jax.Array, gone: jax.Array, parts: jax.Array) -> jax.Array:
    """Returns which of T places (T,) lie in spans: `parts` spans of `gone` places in all among the first `length`, none beside another."""
    for_kept, for_gone = jax.random.split(key)
    slots = T // 2 + 2
    spans = random_parts(for_gone, T, gone, parts, slots)
    # what stays lies before, between and behind spans; one place more at both ends lets these two be empty
    kept = random_parts(for_kept, T + 2, length - gone + 2, parts + 1, slots).at[0].add(-1).at[parts].add(-1)
    bounds = jnp.cumsum(jnp.stack([kept, spans], axis=1).ravel())
    changes = jnp.zeros(T + 1, jnp.int32).at[bounds].add(1, mode="drop")[:T]
    return jnp.cumsum(changes) % 2 == 1


def random_parts(key: jax.Array, most: int, items: jax.Array, parts: jax.Array, slots: int) -> jax.Array:
    """Returns the sizes of `parts` parts, none empty, that `items` <= most fall into, uniform among all ways: (slots,), zeros after them."""
    places = jnp.arange(most)
    part = jnp.cumsum(choose(key, (places >= 1) & (places < items), parts - 1))
    return jax.ops.segment_sum((places < items).astype(jnp.int32), part, num_segments=slots)


def sizes(T: int, strength: float = 0.15, mean_span: float = 3.0) -> tuple[int, int]:
    """Returns the `input_size` and `target_size` that rows of up to T tokens need at a strength: 512 tokens at T5's give 461 and 104."""
    share = float(np.round(np.float32(strength) * np.float32(T)))
    gone = int(min(max(share, 1), T - 1)) if strength > 0 and T > 1 else 0
    parts = min(max(round(float(np.float32(gone) / np.float32(mean_span))), 1), gone, T - gone) if gone else 0
    return T - gone + parts, gone + parts + 1
