"""The compiled half of generation: one prefill of a batch of prompts, then chunks of tokens with the cache donated.

Three programs are compiled for a model and kept by their shapes: `prepare` (once), `prefill` and `decode`. Prompts are padded to a
few lengths by their caller, and the number of tokens in a chunk is traced, so later calls find their programs compiled.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from research.core import dtypes, rng
from research.core import params as P
from research.model import cache as kv
from research.model import head, transformer
from research.model.config import ModelConfig
from research.sample import filters as F

CHUNK = 16  # tokens between two looks of the host


@struct.dataclass
class Model:
    """Parameters as decoding reads them: in the compute dtype, every layer an array of its own."""

    params: P.Tree
    config: ModelConfig = struct.field(pytree_node=False)


@struct.dataclass
class Decoding:
    """A batch in the middle of generation. `logits_BV` are of the next token, which will be number `count`."""

    cache: kv.Cache
    logits_BV: jax.Array
    keys_B: jax.Array | None
    seen_BV: jax.Array | None  # which tokens occur in prompt and output; None without a repetition penalty
    count: jax.Array


def prepare(params: P.Tree, config: ModelConfig) -> Model:
    """The model for decoding: cast once, and one segment of all layers, so that no step slices a layer out of a stack."""
    dtype = dtypes.compute_dtype(config.dtype, params["embed"]["tokens"].dtype)
    patterns = tuple(slot.pattern for slots, repeats in config.segments for slot in slots * repeats)
    flat = dataclasses.replace(
        config, patterns=patterns, dtype=dtype.name, attention="auto", dropout=None, remat="none", unroll=1
    )
    return Model(_prepare(params, config, dtype), flat)


@partial(jax.jit, static_argnames=("config", "dtype"))
def _prepare(params: P.Tree, config: ModelConfig, dtype) -> P.Tree:
    def cast(tree):
        return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)

    layers = {}
    for s, (slots, repeats) in enumerate(config.segments):
        for r in range(repeats):
            for i in range(len(slots)):
                one = jax.tree.map(lambda leaf, r=r: leaf[r : r + 1], params["decoder"][str(s)][str(i)])
                layers[str(len(layers))] = cast(one)
    out = {**params, "embed": cast(params["embed"]), "decoder": {"0": layers}}
    if "unembed" in params:  # its bias and the final norm are read in their own precision
        out["unembed"] = {**params["unembed"], "kernel": params["unembed"]["kernel"].astype(dtype)}
    return out


@partial(jax.jit, static_argnames=("num", "length", "vocab", "drawn", "remember"))
def prefill(
    model: Model, prompts: dict[str, jax.Array], seed: jax.Array, *, num: int, length: int, vocab: int, drawn: bool, remember: bool
) -> Decoding:
    """The state after the prompts, each repeated `num` times in a row, with a cache for `length` tokens.

    `prompts` hold `tokens` (B, T) padded on the right, their `lengths` (B,), at least 1, and `ids` (B,), what a prompt's random keys
    are made of. Logits are cut to the first `vocab` ids. `drawn`: with random keys; `remember`: with the tokens seen.
    """
    tokens_BT, lengths_B = prompts["tokens"], prompts["lengths"]
    B, T = tokens_BT.shape
    cache = kv.init(model.config, B, length, jnp.dtype(model.config.dtype))
    out = transformer.hidden(model.params, {"tokens": tokens_BT, "lengths": lengths_B}, model.config, cache=cache)
    last_BD = jnp.take_along_axis(out.outputs, (lengths_B - 1)[:, None, None], axis=1)
    logits_BV = head.logits(model.params, last_BD, model.config)[:, 0, :vocab]
    seen_BV = None
    if remember:
        real_BT = jnp.where(jnp.arange(T)[None] < lengths_B[:, None], tokens_BT, vocab)
        seen_BV = jnp.zeros((B, vocab), bool).at[jnp.arange(B)[:, None], real_BT].set(True, mode="drop")
    state = Decoding(out.cache, logits_BV, None, seen_BV, jnp.zeros((), jnp.int32))
    state = jax.tree.map(lambda x: jnp.repeat(x, num, axis=0) if x.ndim else x, state)
    return state.replace(keys_B=_row_keys(seed, prompts["ids"], num)) if drawn else state


def _row_keys(seed: jax.Array, ids_B: jax.Array, num: int) -> jax.Array:
    """Sample n of a prompt draws from `key(seed, the prompt's id, n)`, whatever else is in the batch."""
    numbers_B = jnp.tile(jnp.arange(num), ids_B.shape[0])
    return jax.vmap(lambda identity, n: rng.key(seed, "sample", identity, n))(jnp.repeat(ids_B, num), numbers_B)


@partial(jax.jit, donate_argnames=("state",))
def decode(model: Model, state: Decoding, filters: F.Filters, steps: jax.Array) -> tuple[Decoding, jax.Array]:
    """`(state, tokens (B, CHUNK))` after `steps` more tokens a row; the columns from `steps` on are 0."""

    def step(i, carry):
        state, tokens_BC = carry
        state, token_B = advance(model, state, filters)
        return state, jax.lax.dynamic_update_slice(tokens_BC, token_B[:, None], (0, i))

    return jax.lax.fori_loop(0, steps, step, (state, jnp.zeros((state.logits_BV.shape[0], CHUNK), jnp.int32)))


def advance(model: Model, state: Decoding, filters: F.Filters) -> tuple[Decoding, jax.Array]:
    """One token drawn for every row, (B,), and the state after it. Token t of a row draws from `fold_in(the row's key, t)`."""
    keys_B = None if state.keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(state.keys_B, state.count)
    token_B = F.sample(state.logits_BV, filters, keys_B, state.seen_BV)
    out = transformer.hidden(model.params, token_B[:, None], model.config, cache=state.cache)
    vocab = state.logits_BV.shape[1]
    logits_BV = head.logits(model.params, out.outputs, model.config)[:, 0, :vocab]
    seen_BV = state.seen_BV
    if seen_BV is not None:
        seen_BV = seen_BV.at[jnp.arange(token_B.shape[0]), token_B].set(True)
    return state.replace(cache=out.cache, logits_BV=logits_BV, seen_BV=seen_BV, count=state.count + 1), token_B
