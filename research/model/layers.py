"""The small pieces: the dot seam, norms, activations, dropout and the embedding lookup with its own gradient."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from research.core import params as P
from research.core import sharding
from research.core.dtypes import at_least_float32
from research.core.leaves import Rows
from research.model.config import ModelConfig

FEW_ROWS = 256  # up to here XLA's CPU product is fastest with the weights on its left, up to twice as fast
ONE_HOT_VOCABULARY = 1024  # up to here an embedding's gradient is a one-hot matrix product


def beside(p: jax.Array, x: jax.Array) -> jax.Array:
    """`p` in the dtype of x, with leading axes of size 1 up to x's rank: a parameter of the last axes beside an activation of all."""
    return jax.lax.expand_dims(p.astype(x.dtype), range(x.ndim - p.ndim))


def dot(x: jax.Array, w: jax.Array, b: jax.Array | None = None, *, inputs: int = 1) -> jax.Array:
    """`x W + b`: contracts the last `inputs` dimensions of x with the first of w. Every product with weights goes through here.

    Leading dimensions (batch and time) are folded into one, so that forward and both gradients are plain matrix products, the only
    kind that is fast on every backend. Under a `sequence` mesh axis time is sharded and stays a dimension of its own.
    """
    lead, out = x.shape[: x.ndim - inputs], w.shape[inputs:]
    fan_in = math.prod(w.shape[:inputs])
    w_IO = w.astype(x.dtype).reshape(fan_in, math.prod(out))
    if sharding.axis_size("sequence") > 1:
        y = x.reshape(*lead, fan_in) @ w_IO
    else:
        y = _product(x.reshape(-1, fan_in), w_IO)
    y = y.reshape(*lead, *out)
    return y if b is None else y + beside(b, y)


def _product(x_RI: jax.Array, w_IO: jax.Array) -> jax.Array:
    """`x W` of two matrices. On a CPU the gradient of a W with more rows than columns is computed as its transpose: XLA's product there
    is up to 1.6 times as fast for a result that is wider than high."""
    if sharding.platform() != "cpu" or w_IO.shape[0] <= w_IO.shape[1]:
        return x_RI @ w_IO
    return jnp.asarray(_high_product(x_RI, w_IO))


@jax.custom_vjp
def _high_product(x_RI, w_IO):
    return x_RI @ w_IO


def _high_product_forward(x_RI, w_IO):
    return x_RI @ w_IO, (x_RI, w_IO)


def _high_product_backward(residuals, g_RO):
    x_RI, w_IO = residuals
    dw_OI = jax.lax.optimization_barrier(g_RO.T @ x_RI)  # or XLA would turn the product around again
    return g_RO @ w_IO.T, dw_OI.T


_high_product.defvjp(_high_product_forward, _high_product_backward)


def project(x: jax.Array, p: P.Tree, names: Sequence[str], *, inputs: int = 1) -> tuple[jax.Array, ...]:
    """`x W + b` for the matrices of these names in p, whose biases are called `NAME_bias`: by `dot` or `dots`, or at once where p holds
    them as one leaf under their joined names (`core/leaves.py`)."""
    rows = p.get(joined(names))
    if rows is not None:
        return _rows_product(x, rows, inputs)
    if len(names) == 1:
        return (dot(x, p[names[0]], p.get(f"{names[0]}_bias"), inputs=inputs),)
    return dots(x, [p[name] for name in names], [p.get(f"{name}_bias") for name in names])


def joined(names: Sequence[str]) -> str:
    """The key under which a tree holds several matrices as one leaf."""
    return "+".join(names) + "+"


def _rows_product(x: jax.Array, w: Rows, inputs: int) -> tuple[jax.Array, ...]:
    lead = x.shape[: x.ndim - inputs]
    x_RI = x.reshape(-1, w.w_OI.shape[1])
    if len(x_RI) == 1:  # as a product with a vector: compilers know that one as such
        y = (w.w_OI @ x_RI[0])[None]
    elif len(x_RI) <= FEW_ROWS and sharding.platform() == "cpu":
        y = jax.lax.optimization_barrier(w.w_OI @ x_RI.T).T  # or XLA would turn the product around
    else:
        y = jax.lax.dot_general(x_RI, w.w_OI, (((1,), (1,)), ((), ())))
    y = y if w.b_O is None else y + w.b_O[None]
    parts = jax.lax.split(y, w.sizes, 1) if len(w.outs) > 1 else [y]
    return tuple(part.reshape(*lead, *out) for part, out in zip(parts, w.outs, strict=True))


