"""Beam search: against every sequence there is, against transformers, and what it goes with."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.model import transformer
from research.model.config import ModelConfig
from research.sample import decode as D
from research.sample.engine import continuations
from research.sample.models import Loaded
from research.sample.options import Sampling

SMALL = ModelConfig(
    vocab_size=4, context=16, width=16, layers=1, heads=2, mlp_width=24, tied=False, positions="learned"
)
SEARCH = Sampling(max_tokens=3, beams=16, num=8, length_penalty=1.0)
forward = jax.jit(transformer.forward, static_argnums=2)


def log_probabilities(params, config, prompt: list[int], sequence: tuple[int, ...]) -> list[float]:
    tokens = [*prompt, *sequence]
    padded = jnp.array([tokens + [0] * (16 - len(tokens))])
    logits = jax.nn.log_softmax(forward(params, padded, config)[0])
    return [float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(sequence)]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -1.0])
def test_beams_for_all_prefixes_find_the_best_of_all_sequences(penalty, tiny, characters):
    """With as many beams as there are prefixes nothing is lost, and what ends early is found beside what does not."""
    params, tokenizer = tiny.params(SMALL), characters("abcd").with_stop_ids([3])
    prompt, length = [0, 2, 1], SEARCH.max_tokens
    everything = [s for n in range(1, length + 1) for s in itertools.product(range(4), repeat=n)]
    whole = [s for s in everything if 3 not in s[:-1] and (s[-1] == 3 or len(s) == length)]
    score = {s: sum(log_probabilities(params, SMALL, prompt, s)) / len(s) ** penalty for s in whole}
    expected = sorted(whole, key=lambda s: -score[s])[: SEARCH.num]
    how = dataclasses.replace(SEARCH, length_penalty=penalty, early_stopping="never")
    found = continuations(Loaded(params, SMALL, tokenizer), [prompt], how)
    assert [one.tokens for one in found] == expected
    np.testing.assert_allclose([one.score for one in found], [score[s] for s in expected], rtol=1e-4)
    assert {one.finish_reason for one in found} == {"stop", "length"}
    assert all(one.finish_reason == ("stop" if one.tokens[-1] == 3 else "length") for one in found)


def test_one_prompt_finds_the_same_alone_and_in_a_batch_of_other_lengths(tiny, characters):
    model = Loaded(tiny.params(SMALL), SMALL, characters("abcd").with_stop_ids([3]))
    prompts, how = ["abc", "c", "bbbbbabbbbbbb"], Sampling(max_tokens=8, beams=3, num=2, early_stopping="yes")
    together = continuations(model, prompts, how)  # the last one has room for 4
    alone = [one for prompt in prompts for one in continuations(model, [prompt], how)]
    assert [(one.tokens, one.finish_reason) for one in together] == [(one.tokens, one.finish_reason) for one in alone]
    np.testing.assert_allclose([one.score for one in together], [one.score for one in alone], rtol=1e-5)
    assert all(len(one.tokens) <= 4 for one in together[4:])


def test_log_probabilities_of_a_sequence_are_those_of_its_tokens(tiny, characters):
    model = Loaded(tiny.params(SMALL), SMALL, characters("abcd").with_stop_ids([3]))
    for one in continuations(model, ["abc"], Sampling(max_tokens=6, beams=4, num=4, logprobs=2)):
        expected = log_probabilities(model.params, SMALL, [0, 1, 2], one.tokens)
        np.testing.assert_allclose(one.logprobs, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one.score, sum(expected) / len(expected), rtol=1e-4)
        assert [len(top) for top in one.alternatives or ()] == [2] * len(one.tokens)


def test_a_constraint_holds_and_what_it_does_not_have_is_not_returned(tiny, characters):
    pytest.importorskip("outlines_core")
    for stops in ([3], []):
        model = Loaded(tiny.params(SMALL), SMALL, characters("abcd").with_stop_ids(stops))
        found = continuations(model, ["a"], Sampling(max_tokens=5, beams=4, num=4, regex="ab|cc?b"))
        assert {one.text for one in found[:3]} == {"ab", "cb", "ccb"}
        assert [one.finish_reason for one in found] == ["stop"] * 3 + ["none"]
        assert (found[3].text, found[3].tokens) == ("", ())


def test_a_stop_string_cuts_what_was_found_and_penalties_change_it(tiny, characters):
    model, how = Loaded(tiny.params(SMALL), SMALL, characters("abcd")), Sampling(max_tokens=8, beams=3)
    plain = continuations(model, ["ab"], how)[0]
    cut = continuations(model, ["ab"], dataclasses.replace(how, stop=(plain.text[3],)))[0]
    assert cut.text == plain.text[: plain.text.index(plain.text[3])] and cut.finish_reason == "stop"
    for name in ("repetition_penalty", "frequency_penalty"):
        assert continuations(model, ["ab"], dataclasses.replace(how, **{name: 5.0}))[0].text != plain.text


def test_later_searches_compile_nothing(tiny, characters):
    from research.sample import beams

    model = Loaded(tiny.params(SMALL), SMALL, characters("abcd"))
    continuations(model, ["ab"], Sampling(max_tokens=5, beams=3))
    programs = beams.search._cache_size(), D.prefill._cache_size()
    continuations(model, ["ba"], Sampling(max_tokens=9, beams=3, length_penalty=0.5))
    assert (beams.search._cache_size(), D.prefill._cache_size()) == programs


@pytest.mark.parametrize("early", ["yes", "no", "never"])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 1.7])
def test_sequences_are_those_of_transformers(early, penalty):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config, peer = peer_of(torch, transformers)
    params = params_of(peer, config)
    prompts = [[5, 9, 2], [11, 3, 30, 7]]
    for prompt in prompts:
        theirs = peer.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=12,
            do_sample=False, num_beams=4, num_return_sequences=4, length_penalty=penalty, eos_token_id=[1, 8],
            early_stopping={"yes": True, "no": False, "never": "never"}[early], pad_token_id=0, repetition_penalty=1.3,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        how = Sampling(
            max_tokens=12, beams=4, num=4, length_penalty=penalty, early_stopping=early, repetition_penalty=1.3
        )
        ours = continuations(Loaded(params, config, Ids()), [prompt], how)  # pyright: ignore[reportArgumentType]
        expected = [until(row[len(prompt) :].tolist(), {1, 8}) for row in theirs.sequences]
        assert [list(one.tokens) for one in ours] == expected
        np.testing.assert_allclose([one.score for one in ours], theirs.sequences_scores.numpy(), rtol=1e-4)


class Ids:
    """Only what a search needs of a tokeniser."""

    vocab_size, eot, stop_ids = 40, None, (1, 8)

    def stream(self, _):
        return self

    def push(self, _):
        return ""

    def finish(self):
        return ""

    def decode(self, _):
        return ""


def until(tokens: list[int], stops: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens) - 1)
    return tokens[: end + 1]


def peer_of(torch, transformers):
    """A small GPT-2 with wide logits, so that beams differ and some end."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    peer = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, initializer_range=0.4, bos_token_id=None, eos_token_id=None)
    ).eval()
    ours = ModelConfig(
        vocab_size=40, context=32, width=16, layers=2, heads=2, positions="learned", norm="layer", activation="gelu-tanh", tied=True,
        bias=("query", "key", "value", "attention-output", "mlp-in", "mlp-out", "norm"),
    )  # fmt: skip
    return ours, peer


