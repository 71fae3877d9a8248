"""Regular expressions as tables of NumPy: over bytes, then over the tokens of a vocabulary.

A table is (states, symbols) int32: the next state, -1 where there is none; state 0 is the start. Every state of a
finished table is reached from the start and reaches an accepting one, so no walk through it can get stuck.
"""

from collections.abc import Sequence

import numpy as np

from research.core.errors import UserError

# outlines-core determinises with the regex-automata crate, the one such library that takes Unicode classes to UTF-8 bytes,
# is quick on the expressions that JSON schemas become, ships wheels and hands out its transitions; grammar engines such as
# llguidance and xgrammar compute a mask on the host at every token instead, which a compiled loop cannot call.
MISSING = "constraints need the package outlines-core: pip install 'purestep[constrain]'."

MAX_STATES = 1 << 16
MAX_ENTRIES = 1 << 26  # states x classes of tokens, 4 bytes each

# Symbols beside the 256 bytes. The engine stops an alternation at the first branch that matches (`a|ab` never sees its b) and
# leaves out states right after a match. Behind an end mark nothing matches early. The empty branch after it, which matches at
# once, spares the engine its search for matches that begin later, often most of the work; the start mark, two bytes taken in one
# symbol, steps over the states that this branch touches.
_BEGIN, _END, _NONE = range(256, 259)
_WRAPPED = r"\x00\x00(?:{})\x{{10FFFF}}|"


def from_regex(regex: str, what: str = "regular expression") -> tuple[np.ndarray, np.ndarray]:
    """Returns `(table (states, 256), accepting (states,))`: the automaton over UTF-8 bytes of the texts that `regex`, in the
    syntax of Rust's regex crate, matches as a whole.

    Raises UserError, naming `what` and the expression, where it is invalid, uses look-around, back-references or word
    boundaries, matches no text, or needs more than `MAX_STATES` states.
    """
    index = _index(without_anchors(regex), what, regex)
    transitions, final = index.get_transitions(), index.get_final_states()
    start = index.get_next_state(index.get_initial_state(), _BEGIN)
    if start is None:
        raise _nothing(what, regex)
    if len(transitions) > MAX_STATES:
        raise UserError(
            f"the {what} {shown(regex)} needs {len(transitions)} states; at most {MAX_STATES} are supported. Large or nested "
            "counted repetitions are what makes automata large: shorten them, or use * or +."
        )
    names = [start, *sorted(transitions.keys() - {start})]
    number = {name: i for i, name in enumerate(names)}
    table = np.full((len(names), 259), -1, np.int32)
    for row, name in zip(table, names, strict=True):
        there = transitions.get(name, {})
        row[list(there)] = [number.get(target, -1) for target in there.values()]  # nothing leaves a dead state
    accepting = np.array([transitions.get(name, {}).get(_END) in final for name in names])
    trimmed = trim(table[:, :256], accepting)
    if trimmed is None:
        raise _nothing(what, regex)
    return trimmed


def _index(regex: str, what: str, given: str):
    try:
        from outlines_core import Index, Vocabulary
    except ImportError as error:
        raise UserError(MISSING) from error
    symbols: dict[bytes, list[int]] = {bytes([byte]): [byte] for byte in range(256)}
    vocabulary = Vocabulary(_NONE, {**symbols, b"\0\0": [_BEGIN], "\U0010ffff".encode(): [_END]})
    try:
        Index(f"|{regex}", vocabulary)  # cheap: is it an expression on its own, not only between our parentheses?
        return Index(_WRAPPED.format(regex), vocabulary)
    except Exception as error:
        if "incompatible" in str(error):
            raise _nothing(what, given) from error
        raise UserError(
            f"the {what} {shown(given)} cannot be compiled: {error}. The syntax is that of Rust's regex crate, without "
            "look-around, back-references, word boundaries and anchors inside."
        ) from error


def _nothing(what: str, regex: str) -> UserError:
    return UserError(
        f"the {what} {shown(regex)} matches no text, or has an anchor such as ^ or $ elsewhere than at its ends; "
        "the whole text is matched, so leave anchors out."
    )


