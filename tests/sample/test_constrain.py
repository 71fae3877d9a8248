"""Generation held to a regular expression or a JSON schema, with tokenisers of every kind and models of random weights."""

import dataclasses
import json
import re

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from research.core.errors import UserError
from research.data import tokenizer as T
from research.model.config import ModelConfig
from research.sample import constrain
from research.sample.engine import continuations, generate
from research.sample.models import Loaded
from research.sample.options import Sampling

CONFIG = ModelConfig(vocab_size=257, context=24, width=16, layers=1, heads=2, mlp_width=24, tied=False)


@pytest.fixture(scope="module")
def tokenizers(tokenizer, characters, trained, chinese) -> dict[str, T.Tokenizer]:
    return {"byte": tokenizer, "char": characters(set(chinese)), "bpe": trained}


@pytest.fixture(scope="module")
def loaded(tiny, tokenizers):
    """`loaded(kind)`: a model of random weights, larger than its tokeniser by an id that must never come."""

    def load(kind: str) -> Loaded:
        config = dataclasses.replace(CONFIG, vocab_size=tokenizers[kind].vocab_size + 1)
        return Loaded(tiny.params(config), config, tokenizers[kind])

    return load


NUM = 8
POEM = "(床前|低头|举头望)(明月光|思故乡|月)?[，。]|😀{1,3}霜|[上-光]?3[.]1"


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_text_matches_the_expression_whatever_the_tokeniser_and_ends_where_it_may(kind, loaded):
    pytest.importorskip("outlines_core")
    shown: dict[int, str] = {}

    def on_text(row, text):
        assert "\ufffd" not in text
        shown[row] = shown.get(row, "") + text

    how = Sampling(max_tokens=40, num=NUM, regex=POEM, temperature=2.0, top_p=0.98)
    results = continuations(loaded(kind), ["思"], how, on_text)
    assert all(re.fullmatch(POEM, one.text) and one.finish_reason == "stop" for one in results)
    assert [shown[row] for row in range(NUM)] == [one.text for one in results]
    assert len({one.text for one in results}) > 3
    if kind == "bpe":
        assert any(len(one.tokens) < len(one.text.encode()) for one in results), "tokens of several bytes should occur"


