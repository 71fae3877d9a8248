"""Exact shares of the sources of a mixture whose weights change over stages: whole numbers over common denominators."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from research.core.errors import UserError

Stages = Sequence[tuple[int, Sequence[Any]]]  # (first record or token, one weight for each source)

LARGEST_DENOMINATOR = 10**6  # a period has as many places, which are stored: about 6 MB and half a second
_ROUNDING = Fraction(1, 2**50)  # 4 units in the last place of a float64 of 53 bits


@dataclass(frozen=True)
class Shares:
    """Exact shares: in stage s, which begins at `starts[s]`, source k has `weights[s][k]` of every `periods[s]` places. The
    share that k has summed up to there is `reached[k][s] / unit`."""

    starts: list[int]
    weights: list[list[int]]
    periods: list[int]
    unit: int
    reached: list[list[int]]

    @property
    def sources(self) -> int:
        return len(self.reached)

    def due(self, source: int, amount: int) -> tuple[int, int, int] | None:
        """`(a, b, c)`: the source's share is first `amount` at time a + b / c; None where it never is."""
        return self._time(source, amount, bisect_left(self.reached[source], amount * self.unit) - 1)

    def passed(self, source: int, amount: int) -> tuple[int, int, int] | None:
        """As `due`, the last time at which the share is no more than `amount`."""
        return self._time(source, amount, bisect_right(self.reached[source], amount * self.unit) - 1)

    def _time(self, source: int, amount: int, stage: int) -> tuple[int, int, int] | None:
        weight = self.weights[stage][source]
        if not weight:  # of the last stage, as the share rises in any other that is found
            return None
        missing = amount * self.unit - self.reached[source][stage]
        return self.starts[stage], missing * self.periods[stage], weight * self.unit


def exact_shares(stages: Stages) -> Shares:
    """Returns the shares of stages (first record or token, weights). Raises UserError for weights or stages that give none; see
    `mixture.Schedule`."""
    if not stages:
        raise UserError("a mixture has no stages. Give at least one: (0, weights).")
    starts = [_whole(start) for start, _ in stages]
    if starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
        raise UserError(f"the stages of a mixture begin at {starts}. Let them begin at 0 and ascend.")
    count = len(stages[0][1])
    weights, periods = zip(
        *(_whole_weights(stage, given, count) for stage, (_, given) in enumerate(stages)), strict=True
    )
    unit = math.lcm(*periods)
    reached = [[0] for _ in range(count)]
    for stage, (start, end) in enumerate(pairwise(starts)):
        for source, sums in enumerate(reached):
            sums.append(sums[-1] + (end - start) * weights[stage][source] * (unit // periods[stage]))
    return Shares(starts, list(weights), list(periods), unit, reached)


def _whole(start: Any) -> int:
    if int(start) != start:
        raise UserError(f"a stage of a mixture begins at {start!r}. Give a whole number.")
    return int(start)


def _whole_weights(stage: int, given: Sequence[Any], count: int) -> tuple[list[int], int]:
    """`(weights, Q)`: the shares as whole numbers of Q, the least that all of them have in common."""
    where = f"the weights of stage {stage} of a mixture, {list(given)!r},"
    if len(given) != count or not count:
        raise UserError(
            f"{where} are {len(given)}. Give one for each source, as in stage 0: {count or 'at least one'}."
        )
    try:
        exact = [_fraction(weight) for weight in given]
    except (ValueError, ZeroDivisionError):
        raise UserError(f"{where} are not all finite numbers. Give numbers of 0 or more.") from None
    if min(exact) < 0 or not any(exact):
        raise UserError(
            f"{where} {'are all 0' if min(exact) == 0 else 'are negative'}. Give 0 or more, and one above 0."
        )
    shares = [weight / sum(exact) for weight in exact]
    period = math.lcm(*(share.denominator for share in shares))
    if period > LARGEST_DENOMINATOR:
        rounded = [max(1, round(share * 10_000)) if share else 0 for share in shares]
        raise UserError(
            f"{where} have shares whose common denominator is {period}, more than {LARGEST_DENOMINATOR}. "
            f"Give rounder ones, such as {rounded}."
        )
    return [int(share * period) for share in shares], period


def _fraction(weight: Any) -> Fraction:
    """The number as written. A float within its own rounding of a simple fraction is that fraction: 1 / 3 or 1 - 0.7."""
    exact = Fraction(str(weight))
    near = exact.limit_denominator(LARGEST_DENOMINATOR)
    return near if isinstance(weight, float) and abs(near - exact) <= exact * _ROUNDING else exact


def ceiling(time: tuple[int, int, int]) -> int:
    """Returns the least whole number that is not before the time a + b / c."""
    whole, above, below = time
    return whole - (-above // below)