def without_anchors(regex: str) -> str:
    """Returns the expression without ^ before and $ behind, which say nothing where the whole text is matched."""
    body = regex.removeprefix("^")
    escaped = (len(body) - 1 - len(body[:-1].rstrip("\\"))) % 2
    return body[:-1] if body.endswith("$") and not escaped else body


def over_tokens(
    table: np.ndarray, accepting: np.ndarray, tokens: Sequence[bytes]
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Returns `(class of every token (V,), table (Q, C), accepting (Q,))` of the automaton whose symbols are tokens, each the
    bytes in `tokens`, or None where no sequence of them is accepted. Tokens of a class act alike in every state.

    A token of no bytes is never allowed. Raises UserError where Q x C exceeds `MAX_ENTRIES`.
    """
    class_V, columns_CQ = _classes(table, tokens)
    trimmed = trim(columns_CQ.T, accepting)
    if trimmed is None:
        return None
    columns_CQ, class_C = distinct(trimmed[0].T)
    return class_C[class_V], columns_CQ.T, trimmed[1]


def _classes(table: np.ndarray, tokens: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The class of every token (V,), and what a class does in every state (C, Q).

    All tokens take their next byte together, and those that have acted alike so far and take bytes that act alike are one, so
    the work grows with the classes and not with the vocabulary.
    """
    states = len(table)
    steps, class_of_byte = distinct(table.T)
    steps = np.concatenate([steps, np.full((len(steps), 1), -1, np.int32)], axis=1)  # index -1 leads to -1
    known: dict[bytes, int] = {}
    columns: list[np.ndarray] = []

    def register(column: np.ndarray) -> int:
        number = known.setdefault(column.tobytes(), len(known))
        if number == len(columns):
            columns.append(column)
        if len(columns) * states > MAX_ENTRIES:
            raise UserError(
                f"this constraint has {states} states in which tokens act in more than {MAX_ENTRIES // states} different ways; "
                f"at most {MAX_ENTRIES} pairs of both are supported. Make it simpler: fewer properties or choices, or shorter repetitions."
            )
        return number

    dead, start = register(np.full(states, -1, np.int32)), register(np.arange(states, dtype=np.int32))
    lengths = np.array([len(token) for token in tokens], np.int64)
    offsets, joined = np.cumsum(lengths) - lengths, np.frombuffer(b"".join(tokens), np.uint8)
    class_V = np.where(lengths > 0, start, dead)
    for position in range(int(lengths.max(initial=0))):
        here = np.flatnonzero((lengths > position) & (class_V != dead))
        byte = class_of_byte[joined[offsets[here] + position]]
        pairs, which = np.unique(class_V[here] * len(steps) + byte, return_inverse=True)
        befores, takes = np.divmod(pairs, len(steps))
        after = [register(steps[step][columns[before]]) for before, step in zip(befores, takes, strict=True)]
        class_V[here] = np.array(after, np.int64)[which]
    used, class_V = np.unique(class_V, return_inverse=True)
    return class_V, np.stack([columns[number] for number in used])


def trim(table: np.ndarray, accepting: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the table and the accepting states without states that the start does not reach or that reach no accepting one;
    None where the start is one of those."""
    targets = [np.unique(row[row >= 0]) for row in table]
    source, target = np.repeat(np.arange(len(table)), [len(t) for t in targets]), np.concatenate(targets)
    starts = np.arange(len(table)) == 0
    kept = _closure(starts, source, target) & _closure(accepting, target, source)
    if not kept[0]:
        return None
    number = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1).astype(np.int32)  # index -1 leads to -1
    return number[table[kept]], accepting[kept]


def _closure(states: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The states (booleans) from which `states` lead along the edges, themselves included."""
    while True:
        more = states.copy()
        more[target[states[source]]] = True
        if np.array_equal(more, states):
            return states
        states = more


def distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the different rows in the order in which they come, and for each row which of them it is."""
    known: dict[bytes, int] = {}
    which = np.array([known.setdefault(row.tobytes(), len(known)) for row in rows], np.int64)
    return rows[np.unique(which, return_index=True)[1]], which


def shown(text: str) -> str:
    """The text as messages show it: quoted, long ones cut."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
