"""One row of a batch on the host: its tokens become text, and a stop token, a stop string or a limit ends it."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from research.data.tokenizer import Tokenizer

Reason = Literal["stop", "length", "context"]


class Row:
    """Takes a row's tokens as they arrive and says what text is safe to show.

    Text that may be the beginning of a stop string is held back until that is decided. `reason` is None while the row
    goes on; afterwards `tokens` are all that were drawn, the one that ended it included, and `text` is what they say,
    up to the stop string.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: np.ndarray, limit: int, at_limit: Reason, stop: tuple[str, ...] = ()
    ):
        self.tokens: list[int] = []
        self.reason: Reason | None = None if limit else at_limit
        self._limit = limit
        self._at_limit: Reason = at_limit
        self._eot, self._stop = tokenizer.eot, stop
        self._decoder = tokenizer.stream(prompt)
        self._shown: list[str] = []
        self._held = ""

    @property
    def text(self) -> str:
        return "".join(self._shown)

    @property
    def left(self) -> int:
        """How many more tokens this row can take."""
        return 0 if self.reason else self._limit - len(self.tokens)

    def push(self, tokens: Sequence[int]) -> str:
        """Returns the text that `tokens` bring out. Those after the row's end are ignored."""
        tokens = list(tokens[: self.left])
        if self._eot in tokens:
            tokens = tokens[: tokens.index(self._eot) + 1]
        size = 1 if self._stop else max(len(tokens), 1)  # with stop strings, the row may end at any token
        shown = "".join([self._take(tokens[i : i + size]) for i in range(0, len(tokens), size)])
        self._shown.append(shown)
        return shown

    def _take(self, tokens: list[int]) -> str:
        if self.reason:
            return ""
        self.tokens += tokens
        self._held += self._decoder.push(tokens)
        if tokens[-1] == self._eot:
            self.reason = "stop"
        elif len(self.tokens) == self._limit:
            self.reason = self._at_limit
        if self.reason:
            self._held += self._decoder.finish()
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
