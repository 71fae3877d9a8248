"""The coordinate check of maximal update parameterisation (muP, arXiv 2203.03466, appendix D.1): do activations keep their size as a model grows
wider, and does training move them by as much?

A few steps are trained at several widths. Of each coordinate (what enters a block, what a feed-forward gives, the final stream, the logits) the
root mean square over a batch is followed, and that of its change since the start. Over widths each goes as a power of the width, whose exponent is
0 where the parameterisation is maximal: sizes may fall at the start (logits do, as width^-1/2), and may never grow; changes may do neither.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core.dtypes import at_least_float32
from research.model import head, transformer
from research.model.config import ModelConfig
from research.train import start
from research.train.config import Config
from research.train.program import Program

TAPS = ("block_input", "mlp_output")
SMALLEST = 1e-12  # of what counts as there


@dataclasses.dataclass(frozen=True)
class Check:
    """What was seen: `sizes` and `changes` of every coordinate as arrays (steps + 1, widths), means over seeds."""

    widths: tuple[int, ...]
    sizes: dict[str, np.ndarray]
    changes: dict[str, np.ndarray]
    tolerance: float

    def growth(self, name: str) -> float:
        """The largest exponent of a coordinate's size over all steps: of width, at the start, and after each step."""
        return max(exponent(self.widths, sizes) for sizes in self.sizes[name])

    def moved(self, name: str) -> float:
        """The exponent of a coordinate's change since the start, after the last step."""
        return exponent(self.widths, self.changes[name][-1])

    def passes(self, name: str) -> bool:
        """Whether a coordinate grows with the width by no more than the tolerance, and its change neither grows nor falls by more."""
        return self.growth(name) <= self.tolerance and abs(self.moved(name)) <= self.tolerance

    @property
    def passed(self) -> bool:
        return all(self.passes(name) for name in self.sizes)


def exponent(widths: Sequence[int], sizes: Sequence[float]) -> float:
    """a of the least-squares fit of sizes to c width^a. 0 for what is nowhere there, infinite where a size is not finite."""
    if not all(map(math.isfinite, sizes)):
        return math.inf
    if max(sizes) < SMALLEST:
        return 0.0
    return float(np.polyfit(np.log(widths), np.log(np.maximum(sizes, SMALLEST)), 1)[0])


def optimum(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate of the least loss: of the parabola in the logarithm of the rate through the lowest loss and its neighbours; the lowest's own where
    it is the first or the last."""
    order = np.argsort(rates)
    x, y = np.log(np.asarray(rates, float)[order]), np.asarray(losses, float)[order]
    low = int(np.argmin(y))
    if not 0 < low < len(x) - 1:
        return float(np.exp(x[low]))
    near = slice(low - 1, low + 2)
    a, b, _ = np.polyfit(x[near] - x[low], y[near], 2)
    return float(np.exp(x[low] - b / (2 * a)))


def check(
    config: Config, widths: Sequence[int], steps: int, seeds: int, tolerance: float, say: Callable[[str], None]
) -> Check:
    """Trains `config` at each width, in its proportions, for so many steps with each of so many seeds from the config's on, and measures on the
    first batch. Raises UserError for a width that makes no model."""
    models, corpora, found = [config.model.in_proportion(width) for width in widths], {}, []
    for model in models:
        say(f"width {model.width}: {steps} steps, {seeds} seed(s)")
        built = start.program_of(dataclasses.replace(config, model=model), corpora)
        seen = [_measured(built, seed, steps) for seed in range(config.seed, config.seed + seeds)]
        found.append(jax.tree.map(lambda *runs: np.mean(runs, axis=0), *seen))
    sizes, changes = jax.tree.map(lambda *one: np.stack(one, axis=1), *found)
    return Check(tuple(widths), sizes, changes, tolerance)


def _measured(built: Program, seed: int, steps: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Root mean squares of coordinates, and of their changes, before the first step and after each."""
    own = built.like(dataclasses.replace(built.config, seed=seed))
    batch = own.put_batch(own.batches(0))
    look = own.on_mesh(jax.jit(lambda params: coordinates(params, batch, own.model)))
    size = jax.jit(lambda values: jax.tree.map(lambda x: jnp.sqrt(jnp.mean(jnp.square(at_least_float32(x)))), values))
    state, seen, moved = own.initial_state(), [], []
    first = look(state.params)
    for step in range(steps + 1):
        now = look(state.params)
        seen.append(jax.device_get(size(now)))
        moved.append(jax.device_get(size(jax.tree.map(jnp.subtract, now, first))))
        if step < steps:
            state, _ = own.step(state, own.put_batch(own.batches(step)), own.hypers)
    return jax.tree.map(lambda *x: np.asarray(x), *seen), jax.tree.map(lambda *x: np.asarray(x), *moved)


def coordinates(params: Any, batch: dict[str, jax.Array], model: ModelConfig) -> dict[str, jax.Array]:
    """What enters each block, what each feed-forward gives, the final stream and the logits, by name."""
    out = transformer.hidden(params, batch, model, taps=TAPS)
    found = {f"{tap}/{layer}": out.taps[tap][layer] for tap in TAPS for layer in range(model.layers)}
    return {**found, "final": out.outputs, "logits": head.logits(params, out.outputs, model)}
