"""Does the best learning rate stay where it is as a model grows wider? Six rates at four widths, with and without maximal update parameterisation.

    python experiments/mup_transfer.py
    python experiments/mup_transfer.py model.width=64,128 steps=100 --out sweeps/short

Both begin as one model of width 256, and differ from it as they are narrower or wider. Draws `mup_transfer.png` in the sweep's folder. On 2 CPU
cores, 29 minutes (2026-11-27): over widths 64 to 512 the best rate moves by a factor of 1.2 under muP, and of 10.8 without (docs/mup.md).
"""

from typing import Any

from research import sweep, train
from research.model.config import ModelConfig
from research.sweep import figures, mup

SWEEP = sweep.Sweep(
    base=train.Config(
        tokenizer="byte",
        model=ModelConfig(context=64, width=256, layers=2, heads=4, tied=False, init="fan-in"),
        optimizer=train.OptimizerConfig(schedule=train.ScheduleConfig(warmup_steps=20)),
        steps=200,
        batch_size=16,
        eval_every=200,
        eval_batches=8,
    ),
    space={
        "model.base_width": [None, 256],
        "model.width": [64, 128, 256, 512],
        "optimizer.learning_rate": "log:3.5e-4:1.12e-2:6",
    },
    name="mup_transfer",
)


def transfer(results: sweep.Results) -> dict[str, Any]:
    """The best rate at every width, how far it moves, and the figure."""
    found: dict[str, dict[int, tuple[list[float], list[float]]]] = {}
    for line in results.complete:
        fields = line["fields"]
        name = "standard" if fields["model.base_width"] is None else "muP"
        rates, losses = found.setdefault(name, {}).setdefault(fields["model.width"], ([], []))
        rates.append(fields["optimizer.learning_rate"])
        losses.append(line["metric"])
    best = {name: {width: mup.optimum(*curve) for width, curve in widths.items()} for name, widths in found.items()}
    moves = {name: max(rates.values()) / min(rates.values()) for name, rates in best.items()}
    figure, all_axes = figures.canvas(10.0, 4.2, columns=len(found))
    for axes, (name, widths) in zip(figure.axes, found.items(), strict=True):
        for n, (width, (rates, losses)) in enumerate(widths.items()):
            axes.plot(rates, losses, marker="o", ms=3, color=f"C{n}", label=f"width {width}")
            axes.axvline(best[name][width], color=f"C{n}", lw=0.8, ls=":")
        axes.set(xscale="log", xlabel="learning rate", title=f"{name}: the best rate moves by {moves[name]:.2f}")
        axes.legend(frameon=False)
    figure.axes[0].set_ylabel("held-out loss, nats a token")
    plot = results.path / "mup_transfer.png"
    figures.written(plot, figure)
    said = [
        f"{name}: "
        + ", ".join(f"width {width} {rate:.2e}" for width, rate in rates.items())
        + f"; moves by {moves[name]:.2f}"
        for name, rates in best.items()
    ]
    return {"best_rates": best, "moves": moves, "said": "\n".join([*said, f"figure: {plot}"])}


if __name__ == "__main__":
    sweep.main(SWEEP, after=transfer)
