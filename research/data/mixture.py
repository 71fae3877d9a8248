"""Which source each record of a mixture comes from: weights that may change over stages, exact in every prefix, by index.

A stage is (where it begins, weights). Let S_k(t) be source k's exact share of the first t records (or tokens), the sum of its
normalised weight over them. Records of a source are jobs with a release and a deadline, both known in advance, and the
earliest deadline among those released is served (R. Tijdeman 1980, "The chairman assignment problem", Discrete
Mathematics 32; Baruah, Cohen, Plaxton and Varvel 1996, "Proportionate progress", Algorithmica 15):

records   Copy j of a source may take the first place n with S_k(n + 1) > j, and has to be among the first t records for the
          least t with S_k(t) >= j + 1. Dividing each place by the shares meets every deadline, so a matching of whole places
          does as well, and earliest deadline first finds one. The count then stays less than 1 from S_k in every prefix.
tokens    A record that begins at token A of its source is released once S_k has reached A, and is due when S_k reaches its
          last token. Earliest deadline first is late by at most the record it waited for, so that a source's tokens are
          within the longest record of S_k (Bennett and Zhang 1996, "WF2Q", INFOCOM, for constant shares).

All comparisons are of whole numbers: weights are exact fractions over a common denominator Q. At the multiples of Q in a
stage the state (who is ahead of the whole part of its share) is one of finitely many and comes back, so what lies between is
stored once and any later record is found by division.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np

from research.core.errors import UserError
from research.data.shares import Shares, Stages, ceiling, exact_shares

Lengths = Callable[[np.ndarray], np.ndarray]  # indices of a source's records, int64 [n] -> their tokens, [n]
_Drawn = list[tuple[int, int]]  # (records, tokens) of each source so far

_ENDLESS = 2**62
_NEVER = 2**100
_STAGES_KEPT = 64
_BLOCK = 2048
_BLOCKS_KEPT = 64
_LENGTHS_AHEAD = 256


@dataclass(frozen=True, eq=False)
class Schedule:
    """A mixture counted in records. `stages` are (first record number, weights), the first of them from 0.

    Calling it with record numbers, int64 [B] in any order, gives `(sources, indices)`, each int64 [B]: record n is the
    index-th record of that source, and each source's indices count 0, 1, 2, ... in the order of n.

    For every source and every prefix of n records, the source's count differs by less than 1 from the sum of its normalised
    weights over those records. A source that has had no weight so far is never chosen; one whose weight has become 0 may be
    chosen once more, for the part of a record that earlier stages still owe it.

    A weight is a number or a text that `fractions.Fraction` reads, so 0.1 is a tenth and 1 / 3 or "1/3" a third. Raises
    UserError for weights that are negative, not finite, all 0, of another number than the first stage's, or whose shares
    have no common denominator Q up to 10^6, and for stages that do not begin at 0 and ascend.

    A stage is laid out when it is first asked for, after all before it. That costs a few periods of Q records or the
    stage itself where it is shorter, about 1 microsecond each. The counts at the beginning of each stage are kept.
    """

    stages: Stages = field(repr=False)

    def __post_init__(self):
        _ = self._shares

    def __call__(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        numbers = _checked_numbers(numbers)
        sources, indices = np.empty_like(numbers), np.empty_like(numbers)
        stages = np.searchsorted(self._shares.starts, numbers, side="right") - 1
        for stage in np.unique(stages).tolist():
            here = np.flatnonzero(stages == stage)
            sources[here], indices[here] = self._table(stage).find(numbers[here] - self._shares.starts[stage])
        return sources, indices

    @cached_property
    def _shares(self) -> Shares:
        return exact_shares(self.stages)

    @cached_property
    def _table(self) -> Callable[[int], "_Table"]:
        return lru_cache(_STAGES_KEPT)(self._lay_out)

    @cached_property
    def _counts(self) -> dict[int, np.ndarray]:
        """Records of each source before each stage reached so far, int64 [sources]."""
        return {0: np.zeros(self._shares.sources, np.int64)}

    def _lay_out(self, stage: int) -> "_Table":
        while (known := len(self._counts)) <= stage:
            self._counts[known] = self._table(known - 1).after
        return _lay_out(self._shares, stage, self._counts[stage])


@dataclass(frozen=True, eq=False)
class TokenSchedule:
    """A mixture counted in tokens. `stages` are (first token, weights) in tokens of the whole mixture; the weights are as for
    `Schedule`. `lengths` has for each source a pure function from indices of its records, int64 [n], to their tokens, [n].

    Calling it with record numbers gives `(sources, indices)` as `Schedule` does.

    For every source and every prefix of records, the source's tokens differ from the sum of its normalised weight over the
    tokens of that prefix by at most the longest record of all sources. A source that has had no weight so far is never
    chosen; one whose weight has become 0 may be chosen until it has the tokens that earlier stages still owe it.

    Raises UserError as `Schedule` does, for other than one function a source, and for a record without a token.

    Which record comes next depends on the lengths of all before it. Records are laid out in blocks, each from the state at
    the end of the one before; the states are kept. To reach record n for the first time takes all records up to n, a few
    microseconds each.
    """

    stages: Stages = field(repr=False)
    lengths: Sequence[Lengths] = field(repr=False)

    def __post_init__(self):
        if len(self.lengths) != self._shares.sources:
            raise UserError(
                f"{len(self.lengths)} functions of lengths for {self._shares.sources} weights. Give one for each source."
            )

    def __call__(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        numbers = _checked_numbers(numbers)
        sources, indices = np.empty_like(numbers), np.empty_like(numbers)
        blocks, within = np.divmod(numbers, _BLOCK)
        for block in np.unique(blocks).tolist():
            here = np.flatnonzero(blocks == block)
            block_sources, block_indices, _ = self._block(block)
            sources[here], indices[here] = block_sources[within[here]], block_indices[within[here]]
        return sources, indices

    @cached_property
    def _shares(self) -> Shares:
        return exact_shares(self.stages)

    @cached_property
    def _block(self) -> Callable[[int], tuple[np.ndarray, np.ndarray, _Drawn]]:
        return lru_cache(_BLOCKS_KEPT)(self._lay_out)

    @cached_property
    def _states(self) -> dict[int, _Drawn]:
        """What each source has given before each block reached so far."""
        return {0: [(0, 0)] * self._shares.sources}

    def _lay_out(self, block: int) -> tuple[np.ndarray, np.ndarray, _Drawn]:
        while (known := len(self._states)) <= block:
            self._states[known] = self._block(known - 1)[2]
        return _next_block(self._shares, self.lengths, self._states[block])


def _checked_numbers(numbers: np.ndarray) -> np.ndarray:
    numbers = np.asarray(numbers, np.int64)
    if numbers.size and numbers.min() < 0:
        raise ValueError(f"record numbers must not be negative: {numbers.min()}")
    return numbers


@dataclass(frozen=True)
class _Table:
    """The places of one stage: those before `head` once, then `period` places `turns` times, then the rest."""

    sources: np.ndarray  # int16 [places stored]
    ranks: np.ndarray  # int32, how many places stored before have the same source
    head: int
    period: int
    turns: int
    gained: np.ndarray  # int64 [sources], records of each source in a period
    before: np.ndarray  # int64 [sources], records of each source before the stage

    def find(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`(sources, indices)` of places counted from the stage's beginning, int64 [B] each."""
        turns = np.clip((places - self.head) // self.period, 0, self.turns - 1)
        stored = places - turns * self.period
        sources = self.sources[stored].astype(np.int64)
        return sources, self.before[sources] + self.ranks[stored] + turns * self.gained[sources]

    @property
    def after(self) -> np.ndarray:
        """Records of each source before the next stage."""
        return self.before + _count(self.sources, len(self.before)) + (self.turns - 1) * self.gained


def _lay_out(shares: Shares, stage: int, before: np.ndarray) -> _Table:
    """The table of a stage from the records of each source before it. The periods repeat until 1 or 2 before the stage's end,
    where deadlines begin to depend on the stages that follow."""
    jobs = _Jobs(shares, stage)
    last = stage + 1 == len(shares.starts)
    places = _ENDLESS if last else shares.starts[stage + 1] - shares.starts[stage]
    alike = _ENDLESS // jobs.period if last else max(0, places // jobs.period - 1)
    ahead = tuple((before - jobs.whole).tolist())
    parts, seen = [], {}
    while ahead not in seen and len(parts) < alike:
        seen[ahead] = len(parts)
        parts.append(jobs.serve(ahead, jobs.period, len(parts)))
        ahead = tuple((np.array(ahead) + _count(parts[-1], shares.sources) - jobs.weights).tolist())
    first = seen.get(ahead, len(parts))
    cycle = len(parts) - first
    turns = (alike - first) // cycle if cycle else 1
    gained = _count(np.concatenate([np.empty(0, np.int16), *parts[first:]]), shares.sources)
    if not last:
        done = first + turns * cycle
        rest = places - done * jobs.period
        parts.append(jobs.serve(ahead, rest, done, rest))
    sources = np.concatenate(parts)
    period = max(1, cycle * jobs.period)
    return _Table(sources, _ranks(sources), first * jobs.period, period, turns, gained, before)


class _Jobs:
    """The records that a stage's sources may give, with releases and deadlines."""

    def __init__(self, shares: Shares, stage: int):
        self.shares, self.stage = shares, stage
        self.weights, self.period = np.array(shares.weights[stage], np.int64), shares.periods[stage]
        reached = [sums[stage] for sums in shares.reached]
        self.whole = np.array([sum_ // shares.unit for sum_ in reached], np.int64)
        parts = [sum_ % shares.unit * self.period for sum_ in reached]  # of records that are begun, in Q-ths
        self.low, self.high = [part // shares.unit for part in parts], [-(-part // shares.unit) for part in parts]

    def serve(self, ahead: tuple[int, ...], places: int, periods: int, end: int = _NEVER) -> np.ndarray:
        """The sources, int16 [places], that take the places from `periods` periods after the stage's beginning, where `ahead`
        says how many records beyond the whole part of its share each has had. The stage ends `end` places on."""
        releases, keys = [], []
        for source, records in enumerate(ahead):
            released, due = self._windows(source, records, places)
            if due and (due[-1] > end or not self.weights[source]):
                due[-1] = self._due_beyond(source, records + len(due) - 1, periods)
            releases += released
            # Among equal deadlines a source that has weight here goes before one that is owed from earlier.
            keys += [(2 * time + (not self.weights[source])) * len(ahead) + source for time in due]
        order = np.argsort(np.array(releases), kind="stable").tolist()
        return _serve([releases[job] for job in order], [keys[job] for job in order], places, len(ahead))

    def _windows(self, source: int, ahead: int, places: int) -> tuple[list[int], list[int]]:
        """`(first places, least prefixes)` of a source's records that may take one of `places`, as if the stage had no end."""
        weight, Q = self.weights[source], self.period
        if not weight:
            return ([0], [_NEVER]) if self.high[source] and not ahead else ([], [])
        copies = np.arange(ahead, -(-(places * weight + self.high[source]) // Q))
        released = np.maximum(0, (Q * copies - self.high[source]) // weight)
        return released.tolist(), (-((self.low[source] - Q * (copies + 1)) // weight)).tolist()

    def _due_beyond(self, source: int, copy: int, periods: int) -> int:
        """The least prefix, counted as in `serve`, whose share has that copy whole, in whatever stage it is."""
        due = self.shares.due(source, int(self.whole[source] + periods * self.weights[source]) + copy + 1)
        return ceiling(due) - self.shares.starts[self.stage] - periods * self.period if due else _NEVER


def _serve(releases: list[int], keys: list[int], places: int, sources: int) -> np.ndarray:
    """Of the jobs released at or before each place the one of the least key, whose remainder is its source: int16 [places]."""
    waiting, served, jobs = [], [], 0
    for place in range(places):
        while jobs < len(releases) and releases[jobs] <= place:
            heapq.heappush(waiting, keys[jobs])
            jobs += 1
        served.append(heapq.heappop(waiting) % sources)
    return np.array(served, np.int16)


def _count(sources: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(sources, minlength=count)


def _ranks(sources: np.ndarray) -> np.ndarray:
    """How many places before each have its source: int32 [places]."""
    ranks = np.empty(len(sources), np.int32)
    for source in np.unique(sources):
        here = np.flatnonzero(sources == source)
        ranks[here] = np.arange(len(here))
    return ranks


def _next_block(shares: Shares, lengths: Sequence[Lengths], drawn: _Drawn) -> tuple[np.ndarray, np.ndarray, _Drawn]:
    """`(sources, indices)` of the next records after those drawn, int64 [_BLOCK] each, and what is drawn then."""
    records, tokens = (list(column) for column in zip(*drawn, strict=True))
    ahead = [_lengths_from(source, lengths[source], first) for source, first in enumerate(records)]
    scale = shares.unit * math.lcm(*(weight for weights in shares.weights for weight in weights if weight))
    total, waiting, ready, served = sum(tokens), [], [], []
    for source in range(shares.sources):
        _wait(shares, waiting, source, tokens[source])
    for _ in range(_BLOCK):
        while waiting and waiting[0][0] <= total:
            source = heapq.heappop(waiting)[1]
            size = next(ahead[source])
            due = shares.due(source, tokens[source] + size)
            key = due[0] * scale + due[1] * (scale // due[2]) if due else math.inf
            heapq.heappush(ready, (key, source, size))
        _, source, size = heapq.heappop(ready)
        served.append((source, records[source]))
        records[source] += 1
        tokens[source] += size
        total += size
        _wait(shares, waiting, source, tokens[source])
    sources, indices = np.array(served, np.int64).T
    return sources, indices, list(zip(records, tokens, strict=True))


def _wait(shares: Shares, waiting: list[tuple[int, int]], source: int, tokens: int) -> None:
    """Puts the source among those that wait until their share has passed what they have given, if it ever does."""
    passed = shares.passed(source, tokens)
    if passed:
        heapq.heappush(waiting, (ceiling(passed), source))


def _lengths_from(source: int, lengths: Lengths, first: int) -> Iterator[int]:
    """The tokens of a source's records from `first` on. Raises UserError for a record without one."""
    while True:
        given = np.asarray(lengths(np.arange(first, first + _LENGTHS_AHEAD)))
        if given.shape != (_LENGTHS_AHEAD,) or given.dtype.kind not in "iu" or given.min() < 1:
            raise UserError(
                f"the lengths of source {source} from its record {first} are {given.dtype} of shape {given.shape}, the least "
                f"{given.min(initial=0)}. Give a whole number of tokens of at least 1 for each of {_LENGTHS_AHEAD} records."
            )
        yield from given.tolist()
        first += _LENGTHS_AHEAD
