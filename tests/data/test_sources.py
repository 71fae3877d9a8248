"""Sources: what is read, what is held out, and what bad input says."""

import json
import os
import sysconfig
from pathlib import Path

import in_memory
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data.files import decode_utf8, write_atomically
from research.data.sources import SPLITS, Source, resolve
from research.data.tables.splits import HELD_OUT_FRACTION


def both(source: Source) -> tuple[list[str], list[str]]:
    return list(source.documents("train")), list(source.documents("validation"))


def every(source: Source) -> list[str]:
    return [text for split in SPLITS for text in source.documents(split)]


def folder_of(tmp_path: Path, count: int) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03}.txt").write_text(f"document {number}\n", encoding="utf-8")
    return folder


def jsonl_of(tmp_path: Path, *lines: object) -> str:
    path = tmp_path / "records.jsonl"
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
    return f"jsonl:{path}"


def in_one_file(*texts: str) -> Source:
    return in_memory.source(*texts, identities=("same",) * len(texts))


def test_one_file_is_split_by_position_as_nanogpt_does(tmp_path):
    text = "".join(f"Zeile {number}: äöü ☃ 𝄞\r\n" for number in range(101))
    (tmp_path / "input.txt").write_bytes(text.encode())
    boundary = int(len(text) * 0.9)
    assert both(resolve(f"text:{tmp_path}/input.txt")) == ([text[:boundary]], [text[boundary:]])
    assert both(resolve(f"{tmp_path}/input.txt")) == ([text[:boundary]], [text[boundary:]])


@given(st.lists(st.text(max_size=20), max_size=10).filter(lambda texts: len("".join(texts)) >= 2))
def test_position_cuts_the_joined_text_at_nine_tenths(texts):
    train, held_out = both(in_one_file(*texts))
    whole = "".join(texts)
    assert ("".join(train), "".join(held_out)) == (whole[: int(0.9 * len(whole))], whole[int(0.9 * len(whole)) :])
    assert all(train)
    assert all(held_out)


def test_folder_is_read_below_sorted_and_without_hidden_files(tmp_path):
    for name in ("b/2.md", "a.txt", "b/1.py", ".git/config", "b/.hidden", "__pycache__/x.pyc", "c/d/e", "empty"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if name == "empty" else f"<{name}>", encoding="utf-8")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    train, held_out = both(resolve(f"text:{tmp_path}"))
    assert "".join(train + held_out) == "<a.txt><b/1.py><b/2.md><c/d/e>"


def test_folder_holds_out_by_path_wherever_it_lies(tmp_path):
    folder = folder_of(tmp_path, 400)
    train, held_out = both(resolve(f"text:{folder}"))
    assert sorted(every(resolve(f"text:{folder}"))) == sorted(f"document {number}\n" for number in range(400))
    assert 0.4 * HELD_OUT_FRACTION < len(held_out) / 400 < 2 * HELD_OUT_FRACTION
    moved = folder.rename(tmp_path / "elsewhere")
    assert both(resolve(str(moved))) == (train, held_out)
    assert both(resolve(f"text:{moved}/*.txt")) == (train, held_out)
    assert both(resolve(f"{tmp_path}/else*/*.txt"))[0] != []
    (moved / "another.txt").write_text("one more", encoding="utf-8")
    assert set(held_out) <= set(both(resolve(str(moved)))[1])


def test_few_documents_fall_back_to_position_so_that_both_parts_exist(tmp_path):
    train, held_out = both(resolve(str(folder_of(tmp_path, 2))))
    whole = "document 0\ndocument 1\n"
    assert "".join(train) == whole[: int(0.9 * len(whole))]
    assert "".join(held_out) == whole[int(0.9 * len(whole)) :]


