"""Automata: of a regular expression over bytes against Python's `re`, and over tokens against a plain walk."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.core.errors import UserError
from research.sample import automata

ALPHABET = "abä€\n"
LEAVES = st.sampled_from(["a", "b", "ä", "€", ".", "[ab]", "[^a]", "[a-ä]", "()", r"\n", "(?:b|ba)", "(?:a|ab)"])


def grown(inner):
    pairs = st.tuples(inner, inner)
    return st.one_of(
        pairs.map(lambda p: p[0] + p[1]),
        pairs.map(lambda p: f"(?:{p[0]}|{p[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}", "*?"])).map(
            lambda p: f"(?:{p[0]}){p[1]}"
        ),
    )


REGEXES = st.recursive(LEAVES, grown, max_leaves=6)
TEXTS = st.lists(st.text(ALPHABET, max_size=5), min_size=1, max_size=20)


def walk(table: np.ndarray, symbols) -> int:
    """The state after the symbols from the start; -1: there is none."""
    state = 0
    for symbol in symbols:
        state = table[state, symbol] if state >= 0 else -1
    return int(state)


def accepts(table: np.ndarray, accepting: np.ndarray, symbols) -> bool:
    state = walk(table, symbols)
    return state >= 0 and bool(accepting[state])


def alive(table: np.ndarray, accepting: np.ndarray) -> bool:
    """Whether every state is reached from the start and reaches an accepting one, by repeated squaring of the graph."""
    n = len(table)
    leads = np.eye(n, dtype=bool)
    leads[np.repeat(np.arange(n), table.shape[1])[table.ravel() >= 0], table.ravel()[table.ravel() >= 0]] = True
    for _ in range(n.bit_length()):
        leads = leads @ leads
    return bool(leads[0].all() and leads[:, accepting].any(axis=1).all())


@settings(max_examples=80)
@given(regex=REGEXES, texts=TEXTS)
def test_an_automaton_accepts_what_python_matches_as_a_whole(regex, texts):
    pytest.importorskip("outlines_core")
    table, accepting = automata.from_regex(regex)
    assert alive(table, accepting)
    for text in texts:
        assert accepts(table, accepting, text.encode()) == bool(re.fullmatch(regex, text)), (regex, text)


def test_a_branch_that_matches_early_hides_no_longer_one_and_anchors_at_the_ends_say_nothing():
    pytest.importorskip("outlines_core")
    for regex in ("a|ab|abc", "^a|ab|abc$", "^(a|ab|abc)", "(a|ab|abc)$"):
        table, accepting = automata.from_regex(regex)
        assert [accepts(table, accepting, text) for text in (b"", b"a", b"ab", b"abc", b"abca")] == [
            False,
            True,
            True,
            True,
            False,
        ]
    table, accepting = automata.from_regex(r"a\$")
    assert accepts(table, accepting, b"a$") and not accepts(table, accepting, b"a")


def test_no_state_is_within_a_character_where_a_text_may_end():
    """Every byte of a character of two, three or four bytes is a step of its own; halves of surrogate pairs are no characters."""
    pytest.importorskip("outlines_core")
    table, accepting = automata.from_regex(r"\w|😀|.{2}")
    for text in ("é", "你", "😀", "é你", "你😀"):
        data = text.encode()
        ends = [n for n in range(1, len(data) + 1) if accepts(table, accepting, data[:n])]
        assert ends == [len(text[:n].encode()) for n in range(1, len(text) + 1)]
    assert walk(table, b"\xed\xa0") == -1 and walk(table, b"\xff") == -1 and walk(table, b"\xc0") == -1


@pytest.mark.parametrize(
    ("regex", "message"),
    [
        ("a(", "cannot be compiled"),
        ("a)(?:b", "cannot be compiled"),
        (r"(a)\1", "cannot be compiled"),
        ("a(?=b)", "cannot be compiled"),
        (r"\bword", "cannot be compiled: .*word boundaries"),
        ("a$b", "has an anchor such as"),
        (r"[a&&b]", "matches no text"),
        ("(?:[ab]{500}){200}", "needs [0-9]+ states; at most 65536 are supported"),
    ],
)
def test_what_is_no_usable_expression_is_refused_by_name(regex, message):
    pytest.importorskip("outlines_core")
    with pytest.raises(UserError, match=message) as error:
        automata.from_regex(regex, "pattern of a test")
    assert f"the pattern of a test {regex!r}" in str(error.value)


def test_without_the_library_the_way_to_it_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "outlines_core", None)
    with pytest.raises(UserError, match=r"pip install 'purestep\[constrain\]'"):
        automata.from_regex("a")


TABLES = st.integers(1, 5).flatmap(
    lambda n: st.tuples(
        st.lists(st.lists(st.integers(-1, n - 1), min_size=3, max_size=3), min_size=n, max_size=n),
        st.lists(st.booleans(), min_size=n, max_size=n),
    )
)


def of_bytes(rows, accepting) -> tuple[np.ndarray, np.ndarray]:
    """A table over all bytes in which only a, b and c lead anywhere."""
    table = np.full((len(rows), 256), -1, np.int32)
    table[:, [*b"abc"]] = rows
    return table, np.array(accepting)


@given(given_table=TABLES)
def test_trimming_keeps_the_language_and_no_dead_state(given_table):
    table, accepting = of_bytes(*given_table)
    trimmed = automata.trim(table, accepting)
    words = [bytes(w) for n in range(5) for w in np.ndindex(*[3] * n)]
    accepted = [accepts(table, accepting, bytes(b"abc"[i] for i in word)) for word in words]
    if trimmed is None:  # an automaton of 5 states that accepts anything accepts a word of at most 4
        assert not any(accepted)
    else:
        assert alive(*trimmed)
        assert [accepts(*trimmed, bytes(b"abc"[i] for i in word)) for word in words] == accepted


TOKENS = st.lists(st.binary(max_size=3).map(lambda b: bytes(b"abcd"[x % 4] for x in b)), min_size=1, max_size=8)


@given(given_table=TABLES, tokens=TOKENS, draws=st.lists(st.lists(st.integers(0, 7), max_size=4), max_size=20))
def test_a_walk_over_tokens_is_the_walk_over_their_bytes(given_table, tokens, draws):
    table, accepting = of_bytes(*given_table)
    found = automata.over_tokens(table, accepting, tokens)
    if found is None:
        assert all(not accepts(table, accepting, b"".join(tokens[i % len(tokens)] for i in draw)) for draw in draws)
        return
    class_V, over, ends = found
    assert alive(over, ends) and len(class_V) == len(tokens)
    assert len(np.unique(over, axis=1).T) == over.shape[1], "two classes act alike"
    for draw in draws:
        ids = [i % len(tokens) for i in draw]
        expected = accepts(table, accepting, b"".join(tokens[i] for i in ids)) and all(tokens[i] for i in ids)
        assert accepts(over, ends, class_V[ids]) == expected


def test_tokens_that_act_alike_are_one_class():
    table, accepting = of_bytes([[0, -1, -1]], [True])  # a*
    class_V, over, _ = automata.over_tokens(table, accepting, [b"a" * (1 + i % 9) for i in range(99)] + [b"", b"ab"])
    assert class_V.tolist() == [1] * 99 + [0, 0] and over.tolist() == [[-1, 0]]


def test_more_ways_to_act_than_fit_are_refused(monkeypatch):
    monkeypatch.setattr(automata, "MAX_ENTRIES", 6)
    table, accepting = of_bytes([[1, 0, -1], [-1, 0, 1]], [False, True])
    with pytest.raises(UserError, match="2 states in which tokens act in more than 3 different ways"):
        automata.over_tokens(table, accepting, [b"a", b"b", b"c", b"ab"])
