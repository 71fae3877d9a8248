"""Text from a model: `generate` and `continuations` take prompts to what follows them, streaming what is safe to show."""

import dataclasses
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from research.core import sharding
from research.core.config import require
from research.core.errors import UserError
from research.data.tokenizer import Tokenizer
from research.model.blanks import blank_ids
from research.sample import beams, constrain, speculate
from research.sample import decode as D
from research.sample import filters as F
from research.sample import prompts as Q
from research.sample.models import Loaded, mesh_of, opened, prepared
from research.sample.options import Sampling, sampling_of
from research.sample.rows import Piece, Reason, Row, stop_ids

OnText = Callable[[int, str], None]


@dataclasses.dataclass(frozen=True)
class Generation:
    """One continuation. `text` excludes the prompt, the stop string, and a last character that is not complete; `tokens` are
    all ids that were drawn.

    `finish_reason`: "stop" (a stop string; a stop token, then the last of `tokens`; a constraint that lets nothing
    follow), "length" (`max_tokens`), "context" (no learned position is left), "none" (a beam search found no further
    sequence). `first_seconds` and `seconds`: from the call until the row's first chunk, of `first_tokens`, and until its last.

    With `logprobs`: the log-probability of every token under the model's own softmax, before penalties, filters and
    temperature, and the most probable `(id, log-probability)` in its place, best first. `score`: of a beam search.
    With speculative decoding: how many tokens were `proposed`, and how many of these the model `accepted`.
    """

    prompt: str
    text: str
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    finish_reason: Reason
    first_tokens: int
    first_seconds: float
    seconds: float
    logprobs: tuple[float, ...] | None = None
    alternatives: tuple[tuple[tuple[int, float], ...], ...] | None = None
    score: float | None = None
    proposed: int | None = None
    accepted: int | None = None


def _with_options(function: Callable) -> Callable:
    """`function` with the fields of Sampling in its signature in place of `**options`, for `help` and notebooks."""
    *own, last, _ = inspect.signature(function).parameters.values()
    options = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for f in dataclasses.fields(Sampling)
    ]
    function.__dict__["__signature__"] = inspect.Signature([*own, *options, last])
    return function


@_with_options
def generate(
    model: Any,
    prompt: Q.Prompt | Sequence[Q.Prompt],
    *,
    draft: Any = None,
    on_text: OnText | None = None,
    **options: Any,
) -> str | list[str]:
    """The text that follows a prompt; for several prompts, or `num` samples, a list of them in order.

    `model`: what `research.hf.load` or `research.load_run` gives. A prompt is a text, its token ids, or None: the start of a
    document. The options are the fields of `research.sample.Sampling`; `draft`, a smaller model, speeds them up;
    `on_text(row, text)` gets each text as it grows. Raises UserError as `continuations` does, for no prompt, and for a model
    without a tokeniser.
    """
    one = Q.is_one(prompt)
    prompts: Any = [prompt] if one else prompt
    if len(prompts) == 0:
        raise UserError("there is no prompt; give a text, at least one token id, or a list of such prompts")
    how, loaded = sampling_of(options), opened(model)
    if loaded.tokenizer is None:
        raise UserError("the model has no tokeniser, so there is no text; sample.continuations gives token ids")
    texts = [found.text for found in continuations(model, prompts, how, on_text, draft)]
    return texts[0] if one and how.num == 1 else texts


