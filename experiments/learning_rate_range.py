"""The learning-rate range test (Smith 2015, arXiv 1506.01186): one run whose rate grows at every step, until it diverges.

    python experiments/learning_rate_range.py [EXPERIMENT] [--low 1e-5] [--high 1] [--steps 200]

The rate is a number that the compiled step takes, so each step is given its own. Draws `learning_rate_range.png`: the smoothed loss over the rate,
the rate at which it falls fastest, and the one at which it is least; a good peak lies between them.
"""

import dataclasses
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from research.core import config
from research.core.errors import UserError
from research.sweep import figures
from research.train import experiments, start
from research.train.command import guarded

SMOOTHING = 0.9  # of the loss over steps
DIVERGED = 1.5  # times the least loss


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is tried."""

    low: float = 1e-5
    high: float = 1.0
    steps: int = 200
    plot: str = "learning_rate_range.png"
    debug: bool = False

    def __post_init__(self):
        if not 0 < self.low < self.high or self.steps < 10:
            raise UserError(
                f"--low {self.low} --high {self.high} --steps {self.steps}; expected 0 < low < high, and at least 10 steps"
            )


def losses(name: str, rates: np.ndarray) -> list[float]:
    """The smoothed training loss after each step, as far as it does not diverge."""
    base = experiments.load(name).config
    constant = {"optimizer.schedule.kind": "constant", "optimizer.schedule.warmup_steps": 0}
    program = start.program_of(config.set_values(base, constant, "the range test"))
    state, mean, out = program.initial_state(), 0.0, []
    for step, rate in enumerate(rates):
        hypers = dataclasses.replace(
            program.hypers, learning_rate=jnp.asarray(rate, program.hypers.learning_rate.dtype)
        )
        state, metrics = program.step(state, program.put_batch(program.batches(step)), hypers)
        mean = SMOOTHING * mean + (1 - SMOOTHING) * float(metrics["loss"])
        out.append(mean / (1 - SMOOTHING ** (step + 1)))
        if not np.isfinite(out[-1]) or out[-1] > DIVERGED * min(out):
            break
    return out


def main(argv: list[str]) -> int:
    """Runs the test, says what it found, and draws it."""
    name = argv.pop(0) if argv and not argv[0].startswith("-") else "lm_tiny_text"
    asked: Arguments = config.parse(Arguments(), argv, "learning_rate_range.py [EXPERIMENT]", __doc__ or "")
    rates = np.geomspace(asked.low, asked.high, asked.steps)
    found = np.array(losses(name, rates))
    rates = rates[: len(found)]
    least = int(np.nanargmin(found))
    slope = np.gradient(found[: least + 1], np.log(rates[: least + 1])) if least > 1 else np.zeros(1)
    steepest = int(np.argmin(slope))
    print(f"{len(found)} steps from {rates[0]:.2g} to {rates[-1]:.2g}: the loss falls fastest at {rates[steepest]:.2g} "
          f"and is least, {found[least]:.3f}, at {rates[least]:.2g}")  # fmt: skip
    figure, axes = figures.canvas(6.0, 3.8)
    axes.plot(rates, found, lw=1.2)
    for place, label in ((steepest, "falls fastest"), (least, "least")):
        axes.axvline(
            rates[place], lw=0.8, ls=":", color="C1" if place == least else "C2", label=f"{label}: {rates[place]:.2g}"
        )
    axes.set(xscale="log", xlabel="learning rate", ylabel="smoothed training loss, nats a token", title=name)
    axes.legend(frameon=False)
    figures.written(Path(asked.plot), figure)
    return 0


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(guarded(lambda: main(words), "--debug" in words))
