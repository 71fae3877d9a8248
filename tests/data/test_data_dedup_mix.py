"""`research data dedup` and `research data mix`: what they print, write and refuse."""

import json
from fractions import Fraction
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from data_commands import assert_refused, last, texts, write_lines
from hypothesis import strategies as st

from research.data import mix
from research.data.duplicates import jaccard
from research.data.mixture import Schedule
from research.data.tables.splits import bucket
from research.data.tokens import prepare

# -- dedup


def test_dedup_writes_whole_records_without_what_repeats(call, tmp_path):
    written = texts(30)
    close = f"{written[0]} more"
    assert 0.8 <= jaccard(written[0], close) < 1
    records = [{"text": text, "n": n, "more": {"é": [n]}} for n, text in enumerate([*written, written[3], "", close])]
    data = write_lines(tmp_path / "lines.jsonl", records)
    found = last(call("dedup", data, "--out", "kept.jsonl", "--json"))
    assert (found["records"], found["empty"], found["exact"]["dropped"], found["kept"]) == (33, 1, 1, 31)
    kept = [json.loads(line) for line in Path("kept.jsonl").read_text(encoding="utf-8").splitlines()]
    assert kept == [*records[:30], records[32]]
    pytest.importorskip("datasketch")
    found = last(call("dedup", data, "--out", "near.jsonl", "--near", "--json"))
    assert found["near"]["dropped"] == 1 and found["kept"] == 30
    assert [json.loads(line) for line in Path("near.jsonl").read_text(encoding="utf-8").splitlines()] == records[:30]
    assert sorted(path.name for path in Path().iterdir()) == ["kept.jsonl", "near.jsonl"]


def test_dedup_against_a_benchmark(call, source, tmp_path):
    item = " ".join(texts(80)[7].split()[:9])
    bench = write_lines(tmp_path / "bench.jsonl", [{"text": item}, {"text": "too short"}])
    found = last(call("dedup", source, "--out", "kept.jsonl", "--against", bench, "--ngram", 9, "--json"))
    assert found["against"]["contaminated"] == 1 and found["against"]["too_short"] == 1 and found["kept"] == 79
    assert 7 not in [json.loads(line)["n"] for line in Path("kept.jsonl").read_text(encoding="utf-8").splitlines()]
    code, out, _ = call("dedup", source, "--out", "again.jsonl", "--against", bench, "--ngram", 9)
    assert code == 0 and "1 share an n-gram with 1 of 2 items" in out and "item 0: 1 records, at most 100%" in out


def test_of_a_source_with_parts_the_one_to_train_on_is_read(call, tmp_path):
    for part, rows in (("train", ["a", "b", "a"]), ("test", ["b", "c"])):
        write_lines(tmp_path / f"{part}.jsonl", ({"text": text} for text in rows))
    assert last(call("dedup", f"jsonl:{tmp_path}", "--out", "kept.jsonl", "--json"))["kept"] == 2


def test_dedup_refuses_and_leaves_nothing(call, source, tmp_path, monkeypatch):
    assert_refused(call("dedup", source), "--out is missing")
    assert_refused(call("dedup", source, "--out", tmp_path / "lines.jsonl"), "is there already")
    assert_refused(call("dedup", source, "--out", "no/where.jsonl"), "there is no folder no")
    assert_refused(call("dedup", source, "--out", "k", "--against", source, "--ngram", 5), "zero of the 80 records")
    assert_refused(call("dedup", source, "--out", "k", "--against", source, "--ngram", 0), "n-grams of 0 words")
    assert_refused(call("dedup", source, "--out", "k", "--near", "--threshold", "1.5"), "threshold is 1.5")
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"text": ["a", "b"], "raw": [b"x", b"y"]}), tmp_path / "raw.parquet")
    assert_refused(call("dedup", f"parquet:{tmp_path}/raw.parquet", "--out", "k"), "record 0 of", "holds bytes")
    assert list(Path().iterdir()) == []


# -- mix


def mixture_file(tmp_path, **changes) -> Path:
    value = {
        "sources": [
            {"data": f"jsonl:{tmp_path}/lines.jsonl", "weight": 3},
            {"data": f"text:{tmp_path}/lines.jsonl", "weight": 1},
        ]
    }
    value = {name: one for name, one in {**value, **changes}.items() if one is not None}
    (tmp_path / "mixture.json").write_text(json.dumps(value))
    return tmp_path / "mixture.json"