def continuations(
    model: Any, prompts: Sequence[Q.Prompt], sampling: Sampling, on_text: OnText | None = None, draft: Any = None
) -> list[Generation]:
    """`sampling.num` continuations of every prompt, in order of prompts; `on_text(row, text)` gets each as it grows.

    `model` has `params`, a ModelConfig as `config` or `model`, and a `tokenizer`, which may be None where all prompts are
    token ids: then there is no text. What it prepares for decoding is kept for as long as `model` lives.

    What a prompt continues to depends on the seed, the prompt and the number of the sample, not on what else is in the
    batch (up to near ties, which rounding decides). A prompt given again continues with further samples. None
    starts from what the tokeniser puts before prompts, its separator of documents, or a line end. Ids that the tokeniser
    lacks are never drawn. A model that fills blanks reads the prompt in both directions and ends where it ends its blank.

    A `draft` model of the same tokeniser, or `sampling.lookup`, makes it speculative decoding: what a greedy continuation is
    and how a drawn one is distributed stay the same, but other tokens are drawn for a seed.

    Rotary, sinusoidal, ALiBi and absent positions may go beyond `config.context`. Learned ones cannot: there the row
    ends with reason "context". Raises UserError for a prompt longer than the context, one that cannot be encoded or holds
    an unknown id, a constraint that is none, and a draft model that does not
    go with the model or the options.
    """
    start = time.perf_counter()
    loaded = opened(model)
    request = _request(model, loaded, prompts, sampling, draft)
    rows, firsts, seconds = request.rows, [(0, 0.0)] * len(request.rows), [0.0] * len(request.rows)
    with sharding.use(mesh_of(loaded.params)):
        for pieces in rounds(request):
            now = time.perf_counter() - start
            for b, (row, piece) in enumerate(zip(rows, pieces, strict=True)):
                if row.reason is None and (piece.tokens or piece.end):
                    text = row.take(piece)
                    firsts[b] = (len(row.tokens), now) if seconds[b] == 0 else firsts[b]
                    seconds[b] = now
                    if on_text is not None and text:
                        on_text(b, text)
    return [_generation(request, b, prompts, *firsts[b], seconds[b]) for b in range(len(rows))]


@dataclasses.dataclass(frozen=True)
class Request:
    """All that a generator of rounds needs: the compiled half's inputs, and the rows, which know how many tokens they take."""

    model: D.Model
    draft: D.Model | None
    tokenizer: Tokenizer | None
    prompts: D.Prompts
    ids: list[np.ndarray]  # of every prompt
    vocab: int  # ids below it may be drawn
    stop_ids: tuple[int, ...]
    sampling: Sampling
    filters: F.Filters
    automaton: constrain.Automaton | None  # None: any token may follow
    rows: list[Row]  # `sampling.num` for every prompt

    @property
    def speculative(self) -> bool:
        return self.draft is not None or self.sampling.lookup is not None


def _request(model: Any, loaded: Loaded, prompts: Sequence[Q.Prompt], sampling: Sampling, draft: Any) -> Request:
    tokenizer, config = loaded.tokenizer, loaded.config
    vocab = Q.vocabulary(tokenizer, config)
    ids = [Q.prompt_ids(tokenizer, prompt, config) for prompt in prompts]
    limits = [Q.limit(one, config, sampling) for one in ids]
    owners = [i for i in range(len(ids)) for _ in range(sampling.num)]
    batch = Q.batch(prompts, ids, config, sampling.num)
    end = None if (special := blank_ids(config)) is None else special.end
    stops = stop_ids(tokenizer, end)
    return Request(
        prepared(model, loaded), _drafting(draft, loaded, vocab, sampling), tokenizer, batch, ids, vocab,
        stops, sampling, sampling.filters(), _automaton(tokenizer, vocab, sampling, stops),
        [Row(tokenizer, ids[i], *limits[i], sampling.stop, end) for i in owners],
    )  # fmt: skip


def _drafting(draft: Any, target: Loaded, vocab: int, sampling: Sampling) -> D.Model | None:
    """The draft model as decoding reads it, None where there is none."""
    if draft is None:
        unused = sampling.lookup is None and sampling.draft_tokens != Sampling.draft_tokens
        require(not unused, "draft_tokens", sampling.draft_tokens, "nothing without a draft model or lookup")
        return None
    sampling.check_draft()
    loaded = opened(draft)
    speculate.check_draft(target, loaded, vocab)
    return prepared(draft, loaded)


