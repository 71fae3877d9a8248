"""Whether confidences are shares: of predictions made with 80% confidence, four in five should be right."""

import dataclasses
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.tasks.metrics import checks
from research.tasks.metrics.estimate import Estimate, Resampling, bootstrap, ordered, wilson


@dataclasses.dataclass(frozen=True)
class Bin:
    """The predictions with a confidence in (low, high]: their mean confidence and the share that came true, with Wilson's interval."""

    low: float
    high: float
    confidence: float
    right: Estimate


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The expected calibration error, what it would rarely exceed by chance alone, and the bins that are not empty, in order, for a plot."""

    error: Estimate
    by_chance: float
    bins: tuple[Bin, ...]


def top_label(probabilities: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """The confidence (n,) of the likeliest class of probabilities (n, classes), and whether it is the label, bool (n,)."""
    probabilities = checks.floats(probabilities, "probabilities", ndim=2)
    labels = checks.labels(labels, probabilities.shape[1])
    checks.same_length(probabilities, labels, "rows of probabilities", "labels")
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == labels


def calibration(confidences: Any, outcomes: Any, bins: int = 10, how: Resampling = Resampling()) -> Calibration:
    """The expected calibration error of confidences (n,) in [0, 1] that things come true, and whether they did, 0 or 1 (n,).

    The error is the mean over predictions of |mean confidence - share that came true| of the bin, bins of equal width (Guo et al., arXiv
    1706.04599, section 2; of probabilities of classes they score `top_label`).

    The absolute values make it too large, by up to `by_chance`: the quantile at the interval's upper end of what confidences that are
    right would give, outcomes being drawn by them (Bröcker and Smith 2007). A resample adds as much again, so percentiles would lie above the
    true error; their correction takes the two for equal, which they are not near 0. The interval's lower end is the reflected
    percentile `2 value - upper percentile`, and 0 where the value is within chance; the upper end is the percentile, which is rather too
    high.

    Raises UserError for a confidence outside [0, 1] or NaN, naming its index, and for outcomes other than 0 and 1.
    """
    confidences = checks.floats(confidences, "confidences")
    outcomes = checks.labels(outcomes, 2, "outcomes")
    checks.same_length(confidences, outcomes, "confidences", "outcomes")
    outside = np.flatnonzero((confidences < 0) | (confidences > 1))
    if len(outside):
        raise UserError(f"confidences: number {outside[0]} is {confidences[outside[0]]}; expected a share in [0, 1]")
    if bins < 1:
        raise UserError(f"{bins} bins: expected at least 1")
    rows = ordered(np.stack([confidences, outcomes], axis=1))
    confidences, outcomes = rows.T
    edges = np.linspace(0, 1, bins + 1)
    place = np.searchsorted(edges[1:-1], confidences)
    excess = confidences - outcomes

    def error(place, excess):
        return float(np.abs(np.bincount(place, excess, bins)).sum() / len(place))

    found = bootstrap(lambda i: error(place[i], excess[i]), len(rows), how, whole=1.0, correct=False)
    draw = np.random.default_rng([how.seed, 1])
    chance = [error(place, confidences - (draw.random(len(rows)) < confidences)) for _ in range(how.resamples)]
    by_chance = float(np.quantile(chance, (1 + how.level) / 2))
    low = 0.0 if found.value <= by_chance else min(found.value, max(0.0, 2 * found.value - found.high))
    groups = [(b, place == b) for b in np.unique(place).tolist()]
    return Calibration(
        dataclasses.replace(found, low=low),
        by_chance,
        tuple(
            Bin(
                float(edges[b]),
                float(edges[b + 1]),
                float(confidences[inside].mean()),
                wilson(float(outcomes[inside].sum()), int(inside.sum()), how.level),
            )
            for b, inside in groups
        ),
    )
