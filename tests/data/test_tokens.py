"""Token streams: what they hold, that they are kept, found damaged, and shared between processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import in_memory
import numpy as np
import pytest
import tokenizers as library
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data import units
from research.data.sources import SPLITS, Row, resolve
from research.data.tokenizer import build
from research.data.tokens import prepare
from research.data.units import dtype_for

TEXT = "".join(f"Line {number}, naïve ☃\n" for number in range(500))


@pytest.fixture
def text(tmp_path) -> str:
    (tmp_path / "input.txt").write_bytes(TEXT.encode())
    return f"text:{tmp_path}/input.txt"


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("shared")


def folder_of_texts(tmp_path, count=60) -> tuple[str, list[str]]:
    folder = tmp_path / "texts"
    folder.mkdir(exist_ok=True)
    texts = [f"document {number} " * (1 + number % 7) for number in range(count)]
    for number, content in enumerate(texts):
        (folder / f"{number:03}").write_text(content, encoding="utf-8")
    return str(folder), texts


@pytest.mark.parametrize(("spec", "dtype"), [("byte", np.uint16), ("char", np.uint8), ("bpe:300", np.uint16)])
def test_one_file_gives_its_text_in_two_parts(text, cache, spec, dtype):
    corpus = prepare(text, spec, cache_dir=cache)
    boundary = int(0.9 * len(TEXT))
    assert corpus.train.tokens.dtype == corpus.eval.tokens.dtype == dtype
    assert not any(array.flags.owndata or array.flags.writeable for array in corpus.train.tokens.arrays)  # mapped
    assert corpus.tokenizer.decode(corpus.train.tokens) == TEXT[:boundary]
    assert corpus.tokenizer.decode(corpus.eval.tokens) == TEXT[boundary:]
    assert corpus.train.bytes == len(TEXT[:boundary].encode())
    assert corpus.eval.bytes == len(TEXT[boundary:].encode())
    assert len(corpus.train) == len(corpus.train.tokens)
    assert corpus.source_fingerprint == resolve(text).fingerprint
    assert corpus.tokenizer_fingerprint == corpus.tokenizer.fingerprint


def test_characters_are_numbered_as_nanogpt_does(text, cache):
    corpus = prepare(text, "char", cache_dir=cache)
    rank = {character: number for number, character in enumerate(sorted(set(TEXT)))}
    assert np.asarray(corpus.train.tokens).tolist() == [rank[character] for character in TEXT[: int(0.9 * len(TEXT))]]


@pytest.mark.parametrize(("spec", "separated"), [("byte", True), ("bpe:280", True), ("char", False)])
def test_documents_are_separated_where_the_tokeniser_can(tmp_path, cache, spec, separated):
    data, texts = folder_of_texts(tmp_path)
    corpus = prepare(data, spec, cache_dir=cache)
    source, records = resolve(data), []
    for split, stream in zip(SPLITS, (corpus.train, corpus.eval, corpus.test), strict=True):
        ids = np.asarray(stream.tokens)
        parts = np.split(ids, stream.begins[1:])
        assert [corpus.tokenizer.decode(part) for part in parts] == list(source.documents(split))
        assert [texts[record] for record in stream.records] == list(source.documents(split))
        assert stream.bytes == sum(len(document.encode()) for document in source.documents(split))
        for part, record in zip(parts, stream.records, strict=True):
            ends = [corpus.tokenizer.eot] if separated and record != len(texts) - 1 else []
            assert part[len(part) - len(ends) :].tolist() == ends and (part == corpus.tokenizer.eot).sum() == len(ends)
        records += stream.records.tolist()
    assert sorted(records) == list(range(len(texts)))


@given(
    st.lists(st.text(alphabet="ab \n☃", min_size=1, max_size=30), min_size=1, max_size=6),
    st.integers(1, 40),
    st.sampled_from(["byte", "char", "bpe:270"]),
)
def test_batches_and_pieces_do_not_show(shared, documents, size, spec):
    tokenizer = build(spec, in_memory.source("ab \n☃" * 9), cache_dir=shared)
    rows, added = [Row("train", text, i, True, i + 1 < len(documents)) for i, text in enumerate(documents)], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "BATCH_CHARACTERS", size)
        patch.setattr("research.data.encoding._PIECE", size)
        patch.setattr("research.data.bpe._PIECE", size)
        piece = units.tokenised(rows, tokenizer, np.dtype(np.uint16), added.append)["train"]
    expected, begins = [], []
    for number, document in enumerate(documents):
        expected += [tokenizer.eot] if number and tokenizer.eot is not None else []
        begins.append(len(expected))
        expected += tokenizer.encode(document).tolist()
    assert piece.ids.tolist() == expected and piece.begins.tolist() == begins
    assert piece.records.tolist() == list(range(len(documents)))
    assert sum(added) == piece.size == sum(len(document.encode()) for document in documents)


def test_found_again_and_made_anew_for_other_content_or_tokeniser(text, cache, tmp_path, monkeypatch):
    assert prepare(text, "byte", cache_dir=cache).cached is False
    assert prepare(text, "char", cache_dir=cache).cached is False
    monkeypatch.setattr(units, "tokenised", None)  # nothing may be written now
    again = prepare(text, "byte", cache_dir=cache)
    assert again.cached is True
    assert again.tokenizer.decode(again.train.tokens) == TEXT[: int(0.9 * len(TEXT))]
    monkeypatch.undo()
    (tmp_path / "input.txt").write_bytes(TEXT.replace("7", "8").encode())
    assert prepare(text, "byte", cache_dir=cache).cached is False
    assert len(list(cache.glob("tokens/*"))) == 3


@pytest.mark.parametrize("name", ["train-00000.bin", "validation-00000.documents", "unit-00000.json", "manifest.json"])
def test_damage_is_found_and_repaired(text, cache, name):
    before = prepare(text, "byte", cache_dir=cache)
    expected = np.array(np.asarray(before.train.tokens))
    [path] = cache.glob(f"tokens/*/{name}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.unlink()
    path.write_bytes(content)
    after = prepare(text, "byte", cache_dir=cache)
    assert after.cached is False
    assert np.array_equal(np.asarray(after.train.tokens), expected)
    assert prepare(text, "byte", cache_dir=cache).cached is True


def test_two_processes_at_once_both_succeed(tmp_path, cache):
    data, _ = folder_of_texts(tmp_path)
    script = (
        "import sys; from research.data.tokens import prepare; sys.stdin.readline();"
        f"c = prepare({data!r}, 'bpe:300', cache_dir={str(cache)!r});"
        "print(c.train.tokens[:].sum(), len(c.eval), c.tokenizer_fingerprint)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", "-c", script]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(set(outputs)) == 1
    assert len(list(cache.glob("tokens/*"))) == len(list(cache.glob("tokenizers/*"))) == 1


def test_progress_reaches_the_end(tmp_path, cache, monkeypatch):
    data, texts = folder_of_texts(tmp_path)
    monkeypatch.setattr(units, "BATCH_CHARACTERS", 100)
    seen = []
    prepare(data, "byte", cache_dir=cache, progress=lambda done, total: seen.append((done, total)))
    size = sum(map(len, texts))
    assert len(seen) > 5
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (size, size)


def test_default_cache_is_the_users(text, tmp_path, monkeypatch):
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "mine"))
    prepare(text, "byte")
    assert len(list((tmp_path / "mine" / "tokens").iterdir())) == 1


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32"), (2**31, "uint32")],
)
def test_smallest_type_that_holds_the_vocabulary(vocab_size, dtype):
    assert dtype_for(vocab_size) == np.dtype(dtype)
    assert np.iinfo(dtype).max >= vocab_size - 1


def test_vocabulary_larger_than_the_type(text, cache, tmp_path):
    model = {"type": "BPE", "vocab": {"a": 0, "b": 2**31}, "merges": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}), encoding="utf-8")
    with pytest.raises(UserError, match="vocabulary of 2147483649 ids does not fit"):
        prepare(text, str(tmp_path / "tokenizer.json"), cache_dir=cache)


def test_another_tokenizer_file(text, cache, tmp_path):
    words = library.Tokenizer(library.models.WordLevel({"[UNK]": 0, "Line": 1, "☃": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    corpus = prepare(text, str(tmp_path), cache_dir=cache)
    train = resolve(text).documents("train")
    assert np.asarray(corpus.train.tokens).tolist() == words.encode(next(train)).ids
    assert corpus.train.tokens.dtype == np.uint8


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"abc\xff", "byte offset 3"), (b"a\0b" * 99, "binary"), (b"x", "too few")],
)
def test_bad_text_leaves_nothing_in_the_cache(tmp_path, cache, content, message):
    (tmp_path / "input.txt").write_bytes(content)
    for spec in ("byte", "char", "bpe:300"):
        with pytest.raises(UserError, match=message):
            prepare(f"text:{tmp_path}/input.txt", spec, cache_dir=cache)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_a_character_missing_from_a_given_tokeniser(text, cache, tmp_path):
    (tmp_path / "other.txt").write_text("abc" * 100, encoding="utf-8")
    build("char", resolve(f"{tmp_path}/other.txt"), cache_dir=cache).save(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"the character 'L' \(U\+004C"):
        prepare(text, str(tmp_path / "tokenizer.json"), cache_dir=cache)


@pytest.mark.parametrize("kind", ["unwritable", "full"])
def test_unwritable_or_full_disk(text, tmp_path, monkeypatch, kind):
    if kind == "unwritable":
        (tmp_path / "file").touch()
        cache = tmp_path / "file" / "cache"
    else:
        cache = tmp_path / "cache"

        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write the cache folder .*RESEARCH_CACHE") as caught:
        prepare(text, "byte", cache_dir=cache)
    assert "\n" not in str(caught.value)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_preparing_bytes_imports_nothing_heavy(text, cache):
    script = (
        f"import sys; from research.data.tokens import prepare; prepare({text!r}, 'byte', cache_dir={str(cache)!r});"
        "print([m for m in ('jax', 'tokenizers', 'tensorflow_datasets', 'rich') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")
