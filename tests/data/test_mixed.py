"""`mix:FILE.json`: what it says, what it is made into, and what is refused."""

import json

import numpy as np
import pytest

from research.core.errors import UserError
from research.data import batches, tokens
from research.data.mixed import MixedBatches, MixedCorpus, prepare
from research.data.packed import PackedEvalBatches


@pytest.fixture
def mix(tmp_path, monkeypatch):
    """`mix(**changes) -> corpus` of letters and digits; changes are of the file, or `tokenizer`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "letters.jsonl").write_text(
        "".join(json.dumps({"text": "abcdefgh" * (1 + i % 5)}) + "\n" for i in range(80))
    )
    (tmp_path / "digits.jsonl").write_text(
        "".join(json.dumps({"q": str(i), "a": "7" * (i % 9)}) + "\n" for i in range(99))
    )

    def made(tokenizer="byte", **changes) -> MixedCorpus:
        described = {"sources": [LETTERS, DIGITS], **changes}
        (tmp_path / "mix.json").write_text(json.dumps(described))
        corpus = prepare("mix:mix.json", tokenizer, text_field="text", cache_dir=tmp_path / "cache")
        assert isinstance(corpus, MixedCorpus)
        return corpus

    return made


LETTERS = {"data": "jsonl:letters.jsonl", "weight": 0.75}
DIGITS = {"data": "jsonl:digits.jsonl", "weight": "1/4", "text_field": "{q} {a}"}
UNWEIGHTED = {"sources": [{name: one[name] for name in one if name != "weight"} for one in (LETTERS, DIGITS)]}


def test_the_parts_are_what_each_source_is_by_itself(mix, tmp_path):
    corpus = mix()
    alone = [
        tokens.prepare("jsonl:letters.jsonl", "byte", cache_dir=tmp_path / "cache"),
        tokens.prepare("jsonl:digits.jsonl", "byte", text_field="{q} {a}", cache_dir=tmp_path / "cache"),
    ]
    for split in ("train", "eval", "test"):
        streams = [getattr(one, split) for one in alone]
        whole = getattr(corpus, split)
        assert np.asarray(whole.tokens).tolist() == np.concatenate([np.asarray(one.tokens) for one in streams]).tolist()
        assert whole.bytes == sum(one.bytes for one in streams)
        begins = [*streams[0].begins, *(streams[1].begins + len(streams[0]))]
        assert whole.begins.tolist() == begins
    assert [len(part.train) for part in corpus.parts] == [len(one.train) for one in alone]
    assert mix().cached and corpus.tokenizer_fingerprint == alone[0].tokenizer_fingerprint


def test_rows_come_by_the_weights_and_evaluation_has_all(mix):
    corpus = mix(stages=[[0, [3, 1]], [20, [0, 1]]], **UNWEIGHTED)
    for rows in ("windows", "packed"):
        made = batches.training(corpus, rows, 4, 16, seed=1)
        letters = [np.isin(made(step)["tokens"], list(b"abcdefgh")).any(axis=1).sum() for step in range(10)]
        assert abs(sum(letters[:5]) - 15) <= 1 and sum(letters) - 15 in (0, 1) and letters[6:] == [0] * 4
    held_out = batches.held_out(corpus, "packed", 64, 16, shards=3)
    assert isinstance(held_out, PackedEvalBatches) and held_out.batch_size == 6
    seen = sum((batch["segments"] > 0).sum() for batch in held_out)
    assert seen == len(corpus.eval)
    assert {chr(t).isalpha() for batch in held_out for t in batch["tokens"][:, 0] if t} == {True, False}


@pytest.mark.parametrize(("unit", "begins"), [("records", 20), ("tokens", 3)])
def test_stages_begin_by_their_unit(mix, unit, begins):
    corpus = mix(stages=[[0, [3, 1]], [20, [0, 1]]], unit=unit, **UNWEIGHTED)
    made = batches.training(corpus, "windows", 4, 8, seed=1)
    assert isinstance(made, MixedBatches) and [start for start, _ in made.stages] == [0, begins]


def test_the_fingerprint_is_of_contents_and_exact_weights(mix):
    first = mix().source_fingerprint
    assert mix(sources=[{**LETTERS, "weight": 3}, {**DIGITS, "weight": 1}]).source_fingerprint == first
    others = [
        mix(sources=[{**LETTERS, "weight": 2}, DIGITS]).source_fingerprint,
        mix(sources=[{**LETTERS, "weight": 1}, {**DIGITS, "weight": 3}]).source_fingerprint,
        mix(sources=[LETTERS, {**DIGITS, "text_field": "{a} {q}"}]).source_fingerprint,
        mix(stages=[[0, [3, 1]], [7, [1, 1]]], **UNWEIGHTED).source_fingerprint,
        mix(stages=[[0, [3, 1]], [7, [1, 1]]], unit="tokens", **UNWEIGHTED).source_fingerprint,
        mix(sources=[DIGITS, LETTERS]).source_fingerprint,
    ]
    assert len({first, *others}) == 7


def test_a_tokeniser_is_trained_on_the_first_source(mix, tmp_path):
    trained = mix("bpe:300").tokenizer
    alone = tokens.prepare("jsonl:letters.jsonl", "bpe:300", cache_dir=tmp_path / "cache").tokenizer
    assert trained.fingerprint == alone.fingerprint


def test_other_data_is_prepared_as_ever(mix, tmp_path):
    mix()
    corpus = prepare("jsonl:letters.jsonl", "byte", cache_dir=tmp_path / "cache")
    assert not isinstance(corpus, MixedCorpus) and corpus.cached


def test_prepared_sources_bring_the_tokeniser_along_or_have_to_agree(mix, tmp_path):
    mix()
    made = tokens.prepare("jsonl:letters.jsonl", "bpe:300", cache_dir=tmp_path / "cache", out=tmp_path / "ready")
    ready = {"data": f"prepared:{tmp_path}/ready", "weight": 1}
    corpus = mix(None, sources=[ready, DIGITS])
    assert corpus.tokenizer_fingerprint == made.tokenizer_fingerprint and len(corpus.parts[0].train) == len(made.train)
    with pytest.raises(UserError, match="was made with the tokeniser 'bpe:300'"):
        mix("byte", sources=[DIGITS, ready])


def test_what_is_no_mixture_is_named(mix, tmp_path):
    with pytest.raises(UserError, match="cannot read .*absent.json"):
        prepare(f"mix:{tmp_path}/absent.json", "byte")
    with pytest.raises(UserError, match="unit is 'epochs'"):
        mix(unit="epochs")
    with pytest.raises(UserError, match="unknown data source 'mix:mix.json'"):
        mix(sources=[{"data": "mix:mix.json", "weight": 1}])


def test_stages_too_close_for_rows_and_short_sources_are_named(mix):
    with pytest.raises(UserError, match="two of them at the same row of 100 tokens"):
        batches.training(
            mix(stages=[[0, [1, 1]], [10, [1, 0]], [20, [1, 2]]], unit="tokens", **UNWEIGHTED), "windows", 4, 100, 0
        )
    with pytest.raises(UserError, match="in the mixture's source jsonl:digits.jsonl, the text to train on has"):
        batches.training(mix(), "windows", 4, 1000, 0)
