"""One block: attention and feed-forward on the residual stream, with the norms where the config places them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from research.core import params as P
from research.core import rng, sharding
from research.core.leaves import rows_of
from research.model import attention, mlp, moe, positions
from research.model import cache as kv
from research.model.config import ModelConfig, Slot
from research.model.layers import dropout, joined, norm, project


@struct.dataclass
class Context:
    """What every block of one call shares. Arrays are None where the case has no need of them."""

    positions_BT: jax.Array | None = None  # None: 0, 1, 2, ...
    order_BT: jax.Array | None = (
        None  # by which the past is told from the future; None: by index, as in packed documents
    )
    segments_BT: jax.Array | None = None
    written_BT: jax.Array | None = None  # with a cache: where each token is written; -1 for padding
    prefix_B: jax.Array | None = None  # how many tokens of each row every query sees, under the pattern `prefix`
    rope: Any = None  # tables of cosines and sines
    sliding_rope: Any = None  # those of sliding layers, where they have a base of their own
    dropout: jax.Array | float | None = None
    taps: tuple[str, ...] = struct.field(pytree_node=False, default=())


def specs(config: ModelConfig, slot: Slot) -> P.Tree:
    """One layer's parameters. Every pattern of attention has the same ones."""
    sparse = slot.feed_forward == "moe"
    tree = {"attention": _attention_specs(config), "mlp": moe.specs(config) if sparse else mlp.specs(config, config.F)}
    for name in norm_names(config):
        tree[name] = norm_specs(config, (config.width,), ("embed",))
    return tree


INPUT_PROJECTIONS = ("query", "key", "value")


def prepared(p: P.Tree, config: ModelConfig, slot: Slot, dtype) -> P.Tree:
    """One layer's parameters as decoding on one device reads them: matrices in the compute dtype, by rows, those of one input joined.

    Norm scales keep their own precision, and experts their arrangement.
    """
    inner = mlp.inner_names(config)
    tree = {**p, "attention": _by_rows(p["attention"], [(INPUT_PROJECTIONS, 1), (("output",), 2)], dtype)}
    if slot.feed_forward == "moe":
        experts = {name: p["mlp"][name].astype(dtype) for name in (*inner, "out")}
        shared = (
            {"shared": _by_rows(p["mlp"]["shared"], [(inner, 1), (("out",), 1)], dtype)} if "shared" in p["mlp"] else {}
        )
        return {**tree, "mlp": {**p["mlp"], **experts, **shared}}
    return {**tree, "mlp": _by_rows(p["mlp"], [(inner, 1), (("out",), 1)], dtype)}


def _by_rows(p: P.Tree, groups: list[tuple[tuple[str, ...], int]], dtype) -> P.Tree:
    """`p` with each group of matrices, and their biases, as one leaf; the number says how many dimensions they contract."""
    gone = {name + end for names, _ in groups for name in names for end in ("", "_bias")}
    rows = {
        joined(names): rows_of([p[name] for name in names], [p.get(f"{name}_bias") for name in names], inputs, dtype)
        for names, inputs in groups
    }
    return {**{name: leaf for name, leaf in p.items() if name not in gone}, **rows}


def norm_names(config: ModelConfig) -> tuple[str, ...]:
    """Which norms a block holds: those before its branches, those after, or both."""
    before = ("attention_norm",) if config.residual == "parallel-shared" else ("attention_norm", "mlp_norm")
    after = ("attention_post_norm", "mlp_post_norm")
    if config.norm_placement == "post" and config.residual != "serial":
        after = ("mlp_post_norm",)  # both branches join the stream at once, so there is one place after them
    return {"pre": before, "post": after, "branch-output": after, "sandwich": before + after}[config.norm_placement]


def norm_specs(config: ModelConfig, shape: tuple[int, ...], axes: tuple[str, ...]) -> P.Tree:
    """A norm's scale, and for a layer norm with `norm` among the biases its bias."""
    tree = {"scale": P.Param(shape, axes, P.ONES if config.norm_scale == "plain" else P.ZEROS)}
    if config.norm == "layer" and "norm" in config.bias:
        tree["bias"] = P.Param(shape, axes, P.ZEROS)
    return tree


def _attention_specs(config: ModelConfig) -> P.Tree:
    D, N, K, H = config.width, config.heads, config.K, config.H
    tree: dict[str, Any] = {}
    for name, heads, axis in (("query", N, "heads"), ("key", K, "kv_heads"), ("value", K, "kv_heads")):
        init = mlp.inner_init(config, D, heads * H, carries=name == "value")
        tree[name] = P.Param((D, heads, H), ("embed", axis, "head"), init, inputs=1)
        if name in config.bias:
            tree[f"{name}_bias"] = P.Param((heads, H), (axis, "head"), P.ZEROS)
    tree["output"] = P.Param((N, H, D), ("heads", "head", "embed"), mlp.outer_init(config, N * H, D), inputs=2)
    if "attention-output" in config.bias:
        tree["output_bias"] = P.Param((D,), ("embed",), P.ZEROS)
    if config.qk_norm != "none":
        for name, heads, axis in (("query_norm", N, "heads"), ("key_norm", K, "kv_heads")):
            whole = config.qk_norm == "whole"
            tree[name] = norm_specs(config, (heads, H) if whole else (H,), (axis, "head") if whole else ("head",))
    return tree


