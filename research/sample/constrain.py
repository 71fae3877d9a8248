"""Generation held to a regular expression or a JSON schema: an automaton over tokens, as arrays that a compiled loop reads.

The expression becomes an automaton over bytes, and that one over tokens, once, before generation (Willard and Louf 2023,
"Efficient Guided Generation for Large Language Models", arXiv 2307.09702). A step is then two look-ups: which tokens may
follow, and where the drawn one leads. Tokens that act alike in every state share a class, so the table has a column for each
of a few hundred classes instead of one for each token.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from research.core.errors import UserError
from research.data.tokenizer import Tokenizer
from research.sample import automata, schema

STOP = 0  # the class of the stop ids, whose column is not read
OUT = -1  # the state of a row that has taken a token it was not allowed

_UNKNOWN = "\ufffd".encode()


@struct.dataclass
class Automaton:
    """Q states, C classes of tokens. Rows start in state 0, and from every state tokens lead to an accepting one."""

    class_V: jax.Array  # int32: what a token counts as
    next_QC: jax.Array  # int32: the state after a token of that class; -1: forbidden
    accepting_Q: jax.Array  # bool: the text may end here


def start(automaton: Automaton, batch: int) -> jax.Array:
    """Returns the state before the first token of every row, (B,) int32."""
    return jnp.zeros(batch, jnp.int32)


def mask(automaton: Automaton, state_B: jax.Array) -> jax.Array:
    """Returns which tokens each row may take next, (B, V) booleans: those that some text of the language goes on with, and the
    stop ids where the text may end.

    A row that is out may only stop. Without stop ids the row of one that is `finished` is all False.
    """
    text_BC = _text(automaton, state_B)
    stop_B = (state_B == OUT) | automaton.accepting_Q[state_B]
    return text_BC.at[:, STOP].set(stop_B)[:, automaton.class_V]


def advance(automaton: Automaton, state_B: jax.Array, token_B: jax.Array) -> jax.Array:
    """Returns the states after one token a row, (B,) int32: a stop id keeps the state, a forbidden token leads to `OUT`, for
    good."""
    class_B = automaton.class_V[token_B]
    next_B = jnp.where(state_B == OUT, OUT, automaton.next_QC[state_B, class_B])
    return jnp.where(class_B == STOP, state_B, next_B)


def finished(automaton: Automaton, state_B: jax.Array) -> jax.Array:
    """Returns which rows no token of text can follow, (B,) booleans: the text is complete, or the row is out."""
    return ~jnp.any(_text(automaton, state_B), axis=-1)


def _text(automaton: Automaton, state_B: jax.Array) -> jax.Array:
    """Which classes of text each row may take next, (B, C) booleans."""
    allowed_BC = (automaton.next_QC[state_B] >= 0) & (state_B != OUT)[:, None]
    return allowed_BC.at[:, STOP].set(False)


def compile(
    tokenizer: Tokenizer,
    vocab: int,
    *,
    regex: str | None = None,
    json_schema: str | dict | None = None,
    stop_ids: Sequence[int],
) -> Automaton:
    """Returns the automaton of the texts that `regex` (the syntax of Rust's regex crate) matches as a whole, or of JSON texts
    that satisfy `json_schema` (see `schema.to_regex`), over a model's ids 0 to `vocab` - 1.

    The text is what follows the prompt. Ids that stand for no text, such as special tokens, are never allowed, except
    `stop_ids`, which only end a text. The same tokeniser and constraint give the same arrays again, from memory.

    Raises UserError unless exactly one constraint is given, where it is invalid, not supported or too large, where this
    tokeniser can write no text that satisfies it, for a stop id outside the vocabulary, and without the extra `constrain`.
    """
    if (regex is None) == (json_schema is None):
        raise UserError("a constraint is one of regex and json_schema: give exactly one of them.")
    if wrong := [number for number in stop_ids if not 0 <= number < vocab]:
        raise UserError(f"the stop id {wrong[0]} is not in the vocabulary: ids are 0 to {vocab - 1}.")
    expression, what = str(regex), "regular expression"
    if json_schema is not None:
        expression, what = schema.to_regex(json_schema), "JSON schema's regular expression"
    return _compiled(_Tokens(tokenizer.fingerprint, vocab, tokenizer), expression, what, tuple(sorted(set(stop_ids))))


@dataclass(frozen=True)
class _Tokens:
    """A key of the caches below: tokenisers of one fingerprint are one tokeniser."""

    fingerprint: str
    vocab: int
    tokenizer: Tokenizer = field(compare=False, repr=False)


@functools.lru_cache(maxsize=16)
def _compiled(tokens: _Tokens, regex: str, what: str, stop_ids: tuple[int, ...]) -> Automaton:
    words = list(token_bytes(tokens))
    for number in stop_ids:
        words[number] = b""
    found = automata.over_tokens(*automata.from_regex(regex, what), words)
    if found is None:
        raise UserError(
            f"this tokeniser ({tokens.tokenizer.kind}) can write no text that the {what} {automata.shown(regex)} matches."
        )
    class_V, next_QC, accepting_Q = found
    class_V = class_V + 1  # behind the column of STOP
    class_V[list(stop_ids)] = STOP
    next_QC = np.concatenate([np.full_like(next_QC[:, :1], -1), next_QC], axis=1)
    return Automaton(jnp.asarray(class_V, jnp.int32), jnp.asarray(next_QC), jnp.asarray(accepting_Q))


@functools.lru_cache(maxsize=4)
def token_bytes(tokens: _Tokens) -> tuple[bytes, ...]:
    """Returns what each id below `vocab` adds to a text that has begun; b"" where it adds nothing or nothing of its own.

    Tokens are read behind a letter, since what one says alone may differ: SentencePiece drops the space of a first word. A
    token that is one byte of a character shows as U+FFFD there; which byte it is, characters that are spelled with it tell.
    """
    tokenizer = tokens.tokenizer
    try:
        before = np.asarray(tokenizer.encode("a")).tolist()
    except UserError:  # a character tokeniser without that letter, whose tokens do not depend on what precedes them
        before = []
    prefix = tokenizer.decode_bytes(before)

    def added(number: int) -> bytes:
        text = tokenizer.decode_bytes([*before, number])
        return text[len(prefix) :] if text.startswith(prefix) else b""

    known = min(tokens.vocab, tokenizer.vocab_size)
    words = [added(number) for number in range(known)] + [b""] * (tokens.vocab - known)
    unclear = {number for number, word in enumerate(words) if word == _UNKNOWN}
    spelled = _spelled_in_bytes(tokenizer, unclear) if unclear else {}
    return tuple(spelled.get(number, b"") if number in unclear else word for number, word in enumerate(words))


def _spelled_in_bytes(tokenizer: Tokenizer, unclear: set[int]) -> dict[int, bytes]:
    """The bytes of tokens that show as U+FFFD alone, found in how the tokeniser spells characters that it has no token for."""
    points = [
        0xFFFD,
        *range(0x80, 0x800),
        *range(0x800, 0xD800, 29),
        *range(0xE000, 0x10000, 29),
        *range(0x10000, 0x110000, 4099),
    ]
    characters = [chr(point) for point in points]
    try:
        spellings = tokenizer.encode_many(characters)
    except UserError:  # it has no bytes to spell unknown characters in
        return {}
    found: dict[int, bytes] = {}
    for character, ids in zip(characters, spellings, strict=True):
        word, spelling = character.encode(), np.asarray(ids).tolist()
        parts = [bytes([byte]) for byte in word] if len(spelling) >= len(word) else [word]
        last = spelling[-len(parts) :]
        if unclear.issuperset(last) and tokenizer.decode_bytes(spelling).endswith(word):  # not so if it was normalised
            found |= dict(zip(last, parts, strict=True))
    return found