def dots(x: jax.Array, ws: Sequence[jax.Array], bs: Sequence[jax.Array | None]) -> tuple[jax.Array, ...]:
    """`x W + b` for several W that read the same x (queries, keys, values; a gate and what it gates).

    On one device they are one product of the concatenated weights, a good deal faster than several narrow ones, forward and back; on a
    mesh each stays by itself: shards do not concatenate, and the gradient of each is reduced onto its own.
    """
    if sharding.is_spread():
        return tuple(dot(x, w, b) for w, b in zip(ws, bs, strict=True))
    outs = [w.shape[1:] for w in ws]
    sizes = [math.prod(out) for out in outs]
    w_IO = jnp.concatenate([w.astype(x.dtype).reshape(w.shape[0], -1) for w in ws], axis=1)
    b_O = None
    if any(b is not None for b in bs):
        b_O = jnp.concatenate(
            [jnp.zeros(n, x.dtype) if b is None else b.reshape(n) for b, n in zip(bs, sizes, strict=True)]
        )
    joined = dot(x, w_IO, b_O)
    parts = jax.lax.split(joined, sizes, joined.ndim - 1)
    return tuple(y.reshape(*x.shape[:-1], *out) for y, out in zip(parts, outs, strict=True))


def norm(x: jax.Array, p: dict[str, jax.Array], config: ModelConfig) -> jax.Array:
    """Layer norm (arXiv 1607.06450) or RMS norm (arXiv 1910.07467) over the dimensions of its scale, the last ones, in at least float32."""
    scale = at_least_float32(p["scale"])
    scale = scale if config.norm_scale == "plain" else 1 + scale
    return jnp.asarray(_norm(x, scale, p.get("bias"), config.norm == "layer", config.norm_eps))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _norm(x, scale, bias, centred: bool, eps: float):
    return _norm_forward(x, scale, bias, centred, eps)[0]


def _norm_forward(x, scale, bias, centred, eps):
    over = range(-scale.ndim, 0)
    y = at_least_float32(x)
    mean = jnp.mean(y, over, keepdims=True) if centred else jnp.zeros((), y.dtype)
    y = y - mean
    factor = jax.lax.rsqrt(jnp.mean(jnp.square(y), over, keepdims=True) + eps)
    y = y * factor * beside(scale, y)
    y = y if bias is None else y + beside(bias, y)
    return y.astype(x.dtype), (x, scale, bias, mean, factor)


def _norm_backward(centred, eps, residuals, g):
    """With y = (x - mean) factor and h = g scale: `dx = factor (h - mean(h) - y mean(h y))`, where RMS norm has no `mean(h)`. Written out, y is
    never kept in memory, in float32, for several readers: it follows from x where it is read."""
    x, scale, bias, mean, factor = residuals
    over, lead = range(-scale.ndim, 0), range(x.ndim - scale.ndim)
    x, g = jax.lax.optimization_barrier((x, g))  # or the compiler would keep what the forward pass made of x
    y, g = (at_least_float32(x) - mean) * factor, at_least_float32(g)
    h = g * beside(scale, g)
    dx = h - y * jnp.mean(h * y, over, keepdims=True)
    dx = (dx - jnp.mean(h, over, keepdims=True) if centred else dx) * factor
    dbias = None if bias is None else jnp.sum(g, lead).astype(bias.dtype)
    return dx.astype(x.dtype), jnp.sum(g * y, lead).astype(scale.dtype), dbias


_norm.defvjp(_norm_forward, _norm_backward)


def activate(x: jax.Array, gate: jax.Array | None, kind: str) -> jax.Array:
    """The feed-forward non-linearity. Gated kinds (GLU variants, arXiv 2002.05202) return `f(gate) * x`. On accelerators what lies between is
    computed again for the gradient: it is cheaper than to keep it."""
    if sharding.platform() == "cpu":
        return _activate(x, gate, kind)
    return jax.checkpoint(_activate, static_argnums=(2,))(x, gate, kind)


def _activate(x, gate, kind: str):
    if gate is not None:
        return (jax.nn.silu(gate) if kind == "swiglu" else _gelu(gate, kind == "geglu-tanh")) * x
    if kind == "relu":
        return jax.nn.relu(x)
    if kind == "relu2":  # Primer, arXiv 2109.08668
        return jnp.square(jax.nn.relu(x))
    if kind == "sigmoid":
        return jax.nn.sigmoid(x)
    if kind == "silu":  # also called swish: arXiv 1710.05941
        return jax.nn.silu(x)
    if kind == "quick-gelu":  # GELU's approximation by a sigmoid (arXiv 1606.08415, section 2), as CLIP has it
        return x * jax.nn.sigmoid(1.702 * x)
    return _gelu(x, kind == "gelu-tanh")


