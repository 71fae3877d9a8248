"""Prompts at the door: texts or ids become a checked, padded batch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.core import rng
from research.core.errors import UserError
from research.data.tokenizer import Tokenizer
from research.model import blanks
from research.model.config import ModelConfig
from research.sample import decode as D
from research.sample.options import Sampling
from research.sample.rows import Reason

SHORTEST = 16  # prompts are padded to this many tokens, or to a power of two above

Prompt = str | Sequence[int] | np.ndarray | None
"""A text, its token ids, or None: the start of a document."""


def is_one(prompts: Any) -> bool:
    """Whether this is one prompt, a text or its ids, and not several."""
    # What is no prompt at all, `prompt_ids` refuses.
    if isinstance(prompts, (str, Mapping)) or not hasattr(prompts, "__len__"):
        return True
    if hasattr(prompts, "ndim"):
        prompts = np.asarray(prompts)
        return prompts.ndim < 2 and prompts.dtype.kind not in "OU"
    return len(prompts) > 0 and all(isinstance(one, (int, np.integer)) for one in prompts)


def prompt_ids(tokenizer: Tokenizer | None, prompt: Prompt, config: ModelConfig) -> np.ndarray:
    """The ids that a prompt starts from, (P,) int32 with P from 1 to what `config.context` has room for. Raises UserError where there are none.

    A text gets what its tokeniser puts before prompts. The start of a document is that alone, or the separator of documents, or a line end
    where there is neither.
    """
    if isinstance(prompt, str) or prompt is None:
        if tokenizer is None:
            raise UserError("the model has no tokeniser, so it takes no text; give the prompt as token ids")
        if prompt == "":
            raise UserError("the prompt is empty; give a text, or none at all (None, no --prompt) to start a document")
        ids = _text_ids(tokenizer, prompt or "")
    else:
        ids = _given_ids(prompt, text_ids(tokenizer, config))
    if len(ids) and (largest := int(np.max(ids))) >= config.V:
        raise UserError(
            f"the prompt holds the token id {largest}, but the model's are 0 to {config.V - 1}; leave that token out"
        )
    room = config.context - _markers(config)
    if len(ids) > room:
        raise UserError(
            f"the prompt has {len(ids)} tokens, but the model's context is {config.context}; "
            f"leave out at least {len(ids) - room} of them, or take a model of a longer context"
        )
    return ids.astype(np.int32)


def _text_ids(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    ids = tokenizer.encode_prompt(prompt)
    if len(ids) == 0:
        try:
            ids = tokenizer.encode("\n") if tokenizer.eot is None else [tokenizer.eot]
        except UserError:
            ids = []
    if len(ids) == 0:
        raise UserError("the prompt has no tokens, and the tokeniser nothing to start from; give another prompt")
    return np.asarray(ids)


def _given_ids(prompt: Any, vocab: int) -> np.ndarray:
    try:
        ids = np.asarray(prompt)
    except ValueError:
        ids = np.zeros((0, 0))
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise UserError(f"the prompt {prompt!r} is neither text nor a list of token ids")
    if ids.size == 0:
        raise UserError("a prompt of token ids is empty; give at least one id to start from")
    wrong = ids[(ids < 0) | (ids >= vocab)]
    if wrong.size:
        raise UserError(f"the prompt holds the token id {wrong[0]}; ids are 0 to {vocab - 1}")
    return ids


def vocabulary(tokenizer: Tokenizer | None, config: ModelConfig) -> int:
    """How many ids can be drawn: those of text, and of a model that fills blanks the end. Raises UserError as `text_ids` does."""
    return text_ids(tokenizer, config) + config.fills_blanks


def text_ids(tokenizer: Tokenizer | None, config: ModelConfig) -> int:
    """How many ids stand for text: those that both the tokeniser and the model have. Raises UserError where a model that fills blanks has another
    tokeniser's."""
    special = blanks.blank_ids(config)
    known = config.V if special is None else special.text
    if tokenizer is None:
        return known
    if special is not None and tokenizer.vocab_size != known:
        ids = f"the tokeniser has {tokenizer.vocab_size} ids, the model {known}"
        raise UserError(f"{ids}; give the tokeniser that it was trained with")
    return min(tokenizer.vocab_size, known)


def _markers(config: ModelConfig) -> int:
    """How many tokens stand between a prompt and its continuation."""
    return 2 if config.fills_blanks else 0


def limit(ids: np.ndarray, config: ModelConfig, sampling: Sampling) -> tuple[int, Reason]:
    """How many tokens may follow a prompt, and what ends them there."""
    room = config.context - len(ids) - _markers(config) + 1  # the last token drawn needs no position
    if config.positions == "learned" and room < sampling.max_tokens:
        return room, "context"
    return sampling.max_tokens, "length"


def padded_length(longest: int, config: ModelConfig) -> int:
    """The length that a batch of prompts is padded to: 16, 32, 64, ... but no more than the context."""
    return min(max(SHORTEST, 1 << (longest - 1).bit_length()), config.context)


def batch(prompts: Sequence[Prompt], encoded: list[np.ndarray], config: ModelConfig, num: int) -> D.Prompts:
    """The prompts as arrays. One that was given before numbers its samples on from there."""
    names = [one if isinstance(one, str) else f"ids {ids.tolist()}" for one, ids in zip(prompts, encoded, strict=True)]
    before, first = Counter[str](), []
    for name in names:
        first.append(before[name])
        before[name] += num
    special, prefix_B = blanks.blank_ids(config), None
    if special is not None:
        laid_out = [blanks.continued(ids, special) for ids in encoded]
        encoded, prefix_B = [ids for ids, _ in laid_out], np.array([prefix for _, prefix in laid_out], np.int32)
    length = padded_length(max(map(len, encoded), default=1), config)
    tokens = [np.pad(ids, (0, length - len(ids))) for ids in encoded]
    return D.Prompts(
        np.array(tokens, np.int32), np.array([len(one) for one in encoded], np.int32),
        np.array([rng.name_to_int(name) for name in names], np.uint32), np.array(first, np.int32), prefix_B,
    )  # fmt: skip
