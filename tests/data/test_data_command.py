"""`research data`: what its commands print, write and refuse."""

import collections
import json
import math
import sys

import hypothesis
import numpy as np
import pytest
import tiny_runs
from data_commands import assert_refused, last, texts, write_lines
from hypothesis import strategies as st

from research.data import mixed, pictures, preview, stats
from research.data.loader import Batches
from research.data.streams import TokenStream
from research.data.tables.splits import bucket
from research.data.tokens import prepare
from research.model.config import ModelConfig
from research.train import program
from research.train.config import Config


def test_usage_lists_the_commands_and_help_their_options(call):
    code, out, _ = call("--help")
    assert code == 0 and all(f"  {name}" in out for name in ("prepare", "preview", "stats", "mix", "dedup"))
    assert_refused(call(), "usage: research data NAME", "prepare, preview")
    assert_refused(call("perpare"), "no command 'perpare'", "did you mean prepare?")
    for name, option in (
        ("prepare", "--clean"),
        ("preview", "--seed"),
        ("stats", "--tokenizer"),
        ("mix", "--steps"),
        ("dedup", "--near"),
    ):
        code, out, _ = call(name, "--help")
        assert code == 0 and option in out and "--json" in out and "--debug" in out
        assert_refused(call(name), f"usage: research data {name}")
        assert_refused(call(name, "x", "--jsn"), "no option --jsn", "--json")


# -- prepare


def test_prepare_prints_what_there_is(call, source, tmp_path):
    found = last(call("prepare", source, "--tokenizer", "bpe:280", "--clean", "plain", "--out", "own", "--json"))
    corpus = prepare("prepared:own", None)
    assert found["splits"]["train"] == {
        "documents": len(corpus.train.begins), "tokens": len(corpus.train), "learned": len(corpus.train),
        "bytes": corpus.train.bytes,
    }  # fmt: skip
    assert sum(split["documents"] for split in found["splits"].values()) == 80 == found["cleaning"]["kept"]
    assert found["mb_per_second"] > 0 and found["bytes_per_token"] > 1 and found["folder"] == "own"
    again = last(call("prepare", "prepared:own", "--json"))
    assert again["splits"] == found["splits"] and again["found_ready"] and again["cleaning"] == found["cleaning"]
    _, out, _ = call("prepare", source, "--clean", "plain")
    assert "cleaning kept 80 of 80 texts" in out and f"{tmp_path}/cache/tokens/" in out


def test_prepare_refuses(call, source, tmp_path):
    assert_refused(call("prepare", source, "--clean", "gofer"), "no cleaning preset 'gofer'; did you mean gopher?")
    assert_refused(call("prepare", source, "--clean", "gopher"), "zero records", "'words >= 50' dropped 80")
    assert_refused(call("prepare", "jsonl:nowhere"), "nowhere")
    assert_refused(call("prepare", source, "--text-field", "txt"), "no field 'txt'", "--text-field")
    assert_refused(call("prepare", source, "--out", tmp_path), "already holds something", "--out")
    assert_refused(call("prepare", "prepared:nowhere"), "no manifest.json", "--out nowhere")
    assert list(tmp_path.glob("cache/tokens/*")) == []


# -- preview


@pytest.mark.parametrize("step", [0, 7, 12345])
def test_preview_is_the_batch_of_the_step(call, source, step):
    options = ["--batch-size", 3, "--context", 20, "--seed", 5, "--show", 1]
    found = last(call("preview", source, "--step", step, *options, "--json"))
    corpus = prepare(source, "byte")
    batches = Batches(corpus.train, 3, 20, 5)
    assert found["step"] == step and [row["start"] for row in found["rows"]] == [
        row[0].start for row in batches.stretches(batches.records(step))
    ]
    assert [row["tokens"] for row in found["rows"]] == batches(step)["tokens"].tolist()
    assert [row["weights"] for row in found["rows"]] == batches(step)["weights"].tolist()
    written = texts(80)
    for row in found["rows"]:
        whole = "\0".join(written[record] for record in row["records"])
        assert corpus.tokenizer.decode(row["tokens"]) in whole.replace("\0", "")
        assert all(bucket(written[record]) == "train" for record in row["records"])


def test_preview_shows_the_text_with_escapes_on_a_line_for_each_row(call, source):
    code, out, _ = call("preview", source, "--step", 1, "--show", 2, "--context", 200)
    lines = out.splitlines()
    assert code == 0 and len(lines) == 4 and "\033" not in out
    assert lines[0].startswith("row 0: from token ") and "records: " in lines[0]
    assert r".\n<|endoftext|>" in lines[1] and "№" in lines[1]


