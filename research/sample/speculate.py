"""Speculative decoding: something cheap proposes tokens, the target model judges them all at once, its distribution stays.

One compiled round (`advance`): up to C tokens are proposed for every row, by a draft model or by looking up how the text
went on before; the target evaluates them and the last token known in one pass of T = C + 1 positions; each row keeps
what it accepts, and one token more. A proposal d is kept with probability min(1, p(d) / q(d)), and the first that is not
is replaced by a draw from max(p - q, 0), which leaves every token distributed as p ("Fast Inference from Transformers via
Speculative Decoding", arXiv 2211.17192; "Accelerating Large Language Model Decoding with Speculative Sampling",
arXiv 2302.01318). p and q are the filtered distributions; a greedy one is all on one token, so greedy needs no other rule.

Token t of a row draws from `fold(the row's key, t, purpose)`. A later round may use such a key again, but only for a token
that no kept one depends on: what was proposed after a rejected token is gone.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from research.core import rng
from research.core.errors import UserError
from research.data.tokenizer import Tokenizer
from research.model import cache as kv
from research.model import head, transformer
from research.model.config import ModelConfig
from research.sample import filters as F
from research.sample.decode import CHUNK, Model, Prompts, check_numbers, row_keys, whole
from research.sample.models import Loaded, mesh_of
from research.sample.options import Sampling
from research.sample.rows import Piece


@struct.dataclass
class State:
    """A batch between two rounds. The target's cache holds all known tokens of a row but its last, the draft's these or one less."""

    cache: kv.Cache
    draft_cache: kv.Cache | None
    tokens_BS: jax.Array  # what is known: prompt and output
    prompt_B: jax.Array  # how much of it is the prompt
    keys_B: jax.Array | None  # None where nothing is random

    @property
    def known_B(self) -> jax.Array:
        """How many tokens of each row are known."""
        return self.cache.lengths_B + 1


@struct.dataclass
class Proposal:
    """The tokens proposed, how many of them each row really proposes, and the distributions (B, C, V) they were drawn from."""

    tokens_BC: jax.Array
    counts_B: jax.Array
    q_BCV: jax.Array


def rounds(
    model: Model,
    draft: Model | None,
    prompts: Prompts,
    sampling: Sampling,
    left: Callable[[], Sequence[int]],
    vocab: int,
) -> Iterator[list[Piece]]:
    """Yields the next piece of every row, of `sampling.num` rows a prompt, for as long as a row takes tokens.

    `left()` says how many each row still takes, and no row gets more. `draft` proposes, or without one the text itself, by
    `sampling.lookup`. With learned positions, a row's prompt and what it takes must fit the target's context, its very last
    token aside; a draft with fewer of them stops proposing there. A draft model knows at least `vocab` ids (`check_draft`).
    """
    filters = sampling.filters()
    static = {"vocab": vocab, "draft_tokens": sampling.draft_tokens}
    wanted = -(-max(left()) // CHUNK) * CHUNK  # few lengths, so that later calls find their programs
    length = prompts.tokens_BT.shape[1] + wanted + sampling.draft_tokens
    seed, sizes = np.uint32(sampling.seed), {"num": sampling.num, "length": length, "stored": sampling.cache}
    state, first_B1, logits_BV = start(model, draft, prompts, seed, filters, **sizes, **static)
    check_numbers(logits_BV)
    held = np.asarray(first_B1).tolist()  # goes out with what the first round adds to it
    while any(limits := left()):
        active_B = np.array([limit > len(tokens) for limit, tokens in zip(limits, held, strict=True)])
        state, *news = advance(model, draft, state, filters, active_B, lookup=sampling.lookup, **static)
        tokens_BT, new_B, proposed_B = jax.device_get(news)
        pieces = zip(held, tokens_BT.tolist(), new_B.tolist(), proposed_B.tolist(), limits, strict=True)
        yield [
            Piece([*before, *tokens[:new]][:limit], proposed=proposed, accepted=max(new - 1, 0))
            for before, tokens, new, proposed, limit in pieces
        ]
        held = [[] for _ in held]


def check_draft(target: Loaded, draft: Loaded, vocab: int) -> None:
    """Raises UserError for a draft model that cannot propose the target's ids 0 to `vocab` - 1, or not where the target is."""
    if vocab > draft.config.V:
        raise UserError(
            f"the draft model has {draft.config.V} ids, the model {vocab}; give a draft trained with its tokeniser"
        )
    if target.tokenizer is not None and draft.tokenizer is not None:
        check_tokenizers(target.tokenizer, draft.tokenizer)
    if mesh_of(target.params) != mesh_of(draft.params):
        raise UserError("the draft model is on other devices than the model; load both onto the same mesh")


