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
from jax.sharding import PartitionSpec

from research.core import sharding
from research.core.dtypes import at_least_float32
from research.core.errors import UserError
from research.model import splash
from research.model.layers import dropout, soft_cap

BLOCK = 512  # queries in a block of the blocked implementation
BLOCKED_FROM = 2048  # keys from which blocks pay for themselves
FEW = 8  # queries that are few beside their keys: decoding
PARTS, PART = 4, 64  # a causal square is computed in at most so many parts, of at least so many queries


@struct.dataclass
class Mask:
    """Which keys a query sees: those at or before its position, of its segment, that the pattern allows.

    `full` sees all of them, `sliding` the last `window` (itself included), `strided` those and every `stride`-th further
    back (Sparse Transformers, arXiv 1904.10509), `prefix` all of them and every key before its row's prefix length (GLM, arXiv 2103.10360),
    `bidirectional` every key on either side.
    Positions are None when both run 0, 1, 2, ...; a key at position -1 is empty.
    """

    pattern: str = struct.field(pytree_node=False, default="full")
    window: int = struct.field(pytree_node=False, default=0)
    stride: int = struct.field(pytree_node=False, default=0)
    query_positions_BT: jax.Array | None = None
    key_positions_BS: jax.Array | None = None
    query_segments_BT: jax.Array | None = None
    key_segments_BS: jax.Array | None = None
    prefix_B: jax.Array | None = None

    def part(self, queries: slice, keys: slice, T: int, S: int) -> "Mask":
        """The mask between some of T queries and some of S keys."""
        q, k = self.positions(T, S)
        segments = {
            name: None if x is None else x[:, where]
            for name, x, where in (
                ("query_segments_BT", self.query_segments_BT, queries),
                ("key_segments_BS", self.key_segments_BS, keys),
            )
        }
        return dataclasses.replace(
            self, query_positions_BT=q[:, queries, 0], key_positions_BS=k[:, 0, keys], **segments
        )

    def positions(self, T: int, S: int) -> tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]:
        """Query and key positions that broadcast to (B, T, S): constants where they are the plain ones."""
        q = np.arange(T)[None] if self.query_positions_BT is None else self.query_positions_BT
        k = np.arange(S)[None] if self.key_positions_BS is None else self.key_positions_BS
        return q[:, :, None], k[:, None, :]

    def allowed(self, T: int, S: int) -> jax.Array | np.ndarray:
        """The booleans, (B, T, S) or (1, T, S), for implementations that compute every logit."""
        q, k = self.positions(T, S)
        back = q - k
        seen = (k >= 0) & ((back >= 0) | (self.pattern == "bidirectional"))
        if self.pattern == "prefix":
            if self.prefix_B is not None:
                seen = seen | ((k >= 0) & (k < self.prefix_B[:, None, None]))
        elif self.pattern not in ("full", "bidirectional"):
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
    B, T, N = q_BTNH.shape[:3]
    q_BKGTH = _heads_first(q_BTNH * jnp.asarray(scale, q_BTNH.dtype), k_BSKH.shape[2])
    return _probabilities(q_BKGTH, jnp.moveaxis(k_BSKH, 1, 2), mask, cap, bias).reshape(B, N, T, -1)


