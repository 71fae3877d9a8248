"""Runs on mixtures, packed rows and documents to be filled in: they resume bit for bit, and what does not fit is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
from tiny_runs import interrupted, story

from research import train
from research.core.errors import UserError
from research.data.mixed import prepare
from research.families import glm130b
from research.tasks.lm import LMConfig
from research.train import program, rundir

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def config(text_file, tmp_path_factory):
    """A run on packed rows of the text's lines and of numbers, the numbers more and more."""
    folder = tmp_path_factory.mktemp("mixture")
    lines = text_file.read_text(encoding="utf-8").split("\n")
    numbers = [" ".join(map(str, range(i, i + 2 + i % 4))) for i in range(150)]
    for name, texts in (("words", lines), ("numbers", numbers)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sources = [{"data": f"jsonl:{folder}/{name}.jsonl"} for name in ("words", "numbers")]
    mixture = {"sources": sources, "stages": [[0, [0.8, 0.2]], [24, [0.3, 0.7]]]}
    (folder / "mix.json").write_text(json.dumps(mixture))
    return tiny_runs.config(
        folder / "unused", data=f"mix:{folder}/mix.json", tokenizer="byte", rows="packed", eval_batches=None
    )


def fit(config, path, **changes):
    return train.fit(dataclasses.replace(config, run_dir=str(path), **changes))


def test_a_mixture_of_packed_rows_resumes_bit_for_bit(config, tmp_path):
    whole = fit(config, tmp_path / "whole")
    assert whole.summary["eval_loss"] < np.log(257) and whole.summary["bits_per_byte"] > 0
    with interrupted() as stop:
        stop.signal_at(7)
        assert fit(config, tmp_path / "cut").summary["stopped_by"] == "SIGTERM"
    fit(config, tmp_path / "cut")
    assert story(tmp_path / "cut") == story(tmp_path / "whole")
    assert len(rundir.read_metrics(tmp_path / "whole")) == 9


def test_filled_in_packed_rows_resume_bit_for_bit_and_are_not_evaluated(config, tmp_path):
    filled = dataclasses.replace(
        config, tokenizer=tiny_runs.tokenizer_with_sentinels(tmp_path), fim_rate=0.7, sample_every=None
    )
    whole = fit(filled, tmp_path / "whole")
    built = whole.program
    assert built is not None
    firsts = {built.corpus.tokenizer.token_id(name) for name in tiny_runs.SENTINELS}
    assert any(firsts & set(built.batches(step)["tokens"].ravel().tolist()) for step in range(3))
    assert not any(firsts & set(batch["tokens"].ravel().tolist()) for batch in built.held_out)
    fit(filled, tmp_path / "cut", steps=5)
    fit(filled, tmp_path / "cut")
    assert story(tmp_path / "cut")["hash"] == story(tmp_path / "whole")["hash"]


def test_bits_per_byte_are_those_of_the_tokens_that_are_scored(config):
    corpus = prepare(config.data, config.tokenizer)
    built = program.build(config, corpus)
    text, tokens = built.held_out_text
    documents = len(corpus.eval.begins)
    assert tokens == len(corpus.eval) - documents
    separators = int((np.asarray(corpus.eval.tokens) == 256).sum())
    assert len(text) == tokens - separators
    windows = program.build(dataclasses.replace(config, rows="windows"), corpus)
    assert windows.held_out_text[1] == len(corpus.eval) - 1


def test_of_questions_with_answers_the_answers_are_learned_and_scored(tmp_path):
    lines = [{"question": f"{n} + 1 = ", "answer": f"{n + 1}!"} for n in range(400)]
    (tmp_path / "sums.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    config = tiny_runs.config(
        tmp_path, data=f"jsonl:{tmp_path}/sums.jsonl", text_field="{question}{answer}", learn="answer", tokenizer="byte",
        rows="packed", eval_batches=None, steps=4, sample_every=None,
    )  # fmt: skip
    run = fit(config, tmp_path / "run")
    corpus, (text, tokens) = run.program.corpus, run.program.held_out_text
    answers = [f"{n + 1}!".encode() for n in corpus.eval.records.tolist()]
    assert text.count(b"!") == len(answers) and sorted(text.split(b"!")[:-1]) == sorted(a[:-1] for a in answers)
    assert tokens == len(text) + sum(n != 399 for n in corpus.eval.records.tolist())  # and the separators
    masked = dataclasses.replace(config, learn=None, run_dir=None)
    with pytest.raises(UserError, match="another config .*learn"):
        fit(masked, tmp_path / "run")


def test_what_the_rows_are_made_of_must_agree_to_resume(config, tmp_path):
    fit(config, tmp_path / "run", steps=1)
    described = json.loads(Path(config.data.removeprefix("mix:")).read_text())
    described["stages"] = [[0, [0.8, 0.2]], [24, [0.4, 0.6]]]
    (tmp_path / "other.json").write_text(json.dumps(described))
    for name, other in (("rows", "windows"), ("data", f"mix:{tmp_path}/other.json")):
        with pytest.raises(UserError, match=f"another config .*{name}"):
            fit(config, tmp_path / "run", **{name: other})


def test_what_does_not_go_together_is_refused(config):
    corpus = prepare(config.data, "byte")
    with pytest.raises(UserError, match="no sentinels for fim_rate"):
        program.build(dataclasses.replace(config, fim_rate=0.5), corpus)
    blanks = glm130b.config(1, 32, 2, 64, vocab_size=None, context=24)
    with pytest.raises(UserError, match="leave rows, fim_rate and learn out"):
        program.build(dataclasses.replace(config, model=blanks, task=LMConfig(kind="infill")), corpus)
    with pytest.raises(UserError, match="fim_rate"):
        dataclasses.replace(config, fim_rate=1.5)
    with pytest.raises(UserError, match="rows"):
        dataclasses.replace(config, rows="bins")


def test_a_model_without_room_for_the_sentinels_is_refused(config, tmp_path):
    corpus = prepare(config.data, tiny_runs.tokenizer_with_sentinels(tmp_path))
    size = int(np.max(corpus.train.tokens)) + 1
    filled = dataclasses.replace(config, fim_rate=0.5, model=dataclasses.replace(config.model, vocab_size=size))
    with pytest.raises(UserError, match=f"model.vocab_size is {size}, but fim_rate needs the id {size + 2}"):
        program.build(filled, corpus)
