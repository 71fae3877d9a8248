"""Pairs of texts: two aligned files, and TSV with and without a header."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data.tables.spec import open_tables

LINES = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n\t\ufeff"), max_size=6)


def pairs(table) -> list[tuple[str, str]]:
    records = [table.record(i) for i in range(len(table))]
    assert all(list(record) == ["source", "target"] == list(table.fields) for record in records)
    return [(record["source"], record["target"]) for record in records]


def write(path: Path, content: str) -> Path:
    path.write_bytes(content.encode())
    return path


@given(rows=st.lists(st.tuples(LINES, LINES), min_size=1, max_size=8), end=st.sampled_from(["\n", "\r\n"]))
def test_aligned_files_are_paired_line_by_line(rows, end, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    a, b = (write(folder / name, "".join(row[k] + end for row in rows)) for k, name in enumerate(("a.en", "b.de")))
    table = open_tables(f"pairs:{a},{b}")["all"]
    assert pairs(table) == rows
    assert table.identity(0) == rows[0][0]


def test_the_last_line_of_an_aligned_file_needs_no_newline(tmp_path):
    a, b = write(tmp_path / "a", "1\n\n3"), write(tmp_path / "b", "x\ny\nz\n")
    assert pairs(open_tables(f"pairs:{a},{b}")["all"]) == [("1", "x"), ("", "y"), ("3", "z")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Hi.\t嗨。\tCC-BY\nRun.\t跑！\n", [("Hi.", "嗨。"), ("Run.", "跑！")]),
        ("id\ttarget\tsource\n7\tb\ta\n", [("a", "b")]),
        ("source\tother\na\tb\n", [("source", "other"), ("a", "b")]),
    ],
)
def test_columns_are_the_first_two_unless_the_header_names_both(tmp_path, content, expected):
    path = write(tmp_path / "cmn.txt", content)
    assert pairs(open_tables(f"pairs:{path}")["all"]) == expected


def test_parts_of_a_folder_and_a_comma_in_a_name(tmp_path):
    write(tmp_path / "train.tsv", "a\tb\n")
    write(tmp_path / "test.tsv", "c\td\n")
    assert {part: pairs(table) for part, table in open_tables(f"pairs:{tmp_path}").items()} == {
        "train": [("a", "b")],
        "test": [("c", "d")],
    }
    odd = write(tmp_path / "odd,name.tsv", "e\tf\n")
    assert pairs(open_tables(f"pairs:{odd}")["all"]) == [("e", "f")]


def test_digest_follows_both_files(tmp_path):
    a, b = write(tmp_path / "a", "1\n"), write(tmp_path / "b", "2\n")
    digests = [open_tables(f"pairs:{x},{y}")["all"].digest() for x, y in ((a, b), (b, a))]
    write(b, "3\n")
    digests.append(open_tables(f"pairs:{a},{b}")["all"].digest())
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("1\n2\n", "1\n", "a has 2 lines and .*b has 1"),
        ("1\n", "1\n\n", "a has 1 lines and .*b has 2"),
        ("", "", "both files are empty"),
        ("1\n", None, "there is no file '.*b'"),
    ],
)
def test_aligned_files_that_are_not(tmp_path, a, b, message):
    write(tmp_path / "a", a)
    if b is not None:
        write(tmp_path / "b", b)
    with pytest.raises(UserError, match=message):
        open_tables(f"pairs:{tmp_path}/a,{tmp_path}/b")


def test_a_line_without_two_columns_is_named(tmp_path):
    path = write(tmp_path / "x.tsv", "a\tb\n\nc d\n")
    with pytest.raises(UserError, match=r"x\.tsv, line 3 has 1 column\(s\) between tabs, expected at least 2"):
        pairs(open_tables(f"pairs:{path}")["all"])
