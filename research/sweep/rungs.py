"""Successive halving and population-based training: what becomes of members between two rungs, as pure functions of their losses.

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943; its rungs as in ASHA, Li et al. 2020, arXiv 1810.05934): at each rung the best
1 / eta of the members go on, for eta times as many steps.

Population-based training (Jaderberg et al. 2017, arXiv 1711.09846): at each rung the worst members take over state and hyperparameters of the best
(exploit), their numbers multiplied by one of two factors (explore).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FACTORS = (
    0.8,
    1.25,
)  # what explore multiplies by (section 4.1 of the paper has 0.8 and 1.2; these two undo each other)


def steps_of(steps: int, rungs: int, eta: int) -> list[int]:
    """The steps at which members are ranked, the last being their end: `rungs` of them before it, each eta times the one before."""
    return [max(1, steps // eta**n) for n in range(rungs, 0, -1)] + [steps]


def most(trials: int, steps: int, eta: int) -> int:
    """How many rungs so many trials and steps have room for: one member is left at the last, and the first has at least a step."""
    return max(
        0, min(math.floor(math.log(max(trials, 1), eta) + 1e-9), math.floor(math.log(max(steps, 1), eta) + 1e-9))
    )


def kept(losses: Mapping[int, float], eta: int) -> set[int]:
    """Which of the trials, by number, go on: the best 1 / eta by loss, at least one, and none whose loss is not finite. Of equal losses the lower
    number goes on."""
    ranked = sorted((loss, trial) for trial, loss in losses.items() if math.isfinite(loss))
    return {trial for _, trial in ranked[: max(1, len(losses) // eta)]}


def exploit(losses: Sequence[float], share: float) -> list[int]:
    """For each member, by its place, the place of the one that it goes on from: the worst `share` of them, at most a half, and all whose loss is not
    finite from as many of the best in turn, the others from themselves. Where no loss is finite, all stay."""
    order = sorted(range(len(losses)), key=lambda i: (losses[i] if math.isfinite(losses[i]) else math.inf, i))
    count = int(share * len(losses))
    best = [i for i in order[: max(1, count)] if math.isfinite(losses[i])]
    replaced = [i for i in order if not math.isfinite(losses[i])] + [
        i for i in order[len(order) - count :] if math.isfinite(losses[i])
    ]
    parents = list(range(len(losses)))
    for rank, place in enumerate(replaced if best else []):
        parents[place] = best[rank % len(best)]
    return parents


def explore(
    fields: Mapping[str, Any], bounds: Mapping[str, tuple[float, float]], seed: Sequence[int]
) -> dict[str, Any]:
    """The fields with each bounded number multiplied by one of `FACTORS`, drawn from the seed, and held within its bounds."""
    draws = np.random.default_rng(list(seed)).integers(len(FACTORS), size=len(fields))
    out = dict(fields)
    for (name, value), draw in zip(fields.items(), draws.tolist(), strict=True):
        if name in bounds:
            low, high = bounds[name]
            moved = min(max(value * FACTORS[draw], low), high)
            out[name] = type(value)(round(moved)) if isinstance(value, int) else float(moved)
    return out
