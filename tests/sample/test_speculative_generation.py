"""Speculative decoding as `generate` and `research sample` offer it: the same texts when greedy, and what goes with it."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from research.core.errors import UserError
from research.data import tokenizer as T
from research.data.encoding import char_description
from research.model.config import ModelConfig
from research.sample import command
from research.sample import speculate as S
from research.sample.engine import continuations, generate
from research.sample.models import Loaded
from research.sample.options import Sampling

CONFIG = ModelConfig(
    vocab_size=12, context=32, width=16, layers=2, heads=4, mlp_width=24, tied=False, positions="learned",
    patterns=("sliding", "full"), window=5,
)  # fmt: skip
PROMPTS = ["abab", "l", "fedcbaabcdefg"]  # the last has room for 20
GREEDY = Sampling(max_tokens=24, temperature=0)


@pytest.fixture(scope="module")
def model(tiny, characters) -> Loaded:
    return Loaded(tiny.params(CONFIG), CONFIG, characters("abcdefghijkl"))


@pytest.fixture(scope="module")
def draft(model) -> Loaded:
    """The model with noise on its parameters: right now and then."""
    draw = np.random.default_rng(5)
    noisy = jax.tree.map(lambda x: x + 0.05 * draw.normal(size=x.shape).astype(x.dtype), model.params)
    return Loaded(noisy, CONFIG, model.tokenizer)


def said(results):
    return [(one.text, one.tokens, one.finish_reason) for one in results]


@pytest.mark.parametrize("stops", [False, True], ids=["to the end", "to a stop string"])
@pytest.mark.parametrize("proposer", ["draft", "lookup"])
def test_greedy_texts_are_those_of_plain_decoding(proposer, stops, model, draft):
    plain = continuations(model, PROMPTS, GREEDY)
    how = GREEDY
    if stops:
        how = dataclasses.replace(GREEDY, stop=(plain[0].text[3:5],))
        plain = continuations(model, PROMPTS, how)
        assert plain[0].finish_reason == "stop"
    shown = [""] * len(plain)

    def on_text(row, text):
        shown[row] += text

    changes = {"lookup": 3} if proposer == "lookup" else {}
    fast = dataclasses.replace(how, draft_tokens=3, **changes)
    results = continuations(model, PROMPTS, fast, on_text, draft if proposer == "draft" else None)
    assert said(results) == said(plain)
    assert shown == [one.text for one in results]
    assert "context" in {one.finish_reason for one in results}
    proposed, accepted = (sum(getattr(one, name) for one in results) for name in ("proposed", "accepted"))
    assert 0 < accepted < proposed
    assert {one.proposed for one in plain} == {None}


def test_an_int8_cache_speculates_as_it_decodes(model, draft):
    plain = dataclasses.replace(GREEDY, cache="int8")
    fast = dataclasses.replace(plain, draft_tokens=3)
    assert said(continuations(model, PROMPTS, fast, draft=draft)) == said(continuations(model, PROMPTS, plain))


def test_generate_takes_a_draft_model(model, draft):
    options = {"max_tokens": 24, "temperature": 0, "draft_tokens": 3}
    plain = generate(model, PROMPTS, max_tokens=24, temperature=0)
    assert generate(model, PROMPTS, draft=draft, **options) == plain
    assert generate(model, PROMPTS, lookup=3, **options) == plain
    assert generate(model, PROMPTS, lookup=3, max_tokens=0) == [""] * 3


OFF = {
    "regex": "a+",
    "json_schema": "{}",
    "logprobs": 0,
    "beams": 2,
    "repetition_penalty": 1.1,
    "frequency_penalty": 1.0,
}


@pytest.mark.parametrize("name", OFF)
def test_options_that_go_token_by_token_are_refused(name, model, draft):
    with pytest.raises(UserError, match=f"^{name} is .* with lookup: it goes token by token"):
        Sampling(lookup=2, **{name: OFF[name]})
    with pytest.raises(UserError, match=f"^{name} is .* with a draft model: it goes token by token"):
        continuations(model, PROMPTS, Sampling(**{name: OFF[name]}), draft=draft)


def test_what_else_is_refused(model, draft, monkeypatch):
    with pytest.raises(UserError, match="lookup is 2; expected None with a draft model"):
        generate(model, "a", draft=draft, lookup=2)
    for name, value in (("draft_tokens", 0), ("draft_tokens", 65), ("lookup", 0), ("lookup", 65)):
        with pytest.raises(UserError, match=f"{name} is {value}; expected a whole number from 1 to 64"):
            Sampling(**{name: value})
    with pytest.raises(UserError, match="draft_tokens is 3; expected nothing without a draft model or lookup"):
        generate(model, "a", draft_tokens=3)
    with pytest.raises(UserError, match="a str where a model"):
        generate(model, "a", draft="path")
    small = Loaded(draft.params, dataclasses.replace(CONFIG, vocab_size=11), None)
    with pytest.raises(UserError, match="the draft model has 11 ids, the model 12"):
        generate(model, "a", draft=small)
    monkeypatch.setattr(S, "mesh_of", id)
    with pytest.raises(UserError, match="on other devices than the model; load both onto the same mesh"):
        generate(model, "a", draft=draft)
    assert Sampling(lookup=2, repetition_penalty=1.0, presence_penalty=0.0)  # these change nothing


def test_tokenisers_of_draft_and_target_are_the_same(tokenizer, characters):
    S.check_tokenizers(tokenizer, tokenizer)
    spaced = T.parse(json.dumps(char_description("abc"), indent=1), "test")
    assert spaced.fingerprint != characters("abc").fingerprint
    S.check_tokenizers(characters("abc"), spaced)
    with pytest.raises(UserError, match="has 3 ids, the model's 257"):
        S.check_tokenizers(tokenizer, characters("abc"))
    with pytest.raises(UserError, match="token 1 is b'x' to the draft model, b'b' to the model"):
        S.check_tokenizers(characters("abz"), characters("axz"))


def test_the_command_loads_a_draft_and_reports_how_much_was_accepted(model, draft, capfdbinary):
    models = {"runs/big": model, "runs/small": draft}
    options = [*(f"--prompt={prompt}" for prompt in PROMPTS), "--temperature", "0", "--max-tokens", "24", "--json"]
    command.sample_command(models.__getitem__, ["runs/big", *options])
    plain = json.loads(capfdbinary.readouterr().out.splitlines()[-1])
    assert "acceptance_rate" not in plain and "proposed" not in plain["samples"][0]
    for proposer in (["--draft", "runs/small"], ["--lookup", "3"]):
        command.sample_command(models.__getitem__, ["runs/big", *options, *proposer, "--draft-tokens", "3"])
        out, err = capfdbinary.readouterr()
        report = json.loads(out.splitlines()[-1])
        samples, rate = report["samples"], report["acceptance_rate"]
        assert [one["text"] for one in samples] == [one["text"] for one in plain["samples"]]
        assert rate == sum(one["accepted"] for one in samples) / sum(one["proposed"] for one in samples)
        assert f"{rate:.0%} of the proposed accepted".encode() in err and report["tokens_per_second"] > 0
    with pytest.raises(UserError, match="lookup is 2; expected None with a draft model"):
        command.sample_command(lambda name: pytest.fail("loaded"), ["r", "--draft", "s", "--lookup", "2"])
