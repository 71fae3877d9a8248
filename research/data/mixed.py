"""Mixtures: `mix:FILE.json` is a corpus of several sources, and batches that take their rows from them by weights.

    {"sources": [{"data": "text:books", "weight": 0.7},
                 {"data": "jsonl:questions.jsonl", "text_field": "{question} {answer}", "weight": "3/10"}],
     "stages": [[5000, [0.2, 0.8]]], "unit": "steps"}

`data` and `text_field` are as on a command line (paths are relative to where the run starts; without a `text_field` the run's own is taken).
Weights are relative, numbers or fractions as texts. `stages`, if any, say from where on other weights count, in `unit`s: "records", which are
rows of batches (the default), "tokens" (the first row that begins at so many or more), or "steps". All rows have the same number of tokens,
so that a share of the rows is that share of the tokens; of packed rows as far as they are full.

All sources are read by one tokeniser. One that has to be made (`char`, `bpe:N`) is made from the first source. Evaluation is on the held-out
parts of all sources, one after the other, whatever their weights.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.core.paths import research_cache_dir
from research.data import sources, tokens
from research.data import tokenizer as tokenizers
from research.data.files import read_utf8
from research.data.loader import Batch, ByStep, check
from research.data.mixture import Schedule
from research.data.progress import Report
from research.data.shards import Ids
from research.data.shares import Stages, exact_shares
from research.data.tokenizer import Tokenizer
from research.data.tokens import Corpus, TokenStream

PREFIX = "mix:"
UNITS = ("records", "tokens", "steps")
LARGEST_FILE = 1 << 24
_EXAMPLE = '{"sources": [{"data": "text:a", "weight": 0.7}, {"data": "text:b", "weight": 0.3}]}'


@dataclass(frozen=True, eq=False, kw_only=True)
class MixedCorpus(Corpus):
    """Corpora under one tokeniser, which are mixed: `train`, `eval` and `test` are theirs one after the other. `stages`: (where it
    begins in `unit`s, weights)."""

    parts: tuple[Corpus, ...]
    names: tuple[str, ...]
    stages: Stages
    unit: str

    def stages_of_records(self, batch_size: int, context: int) -> Stages:
        """The stages, begun at the number of a record, for batches of so many rows of so many tokens. Raises UserError where two of
        them would begin at the same."""
        one = {"records": 1, "tokens": context, "steps": 1}[self.unit]
        many = batch_size if self.unit == "steps" else 1
        begun = [(-(-start * many // one), weights) for start, weights in self.stages]
        if len({start for start, _ in begun}) < len(begun):
            raise UserError(
                f"stages of the mixture begin at the {self.unit} {[start for start, _ in self.stages]}, two of them at the same row of "
                f"{context} tokens. Let them begin further apart."
            )
        return begun


def prepare(
    data: str,
    tokenizer: str | Tokenizer,
    *,
    text_field: str | None = None,
    cache_dir: str | Path | None = None,
    progress: Report | None = None,
) -> Corpus:
    """Returns the corpus of a source as `tokens.prepare` does, or of a mixture of sources, `mix:FILE.json`, each of which is kept in the
    cache by itself. Raises UserError for a file that is no mixture and as `tokens.prepare` does."""
    if not data.startswith(PREFIX):
        return tokens.prepare(data, tokenizer, text_field=text_field, cache_dir=cache_dir, progress=progress)
    found, stages, unit = _read(data.removeprefix(PREFIX))
    fields = [one.get("text_field", text_field) for one in found]
    if isinstance(tokenizer, str):
        root = Path(cache_dir or research_cache_dir()).expanduser()
        tokenizer = tokenizers.build(tokenizer, sources.resolve(found[0]["data"], fields[0]), cache_dir=root)
    parts = [
        tokens.prepare(one["data"], tokenizer, text_field=field, cache_dir=cache_dir, progress=progress)
        for one, field in zip(found, fields, strict=True)
    ]
    return mixed(parts, [one["data"] for one in found], stages, unit)


def mixed(parts: Sequence[Corpus], names: Sequence[str], stages: Stages, unit: str = "records") -> MixedCorpus:
    """Returns the mixture of corpora under one tokeniser. Its fingerprint is that of their contents and exact shares. Raises UserError for
    weights and stages that give no shares (`mixture.Schedule`)."""
    shares = exact_shares(stages)
    if shares.sources != len(parts):
        raise UserError(f"{shares.sources} weights for {len(parts)} sources of a mixture. Give one for each.")
    described = [[part.source_fingerprint for part in parts], unit, shares.starts, shares.weights, shares.periods]
    return MixedCorpus(
        train=_joined([part.train for part in parts]), eval=_joined([part.eval for part in parts]),
        test=_joined([part.test for part in parts if part.test is not None]), tokenizer=parts[0].tokenizer,
        source_fingerprint=hashlib.sha256(json.dumps(described).encode()).hexdigest(),
        tokenizer_fingerprint=parts[0].tokenizer_fingerprint, cached=all(part.cached for part in parts),
        parts=tuple(parts), names=tuple(names), stages=stages, unit=unit,
    )  # fmt: skip


def _joined(streams: Sequence[TokenStream]) -> TokenStream:
    """The streams one after the other, nothing copied."""
    ids = [Ids.of(stream.tokens) for stream in streams]
    before = np.cumsum([0, *(len(one) for one in ids)])
    none = np.empty(0, np.int64)
    return TokenStream(
        Ids(tuple(array for one in ids for array in one.arrays), tuple(seen for one in ids for seen in one.checks)),
        sum(stream.bytes for stream in streams),
        np.concatenate([none, *(stream.begins + first for stream, first in zip(streams, before[:-1], strict=True))]),
        np.concatenate([none, *(stream.records for stream in streams)]),
    )


def _read(path: str) -> tuple[list[dict[str, Any]], Stages, str]:
    """`(sources, stages, unit)` of a mixture's file."""
    try:
        described = json.loads(read_utf8(Path(path).expanduser(), LARGEST_FILE))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}. A mixture looks like {_EXAMPLE}") from error
    _require_fields(described, path, {"sources": list}, {"stages": list, "unit": str})
    found = described["sources"]
    for number, one in enumerate(found):
        where = f"source {number} of {path}"
        _require_fields(one, where, {"data": str, "weight": (int, float, str)}, {"text_field": str})
        if one["data"].startswith(PREFIX):
            raise UserError(f"{where} is a mixture itself, {one['data']!r}. Give its sources here, with their weights.")
    unit, stages = described.get("unit", "records"), described.get("stages", [])
    if not found or unit not in UNITS:
        raise UserError(
            f"{path} has {len(found)} sources and the unit {unit!r}. Give a source, and {', '.join(UNITS)}."
        )
    for stage in stages:
        whole = isinstance(stage, list) and len(stage) == 2 and isinstance(stage[1], list)
        if not whole or len(stage[1]) != len(found) or not isinstance(stage[0], int) or stage[0] < 1:
            raise UserError(
                f"{path} has the stage {stage!r}. A stage is [first, [a weight for each of {len(found)} sources]], first a whole number above "
                f"0 of {unit}; from 0 on the sources' own weights count."
            )
    return found, [(0, [one["weight"] for one in found]), *((first, weights) for first, weights in stages)], unit


