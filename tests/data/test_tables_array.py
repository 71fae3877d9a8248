"""Tables of files that are one JSON list: every object, whatever stands in its texts, by index; what is none is named with its place."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data.sources import resolve
from research.data.tables.spec import open_tables

values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 10**20) | st.text('a[]{}",\\ \n\té漢😀', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab]}", max_size=2), inner, max_size=3), max_leaves=6,
)  # fmt: skip
objects = st.lists(st.dictionaries(st.text("xyz", min_size=1, max_size=2), values, max_size=3), min_size=1, max_size=8)


@given(
    objects,
    st.sampled_from([None, 0, 2, 4]),
    st.booleans(),
    st.sampled_from(["", "\ufeff", " \n"]),
    st.sampled_from(["", "\n \t"]),
)
def test_every_object_of_a_list_by_its_index(tmp_path_factory, rows, indent, ascii_only, before, after):
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_text(before + json.dumps(rows, indent=indent, ensure_ascii=ascii_only) + after, encoding="utf-8")
    table = open_tables(f"json:{path}")["all"]
    absent = dict.fromkeys(rows[0])
    assert len(table) == len(rows)
    for i in [*range(len(rows))][::-1]:
        assert table.record(i) == absent | rows[i]


def test_files_are_joined_and_lists_of_texts_are_their_lines(tmp_path):
    for n in range(2):
        rows = [{"lines": [f"{n} {k}", "second"], "one": "word"} for k in range(30)]
        (tmp_path / f"{n}.json").write_text(json.dumps(rows))
    table = open_tables(f"json:{tmp_path}", text_field="lines")["all"]
    assert len(table) == 60 and table.record(31)["lines"] == "1 1\nsecond"
    texts = [
        text
        for split in ("train", "validation", "test")
        for text in resolve(f"json:{tmp_path}", "{one}: {lines}").documents(split)
    ]
    assert sorted(texts) == sorted(f"word: {n} {k}\nsecond" for n in range(2) for k in range(30))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"a": 1}\n{"a": 2}', r"byte offset 0: expected a JSON list of objects.*jsonl:"),
        ("", "byte offset 0: expected a JSON list"),
        ('[{"é": 1}, {"b": ', r"byte offset 12: what begins here is not JSON"),
        ('[{"a": 1} {"b": 2}]', "byte offset 10: expected a comma"),
        ('[{"a": 1},]', "byte offset 10: what begins here is not JSON"),
        ('[{"a": 1}', "byte offset 9: expected a comma or the end"),
        ('[{"a": 1}] x', "byte offset 11: the list has ended, and more follows"),
        ("[1, 2]", "line 1 is not a JSON object with named fields but a int"),
        ("[]", "holds no record|no record"),
    ],
)
def test_what_is_no_list_of_objects_is_named_with_its_place(tmp_path, content, said):
    path = tmp_path / "x.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        open_tables(f"json:{path}")["all"].record(0)


def test_other_encodings_and_files_beyond_the_bound_are_refused(tmp_path, monkeypatch):
    from research.data.tables import array

    path = tmp_path / "x.json"
    path.write_bytes('[{"a": "é"}]'.encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        open_tables(f"json:{path}")
    path.write_text('[{"a": "b"}]')
    monkeypatch.setattr(array, "LARGEST", 5)
    with pytest.raises(UserError, match="larger than 5 bytes: write it as JSONL"):
        open_tables(f"json:{path}")


def test_lists_of_numbers_are_no_text(tmp_path):
    (tmp_path / "x.json").write_text('[{"a": [1, 2]}]')
    with pytest.raises(UserError, match="field 'a' is not text but list"):
        open_tables(f"json:{tmp_path}/x.json", text_field="a")["all"].record(0)
    with pytest.raises(UserError, match="json:PATH"):
        (tmp_path / "x.jsonl").write_text('[{"a": 1}]')
        open_tables(f"jsonl:{tmp_path}/x.jsonl")