def test_mix_prints_shares_and_epochs(call, source, tmp_path):
    file = mixture_file(tmp_path)
    found = last(call("mix", file, "--steps", 10, "--batch-size", 4, "--json"))
    train = sum(bucket(text) == "train" for text in texts(80))
    assert [one["shares"] for one in found["sources"]] == [[0.75], [0.25]]
    assert [one["records"] for one in found["sources"]] == [train, 1]
    assert [one["drawn"] for one in found["sources"]] == [30, 10]
    assert [one["epochs"] for one in found["sources"]] == [30 / train, 10]
    assert last(call("mix", file, "--json"))["sources"][0]["epochs"] is None
    found = last(
        call("mix", mixture_file(tmp_path, unit="tokens"), "--steps", 10, "--batch-size", 4, "--context", 8, "--json")
    )
    assert [one["tokens"] for one in found["sources"]] == [
        len(prepare(data["data"], "byte").train) for data in found["sources"]
    ]
    assert [one["drawn"] for one in found["sources"]] == [240, 80]
    code, out, _ = call("mix", mixture_file(tmp_path, stages=[[0, [3, 1]], [20, [0, 1]]]), "--steps", 10)
    assert code == 0 and "share from 0  share from 20" in out and "100.00%" in out


@hypothesis.given(
    st.lists(st.tuples(st.integers(1, 50), st.lists(st.integers(0, 4), min_size=3, max_size=3).filter(any)), min_size=1, max_size=3),
    st.integers(1, 200),
)  # fmt: skip
def test_what_is_drawn_is_what_the_schedule_draws(parts, count):
    firsts = np.cumsum([0, *(size for size, _ in parts[:-1])]).tolist()
    stages = tuple((first, tuple(weights)) for first, (_, weights) in zip(firsts, parts, strict=True))
    mixture = mix.Mixture(("a", "b", "c"), (None,) * 3, "records", stages)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mix, "_BLOCK", 7)
        drawn = mix.records_drawn(mixture, count)
    assert drawn == np.bincount(Schedule(stages)(np.arange(count))[0], minlength=3).tolist()
    exact = [Fraction(0)] * 3
    for place in range(count):
        weights = next(weights for first, weights in reversed(stages) if first <= place)
        exact = [one + Fraction(weight, sum(weights)) for one, weight in zip(exact, weights, strict=True)]
    assert mix.tokens_drawn(mixture, count) == [round(one) for one in exact]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sources": None}, ["lacks the field 'sources'"]),
        ({"sources": []}, ["sources is []"]),
        ({"sources": [3]}, ["source 0 is int"]),
        ({"sources": [{"weight": 1}]}, ["source 0 lacks the field 'data'"]),
        ({"sources": [{"data": 3, "weight": 1}]}, ["source 0: data is 3; expected text"]),
        ({"sources": [{"data": "x", "wait": 1}]}, ["source 0 has no field 'wait'"]),
        ({"sources": [{"data": "x"}]}, ["source 0 has no weight"]),
        ({"sources": [{"data": "x", "weight": -1}]}, ["negative"]),
        ({"sources": [{"data": "x", "weight": True}]}, ["the weight True is no number"]),
        ({"sources": [{"data": "nowhere", "weight": 1}]}, ["unknown data source 'nowhere'"]),
        ({"unit": "bytes"}, ["unit is 'bytes'", "records or tokens"]),
        ({"stages": 3}, ["stages is 3"]),
        ({"stages": []}, ["no stages"]),
        ({"stages": [[0, [1, 1]]]}, ["weights are [3, 1]", "stage 0 has [1, 1]"]),
        ({"stages": [[0, [3, 1]], [0, [1, 1]]]}, ["begin at [0, 0]"]),
        ({"stages": [[0, [3, 1]], [9, [1]]]}, ["are 1. Give one for each source"]),
        ({"stage": []}, ["no field 'stage'"]),
    ],
)
def test_mix_refuses(call, source, tmp_path, changes, words):
    assert_refused(call("mix", mixture_file(tmp_path, **changes)), *words)


def test_mix_refuses_files_and_tokenisers(call, source, tmp_path, media):
    assert_refused(call("mix", "nowhere.json"), "cannot read nowhere.json")
    Path("broken.json").write_text("{")
    assert_refused(call("mix", "broken.json"), "broken.json is not JSON")
    assert_refused(call("mix", mixture_file(tmp_path), "--steps", 0), "--steps is 0")
    file = mixture_file(tmp_path, unit="tokens")
    assert_refused(call("mix", file, "--tokenizer", "char"), "has another tokeniser than", "tokenizer.json")
    sources = [{"data": media[0], "weight": 1}]
    assert last(call("mix", mixture_file(tmp_path, sources=sources), "--json"))["sources"][0]["records"] > 30
    assert_refused(call("mix", mixture_file(tmp_path, sources=sources, unit="tokens")), "has no tokens")
