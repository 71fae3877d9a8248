"""The key/value cache: one slot a layer, absolute positions stored with the keys, rings for windowed layers.

Rows of a batch have lengths of their own; each writes at its own. A key at position -1 is empty, so padding needs no other mask.
"""

import jax
import jax.numpy as jnp
from flax import struct

from research.core import sharding
from research.model.config import ModelConfig, Slot


@struct.dataclass
class LayerCache:
    """Keys and values (B, S, K, H) and the absolute position of each slot (B, S). Those in int8 are multiples of a scale a head."""

    k_BSKH: jax.Array
    v_BSKH: jax.Array
    positions_BS: jax.Array
    k_scale_BSK: jax.Array | None = None
    v_scale_BSK: jax.Array | None = None


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
            shape = (batch, slot_length(slot, config, length, draft), config.K, config.H)
            zeros = jnp.zeros(shape, dtype)
            scale = jnp.zeros(shape[:3], jnp.float32) if zeros.dtype == jnp.int8 else None
            layers.append(
                LayerCache(
                    k_BSKH=zeros,
                    v_BSKH=zeros,
                    positions_BS=jnp.full(shape[:2], -1, jnp.int32),
                    k_scale_BSK=scale,
                    v_scale_BSK=scale,
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

    def put(old, new):
        return old.at[rows_B1, slots_BT].set(new.astype(old.dtype), mode="drop")

    new = LayerCache(k_BSKH=k_BTKH, v_BSKH=v_BTKH, positions_BS=positions_BT)
    return jax.tree.map(put, layer, new if layer.k_scale_BSK is None else _quantised(new))


def _quantised(layer: LayerCache) -> LayerCache:
    """Keys and values as int8 and their scales: each entry is off by at most its head's largest, over 254."""

    def one(x):
        x = x.astype(jnp.float32)
        scale = jnp.max(jnp.abs(x), axis=-1) / 127
        return jnp.round(x / jnp.where(scale == 0, 1, scale)[..., None]).astype(jnp.int8), scale

    (k_BSKH, k_scale_BSK), (v_BSKH, v_scale_BSK) = one(layer.k_BSKH), one(layer.v_BSKH)
    return LayerCache(k_BSKH, v_BSKH, layer.positions_BS, k_scale_BSK, v_scale_BSK)


def read(layer: LayerCache, dtype) -> tuple[jax.Array, jax.Array]:
    """Keys and values (B, S, K, H) as they are, or where they are in int8, in `dtype`."""
    if layer.k_scale_BSK is None or layer.v_scale_BSK is None:
        return layer.k_BSKH, layer.v_BSKH
    k_BSKH = layer.k_BSKH * layer.k_scale_BSK[..., None]
    v_BSKH = layer.v_BSKH * layer.v_scale_BSK[..., None]
    return k_BSKH.astype(dtype), v_BSKH.astype(dtype)


def extend(layer: LayerCache, k_BTKH, v_BTKH, positions_BT, slot: Slot, config: ModelConfig):
    """`(layer after writing, keys to attend to, values, their positions)`.

    A few tokens fit beside their window in the ring and are attended to after the write. More (a prefill) would overwrite keys that
    their own first tokens still need, so those attend to the old slots and the new keys side by side.
    """
    S, T = layer.positions_BS.shape[1], k_BTKH.shape[1]
    after = write(layer, k_BTKH, v_BTKH, positions_BT)
    if slot.pattern != "sliding" or T + config.window - 1 <= S:
        return after, *read(after, k_BTKH.dtype), after.positions_BS
    k_BSKH, v_BSKH = read(layer, k_BTKH.dtype)
    joined = (jnp.concatenate(pair, axis=1) for pair in ((k_BSKH, k_BTKH.astype(k_BSKH.dtype)),
              (v_BSKH, v_BTKH.astype(v_BSKH.dtype)), (layer.positions_BS, positions_BT)))  # fmt: skip
    return after, *joined


def constrain(cache: Cache) -> Cache:
    """The cache held to its sharding on the mesh in use: rows over the data axes, key/value heads over `tensor`."""

    axes = ("batch", None, "kv_heads", "head")
    return jax.tree.map(lambda x: sharding.constrain(x, *axes[: x.ndim]), cache)
