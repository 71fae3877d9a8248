"""The one transformer: specs, and the pure functions that apply them.

    specs(config)                             -> tree of Param
    forward(params, tokens_BT, config)        -> logits_BTV
    apply(params, inputs, config, ...)        -> Output(outputs, aux, cache, taps)
    hidden(params, inputs, config, ...)       -> the same, before the head

Layers are segments of a repeating pattern. Each slot of the pattern is stacked over its repeats and the repeats are scanned.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from research.core import dtypes, rng, sharding
from research.core import params as P
from research.core.hypers import Hypers
from research.model import block, head, moe, pipeline, positions
from research.model import inputs as front
from research.model.cache import Cache
from research.model.config import ModelConfig, Slot
from research.model.layers import add_rows, dropout, lookup, norm

TAPS = ("block_input", "attention_pattern", "mlp_output")


@struct.dataclass
class Output:
    """`outputs`: logits (B, T, V), or hidden states (B, T, D). `aux`: the router's losses, `balance` and `router_z`, means over the sparse
    layers; empty without any. `taps`: name -> (L, ...) in order of layers."""

    outputs: jax.Array
    aux: dict[str, jax.Array]
    cache: Cache | None
    taps: dict[str, jax.Array]


def specs(config: ModelConfig) -> P.Tree:
    """Every parameter's shape, logical axes and initialiser."""
    if config.base_width is None:
        return _specs(config)
    return P.tree_map(lambda p, base: p.scaled_from(base), _specs(config), _specs(config.base))


def _specs(config: ModelConfig) -> P.Tree:
    D = config.width
    tree: dict[str, Any] = {"embed": front.specs(config)}
    if config.positions == "learned":
        tree["embed"]["positions"] = P.Param((config.length, D), ("positions", "embed"), P.normal(front.EMBED_INIT))
    tree["decoder"] = {
        str(s): {
            str(i): P.tree_map(lambda p, n=n: p.stack(n), block.specs(config, slot)) for i, slot in enumerate(slots)
        }
        for s, (slots, n) in enumerate(config.segments)
    }
    if config.embedding_norm:
        tree["embed"]["norm"] = block.norm_specs(config, (D,), ("embed",))
    if config.norm_placement != "post":
        tree["final_norm"] = block.norm_specs(config, (D,), ("embed",))
    unembed = head.specs(config)
    return {**tree, "unembed": unembed} if unembed else tree


def forward(params: P.Tree, tokens_BT: jax.Array, config: ModelConfig) -> jax.Array:
    """Next-token logits (B, T, V), at least float32, without dropout."""
    return apply(params, tokens_BT, config).outputs


def apply(params: P.Tree, inputs, config: ModelConfig, **options) -> Output:
    """`hidden`, then the head: outputs are logits (B, T, V), or those of a linear head (head.py). Options as for `hidden`."""
    out = hidden(params, inputs, config, **options)
    if config.head == "linear":
        lengths_B = inputs.get("lengths") if isinstance(inputs, Mapping) else None
        return dataclasses.replace(out, outputs=head.linear(params["unembed"], out.outputs, config, lengths_B))
    return dataclasses.replace(out, outputs=head.logits(params, out.outputs, config))


