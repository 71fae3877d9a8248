"""JSONL, CSV and TSV as tables: what is read, at which record, and what bad files say."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data.tables import index
from research.data.tables.index import index_file
from research.data.tables.lines import split_csv
from research.data.tables.spec import open_tables
from research.data.tables.table import Table

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
VALUES = st.lists(TEXTS, min_size=2, max_size=2)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def only(spec: str, **options) -> Table:
    tables = open_tables(spec, **options)
    assert list(tables) == ["all"]
    return tables["all"]


def records(table: Table) -> list[dict]:
    return [table.record(i) for i in range(len(table))]


def test_jsonl_in_any_order_with_blank_lines_a_byte_order_mark_and_no_last_newline(tmp_path):
    rows = [{"text": f"sätze {number}", "label": number, "meta": {"a": [1, None]}} for number in range(50)]
    lines = "\ufeff \n\n" + "\r\n \t\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    table = only(f"jsonl:{write(tmp_path / 'x.jsonl', lines)}")
    assert (len(table), table.fields) == (50, ("text", "label", "meta"))
    assert [table.record(i) for i in reversed(range(50))] == rows[::-1]


def test_a_field_of_the_first_record_that_a_later_one_lacks_is_none(tmp_path):
    path = write(tmp_path / "x.jsonl", '{"a": 1, "b": 2}\n{"a": 3, "c": 4}\n')
    assert records(only(f"jsonl:{path}")) == [{"a": 1, "b": 2}, {"a": 3, "b": None, "c": 4}]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
@given(rows=st.lists(VALUES, min_size=1, max_size=6), end=st.sampled_from(["\n", "\r\n"]), last=st.booleans())
def test_csv_reads_what_pythons_writer_wrote_however_it_falls_into_blocks(block, rows, end, last, tmp_path_factory):
    buffer = io.StringIO(newline="")
    bare = any("\r" in value for row in rows for value in row)  # which the writer does not quote by itself
    writer = csv.writer(buffer, lineterminator=end, quoting=csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL)
    writer.writerows([["first", "second"], *rows])
    content = buffer.getvalue() if last else buffer.getvalue().removesuffix(end)
    path = write(tmp_path_factory.mktemp("csv") / "x.csv", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_BLOCK", block)
        table = only(f"csv:{path}")
        assert records(table) == [{"first": a, "second": b} for a, b in rows]


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
@given(lines=st.lists(st.text("ab \t\r\v", max_size=5), max_size=8), last=st.booleans())
def test_bounds_are_those_of_lines_that_are_not_blank(block, lines, last, tmp_path_factory):
    content = "\n".join(lines) + ("\n" if last else "")
    path = write(tmp_path_factory.mktemp("bounds") / "x", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_BLOCK", block)
        found = index_file(path, blank=b" \t\r\n\v\f")
        every = index_file(path, blank=None)
    assert found.bounds.dtype == np.uint64
    assert [found.text(i).split("\n")[0] for i in range(len(found))] == [line for line in lines if line.strip()]
    assert [every.text(i) for i in range(len(every))] == io.StringIO(content, newline="\n").readlines()


@given(VALUES)
def test_tsv_values_are_taken_as_they_are(values):
    from research.data.tables.lines import split_tsv

    clean = [value.replace("\t", "").replace("\n", "").replace("\r", "") for value in values]
    assert split_tsv("\t".join(clean) + "\r\n") == clean


def test_tsv_does_not_quote_and_numbers_stay_text(tmp_path):
    path = write(tmp_path / "x.tsv", 'text\tlabel\n"a\t1\n\t\n\n say "b"\t02\n')
    assert records(only(f"tsv:{path}")) == [
        {"text": '"a', "label": "1"},
        {"text": "", "label": ""},
        {"text": ' say "b"', "label": "02"},
    ]


def test_files_of_a_folder_and_a_glob_are_one_table_in_sorted_order(tmp_path):
    write(tmp_path / "b/2.csv", "a,b\n5,6\n")
    write(tmp_path / "b/1.csv", "a,b\n1,2\n3,4\n")
    write(tmp_path / "c.csv", "a,b\n")
    write(tmp_path / "README.md", "no table")
    expected = [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}, {"a": "5", "b": "6"}]
    for spec in (f"csv:{tmp_path}", f"csv:{tmp_path}/b", f"csv:{tmp_path}/*/*.csv"):
        table = only(spec)
        assert records(table) == expected
        with pytest.raises(IndexError, match="3 records"):
            table.record(3)
        with pytest.raises(IndexError):
            table.record(-1)


def test_files_named_after_parts_are_the_parts(tmp_path):
    for name in ("train.jsonl", "dev-00000-of-00002.jsonl", "dev-00001-of-00002.jsonl", "test/x.jsonl"):
        write(tmp_path / name, json.dumps({"file": name}))
    tables = open_tables(f"jsonl:{tmp_path}")
    assert {part: [row["file"] for row in records(table)] for part, table in tables.items()} == {
        "train": ["train.jsonl"],
        "validation": ["dev-00000-of-00002.jsonl", "dev-00001-of-00002.jsonl"],
        "test": ["test/x.jsonl"],
    }
    write(tmp_path / "training.jsonl", "{}")
    with pytest.raises(UserError, match=r"mixes .*validation.* with files of none \(training\.jsonl\)"):
        open_tables(f"jsonl:{tmp_path}")


def test_identity_is_the_text_as_it_is_for_sources_else_the_content(tmp_path):
    path = write(tmp_path / "x.jsonl", '{"text": "a", "n": 1}\n{"n": 1, "text": "a"}\n{"text": "b", "n": 1}\n')
    by_text, by_content = only(f"jsonl:{path}", text_field="text"), only(f"jsonl:{path}")
    assert [by_text.identity(i) for i in range(3)] == list("aab")
    identities = [by_content.identity(i) for i in range(3)]
    assert identities[0] == identities[1] != identities[2]


def test_digest_follows_content_names_and_options(tmp_path):
    path = write(tmp_path / "x.jsonl", '{"text": "a", "b": "c"}\n')
    digests = {only(f"jsonl:{path}", text_field=field).digest() for field in (None, "text", "b")}
    assert len(digests) == 3
    assert only(f"jsonl:{path}").digest() in digests
    assert {size for _, size in digests} == {path.stat().st_size}
    write(path, '{"text": "d", "b": "c"}\n')
    assert only(f"jsonl:{path}").digest() not in digests


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"a": "b"}\n\n{"a": ', "x.jsonl, line 3 is not JSON"),
        ("x.jsonl", '{"a": "b"}\n[1]\n', "line 2 is not a JSON object.*list"),
        ("x.jsonl", '{"a": "b"}\n{"b": 1}\n', r"line 2 has no field 'a'; it has \['b'\].*--text-field"),
        ("x.jsonl", '{"a": "x"}\n{"a": 1}\n', "line 2: field 'a' is not text but int"),
        ("x.jsonl", '{"a": "\\ud800"}\n', "line 1: field 'a' holds half of a surrogate pair at character 0"),
        ("x.jsonl", '{"a": "b"}\n' + "[" * 100_000, "line 2 is not JSON"),
        ("x.jsonl", b'{"a": "b"}\n{"a": "\xe9"}\n', "line 2 is not UTF-8 text: byte 0xe9 at byte offset 7"),
        ("x.jsonl", b'{"a": "b"}\n{"a": "\0"}\n', "line 2 is binary, not text: NUL byte at byte offset 7"),
        ("x.jsonl", '{"a": "b"}\n'.encode("utf-16"), "x.jsonl is UTF-16"),
        ("x.jsonl", b"", "holds no record"),
        ("x.jsonl", b" \n\n", "holds no record"),
        ("x.jsonl.gz", b"\x1f\x8b", "no access by record.*gunzip -k"),
        ("x.csv", b"", "x.csv is empty"),
        ("x.csv", "a,b\n", "holds no record"),
        ("x.csv", "a,b\n1,2\n1\n", r"line 3 has 1 values; the first line names 2 columns: \['a', 'b'\]"),
        ("x.csv", 'a,b\n"1\n2",3\n1,2,3\n', "line 4 has 3 values"),
        ("x.csv", 'a,b\n1,2" pipe\n', "line 2, byte offset 7: a double quote stands inside an unquoted value"),
        ("x.csv", 'a,b\n"1"2,"3"\n', "line 2 is not CSV: '2' at character 3"),
        ("x.csv", 'a,b\n1,2\n"3,4\n5,6\n', "line 3, byte offset 8: .* never closed"),
        ("x.csv", "a,a\n1,2\n", "line 1 names two columns 'a'"),
        ("x.csv", "a,\n1,2\n", "line 1 has a column without a name"),
        ("x.csv", "a,b\r1,2\r", "line 1 is not CSV"),
        ("x.tsv", "a\tb\n1 2\n", "line 2 has 1 values"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    kind = name.split(".")[1]
    with pytest.raises(UserError, match=message):
        records(only(f"{kind}:{path}", text_field="a"))


def test_a_record_above_the_limit_is_named_without_reading_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "RECORD_LIMIT", 1000)
    monkeypatch.setattr(index, "_BLOCK", 100)
    path = write(tmp_path / "x.jsonl", '{"a": 1}\n' + "x" * 2000 + "\n")
    with pytest.raises(UserError, match="line 2, byte offset 9: a record of more than 1000 bytes"):
        only(f"jsonl:{path}")
    quoted = write(tmp_path / "x.csv", 'a\n1\n"' + "x\n" * 1000 + '"\n')
    with pytest.raises(UserError, match="line 3, byte offset 4: a record of more than 1000 bytes"):
        only(f"csv:{quoted}")


def test_a_file_that_becomes_shorter_is_named(tmp_path):
    path = write(tmp_path / "x.tsv", "a\n1\n2\n")
    table = only(f"tsv:{path}")
    write(path, "a\n1\n")
    with pytest.raises(UserError, match="become shorter"):
        table.record(1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("jsnol:{0}/x", "Did you mean 'jsonl:'.*Known forms"),
        ("{0}/x", "unknown source of records"),
        ("csv:", "names nothing after the colon"),
        ("csv:{0}/missing.csv", "no file or folder"),
        ("csv:{0}/*.csv", "matches no file"),
        ("csv:{0}", r"holds no file that ends in \.csv, only \['\.tsv'\]"),
    ],
)
def test_what_is_not_there_is_said_at_once(tmp_path, spec, message):
    write(tmp_path / "x.tsv", "a\n1\n")
    with pytest.raises(UserError, match=message):
        open_tables(spec.format(tmp_path))


def test_a_column_that_is_not_there_and_columns_that_disagree(tmp_path):
    write(tmp_path / "a.csv", "a,b\n1,2\n")
    with pytest.raises(UserError, match=r"has no field 'c'; it has \['a', 'b'\]\. Name one of them by --text-field"):
        open_tables(f"csv:{tmp_path}", text_field="c")
    write(tmp_path / "b.csv", "b,a\n1,2\n")
    with pytest.raises(UserError, match=r"b\.csv has the columns \['b', 'a'\], and .*a\.csv"):
        open_tables(f"csv:{tmp_path}")


def test_packed_files_in_a_folder_are_refused_and_not_skipped(tmp_path):
    write(tmp_path / "a.jsonl", "{}")
    write(tmp_path / "b.jsonl.gz", b"\x1f\x8b")
    with pytest.raises(UserError, match=r"b\.jsonl\.gz is packed"):
        open_tables(f"jsonl:{tmp_path}")


def test_an_empty_quoted_value_is_a_value():
    assert split_csv('"",a,""""\n') == ["", "a", '"']
