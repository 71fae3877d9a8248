"""The options of drawing: what each may be, and what it says otherwise."""

import numpy as np
import pytest

from research.core.errors import UserError
from research.model.config import ModelConfig
from research.sample.engine import generate
from research.sample.models import Loaded
from research.sample.options import Sampling, sampling_of

NAN, INF = float("nan"), float("inf")
BAD = {
    "temperature": ([-1.0, -1e-9, NAN, INF], "a number of at least 0"),
    "top_p": ([0.0, -0.1, 1.0001, NAN], r"a probability in \(0, 1\]"),
    "top_k": ([0, -1], "a whole number of at least 1"),
    "min_p": ([-0.1, 1.1, NAN], r"a fraction in \[0, 1\]"),
    "repetition_penalty": ([0.0, -1.0, NAN, INF], "a number above 0"),
    "presence_penalty": ([NAN, INF], "a finite number"),
    "frequency_penalty": ([NAN, -INF], "a finite number"),
    "max_tokens": ([-1, 1_000_001], "a whole number from 0 to 1,000,000"),
    "num": ([0], "a whole number from 1 to"),
    "seed": ([-1, 2**32], "a whole number in"),
    "stop": ([("a", "")], "texts that are not empty"),
    "logprobs": ([-1, 1025], "from 0 to 1024"),
    "beams": ([0, 1025], "a whole number from 1 to 1,024"),
}
ILL_TYPED = {
    "temperature": ["hot", True, None],
    "top_k": [1.5],
    "max_tokens": [2.0],
    "stop": ["a", 3],
    "cache": ["int4"],
    "seed": [None],
}


@pytest.mark.parametrize("name", BAD)
def test_values_out_of_range_are_refused_by_name(name):
    values, expected = BAD[name]
    for value in values:
        with pytest.raises(UserError, match=f"^{name} is .*; expected {expected}"):
            Sampling(**{name: value})


@pytest.mark.parametrize("name", ILL_TYPED)
def test_values_of_another_type_are_refused_by_name(name):
    for value in ILL_TYPED[name]:
        with pytest.raises(UserError, match=f"{name} is {value!r}; expected "):
            Sampling(**{name: value})


@pytest.mark.parametrize(
    "options",
    [
        {"length_penalty": 2.0}, {"early_stopping": "yes"}, {"beams": 2, "num": 3}, {"beams": 2, "temperature": 0.5},
        {"beams": 2, "top_k": 4}, {"beams": 2, "top_p": 0.5}, {"beams": 2, "min_p": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(options):
    with pytest.raises(UserError, match=f"^{list(options)[-1]} is "):
        Sampling(**options)


def test_the_ends_of_the_ranges_are_taken_and_what_changes_nothing_is_left_out():
    Sampling(temperature=0, top_p=1e-300, top_k=10**12, min_p=0.0, max_tokens=0, seed=2**32 - 1, logprobs=1024)
    neutral = Sampling(
        top_p=1.0, min_p=0.0, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0
    ).filters()
    assert {name for name, value in vars(neutral).items() if value is not None} == {"temperature"}
    greedy = Sampling(temperature=0, top_k=3, presence_penalty=0.5).filters()
    assert {name for name, value in vars(greedy).items() if value is not None} == {"presence_penalty"}


@pytest.fixture(scope="module")
def model(tiny, tokenizer) -> Loaded:
    config = ModelConfig(vocab_size=257, context=8, width=16, layers=1, heads=2, mlp_width=24)
    return Loaded(tiny.params(config), config, tokenizer)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "there is no prompt; give a text, at least one token id"),
        (np.array([]), "is empty; give at least one id"),
        ([[]], "is empty; give at least one id"),
        ([""] * 0, "there is no prompt"),
        (3, "neither text nor a list of token ids"),
        ("", "the prompt is empty; give a text"),
        (np.array(3), "neither text nor"),
        ("p" * 9, "9 tokens, but the model's context is 8; leave out at least 1"),
        ([1, 400], "the token id 400; ids are 0 to 256"),
    ],
)
def test_what_is_no_prompt_is_refused(prompt, message, model):
    with pytest.raises(UserError, match=message):
        generate(model, prompt)


def test_an_option_that_does_not_exist_and_what_is_no_model_are_named(model):
    with pytest.raises(UserError, match="no field 'temprature'; did you mean 'temperature'"):
        generate(model, "a", temprature=0)
    with pytest.raises(UserError, match="there is a dict where a model such as"):
        generate({}, "a")


def test_options_may_be_written_as_python_has_them():
    given = {"temperature": np.float32(0.5), "top_k": np.int64(3), "stop": "end", "json_schema": {"type": "integer"}}
    written = Sampling(temperature=0.5, top_k=3, stop=("end",), json_schema='{"type": "integer"}')
    assert sampling_of(given) == written