def _require_fields(value: Any, where: str, required: Mapping[str, Any], optional: Mapping[str, Any]) -> None:
    kinds = {**required, **optional}
    right = isinstance(value, dict) and required.keys() <= value.keys() <= kinds.keys()
    if not right or any(isinstance(x, bool) or not isinstance(x, kinds[name]) for name, x in value.items()):
        raise UserError(
            f"{where} is {json.dumps(value)[:200]}; expected an object with {', '.join(required)} and, where wanted, "
            f"{', '.join(optional)}. A mixture looks like {_EXAMPLE}"
        )


@dataclass(frozen=True, eq=False)
class MixedBatches(ByStep):
    """Training batches of `batch_size` rows of several sources. `stages`: (first record, a weight for each source).

    Record r of the run is record j of source k as `mixture.Schedule` has it: in every prefix each source's rows are within one of its exact share. It
    is the row that the source's own batches give for j, so their batch size and part do not matter. Raises UserError for rows that differ in
    length and for weights that give no shares.
    """

    sources: Sequence[ByStep] = field(repr=False)
    stages: Stages
    batch_size: int
    part: tuple[int, int] = (0, 1)

    def __post_init__(self):
        check(self)
        if len({source.context for source in self.sources}) > 1:
            raise UserError(f"the sources of a mixture have rows of {[one.context for one in self.sources]} tokens.")
        _ = self._schedule

    @cached_property
    def context(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.sources[0].context

    @cached_property
    def _schedule(self) -> Schedule:
        return Schedule(self.stages)

    def read(self, records: np.ndarray) -> Batch:
        chosen, indices = self._schedule(records.astype(np.int64))
        batch: Batch = {}
        for source in np.unique(chosen).tolist():
            here = np.flatnonzero(chosen == source)
            for name, rows in self.sources[source].read(indices[here]).items():
                whole = batch.setdefault(name, np.empty((len(records), *rows.shape[1:]), rows.dtype))
                whole[here] = rows
        return batch
