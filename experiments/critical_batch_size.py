"""The critical batch size of a small model: up to where do larger batches save steps?

    python experiments/critical_batch_size.py [--target-loss 2.3] [--batch-sizes 4 8 16 32 64 128]

For each batch size a sweep of learning rates trains past the target; the best of them gives the steps S and the rows E = S x batch that it takes.
They trade as (S / S_min - 1) (E / E_min - 1) = 1, and the critical batch size is E_min / S_min (McCandlish et al. 2018, arXiv 1812.06162,
section 2.2), where a run takes twice the fewest steps and twice the fewest rows. Draws `critical_batch_size.png` in the folder.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

from research import sweep, train
from research.core import config
from research.core.errors import UserError
from research.model.config import ModelConfig
from research.sweep import figures
from research.train.command import guarded


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is tried."""

    target_loss: float = 2.3  # held-out nats a token
    batch_sizes: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    rates: str = "log:1e-3:1.6e-2:5"
    steps: int = 150  # at most, of an endless batch; twice as many at batch size 32, as the law has it
    out: str = "sweeps/critical_batch_size"
    debug: bool = False


def base(batch_size: int, steps: int) -> train.Config:
    """A run at a batch size, at a constant rate, so that the loss on the way is one that a run could end with."""
    return train.Config(
        tokenizer="byte",
        model=ModelConfig(context=64, width=64, layers=2, heads=4, activation="gelu-tanh"),
        optimizer=train.OptimizerConfig(schedule=train.ScheduleConfig(kind="constant", warmup_steps=10)),
        steps=round(steps * (1 + 32 / batch_size)),
        batch_size=batch_size,
        eval_every=max(1, round(steps * (1 + 32 / batch_size) / 40)),
        eval_batches=4,
    )


def steps_to(curve: list[list[float]], target: float) -> float | None:
    """The step at which a curve of (step, loss) first reaches the target, between two evaluations; None where it does not."""
    for (before, high), (after, low) in zip([[0, float("inf")], *curve], curve, strict=False):
        if low is not None and low <= target:
            return after if high == float("inf") else before + (after - before) * (high - target) / (high - low)
    return None


def hyperbola(steps: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """(S_min, E_min) of the trade, which is S = S_min + E_min / batch in another form: least squares of relative errors."""
    sides = np.stack([1 / steps, 1 / rows], axis=1)
    (s_min, e_min), *_ = np.linalg.lstsq(sides, np.ones(len(steps)), rcond=None)
    return float(s_min), float(e_min)


def main(argv: list[str]) -> int:
    """Sweeps every batch size, prints the table, and draws the trade."""
    asked: Arguments = config.parse(Arguments(), argv, "critical_batch_size.py", __doc__ or "")
    space, folder, table = {"optimizer.learning_rate": asked.rates}, Path(asked.out), []
    for size in asked.batch_sizes:
        one = sweep.Sweep(
            base=base(size, asked.steps), space=space, name=f"batch-{size}", out=str(folder / f"batch-{size}")
        )
        reached = [(steps_to(line["curve"]["eval"], asked.target_loss), line["fields"]) for line in one.run().complete]
        known: list[tuple[float, Any]] = [(steps, fields) for steps, fields in reached if steps is not None]
        if not known:
            raise UserError(f"no rate at batch size {size} reaches {asked.target_loss}; raise --steps or --target-loss")
        steps, fields = min(known, key=lambda found: found[0])
        table.append((size, steps, steps * size))
        print(f"batch {size}: {steps:.0f} steps, {steps * size:,.0f} rows, at {fields['optimizer.learning_rate']:.2g}")
    sizes, steps, rows = (np.array(column, float) for column in zip(*table, strict=True))
    s_min, e_min = hyperbola(steps, rows)
    print(f"at least {s_min:.0f} steps and {e_min:,.0f} rows; critical batch size {e_min / s_min:.0f} rows")
    figure, axes = figures.canvas(6.0, 4.2)
    batches = np.geomspace(min(sizes) / 2, max(sizes) * 2, 100)
    axes.plot(s_min + e_min / batches, s_min * batches + e_min, lw=1, label=f"critical batch size {e_min / s_min:.0f}")
    axes.scatter(steps, rows, s=16)
    axes.set(
        xscale="log", yscale="log", xlabel="steps", ylabel="rows", title=f"to a held-out loss of {asked.target_loss:g}"
    )
    axes.legend(frameon=False)
    figures.written(folder / "critical_batch_size.png", figure)
    return 0


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(guarded(lambda: main(words), "--debug" in words))
