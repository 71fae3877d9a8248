"""Scaling laws: the loss of a model of N parameters trained on D tokens as L(N, D) = E + A / N^alpha + B / D^beta, fitted to runs.

The fit is approach 3 of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.3): the Huber loss, delta 1e-3, between the logarithms of measured and
predicted losses, summed, minimised by L-BFGS from many starts. Intervals are percentiles of fits to runs drawn again with replacement, as in the
replication by Besiroglu et al. 2024 (arXiv 2404.10102). Training takes C = 6 N D floating-point operations.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from research.core.errors import UserError

DELTA = 1e-3  # of the Huber loss, in nats of log L
OUTLIERS = 10.0  # robust standard deviations
FEWEST = 8  # runs that a fit of five coefficients needs
NAMES = ("E", "A", "B", "alpha", "beta")
# log E, log A, log B, alpha, beta
BOUNDS = (
    (-50.0, 10.0),
    (-50.0, 100.0),
    (-50.0, 100.0),
    (0.0, 4.0),
    (0.0, 4.0),
)  # tables that say nothing of a coefficient leave it without end
STARTS = tuple(
    (0.5, a, b, power, power) for a, b, power in itertools.product((2.0, 8.0, 16.0), (2.0, 8.0, 16.0), (0.3, 0.8))
)


@dataclasses.dataclass(frozen=True)
class Fit:
    """Coefficients of L = E + A / N^alpha + B / D^beta, nats a token. `intervals`: 95% of each by name, empty without a bootstrap; `runs`: how many
    it was fitted to; `dropped`: those left out as outliers, by place; `error`: the largest relative error on the others."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    runs: int
    error: float
    dropped: tuple[int, ...] = ()
    intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def loss(self, params, tokens):
        """The loss predicted for models of so many parameters and tokens: numbers or arrays."""
        return (
            self.E + self.A / np.asarray(params, float) ** self.alpha + self.B / np.asarray(tokens, float) ** self.beta
        )

    def optimal(self, flops: float) -> tuple[float, float]:
        """(parameters, tokens) of the least loss among all with 6 N D = `flops` (equation 4 of the paper)."""
        g = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        params = g * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return params, flops / 6 / params

    def isoflop(self, flops: float, points: int = 50) -> tuple[np.ndarray, np.ndarray]:
        """(parameters, losses) of models that take `flops` to train, from a tenth to ten times the best size."""
        params = self.optimal(flops)[0] * np.geomspace(0.1, 10, points)
        return params, self.loss(params, flops / 6 / params)


def fit(
    params: Sequence[float], tokens: Sequence[float], losses: Sequence[float], bootstrap: int = 0, seed: int = 0,
    outliers: float | None = OUTLIERS,
) -> Fit:  # fmt: skip
    """Returns the fit to runs, with intervals where `bootstrap` asks for so many resamples, drawn by `seed`.

    Runs whose logarithm of the loss is more than `outliers` robust standard deviations (1.4826 times the median absolute deviation) off are left out,
    and the others fitted again, until none is; None keeps all. Raises UserError for fewer than 8 runs, numbers that are not positive and
    finite, and runs of fewer than three sizes or numbers of tokens.
    """
    table = np.array([params, tokens, losses], float)
    _check(table)
    logs, kept, start = np.log(table), np.ones(table.shape[1], bool), STARTS
    while True:
        best = min((_minimise(np.array(one), logs[:, kept]) for one in start), key=lambda found: found[1])[0]
        off = _residuals(best, logs)[0]
        middle = np.median(off[kept])
        scale = max(1.4826 * float(np.median(np.abs(off[kept] - middle))), 1e-6)
        now = kept if outliers is None else kept & (np.abs(off - middle) <= outliers * scale)
        if now.sum() == kept.sum() or now.sum() < FEWEST:
            break
        kept, start = now, (tuple(best.tolist()),)
    chosen = logs[:, kept]
    draw, many = np.random.default_rng(seed), []
    for _ in range(bootstrap):
        again = draw.integers(chosen.shape[1], size=chosen.shape[1])
        many.append(_coefficients(_minimise(best, chosen[:, again])[0]))
    intervals = {name: _interval([one[n] for one in many]) for n, name in enumerate(NAMES)} if many else {}
    dropped = tuple(np.flatnonzero(~kept).tolist())
    made = Fit(*_coefficients(best), int(kept.sum()), 0.0, dropped, intervals)
    error = float(np.abs(made.loss(table[0], table[1])[kept] / table[2][kept] - 1).max())
    return dataclasses.replace(made, error=error)


def _check(table: np.ndarray) -> None:
    if table.shape[1] < FEWEST:
        raise UserError(
            f"{table.shape[1]} runs are too few for a scaling law of five coefficients; give at least {FEWEST}"
        )
    if not (fine := (np.isfinite(table) & (table > 0)).all(axis=0)).all():
        bad = int(np.flatnonzero(~fine)[0])
        raise UserError(
            f"run {bad} has {table[:, bad].tolist()} for (parameters, tokens, loss); expected positive numbers"
        )
    for row, what in ((table[0], "parameters"), (table[1], "tokens")):
        if len(np.unique(row)) < 3:
            raise UserError(
                f"the runs have {len(np.unique(row))} different numbers of {what}; a scaling law needs at least 3"
            )


def _interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5)).tolist()
    return low, high


def _coefficients(found: np.ndarray) -> tuple[float, float, float, float, float]:
    e, a, b, alpha, beta = found.tolist()
    return float(np.exp(e)), float(np.exp(a)), float(np.exp(b)), alpha, beta


def _minimise(start: np.ndarray, logs: np.ndarray) -> tuple[np.ndarray, float]:
    """(log E, log A, log B, alpha, beta) and the objective where L-BFGS ends."""
    from scipy.optimize import minimize

    found = minimize(
        _objective,
        start,
        args=(logs,),
        jac=True,
        method="L-BFGS-B",
        bounds=BOUNDS,
        options={"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-9},
    )
    return found.x, float(found.fun)


def _residuals(x: np.ndarray, logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predicted less measured logarithms of the losses, [runs], and the shares of E, A / N^alpha and B / D^beta in the predicted loss, [3, runs]."""
    e, a, b, alpha, beta = x
    terms = np.stack([np.full(logs.shape[1], e), a - alpha * logs[0], b - beta * logs[1]])
    top = terms.max(axis=0)
    shares = np.exp(terms - top)
    total = shares.sum(axis=0)
    return top + np.log(total) - logs[2], shares / total


def _objective(x: np.ndarray, logs: np.ndarray) -> tuple[float, np.ndarray]:
    """The summed Huber loss and its gradient."""
    residual, shares = _residuals(x, logs)
    small = np.abs(residual) <= DELTA
    value = np.where(small, residual**2 / 2, DELTA * (np.abs(residual) - DELTA / 2)).sum()
    by_e, by_a, by_b = shares * np.clip(residual, -DELTA, DELTA)
    grad = np.array([by_e.sum(), by_a.sum(), by_b.sum(), -(by_a * logs[0]).sum(), -(by_b * logs[1]).sum()])
    return float(value), grad
