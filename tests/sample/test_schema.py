"""JSON schemas: every text of their automaton satisfies them, by `json.loads` and a check by hand; what is not supported is refused."""

import datetime
import json
import re
import uuid

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.core.errors import UserError
from research.sample import automata, schema

VALUES = st.one_of(
    st.integers(),
    st.booleans(),
    st.none(),
    st.text(max_size=4),
    st.floats(allow_nan=False, allow_infinity=False),
)
SIZES = st.tuples(st.integers(0, 3), st.integers(0, 3)).map(sorted)
NAMES = st.text('ab .*[]{}é"\\\n', max_size=3)


def sized(pair, least: str, most: str) -> dict:
    return dict(zip((least, most), pair, strict=True))


STRINGS = st.one_of(
    st.just({}),
    SIZES.map(lambda pair: sized(pair, "minLength", "maxLength")),
    st.sampled_from(["a|b+", "^[0-9]{2}", r'x[^\x00-\x1f"\\]?$', "é|😀"]).map(lambda p: {"pattern": p}),
    st.sampled_from(["date", "time", "date-time", "uuid"]).map(lambda f: {"format": f}),
)
LEAVES = st.one_of(
    STRINGS.map(lambda more: {"type": "string", **more}),
    st.sampled_from(
        [{"type": "integer"}, {"type": "number"}, {"type": ["boolean", "null"]}, True, {"title": "anything"}]
    ),
    st.lists(VALUES, min_size=1, max_size=3).map(lambda values: {"enum": values}),
    VALUES.map(lambda value: {"const": value}),
    st.just({"$ref": "#/$defs/point"}),
)


def grown(inner):
    properties = st.dictionaries(NAMES, inner, max_size=3)
    return st.one_of(
        st.tuples(inner, SIZES).map(lambda p: {"type": "array", "items": p[0], **sized(p[1], "minItems", "maxItems")}),
        st.lists(inner, min_size=1, max_size=2).map(lambda items: {"type": "array", "prefixItems": items}),
        st.tuples(properties, st.randoms(use_true_random=False)).map(
            lambda p: {"type": "object", "properties": p[0], "required": [name for name in p[0] if p[1].random() < 0.5]}
        ),
        inner.map(lambda value: {"type": "object", "additionalProperties": value}),
        st.lists(inner, min_size=1, max_size=2).map(lambda options: {"anyOf": options}),
    )


SCHEMAS = st.recursive(LEAVES, grown, max_leaves=4)
POINT = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}, "required": ["x", "y"]}
FORMATS = {
    "date": datetime.date.fromisoformat, "uuid": uuid.UUID,
    "time": lambda text: datetime.time.fromisoformat(re.sub(r"\.[0-9]+", "", text)),
    "date-time": lambda text: datetime.datetime.fromisoformat(re.sub(r"\.[0-9]+", "", text)),
}  # fmt: skip
TYPES = {
    "string": str,
    "boolean": bool,
    "null": type(None),
    "array": list,
    "object": dict,
    "number": (int, float),
    "integer": int,
}


def is_type(value, kind: str) -> bool:
    return isinstance(value, TYPES[kind]) and (isinstance(value, bool) == (kind == "boolean"))


