"""Training on mixtures: `mix:FILE.json`, a file as `mix.py` describes it, is a corpus of several sources, and batches take their rows from them
by weights.

    {"sources": [{"data": "text:books", "weight": 7},
                 {"data": "jsonl:questions.jsonl", "text_field": "{question} {answer}", "weight": 3}],
     "stages": [[0, [7, 3]], [50000, [1, 4]]]}

Beside `text_field` a source may have `learn` and `clean`; one without them has the run's own, and of
`learn` only without a `text_field`. A record is a row, of which a step has the batch size. All rows have the same number of tokens,
so weights are shares of tokens too, of packed rows as far as they are full; in the unit "tokens" a stage begins with the first row that
begins at so many or more.

All sources are read by one tokeniser: one that has to be made (`char`, `bpe:N`) is made from the first source, and of one that is prepared already
(`prepared:FOLDER`) it has to be the same. Evaluation is on the held-out parts of all sources, one after the other, whatever their weights.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.data import mix, streams, tokens
from research.data.loader import Batch, ByStep, Stretch, check
from research.data.mixture import Schedule
from research.data.progress import Report
from research.data.shares import Stages, exact_shares
from research.data.tokenizer import Tokenizer
from research.data.tokens import PREPARED, Corpus

PREFIX = "mix:"


@dataclass(frozen=True, eq=False, kw_only=True)
class MixedCorpus(Corpus):
    """Corpora under one tokeniser, which are mixed: `train`, `eval` and `test` are theirs one after the other. `stages`: (where it
    begins in `unit`s, weights)."""

    parts: tuple[Corpus, ...]
    names: tuple[str, ...]
    stages: Stages
    unit: str

    def stages_of_records(self, context: int) -> Stages:
        """The stages, begun at the number of a record, for rows of so many tokens. Raises UserError where two of them would begin at the
        same."""
        one = context if self.unit == "tokens" else 1
        begun = [(-(-start // one), weights) for start, weights in self.stages]
        if len({start for start, _ in begun}) < len(begun):
            raise UserError(
                f"stages of the mixture begin at the {self.unit} {[start for start, _ in self.stages]}, two of them at the same row of "
                f"{context} tokens. Let them begin further apart."
            )
        return begun


def prepare(
    data: str,
    tokenizer: str | Tokenizer | None,
    *,
    text_field: str | None = None,
    learn: str | None = None,
    clean: str | None = None,
    cache_dir: str | Path | None = None,
    progress: Report | None = None,
) -> Corpus:
    """Returns the corpus of a source as `tokens.prepare` does, or of a mixture of sources, `mix:FILE.json`, each of which is kept in the
    cache by itself. Raises UserError for a file that is no mixture (`mix.read`) and as `tokens.prepare` does."""
    common: dict[str, Any] = {"text_field": text_field, "learn": learn, "clean": clean}
    if not data.startswith(PREFIX):
        return tokens.prepare(data, tokenizer, **common, cache_dir=cache_dir, progress=progress)
    mixture = mix.read(Path(data.removeprefix(PREFIX)).expanduser())
    parts: list[Corpus] = []
    for one, own in zip(mixture.data, mixture.texts, strict=True):
        texts = own if one.startswith(PREPARED) else common | ({"learn": None} if "text_field" in own else {}) | own
        shared = parts[0].tokenizer if parts else tokenizer
        parts.append(tokens.prepare(one, shared, **texts, cache_dir=cache_dir, progress=progress))
    return mixed(parts, mixture.data, mixture.stages, mixture.unit)


def mixed(parts: Sequence[Corpus], names: Sequence[str], stages: Stages, unit: str = "records") -> MixedCorpus:
    """Returns the mixture of corpora under one tokeniser. Its fingerprint is that of their contents and exact shares. Raises UserError for
    weights and stages that give no shares (`mixture.Schedule`)."""
    shares = exact_shares(stages)
    if shares.sources != len(parts):
        raise UserError(f"{shares.sources} weights for {len(parts)} sources of a mixture. Give one for each.")
    described = [[part.source_fingerprint for part in parts], unit, shares.starts, shares.weights, shares.periods]
    return MixedCorpus(
        train=streams.join([part.train for part in parts]), eval=streams.join([part.eval for part in parts]),
        test=streams.join([part.test for part in parts if part.test is not None]), tokenizer=parts[0].tokenizer,
        source_fingerprint=hashlib.sha256(json.dumps(described).encode()).hexdigest(),
        tokenizer_fingerprint=parts[0].tokenizer_fingerprint, cached=all(part.cached for part in parts),
        parts=tuple(parts), names=tuple(names), stages=stages, unit=unit,
    )  # fmt: skip


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

    def stretches(self, records: np.ndarray) -> list[list[Stretch]]:
        chosen, indices = self._schedule(records.astype(np.int64))
        found = [
            self.sources[k].stretches(np.array([j])) for k, j in zip(chosen.tolist(), indices.tolist(), strict=True)
        ]
        return [[one._replace(source=k) for one in row] for k, (row,) in zip(chosen.tolist(), found, strict=True)]

    def read(self, records: np.ndarray) -> Batch:
        chosen, indices = self._schedule(records.astype(np.int64))
        batch: Batch = {}
        for source in np.unique(chosen).tolist():
            here = np.flatnonzero(chosen == source)
            for name, rows in self.sources[source].read(indices[here]).items():
                whole = batch.setdefault(name, np.empty((len(records), *rows.shape[1:]), rows.dtype))
                whole[here] = rows
        return batch