def check_tokenizers(target: Tokenizer, draft: Tokenizer) -> None:
    """Raises UserError where an id stands for other bytes in one tokeniser than in the other; the files may differ."""
    if target.fingerprint == draft.fingerprint:
        return
    if target.vocab_size != draft.vocab_size:
        sizes = f"{draft.vocab_size} ids, the model's {target.vocab_size}"
        raise UserError(f"the draft model's tokeniser has {sizes}; give a draft model trained with the same tokeniser")
    other = next((i for i in range(target.vocab_size) if _meaning(target, i) != _meaning(draft, i)), None)
    if other is not None:
        both = f"{_meaning(draft, other)!r} to the draft model, {_meaning(target, other)!r} to the model"
        raise UserError(f"token {other} is {both}; give a draft model trained with the same tokeniser")


def _meaning(tokenizer: Tokenizer, token: int) -> bytes | str:
    """The bytes of an id, or what kind of id has none."""
    if token == tokenizer.eot:
        return "the separator of documents"
    try:
        return tokenizer.decode_bytes([token])
    except UserError:
        return "no token"


@partial(jax.jit, static_argnames=("num", "length", "vocab", "draft_tokens", "stored"))
def start(
    model: Model, draft: Model | None, prompts: Prompts, seed, filters: F.Filters, *,
    num: int, length: int, vocab: int, draft_tokens: int, stored: str = "auto",
) -> tuple[State, jax.Array, jax.Array]:  # fmt: skip
    """`(state, first tokens (B * num, 1), the logits that they were drawn from)` after the prompts, each repeated `num` times in a row; caches
    for `length` tokens."""
    tokens_BT, lengths_B = jnp.asarray(prompts.tokens_BT), jnp.asarray(prompts.lengths_B)
    sizes = {"length": length, "draft_tokens": draft_tokens, "vocab": vocab, "stored": stored}
    logits_BV, cache = _prefill(model, tokens_BT, lengths_B, prompts.prefix_B, **sizes)
    draft_cache = None if draft is None else _prefill(draft, tokens_BT, lengths_B, prompts.prefix_B, **sizes)[1]
    known_BS = jnp.pad(tokens_BT.astype(jnp.int32), ((0, 0), (0, length - tokens_BT.shape[1])))
    state = State(cache, draft_cache, known_BS, lengths_B.astype(jnp.int32), None)
    state, logits_BV = jax.tree.map(lambda x: jnp.repeat(x, num, axis=0), (state, logits_BV))
    if filters.temperature is not None:
        state = state.replace(keys_B=row_keys(seed, prompts, num))
    token_B = draw(distribution(logits_BV, filters), _fold(state.keys_B, jnp.zeros_like(state.prompt_B), "target"))
    rows_B = jnp.arange(len(token_B))
    state = state.replace(tokens_BS=state.tokens_BS.at[rows_B, state.prompt_B].set(token_B))
    return state, whole(token_B[:, None]), logits_BV


def _prefill(model: Model, tokens_BT, lengths_B, prefix_B, *, length: int, draft_tokens: int, vocab: int, stored: str):
    """The logits after each prompt and the cache that holds it. A prompt beyond learned positions is cut: nothing follows from it."""
    dtype = jnp.dtype(model.config.dtype if stored == "auto" else stored)
    cache = kv.init(model.config, len(lengths_B), length, dtype, draft=draft_tokens)
    if model.config.positions == "learned":
        tokens_BT, lengths_B = tokens_BT[:, : model.config.context], jnp.minimum(lengths_B, model.config.context)
    return _next(model, tokens_BT, lengths_B, cache, vocab, prefix_B)


