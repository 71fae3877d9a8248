"""`research data`: what its commands print, write and refuse."""

import collections
import json
import math
import sys
import wave
from fractions import Fraction
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from research import cli
from research.data import mix, pictures, preview, stats
from research.data.duplicates import jaccard
from research.data.loader import Batches
from research.data.mixture import Schedule
from research.data.tables.splits import bucket
from research.data.tokens import TokenStream, prepare

TEXT = "the river of a town and its mill in late winter was as quiet as snow on an old roof until bells began"
WORDS = TEXT.split()


def texts(count: int) -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, 12 + number % 9)) + f" № {number}.\n" for number in range(count)]


def write_lines(path: Path, records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return f"jsonl:{path}"


@pytest.fixture
def source(tmp_path) -> str:
    return write_lines(tmp_path / "lines.jsonl", ({"text": text, "n": n} for n, text in enumerate(texts(80))))


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """`call(*argv) -> (code, out, err)` of `research data ...`, from an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "cache"))

    def run(*argv):
        capsys.readouterr()
        try:
            code = cli.main(["data", *map(str, argv)])
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


def last(answer) -> dict:
    code, out, err = answer
    assert code == 0 and err == "", err
    return json.loads(out.splitlines()[-1])


def assert_refused(answer, *words):
    code, out, err = answer
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, (code, out, err)
    for word in words:
        assert str(word) in err, err


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
        "documents": len(corpus.train.begins), "tokens": len(corpus.train), "bytes": corpus.train.bytes,
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
    options = ["--batch-size", 3, "--context", 20, "--seed", 5, "--rows", 1]
    found = last(call("preview", source, "--step", step, *options, "--json"))
    corpus = prepare(source, "byte")
    batches = Batches(corpus.train, 3, 20, 5)
    assert found["step"] == step and [row["start"] for row in found["rows"]] == batches.starts(step).tolist()
    assert [row["tokens"] for row in found["rows"]] == batches(step)["tokens"].tolist()
    assert [row["weights"] for row in found["rows"]] == batches(step)["weights"].tolist()
    written = texts(80)
    for row in found["rows"]:
        whole = "\0".join(written[record] for record in row["records"])
        assert corpus.tokenizer.decode(row["tokens"]) in whole.replace("\0", "")
        assert all(bucket(written[record]) == "train" for record in row["records"])


def test_preview_shows_the_text_with_escapes_on_a_line_for_each_row(call, source):
    code, out, _ = call("preview", source, "--step", 1, "--rows", 2, "--context", 200)
    lines = out.splitlines()
    assert code == 0 and len(lines) == 4 and "\033" not in out
    assert lines[0].startswith("row 0: tokens ") and "records: " in lines[0]
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
    stream = TokenStream(corpus_ids, 6, np.array([0, 3]), np.array([4, 5]))
    head, text = preview.text_lines([row], stream, tokenizer, True)
    assert head == "row 0: tokens 0 to 6, 2 records: 4, 5"
    assert (
        text.startswith("\033[2;36mh\033[0m\033[36mi")
        and r"\033[2;33m\n" not in text
        and "\033[2;33m\\n\033[0m" in text
    )


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
        (["--rows", "0"], ["--rows is 0"]),
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


@pytest.fixture
def media(tmp_path) -> tuple[str, str]:
    from PIL import Image

    for number in range(40):
        for name in ("images", "audio"):
            (tmp_path / name / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((6, 8, 3), np.uint8)
        pixels[:3, :, 0] = 255
        Image.fromarray(pixels).save(tmp_path / "images" / f"class{number % 2}" / f"{number}.png")
        tone = (np.sin(2 * np.pi * 1000 * np.arange(4000) / 8000) * 20000).astype("<i2")
        with wave.open(str(tmp_path / "audio" / f"class{number % 2}" / f"{number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(tone.tobytes())
    return f"images:{tmp_path}/images", f"audio:{tmp_path}/audio"


def test_preview_of_media_takes_every_record_once_an_epoch(call, media):
    for spec in media:
        rows = [last(call("preview", spec, "--step", step, "--rows", 1, "--json"))["rows"] for step in range(6)]
        flat = [row for batch in rows for row in batch]
        held = {row["record"] for row in flat}
        paths = sorted(row["path"] for row in flat[: len(held)])
        assert len(set(paths)) == len(held) == len(paths) and all(bucket(path) == "train" for path in paths)
        assert all(row["class"] == row["path"].split("/")[0] == f"class{row['label']}" for row in flat)
        order = [row["record"] for row in flat]
        assert order[: len(held)] != sorted(held)
    assert preview.shuffled(30, 0, 90, 1).reshape(3, 30).tolist() != np.tile(preview.shuffled(30, 0, 30, 1), 3).tolist()
    assert preview.shuffled(30, 0, 30, 1).tolist() != preview.shuffled(30, 0, 30, 2).tolist()


def test_pictures_and_spectrograms(call, media, monkeypatch):
    code, out, _ = call("preview", media[0], "--rows", 1)
    assert code == 0 and "8 x 6 pixels, 3 channel(s)" in out and len(out.splitlines()) == 4
    code, out, _ = call("preview", media[1], "--rows", 1)
    lines = out.splitlines()
    assert code == 0 and "0.50 s at 8,000 Hz" in lines[0] and len(lines) == 17
    loudest = max(range(1, 17), key=lambda number: lines[number].count("█"))
    assert loudest in (12, 13) and lines[1].count("█") == 0  # 1000 of 4000 Hz, from below
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert "\033[38;2;255;0;0m\033[48;2;255;0;0m▀" in call("preview", media[0], "--rows", 1)[1]


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
