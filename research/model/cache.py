"""The key/value cache: one slot a layer, absolute positions stored with the keys, rings for windowed layers.

Rows of a batch have lengths of their own; each writes at its own. A key at position -1 is empty, so padding needs no other mask.
"""

import jax
import jax.numpy as jnp
from flax import struct

from research.model.config import ModelConfig, Slot


@struct.dataclass
class LayerCache:
    """Keys and values (B, S, K, H) and the absolute position of each slot (B, S)."""

    k_BSKH: jax.Array
    v_BSKH: jax.Array
    positions_BS: jax.Array


@struct.dataclass
class Cache:
    """A LayerCache for every layer, in order, and how many tokens each row holds."""

    layers: tuple[LayerCache, ...]
    lengths_B: jax.Array


def slot_length(slot: Slot, config: ModelConfig, length: int, draft: int) -> int:
    """How many keys a layer keeps: a sliding layer its window and the draft, any other all of them."""
    return min(length, config.window + draft) if slot.pattern == "sliding" else length


def init(config: ModelConfig, batch: int, length: int, dtype, draft: int = 1) -> Cache:
    """An empty cache for `length` tokens a row; up to `draft` tokens may be appended at once without a look outside the ring."""
    layers = []
    for slots, repeats in config.segments:
        for slot in slots * repeats:
            shape = (batch, slot_length(slot, config, length, draft), config.K, config.H)
            zeros = jnp.zeros(shape, dtype)
            layers.append(LayerCache(k_BSKH=zeros, v_BSKH=zeros, positions_BS=jnp.full(shape[:2], -1, jnp.int32)))
    return Cache(layers=tuple(layers), lengths_B=jnp.zeros((batch,), jnp.int32))


def write(layer: LayerCache, k_BTKH: jax.Array, v_BTKH: jax.Array, positions_BT: jax.Array) -> LayerCache:
    """The layer with these keys written at their positions modulo the ring; position -1, and what a ring would lose at once, is dropped."""
    S = layer.positions_BS.shape[1]
    newest = jnp.max(positions_BT, axis=1, keepdims=True)
    kept = (positions_BT >= 0) & (positions_BT > newest - S)
    slots_BT = jnp.where(kept, positions_BT % S, S)
    rows_B1 = jnp.arange(positions_BT.shape[0])[:, None]

    def put(old, new):
        return old.at[rows_B1, slots_BT].set(new.astype(old.dtype), mode="drop")

    return LayerCache(
        k_BSKH=put(layer.k_BSKH, k_BTKH),
        v_BSKH=put(layer.v_BSKH, v_BTKH),
        positions_BS=put(layer.positions_BS, positions_BT),
    )


def extend(layer: LayerCache, k_BTKH, v_BTKH, positions_BT, slot: Slot, config: ModelConfig):
    """`(layer after writing, keys to attend to, values, their positions)`.

    A few tokens fit beside their window in the ring and are attended to after the write. More (a prefill) would overwrite keys that
    their own first tokens still need, so those attend to the old slots and the new keys side by side.
    """
    S, T = layer.positions_BS.shape[1], k_BTKH.shape[1]
    after = write(layer, k_BTKH, v_BTKH, positions_BT)
    if slot.pattern != "sliding" or T + config.window - 1 <= S:
        return after, after.k_BSKH, after.v_BSKH, after.positions_BS
    joined = (jnp.concatenate(pair, axis=1) for pair in ((layer.k_BSKH, k_BTKH.astype(layer.k_BSKH.dtype)),
              (layer.v_BSKH, v_BTKH.astype(layer.v_BSKH.dtype)), (layer.positions_BS, positions_BT)))  # fmt: skip
    return after, *joined