@partial(jax.jit, static_argnames=("vocab", "draft_tokens", "lookup"), donate_argnames=("state",))
def advance(
    model: Model, draft: Model | None, state: State, filters: F.Filters, active_B, *, vocab, draft_tokens, lookup=None
) -> tuple[State, jax.Array, jax.Array, jax.Array]:
    """One round: `(state, tokens (B, T), how many of them are new (B,), how many were proposed (B,))`. Inactive rows stay as they are."""
    room_B = jnp.where(active_B, _room(model.config, draft, state, draft_tokens), 0)
    draft_cache = None
    if lookup is not None:
        proposal = look_up(state, room_B, most=lookup, draft_tokens=draft_tokens, vocab=vocab)
    else:
        assert draft is not None
        proposal, draft_cache = _propose(draft, state, room_B, filters, draft_tokens, vocab)
    last_B1 = jnp.take_along_axis(state.tokens_BS, state.cache.lengths_B[:, None], axis=1)
    tokens_BT = jnp.concatenate([last_B1, proposal.tokens_BC], axis=1)
    inputs = {"tokens": tokens_BT, "lengths": jnp.where(active_B, 1 + proposal.counts_B, 0)}
    out = transformer.hidden(model.params, inputs, model.config, cache=state.cache)
    logits_BTV = head.logits(model.params, out.outputs, model.config)[..., :vocab]
    p_BTV = jax.vmap(lambda logits_BV: distribution(logits_BV, filters), in_axes=1, out_axes=1)(logits_BTV)
    tokens_BT, new_B = judge(p_BTV, proposal, state.keys_B, state.known_B - state.prompt_B)
    new_B = jnp.where(active_B, new_B, 0)
    assert out.cache is not None
    state = _keep(state, out.cache, draft_cache, tokens_BT, new_B)
    return state, *whole((tokens_BT, new_B, proposal.counts_B))


def _room(config: ModelConfig, draft: Model | None, state: State, draft_tokens: int) -> jax.Array:
    """How many tokens may be proposed: every one needs a position of its own in the target, every one but the last in the draft."""
    room_B = jnp.full_like(state.prompt_B, draft_tokens)
    if config.positions == "learned":
        room_B = jnp.minimum(room_B, config.context - 1 - state.cache.lengths_B)
    if draft is not None and draft.config.positions == "learned":
        room_B = jnp.minimum(room_B, draft.config.context - state.cache.lengths_B)
    return jnp.maximum(room_B, 0)


def look_up(state: State, room_B: jax.Array, *, most: int, draft_tokens: int, vocab: int) -> Proposal:
    """Proposes what followed the last place where the text's end, its longest part of up to `most` tokens, stood before.

    Where less than `draft_tokens` tokens follow that place, they are repeated: the end overlaps it, or nearly, so the text may be
    going round. A row whose last token is new proposes nothing. Raises nothing; q is 1 at each token.
    """
    tokens_BS, known_B1 = state.tokens_BS, state.known_B[:, None]
    S = tokens_BS.shape[1]
    where_1S, run_BS, length_BS = jnp.arange(S)[None], True, 0
    for k in range(most):  # whether the k + 1 tokens up to here are the text's last k + 1
        end_B1 = jnp.take_along_axis(tokens_BS, jnp.maximum(known_B1 - 1 - k, 0), axis=1)
        run_BS = run_BS & (jnp.roll(tokens_BS, k, axis=1) == end_B1) & (where_1S >= k) & (where_1S < known_B1 - 1)
        length_BS = length_BS + run_BS
    longest_B1 = jnp.max(length_BS, axis=1, keepdims=True)
    next_B1 = jnp.max(jnp.where(length_BS == longest_B1, where_1S + 1, 0), axis=1, keepdims=True)
    follow_BC = next_B1 + jnp.arange(draft_tokens)[None] % jnp.maximum(known_B1 - next_B1, 1)
    tokens_BC = jnp.take_along_axis(tokens_BS, jnp.minimum(follow_BC, S - 1), axis=1)
    counts_B = jnp.where(longest_B1[:, 0] > 0, room_B, 0)
    return Proposal(tokens_BC, counts_B, jax.nn.one_hot(tokens_BC, vocab, dtype=jnp.float32))