def _heads_first(q_BTNH, K: int) -> jax.Array:
    B, T, N, H = q_BTNH.shape
    return jnp.moveaxis(q_BTNH, 1, 2).reshape(B, K, N // K, T, H)


def _probabilities(q_BKGTH, k_BKSH, mask: Mask, cap: float | None, bias: Bias | None) -> jax.Array:
    """The pattern of scaled queries, (B, K, G, T, S)."""
    B, K, G, T = q_BKGTH.shape[:4]
    S = k_BKSH.shape[2]
    if T <= FEW:  # keys first: they are read as they lie, not turned around
        logits_BKGTS = jnp.moveaxis(jnp.einsum("BKSH,BKGTH->BKSGT", k_BKSH, q_BKGTH), 2, 4)
    else:
        logits_BKGTS = jnp.einsum("BKGTH,BKSH->BKGTS", q_BKGTH, k_BKSH)
    logits_BKGTS = at_least_float32(logits_BKGTS)
    logits_BNTS = soft_cap(logits_BKGTS, cap).reshape(B, K * G, T, S)
    if bias is not None:
        q, k = mask.positions(T, S)
        distance = jnp.abs(jnp.asarray(q - k, logits_BNTS.dtype))[:, None]
        logits_BNTS = logits_BNTS - jnp.asarray(bias.slopes_N, logits_BNTS.dtype)[None, :, None, None] * distance
    logits_BNTS = jnp.where(mask.allowed(T, S)[:, None], logits_BNTS, jnp.finfo(logits_BNTS.dtype).min)
    return jax.nn.softmax(logits_BNTS, axis=-1).reshape(B, K, G, T, S)


def causal_parts(mask: Mask, T: int, S: int) -> list[tuple[slice, slice]]:
    """Runs of queries with the keys that any of them can see, where that is known before the positions are."""
    count = min(PARTS, T // PART)
    known = mask.query_positions_BT is None and mask.key_positions_BS is None and T == S and mask.prefix_B is None
    if mask.pattern == "bidirectional" or not known or count < 2 or sharding.axis_size("sequence") > 1:
        return [(slice(0, T), slice(0, S))]
    size = -(-T // count)
    window = mask.window if mask.pattern == "sliding" else T
    return [(slice(a, a + size), slice(max(0, a + 1 - window), min(a + size, S))) for a in range(0, T, size)]


def plain(q_BTNH, k_BSKH, v_BSKH, mask: Mask, *, scale, cap=None, bias=None, rate=None, key=None) -> jax.Array:
    """Every logit at once: the reference, and the fastest on CPU at short context. Returns (B, T, N, H).

    A causal pattern is computed in a few parts, each with the keys up to its last query: with four of them, five eighths of the square.
    Heads come first while attending, which saves XLA's CPU compiler from choosing slower layouts.
    """
    B, T, N, H = q_BTNH.shape
    q_BKGTH = _heads_first(q_BTNH * jnp.asarray(scale, q_BTNH.dtype), k_BSKH.shape[2])
    k_BKSH, v_BKSH = jnp.moveaxis(k_BSKH, 1, 2), jnp.moveaxis(v_BSKH, 1, 2)
    parts, outs = causal_parts(mask, T, k_BSKH.shape[1]), []
    for i, (queries, keys) in enumerate(parts):
        here = mask if len(parts) == 1 else mask.part(queries, keys, T, k_BSKH.shape[1])
        p_BKGTS = _probabilities(q_BKGTH[:, :, :, queries], k_BKSH[:, :, keys], here, cap, bias)
        p_BKGTS = dropout(p_BKGTS, rate, None if key is None else jax.random.fold_in(key, i)).astype(v_BKSH.dtype)
        seen_BKSH = v_BKSH[:, :, keys]
        outs.append(jnp.einsum("BKGTS,BKSH->BKGTH", p_BKGTS, seen_BKSH))
    return jnp.moveaxis(jnp.concatenate(outs, axis=3).reshape(B, N, T, H), 1, 2)


def blocked(q_BTNH, k_BSKH, v_BSKH, mask: Mask, *, scale, cap=None, bias=None, rate=None, key=None) -> jax.Array:
    """`plain` over blocks of queries, recomputed in the backward pass: memory grows with T, not T squared.

    Under `sequence` every device goes over the blocks of its own queries, beside all keys.
    """
    B, T = q_BTNH.shape[:2]
    S, shards = k_BSKH.shape[1], sharding.axis_size("sequence")
    q_pos, k_pos = (
        jnp.broadcast_to(x.reshape(len(x), -1), (B, n)) for x, n in zip(mask.positions(T, S), (T, S), strict=True)
    )
    pieces = {"q": q_BTNH, "positions": q_pos}
    if mask.query_segments_BT is not None:
        pieces["segments"] = mask.query_segments_BT
    mask = dataclasses.replace(mask, query_positions_BT=None, query_segments_BT=None, key_positions_BS=k_pos)
    attend = functools.partial(_over_blocks, scale=scale, cap=cap, bias=bias)
    if shards == 1 or T % (shards * BLOCK):
        return attend(pieces, k_BSKH, v_BSKH, mask, rate, key, jnp.zeros((), jnp.int32))

    def share(pieces, k_BSKH, v_BSKH, mask, rate, key):
        return attend(pieces, k_BSKH, v_BSKH, mask, rate, key, jax.lax.axis_index("sequence") * (T // shards // BLOCK))

    own, whole = PartitionSpec(None, "sequence"), PartitionSpec()
    spread = sharding.on_shards(share, (own, whole, whole, whole, whole, whole), own, {"sequence"})
    return spread(pieces, k_BSKH, v_BSKH, mask, rate, key)


def _over_blocks(pieces, k_BSKH, v_BSKH, mask: Mask, rate, key, first, *, scale, cap, bias) -> jax.Array:
    """The output for the queries of `pieces`, a block at a time; `first`: the number of the first block, by which weights are dropped."""
    B, T, N, H = pieces["q"].shape
    pad = -T % BLOCK

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B, -1, BLOCK, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def one(block):
        index, piece = block
        here = dataclasses.replace(mask, query_positions_BT=piece["positions"], query_segments_BT=piece.get("segments"))
        here_key = None if key is None else jax.random.fold_in(key, index)
        return plain(piece["q"], k_BSKH, v_BSKH, here, scale=scale, cap=cap, bias=bias, rate=rate, key=here_key)

    out = jax.lax.map(one, (first + jnp.arange((T + pad) // BLOCK), jax.tree.map(split, pieces)))
    return jnp.moveaxis(out, 0, 1).reshape(B, T + pad, N, H)[:, :T]


def cudnn(q_BTNH, k_BSKH, v_BSKH, mask: Mask, *, scale, **_) -> jax.Array:
    """cuDNN's flash attention, told the mask in its own terms, on every device of a mesh by itself: its rows and its heads."""
    window = (mask.window - 1, 0) if mask.pattern == "sliding" else None
    attend = functools.partial(
        jax.nn.dot_product_attention,
        scale=scale,
        is_causal=mask.pattern != "bidirectional",
        local_window_size=window,
        implementation="cudnn",
    )
    if not sharding.is_spread():
        return attend(q_BTNH, k_BSKH, v_BSKH)
    k_BSKH, v_BSKH = (splash.beside_queries(x, q_BTNH.shape[2]) for x in (k_BSKH, v_BSKH))
    mesh, rules = jax.sharding.get_abstract_mesh(), sharding.rules()
    q = sharding.spec(("batch", None, "heads", None), q_BTNH.shape, mesh, rules)
    k = sharding.spec(("batch", None, "kv_heads", None), k_BSKH.shape, mesh, rules)
    return sharding.on_shards(attend, (q, k, k), q)(q_BTNH, k_BSKH, v_BSKH)


@functools.cache
def _cudnn_has(size: int) -> bool:
    """Whether JAX finds a cuDNN, and a GPU for heads of this size: up to 128 before Hopper, up to 256 since."""
    x = jax.ShapeDtypeStruct((1, 8, 1, size), jnp.bfloat16)
    try:
        jax.eval_shape(lambda x: jax.nn.dot_product_attention(x, x, x, is_causal=True, implementation="cudnn"), x)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def cudnn_fits(q_BTNH, k_BSKH, mask: Mask, cap, bias, rate) -> bool:
    """Whether cuDNN has this case: half precision, a head size that it has, plain positions, nothing on the logits, and
    all of a row on one device."""
    told = ("full", "sliding", "bidirectional")
    plain_mask = mask.query_positions_BT is None and mask.query_segments_BT is None and mask.pattern in told
    half, whole = q_BTNH.dtype in (jnp.bfloat16, jnp.float16), sharding.axis_size("sequence") == 1
    return (
        half and whole and plain_mask and cap is None and bias is None and rate is None and _cudnn_has(q_BTNH.shape[-1])
    )


@functools.cache
def _say(name: str) -> None:
    logging.getLogger(__name__).info("attention: %s implementation", name)


def choose(q_BTNH, k_BSKH, mask: Mask, cap, bias, rate) -> str:
    """The implementation for this device and case."""
    if sharding.platform() == "gpu" and cudnn_fits(q_BTNH, k_BSKH, mask, cap, bias, rate):
        return "cudnn"
    if sharding.platform() == "tpu" and splash.fits(q_BTNH, k_BSKH, mask, bias, rate):
        return "splash"
    return "blocked" if k_BSKH.shape[1] >= BLOCKED_FROM and q_BTNH.shape[1] > BLOCK else "plain"


def attend(
    q_BTNH, k_BSKH, v_BSKH, mask: Mask, *, scale, cap=None, bias=None, rate=None, key=None, implementation="auto"
) -> jax.Array:
    """Attention's output, (B, T, N, H). `rate` and `key` drop attention weights; absent without both."""
    rate = None if key is None else rate
    if implementation == "cudnn" and not cudnn_fits(q_BTNH, k_BSKH, mask, cap, bias, rate):
        raise UserError(
            "model.attention is cudnn, which needs a GPU, bfloat16 or float16, a head size that is a multiple of 8 up to 128 (256 from Hopper on), "
            "no mesh with sequence, no dropout, soft cap or ALiBi, whole documents and no strided pattern; use auto"
        )
    name = choose(q_BTNH, k_BSKH, mask, cap, bias, rate) if implementation == "auto" else implementation
    _say(name)
    function = {"plain": plain, "blocked": blocked, "cudnn": cudnn, "splash": splash.attend}[name]
    return function(q_BTNH, k_BSKH, v_BSKH, mask, scale=scale, cap=cap, bias=bias, rate=rate, key=key)
