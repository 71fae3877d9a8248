"""Metrics of numbers: squared errors and R2 of a regression, perplexity and bits per byte of a language model."""

import math
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.tasks.metrics import checks
from research.tasks.metrics.estimate import Estimate, Resampling, bootstrap, ordered, ratio


def mse(predictions: Any, targets: Any, how: Resampling = Resampling()) -> Estimate:
    """The mean squared error of predictions against targets, (n,) or (n, K) each, in squared units of the target. The bootstrap draws rows."""
    predictions, targets = _pairs(predictions, targets)
    return ratio(np.square(predictions - targets).mean(axis=1), np.ones(len(targets)), how)


def r2(predictions: Any, targets: Any, how: Resampling = Resampling()) -> Estimate:
    """The share of the targets' variance that predictions explain, `1 - sum (p - t)^2 / sum (t - mean t)^2`, for (n,) or (n, K) each the mean over K.

    At most 1, 0 for a constant guess of the mean, below it for worse. The bootstrap draws rows. Raises UserError for targets that do not
    vary.
    """
    predictions, targets = _pairs(predictions, targets)
    constant = np.flatnonzero((targets == targets[0]).all(axis=0))
    if len(constant):
        raise UserError(
            f"R2 is undefined: all targets of column {constant[0]} are {targets[0, constant[0]]}; score targets that vary"
        )
    rows = ordered(np.concatenate([targets, predictions], axis=1))
    targets, predictions = np.split(rows, 2, axis=1)
    squares = np.square(predictions - targets)

    def statistic(index):
        t = targets[index]
        if (t == t[0]).all(axis=0).any():
            return math.nan
        return float(np.mean(1 - squares[index].sum(axis=0) / np.square(t - t.mean(axis=0)).sum(axis=0)))

    return bootstrap(statistic, len(rows), how)


def _pairs(predictions: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 (n, K)."""
    predictions = checks.floats(predictions, "predictions", ndim=(1, 2), finite=True)
    targets = checks.floats(targets, "targets", ndim=(1, 2), finite=True)
    if predictions.shape != targets.shape:
        raise UserError(
            f"predictions of shape {predictions.shape} for targets of shape {targets.shape}; expected equal shapes"
        )
    return predictions.reshape(len(predictions), -1), targets.reshape(len(targets), -1)


def nats_per(nats: Any, units: Any, how: Resampling = Resampling(), what: str = "tokens") -> Estimate:
    """Nats per unit, the sum over documents of `nats` (n,), negative log-likelihoods, over that of `units` (n,). The bootstrap draws documents,
    whose tokens depend on each other.

    Rows of shards may be given in any order. Raises UserError for nats that are not finite, naming the index, for negative units, and for
    none at all.
    """
    nats, units = checks.floats(nats, "nats", finite=True), checks.floats(units, what, finite=True)
    checks.same_length(nats, units, "sums of nats", f"counts of {what}")
    if (units < 0).any() or not units.any():
        raise UserError(
            f"{what}: the least is {units.min()}, and all are {units.sum()}; expected counts from 0 on, not all 0"
        )
    return ratio(nats, units, how)


def perplexity(nats: Any, tokens: Any, how: Resampling = Resampling()) -> Estimate:
    """`exp(nats per token)`: between how many tokens, equally likely, the model would be as uncertain. See `nats_per`. Raises UserError where it
    exceeds what a float holds."""
    found = nats_per(nats, tokens, how)
    if found.high > 700:
        raise UserError(
            f"{found} nats per token have no perplexity in floating point; report nats, or look for a diverged model"
        )
    return found.through(math.exp)


def bits_per_byte(nats: Any, n_bytes: Any, how: Resampling = Resampling()) -> Estimate:
    """Bits per byte of text, which do not depend on the tokeniser. See `nats_per`."""
    return nats_per(nats, n_bytes, how, "bytes").through(lambda value: value / math.log(2))