def _propose(draft: Model, state: State, room_B, filters: F.Filters, draft_tokens: int, vocab: int):
    """`(Proposal, the draft's cache)`: it takes in the one or two known tokens that it lacks, and draws on its own from there."""
    cache = state.draft_cache
    assert cache is not None
    count_B = state.known_B - state.prompt_B
    lacking_B = jnp.where(room_B > 0, state.known_B - cache.lengths_B, 0)
    at_B2 = jnp.minimum(cache.lengths_B[:, None] + jnp.arange(2)[None], state.tokens_BS.shape[1] - 1)
    logits_BV, cache = _next(draft, jnp.take_along_axis(state.tokens_BS, at_B2, axis=1), lacking_B, cache, vocab)

    def pick(logits_BV, i):
        q_BV = distribution(logits_BV, filters)
        return draw(q_BV, _fold(state.keys_B, count_B + i, "draft")), q_BV

    def step(carry, i):
        logits_BV, cache = carry
        token_B, q_BV = pick(logits_BV, i)
        lengths_B = (i + 1 < room_B).astype(jnp.int32)  # the last one need not be taken in yet
        return _next(draft, token_B[:, None], lengths_B, cache, vocab), (token_B, q_BV)

    (logits_BV, cache), (tokens_CB, q_CBV) = jax.lax.scan(step, (logits_BV, cache), jnp.arange(draft_tokens - 1))
    token_B, q_BV = pick(logits_BV, draft_tokens - 1)
    tokens_BC = jnp.concatenate([tokens_CB, token_B[None]]).T
    q_BCV = jnp.moveaxis(jnp.concatenate([q_CBV, q_BV[None]]), 0, 1)
    return Proposal(tokens_BC, room_B, q_BCV), cache


def _next(model: Model, tokens_BT, lengths_B, cache: kv.Cache, vocab: int, prefix_B=None) -> tuple[jax.Array, kv.Cache]:
    """`(logits (B, V) after the last of each row's `lengths_B` tokens, the cache that holds them too)`."""
    inputs = {"tokens": tokens_BT, "lengths": lengths_B, "prefix": prefix_B}
    out = transformer.hidden(model.params, inputs, model.config, cache=cache)
    last_B1D = jnp.take_along_axis(out.outputs, jnp.maximum(lengths_B - 1, 0)[:, None, None], axis=1)
    assert out.cache is not None
    return head.logits(model.params, last_B1D, model.config)[:, 0, :vocab], out.cache