def _automaton(
    tokenizer: Tokenizer | None, vocab: int, sampling: Sampling, stops: tuple[int, ...]
) -> constrain.Automaton | None:
    """What the options let a continuation be, None without such an option."""
    regex, schema = sampling.regex, sampling.schema()
    if regex is None and schema is None:
        return None
    if tokenizer is None:
        raise UserError("the model has no tokeniser, so no text can be required; leave out regex and json_schema")
    return constrain.compile(tokenizer, vocab, regex=regex, json_schema=schema, stop_ids=stops)


def _generation(
    request: Request, b: int, prompts: Sequence[Q.Prompt], first_tokens: int, first_seconds: float, seconds: float
) -> Generation:
    row, i = request.rows[b], b // request.sampling.num
    given, ids, wanted = prompts[i], request.ids[i], request.sampling.logprobs
    decode = (lambda _: "") if request.tokenizer is None else request.tokenizer.decode
    return Generation(
        given if isinstance(given, str) else decode(ids), row.text, tuple(ids.tolist()), tuple(row.tokens), row.reason or "length",
        first_tokens, first_seconds, seconds,
        logprobs=None if wanted is None else tuple(row.logprobs),
        alternatives=tuple(row.alternatives) if wanted else None, score=row.score,
        proposed=row.proposed if request.speculative else None, accepted=row.accepted if request.speculative else None,
    )  # fmt: skip


def rounds(request: Request) -> Iterator[list[Piece]]:
    """Yields the next piece of every row for as long as a row goes on; pieces of one round may differ in length."""
    rows = request.rows
    if not any(row.left for row in rows):
        return
    if request.automaton is not None:
        places = constrain.start(request.automaton, 1)
        if bool(constrain.finished(request.automaton, places)[0]):
            yield [Piece([], end="stop") for _ in rows]
            return
    if (request.speculative or request.sampling.beams > 1) and (turn := _turn(request)):
        raise UserError(
            f"the text may grow beyond {turn} tokens, where this model (LongRoPE) reads all of it again; beams, a draft model and lookup cannot. "
            "Ask for fewer tokens, or leave them out"
        )
    make = _speculated if request.speculative else _searched if request.sampling.beams > 1 else _drawn
    yield from make(request)


