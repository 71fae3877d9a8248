"""No step of generation sorts the vocabulary, whatever is asked of it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.model.config import ModelConfig
from research.sample import constrain
from research.sample import decode as D
from research.sample import speculate as S
from research.sample.options import Sampling

V = 300
CONFIG = ModelConfig(vocab_size=V, context=32, width=16, layers=1, heads=2, mlp_width=24, tied=False)
PROMPTS = D.Prompts(
    *(np.ones(shape, np.int32) for shape in ((2, 16), 2)), np.zeros(2, np.uint32), np.zeros(2, np.int32)
)
DRAWN = {
    "greedy": {"temperature": 0},
    "temperature": {"temperature": 0.7},
    "top-k": {"top_k": 40},
    "top-p": {"top_p": 0.9},
    "min-p": {"min_p": 0.1},
    "penalties": {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2},
    "log-probabilities": {"logprobs": 0},
}
EVERYTHING = {name: value for options in DRAWN.values() for name, value in options.items()}
SORTS = re.compile(r"\b(sort|top_k|approx_top_k)\[")  # in a jaxpr
COMPILED_SORTS = re.compile(r'\bsort\(|topk\(|custom_call_target="[^"]*(sort|top_?k)', re.IGNORECASE)


def automaton() -> constrain.Automaton:
    """Anything may follow anything."""
    return constrain.Automaton(jnp.arange(V) % 3 + 1, jnp.zeros((1, 4), jnp.int32), jnp.ones(1, bool))


@pytest.fixture(scope="module")
def model(tiny) -> D.Model:
    return D.prepare(tiny.params(CONFIG), CONFIG)


def chunk(model: D.Model, constrained: bool = False, **options):
    """The arguments of `decode` for these options, shapes in place of arrays."""
    how = Sampling(**options)
    filters = how.filters()
    state = jax.eval_shape(
        lambda: D.prefill(
            model, PROMPTS, np.uint32(0), num=1, length=32, vocab=V, drawn=filters.temperature is not None,
            remember=filters.repetition_penalty is not None, counted=filters.counts, normed=how.logprobs is not None,
        )
    )  # fmt: skip
    state = state.replace(places_B=jnp.zeros(2, jnp.int32)) if constrained else state
    return (model, state, filters, np.int32(3), automaton() if constrained else None), {
        "alternatives": how.logprobs or 0
    }


@pytest.mark.parametrize("name", DRAWN)
def test_no_option_sorts(name, model):
    arguments, static = chunk(model, **DRAWN[name])
    assert not SORTS.search(str(D.decoder().trace(*arguments, **static).jaxpr))


def test_the_compiled_loop_with_all_options_sorts_nothing(model):
    arguments, static = chunk(model, constrained=True, **EVERYTHING)
    program = D.decoder().lower(*arguments, **static).compile().as_text()
    assert "while(" in program and not COMPILED_SORTS.search(program)


def test_a_round_of_speculative_decoding_sorts_nothing(model):
    filters = Sampling(top_k=40, top_p=0.9, min_p=0.1, temperature=0.7).filters()
    sizes = {"vocab": V, "draft_tokens": 3}
    state, *_ = jax.eval_shape(lambda: S.start(model, model, PROMPTS, np.uint32(0), filters, num=1, length=32, **sizes))
    for draft, lookup in ((model, None), (None, 2)):
        given = state if draft else state.replace(draft_cache=None)
        traced = S.advance.trace(model, draft, given, filters, np.ones(2, bool), lookup=lookup, **sizes)
        assert not SORTS.search(str(traced.jaxpr))


def test_alternatives_take_the_largest_few_and_sort_no_more(model):
    arguments, static = chunk(model, logprobs=5)
    found = SORTS.findall(str(D.decoder().trace(*arguments, **static).jaxpr))
    assert found == ["top_k"], "also the sign that the other tests would see one"
    assert COMPILED_SORTS.search(D.decoder().lower(*arguments, **static).compile().as_text())