def test_on_a_terminal_documents_alternate_and_what_is_not_learned_is_dim():
    corpus_ids = np.array([104, 105, 256, 10, 92, 255, 226])
    tokenizer = _byte()
    learned = np.array([False, True, True, True, True, True, True])
    segments = np.array([0, 0, 0, 1, 1, 1, 1])
    assert preview.shown(corpus_ids, segments, learned, tokenizer, False) == r"hi<|endoftext|>\n\\\xff\xe2"
    assert preview.shown(corpus_ids, segments, learned, tokenizer, True) == (
        "\033[2;36mh\033[0m\033[36mi\033[0m\033[36m<|endoftext|>\033[0m\033[33m" r"\n\\\xff\xe2" "\033[0m"
    )
    row = {"start": 0, "records": [4, 5], "tokens": corpus_ids.tolist(), "weights": [1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]}
    head, text = preview.text_lines([row], [segments], tokenizer, True)
    assert head == "row 0: from token 0, 2 records: 4, 5"
    assert (
        text.startswith("\033[2;36mh\033[0m\033[36mi")
        and r"\033[2;33m\n" not in text
        and "\033[2;33m\\n\033[0m" in text
    )


@pytest.mark.parametrize("kind", ["windows", "packed", "mixture", "packed mixture", "filled in", "learned"])
def test_preview_shows_what_training_takes(call, source, tmp_path, kind):
    """Of every kind of rows: the batch of the program that a run of the same options builds."""
    values: dict = {
        "data": source,
        "tokenizer": "byte",
        "batch_size": 4,
        "seed": 3,
        "rows": "packed" if "packed" in kind else "windows",
    }
    if "mixture" in kind:
        spec = write_lines(tmp_path / "other.jsonl", ({"text": f"{n} and {n}. " * 5} for n in range(90)))
        sources = [{"data": source, "weight": 1}, {"data": spec, "weight": 2}]
        (tmp_path / "mix.json").write_text(json.dumps({"sources": sources}))
        values["data"] = f"mix:{tmp_path}/mix.json"
    if kind == "filled in":
        values |= {"tokenizer": tiny_runs.tokenizer_with_sentinels(tmp_path), "fim_rate": 0.9}
    if kind == "learned":
        values |= {"text_field": "{n}: {text}", "learn": "text"}
    config = Config(**values, model=ModelConfig(context=24, width=16, heads=2, layers=1))
    texts_of = {name: getattr(config, name) for name in ("text_field", "learn")}
    corpus = mixed.prepare(config.data, config.tokenizer, **texts_of)
    batch = program.build(config, corpus).batches(7)
    options = [
        word for name, value in values.items() if name != "data" for word in (f"--{name.replace('_', '-')}", value)
    ]
    answer = call("preview", config.data, "--step", 7, "--context", 24, *options, "--json")
    rows = last(answer)["rows"]
    for name in ("tokens", "weights", "segments"):
        assert (name in batch) == (name in rows[0])
        if name in batch:
            assert [row[name] for row in rows] == batch[name].tolist()
    lines = answer[1].splitlines()
    assert len(lines) == 4 * 2 + 1
    for row, head, text in zip(rows, lines[::2], lines[1::2], strict=False):
        stream = corpus.train
        if "mixture" in kind:
            stream = corpus.parts[corpus.names.index(row["source"])].train
            assert row["source"] in head
        known = np.isin(row["records"], stream.records)
        assert known.all() and len(set(row["records"])) == len(row["records"])
        if "packed" in kind:  # every segment is of one of its records
            ids = np.asarray(stream.tokens)
            begins = [*stream.begins.tolist(), len(ids)]
            documents = {int(r): ids[a:b].tolist() for r, a, b in zip(stream.records, begins, begins[1:], strict=False)}
            for n in range(1, max(row["segments"]) + 1):
                own = [token for token, segment in zip(row["tokens"], row["segments"], strict=True) if segment == n]
                assert any(
                    own == whole[at : at + len(own)]
                    for r in row["records"]
                    for whole in [documents[r]]
                    for at in range(len(whole))
                )
        assert preview.visible(corpus.tokenizer.decode_bytes(np.array(row["tokens"][:5])))[:3] in text
    if kind == "learned":
        assert 0 < sum(sum(row["weights"]) for row in rows) < 4 * 24