def judge(p_BTV: jax.Array, proposal: Proposal, keys_B, count_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`(tokens (B, T), how many of them are new (B,))`: the proposals kept, and one token of the target's own.

    Proposal i is token `count_B + i` of its row, drawn from `q_BCV[:, i]`, and `p_BTV[:, i]` is the target's distribution there.
    A proposal is kept while u q(d) < p(d) with u in [0, 1): never where p is 0, always where it is no less than q.
    """
    C = proposal.tokens_BC.shape[1]
    i_1C = jnp.arange(C)[None]
    p_BC1 = jnp.take_along_axis(p_BTV[:, :C], proposal.tokens_BC[:, :, None], axis=2)
    q_BC1 = jnp.take_along_axis(proposal.q_BCV, proposal.tokens_BC[:, :, None], axis=2)
    u_BC = 0.0 if keys_B is None else _uniform(keys_B, count_B[:, None] + i_1C)
    kept_BC = (u_BC * q_BC1[..., 0] < p_BC1[..., 0]) & (i_1C < proposal.counts_B[:, None])
    kept_B = jnp.sum(jnp.cumprod(kept_BC.astype(jnp.int32), axis=1), axis=1)
    rows_B = jnp.arange(len(kept_B))
    rejected_B = kept_B < proposal.counts_B  # otherwise the token after the last proposal is the target's to draw
    q_BV = jnp.where(rejected_B[:, None], proposal.q_BCV[rows_B, jnp.minimum(kept_B, C - 1)], 0)
    own_B = draw(residual(p_BTV[rows_B, kept_B], q_BV), _fold(keys_B, count_B + kept_B, "target"))
    return jnp.pad(proposal.tokens_BC, ((0, 0), (0, 1))).at[rows_B, kept_B].set(own_B), kept_B + 1


def residual(p_BV: jax.Array, q_BV: jax.Array) -> jax.Array:
    """What p has more than q, not normalised; p itself where rounding leaves nothing."""
    more_BV = jnp.maximum(p_BV - q_BV, 0)
    return jnp.where(jnp.any(more_BV > 0, axis=1, keepdims=True), more_BV, p_BV)


def distribution(logits_BV: jax.Array, filters: F.Filters) -> jax.Array:
    """The probabilities (B, V) that `filters.sample` draws from: 1 at the best token without a temperature."""
    if filters.temperature is None:
        return jax.nn.one_hot(F.largest(logits_BV), logits_BV.shape[1], dtype=jnp.float32)
    return jax.nn.softmax(F.filtered(logits_BV, filters), axis=-1)


def draw(weights_BV: jax.Array, keys_B: jax.Array | None) -> jax.Array:
    """One id a row, (B,) int32, with probabilities in proportion to the weights; the heaviest without keys."""
    if keys_B is None:
        return F.largest(weights_BV)
    noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, weights_BV.shape[1:], weights_BV.dtype))(keys_B)
    return F.largest(jnp.log(weights_BV) + noise_BV)


def _fold(keys_B: jax.Array | None, index_B: jax.Array, purpose: str) -> jax.Array | None:
    return None if keys_B is None else jax.vmap(lambda key, t: rng.fold(key, t, purpose))(keys_B, index_B)


def _uniform(keys_B: jax.Array, index_BC: jax.Array) -> jax.Array:
    """A number in [0, 1) for every token's acceptance, (B, C) float32."""
    one = jax.vmap(lambda key, t: jax.random.uniform(rng.fold(key, t, "accept")), in_axes=(None, 0))
    return jax.vmap(one)(keys_B, index_BC)


def _keep(state: State, cache: kv.Cache, draft_cache: kv.Cache | None, tokens_BT, new_B) -> State:
    """The state with `new_B` of these tokens: both caches go back to what is known, less its last token."""
    steps_1T = jnp.arange(tokens_BT.shape[1])[None]
    S = state.tokens_BS.shape[1]
    at_BT = jnp.where(steps_1T < new_B[:, None], state.known_B[:, None] + steps_1T, S)
    tokens_BS = state.tokens_BS.at[jnp.arange(len(new_B))[:, None], at_BT].set(tokens_BT, mode="drop")
    lengths_B = state.cache.lengths_B + new_B
    if draft_cache is not None:
        draft_cache = take_back(draft_cache, lengths_B)
    return State(take_back(cache, lengths_B), draft_cache, tokens_BS, state.prompt_B, state.keys_B)


def take_back(cache: kv.Cache, lengths_B: jax.Array) -> kv.Cache:
    """The cache with at most the first `lengths_B` tokens of each row: right as long as no more than its `draft` are taken back.

    The slots of what is taken back become empty. A query before them would not see them anyway, and those after find them written anew,
    but for a chunk that does not fit beside its window in the ring: it attends to the slots as they were before.
    """
    lengths_B = jnp.minimum(cache.lengths_B, lengths_B)

    def empty(layer: kv.LayerCache) -> kv.LayerCache:
        positions_BS = jnp.where(layer.positions_BS < lengths_B[:, None], layer.positions_BS, -1)
        return dataclasses.replace(layer, positions_BS=positions_BS)

    return kv.constrain(dataclasses.replace(cache, layers=tuple(map(empty, cache.layers)), lengths_B=lengths_B))
