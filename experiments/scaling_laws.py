"""A scaling law of small models of Python source code, and what it predicts of a larger one: five sizes at four token budgets, each a run of its own.

    python experiments/scaling_laws.py
    python experiments/scaling_laws.py model.width=32,64,96 steps=50,100,200 --out sweeps/short

muP carries one learning rate to all sizes. The law is fitted to the grid; then a model of twice the largest width trains for twice the most steps,
and the law's prediction is held against what it reaches. Draws `scaling_laws.png`, the law in curves of equal FLOPs, in the sweep's folder. On 2 CPU
cores, 17 minutes beside other work (2026-11-27): predicted 1.367, reached 1.407 (docs/sweeps.md).
"""

import dataclasses
from typing import Any

from research import sweep, train
from research.model.config import ModelConfig
from research.sweep import laws, scaling_command

SWEEP = sweep.Sweep(
    base=train.Config(
        tokenizer="byte",
        model=ModelConfig(context=64, base_width=128, layers=2, heads=4, tied=False, init="fan-in"),
        optimizer=train.OptimizerConfig(learning_rate=2e-3, schedule=train.ScheduleConfig(warmup_steps=20)),
        batch_size=16,
        eval_every=1_000_000,
        eval_batches=16,
    ),
    space={"model.width": [32, 48, 64, 96, 128], "steps": [100, 200, 400, 800]},
    name="scaling_laws",
)
BOOTSTRAP = 200  # resamples for the intervals
BUDGET = 1e14  # FLOPs to tell the best size for
KEYS = {"params": "params", "tokens": "tokens", "loss": "metric"}  # of a result


def law(results: sweep.Results) -> dict[str, Any]:
    """The fit with its intervals, the best size for a budget, and the error of its prediction of a larger run."""
    lines = results.complete
    runs = {name: [line[key] for line in lines] for name, key in KEYS.items()}
    found = laws.fit(runs["params"], runs["tokens"], runs["loss"], bootstrap=BOOTSTRAP)
    largest = {name: 2 * max(line["fields"][name] for line in lines) for name in ("model.width", "steps")}
    held_out = dataclasses.replace(results.sweep, space=largest, out=str(results.path / "held_out")).run().lines[0]
    predicted = float(found.loss(held_out["params"], held_out["tokens"]))
    params, tokens = found.optimal(BUDGET)
    plot = results.path / "scaling_laws.png"
    scaling_command.plot(found, runs, plot)
    error = predicted / held_out["metric"] - 1
    said = [
        *scaling_command.lines({**dataclasses.asdict(found), "left_out": 0}),
        f"for {BUDGET:.0e} FLOPs: {params:,.0f} parameters, {tokens:,.0f} tokens, loss {float(found.loss(params, tokens)):.4f}",
        f"held out: {held_out['params']:,} parameters, {held_out['tokens']:,} tokens: loss {held_out['metric']:.4f}, "
        f"predicted {predicted:.4f}, off by {error:+.2%}",
        f"figure: {plot}",
    ]
    return {
        "law": dataclasses.asdict(found),
        "predicted": predicted,
        "measured": held_out["metric"],
        "error": error,
        "said": "\n".join(said),
    }


if __name__ == "__main__":
    sweep.main(SWEEP, after=law)