def hidden(
    params: P.Tree,
    inputs: jax.Array | Mapping[str, jax.Array],
    config: ModelConfig,
    *,
    key: jax.Array | None = None,
    hypers: Hypers | None = None,
    cache: Cache | None = None,
    taps: tuple[str, ...] = (),
) -> Output:
    """The final residual stream (B, T, D).

    `inputs` are tokens (B, T), or a mapping of `tokens` and, where wanted, `segments` (B, T) of packed documents (no attention across,
    positions restart), `positions` (B, T), `prefix` (B,): how many tokens of a row layers of the pattern `prefix` show to every query (then
    the past is told by index and `positions` only embed), and with a cache or under the pattern `bidirectional` `lengths` (B,): how many of the
    tokens are real, from the left. A model of other inputs takes those instead of tokens: `image` (B, height, width, C), or (B, frames, ...) of
    films, `numbers` (B, columns) and `categories` int (B, columns), `vectors` (B, T, C); with a class token T is one more.
    With a `key` the config's dropout is applied, at `hypers.dropout` if given. `taps` out of `TAPS` are returned; others cost nothing.
    Raises ValueError for an unknown tap, a cache in both directions, segments together with a cache, or a prefix together with segments.
    """
    inputs = inputs if isinstance(inputs, Mapping) else {"tokens": inputs}
    if cache is not None and config.is_bidirectional:
        raise ValueError("a model that reads in both directions continues nothing: give no cache")
    if set(taps) - set(TAPS):
        raise ValueError(f"unknown taps {sorted(set(taps) - set(TAPS))}; there are {', '.join(TAPS)}")
    key = None if config.dropout is None else key
    dtype = dtypes.compute_dtype(config.dtype, jax.tree.leaves(params["embed"])[0].dtype)
    context = _context(inputs, config, dtype, hypers if key is not None else None, cache, taps, key is not None)
    x_BTD = _embed(params["embed"], inputs, config, dtype, context, key)
    if cache is not None:
        x_BTD, cache, record, aux = _decode(params, x_BTD, config, context, cache)
    else:
        x_BTD, record, aux = _decoder(params["decoder"], x_BTD, config, context, key)
    if "final_norm" in params:
        x_BTD = norm(x_BTD, params["final_norm"], config)
    sparse = max(1, sum(slot.feed_forward == "moe" for slots, n in config.segments for slot in slots * n))
    return Output(outputs=x_BTD, aux={name: x / sparse for name, x in aux.items()}, cache=cache, taps=record)


def _context(inputs, config: ModelConfig, dtype, hypers, cache, taps, training: bool) -> block.Context:
    """Positions, segments, rotary tables and the dropout rate: computed once, used by every block."""
    segments_BT, T = inputs.get("segments"), front.length(inputs, config)
    positions_BT, written_BT, prefix_B = inputs.get("positions"), None, inputs.get("prefix")
    if prefix_B is not None and segments_BT is not None:
        raise ValueError("a prefix belongs to a whole row; give no segments with it")
    order_BT = positions_BT if prefix_B is None else None
    if config.is_bidirectional:
        order_BT = _real(inputs.get("lengths"), T, config.pool == "cls")
    if cache is not None:
        if segments_BT is not None:
            raise ValueError("a cache holds one document a row; give no segments with it")
        step_T = jnp.arange(T)[None]
        positions_BT = cache.lengths_B[:, None] + step_T
        lengths_B = inputs.get("lengths")
        written_BT = positions_BT if lengths_B is None else jnp.where(step_T < lengths_B[:, None], positions_BT, -1)
    elif segments_BT is not None:
        segments_BT, restarted_BT = positions.documents(segments_BT)
        positions_BT = restarted_BT if positions_BT is None else positions_BT
    rope = sliding_rope = None
    if config.positions == "rotary":
        where = jnp.arange(T)[None] if positions_BT is None else positions_BT
        last_B = None if written_BT is None else jnp.max(written_BT, axis=1)
        rope = positions.rope_table(config.rope, config.H, where, dtype, last_B)
        if config.rope.sliding_base is not None:
            plain = dataclasses.replace(config.rope, base=config.rope.sliding_base, scaling="none")
            sliding_rope = positions.rope_table(plain, config.H, where, dtype)
    rate = None
    if training and config.dropout is not None:
        rate = config.dropout if hypers is None else hypers.dropout
    return block.Context(
        positions_BT=positions_BT, order_BT=order_BT, segments_BT=segments_BT, written_BT=written_BT, prefix_B=prefix_B,
        rope=rope, sliding_rope=sliding_rope, dropout=rate, taps=tuple(taps),
    )  # fmt: skip


