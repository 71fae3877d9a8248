"""Prompts at the door: what they start from, what is refused, how they are padded."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from research.core.errors import UserError
from research.model.config import ModelConfig
from research.sample.prompts import batch, is_one, padded_length, prompt_ids

CONFIG = ModelConfig(vocab_size=300, context=20, width=32, layers=1, heads=4)


def test_without_a_prompt_a_document_starts_from_the_separator_or_a_line_end(tokenizer, characters):
    assert prompt_ids(tokenizer, None, CONFIG).tolist() == [256]
    assert prompt_ids(characters("ab\n"), None, CONFIG).tolist() == [0]
    with pytest.raises(UserError, match="nothing to start from"):
        prompt_ids(characters("ab"), None, CONFIG)


def test_an_empty_text_is_refused_with_the_way_to_start_a_document(tokenizer):
    with pytest.raises(UserError, match="the prompt is empty; give a text, or none at all"):
        prompt_ids(tokenizer, "", CONFIG)


def test_a_tokeniser_may_have_more_ids_than_the_model_as_long_as_no_prompt_needs_them(tokenizer):
    small = dataclasses.replace(CONFIG, vocab_size=100)
    assert prompt_ids(tokenizer, "abc", small).tolist() == [97, 98, 99]
    with pytest.raises(UserError, match="holds the token id 122, but the model's are 0 to 99"):
        prompt_ids(tokenizer, "az", small)


@dataclasses.dataclass(frozen=True)
class Framed:
    """A tokeniser that puts 7 before every prompt."""

    inner: object

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def encode_prompt(self, text):
        return np.array([7, *self.inner.encode(text)])  # pyright: ignore[reportAttributeAccessIssue]


def test_what_a_tokeniser_puts_before_prompts_is_where_a_document_starts(tokenizer):
    assert prompt_ids(Framed(tokenizer), None, CONFIG).tolist() == [7]
    assert prompt_ids(Framed(tokenizer), "a", CONFIG).tolist() == [7, 97]


@pytest.mark.parametrize("positions", ["learned", "rotary", "alibi", "none", "sinusoidal"])
def test_a_prompt_beyond_the_context_is_refused_whatever_the_positions(positions, tokenizer):
    config = dataclasses.replace(CONFIG, positions=positions)
    assert len(prompt_ids(tokenizer, "p" * 20, config)) == 20
    for prompt in ("p" * 23, [1] * 23):
        with pytest.raises(UserError, match="23 tokens, but the model's context is 20; leave out at least 3"):
            prompt_ids(tokenizer, prompt, config)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "is empty"),
        ([3, 257], "token id 257; ids are 0 to 256"),
        ([-1], "token id -1"),
        ([1.5], "neither text nor"),
        ([[1], [2]], "neither text nor"),
        ([[1], [2, 3]], "neither text nor"),
        (3, "neither text nor"),
    ],
)
def test_bad_ids_are_refused(prompt, message, tokenizer):
    with pytest.raises(UserError, match=message):
        prompt_ids(tokenizer, prompt, CONFIG)


def test_without_a_tokeniser_ids_are_those_of_the_model():
    assert prompt_ids(None, np.array([299, 0]), CONFIG).tolist() == [299, 0]
    with pytest.raises(UserError, match="ids are 0 to 299"):
        prompt_ids(None, [300], CONFIG)
    with pytest.raises(UserError, match="no tokeniser, so it takes no text"):
        prompt_ids(None, "a", CONFIG)


def test_one_prompt_is_told_from_several():
    assert all(map(is_one, ("text", "", [1, 2], (1,), np.array([1, 2]), jnp.array([1, 2]), [np.int32(1)], 3)))
    assert not any(map(is_one, (["text"], [], [[1, 2]], [np.array([1])], np.array([[1, 2]]), np.array(["a", "b"]))))


def test_prompts_are_padded_to_few_lengths():
    lengths = {padded_length(n, dataclasses.replace(CONFIG, context=200)) for n in range(1, 200)}
    assert lengths == {16, 32, 64, 128, 200}
    assert all(padded_length(n, CONFIG) >= n for n in range(1, 21)) and padded_length(20, CONFIG) == 20


def test_a_prompt_given_again_numbers_its_samples_on(tokenizer):
    prompts = ["a", [98], "a", (98,), "b"]
    made = batch(prompts, [prompt_ids(tokenizer, one, CONFIG) for one in prompts], CONFIG, 3)
    assert made.first_B.tolist() == [0, 0, 3, 3, 0]
    assert len(set(made.ids_B.tolist())) == 3 and made.ids_B[1] == made.ids_B[3]
