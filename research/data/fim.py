"""Fill in the middle (Bavarian et al. 2022, arXiv 2207.14255): a document's middle moved to its end, where it is learned last.

A document is cut at two places into a prefix, a middle and a suffix, none of them empty, and put together again by token as

    PSM    [prefix] prefix [suffix] suffix [middle] middle [end]
    SPM    [prefix] [suffix] suffix [middle] prefix middle [end]

SPM is the paper's form for training on both (section 3.1): the middle follows its prefix in either. In batches the documents
are those of each row, so rows are cut before documents are rearranged (the paper's context-level fill in the middle).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from research.core.errors import UserError
from research.data.encoding import Tokenizer
from research.data.loader import Batch, ByStep, Stretch
from research.data.permutation import mix

SHORTEST = 3  # tokens, one for each part


@dataclass(frozen=True)
class Sentinels:
    """The ids that stand before the parts, and the one behind the middle; None where the document's separator is enough."""

    prefix: int
    middle: int
    suffix: int
    end: int | None = None

    def __post_init__(self):
        if len({self.prefix, self.middle, self.suffix}) < 3:
            raise UserError(f"the sentinels of fill in the middle are not three different ids: {self}.")

    @property
    def count(self) -> int:
        """How many tokens longer they make a document."""
        return 3 if self.end is None else 4


# Prefix, middle, suffix and, where the separator does not end it, the end: of Qwen2.5-Coder and CodeGemma; StarCoder; SantaCoder; Code Llama.
NAMES = (
    ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    ("<fim_prefix>", "<fim_middle>", "<fim_suffix>"),
    ("<fim-prefix>", "<fim-middle>", "<fim-suffix>"),
    ("▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>"),
)


def sentinels_of(tokenizer: Tokenizer) -> Sentinels:
    """Returns the sentinels that a tokeniser has under one of the usual `NAMES`. Raises UserError where it has none."""
    for names in NAMES:
        ids = [tokenizer.token_id(name) for name in names]
        if None not in ids:
            return Sentinels(*ids)  # pyright: ignore[reportArgumentType]
    tried = "; ".join(" ".join(names) for names in NAMES)
    raise UserError(
        f"the tokeniser {tokenizer.kind!r} has no sentinels for fim_rate. Leave fim_rate out, or take a tokeniser with these tokens: {tried}"
    )


def fill_in_middle(
    ids: np.ndarray, key: int, sentinels: Sentinels, rate: float = 0.5, spm_rate: float = 0.5
) -> np.ndarray:
    """Returns the document's ids, [n] without its separator, rearranged with probability `rate`, of its dtype: [n], [n + 3] or,
    with an end, [n + 4]. A share `spm_rate` of those rearranged is SPM, the others PSM.

    Whether and how depends on `key` alone, a whole number below 2^64, and n. The two cuts are uniform among all pairs of
    different places between tokens. Documents of fewer than 3 tokens are returned as they are. By default half of the
    documents are rearranged, as in the paper, half of them to each form. Raises UserError for rates outside
    [0, 1].
    """
    if not (0 <= rate <= 1 and 0 <= spm_rate <= 1):
        raise UserError(f"the rates of fill in the middle are {rate} and {spm_rate}. Give shares from 0 to 1.")
    draws = mix(mix(np.array([key], np.uint64)) ^ np.arange(4, dtype=np.uint64))
    uniform = (draws >> np.uint64(11)) * 2.0**-53
    if len(ids) < SHORTEST or uniform[0] >= rate:
        return ids
    first, second = int(draws[2]) % (len(ids) - 1), int(draws[3]) % (len(ids) - 2)
    second += second >= first
    prefix, middle, suffix = np.split(ids, sorted((first + 1, second + 1)))
    if uniform[1] < spm_rate:
        parts = [[sentinels.prefix, sentinels.suffix], suffix, [sentinels.middle], prefix, middle]
    else:
        parts = [[sentinels.prefix], prefix, [sentinels.suffix], suffix, [sentinels.middle], middle]
    end = [] if sentinels.end is None else [sentinels.end]
    return np.concatenate([np.asarray(part, ids.dtype) for part in [*parts, end]])


