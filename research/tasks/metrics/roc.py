"""Metrics of scores that tell one kind from another at any threshold: the area under the ROC curve, the equal error rate."""

import math
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.tasks.metrics import checks
from research.tasks.metrics.checks import Classes
from research.tasks.metrics.estimate import Estimate, Resampling, bootstrap, check_level, quantile, wilson


def auroc(scores: Any, labels: Any, classes: Classes | None = None, *, level: float = 0.95) -> Estimate:
    """The chance that an example of a class scores above one that is not of it, ties counting half.

    Scores (n,) are those of class 1 of two; of scores (n, classes) it is the mean over classes, each against the rest. `labels` are int (n,).
    `classes` gives names for errors.

    The interval is that of DeLong, DeLong and Clarke-Pearson (1988) on the logit scale. Its variance is the sum of squares of what each
    example adds to the area, which holds for the mean over classes as well. Where nothing varies, as with two kinds that the scores
    separate, it is Wilson's, for as many disjoint pairs as the smallest class allows: fewer than were compared, so it is rather too wide.

    Raises UserError for NaN, naming its index, and for a class without examples, naming the class.
    """
    check_level(level)
    scores = checks.floats(scores, "scores", ndim=(1, 2))
    columns = 2 if scores.ndim == 1 else scores.shape[1]
    named: Classes = columns if classes is None else classes
    if columns < 2 or checks.number_of(named) != columns:
        raise UserError(
            f"scores of shape {scores.shape} for {checks.number_of(named)} classes; expected a column for each of two or more"
        )
    labels = checks.labels(labels, columns)
    checks.same_length(scores, labels, "rows of scores", "labels")
    counts = np.bincount(labels, minlength=columns)
    checks.none_empty(counts, named, "the area under the ROC curve")
    if scores.ndim == 1:
        areas, parts = zip(_area(scores, labels == 1), strict=True)
    else:
        areas, parts = zip(*(_area(scores[:, k], labels == k) for k in range(columns)), strict=True)
    value = min(1.0, math.fsum(areas) / len(areas))
    deviation = math.sqrt(math.fsum(np.square(np.mean(parts, axis=0))))
    pairs = int(counts.min())
    if deviation == 0 or value in (0, 1) or pairs == 1:
        bound = wilson(value * pairs, pairs, level)
        return Estimate(value, bound.low, bound.high, len(labels))
    logit, reach = math.log(value / (1 - value)), quantile(level) * deviation / (value * (1 - value))
    low, high = (1 / (1 + math.exp(min(700.0, -end))) for end in (logit - reach, logit + reach))
    return Estimate(value, min(low, value), max(high, value), len(labels))


def _area(scores: np.ndarray, positive: np.ndarray) -> tuple[float, np.ndarray]:
    """The area, and what each example adds to it (n,): the squares add up to DeLong's variance."""
    ours, others = np.sort(scores[positive]), np.sort(scores[~positive])
    wins, losses = _below(others, scores[positive]), len(ours) - _below(ours, scores[~positive])
    area = float(wins.sum()) / (len(ours) * len(others))  # of sums of halves, which are exact in any order
    parts = np.empty(len(scores))
    for mask, placed in ((positive, wins / len(others)), (~positive, losses / len(ours))):
        # a single example has no spread; its part is 0, and the caller does not read it
        parts[mask] = (placed - area) / math.sqrt(len(placed) * max(1, len(placed) - 1))
    return area, parts


def _below(those: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """How many of those, sorted, lie below each score, those that equal it counting half."""
    return (np.searchsorted(those, scores, "left") + np.searchsorted(those, scores, "right")) / 2


def equal_error_rate(genuine: Any, impostor: Any, how: Resampling = Resampling()) -> Estimate:
    """The rate at which false rejections of genuine trials are as frequent as false acceptances of impostors, scores (n,) and (m,), higher
    for genuine: where the ROC curve, straight between thresholds, crosses that line.

    The bootstrap draws genuine and impostor trials apart and takes trials for independent. Where many share a speaker the interval is too
    narrow; then call `bootstrap` over speakers with `crossing`. Raises UserError for NaN, naming its index, and fewer than two of a kind.
    """
    genuine, impostor = checks.floats(genuine, "genuine scores"), checks.floats(impostor, "impostor scores")
    # sorted, so that the order in which trials are given does not matter
    levels, place = np.unique(np.concatenate([np.sort(genuine), np.sort(impostor)]), return_inverse=True)
    ours, others = place[: len(genuine)], place[len(genuine) :]

    def statistic(i, j):
        return crossing(np.bincount(ours[i], minlength=len(levels)), np.bincount(others[j], minlength=len(levels)))

    return bootstrap(statistic, (len(genuine), len(impostor)), how, whole=1.0)


def crossing(genuine: np.ndarray, impostor: np.ndarray) -> float:
    """The equal error rate from how many genuine and impostor trials have each score, int (scores,), in rising order of scores."""
    rejected = np.concatenate([[0.0], np.cumsum(genuine) / genuine.sum()])  # scores below the threshold
    accepted = np.concatenate([[1.0], 1 - np.cumsum(impostor) / impostor.sum()])  # the others
    gap = accepted - rejected  # falls from 1 to -1
    i = int(np.argmax(gap <= 0))
    share = gap[i - 1] / (gap[i - 1] - gap[i])
    return float(rejected[i - 1] + share * (rejected[i] - rejected[i - 1]))
