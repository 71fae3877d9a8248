"""The head seam: from the residual stream to logits, or straight to losses without ever holding all logits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from research.core import params as P
from research.core import sharding
from research.core.dtypes import at_least_float32
from research.core.errors import UserError
from research.core.leaves import Rows, rows_of
from research.model.config import ModelConfig
from research.model.inputs import EMBED_INIT
from research.model.layers import beside, dot, joined, project, soft_cap

# GPUs want the vocabulary in whole tiles; the parameters are never padded. TPUs tile every array anyway, and libtpu 0.0.42 fails to compile the
# gradient of a padded product under fsdp.
PAD_TO = 128


def specs(config: ModelConfig) -> P.Tree:
    """The parameters of the head; empty where the table of tokens is all that there is."""
    D, tree = config.width, {}
    vocabulary = config.head == "vocabulary"
    init = P.ZEROS if config.init == "fan-in-zero" else P.normal(EMBED_INIT)
    if not vocabulary:
        if config.outputs is None:
            raise UserError("model.outputs is not set; give it, or let the run take it from its data")
        tree["kernel"] = P.Param((D, config.outputs), ("embed", None), init, inputs=1)
        tree["bias"] = P.Param((config.outputs,), (None,), P.ZEROS)
    elif not config.tied:
        tree["kernel"] = P.Param((D, config.V), ("embed", "vocab"), init, inputs=1)
    if vocabulary and "unembed" in config.bias:
        tree["bias"] = P.Param((config.V,), ("vocab",), P.ZEROS)
    if config.pool == "attention":
        tree["query"] = P.Param((D,), ("embed",), P.normal(D**-0.5))
    return tree


def linear(p: P.Tree, x_BTD: jax.Array, config: ModelConfig, lengths_B: jax.Array | None = None) -> jax.Array:
    """The outputs of a linear head in at least float32: (B, outputs) of what is pooled, (B, T, outputs) without pooling."""
    pooled = x_BTD if config.pool == "none" else pool(p, x_BTD, config, lengths_B)
    return at_least_float32(dot(pooled, p["kernel"])) + beside(p["bias"], at_least_float32(pooled))


def pool(p: P.Tree, x_BTD: jax.Array, config: ModelConfig, lengths_B: jax.Array | None = None) -> jax.Array:
    """One vector a row, (B, D): that of the class token, the last real position's, or a mean over real positions, plain or with weights that
    are the softmax of each position's product with a learned query."""
    if config.pool == "cls":
        return x_BTD[:, 0]
    B, T = x_BTD.shape[:2]
    lengths_B = jnp.full((B,), T) if lengths_B is None else lengths_B
    if config.pool == "last":
        return jnp.take_along_axis(x_BTD, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
    wide_BTD = at_least_float32(x_BTD)
    scores_BT = wide_BTD @ p["query"].astype(wide_BTD.dtype) if config.pool == "attention" else jnp.zeros((B, T))
    real_BT = jnp.arange(T)[None] < lengths_B[:, None]
    shares_BT = jax.nn.softmax(jnp.where(real_BT, scores_BT, -jnp.inf), axis=-1).astype(wide_BTD.dtype)
    return jnp.einsum("BT,BTD->BD", shares_BT, wide_BTD).astype(x_BTD.dtype)


def weights(params: P.Tree, dtype) -> tuple[jax.Array, jax.Array | None]:
    """`(unembedding (D, V), bias (V,) or None)`; a tied model unembeds with its embedding's transpose."""
    unembed = params.get("unembed", {})
    w_DV = unembed["kernel"] if "kernel" in unembed else params["embed"]["tokens"].T
    return sharding.gather(w_DV, P.Param(w_DV.shape, ("embed", "vocab"), P.ZEROS, inputs=1), dtype), unembed.get("bias")


def prepared(params: P.Tree, dtype) -> P.Tree:
    """The unembedding as decoding on one device reads it: by rows. A tied table is stored so anyway."""
    unembed = params.get("unembed", {})
    if "kernel" not in unembed:
        return unembed
    rows = rows_of([unembed["kernel"]], [None], 1, dtype)
    return {**{name: leaf for name, leaf in unembed.items() if name != "kernel"}, joined(("kernel",)): rows}


def _by_rows(params: P.Tree, x_BTD: jax.Array) -> jax.Array:
    """The product with the unembedding of prepared parameters."""
    unembed = params["unembed"]
    table_VD = params["embed"]["tokens"]
    rows = unembed.get(joined(("kernel",)), Rows(table_VD, None, (table_VD.shape[:1],)))
    return project(x_BTD, {joined(("kernel",)): rows}, ("kernel",))[0]


def logits(params: P.Tree, x_BTD: jax.Array, config: ModelConfig) -> jax.Array:
    """Logits (B, T, V) in at least float32."""
    x_BTD = sharding.constrain(x_BTD, "batch", "sequence", None)
    if config.logit_scale != 1:
        x_BTD = x_BTD * jnp.asarray(config.logit_scale, x_BTD.dtype)
    if "layers" in params and not sharding.is_spread():
        y_BTV, b_V = at_least_float32(_by_rows(params, x_BTD)), params["unembed"].get("bias")
    else:
        w_DV, b_V = weights(params, x_BTD.dtype)
        V = w_DV.shape[1]
        pad = -V % PAD_TO if sharding.platform() == "gpu" else 0
        y_BTV = dot(x_BTD, jnp.pad(w_DV, ((0, 0), (0, pad))) if pad else w_DV)
        y_BTV = at_least_float32(y_BTV[..., :V] if pad else y_BTV)
    y_BTV = y_BTV if b_V is None else y_BTV + beside(b_V, y_BTV)
    return sharding.constrain(soft_cap(y_BTV, config.logit_soft_cap), "batch", "sequence", "vocab")


def losses(
    params: P.Tree,
    x_BTD: jax.Array,
    targets_BT: jax.Array,
    config: ModelConfig,
    loss: Callable,
    tile: int | None = None,
):
    """`loss(logits, targets)` at every position, (B, T).

    With a `tile`, at most that many tokens at a time (at least one of each row): their logits are recomputed in the backward pass, so
    that memory holds one tile of logits instead of all (at a cost in speed; the tiles run over tokens, whose sums need no correction,
    not the vocabulary). A tile is a stretch of every row, so rows that are spread over devices stay where they are.
    """
    if tile is None or tile >= targets_BT.size:
        return loss(logits(params, x_BTD, config), targets_BT)
    B, T = targets_BT.shape
    stretch = max(1, tile // B)
    pad = -T % stretch

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B, -1, stretch, *x.shape[2:]), 1, 0)

    one = jax.checkpoint(lambda tile: loss(logits(params, tile[0], config), tile[1]))
    losses_UBT = jax.lax.map(one, (split(x_BTD), split(targets_BT)))
    return jnp.moveaxis(losses_UBT, 0, 1).reshape(B, T + pad)[:, :T]
