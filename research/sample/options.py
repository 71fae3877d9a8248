"""How to draw a continuation: `Sampling`, whose fields are the options of `research sample` and of `generate`."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from research.core import config as C
from research.core.config import require
from research.data.files import read_utf8
from research.sample import filters as F

MOST = 1_000_000  # tokens of a sample, and samples of a prompt
MOST_BEAMS = 1024
MOST_ALTERNATIVES = 1024
MOST_DRAFTED = 64  # tokens proposed at once, and tokens that a look-up looks for

# What a round of speculative decoding cannot do, since it judges several tokens at once: options with the values that leave them out.
TOKEN_BY_TOKEN = {
    "regex": (None,), "json_schema": (None,), "logprobs": (None,), "beams": (1,),
    "repetition_penalty": (None, 1), "presence_penalty": (None, 0), "frequency_penalty": (None, 0),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to draw a continuation. None leaves an option out.

    The penalties apply first, then what `regex` or `json_schema` allows, then temperature, top-k, top-p and min-p in this
    order. With several `beams` nothing is drawn: the `num` best of as many sequences are searched for, and a stop string
    cuts what was found.
    """

    max_tokens: int = 200  # that a sample has at most
    temperature: float = 1.0  # 0: the most probable token each time
    top_k: int | None = None  # only the k most probable tokens
    top_p: float | None = None  # only the fewest tokens whose probabilities reach p together
    min_p: float | None = None  # only tokens at least this fraction as probable as the most probable one
    repetition_penalty: float | None = None  # above 1: tokens already in prompt or output become less probable
    presence_penalty: float | None = None  # taken from the logit of every token already in the output
    frequency_penalty: float | None = None  # the same, times how often it is there
    num: int = 1  # samples of each prompt
    seed: int = 0  # of what is drawn
    stop: tuple[str, ...] = ()  # texts that end a sample, and are not part of it
    regex: str | None = None  # the whole continuation matches this regular expression
    json_schema: str | None = None  # the continuation is JSON of this schema: its text, or the path of a file
    beams: int = 1  # sequences that a beam search keeps
    length_penalty: float = 1.0  # of beam search: sums of log-probabilities are divided by length to this power
    # of beam search: yes, it ends with `beams` sequences ended; no, once a better one is unlikely; never, once it is impossible
    early_stopping: Literal["yes", "no", "never"] = "no"
    logprobs: int | None = None  # log-probability of every token, beside those of this many most probable ones
    cache: Literal["auto", "int8"] = "auto"  # how keys and values are stored: as the model computes, or in 8 bits
    # speculative decoding without a draft model: proposes what followed the text's end, up to so many tokens, where it stood before
    lookup: int | None = None
    draft_tokens: int = 4  # of speculative decoding: how many tokens are proposed at once

    def __post_init__(self):
        for name, hint in C.field_types(Sampling):
            C.convert(getattr(self, name), hint, name)
        require(0 <= self.max_tokens <= MOST, "max_tokens", self.max_tokens, f"a whole number from 0 to {MOST:,}")
        require(0 <= self.temperature < math.inf, "temperature", self.temperature, "a number of at least 0")
        require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "a whole number of at least 1")
        require(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "a probability in (0, 1]")
        require(self.min_p is None or 0 <= self.min_p <= 1, "min_p", self.min_p, "a fraction in [0, 1]")
        penalty = self.repetition_penalty
        require(penalty is None or 0 < penalty < math.inf, "repetition_penalty", penalty, "a number above 0")
        for name in ("presence_penalty", "frequency_penalty", "length_penalty"):
            value = getattr(self, name)
            require(value is None or math.isfinite(value), name, value, "a finite number")
        require(1 <= self.num <= MOST, "num", self.num, f"a whole number from 1 to {MOST:,}")
        require(0 <= self.seed < 2**32, "seed", self.seed, "a whole number in [0, 2^32)")
        require("" not in self.stop, "stop", self.stop, "texts that are not empty")
        most = MOST_ALTERNATIVES
        require(self.logprobs is None or 0 <= self.logprobs <= most, "logprobs", self.logprobs, f"from 0 to {most}")
        both = self.regex is not None and self.json_schema is not None
        require(not both, "json_schema", self.json_schema, "nothing beside a regex: give one of the two")
        self._check_beams()
        for name, value in (("draft_tokens", self.draft_tokens), ("lookup", self.lookup)):
            small = value is None or 1 <= value <= MOST_DRAFTED
            require(small, name, value, f"a whole number from 1 to {MOST_DRAFTED}")
        if self.lookup is not None:
            self._check_speculative("lookup")

    def _check_beams(self) -> None:
        require(1 <= self.beams <= MOST_BEAMS, "beams", self.beams, f"a whole number from 1 to {MOST_BEAMS:,}")
        if self.beams == 1:
            for name, default in (("length_penalty", 1.0), ("early_stopping", "no")):
                value = getattr(self, name)
                require(value == default, name, value, f"{default!r} without a beam search; set beams above 1")
            return
        require(self.num <= self.beams, "num", self.num, f"at most beams, {self.beams}: a search returns its best ones")
        require(self.temperature in (0, 1), "temperature", self.temperature, "1 or 0 with beams: nothing is drawn")
        for name in ("top_k", "top_p", "min_p"):
            require(getattr(self, name) is None, name, getattr(self, name), "None with beams: nothing is drawn")

    def check_draft(self) -> None:
        """Raises UserError for an option that does not go with a draft model."""
        require(self.lookup is None, "lookup", self.lookup, "None with a draft model: either of them proposes")
        self._check_speculative("a draft model")

    def _check_speculative(self, proposer: str) -> None:
        for name, off in TOKEN_BY_TOKEN.items():
            value = getattr(self, name)
            require(value in off, name, value, f"{off[0]} with {proposer}: it goes token by token")

    def filters(self) -> F.Filters:
        """The filters that change anything: what is not drawn keeps only penalties, and neutral values are left out."""
        penalties = {
            "repetition_penalty": None if self.repetition_penalty == 1 else self.repetition_penalty,
            "presence_penalty": self.presence_penalty or None,
            "frequency_penalty": self.frequency_penalty or None,
        }
        if self.temperature == 0 or self.beams > 1:
            return F.make(**penalties)
        return F.make(
            temperature=self.temperature, top_k=self.top_k, top_p=None if self.top_p == 1 else self.top_p,
            min_p=self.min_p or None, **penalties,
        )  # fmt: skip

    def schema(self) -> str | None:
        """The JSON text of `json_schema`, read from its file if it names one. Raises UserError where that cannot be read."""
        if self.json_schema is None:
            return None
        written = self.json_schema.strip()
        inline = written.startswith("{") or written in ("true", "false")
        return written if inline else read_utf8(Path(written).expanduser())


def sampling_of(options: dict[str, Any]) -> Sampling:
    """`Sampling` from keyword arguments: numbers may be NumPy's, `stop` a single text, `json_schema` a mapping. Raises UserError naming the
    nearest option for one that does not exist."""
    given = {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}
    if isinstance(given.get("stop"), str):
        given["stop"] = (given["stop"],)
    if isinstance(given.get("json_schema"), Mapping):
        given["json_schema"] = json.dumps(given["json_schema"])
    return C.set_values(Sampling(), given, "generate")