def apply(p: P.Tree, x_BTD: jax.Array, config: ModelConfig, slot: Slot, context: Context, key=None, layer=None):
    """`(x_BTD, layer cache, taps, load)` after one block. `key` is the layer's own; `layer` its LayerCache, when there is one; `load` the
    router's of a sparse feed-forward (model/moe.py), else empty."""
    taps = {"block_input": x_BTD} if "block_input" in context.taps else {}

    def attend(x_BTD):
        return _attend(
            p["attention"],
            x_BTD,
            config,
            slot,
            context,
            None if key is None else rng.fold(key, "attention_pattern"),
            layer,
            taps,
        )

    def feed(x_BTD):
        if slot.feed_forward == "moe":
            y_BTD, load = moe.apply(p["mlp"], x_BTD, config, context.written_BT)
        else:
            y_BTD, load = mlp.apply(p["mlp"], x_BTD, config), {}
        if "mlp_output" in context.taps:
            taps["mlp_output"] = y_BTD
        return y_BTD, load

    def branch(function, name, x_BTD):
        before = "attention_norm" if config.residual == "parallel-shared" else f"{name}_norm"
        x_BTD = norm(x_BTD, p[before], config) if before in p else x_BTD
        # over `tensor` a branch reads every position and has a share of the heads or channels; the stream has a share of the positions
        y_BTD, extra = function(sharding.constrain(x_BTD, "batch", "sequence", None))
        y_BTD = checkpoint_name(sharding.constrain(y_BTD, "batch", "stream", None), "products")
        if config.norm_placement in ("sandwich", "branch-output"):
            y_BTD = norm(y_BTD, p[f"{name}_post_norm"], config)
        return dropout(y_BTD, context.dropout, None if key is None else rng.fold(key, name)), extra

    def join(x_BTD, name):
        x_BTD = norm(x_BTD, p[f"{name}_post_norm"], config) if config.norm_placement == "post" else x_BTD
        return sharding.constrain(x_BTD, "batch", "stream", None)

    def stream(x_BTD):
        return x_BTD if config.residual_scale == 1 else x_BTD * jnp.asarray(config.residual_scale, x_BTD.dtype)

    a_BTD, layer = branch(attend, "attention", x_BTD)
    if config.residual == "serial":
        x_BTD = join(stream(x_BTD) + a_BTD, "attention")
        m_BTD, load = branch(feed, "mlp", x_BTD)
        return join(stream(x_BTD) + m_BTD, "mlp"), layer, taps, load
    m_BTD, load = branch(feed, "mlp", x_BTD)
    return join(stream(x_BTD) + a_BTD + m_BTD, "mlp"), layer, taps, load


def _project(p, x_BTD, config: ModelConfig, slot: Slot, context: Context):
    """Queries (B, T, N, H), keys and values (B, T, K, H), normed and rotated."""
    own = slot.pattern == "sliding" and context.sliding_rope is not None
    rope = context.sliding_rope if own else context.rope
    q_BTNH, k_BTKH, v_BTKH = (checkpoint_name(x, "products") for x in project(x_BTD, p, INPUT_PROJECTIONS))
    if config.qk_norm != "none":
        q_BTNH, k_BTKH = norm(q_BTNH, p["query_norm"], config), norm(k_BTKH, p["key_norm"], config)
    if rope is not None:
        q_BTNH = positions.rotate(q_BTNH, rope, config.rope.layout)
        k_BTKH = positions.rotate(k_BTKH, rope, config.rope.layout)
    constrain = sharding.constrain
    return (
        constrain(q_BTNH, "batch", "sequence", "heads", "head"),
        constrain(k_BTKH, "batch", "sequence", "kv_heads", "head"),
        constrain(v_BTKH, "batch", "sequence", "kv_heads", "head"),
    )


def _attend(p, x_BTD, config: ModelConfig, slot: Slot, context: Context, key, layer, taps):
    q_BTNH, k_BSKH, v_BSKH = _project(p, x_BTD, config, slot, context)
    key_positions_BS, query_positions_BT = context.order_BT, context.order_BT
    if layer is not None:
        query_positions_BT = context.written_BT
        layer, k_BSKH, v_BSKH, key_positions_BS = kv.extend(layer, k_BSKH, v_BSKH, context.written_BT, slot, config)
        k_BSKH, v_BSKH = k_BSKH.astype(q_BTNH.dtype), v_BSKH.astype(q_BTNH.dtype)
    mask = attention.Mask(
        pattern=slot.pattern, window=config.window, stride=config.stride,
        query_positions_BT=query_positions_BT, key_positions_BS=key_positions_BS,
        query_segments_BT=context.segments_BT, key_segments_BS=context.segments_BT, prefix_B=context.prefix_B,
    )  # fmt: skip
    common = {
        "scale": config.query_scale,
        "cap": config.attention_soft_cap,
        "bias": attention.Bias(positions.alibi_slopes(config.heads)) if config.positions == "alibi" else None,
    }
    if "attention_pattern" in context.taps:
        taps["attention_pattern"] = attention.probabilities(q_BTNH, k_BSKH, mask, **common)
    o_BTNH = attention.attend(
        q_BTNH, k_BSKH, v_BSKH, mask, **common, rate=context.dropout, key=key, implementation=config.attention
    )
    o_BTNH = checkpoint_name(o_BTNH, "attention_output")
    return project(o_BTNH, p, ("output",), inputs=2)[0], layer
