"""The TPU's flash attention, which skips what the mask hides: JAX's Pallas kernel, on every device of a mesh by itself.

A device has its rows, its heads, and its queries beside all keys: under `sequence` keys and values are gathered, which costs less than the attention
that they serve as long as a device's queries are some thousand.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from research.core import sharding

LANES = 128  # of a TPU's vector unit
BLOCKS = (512, 256, 128)  # positions that the kernel takes at a time, the largest that divides a device's share


def fits(q_BTNH, k_BSKH, mask, bias, rate) -> bool:
    """Whether the kernel has this case: whole rows of a multiple of 128 positions, nothing added to logits, no dropout."""
    T, shards = q_BTNH.shape[1], sharding.axis_size("sequence")
    told = mask.pattern in ("full", "sliding") and mask.query_positions_BT is None and mask.prefix_B is None
    return told and k_BSKH.shape[1] == T and T % (LANES * shards * shards) == 0 and bias is None and rate is None


def attend(q_BTNH, k_BSKH, v_BSKH, mask, *, scale, cap=None, **_) -> jax.Array:
    """Attention's output, (B, T, N, H)."""
    T, N = q_BTNH.shape[1:3]
    tensor = sharding.axis_size("tensor")
    k_BSKH, v_BSKH = (beside_queries(x, N) for x in (k_BSKH, v_BSKH))
    kernel, segments = _kernel(mask, T, N if N % tensor else N // tensor, cap)
    q_BTNH = q_BTNH * jnp.asarray(scale, q_BTNH.dtype)
    q_BNTH, k_BKSH, v_BKSH = (jnp.moveaxis(x, 1, 2) for x in (q_BTNH, k_BSKH, v_BSKH))
    return jnp.moveaxis(_on_shards(kernel, q_BNTH, k_BKSH, v_BKSH, segments), 1, 2)


def beside_queries(x_BSKH: jax.Array, heads: int) -> jax.Array:
    """Keys or values, repeated where `tensor` splits the queries' heads and not theirs, so that every share of heads has its own beside it."""
    tensor, K = sharding.axis_size("tensor"), x_BSKH.shape[2]
    return jnp.repeat(x_BSKH, heads // K, axis=2) if heads % tensor == 0 and K % tensor else x_BSKH


def _kernel(mask, T: int, heads: int, cap: float | None) -> tuple[Any, Any]:
    """(the kernel of a device's heads, segments as it takes them)."""
    import jax.experimental.pallas.ops.tpu.splash_attention as pallas

    shards = sharding.axis_size("sequence")
    block = next(n for n in BLOCKS if T // shards % n == 0)
    sizes = (
        "block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq",
    )  # fmt: skip
    if mask.pattern == "sliding":
        one = pallas.LocalMask((T, T), (mask.window - 1, 0), 0, shard_count=shards)
    else:
        one = pallas.CausalMask((T, T), shard_count=shards)
    kernel = pallas.make_splash_mha(
        pallas.MultiHeadMask([one] * heads), block_sizes=pallas.BlockSizes(**dict.fromkeys(sizes, block)), head_shards=1, q_seq_shards=shards,
        attn_logits_soft_cap=cap, interpret=sharding.platform() == "cpu", residual_checkpoint_name="attention_output",
    )  # fmt: skip
    if mask.query_segments_BT is None or mask.key_segments_BS is None:
        return kernel, None
    return kernel, pallas.SegmentIds(mask.query_segments_BT, mask.key_segments_BS)


def _on_shards(kernel, q_BNTH, k_BKSH, v_BKSH, segments) -> jax.Array:
    """The kernel over rows, on the shards of the mesh in use or, without one, as it is."""

    def attend(kernel, *arrays):
        *qkv, segments = arrays
        H = qkv[0].shape[-1]
        # on the shards: libtpu 0.0.42 fails on padded heads of which a device takes its queries
        qkv = [jnp.pad(x, [(0, 0)] * 3 + [(0, -H % LANES)]) for x in qkv] if H % LANES else qkv
        out = jax.vmap(kernel)(*qkv) if segments is None else jax.vmap(kernel)(*qkv, segments)
        return out[..., :H]

    if not sharding.is_spread():
        return attend(kernel, q_BNTH, k_BKSH, v_BKSH, segments)
    mesh = jax.sharding.get_abstract_mesh()
    q = sharding.spec(("batch", "heads", "sequence", None), q_BNTH.shape, mesh, sharding.rules())
    k = sharding.spec(("batch", "kv_heads", None, None), k_BKSH.shape, mesh, sharding.rules())
    rows = None if segments is None else type(segments)(PartitionSpec(q[0], q[2]), PartitionSpec(q[0], None))
    free = AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    where = kernel.manual_sharding_spec(NamedSharding(free, PartitionSpec(None, q[2])))
    return sharding.on_shards(attend, (where, q, k, k, rows), q)(kernel, q_BNTH, k_BKSH, v_BKSH, segments)
