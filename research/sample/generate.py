"""Text from a model: `generate` takes prompts to continuations, streaming what is safe to show."""

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from research.core import params as P
from research.core import rng
from research.core.errors import UserError
from research.data.tokenizer import Tokenizer
from research.model.config import ModelConfig, require
from research.sample import decode as D
from research.sample import filters as F
from research.sample.rows import Reason, Row

MOST = 1_000_000  # tokens of a sample, and samples of a prompt
SHORTEST = 16  # prompts are padded to this many tokens, or to a power of two above

OnText = Callable[[int, str], None]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to draw a continuation. None leaves a filter out; the penalty applies first, the others in this order."""

    max_tokens: int = 200
    temperature: float = 1.0  # 0: the most probable token each time
    top_k: int | None = None  # only the k most probable tokens
    top_p: float | None = None  # only the fewest tokens whose probabilities reach p together
    min_p: float | None = None  # only tokens at least this fraction as probable as the most probable one
    repetition_penalty: float | None = None  # above 1: tokens already in prompt or output become less probable
    num: int = 1  # samples of each prompt
    seed: int = 0
    stop: tuple[str, ...] = ()  # texts that end a sample, and are not part of it

    def __post_init__(self):
        require(0 <= self.max_tokens <= MOST, "max_tokens", self.max_tokens, f"a whole number from 0 to {MOST:,}")
        require(0 <= self.temperature < math.inf, "temperature", self.temperature, "a number of at least 0")
        require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "a whole number of at least 1")
        require(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "a probability in (0, 1]")
        require(self.min_p is None or 0 <= self.min_p <= 1, "min_p", self.min_p, "a fraction in [0, 1]")
        penalty = self.repetition_penalty
        require(penalty is None or 0 < penalty < math.inf, "repetition_penalty", penalty, "a number above 0")
        require(1 <= self.num <= MOST, "num", self.num, f"a whole number from 1 to {MOST:,}")
        require(0 <= self.seed < 2**32, "seed", self.seed, "a whole number in [0, 2^32)")
        require("" not in self.stop, "stop", self.stop, "texts that are not empty")

    def filters(self) -> F.Filters:
        """The filters that change anything: greedy drawing keeps only the penalty, and neutral values are left out."""
        penalty = None if self.repetition_penalty == 1 else self.repetition_penalty
        if self.temperature == 0:
            return F.make(repetition_penalty=penalty)
        return F.make(
            temperature=self.temperature, top_k=self.top_k, top_p=None if self.top_p == 1 else self.top_p,
            min_p=self.min_p or None, repetition_penalty=penalty,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Generation:
    """One continuation. `text` excludes the prompt and the stop string; `tokens` are all ids that were drawn.

    `finish_reason`: "stop" (a stop string, or the separator of documents, then the last of `tokens`), "length"
    (`max_tokens`), "context" (no learned position is left). `first_seconds` and `seconds`: from the call until the
    row's first chunk, and until its last.
    """

    prompt: str
    text: str
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    finish_reason: Reason
    first_seconds: float
    seconds: float


def generate(
    params: P.Tree,
    config: ModelConfig,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: Sampling,
    on_text: OnText | None = None,
) -> list[Generation]:
    """`sampling.num` continuations of every prompt, in order of prompts; `on_text(row, text)` gets each as it grows.

    What a prompt continues to depends on the seed, the prompt and the number of the sample, not on what else is in the
    batch (up to near ties, which rounding decides). A prompt given again continues with further samples. An empty one
    starts from the tokeniser's separator of documents, or from a line end where there is none. Ids that the tokeniser
    lacks are never drawn.

    Rotary, sinusoidal, ALiBi and absent positions may go beyond `config.context`. Learned ones cannot: there the row
    ends with reason "context". Raises UserError for a prompt longer than that, for one that cannot be encoded, and for
    a tokeniser larger than the model's vocabulary.
    """
    return generate_with(D.prepare(params, config), tokenizer, prompts, sampling, on_text)


def generate_with(
    model: D.Model, tokenizer: Tokenizer, prompts: Sequence[str], sampling: Sampling, on_text: OnText | None = None
) -> list[Generation]:
    """`generate` for a model that was prepared before, and serves many calls."""
    start = time.perf_counter()
    if tokenizer.vocab_size > model.config.V:
        ids = f"the tokeniser has {tokenizer.vocab_size} ids, the model {model.config.V}"
        raise UserError(f"{ids}; give the tokeniser that it was trained with")
    encoded = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    owners = [i for i in range(len(prompts)) for _ in range(sampling.num)]
    rows = [Row(tokenizer, encoded[i], *_limit(encoded[i], model.config, sampling), sampling.stop) for i in owners]
    times = [[0.0, 0.0] for _ in rows]
    batch = _batch(prompts, encoded, model.config, sampling.num)
    for tokens_BC in _chunks(model, tokenizer.vocab_size, batch, sampling, rows):
        now = time.perf_counter() - start
        for b, row in enumerate(rows):
            if row.reason is None:
                times[b] = [times[b][0] or now, now]
                text = row.push(tokens_BC[b])
                if on_text is not None and text:
                    on_text(b, text)
    ids = [tuple(one.tolist()) for one in encoded]
    return [
        Generation(prompts[i], row.text, ids[i], tuple(row.tokens), row.reason or "length", *seconds)
        for i, row, seconds in zip(owners, rows, times, strict=True)
    ]


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """The ids that a prompt starts from, (P,) int32 with P at least 1."""
    ids = tokenizer.encode(prompt)
    if len(ids) == 0:
        try:
            ids = tokenizer.encode("\n") if tokenizer.eot is None else [tokenizer.eot]
        except UserError:
            ids = []
    if len(ids) == 0:
        raise UserError(f"the prompt {prompt!r} has no tokens, and the tokeniser nothing to start from; give a prompt")
    return np.asarray(ids, np.int32)


def _limit(ids: np.ndarray, config: ModelConfig, sampling: Sampling) -> tuple[int, Reason]:
    """How many tokens may follow a prompt, and what ends them there."""
    if config.positions != "learned":
        return sampling.max_tokens, "length"
    if len(ids) > config.context:
        raise UserError(f"the prompt has {len(ids)} tokens, the model {config.context} learned positions; shorten it")
    room = config.context - len(ids) + 1  # the last token drawn needs no position
    return (room, "context") if room < sampling.max_tokens else (sampling.max_tokens, "length")


def padded_length(longest: int, config: ModelConfig) -> int:
    """The length that a batch of prompts is padded to: 16, 32, 64, ... but no more than there are learned positions."""
    length = max(SHORTEST, 1 << (longest - 1).bit_length())
    return min(length, config.context) if config.positions == "learned" else length


def _chunks(
    model: D.Model, vocab: int, prompts: D.Prompts, sampling: Sampling, rows: list[Row]
) -> Iterator[list[list[int]]]:
    """Yields the next tokens of every row, at most CHUNK of them, for as long as a row goes on."""
    wanted = max((row.left for row in rows), default=0)
    if wanted == 0:
        return
    filters = sampling.filters()
    state = D.prefill(
        model, prompts, np.uint32(sampling.seed), num=sampling.num, vocab=vocab,
        length=prompts.tokens_BT.shape[1] + -(-wanted // D.CHUNK) * D.CHUNK,
        drawn=filters.temperature is not None, remember=filters.repetition_penalty is not None,
    )  # fmt: skip
    while wanted := max(row.left for row in rows):
        steps = min(wanted, D.CHUNK)
        state, tokens_BC = D.decode(model, state, filters, np.int32(steps))
        yield np.asarray(tokens_BC)[:, :steps].tolist()


def _batch(prompts: Sequence[str], encoded: list[np.ndarray], config: ModelConfig, num: int) -> D.Prompts:
    """The prompts as arrays. One that was given before numbers its samples on from there."""
    before, first = Counter[str](), []
    for prompt in prompts:
        first.append(before[prompt])
        before[prompt] += num
    length = padded_length(max(map(len, encoded), default=1), config)
    tokens = [np.pad(ids, (0, length - len(ids))) for ids in encoded]
    ids = [rng.name_to_int(prompt) for prompt in prompts]
    return D.Prompts(
        np.array(tokens, np.int32), np.array([len(one) for one in encoded], np.int32),
        np.array(ids, np.uint32), np.array(first, np.int32),
    )  # fmt: skip
