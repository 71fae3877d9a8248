"""One block: attention and feed-forward on the residual stream, with the norms where the config places them."""

import math
from typing import Any

import jax
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from research.core import params as P
from research.core import rng, sharding
from research.model import attention, positions
from research.model import cache as kv
from research.model.config import GATED, ModelConfig, Slot
from research.model.layers import activate, dot, dots, dropout, norm


@struct.dataclass
class Context:
    """What every block of one call shares. Arrays are None where the case has no need of them."""

    positions_BT: jax.Array | None = None  # None: 0, 1, 2, ...
    order_BT: jax.Array | None = (
        None  # by which the past is told from the future; None: by index, as in packed documents
    )
    segments_BT: jax.Array | None = None
    written_BT: jax.Array | None = None  # with a cache: where each token is written; -1 for padding
    rope: Any = None
    dropout: jax.Array | float | None = None
    taps: tuple[str, ...] = struct.field(pytree_node=False, default=())


def specs(config: ModelConfig, slot: Slot) -> P.Tree:
    """One layer's parameters."""
    del slot  # every pattern has the same ones
    tree = {"attention": _attention_specs(config), "mlp": _mlp_specs(config)}
    for name in norm_names(config):
        tree[name] = norm_specs(config, (config.width,), ("embed",))
    return tree


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


def inner_init(config: ModelConfig, fan_in: int) -> P.Init:
    """Projections out of the residual stream: 0.02 as GPT-2, or 1 / sqrt(fan in)."""
    return P.normal(0.02 if config.init == "gpt2" else fan_in**-0.5)


def outer_init(config: ModelConfig, fan_in: int) -> P.Init:
    """Projections into the residual stream, scaled by the number of branches that add up in it, or zero."""
    if config.init == "fan-in-zero":
        return P.ZEROS
    return P.normal((0.02 if config.init == "gpt2" else fan_in**-0.5) / math.sqrt(2 * config.layers))


def _attention_specs(config: ModelConfig) -> P.Tree:
    D, N, K, H = config.width, config.heads, config.K, config.H
    tree: dict[str, Any] = {}
    for name, heads, axis in (("query", N, "heads"), ("key", K, "kv_heads"), ("value", K, "kv_heads")):
        tree[name] = P.Param((D, heads, H), ("embed", axis, "head"), inner_init(config, D), inputs=1)
        if name in config.bias:
            tree[f"{name}_bias"] = P.Param((heads, H), (axis, "head"), P.ZEROS)
    tree["output"] = P.Param((N, H, D), ("heads", "head", "embed"), outer_init(config, N * H), inputs=2)
    if "attention-output" in config.bias:
        tree["output_bias"] = P.Param((D,), ("embed",), P.ZEROS)
    if config.qk_norm != "none":
        for name, heads, axis in (("query_norm", N, "heads"), ("key_norm", K, "kv_heads")):
            whole = config.qk_norm == "whole"
            tree[name] = norm_specs(config, (heads, H) if whole else (H,), (axis, "head") if whole else ("head",))
    return tree


def _mlp_specs(config: ModelConfig) -> P.Tree:
    D, F = config.width, config.F
    names = [("in", "mlp-in"), ("gate", "mlp-gate")] if config.activation in GATED else [("in", "mlp-in")]
    tree: dict[str, Any] = {}
    for name, projection in names:
        tree[name] = P.Param((D, F), ("embed", "mlp"), inner_init(config, D), inputs=1)
        if projection in config.bias:
            tree[f"{name}_bias"] = P.Param((F,), ("mlp",), P.ZEROS)
    tree["out"] = P.Param((F, D), ("mlp", "embed"), outer_init(config, F), inputs=1)
    if "mlp-out" in config.bias:
        tree["out_bias"] = P.Param((D,), ("embed",), P.ZEROS)
    return tree


