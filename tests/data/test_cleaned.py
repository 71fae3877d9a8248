"""Cleaning within the preparation of tokens, and corpora in folders of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data import cleaning, shards, sources, tokens
from research.data.cleaned import from_numbers, to_numbers
from research.data.cleaning import PRESETS, Counts, clean
from research.data.tokens import prepare

COUNTS = st.dictionaries(st.text(max_size=8), st.integers(1, 99), max_size=4)


def texts(count: int) -> list[str]:
    """Some are blank once they are clean; some have a letter and its accent apart, and an address."""
    bodies = [f"re\u0301cord {number} of\r\nmany, mail a{number}@example.com" for number in range(count)]
    return ["\u200b \u200b" if number % 9 == 4 else body * (1 + number % 3) for number, body in enumerate(bodies)]


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "texts"
    path.mkdir()
    for number, text in enumerate(texts(60)):
        (path / f"{number:03}").write_bytes(text.encode())
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("spec", ["byte", "char", "bpe:280"])
def test_the_tokeniser_sees_cleaned_texts_and_what_was_dropped_is_counted(folder, tmp_path, spec):
    corpus = prepare(str(folder), spec, cache_dir=tmp_path / "cache", clean="plain")
    written = texts(60)
    for split, stream in (("train", corpus.train), ("validation", corpus.eval), ("test", corpus.test)):
        assert stream is not None
        numbers = [int(path) for path in sorted(os.listdir(folder)) if sources.bucket(path) == split]
        expected = {number: clean(written[number], PRESETS["plain"]).text for number in numbers}
        kept = {number: text for number, text in expected.items() if text is not None}
        assert kept and stream.records.tolist() == list(kept)
        pieces = np.split(np.asarray(stream.tokens), stream.begins[1:])
        assert [corpus.tokenizer.decode(piece) for piece in pieces] == list(kept.values())
        if corpus.tokenizer.eot is not None:
            assert all(piece[-1] == corpus.tokenizer.eot for piece in pieces)
        assert stream.bytes == sum(len(text.encode()) for text in kept.values())
    expected = cleaning.tally((text, clean(text, PRESETS["plain"])) for text in written)
    assert corpus.cleaning == expected and expected.dropped == {"empty": 7}
    assert prepare(str(folder), spec, cache_dir=tmp_path / "cache", clean="plain").cleaning == expected


def test_cleaned_otherwise_is_another_corpus(folder, tmp_path):
    found = [prepare(str(folder), "byte", cache_dir=tmp_path, clean=name) for name in (None, "plain", "plain")]
    assert [one.cached for one in found] == [False, False, True]
    assert found[0].source_fingerprint != found[1].source_fingerprint == found[2].source_fingerprint
    assert found[0].cleaning is None


@pytest.mark.parametrize("spec", ["byte", "char", "bpe:280"])
def test_nothing_left_names_the_rules_and_leaves_nothing(folder, tmp_path, spec):
    with pytest.raises(UserError, match=r"zero records of .*: of \d+, 'words >= 50' dropped \d+"):
        prepare(str(folder), spec, cache_dir=tmp_path / "cache", clean="gopher")
    assert list(tmp_path.glob("cache/tokens/*")) == list(tmp_path.glob("cache/*/*")) == []


def test_nothing_left_to_validate_with_names_them_too(tmp_path):
    for number in range(60):
        held = sources.bucket(f"{number:03}") == "validation"
        (tmp_path / f"{number:03}").write_text("\u200b" if held else "some text")
    with pytest.raises(UserError, match=r"no text for the part 'validation'. Cleaning dropped \d+ by 'empty'"):
        prepare(str(tmp_path), "byte", cache_dir=tmp_path / "cache", clean="plain")
    with pytest.raises(UserError, match="no cleaning preset 'plane'; did you mean plain"):
        prepare(str(tmp_path), "byte", cache_dir=tmp_path / "cache", clean="plane")


@hypothesis.given(st.builds(Counts, *[st.integers(0, 99)] * 4, COUNTS, COUNTS))
def test_counts_as_numbers_and_back(counts):
    assert from_numbers(to_numbers(counts)) == counts
    assert from_numbers({}) is None


def test_killed_at_random_moments_a_cleaned_corpus_is_byte_for_byte_the_same(folder, tmp_path):
    script = (
        "import sys; from research.data import sources, tokens; sources.UNIT = (1 << 7, 1 << 7);"
        f"tokens.prepare({str(folder)!r}, 'byte', cache_dir=sys.argv[2], clean='plain', out=sys.argv[1])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(name):
        return subprocess.Popen([sys.executable, "-c", script, tmp_path / name, tmp_path / "cache"], env=environment)

    assert start("whole").wait() == 0
    draw, kills = np.random.default_rng(0), 0
    for _ in range(3):
        process, before = start("cut"), len(list(tmp_path.glob(".part-cut/unit-*")))
        while process.poll() is None and len(list(tmp_path.glob(".part-cut/unit-*"))) <= before + draw.integers(3):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        assert not (tmp_path / "cut").exists() or process.returncode == 0
    assert kills > 1 and start("cut").wait() == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole") and len(contents(tmp_path / "whole")) > 20


# -- prepared:FOLDER


def test_a_folder_of_ones_own_has_the_shards_of_the_cache_and_opens_by_itself(folder, tmp_path):
    cached = prepare(str(folder), "bpe:280", cache_dir=tmp_path / "cache", clean="plain")
    made = prepare(str(folder), "bpe:280", cache_dir=tmp_path / "cache", clean="plain", out=tmp_path / "own")
    assert made.folder == tmp_path / "own" and made.cached is False and cached.folder is not None
    own = contents(tmp_path / "own")
    tokenizer = own.pop("tokenizer.json")
    assert own == contents(cached.folder)
    for asked in (None, "bpe:280", made.tokenizer, str(tmp_path / "own")):
        opened = prepare(f"prepared:{tmp_path}/own", asked, cache_dir=tmp_path / "other")
        assert opened.tokenizer.content == made.tokenizer.content and opened.cached
        assert np.array_equal(np.asarray(opened.train.tokens), np.asarray(cached.train.tokens))
        assert (opened.source_fingerprint, opened.tokenizer_fingerprint, opened.cleaning) == (
            cached.source_fingerprint, cached.tokenizer_fingerprint, cached.cleaning,
        )  # fmt: skip
    assert not (tmp_path / "other").exists()
    (tmp_path / "own" / "tokenizer.json").unlink()  # as where the work was cut off before it
    with pytest.raises(UserError, match="there is no tokenizer.json"):
        prepare(f"prepared:{tmp_path}/own", None)
    assert prepare(str(folder), "bpe:280", cache_dir=tmp_path / "cache", clean="plain", out=tmp_path / "own").cached
    assert (tmp_path / "own" / "tokenizer.json").read_bytes() == tokenizer


@pytest.mark.parametrize("name", ["train-00000.bin", "unit-00000.json", "manifest.json"])
def test_what_is_damaged_in_a_prepared_folder_is_not_used(folder, tmp_path, name):
    prepare(str(folder), "byte", cache_dir=tmp_path, out=tmp_path / "own")
    content = bytearray((tmp_path / "own" / name).read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / "own" / name).write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged|there is no manifest.json as it was written"):
        prepare(f"prepared:{tmp_path}/own", None)


def test_prepared_refuses_what_it_was_not_made_with(folder, tmp_path):
    prepare(str(folder), "byte", cache_dir=tmp_path, out=tmp_path / "own")
    prepare(str(folder), "char", cache_dir=tmp_path, out=tmp_path / "other")
    data = f"prepared:{tmp_path}/own"
    for asked in ("bpe:280", "char", str(tmp_path / "other")):
        with pytest.raises(UserError, match=r"was made with the tokeniser 'byte', and .* is asked for"):
            prepare(data, asked)
    with pytest.raises(UserError, match="leave out --text-field and --clean"):
        prepare(data, None, clean="plain", text_field="text")
    with pytest.raises(UserError, match=r"there is no manifest.json .*research data prepare SOURCE --out"):
        prepare(f"prepared:{folder}", None)
    (tmp_path / "own" / "tokenizer.json").write_bytes((tmp_path / "other" / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="is not the tokeniser that"):
        prepare(data, None)


def test_a_folder_with_something_else_is_left_alone(folder, tmp_path):
    prepare(str(folder), "byte", cache_dir=tmp_path, out=tmp_path / "own")
    before = contents(tmp_path / "own")
    with pytest.raises(UserError, match=r"already holds the corpus of .*, prepared otherwise"):
        prepare(str(folder), "char", cache_dir=tmp_path, out=tmp_path / "own")
    assert contents(tmp_path / "own") == before
    before = contents(folder)
    with pytest.raises(UserError, match="something that is no prepared corpus"):
        prepare(str(folder), "byte", cache_dir=tmp_path, out=folder)
    assert contents(folder) == before
    with pytest.raises(UserError, match=r"cannot write .*--out"):
        prepare(str(folder), "byte", cache_dir=tmp_path, out=folder / "000" / "x")


def test_a_full_disk_names_the_folder(folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "_write", full)
    with pytest.raises(UserError, match=r"cannot write .*own: No space left on device.*--out"):
        prepare(str(folder), "byte", cache_dir=tmp_path, out=tmp_path / "own")


def test_progress_of_what_is_cleaned_counts_what_is_read(folder, tmp_path):
    seen = []
    prepare(str(folder), "byte", cache_dir=tmp_path, clean="plain", progress=lambda *pair: seen.append(pair))
    size = sum(len(text.encode()) for text in texts(60))
    assert seen[-1] == (size, size) and tokens.TOKENIZER == "byte"


def test_the_documentation_has_the_thresholds_that_the_code_has():
    document = Path(tokens.__file__).parents[2] / "docs" / "data.md"
    assert cleaning.threshold_table() in document.read_text(encoding="utf-8")