def _real(lengths_B: jax.Array | None, T: int, cls: bool) -> jax.Array | None:
    """Positions (B, T) of rows that are real up to their lengths, and of -1 behind; None where all are real."""
    if lengths_B is None:
        return None
    step_T = jnp.arange(T)[None]
    return jnp.where(step_T < lengths_B[:, None] + cls, step_T, -1)


def _embed(p, inputs, config: ModelConfig, dtype, context: block.Context, key) -> jax.Array:
    x_BTD = front.embed(p, inputs, config, dtype)
    if config.embedding_scale == "sqrt-width":
        x_BTD = x_BTD * jnp.asarray(config.base.width**0.5, dtype)
    T = x_BTD.shape[1]
    if config.positions == "learned":
        where = context.positions_BT
        if where is None and config.length < T:
            raise ValueError(
                f"{T} tokens, but there are learned positions for {config.length}; shorten them or raise model.context"
            )
        if where is None:
            x_BTD = add_rows(x_BTD, p["positions"][:T])
        else:
            x_BTD = x_BTD + lookup(p["positions"], where, dtype)
    elif config.positions == "sinusoidal":
        where = jnp.arange(T)[None] if context.positions_BT is None else context.positions_BT
        x_BTD = x_BTD + positions.sinusoids(where, config.width, dtype)
    if config.embedding_norm:
        x_BTD = norm(x_BTD, p["norm"], config)
    x_BTD = sharding.constrain(x_BTD, "batch", "stream", None)
    return dropout(x_BTD, context.dropout, None if key is None else rng.fold(key, "embed"))


def _remat(function, name: str, looped: bool):
    """`function` with its backward pass recomputing what the named policy does not save.

    Between two loops the compiler cannot merge what is recomputed with what was computed; where no loop is left it has to be told not to.
    """
    policies = jax.checkpoint_policies
    if name == "none":
        return function
    policy = {
        "full": None,
        "matmuls": policies.save_only_these_names("products"),
        "attention": policies.save_only_these_names("attention_output"),
    }[name]
    return jax.checkpoint(function, policy=policy, prevent_cse=not looped)


def _layer_specs(config: ModelConfig, slots: tuple[Slot, ...]) -> P.Tree:
    return {str(i): block.specs(config, slot) for i, slot in enumerate(slots)}


def _decoder(p, x_BTD, config: ModelConfig, context: block.Context, key):
    """All segments in turn. Returns the stream, the taps, stacked in order of layers, and the sums of the router's losses."""
    first, records, losses = 0, [], []
    for s, (slots, repeats) in enumerate(config.segments):
        indices = first + len(slots) * jnp.arange(repeats)
        plan = None if s or context.taps else pipeline.schedule(config, sharding.axis_sizes(), len(x_BTD))
        if plan is not None:
            # a loop: libtpu 0.0.42 aborts on an attention kernel in unrolled layers of a stage
            looped = functools.partial(_repeats, config=dataclasses.replace(config, unroll=1), slots=slots)
            at_once = config.remat == "none"
            x_BTD, load = pipeline.run(looped, p[str(s)], indices, x_BTD, context, key, plan, at_once=at_once)
        else:
            x_BTD, seen, load = _repeats(p[str(s)], indices, x_BTD, context, key, config=config, slots=slots)
            records.append({name: tap.reshape(-1, *tap.shape[2:]) for name, tap in seen.items()})
        losses.append({name: jnp.sum(x) for name, x in moe.losses(load).items()} if load else {})
        first += len(slots) * repeats
    taps = {name: jnp.concatenate([r[name] for r in records]) for name in context.taps}
    return x_BTD, taps, _summed(losses)