PERSON = {
    "type": "object", "required": ["name", "tags"],
    "properties": {
        "name": {"type": "string", "maxLength": 3}, "age": {"type": ["integer", "null"]},
        "tags": {"type": "array", "items": {"enum": ["月", "a.b", True]}, "minItems": 1, "maxItems": 2},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_text_is_json_of_the_schema(kind, loaded):
    pytest.importorskip("outlines_core")
    how = Sampling(max_tokens=48, num=NUM, json_schema=json.dumps(PERSON), seed=2)
    results = continuations(loaded(kind), ["a"], how)
    complete = [json.loads(one.text) for one in results if one.finish_reason == "stop"]
    assert len(complete) > 2
    for value in complete:
        assert list(value) in (["name", "tags"], ["name", "age", "tags"])
        assert len(value["name"]) <= 3 and (value.get("age") is None or type(value["age"]) is int)
        assert 1 <= len(value["tags"]) <= 2 and set(value["tags"]) <= {"月", "a.b", True}


def of_words(regex: str, tokenizer: T.Tokenizer, stop_ids=None) -> constrain.Automaton:
    pytest.importorskip("outlines_core")
    stops = tokenizer.stop_ids if stop_ids is None else stop_ids
    return constrain.compile(tokenizer, tokenizer.vocab_size, regex=regex, stop_ids=stops)


TEXTS = st.lists(st.sampled_from(["a", "ab", "é", "明月", "月", "x", "😀"]), max_size=4).map("".join)
REGEX = "(ab?|é|明?月|😀x?)*"


advance, mask, finished = map(jax.jit, (constrain.advance, constrain.mask, constrain.finished))


@given(text=TEXTS, cut=st.integers(0, 12), kind=st.sampled_from(["byte", "bpe"]))
def test_a_row_may_stop_exactly_where_the_text_so_far_matches(text, cut, kind, tokenizers):
    tokenizer = tokenizers[kind]
    automaton = of_words(REGEX, tokenizer)
    ids = [int(i) for i in tokenizer.encode(text)][:cut]
    so_far = tokenizer.decode(ids)
    states = constrain.start(automaton, 1)
    possible = True
    for number in ids:
        possible = possible and bool(mask(automaton, states)[0, number])
        states = advance(automaton, states, np.array([number]))
    if possible:
        assert bool(mask(automaton, states)[0, tokenizer.eot]) == bool(re.fullmatch(REGEX, so_far))
    else:  # out, for good: it may only stop
        assert np.flatnonzero(mask(automaton, states)[0]).tolist() == [tokenizer.eot]


def test_without_a_library_an_automaton_is_tables():
    """States 0 -a-> 1 -b-> 2, of which 1 and 2 accept; id 0 stops, 1 is `a`, 2 is `b`, 3 is nothing."""
    nothing = -1
    automaton = constrain.Automaton(
        class_V=jnp.array([0, 1, 2, 3]),
        next_QC=jnp.array([[nothing, 1, nothing, nothing], [nothing, nothing, 2, nothing], [nothing] * 4]),
        accepting_Q=jnp.array([False, True, True]),
    )
    states = jnp.array([0, 1, 2, constrain.OUT])
    np.testing.assert_array_equal(
        mask(automaton, states), np.eye(4, dtype=bool)[[1, 2, 0, 0]] | [[0] * 4, [1, 0, 0, 0], [0] * 4, [0] * 4]
    )
    assert finished(automaton, states).tolist() == [False, False, True, True]
    assert advance(automaton, states, np.array([1, 1, 2, 1])).tolist() == [
        1,
        constrain.OUT,
        constrain.OUT,
        constrain.OUT,
    ]
    assert advance(automaton, states, np.array([0, 0, 0, 0])).tolist() == states.tolist()
    assert advance(automaton, states, np.array([3, 2, 2, 2])).tolist() == [
        constrain.OUT,
        2,
        constrain.OUT,
        constrain.OUT,
    ]


def test_what_each_token_adds_is_its_bytes(tokenizers):
    def words(kind):
        tokenizer = tokenizers[kind]
        return constrain.token_bytes(constrain._Tokens(tokenizer.fingerprint, tokenizer.vocab_size + 1, tokenizer))

    assert words("byte") == (*(bytes([i]) for i in range(256)), b"", b"")
    assert b"".join(words("char")).decode() == tokenizers["char"].decode(range(tokenizers["char"].vocab_size))
    table, bpe = words("bpe"), tokenizers["bpe"]
    assert all(table[i] == bpe.decode_bytes([i]) for i in range(bpe.vocab_size)) and table[-1] == b""
    assert table[bpe.eot] == b"" and any(word[:2] == b"\xe6\x98" for word in table)


def test_tokens_that_are_single_bytes_of_characters_are_found_by_how_characters_are_spelled(metaspace):
    tokenizer = metaspace
    words = constrain.token_bytes(constrain._Tokens(tokenizer.fingerprint, tokenizer.vocab_size, tokenizer))
    assert words[257:] == (b" ", b"a", b"b", b" a", "月".encode())
    used = {*range(0x80, 0xC0), *range(0xC2, 0xF5)}  # what UTF-8 has beside ASCII
    assert all(words[1 + byte] == bytes([byte]) for byte in used)
    automaton = of_words("é 月|😀", tokenizer, stop_ids=(0,))
    state = constrain.start(automaton, 1)
    for byte in "é".encode():
        assert mask(automaton, state)[0, 1 + byte]
        state = advance(automaton, state, np.array([1 + byte]))
    assert np.flatnonzero(mask(automaton, state)[0]).tolist() == [1 + ord(" "), 257]


def test_the_same_constraint_is_compiled_once(tokenizer):
    pytest.importorskip("outlines_core")
    one = of_words("[ab]+x", tokenizer)
    assert of_words("[ab]+x", dataclasses.replace(tokenizer)) is one
    assert of_words("[ab]+x", tokenizer, stop_ids=()) is not one


def test_what_is_refused(loaded, tokenizer, characters, tmp_path):
    pytest.importorskip("outlines_core")
    for options in ({}, {"regex": "a", "json_schema": "{}"}):
        with pytest.raises(UserError, match="exactly one"):
            constrain.compile(tokenizer, 257, stop_ids=(), **options)
    with pytest.raises(UserError, match="the stop id 257 is not in the vocabulary"):
        constrain.compile(tokenizer, 257, regex="a", stop_ids=(257,))
    with pytest.raises(
        UserError, match=r"this tokeniser \(char\) can write no text that the regular expression 'x' matches"
    ):
        of_words("x", characters("ab"), ())
    with pytest.raises(UserError, match="no text that the JSON schema's regular expression .* matches"):
        constrain.compile(characters("ab"), 2, json_schema="true", stop_ids=())
    with pytest.raises(UserError, match="nothing beside a regex"):
        Sampling(regex="a", json_schema="{}")
    with pytest.raises(UserError, match="no tokeniser, so no text can be required"):
        continuations(dataclasses.replace(loaded("byte"), tokenizer=None), [[1]], Sampling(regex="a"))
    with pytest.raises(UserError, match="cannot read .*missing.json"):
        generate(loaded("byte"), "a", json_schema=str(tmp_path / "missing.json"))


def test_a_schema_may_be_a_file_and_an_empty_language_of_text_draws_nothing(loaded, tmp_path):
    pytest.importorskip("outlines_core")
    (tmp_path / "schema.json").write_text('{"const": "月"}', encoding="utf-8")
    assert Sampling(json_schema=str(tmp_path / "schema.json")).schema() == '{"const": "月"}'
    one = continuations(loaded("byte"), ["a"], Sampling(regex="()"))[0]
    assert (one.text, one.tokens, one.finish_reason) == ("", (), "stop")