def test_globs(tmp_path):
    for name in ("x/a.txt", "x/b.md", "x/y/c.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, encoding="utf-8")
    (tmp_path / "odd[1].txt").write_text("the file, not the pattern", encoding="utf-8")
    train, held_out = both(resolve(f"text:{tmp_path}/x/**/*.txt"))
    assert "".join(train + held_out) == "x/a.txtx/y/c.txt"
    train, held_out = both(resolve(f"text:{tmp_path}/odd[1].txt"))
    assert "".join(train + held_out) == "the file, not the pattern"


def test_fingerprint_follows_the_content_alone(tmp_path):
    folder = folder_of(tmp_path, 20)
    before = resolve(f"text:{folder}").fingerprint
    assert resolve(f"text:{folder}").fingerprint == before == resolve(str(folder)).fingerprint
    os.utime(folder / "003.txt", (0, 0))
    assert resolve(f"text:{folder}").fingerprint == before
    (folder / "003.txt").write_text("document 4\n", encoding="utf-8")
    changed = resolve(f"text:{folder}").fingerprint
    assert changed != before
    (folder / "003.txt").rename(folder / "3.txt")
    assert resolve(f"text:{folder}").fingerprint != changed


def test_jsonl_reads_the_field_and_keeps_equal_records_together(tmp_path):
    texts = [f"täxt {number}" for number in range(300)]
    records = [{"id": 1, "story": text} for text in texts]
    spec = jsonl_of(tmp_path, *records, "", *records, {"story": ""})
    train, held_out = both(resolve(spec, "story"))
    test = list(resolve(spec, "story").documents("test"))
    assert sorted([*train, *held_out, *test]) == sorted([*texts, *texts])
    assert not set(train) & set(held_out) and not set(test) & set(train + held_out) and test
    assert held_out
    assert resolve(spec, "story").fingerprint != resolve(spec, "id").fingerprint


def test_fields_of_any_name_are_the_users_own(tmp_path):
    records = [{"text": f"text {number}", "part": ("x", 3)[number % 2], "parts": None} for number in range(60)]
    source = resolve(jsonl_of(tmp_path, *records))
    rows = [row for unit in source.units for row in source.rows(unit)]
    assert [row.text for row in rows] == [record["text"] for record in records]
    assert all(row.begins for row in rows) and [row.ends for row in rows] == [True] * 59 + [False]


def test_a_text_of_several_fields_needs_all_of_them(tmp_path):
    spec = jsonl_of(tmp_path, *({"q": f"{n}?", "a": None if n == 7 else n} for n in range(60)))
    with pytest.raises(UserError, match="record 7 has no value in the field 'a', which --text-field names"):
        every(resolve(spec, "{q} {a}"))
    assert "5? 5" in every(resolve(jsonl_of(tmp_path, *({"q": f"{n}?", "a": n} for n in range(60))), "{q} {a}"))


def test_parts_of_which_none_is_to_train_on(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match="has the parts test, and none to train on"):
        resolve(f"jsonl:{tmp_path}")


@pytest.mark.parametrize("part", [40, 64, 1000])
def test_a_long_file_is_one_document_in_parts(tmp_path, part):
    from functools import partial

    from research.data.files import digest_files
    from research.data.tables.text import TextFiles

    text = "".join(f"Zeile {number} äöü ☃ 世界\n" for number in range(12))
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    files = [("long.txt", tmp_path / "long.txt")]
    table = TextFiles("x", files, partial(digest_files, files), part=part)
    source = Source("x", {"test": table})
    rows = [row for unit in source.units for row in source.rows(unit)]
    assert "".join(row.text for row in rows) == text and (len(rows) == 1) == (part == 1000)
    assert [row.begins for row in rows] == [True] + [False] * (len(rows) - 1) and not any(row.ends for row in rows)
    assert all(row.text[0] in " \n" and table.piece(i) == (i, len(rows)) for i, row in enumerate(rows) if i)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "unfinished', "line 2 is not JSON"),
        ("[1, 2]", "line 2 is not a JSON object.*list"),
        ('{"txt": "a"}', r"line 2 has no field 'text'; it has \['txt'\]"),
        ('{"text": 3}', "line 2: field 'text' is not text but int"),
        ('{"text": "\\ud800"}', "line 2: .* surrogate pair at character 0"),
        ("[" * 100_000, "line 2 is not JSON"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    spec = jsonl_of(tmp_path, {"text": "good"}, line)
    with pytest.raises(UserError, match=message):
        both(resolve(spec))


def test_jsonl_that_is_not_utf8(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xe9"}\n')
    with pytest.raises(UserError, match="line 2 is not UTF-8 text: byte 0xe9 at byte offset 10"):
        both(resolve(f"jsonl:{path}"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"abc\xffdef", "byte 0xff at byte offset 3"),
        ("ünï".encode("latin-1"), "byte 0xfc at byte offset 0"),
        ("utf-16".encode("utf-16"), "offset 0.*looks like UTF-16"),
        (b"text\0more", "binary, not text: NUL byte at byte offset 4"),
        (b"\x7fELF\0\0\xff\xfe", "binary, not text: NUL byte at byte offset 4"),
        (b"\x1f\x8b\x08\x00", "looks like gzip"),
        ("cut ☃".encode()[:-1], "byte 0xe2 at byte offset 4"),
    ],
)
def test_binary_and_other_encodings_name_file_and_offset(tmp_path, content, message):
    (tmp_path / "bad.txt").write_bytes(content)
    (tmp_path / "good.txt").write_bytes(b"fine")
    for spec in (f"text:{tmp_path}/bad.txt", f"text:{tmp_path}", f"{tmp_path}/*.txt"):
        with pytest.raises(UserError, match=rf"bad\.txt .*{message}"):
            both(resolve(spec))


@given(st.text())
def test_decoding_is_exact(text):
    text = text.replace("\0", "")
    assert decode_utf8(text.encode(), "x") == text


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("text:{0}/missing.txt", "no file or folder"),
        ("{0}/missing.txt", "no such file and no such form.*python_stdlib, text:PATH.*jsonl:PATH.*tfds:NAME"),
        ("text:{0}/*.nothing", "matches no file"),
        ("text:{0}/hollow", "matches no file"),
        ("text:{0}/empty.txt", "is empty"),
        ("{0}/empty.txt", "is empty"),
        ("text:", "names nothing after the colon"),
        ("", "unknown data source ''"),
        ("python_stdli", "Did you mean 'python_stdlib'"),
        ("hdf5:{0}", "unknown data source"),
        ("jsonl:{0}/missing", "no file or folder"),
        ("text:{0}/dangling", "not a regular file"),
        ("text:/dev/null", "not a regular file"),
    ],
)
def test_what_is_not_there_is_said_at_once(tmp_path, spec, message):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "hollow").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=message):
        resolve(spec.format(tmp_path))


