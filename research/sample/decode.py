"""The compiled half of generation: one prefill of a batch of prompts, then chunks of tokens with the cache donated.

Three programs are compiled for a model and kept by their shapes: `prepare` (once), `prefill` and `decode`. The caller
pads prompts to a few lengths, and how many tokens a chunk draws is traced, so later calls find their programs compiled.
"""

import dataclasses
import functools
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from research.core import dtypes, host, rng, sharding
from research.core import params as P
from research.core.errors import UserError
from research.model import cache as kv
from research.model import head, transformer
from research.model.config import ModelConfig
from research.sample import constrain
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
    prefix_B: jax.Array | np.ndarray | None = None  # how many of them see each other in both directions; None: none


@struct.dataclass
class Decoding:
    """A batch in the middle of generation. `logits_BV` are those of the next token, which will be number `count`.

    What only some options need is None without them.
    """

    cache: kv.Cache
    logits_BV: jax.Array  # of the ids that may be drawn
    keys_B: jax.Array | None  # of what is random
    seen_BV: jax.Array | None  # whether a token occurs in prompt or output
    count: jax.Array
    counts_BV: jax.Array | None = None  # how often a token occurs in the output
    norm_B: jax.Array | None = None  # the log of the sum of exp of all the model's logits
    places_B: jax.Array | None = None  # where in the automaton a constrained row is


@struct.dataclass
class Drawn:
    """One token of every row, (B,) and (B, n) for n alternatives, or after a chunk (B, CHUNK) and (B, CHUNK, n).

    Log-probabilities are the model's own, before penalties and filters.
    """

    tokens: jax.Array
    ended: jax.Array | None = None  # whether a constraint lets nothing follow
    logprobs: jax.Array | None = None
    top_tokens: jax.Array | None = None  # the most probable ones, best first
    top_logprobs: jax.Array | None = None


def prepare(params: P.Tree, config: ModelConfig) -> Model:
    """The model for decoding: its weights cast and arranged once (`transformer.prepared`).

    It may share arrays with `params`, so they must not be donated while it is in use.
    """
    dtype = dtypes.compute_dtype(config.dtype, params["embed"]["tokens"].dtype)
    ready = dataclasses.replace(config, dtype=dtype.name, attention="auto", dropout=None, remat="none", unroll=1)
    return Model(_prepare(params, config, dtype), ready)


_prepare = partial(jax.jit, static_argnames=("config", "dtype"))(transformer.prepared)


@partial(jax.jit, static_argnames=("num", "length", "vocab", "drawn", "remember", "counted", "normed", "stored"))
def prefill(
    model: Model, prompts: Prompts, seed, *, num: int, length: int, vocab: int, drawn: bool, remember: bool,
    counted: bool = False, normed: bool = False, stored: Literal["auto", "int8"] = "auto",
) -> Decoding:  # fmt: skip
    """The state after the prompts, each repeated `num` times in a row, with a cache for `length` tokens.

    Logits are cut to the first `vocab` ids. `drawn`: with random keys; `remember`: with the tokens seen; `counted`: with
    the output's tokens counted; `normed`: with what turns logits into log-probabilities; `stored`: how the cache is.
    """
    tokens_BT, lengths_B = jnp.asarray(prompts.tokens_BT), jnp.asarray(prompts.lengths_B)
    B, T = tokens_BT.shape
    cache = kv.init(model.config, B, length, jnp.dtype(model.config.dtype if stored == "auto" else stored))
    inputs = {"tokens": tokens_BT, "lengths": lengths_B, "prefix": prompts.prefix_B}
    out = transformer.hidden(model.params, inputs, model.config, cache=cache)
    last_B1D = jnp.take_along_axis(out.outputs, (lengths_B - 1)[:, None, None], axis=1)
    logits_BV = head.logits(model.params, last_B1D, model.config)[:, 0]
    norm_B = jax.nn.logsumexp(logits_BV, axis=-1) if normed else None
    seen_BV = None
    if remember:
        ids_BT = jnp.where(jnp.arange(T)[None] < lengths_B[:, None], tokens_BT, vocab)
        seen_BV = jnp.zeros((B, vocab), bool).at[jnp.arange(B)[:, None], ids_BT].set(True, mode="drop")
    each = (out.cache, logits_BV[:, :vocab], seen_BV, norm_B)
    cache, logits_BV, seen_BV, norm_B = jax.tree.map(lambda x: jnp.repeat(x, num, axis=0), each)
    return Decoding(
        cache=kv.constrain(cache), logits_BV=logits_BV, keys_B=row_keys(seed, prompts, num) if drawn else None,
        seen_BV=seen_BV, count=jnp.zeros((), jnp.int32),
        counts_BV=jnp.zeros((B * num, vocab), jnp.int32) if counted else None, norm_B=norm_B,
    )  # fmt: skip


def check_numbers(logits_BV: jax.Array) -> None:
    """Raises UserError where logits are NaN, of which no draw would tell."""
    if bool(jnp.any(jnp.isnan(logits_BV))):
        raise UserError(
            "the model's logits are not numbers (NaN): its weights are damaged, or beyond what their dtype holds"
        )


