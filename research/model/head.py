"""The head seam: from the residual stream to logits, or straight to losses without ever holding all logits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from research.core import params as P
from research.core import sharding
from research.core.dtypes import at_least_float32
from research.core.leaves import Rows, rows_of
from research.model.config import ModelConfig
from research.model.layers import beside, dot, joined, project, soft_cap

# GPUs want the vocabulary in whole tiles; the parameters are never padded. TPUs tile every array anyway, and libtpu 0.0.42 fails to compile the
# gradient of a padded product under fsdp.
PAD_TO = 128


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
