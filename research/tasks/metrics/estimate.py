"""An estimate with its confidence interval, and the two ways to one: Wilson's formula for a share, the bootstrap for all else.

The bootstrap draws the independent units (documents, sentences, utterances, pictures) again with replacement and takes percentiles of the
statistic of what it drew, with two corrections. Percentiles lie too close for few units, whose spread they take for that of all units there
are: those are taken that make the interval of a mean as wide as Student's (Hesterberg, arXiv 1411.5279, the expanded percentile interval). A
statistic that is too large for few units is so once more for what is drawn from them: percentiles are moved by twice the distance of the value
from the median (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 14.3, without the acceleration).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from research.core.errors import UserError

NORMAL = NormalDist()


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number measured on `count` independent units, and the ends of its confidence interval, which holds it."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        """`0.978 (0.969, 0.985)`: as many decimals as show the interval's width to two digits."""
        width = self.high - self.low
        if not 1e-12 < width < math.inf:
            return f"{self.value:.4g} ({self.low:.4g}, {self.high:.4g})"
        decimals = max(0, 1 - math.floor(math.log10(width)))
        return f"{self.value:.{decimals}f} ({self.low:.{decimals}f}, {self.high:.{decimals}f})"

    def percent(self, decimals: int = 1) -> str:
        """`97.8% (96.9, 98.5)`, for a share."""
        value, low, high = (f"{100 * x:.{decimals}f}" for x in (self.value, self.low, self.high))
        return f"{value}% ({low}, {high})"

    def numbers(self, name: str) -> dict[str, float]:
        """`{name, name_low, name_high, name_count}`: flat numbers for a line of JSON."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high, f"{name}_count": self.count}

    def through(self, rising: Callable[[float], float]) -> "Estimate":
        """The estimate of a rising function of the number: percentiles go through it with the value."""
        return Estimate(rising(self.value), rising(self.low), rising(self.high), self.count)


def check_level(level: float) -> None:
    """Raises UserError for a confidence level that is none."""
    if not 0 < level < 1:
        raise UserError(f"a confidence level of {level}: expected a share between 0 and 1, such as 0.95")


@dataclasses.dataclass(frozen=True)
class Resampling:
    """How a bootstrap draws: the same seed and units give the same interval."""

    level: float = 0.95
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self):
        check_level(self.level)
        least = math.ceil(2 / (1 - self.level) - 1e-9)
        if self.resamples < least:
            raise UserError(
                f"{self.resamples} resamples: at level {self.level} a tail holds one from {least} on; draw at least as many"
            )
        if self.seed < 0:
            raise UserError(f"a seed of {self.seed}: expected a whole number from 0 on")

    def tails(self, n: int, shift: float = 0.0) -> tuple[float, float]:
        """The shares of resamples below the two ends of an interval of `n` units, moved by as many deviations."""
        from scipy.special import stdtrit

        reach = float(stdtrit(n - 1, (1 + self.level) / 2)) * math.sqrt(n / (n - 1))
        return NORMAL.cdf(shift - reach), NORMAL.cdf(shift + reach)


def quantile(level: float) -> float:
    """How many standard deviations a normal interval of this level reaches to either side."""
    return NORMAL.inv_cdf((1 + level) / 2)


def wilson(successes: float, count: int, level: float = 0.95) -> Estimate:
    """The share `successes / count` with Wilson's score interval (1927), which stays within [0, 1] and has a width even where all
    units agree. For units that count in part, each in [0, 1], it is no narrower than it has to be.

    Raises UserError for no units, or successes outside [0, count].
    """
    check_level(level)
    if count < 1 or not 0 <= successes <= count:
        raise UserError(f"{successes} of {count}: expected at least one unit, and between none and all of them")
    count = int(count)  # scalars of arrays, such as sums of a device, become numbers of Python
    p, z = float(successes) / count, quantile(level)
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), count)


def bootstrap(
    statistic: Callable[..., float],
    sizes: int | Sequence[int],
    how: Resampling = Resampling(),
    *,
    whole: float | None = None,
    correct: bool = True,
) -> Estimate:
    """The statistic of all units, with the percentiles of what it is of units drawn with replacement.

    `statistic(index)` is the number for the units that `index`, int (n,), names, some of them several times; it is called with `arange(n)`
    first. With several sizes, groups that are drawn apart, it takes one index for each. NaN says that a draw leaves it undefined, and
    the draw does not count. `whole` and `correct` are what `interval` makes of them.

    Raises UserError for fewer than two units in a group, which have no spread, for a statistic of all units that is not finite, and where
    more than half of the draws leave it undefined.
    """
    sizes = tuple(np.atleast_1d(sizes).tolist())
    if min(sizes) < 2:
        raise UserError(
            f"an interval of {min(sizes)} independent unit(s): there is no spread among fewer than 2; score more"
        )
    value = float(statistic(*(np.arange(n) for n in sizes)))
    draw = np.random.default_rng(how.seed)
    drawn = [float(statistic(*(draw.integers(n, size=n) for n in sizes))) for _ in range(how.resamples)]
    return interval(value, drawn, sizes, how, whole=whole, correct=correct)


def bootstrap_sums(
    rows: np.ndarray,
    statistic: Callable[[np.ndarray], float],
    how: Resampling = Resampling(),
    *,
    whole: float | None = None,
) -> Estimate:
    """`bootstrap` of a statistic of sums: `rows` (n, k) are what each unit adds, `statistic` takes the totals (k,).

    Rows are put in the order of their values first, so nothing depends on the order in which shards of an evaluation gave them.
    """
    rows = ordered(rows)
    return bootstrap(lambda index: statistic(rows[index].sum(axis=0)), len(rows), how, whole=whole)


def ratio(
    numerators: np.ndarray, denominators: np.ndarray, how: Resampling = Resampling(), *, whole: float | None = None
) -> Estimate:
    """The sum of the numerators (n,) over the sum of the denominators (n,), by the bootstrap over units."""
    rows = np.stack([numerators, denominators], axis=1)
    return bootstrap_sums(rows, lambda total: total[0] / total[1] if total[1] else math.nan, how, whole=whole)


def ordered(rows: np.ndarray) -> np.ndarray:
    """The rows (n, k) in an order that their values alone decide."""
    return rows[np.lexsort(rows.T)]


def interval(
    value: float,
    drawn: Sequence[float],
    sizes: Sequence[int],
    how: Resampling,
    *,
    whole: float | None = None,
    correct: bool = True,
) -> Estimate:
    """The estimate from the statistic's values on resamples of `sizes` units, those that are not finite left out.

    Where all resamples agree, as they do on units without any error, the bootstrap cannot see what has not happened yet. `whole` says of
    what the statistic is a share (1, or 100 for points); its interval is then Wilson's for as many units as the smallest group has.
    `correct` False leaves the bias as it is. The interval is widened to hold the value where it would not.
    """
    if not math.isfinite(value):
        raise UserError(
            f"the statistic of all units is {value}: expected a finite number; look for empty or degenerate units"
        )
    defined = np.asarray(drawn)[np.isfinite(drawn)]
    if 2 * len(defined) < len(drawn):
        raise UserError(
            f"the statistic is undefined for {len(drawn) - len(defined)} of {len(drawn)} resamples of {min(sizes)} units; score more"
        )
    low, high = np.quantile(defined, how.tails(min(sizes), 2 * _bias(value, defined) if correct else 0.0))
    if whole is not None and defined.min() == defined.max() and 0 <= value <= whole:
        unseen = wilson(value / whole * min(sizes), min(sizes), how.level)
        low, high = whole * unseen.low, whole * unseen.high
    return Estimate(value, min(value, float(low)), max(value, float(high)), sum(sizes))


def _bias(value: float, drawn: np.ndarray) -> float:
    """How many deviations the value lies above the median of the resamples, those that equal it counting half."""
    below = (np.sum(drawn < value) + np.sum(drawn == value) / 2) / len(drawn)
    return NORMAL.inv_cdf(min(max(float(below), 1 / (len(drawn) + 1)), len(drawn) / (len(drawn) + 1)))