def _byte():
    from research.data.encoding import byte_description
    from research.data.tokenizer import parse

    return parse(json.dumps(byte_description()), "byte")


@hypothesis.given(st.binary(max_size=40))
def test_what_is_visible_is_one_printable_line_and_tells_all_bytes_apart(content):
    shown = preview.visible(content)
    assert shown.isprintable()
    assert shown.encode("latin-1", "backslashreplace").decode("unicode_escape").encode("utf-8", "surrogatepass") == (
        content.decode("utf-8", "surrogateescape").translate({0xDC00 + b: b for b in range(128, 256)}).encode("utf-8", "surrogatepass")
    )  # fmt: skip


@hypothesis.given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.data())
def test_records_of_a_window(sizes, data):
    stream = TokenStream(np.zeros(sum(sizes), np.uint8), 0, np.cumsum([0, *sizes[:-1]]), 10 + np.arange(len(sizes)))
    owners = np.repeat(stream.records, sizes)
    start = data.draw(st.integers(0, len(owners) - 1))
    stop = data.draw(st.integers(start + 1, len(owners)))
    assert preview.records_of(stream, start, stop) == sorted(set(owners[start:stop].tolist()))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--step", "-1"], ["--step is -1"]),
        (["--show", "0"], ["--show is 0"]),
        (["--fim-rate", "0"], ["--fim-rate is 0"]),
        (["--batch-size", "0"], ["--batch-size is 0"]),
        (["--seed", "4294967296"], ["--seed is 4294967296"]),
        (["--step", "9223372036854775807"], ["--step is 9223372036854775807"]),
        (["--step", "x"], ["--step is 'x'", "a whole number"]),
        (["--context", "100000"], ["fewer than one context"]),
        (["--tokenizer", "bite"], ["unknown tokeniser 'bite'"]),
    ],
)
def test_preview_refuses(call, source, argv, words):
    assert_refused(call("preview", source, *argv), *words)


# -- images and sounds


def test_preview_of_media_takes_every_record_once_an_epoch(call, media):
    for spec in media:
        rows = [last(call("preview", spec, "--step", step, "--show", 1, "--json"))["rows"] for step in range(6)]
        flat = [row for batch in rows for row in batch]
        held = {row["record"] for row in flat}
        paths = sorted(row["path"] for row in flat[: len(held)])
        assert len(set(paths)) == len(held) == len(paths) and all(bucket(path) == "train" for path in paths)
        assert all(row["class"] == row["path"].split("/")[0] == f"class{row['label']}" for row in flat)
        order = [row["record"] for row in flat]
        assert order[: len(held)] != sorted(held)
        other = last(call("preview", spec, "--seed", 1, "--batch-size", len(held), "--json"))["rows"]
        assert sorted(row["record"] for row in other) == sorted(held)
        assert [row["record"] for row in other] != order[: len(held)]


def test_pictures_and_spectrograms(call, media, monkeypatch):
    code, out, _ = call("preview", media[0], "--show", 1)
    assert code == 0 and "8 x 6 pixels, 3 channel(s)" in out and len(out.splitlines()) == 4
    code, out, _ = call("preview", media[1], "--show", 1)
    lines = out.splitlines()
    assert code == 0 and "0.50 s at 8,000 Hz" in lines[0] and len(lines) == 17
    loudest = max(range(1, 17), key=lambda number: lines[number].count("█"))
    assert loudest in (12, 13) and lines[1].count("█") == 0  # 1000 of 4000 Hz, from below
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert "\033[38;2;255;0;0m\033[48;2;255;0;0m▀" in call("preview", media[0], "--show", 1)[1]


def test_a_picture_is_its_pixels():
    pixels = np.array(
        [[[255, 0, 0, 255], [0, 0, 255, 0]], [[0, 255, 0, 255], [9, 9, 9, 255]], [[8, 8, 8, 255]] * 2], np.uint8
    )
    red_green, blue = "\033[38;2;255;0;0m\033[48;2;0;255;0m▀", "\033[38;2;0;0;0m\033[48;2;9;9;9m▀"
    assert pictures.picture(pixels, 64, True)[0] == f"{red_green}{blue}\033[0m"
    assert len(pictures.picture(pixels, 64, True)) == 2
    grey = np.repeat(np.array([0, 255], np.uint8), 50).reshape(1, 100, 1).repeat(4, axis=0)
    assert pictures.picture(grey, 10, False) == [" " * 5 + "█" * 5]


