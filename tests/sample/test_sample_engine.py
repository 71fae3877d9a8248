"""Generation against the uncached forward, and what a row may depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.errors import UserError
from research.model import transformer
from research.model.config import ModelConfig, RopeConfig
from research.sample import decode as D
from research.sample.engine import continuations
from research.sample.models import Loaded
from research.sample.options import Sampling

BASE = ModelConfig(vocab_size=257, context=20, width=32, layers=1, heads=4, mlp_width=48, tied=False)
PROMPTS = ["def f(x):", "a", "import numpy"]
TOKENS = 24  # some prompts and windows are shorter, and so is the context of the models that can go beyond it

ARCHITECTURES = {
    "rotary, grouped-query, qk-norm": {"kv_heads": 2, "qk_norm": "head", "layers": 2},
    "alternating window, partial interleaved rotary, 3 layers of a 2-pattern": {
        "layers": 3,
        "patterns": ("sliding", "full"),
        "window": 6,
        "rope": RopeConfig(fraction=0.5, layout="interleaved"),
    },
    "alibi, strided, parallel": {
        "positions": "alibi",
        "patterns": ("strided",),
        "window": 4,
        "stride": 5,
        "residual": "parallel",
    },
    "learned, as GPT-2": {
        "positions": "learned",
        "context": 48,
        "norm": "layer",
        "activation": "gelu-tanh",
        "bias": ("query", "key", "value", "attention-output", "mlp-in", "mlp-out", "norm", "unembed"),
    },
    "sinusoidal, post-norm, soft caps, scaled embedding": {
        "positions": "sinusoidal",
        "norm_placement": "post",
        "attention_soft_cap": 5.0,
        "logit_soft_cap": 9.0,
        "embedding_scale": "sqrt-width",
    },
}


def uncached_greedy(params, config, prompt: bytes, count: int, penalty: float = 1.0) -> list[int]:
    """The argmax of the plain forward, token after token; tokens to come are padding, which causality hides."""
    tokens = [*prompt]
    for _ in range(count):
        padded = jnp.array([tokens + [0] * (48 - len(tokens))])
        logits = np.array(forward(params, padded, config)[0, len(tokens) - 1])
        seen = np.unique(tokens)
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


forward = jax.jit(transformer.forward, static_argnums=2)


def until_separator(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(256) + 1] if 256 in tokens else tokens


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_is_the_argmax_of_the_uncached_forward(name, tokenizer, tiny):
    config = dataclasses.replace(BASE, **ARCHITECTURES[name])
    params = tiny.params(config)
    results = continuations(Loaded(params, config, tokenizer), PROMPTS, Sampling(max_tokens=TOKENS, temperature=0))
    expected = [until_separator(uncached_greedy(params, config, p.encode(), TOKENS)) for p in PROMPTS]
    assert [list(one.tokens) for one in results] == expected
    assert len({t for tokens in expected for t in tokens}) >= 10, (
        "the test sees too few different tokens to mean anything"
    )
    assert [bytes(one.prompt_tokens).decode() for one in results] == PROMPTS
    wholes = [tokenizer.decode(one.tokens) for one in results]
    assert all(one.text in (whole, whole.removesuffix("\ufffd")) for one, whole in zip(results, wholes, strict=True))


def test_texts_that_grow_beyond_the_turn_of_longrope_are_read_again(tiny):
    """Rows cross at tokens of their own; the plain forward chooses by the length of what it is given, so nothing is padded."""
    half = BASE.H // 2
    short, long = (tuple(float(f) for f in np.linspace(1, top, half)) for top in (1.5, 4.0))
    rope = RopeConfig(scaling="longrope", factor=4.0, original_context=9, short_factors=short, long_factors=long)
    config = dataclasses.replace(BASE, positions="rotary", rope=rope)
    params = tiny.params(config)
    prompts = [list(b"abcdef"), list(b"abcdefgh"), list(b"abcdefghijkl")]
    model = Loaded(params, config, None)
    for prompt, one in zip(prompts, continuations(model, prompts, Sampling(max_tokens=6, temperature=0)), strict=True):
        tokens = list(prompt)
        for token in one.tokens:
            assert token == int(forward(params, jnp.array([tokens]), config)[0, -1].argmax())
            tokens.append(token)
    for how in ({"beams": 2}, {"lookup": 2}):
        with pytest.raises(
            UserError, match="may grow beyond 9 tokens, where this model .LongRoPE. reads all of it again"
        ):
            continuations(model, prompts, Sampling(max_tokens=6, **how))
    assert continuations(model, prompts[2:], Sampling(max_tokens=2, beams=2))[0].tokens


@pytest.mark.parametrize("how", [{}, {"beams": 2}, {"lookup": 2}])
def test_weights_that_are_not_numbers_are_an_error(base, tokenizer, how):
    damaged = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), base)
    with pytest.raises(UserError, match="logits are not numbers .NaN.: its weights are damaged"):
        continuations(Loaded(damaged, BASE, tokenizer), PROMPTS[:1], Sampling(max_tokens=3, **how))


@pytest.fixture(scope="module")
def base(tiny):
    return tiny.params(BASE)


def test_the_penalty_counts_prompt_and_output(base, tokenizer):
    sampling = Sampling(max_tokens=16, temperature=0, repetition_penalty=1.8)
    result = continuations(Loaded(base, BASE, tokenizer), PROMPTS[2:], sampling)[0]
    assert list(result.tokens) == until_separator(uncached_greedy(base, BASE, PROMPTS[2].encode(), 16, 1.8))
    assert list(result.tokens) != until_separator(uncached_greedy(base, BASE, PROMPTS[2].encode(), 16))


def test_penalties_count_the_output_and_log_probabilities_are_the_models_own(base, tokenizer):
    """Token by token from the whole forward: what was penalised decides, what is reported is not penalised."""
    how = Sampling(max_tokens=16, temperature=0, presence_penalty=0.9, frequency_penalty=0.4, logprobs=3)
    one = continuations(Loaded(base, BASE, tokenizer), PROMPTS[2:], how)[0]
    tokens, counts = [*PROMPTS[2].encode()], np.zeros(257)
    for i in range(len(one.tokens)):
        logits = np.array(forward(base, jnp.array([tokens + [0] * (48 - len(tokens))]), BASE)[0, len(tokens) - 1])
        token, own = int((logits - 0.9 * (counts > 0) - 0.4 * counts).argmax()), np.array(jax.nn.log_softmax(logits))
        best = np.argsort(-own)[:3]
        assert one.tokens[i] == token
        np.testing.assert_allclose((one.logprobs or ())[i], own[token], atol=1e-4)
        assert [number for number, _ in (one.alternatives or ())[i]] == best.tolist()
        np.testing.assert_allclose([value for _, value in (one.alternatives or ())[i]], own[best], atol=1e-4)
        tokens, counts[token] = [*tokens, token], counts[token] + 1
    assert list(one.tokens) != uncached_greedy(base, BASE, PROMPTS[2].encode(), 16)


DRAWN = Sampling(max_tokens=20, temperature=0.9, top_p=0.95, num=2, seed=7)


def test_a_prompt_continues_the_same_alone_and_in_any_batch(base, tokenizer):
    together = continuations(Loaded(base, BASE, tokenizer), PROMPTS, DRAWN)
    alone = [one for prompt in PROMPTS for one in continuations(Loaded(base, BASE, tokenizer), [prompt], DRAWN)]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert len({one.tokens for one in together}) == 6
    again = continuations(Loaded(base, BASE, tokenizer), [PROMPTS[0]] * 2, dataclasses.replace(DRAWN, num=1))
    assert [one.tokens for one in again] == [one.tokens for one in together[:2]]
    other = continuations(Loaded(base, BASE, tokenizer), PROMPTS[:1], dataclasses.replace(DRAWN, seed=8))
    assert {one.tokens for one in other}.isdisjoint({one.tokens for one in together})


def test_a_token_does_not_depend_on_how_many_follow(base, tokenizer):
    short = continuations(Loaded(base, BASE, tokenizer), PROMPTS[:1], dataclasses.replace(DRAWN, max_tokens=5))
    long = continuations(Loaded(base, BASE, tokenizer), PROMPTS[:1], dataclasses.replace(DRAWN, max_tokens=20))
    assert [one.tokens for one in short] == [one.tokens[:5] for one in long]


def test_every_token_of_every_row_draws_anew(base, tokenizer):
    flat = dataclasses.replace(DRAWN, temperature=1e6)  # only the random keys decide
    results = continuations(Loaded(base, BASE, tokenizer), PROMPTS, flat)
    assert all(len(set(one.tokens)) > 0.8 * len(one.tokens) for one in results)
    assert len({one.tokens[0] for one in results}) > 3


def test_streamed_text_joins_to_the_text(base, tokenizer):
    streamed: dict[int, str] = {}

    def on_text(row, text):
        streamed[row] = streamed.get(row, "") + text

    results = continuations(Loaded(base, BASE, tokenizer), PROMPTS, DRAWN, on_text)
    assert [streamed.get(row, "") for row in range(6)] == [one.text for one in results]


def test_a_stop_string_ends_only_its_own_row(base, tokenizer):
    plain = continuations(Loaded(base, BASE, tokenizer), PROMPTS, DRAWN)
    stop = next(t[3:5] for t in (one.text for one in plain) if len(t) >= 5 and "\ufffd" not in t[3:5])
    results = continuations(Loaded(base, BASE, tokenizer), PROMPTS, dataclasses.replace(DRAWN, stop=(stop,)))
    for before, after in zip(plain, results, strict=True):
        assert after.text == before.text.split(stop)[0]
        assert after.finish_reason == ("stop" if stop in before.text else before.finish_reason)
    assert {one.finish_reason for one in results} >= {"stop", "length"}


def test_later_calls_compile_nothing(base, tokenizer):
    continuations(Loaded(base, BASE, tokenizer), ["abc"], DRAWN)
    programs = D.prefill._cache_size(), D.decoder()._cache_size()
    again = dataclasses.replace(DRAWN, max_tokens=31, top_p=0.5, temperature=0.3, seed=2)
    continuations(Loaded(base, BASE, tokenizer), ["a longer one"], again)
    assert (D.prefill._cache_size(), D.decoder()._cache_size()) == programs


LEARNED = dataclasses.replace(BASE, positions="learned", context=24)


def test_learned_positions_end_a_row_and_no_other(tokenizer, tiny):
    params = tiny.params(LEARNED)
    prompts = ["p" * 24, "q" * 9, "r"]
    sampling = Sampling(max_tokens=16, seed=3)
    results = continuations(Loaded(params, LEARNED, tokenizer), prompts, sampling)
    assert [(len(one.tokens), one.finish_reason) for one in results] == [(1, "context"), (16, "length"), (16, "length")]
    assert results[1].tokens == continuations(Loaded(params, LEARNED, tokenizer), prompts[1:2], sampling)[0].tokens
    with pytest.raises(UserError, match="25 tokens, but the model's context is 24"):
        continuations(Loaded(params, LEARNED, tokenizer), ["p" * 25], sampling)


def test_no_tokens_and_no_prompts(base, tokenizer):
    seen = []
    sampling = Sampling(max_tokens=0, num=2)
    results = continuations(Loaded(base, BASE, tokenizer), ["abc"], sampling, lambda *text: seen.append(text))
    assert [(one.text, one.tokens, one.finish_reason) for one in results] == [("", (), "length")] * 2
    assert seen == [] and continuations(Loaded(base, BASE, tokenizer), [], Sampling()) == []


def test_ids_that_the_tokeniser_lacks_are_never_drawn(base, tiny, characters):
    sampling = Sampling(max_tokens=30, repetition_penalty=1.1)
    result = continuations(Loaded(base, BASE, characters("abcd")), ["a"], sampling)[0]
    assert set(result.tokens) == {0, 1, 2, 3}
    small = dataclasses.replace(BASE, vocab_size=4)
    larger = Loaded(tiny.params(small), small, characters("abcde"))
    assert set(continuations(larger, ["a"], sampling)[0].tokens) <= {0, 1, 2, 3}
    with pytest.raises(UserError, match="holds the token id 4, but the model's are 0 to 3"):
        continuations(larger, ["ae"], sampling)


def test_matrices_are_cast_once_and_norms_and_given_parameters_stay_as_they_are(tiny):
    config = dataclasses.replace(BASE, dtype="bfloat16", layers=3, patterns=("sliding", "full"))
    params = tiny.params(config)
    model = D.prepare(params, config)
    assert len(model.params["layers"]) == 3
    kinds = {(leaf.ndim > 1, leaf.dtype.name) for leaf in jax.tree.leaves(model.params)}
    assert kinds == {(True, "bfloat16"), (False, "float32")}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}


def test_layers_keep_their_order_when_they_are_unstacked(tiny):
    config = dataclasses.replace(BASE, layers=5, patterns=("sliding", "full"), window=2)
    params, tokens = tiny.params(config), np.arange(12)[None]
    one = D.Prompts(tokens, np.array([12]), np.zeros(1, np.uint32), np.zeros(1, np.int32))
    how = {"num": 1, "length": 16, "vocab": 257, "drawn": False, "remember": False}
    ours = D.prefill(D.prepare(params, config), one, np.uint32(0), **how)
    np.testing.assert_allclose(
        ours.logits_BV, forward(params, jnp.asarray(tokens), config)[:, -1], rtol=1e-4, atol=1e-5
    )
