"""The compiled half of generation: one prefill of a batch of prompts, then chunks of tokens with the cache donated.

Three programs are compiled for a model and kept by their shapes: `prepare` (once), `prefill` and `decode`. The caller
pads prompts to a few lengths, and how many tokens a chunk draws is traced, so later calls find their programs compiled.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from research.core import dtypes, rng, sharding
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
class Prompts:
    """A batch of prompts, and what their random keys are made of."""

    tokens_BT: jax.Array | np.ndarray  # padded on the right
    lengths_B: jax.Array | np.ndarray  # how many of them are real, at least 1
    ids_B: jax.Array | np.ndarray  # a number for each prompt
    first_B: jax.Array | np.ndarray  # the number of its first sample


@struct.dataclass
class Decoding:
    """A batch in the middle of generation. `logits_BV` are those of the next token, which will be number `count`."""

    cache: kv.Cache
    logits_BV: jax.Array
    keys_B: jax.Array | None  # None where nothing is random
    seen_BV: jax.Array | None  # whether a token occurs in prompt or output; None without a repetition penalty
    count: jax.Array


def prepare(params: P.Tree, config: ModelConfig) -> Model:
    """The model for decoding: cast once, and one segment of all layers, so that no step slices a layer out of a stack.

    It may share arrays with `params`, so they must not be donated while it is in use.
    """
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
    if not config.tied:  # its bias and the final norm are read in their own precision
        out["unembed"] = {**params["unembed"], "kernel": params["unembed"]["kernel"].astype(dtype)}
    return out


@partial(jax.jit, static_argnames=("num", "length", "vocab", "drawn", "remember"))
def prefill(
    model: Model, prompts: Prompts, seed, *, num: int, length: int, vocab: int, drawn: bool, remember: bool
) -> Decoding:
    """The state after the prompts, each repeated `num` times in a row, with a cache for `length` tokens.

    Logits are cut to the first `vocab` ids. `drawn`: with random keys; `remember`: with the tokens seen.
    """
    tokens_BT, lengths_B = jnp.asarray(prompts.tokens_BT), jnp.asarray(prompts.lengths_B)
    B, T = tokens_BT.shape
    cache = kv.init(model.config, B, length, jnp.dtype(model.config.dtype))
    inputs = {"tokens": tokens_BT, "lengths": lengths_B}
    out = transformer.hidden(model.params, inputs, model.config, cache=cache)
    last_B1D = jnp.take_along_axis(out.outputs, (lengths_B - 1)[:, None, None], axis=1)
    logits_BV = head.logits(model.params, last_B1D, model.config)[:, 0, :vocab]
    seen_BV = None
    if remember:
        ids_BT = jnp.where(jnp.arange(T)[None] < lengths_B[:, None], tokens_BT, vocab)
        seen_BV = jnp.zeros((B, vocab), bool).at[jnp.arange(B)[:, None], ids_BT].set(True, mode="drop")
    rows = jax.tree.map(lambda x: jnp.repeat(x, num, axis=0), (out.cache, logits_BV, seen_BV))
    keys_B = _row_keys(seed, prompts, num) if drawn else None
    return Decoding(cache=rows[0], logits_BV=rows[1], keys_B=keys_B, seen_BV=rows[2], count=jnp.zeros((), jnp.int32))


def _row_keys(seed: jax.Array, prompts: Prompts, num: int) -> jax.Array:
    """Sample n of a prompt draws from `key(seed, "sample", the prompt's id, n)`, whatever else is in the batch."""
    numbers_B = (prompts.first_B[:, None] + jnp.arange(num)[None]).reshape(-1)
    ids_B = jnp.repeat(prompts.ids_B, num)
    return jax.vmap(lambda identity, n: rng.key(seed, "sample", identity, n))(ids_B, numbers_B)


@partial(jax.jit, donate_argnames=("state",))
def decode(model: Model, state: Decoding, filters: F.Filters, steps) -> tuple[Decoding, jax.Array]:
    """`(state, tokens (B, CHUNK))` after `steps` more tokens a row; the columns from `steps` on are 0."""

    def step(i, carry):
        state, token_B = advance(model, carry[0], filters)
        return state, jax.lax.dynamic_update_slice(carry[1], token_B[:, None], (0, i))

    tokens_BC = jnp.zeros((state.logits_BV.shape[0], CHUNK), jnp.int32)
    state, tokens_BC = jax.lax.fori_loop(0, steps, step, (state, tokens_BC))
    return state, sharding.constrain(tokens_BC, None, None)  # whole on every host, which all read it


def advance(model: Model, state: Decoding, filters: F.Filters) -> tuple[Decoding, jax.Array]:
    """`(the state after, one token drawn for every row (B,))`. Token t of a row draws from `fold(the row's key, t)`."""
    keys_B = None if state.keys_B is None else jax.vmap(lambda key: rng.fold(key, state.count))(state.keys_B)
    token_B = F.sample(state.logits_BV, filters, keys_B, state.seen_BV)
    out = transformer.hidden(model.params, token_B[:, None], model.config, cache=state.cache)
    logits_BV = head.logits(model.params, out.outputs, model.config)[:, 0, : state.logits_BV.shape[1]]
    seen_BV = state.seen_BV
    if seen_BV is not None:
        seen_BV = seen_BV.at[jnp.arange(len(token_B)), token_B].set(True)
    assert out.cache is not None
    return Decoding(out.cache, logits_BV, state.keys_B, seen_BV, state.count + 1), token_B
