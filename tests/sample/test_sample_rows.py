"""Rows: stop strings, stop tokens and limits, however the tokens are cut into chunks."""

import dataclasses
import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from research.data import tokenizer as T
from research.data.encoding import Tokenizer, byte_description
from research.sample.rows import Row

BYTES = T.parse(json.dumps(byte_description()), "test")
EOT = 256


@dataclasses.dataclass(frozen=True)
class Pieces(Tokenizer):
    """Ids that are whole pieces of text, to put a stop string inside one or across several."""

    pieces_of: tuple[str, ...] = ()

    def encode(self, text):
        return np.array([self.pieces_of.index(text)])

    def decode_bytes(self, ids):
        return b"".join(self.pieces_of[i].encode() for i in ids)


PIECES = Pieces("pieces", 5, None, "", ("a", "b", "ab", "ba\n", "é"))


def run(tokenizer, tokens, cuts, limit, stop=()):
    """A row after all tokens, pushed in pieces, and what it showed at each push."""
    row, shown = Row(tokenizer, np.array([], np.int32), limit, "length", stop), []
    for part in np.split(np.array(tokens), sorted(cuts)):
        shown.append(row.push(part.tolist()))
    return row, shown


def reference(tokens, limit, stop):
    """`(text, how many tokens, reason)`: the first token after which the text holds a stop string ends it."""
    for n in range(1, len(tokens) + 1):
        text = PIECES.decode(tokens[:n])
        if found := [text.index(s) for s in stop if s in text]:
            return text[: min(found)], n, "stop"
        if n == limit:
            return text, n, "length"
    return PIECES.decode(tokens), len(tokens), None


TOKENS = st.lists(st.integers(0, 4), min_size=1, max_size=20)
STOPS = st.lists(st.text("abé\n", min_size=1, max_size=4), max_size=3).map(tuple)


@hypothesis.settings(max_examples=400, deadline=None)
@hypothesis.given(TOKENS, st.lists(st.integers(0, 20), max_size=4), st.integers(1, 22), STOPS)
def test_rows_end_where_they_should_however_the_tokens_are_cut(tokens, cuts, limit, stop):
    row, shown = run(PIECES, tokens, cuts, limit, stop)
    text, count, reason = reference(tokens, limit, stop)
    assert (len(row.tokens), row.reason) == (count, reason)
    assert row.tokens == tokens[:count]
    assert "".join(shown) == row.text
    held = text[len(row.text) :]
    assert text.startswith(row.text)
    assert not held or (reason is None and any(s.startswith(held) for s in stop))


def test_text_that_may_begin_a_stop_string_is_held_back_until_it_is_decided():
    row = Row(BYTES, np.array([], np.int32), 100, "length", ("\n\n", "END"))
    assert [row.push([byte]) for byte in b"a\nbEN\n"] == ["a", "", "\nb", "", "", "EN"]
    assert row.push(list(b"x\n\ny")) == "\nx"
    assert (row.text, row.reason, row.left) == ("a\nbEN\nx", "stop", 0)
    assert row.push(list(b"more")) == "" and bytes(row.tokens) == b"a\nbEN\nx\n\n"


def test_a_separator_ends_a_row_and_is_its_last_token():
    for stop in ((), ("zz",)):
        row, _ = run(BYTES, [*b"ab", EOT, *b"cd"], [1], 100, stop)
        assert (row.text, row.tokens, row.reason) == ("ab", [97, 98, EOT], "stop")


def test_characters_are_shown_whole_and_one_that_a_limit_cuts_not_at_all():
    letter = "é".encode()
    row = Row(BYTES, np.array([], np.int32), 4, "context")
    assert [row.push([byte]) for byte in letter + letter[:1] + b"x"] == ["", "é", "", "\ufffdx"]
    assert row.reason == "context"
    cut = Row(BYTES, np.array([], np.int32), 1, "length")
    assert (cut.push([letter[0]]), cut.text, cut.tokens) == ("", "", [letter[0]])


def test_a_row_without_room_is_over_from_the_start():
    row = Row(BYTES, np.array([], np.int32), 0, "length")
    assert (row.left, row.push([97]), row.text, row.reason) == (0, "", "", "length")


@pytest.fixture(scope="module")
def kinds(tokenizer, trained, metaspace) -> dict[str, Tokenizer]:
    return {"byte": tokenizer, "bpe": trained, "bytes of unknown characters": metaspace}


SCRIPTS = st.text("a 月明é😀👩‍🚀\n", max_size=12)


@hypothesis.settings(max_examples=150)
@hypothesis.given(st.data(), SCRIPTS, SCRIPTS)
def test_pieces_hold_whole_characters_and_join_to_the_text(kinds, data, before, text):
    """Of a text after a prompt, whatever the tokeniser and wherever the tokens are cut, also within characters."""
    tokenizer = kinds[data.draw(st.sampled_from(sorted(kinds)))]
    prompt = tokenizer.encode("a" + before)
    tokens = [int(token) for token in tokenizer.encode("a" + before + text)[len(prompt) :]]
    hypothesis.assume(tokenizer.decode([*prompt, *tokens]) == "a" + before + text and tokens)
    hypothesis.assume(tokenizer.decode(prompt) == "a" + before)  # not where a merge crosses the border
    stop = data.draw(st.sampled_from([(), ("月",), ("明月", "\n"), ("👩‍🚀",)]))
    row, pieces = Row(tokenizer, prompt, len(tokens), "length", stop), []
    for part in np.split(np.array(tokens), sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=6)))):
        pieces.append(row.push(part.tolist()))
    assert not any("\ufffd" in piece for piece in pieces)
    ends = [text.index(s) for s in stop if s in text]
    assert "".join(pieces) == row.text == text[: min(ends, default=len(text))]
    assert row.reason == ("stop" if ends else "length")


def test_a_character_that_the_prompt_begins_is_shown_once_it_is_complete(tokenizer):
    row = Row(tokenizer, np.array([*b"a\xe6\x9c"]), 10, "length")
    assert row.push([0x88, *b"!"]) == "月!"
