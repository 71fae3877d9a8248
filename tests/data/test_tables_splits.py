"""Parts by hash: what they hold together, and what they leave alone."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data.tables.splits import PARTS, Part, bucket, split
from research.data.tables.table import content_identity, flatten, join, locate, require_field


@dataclass(frozen=True)
class InMemory:
    rows: tuple[str, ...]
    name: str = "memory"
    fields: tuple[str, ...] = ("text",)

    def __len__(self):
        return len(self.rows)

    def record(self, i):
        return {"text": self.rows[i]}

    def identity(self, i):
        return self.rows[i]

    def digest(self):
        return ",".join(self.rows), len(self.rows)


def rows(table) -> list[str]:
    return [table.record(i)["text"] for i in range(len(table))]


def test_a_known_bucket_of_each_kind_and_their_sizes():
    buckets = [bucket(str(number)) for number in range(20_000)]
    assert [buckets.index(part) for part in PARTS] == [0, 39, 9]
    for part, fraction in zip(PARTS, (0.9, 0.05, 0.05), strict=True):
        assert abs(buckets.count(part) / 20_000 - fraction) < 0.006


@given(st.lists(st.text(max_size=2), min_size=1, max_size=60))
def test_a_whole_is_divided_and_equal_records_stay_together(texts):
    parts = split({"all": InMemory(tuple(texts))})
    assert list(parts) == list(PARTS)
    assert sorted(text for part in parts.values() for text in rows(part)) == sorted(texts)
    sides = [set(rows(part)) for part in parts.values()]
    assert sum(map(len, sides)) == len(set.union(*sides))


def test_parts_that_there_are_stay_and_the_others_come_from_train():
    texts = tuple(map(str, range(400)))
    given_test = InMemory(("0", "39", "9"))
    parts = split({"train": InMemory(texts), "test": given_test})
    assert parts["test"] is given_test
    assert rows(parts["validation"]) == [text for text in texts if bucket(text) == "validation"]
    assert rows(parts["train"]) == [text for text in texts if bucket(text) != "validation"]
    everything = {part: InMemory((part,)) for part in PARTS}
    assert split(everything) == everything


def test_nothing_to_train_on():
    with pytest.raises(UserError, match=r"parts \['test'\] and no 'train'"):
        split({"test": InMemory(("a",))})


def test_a_part_is_a_view_with_a_digest_of_its_own():
    table = InMemory(tuple("abcdef"))
    part = Part(table, np.array([4, 0, 4]))
    assert rows(part) == ["e", "a", "e"]
    assert part.identity(1) == "a"
    assert (part.name, part.fields, len(part)) == ("memory", ("text",), 3)
    assert len({part.digest(), table.digest(), Part(table, np.array([4, 0])).digest()}) == 3
    assert part.digest() == Part(table, np.array([4, 0, 4], np.uint32)).digest()
    for outside in (3, -1):
        with pytest.raises(IndexError):
            part.record(outside)


@given(st.lists(st.integers(0, 4), min_size=1).filter(any))
def test_every_place_of_joined_tables_is_found(sizes):
    ends = np.cumsum(sizes)
    found = [locate(ends, i) for i in range(ends[-1])]
    assert found == [(piece, place) for piece, size in enumerate(sizes) for place in range(size)]
    joined = join("x", [InMemory(tuple(f"{piece}{k}" for k in range(size))) for piece, size in enumerate(sizes)], str)
    assert rows(joined) == [f"{piece}{place}" for piece, place in found]


def test_content_identity_is_the_content():
    record = {"a": 1, "b": b"x", "c": np.arange(3, dtype=np.int16), "d": None, "e": "ü"}
    same = {"e": "ü", "d": None, "c": np.arange(3, dtype=">i2"), "b": b"x", "a": 1}
    assert content_identity(record) == content_identity(same)
    for name, other in (("b", b"y"), ("c", np.arange(3, dtype=np.int32)), ("c", np.arange(3, dtype=np.int16)[::-1])):
        assert content_identity({**record, name: other}) != content_identity(record)


def test_flatten_names_leaves_by_their_path():
    assert flatten({"a": {"b": {"c": 1}, "d": 2}, "e": [3]}) == {"a.b.c": 1, "a.d": 2, "e": [3]}


def test_a_field_that_is_not_there_is_said_with_those_that_are():
    require_field(InMemory(()), "text", "--label-field")
    with pytest.raises(UserError, match=r"memory has no field 'label'; it has \['text'\].*--label-field"):
        require_field(InMemory(()), "label", "--label-field")