def row_keys(seed: jax.Array, prompts: Prompts, num: int) -> jax.Array:
    """Sample n of a prompt draws from `key(seed, "sample", the prompt's id, n)`, whatever else is in the batch."""
    numbers_B = (prompts.first_B[:, None] + jnp.arange(num)[None]).reshape(-1)
    ids_B = jnp.repeat(prompts.ids_B, num)
    return jax.vmap(lambda identity, n: rng.key(seed, "sample", identity, n))(ids_B, numbers_B)


@functools.cache
def decoder() -> Any:
    """The compiled `decode(model, state, filters, steps, automaton=None, *, alternatives=0)`, `state` donated: `(state, what was drawn)` after
    `steps` more tokens a row; the columns from `steps` on are 0. Made once the device is known whose options it needs.

    `automaton` constrains the tokens. Beside log-probabilities come those of so many `alternatives`.
    """
    return jax.jit(
        _decode, donate_argnames=("state",), static_argnames=("alternatives",), compiler_options=host.decodes()
    )


def _decode(
    model: Model, state: Decoding, filters: F.Filters, steps, automaton: constrain.Automaton | None = None, *, alternatives: int = 0
) -> tuple[Decoding, Drawn]:  # fmt: skip
    def step(i, carry):
        state, one = advance(model, carry[0], filters, automaton, alternatives)
        place = partial(jax.lax.dynamic_update_slice_in_dim, start_index=i, axis=1)
        return state, jax.tree.map(lambda all, now: place(all, now[:, None]), carry[1], one)

    shapes = jax.eval_shape(lambda state: advance(model, state, filters, automaton, alternatives)[1], state)
    empty = jax.tree.map(lambda x: jnp.zeros((x.shape[0], CHUNK, *x.shape[1:]), x.dtype), shapes)
    state, drawn = jax.lax.fori_loop(0, steps, step, (state, empty))
    return state, whole(drawn)


def whole(tree: Any) -> Any:
    """The arrays entire on every host, all of which read them."""
    return jax.tree.map(lambda x: sharding.constrain(x, *[None] * x.ndim), tree)


def advance(
    model: Model,
    state: Decoding,
    filters: F.Filters,
    automaton: constrain.Automaton | None = None,
    alternatives: int = 0,
) -> tuple[Decoding, Drawn]:
    """`(the state after, one token for every row)`. Token t of a row draws from `fold(the row's key, t)`."""
    keys_B = None if state.keys_B is None else jax.vmap(lambda key: rng.fold(key, state.count))(state.keys_B)
    token_B = F.sample(state.logits_BV, filters, keys_B, past(state, automaton))
    drawn = Drawn(token_B)
    if state.norm_B is not None:
        values_BV = logprobs(state)
        taken_B = jnp.take_along_axis(values_BV, token_B[:, None], axis=1)[:, 0]
        drawn = dataclasses.replace(drawn, logprobs=taken_B, **top(values_BV, alternatives))
    state = feed(model, state, token_B, automaton)
    if automaton is not None and state.places_B is not None:
        drawn = dataclasses.replace(drawn, ended=constrain.finished(automaton, state.places_B))
    return state, drawn


def past(state: Decoding, automaton: constrain.Automaton | None) -> F.Past:
    """What the filters may ask of a state. A row that has ended, for which no token is left, is allowed all of them."""
    allowed_BV = None
    if automaton is not None and state.places_B is not None:
        allowed_BV = constrain.mask(automaton, state.places_B)
        allowed_BV = allowed_BV | ~jnp.any(allowed_BV, axis=-1, keepdims=True)
    return F.Past(state.seen_BV, state.counts_BV, allowed_BV)


def logprobs(state: Decoding) -> jax.Array:
    """The model's own log-probabilities of the next token, (B, V). Needs a state with `norm_B`."""
    assert state.norm_B is not None
    return state.logits_BV - state.norm_B[:, None]


def top(values_BV: jax.Array, n: int) -> dict[str, jax.Array]:
    """The n largest of every row as `top_logprobs` and `top_tokens`, best first; nothing for n = 0."""
    if n == 0:
        return {}
    values, tokens = jax.lax.top_k(values_BV, min(n, values_BV.shape[1]))
    return {"top_logprobs": values, "top_tokens": tokens}


def feed(model: Model, state: Decoding, token_B: jax.Array, automaton: constrain.Automaton | None = None) -> Decoding:
    """The state after one more token (B,) of every row."""
    rows_B, V = jnp.arange(len(token_B)), state.logits_BV.shape[1]
    out = transformer.hidden(model.params, token_B[:, None], model.config, cache=state.cache)
    assert out.cache is not None
    logits_BV = head.logits(model.params, out.outputs, model.config)[:, 0]
    seen_BV, counts_BV, places_B = state.seen_BV, state.counts_BV, state.places_B
    if automaton is not None and places_B is not None:
        places_B = constrain.advance(automaton, places_B, token_B)
    return Decoding(
        cache=kv.constrain(out.cache), logits_BV=logits_BV[:, :V], keys_B=state.keys_B,
        seen_BV=None if seen_BV is None else seen_BV.at[rows_B, token_B].set(True),
        count=state.count + 1,
        counts_BV=None if counts_BV is None else counts_BV.at[rows_B, token_B].add(1),
        norm_B=None if state.norm_B is None else jax.nn.logsumexp(logits_BV, axis=-1),
        places_B=places_B,
    )  # fmt: skip