@dataclass(frozen=True, eq=False)
class FilledIn:
    """Training batches of text whose documents are rearranged with probability `rate`, each by itself.

    A document is what lies between separators, in packed rows within a segment; whether and how it is rearranged depends on (seed, number of the
    record, number of the document in the row). It keeps its segment and its separator, and every token of it is learned. A document with a
    token that does not weigh 1 stays as it is. Sentinels make rows longer. Packed rows should have room for them (`PackedBatches.room`); what
    still goes beyond the T tokens of a row, as it does in windows, is cut off at its end, after documents are rearranged, so that the last
    of them may lack the end of its middle, in which case it has no end either.
    """

    text: ByStep
    sentinels: Sentinels
    rate: float
    seed: int
    separator: int | None

    def rows(self, process_index: int, process_count: int) -> "FilledIn":
        """Returns the same batches, of which this process makes only its rows."""
        return replace(self, text=self.text.rows(process_index, process_count))

    def __call__(self, step: int) -> Batch:
        return self.read(self.records(step))

    def records(self, step: int) -> np.ndarray:
        """Returns the numbers of this process's records in the batch of a step, uint64 [rows]."""
        return self.text.records(step)

    def stretches(self, records: np.ndarray) -> list[list[Stretch]]:
        """Returns what the rows of records are made of before their documents are rearranged."""
        return self.text.stretches(records)

    def read(self, records: np.ndarray) -> Batch:
        """Returns the rows of records by their numbers, whole numbers [B]."""
        batch = self.text.read(records)
        keys = mix(mix(np.array([self.seed % 2**64], np.uint64)) ^ records.astype(np.uint64))
        made = [self._row({name: array[i] for name, array in batch.items()}, key) for i, key in enumerate(keys)]
        return {name: np.stack([row[name] for row in made]) for name in made[0]}

    def _row(self, row: Batch, key: np.uint64) -> Batch:
        """The row of T tokens, its documents rearranged."""
        T, number, parts = len(row["tokens"]), 0, []
        for segment in _segments(row):
            weights = segment["weights"]
            goes_on = weights[-1] > 0  # the last token has a target, which is not in the row
            if (weights[:-1] == 1).all() and weights[-1] in (0, 1) and len(weights) > 1:
                ids = np.concatenate([segment["tokens"], segment["targets"][-1:] if goes_on else []]).astype(np.int32)
                pieces = [one for one in np.split(ids, np.flatnonzero(ids == self.separator) + 1) if len(one)]
                keys = mix(key ^ np.arange(number, number + len(pieces), dtype=np.uint64)).tolist()
                made = np.concatenate([self._document(one, own) for one, own in zip(pieces, keys, strict=True)])
                number += len(pieces)
                segment = _of_ids(made, goes_on, segment)
            parts.append(segment)
        whole = {name: np.concatenate([part[name] for part in parts])[:T] for name in row}
        return {name: np.pad(array, (0, T - len(array))) for name, array in whole.items()}

    def _document(self, ids: np.ndarray, key: int) -> np.ndarray:
        body, rest = (ids[:-1], ids[-1:]) if ids[-1] == self.separator else (ids, ids[:0])
        return np.concatenate([fill_in_middle(body, key, self.sentinels, self.rate), rest])


def _segments(row: Batch) -> Iterator[Batch]:
    """The parts of a row between which no token is predicted from another; padding is left out. All of it, where it has no segments."""
    if "segments" not in row:
        yield row
        return
    numbers = row["segments"]
    bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    for a, b in zip(bounds, bounds[1:], strict=False):
        if numbers[a] > 0 or b - a == len(numbers):
            yield {name: array[a:b] for name, array in row.items()}


def _of_ids(ids: np.ndarray, goes_on: bool, like: Batch) -> Batch:
    """The segment of ids that all are learned, the last of them a target alone if it `goes_on`."""
    tokens, targets = (ids[:-1], ids[1:]) if goes_on else (ids, np.append(ids[1:], 0))
    weights = np.ones(len(tokens), np.float32)
    weights[-1] = goes_on
    made = {"tokens": tokens, "targets": targets.astype(np.int32), "weights": weights}
    return made | ({"segments": np.full(len(tokens), like["segments"][0])} if "segments" in like else {})
