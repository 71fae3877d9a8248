"""Attention behind one seam: q, k, v, a structured mask and a structured bias in; the implementation is chosen here.

softmax(q k^T / sqrt(H) + bias) v ("Attention Is All You Need", equation 1) over the keys that the mask allows. The mask is a record of
what it is (pattern, positions, segments), never a dense array of booleans, so a fused kernel can be told it in its own terms.
"""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from research.core.dtypes import at_least_float32
from research.core.errors import UserError
from research.model.layers import dropout, soft_cap

BLOCK = 512  # queries in a block of the blocked implementation
BLOCKED_FROM = 2048  # keys from which blocks pay for themselves


@struct.dataclass
class Mask:
    """Which keys a query sees: those at or before its position, of its segment, that the pattern allows.

    `full` sees all of them, `sliding` the last `window` (itself included), `strided` those and every `stride`-th further
    back (Sparse Transformers, arXiv 1904.10509). Positions are None when both run 0, 1, 2, ...; a key at position -1 is empty.
    """

    pattern: str = struct.field(pytree_node=False, default="full")
    window: int = struct.field(pytree_node=False, default=0)
    stride: int = struct.field(pytree_node=False, default=0)
    query_positions_BT: jax.Array | None = None
    key_positions_BS: jax.Array | None = None
    query_segments_BT: jax.Array | None = None
    key_segments_BS: jax.Array | None = None

    def positions(self, T: int, S: int) -> tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]:
        """Query and key positions that broadcast to (B, T, S): constants where they are the plain ones."""
        q = np.arange(T)[None] if self.query_positions_BT is None else self.query_positions_BT
        k = np.arange(S)[None] if self.key_positions_BS is None else self.key_positions_BS
        return q[:, :, None], k[:, None, :]

    def allowed(self, T: int, S: int) -> jax.Array | np.ndarray:
        """The booleans, (B, T, S) or (1, T, S), for implementations that compute every logit."""
        q, k = self.positions(T, S)
        back = q - k
        seen = (back >= 0) & (k >= 0)
        if self.pattern != "full":
            near = back < self.window
            seen = seen & (near | (back % self.stride == 0) if self.pattern == "strided" else near)
        if self.query_segments_BT is not None and self.key_segments_BS is not None:
            seen = seen & (self.query_segments_BT[:, :, None] == self.key_segments_BS[:, None, :])
        return seen


@struct.dataclass
class Bias:
    """ALiBi: `-slope * distance` for each query head."""

    slopes_N: np.ndarray = struct.field(pytree_node=False)


def probabilities(
    q_BTNH, k_BSKH, mask: Mask, *, scale: float, cap: float | None = None, bias: Bias | None = None
) -> jax.Array:
    """The attention pattern, (B, N, T, S), in at least float32. Rows that see nothing come out uniform, never NaN."""
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    q_BTKGH = (q_BTNH * jnp.asarray(scale, q_BTNH.dtype)).reshape(B, T, K, N // K, H)
    logits_BKGTS = at_least_float32(jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH))
    logits_BNTS = soft_cap(logits_BKGTS, cap).reshape(B, N, T, S)
    if bias is not None:
        q, k = mask.positions(T, S)
        distance = jnp.asarray(q - k, logits_BNTS.dtype)[:, None]
        logits_BNTS = logits_BNTS - jnp.asarray(bias.slopes_N, logits_BNTS.dtype)[None, :, None, None] * distance
    logits_BNTS = jnp.where(mask.allowed(T, S)[:, None], logits_BNTS, jnp.finfo(logits_BNTS.dtype).min)
    return jax.nn.softmax(logits_BNTS, axis=-1)