def _repeats(
    p, indices, x_BTD, context: block.Context, key, pick=lambda tree: tree, *, config, slots: tuple[Slot, ...]
):
    """`(x_BTD, taps, load)` after some repeats of a segment's slots. Leaves of `p` are stacked over them; `pick` takes of each entry its own."""
    declared = _layer_specs(config, slots)

    def repeat(x_BTD, inputs):
        layer_params, index = pick(inputs)
        layer_params = sharding.gather(layer_params, declared, x_BTD.dtype)
        taps, loads = [], []
        for i, slot in enumerate(slots):
            layer_key = None if key is None else rng.fold(key, "layer", index + i)
            x_BTD, _, seen, load = block.apply(layer_params[str(i)], x_BTD, config, slot, context, layer_key)
            taps.append(seen)
            loads.append(load)
        return x_BTD, (_stacked(taps), _stacked([load for load in loads if load]))

    unroll = min(config.unroll, len(indices))
    looped = len(indices) % unroll == 0 and len(indices) > unroll
    x_BTD, (taps, load) = jax.lax.scan(_remat(repeat, config.remat, looped), x_BTD, (p, indices), unroll=unroll)
    return x_BTD, taps, load


def _stacked(records: list[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    return {name: jnp.stack([record[name] for record in records]) for name in (records[0] if records else ())}


def _summed(losses: list[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """Sums by name; a layer that is dense has none."""
    names = sorted({name for one in losses for name in one})
    return {name: sum((one[name] for one in losses if name in one), jnp.zeros(())) for name in names}


def prepared(params: P.Tree, config: ModelConfig, dtype) -> P.Tree:
    """Parameters as decoding reads them, step after step: matrices in `dtype`, every layer a tree of its own under `layers`, so that no step
    casts, or slices a layer out of a stack. On one device they are also arranged for products with few rows (`block.prepared`)."""
    table = params["embed"]["tokens"].astype(dtype)
    out = {name: tree for name, tree in params.items() if name != "decoder"}
    out["embed"] = {**params["embed"], "tokens": table}
    layers = list(zip(slots_of(config), unstacked(params["decoder"], config), strict=True))
    if sharding.is_spread():
        cast = [sharding.cast(p, block.specs(config, slot), dtype) for slot, p in layers]
        kernel = {} if config.tied else {"kernel": params["unembed"]["kernel"].astype(dtype)}
        return {**out, "layers": cast, **({"unembed": {**params["unembed"], **kernel}} if "unembed" in params else {})}
    out["layers"] = [block.prepared(p, config, slot, dtype) for slot, p in layers]
    return {**out, "unembed": head.prepared(params, dtype)}


def slots_of(config: ModelConfig) -> list[Slot]:
    """The slot of every layer, in order."""
    return [slot for slots, repeats in config.segments for slot in slots * repeats]


def unstacked(decoder: P.Tree, config: ModelConfig) -> Iterator[P.Tree]:
    """The parameters of every layer, in order."""
    for s, (slots, repeats) in enumerate(config.segments):
        for r in range(repeats):
            for i in range(len(slots)):
                yield jax.tree.map(lambda leaf, r=r: leaf[r], decoder[str(s)][str(i)])


def _decode(params, x_BTD, config: ModelConfig, context: block.Context, cache: Cache):
    """The layers one by one, each with a cache of its own: no loop carries them all."""
    ready = "layers" in params and not sharding.is_spread()
    trees = params["layers"] if "layers" in params else unstacked(params["decoder"], config)
    layers, taps, losses = [], [], []
    for slot, p, layer in zip(slots_of(config), trees, cache.layers, strict=True):
        p = p if ready else sharding.gather(p, block.specs(config, slot), x_BTD.dtype)
        x_BTD, layer, seen, load = block.apply(p, x_BTD, config, slot, context, layer=layer)
        layers.append(layer)
        taps.append(seen)
        losses.append(moe.losses(load) if load else {})
    written_B = jnp.sum(jnp.asarray(context.written_BT) >= 0, axis=1)
    return x_BTD, Cache(layers=tuple(layers), lengths_B=cache.lengths_B + written_B), _stacked(taps), _summed(losses)
