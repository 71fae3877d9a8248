"""GLM-130B at the smallest size: a run that learns to fill blanks, its held-out loss, and text continued as it was trained."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import train
from research.core.errors import UserError
from research.data import tokenizer as tokenizers
from research.data.encoding import char_description
from research.data.tokens import prepare
from research.families import glm130b
from research.model import transformer
from research.model.blanks import BlankIds, continued
from research.sample.engine import continuations
from research.sample.models import Loaded
from research.sample.options import Sampling
from research.tasks.lm import LMConfig
from research.train import program
from research.train.run import load_run

LETTERS = "abcdefghij"
CONTEXT = 24


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run on ten letters over and over."""
    folder = tmp_path_factory.mktemp("letters")
    (folder / "text.txt").write_text(LETTERS * 300)
    return train.Config(
        data=str(folder / "text.txt"), tokenizer="char", task=LMConfig(kind="infill"),
        model=glm130b.config(1, 32, 2, 64, vocab_size=None, context=CONTEXT), steps=150, batch_size=16,
        optimizer=train.OptimizerConfig(learning_rate=1e-2, schedule=train.ScheduleConfig("cosine", 10)),
        eval_every=150, eval_batches=2, log_every=50, run_dir=str(folder / "run"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(config):
    return train.fit(config)


def test_a_tiny_run_learns_to_fill_blanks(finished):
    assert finished.summary["eval_loss"] < 0.5 < np.log(len(LETTERS)), "nats a token, their ends among them"
    losses = [record["loss"] for record in load_run(finished.run.path).metrics if record["split"] == "train"]
    assert losses[-1] < losses[0]


def test_a_trained_run_continues_a_prompt(finished):
    model = load_run(finished.run.path)
    assert model.params["embed"]["tokens"].shape == (len(LETTERS) + 4, 32)
    found = continuations(model, ["cdefghija", "ij"], Sampling(max_tokens=8, temperature=0))
    assert [one.text for one in found] == ["bcdefghi", "abcdefgh"]
    assert found[1].prompt_tokens == (8, 9) and found[1].finish_reason == "length"


@pytest.fixture(scope="module")
def built(config):
    return program.build(config, prepare(config.data, "char"))


def test_what_is_held_out_does_not_depend_on_the_seed(config, built):
    other = program.build(dataclasses.replace(config, seed=1), built.corpus)
    for one, two in zip(built.held_out, other.held_out, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, two)
    assert any((built.batches(0)[name] != other.batches(0)[name]).any() for name in ("prefix", "tokens"))


def test_bits_per_byte_are_those_of_the_hidden_text(built):
    text, tokens = built.held_out_text
    scored = np.concatenate([batch["targets"][batch["weights"] > 0] for batch in built.held_out])
    ends = (scored == BlankIds(len(LETTERS)).end).sum()
    assert tokens == len(scored) and len(text) == len(scored) - ends > 0
    assert built.bits_per_byte(np.log(2)) == pytest.approx(len(scored) / len(text))


SMALL = glm130b.config(2, 16, 2, 24, vocab_size=len(LETTERS) + 4, context=40)
PROMPTS = ["abcdefgh", "j", "hagebdifcabcdefghjia"]


@pytest.fixture(scope="module")
def model(tiny):
    tokenizer, params = tokenizers.parse(json.dumps(char_description(LETTERS)), "test"), tiny.params(SMALL)
    attention = params["decoder"]["0"]["0"]["attention"]
    attention["query"] *= 8  # far from even, so that what is seen counts
    return Loaded(params, SMALL, tokenizer)


@pytest.fixture(scope="module")
def greedy(model):
    """`greedy(prompt, n)`: the most probable tokens by the plain forward of the whole row, as training lays it out."""
    forward = jax.jit(lambda inputs: transformer.apply(model.params, inputs, SMALL).outputs[0])
    ids = BlankIds(len(LETTERS))

    def of(prompt, count, both_ways=True):
        tokens, prefix = continued(model.tokenizer.encode(prompt), ids)
        prefix *= both_ways
        out = []
        while len(out) < count and ids.end not in out:
            row = np.pad(np.append(tokens, np.array(out, np.int32)), (0, SMALL.context - len(tokens) - len(out)))
            logits = forward({"tokens": jnp.asarray(row[None]), "prefix": jnp.asarray([prefix])})
            out.append(int(np.argmax(logits[len(tokens) + len(out) - 1, : ids.end + 1])))
        return tuple(out)

    return of


@pytest.mark.parametrize("options", [{}, {"lookup": 2}], ids=["token by token", "prompt look-up"])
def test_a_prompt_is_read_in_both_directions_and_continued_as_trained(options, model, greedy):
    found = continuations(model, PROMPTS, Sampling(max_tokens=12, temperature=0, **options))
    assert [one.tokens for one in found] == [greedy(prompt, 12) for prompt in PROMPTS]
    assert any(one.tokens != greedy(one.prompt, 12, both_ways=False) for one in found), "else the test shows nothing"


def test_the_end_of_a_blank_ends_a_sample_and_other_special_ids_are_never_drawn(model):
    found = continuations(model, ["abc"], Sampling(max_tokens=60, temperature=3.0, num=32))
    ended = [one for one in found if one.finish_reason == "stop"]
    assert ended and all(one.tokens[-1] == len(LETTERS) and len(one.text) == len(one.tokens) - 1 for one in ended)
    assert max(token for one in found for token in one.tokens) == len(LETTERS)


def test_prompts_that_leave_no_room_or_hold_special_ids_are_refused(model):
    longest = "a" * (SMALL.context - 2)
    assert continuations(model, [longest], Sampling(max_tokens=0))[0].tokens == ()
    with pytest.raises(UserError, match="leave out at least 1 of them"):
        continuations(model, [longest + "a"], Sampling())
    with pytest.raises(UserError, match="token id 10; ids are 0 to 9"):
        continuations(model, [[1, 10]], Sampling())
    short = dataclasses.replace(model, tokenizer=tokenizers.parse(json.dumps(char_description("abc")), "test"))
    with pytest.raises(UserError, match="the tokeniser has 3 ids, the model 10"):
        continuations(short, ["abc"], Sampling())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": LMConfig()}, "task.kind is 'lm', but model.patterns are .*make it 'infill'"),
        ({"model": dataclasses.replace(SMALL, patterns=("full",), vocab_size=None)}, "make it 'lm'"),
        ({"model": dataclasses.replace(SMALL, vocab_size=99)}, r"tokeniser has 10 ids and filling blanks takes 4 more.*make it 14"),
        ({"sequence_length": 2}, "sequence_length at least 3"),
    ],
)  # fmt: skip
def test_a_task_that_does_not_fit_its_model_is_refused(changes, message, config, built):
    with pytest.raises(UserError, match=message):
        program.build(dataclasses.replace(config, **changes), built.corpus)


def test_an_unknown_kind_of_task_is_refused():
    with pytest.raises(UserError, match="task.kind is 'mlm'; expected one of lm, infill"):
        LMConfig(kind="mlm")
