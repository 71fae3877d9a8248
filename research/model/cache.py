"""The key/value cache: one slot a layer, absolute positions stored with the keys, rings for windowed layers.

Rows of a batch have lengths of their own; each writes at its own. A key at position -1 is empty, so padding needs no other mask.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from research.core import sharding
from research.model.config import ModelConfig, Slot


@struct.dataclass
class LayerCache:
    """Keys and values (B, K, S, H) and the absolute position of each slot (B, S). Those in int8 are multiples of a scale a head.

    Heads come before slots, as attention reads them: what it reads is then one run of bytes a head.
    """

    k_BKSH: jax.Array
    v_BKSH: jax.Array
    positions_BS: jax.Array
    k_scale_BKS: jax.Array | None = None
    v_scale_BKS: jax.Array | None = None


@struct.dataclass
class Cache:
    """A LayerCache for every layer, in order, and how many tokens each row holds."""

    layers: tuple[LayerCache, ...]
    lengths_B: jax.Array


def slot_length(slot: Slot, config: ModelConfig, length: int, draft: int) -> int:
    """How many keys a layer keeps: a sliding layer its window and the draft, any other all of them."""
    return min(length, config.window + draft) if slot.pattern == "sliding" else length


def init(config: ModelConfig, batch: int, length: int, dtype, draft: int = 1) -> Cache:
    """An empty cache for `length` tokens a row; up to `draft` tokens may be appended at once without a look outside the ring.

    With the dtype int8, what is written is rounded to 255 steps between plus and minus its head's largest entry.
    """
    layers = []
    for slots, repeats in config.segments:
        for slot in slots * repeats:
            slots_kept = slot_length(slot, config, length, draft)
            shape = (batch, config.K, slots_kept, config.H)
            zeros = jnp.zeros(shape, dtype)
            scale = jnp.zeros(shape[:3], jnp.float32) if zeros.dtype == jnp.int8 else None
            layers.append(
                LayerCache(
                    k_BKSH=zeros,
                    v_BKSH=zeros,
                    positions_BS=jnp.full((batch, slots_kept), -1, jnp.int32),
                    k_scale_BKS=scale,
                    v_scale_BKS=scale,
                )
            )
    return Cache(layers=tuple(layers), lengths_B=jnp.zeros((batch,), jnp.int32))


def write(layer: LayerCache, k_BTKH: jax.Array, v_BTKH: jax.Array, positions_BT: jax.Array) -> LayerCache:
    """The layer with these keys written at their positions modulo the ring; position -1, and what a ring would lose at once, is dropped."""
    S = layer.positions_BS.shape[1]
    newest = jnp.max(positions_BT, axis=1, keepdims=True)
    kept = (positions_BT >= 0) & (positions_BT > newest - S)
    slots_BT = jnp.where(kept, positions_BT % S, S)
    rows_B1 = jnp.arange(positions_BT.shape[0])[:, None]

    def put(old, new_BT):
        new_BT = new_BT.astype(old.dtype)
        if kept.size == 1:
            return _put_one(old, new_BT, kept[0, 0], positions_BT[0, 0] % S)
        at = (rows_B1, slots_BT) if old.ndim == 2 else (rows_B1, slice(None), slots_BT)
        return old.at[at].set(new_BT, mode="drop")

    if layer.k_scale_BKS is None:
        return jax.tree.map(put, layer, LayerCache(k_BTKH, v_BTKH, positions_BT))
    (k_BTKH, k_scale_BTK), (v_BTKH, v_scale_BTK) = _quantised(k_BTKH), _quantised(v_BTKH)
    return jax.tree.map(put, layer, LayerCache(k_BTKH, v_BTKH, positions_BT, k_scale_BTK, v_scale_BTK))


def _put_one(old: jax.Array, new_BT: jax.Array, kept: jax.Array, slot: jax.Array) -> jax.Array:
    """`old` with the only new entry at its slot, if it is kept. What would be a scatter for several is a slice updated in place here."""
    axis = min(2, old.ndim - 1)
    new = jnp.moveaxis(new_BT, 1, axis) if old.ndim > 2 else new_BT
    before = jax.lax.dynamic_slice_in_dim(old, slot, 1, axis)
    return jax.lax.dynamic_update_slice_in_dim(old, jnp.where(kept, new, before), slot, axis)


def _quantised(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`x` (..., H) as int8 and its scales (...): each entry is off by at most its head's largest, over 254."""
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / 127
    return jnp.round(x / jnp.where(scale == 0, 1, scale)[..., None]).astype(jnp.int8), scale


def read(layer: LayerCache, dtype) -> tuple[jax.Array, jax.Array]:
    """Keys and values, seen as (B, S, K, H): as they are, or where they are in int8, in `dtype`."""
    k_BKSH, v_BKSH = layer.k_BKSH, layer.v_BKSH
    if layer.k_scale_BKS is not None and layer.v_scale_BKS is not None:
        k_BKSH = (k_BKSH * layer.k_scale_BKS[..., None]).astype(dtype)
        v_BKSH = (v_BKSH * layer.v_scale_BKS[..., None]).astype(dtype)
    return jnp.moveaxis(k_BKSH, 1, 2), jnp.moveaxis(v_BKSH, 1, 2)


def extend(layer: LayerCache, k_BTKH, v_BTKH, positions_BT, slot: Slot, config: ModelConfig):
    """`(layer after writing, keys to attend to, values, their positions)`.

    A few tokens fit beside their window in the ring and are attended to after the write. More (a prefill) would overwrite keys that
    their own first tokens still need, so those attend to the old slots and the new keys side by side.
    """
    S, T = layer.positions_BS.shape[1], k_BTKH.shape[1]
    # The barrier keeps XLA from updating a copy of the cache once more for whoever reads it.
    after = jax.lax.optimization_barrier(write(layer, k_BTKH, v_BTKH, positions_BT))
    if slot.pattern != "sliding" or T + config.window - 1 <= S:
        return after, *read(after, k_BTKH.dtype), after.positions_BS
    k_BSKH, v_BSKH = read(layer, k_BTKH.dtype)
    joined = (jnp.concatenate(pair, axis=1) for pair in ((k_BSKH, k_BTKH.astype(k_BSKH.dtype)),
              (v_BSKH, v_BTKH.astype(v_BSKH.dtype)), (layer.positions_BS, positions_BT)))  # fmt: skip
    return after, *joined


def constrain(cache: Cache) -> Cache:
    """The cache held to its sharding on the mesh in use: rows over the data axes, key/value heads over `tensor`."""

    def one(layer: LayerCache) -> LayerCache:
        axes = ("batch", "kv_heads", None, "head")
        held = jax.tree.map(lambda x: sharding.constrain(x, *axes[: x.ndim]), layer)
        return dataclasses.replace(held, positions_BS=sharding.constrain(layer.positions_BS, "batch", None))

    return Cache(tuple(map(one, cache.layers)), sharding.constrain(cache.lengths_B, "batch"))