def _gelu(x: jax.Array, tanh: bool) -> jax.Array:
    """GELU (arXiv 1606.08415), exact or by GPT-2's approximation with tanh. On a CPU its derivative is computed along with it and kept for
    the gradient: two arrays instead of the three that XLA keeps, and one product going back."""
    if sharding.platform() != "cpu":
        return jax.nn.gelu(x, approximate=tanh)
    return jnp.asarray(_gelu_keeping_derivative(x, tanh))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gelu_keeping_derivative(x, tanh):
    return jax.nn.gelu(x, approximate=tanh)


def _gelu_forward(x, tanh):
    y, derivative = jax.jvp(partial(jax.nn.gelu, approximate=tanh), (x,), (jnp.ones_like(x),))
    return jax.lax.optimization_barrier((y, derivative))  # or XLA would compute the derivative where it is used


def _gelu_backward(tanh, derivative, g):
    return (g * derivative,)


_gelu_keeping_derivative.defvjp(_gelu_forward, _gelu_backward)


def dropout(x: jax.Array, rate: jax.Array | float | None, key: jax.Array | None) -> jax.Array:
    """Inverted dropout (arXiv 1207.0580). Without a rate or a key it is absent and draws nothing; the rate may be traced."""
    if rate is None or key is None:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), 0).astype(x.dtype)


def lookup(table_VD: jax.Array, tokens: jax.Array, dtype) -> jax.Array:
    """Rows of the table, cast to `dtype`: shape `tokens.shape + (D,)`.

    Its gradient is not XLA's scatter-add, which is hundreds of times slower than it should be on GPUs when tokens repeat (openxla/xla
    issue 46225): a one-hot matrix product for small vocabularies, a sum over sorted runs for large ones, accumulated in the
    dtype of the table.
    """
    return jnp.asarray(_lookup(table_VD, tokens, dtype))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _lookup(table_VD, tokens, dtype):
    if sharding.is_spread():  # half the bytes travel
        return table_VD.astype(dtype)[tokens]
    return table_VD[tokens].astype(dtype)


def _lookup_forward(table_VD, tokens, dtype):
    return _lookup(table_VD, tokens, dtype), (table_VD.shape[0], tokens, jnp.zeros((), table_VD.dtype))


def _lookup_backward(dtype, residuals, g):
    vocab, tokens, like = residuals
    # under fsdp every device adds up its share of the width, for all tokens: rows travel once, and no gradient of the whole table is reduced
    between = [None] * (g.ndim - 2)
    ids = sharding.constrain(tokens, "replicas", *between).reshape(-1)
    rows = sharding.constrain(g, "replicas", *between, "embed").reshape(-1, g.shape[-1]).astype(like.dtype)
    if vocab <= ONE_HOT_VOCABULARY:
        return jax.nn.one_hot(ids, vocab, dtype=rows.dtype).T @ rows, None
    if sharding.platform() == "cpu":  # a serial loop over the rows, which is what a CPU does best
        return jnp.zeros((vocab, rows.shape[-1]), rows.dtype).at[ids].add(rows), None
    shards = sharding.spread(sharding.axis_sizes(), "replicas")
    if ids.size % shards:
        return _sorted_sum(rows, ids, vocab), None
    ids = sharding.constrain(ids.reshape(shards, -1), "replicas", None)
    rows = sharding.constrain(rows.reshape(shards, -1, rows.shape[-1]), "replicas", None, "embed")
    return jnp.sum(jax.vmap(_sorted_sum, in_axes=(0, 0, None))(rows, ids, vocab), axis=0), None


def _sorted_sum(rows, ids, vocab: int):
    order = jnp.argsort(ids)
    return jax.ops.segment_sum(rows[order], ids[order], vocab, indices_are_sorted=True)


_lookup.defvjp(_lookup_forward, _lookup_backward)


@jax.custom_vjp
def add_rows(x_BTD: jax.Array, p_TD: jax.Array) -> jax.Array:
    """`x + p` in the dtype of x, for a table of positions that every row shares.

    Its gradient sums over rows by a matrix product: for a sum over the first dimension XLA's GPU compiler lays the whole residual stream out with
    that dimension last, and every layer transposes to and fro.
    """
    return x_BTD + beside(p_TD, x_BTD)


def _add_rows_forward(x_BTD, p_TD):
    return add_rows(x_BTD, p_TD), jnp.zeros((), p_TD.dtype)


def _add_rows_backward(like, g_BTD):
    ones_B, over = jnp.ones(len(g_BTD), g_BTD.dtype), (((0,), (0,)), ((), ()))
    # bfloat16 times one is exact as it is, and told to be exact the compiler would make a sum of it again
    precision = None if g_BTD.dtype == jnp.bfloat16 else "highest"
    return g_BTD, jax.lax.dot_general(ones_B, g_BTD, over, precision=precision, preferred_element_type=like.dtype)


add_rows.defvjp(_add_rows_forward, _add_rows_backward)


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """`cap * tanh(x / cap)` (Gemma 2, arXiv 2408.00118); x itself without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)