@pytest.mark.parametrize("text", ["", "x"])
def test_too_little_to_hold_some_out(text):
    with pytest.raises(UserError, match=r"holds no text|too few to hold some out"):
        both(in_one_file(text))


def test_empty_records_only(tmp_path):
    with pytest.raises(UserError, match="holds no text"):
        both(resolve(jsonl_of(tmp_path, {"text": ""}, {"text": ""})))


def test_python_stdlib_is_always_there_and_the_same():
    source = resolve("python_stdlib")
    train, held_out = both(source)
    size = sum(len(text.encode()) for text in train + held_out)
    assert 8e6 < size < 40e6
    assert 0.02 < len(held_out) / len(train + held_out) < 0.1
    assert 0.02 < sum(map(len, held_out)) / size < 0.2
    assert both(resolve("python_stdlib")) == (train, held_out)
    assert source.fingerprint == resolve("python_stdlib").fingerprint


def test_python_stdlib_leaves_out_what_users_install_and_what_cannot_be_read(tmp_path, monkeypatch):
    for name in ("a.py", "b/c.py", "b/data.txt", "site-packages/x.py", "test/y.py", "b/tests/z.py", ".v/w.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n", encoding="utf-8")
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    train, held_out = both(resolve("python_stdlib"))
    assert "".join(train + held_out) == "# a.py\n# b/c.py\n"
    (tmp_path / "site-packages" / "x.py").write_text("# changed", encoding="utf-8")
    before = resolve("python_stdlib").fingerprint
    (tmp_path / "site-packages" / "x.py").unlink()
    assert resolve("python_stdlib").fingerprint == before


def test_split_is_one_of_three():
    with pytest.raises(ValueError, match="one of train, validation, test"):
        in_one_file("abc").documents("dev")


def test_write_atomically_replaces_whole_or_leaves_alone(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left"):
        write_atomically(path, b"three")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