def _drawn(request: Request) -> Iterator[list[Piece]]:
    """At most CHUNK tokens of every row a round."""
    rows, length, state = request.rows, _length(request), _start(request, request.sampling.num)
    turn = _turn(request)
    texts = [list(request.ids[b // request.sampling.num]) for b in range(len(rows))]
    while wanted := max(row.left for row in rows):
        steps = min([wanted, D.CHUNK, *(turn + 1 - len(text) for text in texts if turn and len(text) <= turn)])
        state, drawn = D.decoder()(
            request.model, state, request.filters, np.int32(steps), request.automaton,
            alternatives=request.sampling.logprobs or 0,
        )  # fmt: skip
        drawn = jax.tree.map(lambda x, steps=steps: np.asarray(x)[:, :steps], drawn)
        yield [_piece(jax.tree.map(lambda x, b=b: x[b], drawn)) for b in range(len(rows))]
        for text, new in zip(texts, drawn.tokens, strict=True):
            text += new.tolist()
        if turn and any(len(text) == turn + 1 for text in texts):
            state = _read_again(request, state, texts, length)


def _turn(request: Request) -> int | None:
    """The tokens above which a model of LongRoPE rotates by its other factors, where a text may grow beyond them; None elsewhere. All that a cache
    holds was computed by the factors of its time, so the text is then read again, as transformers does."""
    config = request.model.config
    turn = config.rope.original_context
    if config.positions != "rotary" or config.rope.scaling != "longrope":
        return None
    lengths = [len(ids) for ids in request.ids for _ in range(request.sampling.num)]
    crosses = any(length <= turn < length + row.left for length, row in zip(lengths, request.rows, strict=True))
    return turn if crosses else None


def _read_again(request: Request, state: D.Decoding, texts: list[list[int]], length: int) -> D.Decoding:
    """The state with cache and logits computed anew from the whole texts."""
    longest = max(map(len, texts))
    width = max(longest, Q.padded_length(longest, request.model.config))
    prompts = D.Prompts(
        np.array([text + [0] * (width - len(text)) for text in texts], np.int32), np.array(list(map(len, texts)), np.int32),
        np.zeros(len(texts), np.uint32), np.zeros(len(texts), np.int32),
    )  # fmt: skip
    fresh = D.prefill(
        request.model, prompts, np.uint32(0), num=1, vocab=request.vocab, length=length, drawn=False, remember=False,
        normed=state.norm_B is not None, stored=request.sampling.cache,
    )  # fmt: skip
    return dataclasses.replace(state, cache=fresh.cache, logits_BV=fresh.logits_BV, norm_B=fresh.norm_B)


def _speculated(request: Request) -> Iterator[list[Piece]]:
    """What a round of speculative decoding brings: up to `draft_tokens` and one more of every row."""
    left = lambda: [row.left for row in request.rows]  # noqa: E731
    return speculate.rounds(request.model, request.draft, request.prompts, request.sampling, left, request.vocab)


def _searched(request: Request) -> Iterator[list[Piece]]:
    """One round: the best sequences of a beam search."""
    how = request.sampling
    limits = np.array([row.left for row in request.rows[:: how.num]], np.int32)
    found, _ = beams.search(
        request.model, _start(request, how.beams), request.filters, np.array(request.stop_ids, np.int32), limits,
        np.float32(how.length_penalty), request.automaton, beams=how.beams, length=_chunks(limits.max()),
        early_stopping=how.early_stopping, alternatives=how.logprobs or 0,
    )  # fmt: skip
    found = jax.tree.map(np.asarray, found)

    def piece(i: int, r: int) -> Piece:
        score, length = float(found.scores[i, r]), found.lengths[i, r]
        if score == -np.inf:
            return Piece([], end="none")
        one = _piece(jax.tree.map(lambda x: x[i, r, :length], found.drawn))
        return dataclasses.replace(one, score=score, end="stop" if found.ended[i, r] else None)

    yield [piece(i, r) for i in range(len(limits)) for r in range(how.num)]


def _start(request: Request, num: int) -> D.Decoding:
    """The state after the prompts, `num` rows of each, with what the options need."""
    how, filters = request.sampling, request.filters
    state = D.prefill(
        request.model, request.prompts, np.uint32(how.seed), num=num, vocab=request.vocab, length=_length(request),
        drawn=filters.temperature is not None, remember=filters.repetition_penalty is not None,
        counted=filters.counts, normed=how.logprobs is not None or how.beams > 1, stored=how.cache,
    )  # fmt: skip
    D.check_numbers(state.logits_BV)
    if request.automaton is None:
        return state
    return dataclasses.replace(state, places_B=constrain.start(request.automaton, len(request.ids) * num))


def _length(request: Request) -> int:
    """How many tokens a cache for the prompts and what is still to come holds."""
    return request.prompts.tokens_BT.shape[1] + _chunks(max(row.left for row in request.rows))


def _chunks(tokens: int) -> int:
    """So many tokens in whole chunks: few lengths, so that later calls find their programs compiled."""
    return -(-int(tokens) // D.CHUNK) * D.CHUNK


def _piece(drawn: D.Drawn) -> Piece:
    """One row's tokens (T,) as lists, up to the one after which nothing may follow."""
    tokens, end = drawn.tokens.tolist(), None
    if drawn.ended is not None and drawn.ended.any():
        tokens, end = tokens[: int(drawn.ended.argmax()) + 1], "stop"
    alternatives = []
    if drawn.top_tokens is not None and drawn.top_logprobs is not None:
        pairs = zip(drawn.top_tokens.tolist(), drawn.top_logprobs.tolist(), strict=True)
        alternatives = [tuple(zip(*pair, strict=True)) for pair in pairs]
    return Piece(tokens, [] if drawn.logprobs is None else drawn.logprobs.tolist(), alternatives, end)