def satisfies(value, node) -> bool:
    """JSON Schema, as far as it is used here. The reference is to `POINT`."""
    if node is True:
        return True
    if "$ref" in node:
        return satisfies(value, POINT)
    if "anyOf" in node:
        return any(satisfies(value, option) for option in node["anyOf"])
    if "const" in node or "enum" in node:
        allowed = node.get("enum", [node.get("const")])
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed)
    kinds = node.get("type", list(TYPES))
    if not any(is_type(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return False
    if isinstance(value, str):
        try:
            FORMATS.get(node.get("format"), str)(value)
        except ValueError:
            return False
        sizes = node.get("minLength", 0) <= len(value) <= node.get("maxLength", np.inf)
        return sizes and bool(re.search(node.get("pattern", ""), value))
    if isinstance(value, list):
        items = [*node.get("prefixItems", ()), *[node.get("items", True)] * len(value)]
        sizes = node.get("minItems", 0) <= len(value) <= node.get("maxItems", np.inf)
        return sizes and all(satisfies(one, item) for one, item in zip(value, items, strict=False))
    if isinstance(value, dict):
        known, more = node.get("properties", {}), node.get("additionalProperties", True)
        named = all(satisfies(one, known.get(name, more)) for name, one in value.items())
        return (
            named
            and set(node.get("required", ())) <= set(value)
            and ("properties" not in node or set(value) <= set(known))
        )
    return True


def drawn(table: np.ndarray, accepting: np.ndarray, draw: np.random.Generator) -> bytes:
    """A text of the automaton: a walk that turns for the nearest end after some steps, and ends at one by chance."""
    far = np.where(accepting, 0, len(table))
    while far.max() == len(table):
        far = np.minimum(far, 1 + np.where(table >= 0, far[table], len(table) - 1).min(axis=1))
    text, state, patience = b"", 0, draw.integers(0, 40)
    while not (accepting[state] and (len(text) >= patience or (table[state] < 0).all() or draw.random() < 0.2)):
        where = np.flatnonzero(table[state] >= 0)
        if len(text) >= patience:
            where = where[far[table[state, where]] < far[state]] if far[state] else where
        to = draw.choice(np.unique(table[state, where]))  # else most steps would be those of long characters
        byte = draw.choice(where[table[state, where] == to])
        text, state = text + bytes([byte]), int(to)
    return text


@settings(max_examples=25)
@given(node=SCHEMAS, seed=st.integers(0, 2**32 - 1))
def test_every_text_of_the_automaton_is_json_that_satisfies_the_schema(node, seed):
    pytest.importorskip("outlines_core")
    whole = {"$defs": {"point": POINT}, "anyOf": [node]}
    table, accepting = automata.from_regex(schema.to_regex(json.dumps(whole)))
    draw = np.random.default_rng(seed)
    for _ in range(5):
        text = drawn(table, accepting, draw).decode()
        assert satisfies(json.loads(text), node), (node, text)


def texts_of(node, *texts: str) -> list[bool]:
    """Which of these texts the expression of a schema matches."""
    return [bool(re.fullmatch(schema.to_regex(node), text)) for text in texts]


def test_common_texts_are_among_those_of_their_schema():
    person = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name"],
    }
    assert texts_of(
        person, '{"name": "Ada"}', '{"name":"艾达 😀","age":-3}', '{"age":3}', '{"name":"a","b":1}', "{}"
    ) == [True, True, False, False, False]
    assert texts_of({"type": "number"}, "0", "-1.50", "1e+9", "01", "1.", "") == [True, True, True, False, False, False]
    assert texts_of({"enum": ["a.b", None, 1]}, '"a.b"', "null", "1", '"axb"') == [True, True, True, False]
    assert texts_of({}, '[{"a":null},"b"]', '{"a":{"b":1}}', "[[[1]]]") == [True, True, False]
    assert texts_of({"type": "string", "format": "date"}, '"2024-02-29"', '"2024-02-30"', '"2023-12-31"') == [
        False,
        False,
        True,
    ]
    assert texts_of({"type": "string", "enum": ["a", 3]}, '"a"', "3") == [True, False]
    assert texts_of({"type": ["string", "integer"], "maxLength": 1}, '"a"', '"ab"', "77") == [True, False, True]


STRING = {"type": "string"}
REFUSED = {
    "is no schema that a text can satisfy": False,
    "cannot be read": "{",
    "'#/nowhere'": {"$ref": "#/nowhere"},
    "is not to a place in this schema": {"$ref": "https://example.org/x"},
    "contains itself": {"type": "object", "properties": {"next": {"$ref": "#"}}},
    "at #/properties/a: minimum is not supported": {"properties": {"a": {"type": "number", "minimum": 3}}},
    "uniqueItems is not supported": {"type": "array", "uniqueItems": True},
    "allOf of several": {"allOf": [STRING, STRING]},
    "oneOf": {"oneOf": [STRING]},
    "format 'email' is not supported. Known: date, date-time, time, uuid": {**STRING, "format": "email"},
    "format, pattern together": {**STRING, "format": "date", "pattern": "a"},
    "matches quotes, backslashes or control characters": {**STRING, "pattern": "a.b"},
    "pattern at # of the JSON schema 'a\\('": {**STRING, "pattern": "a("},
    "are not numbers from 0, the smaller first": {**STRING, "minLength": 3, "maxLength": 2},
    "only as many items as prefixItems": {"type": "array", "prefixItems": [STRING], "minItems": 2},
    "required b is not among its properties": {"type": "object", "properties": {}, "required": ["b"]},
    "Out of range float": {"const": float("inf")},
    "expected a list of at least one": {"enum": []},
    "type without a type among array, boolean": {"type": "text"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_supported_is_refused_with_its_place(message):
    if "pattern" in str(REFUSED[message]):
        pytest.importorskip("outlines_core")
    with pytest.raises(UserError, match=message):
        schema.to_regex(REFUSED[message])


@given(st.none() | st.integers(-1200, 1200), st.none() | st.integers(-1200, 1200), st.integers(-3000, 3000))
def test_bounds_of_integers(least, most, number):
    if least is not None and most is not None and least > most:
        least, most = most, least
    within = (least is None or number >= least) and (most is None or number <= most)
    assert bool(re.fullmatch(schema.integers(least, most), str(number))) == within
    assert not re.fullmatch(schema.integers(least, most), f"0{number}") and not re.fullmatch(
        schema.integers(least, most), "-0"
    )


def test_bounds_are_read_as_the_schema_writes_them():
    expression = schema.to_regex({"type": "integer", "exclusiveMinimum": 2, "maximum": 11.5, "minimum": 0.5})
    assert [n for n in range(-20, 30) if re.fullmatch(expression, str(n))] == list(range(3, 12))
    for bounds in ({"minimum": 3, "maximum": 2}, {"minimum": "3"}, {"exclusiveMinimum": 1, "exclusiveMaximum": 2}):
        with pytest.raises(UserError, match=r"JSON schema at #: "):
            schema.to_regex({"type": "integer", **bounds})