def params_of(peer, config: ModelConfig):
    """GPT-2's weights by our names."""
    w = {name: tensor.numpy() for name, tensor in peer.state_dict().items()}
    D, N, H = config.width, config.heads, config.H

    def layers(name: str, *shape: int):
        stacked = np.stack([w[f"transformer.h.{i}.{name}"] for i in range(config.layers)])
        return stacked.reshape(config.layers, *shape) if shape else stacked

    qkv, qkv_bias = np.split(layers("attn.c_attn.weight"), 3, 2), np.split(layers("attn.c_attn.bias"), 3, 1)
    attention = {name: part.reshape(-1, D, N, H) for name, part in zip(("query", "key", "value"), qkv, strict=True)}
    attention |= {
        f"{name}_bias": part.reshape(-1, N, H) for name, part in zip(("query", "key", "value"), qkv_bias, strict=True)
    }
    attention |= {"output": layers("attn.c_proj.weight", N, H, D), "output_bias": layers("attn.c_proj.bias")}
    mlp = {"in": layers("mlp.c_fc.weight"), "in_bias": layers("mlp.c_fc.bias"), "out": layers("mlp.c_proj.weight")}
    norms = {f"{ours}_norm": {"scale": layers(f"{theirs}.weight"), "bias": layers(f"{theirs}.bias")}
             for ours, theirs in (("attention", "ln_1"), ("mlp", "ln_2"))}  # fmt: skip
    block = {"attention": attention, "mlp": mlp | {"out_bias": layers("mlp.c_proj.bias")}, **norms}
    return jax.tree.map(jnp.asarray, {
        "embed": {"tokens": w["transformer.wte.weight"], "positions": w["transformer.wpe.weight"]}, "decoder": {"0": {"0": block}},
        "final_norm": {"scale": w["transformer.ln_f.weight"], "bias": w["transformer.ln_f.bias"]},
    })  # fmt: skip
