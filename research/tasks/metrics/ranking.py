"""Where the right answer stands among all by its score: recall@k and NDCG@k of next-item recommendation, top-k accuracy.

A score that ties with others stands at any of their places with equal chance, and what is returned is the mean over these.
"""

import dataclasses
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.tasks.metrics import checks
from research.tasks.metrics.estimate import Estimate, Resampling, ratio, wilson


@dataclasses.dataclass(frozen=True)
class Places:
    """For each example, int (n,): how many answers score above the right one, and how many score the same, itself included.

    Counts that a device can make of scores too many to bring to the host. Raises UserError where they cannot be.
    """

    above: np.ndarray
    tied: np.ndarray

    def __post_init__(self):
        if self.above.ndim != 1 or self.above.shape != self.tied.shape or not self.above.size:
            raise UserError(
                f"places of shapes {self.above.shape} and {self.tied.shape}; expected two alike, with one dimension"
            )
        wrong = np.flatnonzero((self.above < 0) | (self.tied < 1))
        if len(wrong):
            i = wrong[0]
            raise UserError(
                f"places: example {i} has {self.above[i]} above and {self.tied[i]} tied; expected at least 0 and 1, itself"
            )


def places(scores: Any, targets: Any) -> Places:
    """Where the targets, int (n,), stand by scores (n, answers). An answer that is not to be given, such as an item seen before, scores -inf.

    Raises UserError for NaN, naming its index, and a target that is no answer.
    """
    scores = checks.floats(scores, "scores", ndim=2)
    targets = checks.labels(targets, scores.shape[1], "targets")
    checks.same_length(scores, targets, "rows of scores", "targets")
    own = np.take_along_axis(scores, targets[:, None], axis=1)
    return Places((scores > own).sum(axis=1), (scores == own).sum(axis=1))


def recall_at(found: Places, k: int, *, level: float = 0.95) -> Estimate:
    """Recall@k: the share of examples whose right answer is among the first `k`; Wilson's interval."""
    _check_k(k)
    within = np.minimum(k, found.above + found.tied) - np.minimum(k, found.above)
    return wilson(min(float((within / found.tied).sum()), len(within)), len(within), level)


def ndcg_at(found: Places, k: int, how: Resampling = Resampling()) -> Estimate:
    """NDCG@k with one right answer: the mean of `1 / log2(1 + place)`, places from 1, and 0 behind the first `k` (Järvelin and Kekäläinen
    2002, discounted from the second place on; the best order scores 1). The bootstrap draws examples."""
    _check_k(k)
    last = min(k, int((found.above + found.tied).max()))
    gained = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(last) + 2))])
    first, end = np.minimum(found.above, last), np.minimum(found.above + found.tied, last)
    gains = (gained[end] - gained[first]) / found.tied
    return ratio(gains, np.ones(len(gains)), how, whole=1.0)


def _check_k(k: int) -> None:
    if k < 1:
        raise UserError(f"the first {k} answers: expected k of at least 1")