def apply(p: P.Tree, x_BTD: jax.Array, config: ModelConfig, slot: Slot, context: Context, key=None, layer=None):
    """`(x_BTD, layer cache, taps)` after one block. `key` is the layer's own; `layer` its LayerCache, when there is one."""
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
        y_BTD = _feed_forward(p["mlp"], x_BTD, config)
        if "mlp_output" in context.taps:
            taps["mlp_output"] = y_BTD
        return y_BTD, None

    def branch(function, name, x_BTD):
        before = "attention_norm" if config.residual == "parallel-shared" else f"{name}_norm"
        y_BTD, extra = function(norm(x_BTD, p[before], config) if before in p else x_BTD)
        if config.norm_placement in ("sandwich", "branch-output"):
            y_BTD = norm(y_BTD, p[f"{name}_post_norm"], config)
        return dropout(y_BTD, context.dropout, None if key is None else rng.fold(key, name)), extra

    def join(x_BTD, name):
        x_BTD = norm(x_BTD, p[f"{name}_post_norm"], config) if config.norm_placement == "post" else x_BTD
        return sharding.constrain(x_BTD, "batch", "sequence", "residual")

    a_BTD, layer = branch(attend, "attention", x_BTD)
    if config.residual == "serial":
        x_BTD = join(x_BTD + a_BTD, "attention")
        m_BTD, _ = branch(feed, "mlp", x_BTD)
        return join(x_BTD + m_BTD, "mlp"), layer, taps
    m_BTD, _ = branch(feed, "mlp", x_BTD)
    return join(x_BTD + a_BTD + m_BTD, "mlp"), layer, taps


def _project(p, x_BTD, config: ModelConfig, context: Context):
    """Queries (B, T, N, H), keys and values (B, T, K, H), normed and rotated."""
    names = ("query", "key", "value")
    q_BTNH, k_BTKH, v_BTKH = dots(x_BTD, [p[name] for name in names], [p.get(f"{name}_bias") for name in names])
    if config.qk_norm != "none":
        axes = 2 if config.qk_norm == "whole" else 1
        q_BTNH, k_BTKH = norm(q_BTNH, p["query_norm"], config, axes), norm(k_BTKH, p["key_norm"], config, axes)
    if context.rope is not None:
        q_BTNH = positions.rotate(q_BTNH, context.rope, config.rope.layout)
        k_BTKH = positions.rotate(k_BTKH, context.rope, config.rope.layout)
    constrain = sharding.constrain
    return (
        constrain(q_BTNH, "batch", "sequence", "heads", "head"),
        constrain(k_BTKH, "batch", "sequence", "kv_heads", "head"),
        constrain(v_BTKH, "batch", "sequence", "kv_heads", "head"),
    )


def _attend(p, x_BTD, config: ModelConfig, slot: Slot, context: Context, key, layer, taps):
    q_BTNH, k_BSKH, v_BSKH = _project(p, x_BTD, config, context)
    key_positions_BS, query_positions_BT = context.order_BT, context.order_BT
    if layer is not None:
        query_positions_BT = context.written_BT
        layer, k_BSKH, v_BSKH, key_positions_BS = kv.extend(layer, k_BSKH, v_BSKH, context.written_BT, slot, config)
        k_BSKH, v_BSKH = k_BSKH.astype(q_BTNH.dtype), v_BSKH.astype(q_BTNH.dtype)
    mask = attention.Mask(
        pattern=slot.pattern, window=config.window, stride=config.stride,
        query_positions_BT=query_positions_BT, key_positions_BS=key_positions_BS,
        query_segments_BT=context.segments_BT, key_segments_BS=context.segments_BT,
    )  # fmt: skip
    common = {
        "scale": config.H**-0.5 if config.attention_scale is None else config.attention_scale,
        "cap": config.attention_soft_cap,
        "bias": attention.Bias(positions.alibi_slopes(config.heads)) if config.positions == "alibi" else None,
    }
    if "attention_pattern" in context.taps:
        taps["attention_pattern"] = attention.probabilities(q_BTNH, k_BSKH, mask, **common)
    o_BTNH = attention.attend(
        q_BTNH, k_BSKH, v_BSKH, mask, **common, rate=context.dropout, key=key, implementation=config.attention
    )
    o_BTNH = checkpoint_name(o_BTNH, "attention_output")
    return dot(o_BTNH, p["output"], p.get("output_bias"), inputs=2), layer


def _feed_forward(p, x_BTD, config: ModelConfig) -> jax.Array:
    names = ("in", "gate") if config.activation in GATED else ("in",)
    h_BTF, *gate = dots(x_BTD, [p[name] for name in names], [p.get(f"{name}_bias") for name in names])
    gate_BTF = gate[0] if gate else None
    h_BTF = sharding.constrain(activate(h_BTF, gate_BTF, config.activation), "batch", "sequence", "mlp")
    return dot(h_BTF, p["out"], p.get("out_bias"))