def plain(q_BTNH, k_BSKH, v_BSKH, mask: Mask, *, scale, cap=None, bias=None, rate=None, key=None) -> jax.Array:
    """Every logit at once: the reference, and the fastest on CPU at short context. Returns (B, T, N, H)."""
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    p_BNTS = dropout(probabilities(q_BTNH, k_BSKH, mask, scale=scale, cap=cap, bias=bias), rate, key)
    p_BKGTS = p_BNTS.astype(v_BSKH.dtype).reshape(B, K, N // K, T, S)
    return jnp.einsum("BKGTS,BSKH->BTKGH", p_BKGTS, v_BSKH).reshape(B, T, N, H)


def blocked(q_BTNH, k_BSKH, v_BSKH, mask: Mask, *, scale, cap=None, bias=None, rate=None, key=None) -> jax.Array:
    """`plain` over blocks of queries, recomputed in the backward pass: memory grows with T, not T squared."""
    B, T, N, H = q_BTNH.shape
    S = k_BSKH.shape[1]
    q_pos, k_pos = (
        jnp.broadcast_to(x, (B, x.shape[1])) for x in (mask.positions(T, S)[0][:, :, 0], mask.positions(T, S)[1][:, 0])
    )
    pad = -T % BLOCK
    pieces = {"q": q_BTNH, "positions": q_pos}
    if mask.query_segments_BT is not None:
        pieces["segments"] = mask.query_segments_BT

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B, -1, BLOCK, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def one(block):
        index, piece = block
        here = dataclasses.replace(
            mask, query_positions_BT=piece["positions"], key_positions_BS=k_pos, query_segments_BT=piece.get("segments")
        )
        here_key = None if key is None else jax.random.fold_in(key, index)
        return plain(piece["q"], k_BSKH, v_BSKH, here, scale=scale, cap=cap, bias=bias, rate=rate, key=here_key)

    blocks = jax.tree.map(split, pieces)
    out = jax.lax.map(one, (jnp.arange((T + pad) // BLOCK), blocks))
    return jnp.moveaxis(out, 0, 1).reshape(B, T + pad, N, H)[:, :T]


def cudnn(q_BTNH, k_BSKH, v_BSKH, mask: Mask, *, scale, **_) -> jax.Array:
    """cuDNN's flash attention, told the mask in its own terms."""
    window = (mask.window - 1, 0) if mask.pattern == "sliding" else None
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, scale=scale, is_causal=True, local_window_size=window, implementation="cudnn"
    )


def cudnn_fits(q_BTNH, k_BSKH, mask: Mask, cap, bias, rate) -> bool:
    """Whether cuDNN has this case: half precision, head size a multiple of 8 up to 256, plain positions, nothing on the logits."""
    H = q_BTNH.shape[-1]
    plain_mask = mask.query_positions_BT is None and mask.query_segments_BT is None and mask.pattern != "strided"
    half = q_BTNH.dtype in (jnp.bfloat16, jnp.float16)
    return half and H % 8 == 0 and H <= 256 and plain_mask and cap is None and bias is None and rate is None


@functools.cache
def _say(name: str) -> None:
    logging.getLogger(__name__).info("attention: %s implementation", name)


def choose(q_BTNH, k_BSKH, mask: Mask, cap, bias, rate) -> str:
    """The implementation for this device and case."""
    if jax.default_backend() == "gpu" and cudnn_fits(q_BTNH, k_BSKH, mask, cap, bias, rate):
        return "cudnn"
    return "blocked" if k_BSKH.shape[1] >= BLOCKED_FROM and q_BTNH.shape[1] > BLOCK else "plain"


def attend(
    q_BTNH, k_BSKH, v_BSKH, mask: Mask, *, scale, cap=None, bias=None, rate=None, key=None, implementation="auto"
) -> jax.Array:
    """Attention's output, (B, T, N, H). `rate` and `key` drop attention weights; absent without both."""
    rate = None if key is None else rate
    if implementation == "cudnn" and not cudnn_fits(q_BTNH, k_BSKH, mask, cap, bias, rate):
        raise UserError(
            "model.attention is cudnn, which needs bfloat16 or float16, a head size that is a multiple of 8 up to 256, no dropout, "
            "soft cap or ALiBi, whole documents and no strided pattern; use auto"
        )
    name = choose(q_BTNH, k_BSKH, mask, cap, bias, rate) if implementation == "auto" else implementation
    _say(name)
    function = {"plain": plain, "blocked": blocked, "cudnn": cudnn}[name]
    return function(q_BTNH, k_BSKH, v_BSKH, mask, scale=scale, cap=cap, bias=bias, rate=rate, key=key)
