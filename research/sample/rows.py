"""One row of a batch on the host: its tokens become text, and a stop token, a stop string or a limit ends it."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from research.data.tokenizer import Tokenizer

Reason = Literal["stop", "length", "context", "none"]


@dataclasses.dataclass
class Piece:
    """The next tokens of one row, as a round brings them: any number, and no two rows need the same.

    `logprobs` and `alternatives`, where asked for, have one entry a token. `end`: why nothing can follow these tokens.
    """

    tokens: list[int]
    logprobs: Sequence[float] = ()
    alternatives: Sequence[tuple[tuple[int, float], ...]] = ()
    end: Reason | None = None
    score: float | None = None  # of the whole sequence, in a beam search
    proposed: int = 0  # of speculative decoding: how many tokens the round proposed for this row,
    accepted: int = 0  # and how many of them the model accepted


class Row:
    """Takes a row's tokens as they arrive and says what text is safe to show.

    Text that may be the beginning of a stop string is held back until that is decided. `reason` is None while the row
    goes on; afterwards `tokens` are all that were drawn, the one that ended it included, and `text` is what they say,
    up to the stop string, or to a character that they only begin.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, prompt: np.ndarray, limit: int, at_limit: Reason, stop: tuple[str, ...] = (),
        end: int | None = None,
    ):  # fmt: skip
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.alternatives: list[tuple[tuple[int, float], ...]] = []
        self.score: float | None = None
        self.proposed = self.accepted = 0
        self.reason: Reason | None = None if limit else at_limit
        self._limit = limit
        self._at_limit: Reason = at_limit
        self._stop_ids, self._stop = stop_ids(tokenizer, end), stop
        self._decoder = None if tokenizer is None else tokenizer.stream(prompt)
        self._shown: list[str] = []
        self._held = ""

    @property
    def text(self) -> str:
        return "".join(self._shown)

    @property
    def left(self) -> int:
        """How many more tokens this row can take."""
        return 0 if self.reason else self._limit - len(self.tokens)

    def take(self, piece: Piece) -> str:
        """`push` for a piece, whose log-probabilities are kept as far as its tokens are."""
        before = len(self.tokens)
        shown = self.push(piece.tokens, piece.end)
        taken = len(self.tokens) - before
        self.logprobs += piece.logprobs[:taken]
        self.alternatives += piece.alternatives[:taken]
        self.score = piece.score
        self.proposed += piece.proposed
        self.accepted += piece.accepted
        return shown

    def push(self, tokens: Sequence[int], end: Reason | None = None) -> str:
        """Returns the text that `tokens` bring out. Those after the row's end are ignored; `end` ends it after all of them."""
        end = end if len(tokens) <= self.left else None
        tokens = list(tokens[: self.left])
        first = next((i for i, token in enumerate(tokens) if token in self._stop_ids), len(tokens))
        tokens = tokens[: first + 1]
        size = 1 if self._stop else max(len(tokens), 1)  # with stop strings, the row may end at any token
        shown = [self._take(tokens[i : i + size]) for i in range(0, len(tokens), size)]
        if end and not self.reason:
            self.reason = end
            shown.append(self._show())
        elif end and self.reason == self._at_limit:
            self.reason = end
        self._shown += shown
        return "".join(shown)

    def _take(self, tokens: list[int]) -> str:
        if self.reason:
            return ""
        self.tokens += tokens
        ended = tokens[-1] in self._stop_ids
        if self._decoder is not None:
            self._held += self._decoder.push(tokens[:-1] if ended else tokens)
        if ended:
            self.reason = "stop"
        elif len(self.tokens) == self._limit:
            self.reason = self._at_limit
        return self._show()

    def _show(self) -> str:
        """What of the held text can be shown now: all that a stop string leaves of it, once the row has ended."""
        if self.reason and self._decoder is not None:
            self._held += self._decoder.finish().rstrip("\ufffd")  # what begins a character is no text yet
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.reason = "stop"
        keep = min(found) if found else len(self._held) - (0 if self.reason else self._undecided())
        shown, self._held = self._held[:keep], self._held[keep:]
        return shown

    def _undecided(self) -> int:
        """The length of the longest end of the held text that begins a stop string."""
        most = min(max(map(len, self._stop), default=0) - 1, len(self._held))
        return next((n for n in range(most, 0, -1) if any(s.startswith(self._held[-n:]) for s in self._stop)), 0)


def stop_ids(tokenizer: Tokenizer | None, end: int | None = None) -> tuple[int, ...]:
    """The ids at which a generation ends: the tokeniser's, and `end` where the model has one of its own."""
    return (() if tokenizer is None else tokenizer.stop_ids) + (() if end is None else (end,))