@hypothesis.given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 80), st.booleans())
def test_pictures_fit(high, wide, width, colour):
    lines = pictures.picture(np.full((high, wide, 1), 200, np.uint8), width, colour)
    assert 1 <= len(lines) <= (high + 1) // 2
    if not colour:
        assert {len(line) for line in lines} == {min(wide, width)}


@hypothesis.given(st.integers(0, 3000), st.integers(1, 70), st.integers(1, 20))
def test_spectrograms_of_any_length(count, width, height):
    lines = pictures.spectrogram(np.sin(np.arange(count)), width, height)
    assert len(lines) == height and 1 <= len(lines[0]) <= width


@hypothesis.given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_boxes_are_means(high, wide, data):
    values = np.arange(high * wide, dtype=float).reshape(high, wide)
    rows, columns = data.draw(st.integers(1, high)), data.draw(st.integers(1, wide))
    ends = [[number * size // count for number in range(count + 1)] for size, count in ((high, rows), (wide, columns))]
    expected = [
        [values[a:b, c:d].mean() for c, d in zip(ends[1], ends[1][1:], strict=False)]
        for a, b in zip(ends[0], ends[0][1:], strict=False)
    ]
    assert np.allclose(pictures.shrink(values, rows, columns), expected)


# -- stats


def test_stats_counts_records_lengths_languages_and_repetitions(call, tmp_path):
    written = [*texts(60), *texts(5), "", ""]
    data = write_lines(tmp_path / "lines.jsonl", ({"text": text} for text in written))
    found = last(call("stats", data, "--tokenizer", "byte", "--json"))
    assert (found["records"], found["empty"], found["duplicates"]) == (67, 2, 5)
    assert found["languages"] == {"en": 65} and set(found["splits"]) <= {"train", "validation", "test"}
    for split, one in found["splits"].items():
        here = [text for text in written if text and bucket(text) == split]
        assert (one["texts"], one["bytes"]) == (len(here), sum(len(text.encode()) for text in here))
        assert (one["characters"]["min"], one["characters"]["max"]) == (min(map(len, here)), max(map(len, here)))
        assert one["tokens"]["max"] == max(len(text.encode()) for text in here)
    code, out, _ = call("stats", data)
    assert code == 0 and "67 records, 2 empty, 5 texts that repeat another" in out and "length in tokens" not in out


@hypothesis.given(st.lists(st.integers(0, 30), min_size=1, max_size=50))
def test_quantiles_are_nearest_ranks(lengths):
    found = stats.quantiles(collections.Counter(lengths))
    ranked = sorted(lengths)
    for name, share in stats.QUANTILES.items():
        assert found[name] == ranked[max(1, math.ceil(share * len(ranked))) - 1]


@hypothesis.given(st.lists(st.text("ab", min_size=1, max_size=9), min_size=1, max_size=9), st.integers(1, 20))
def test_every_text_is_tokenised_once_however_many_at_a_time(written, size):
    lengths = stats._Lengths()
    rows = [stats.Row("train", text, number, True, True) for number, text in enumerate(written)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "_BATCH", size)
        assert list(stats._tokenised(iter(rows), _byte(), lengths)) == rows
    assert lengths.tokens["train"] == collections.Counter(map(len, written))


def test_stats_of_media(call, media, tmp_path):
    found = last(call("stats", media[0], "--json"))
    assert found["sizes"] == {"8 x 6 x 3": 40} and "seconds" not in found
    assert sum(one["files"] for one in found["splits"].values()) == 40
    total = sum((collections.Counter(one["classes"]) for one in found["splits"].values()), collections.Counter())
    assert total == {"class0": 20, "class1": 20}
    assert sum(one["bytes"] for one in found["splits"].values()) == sum(
        p.stat().st_size for p in tmp_path.glob("images/*/*")
    )
    found = last(call("stats", media[1], "--json"))
    assert found["sizes"] == {"8000 Hz x 1": 40} and found["seconds"] == pytest.approx(20)
    (tmp_path / "images" / "class0" / "0.png").write_bytes(b"no picture")
    assert_refused(call("stats", media[0]), "class0/0.png", "no image")


def test_stats_refuses(call, source):
    assert_refused(call("stats", "prepared:x"), "holds tokens", "research data prepare prepared:x")
    assert_refused(call("stats", source, "--tokenizer", "bite"), "unknown tokeniser 'bite'")
