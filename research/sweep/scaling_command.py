"""`research scaling fit TABLE.csv`: the scaling law of a table of runs, ours or anyone's."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.core import verbs
from research.core.errors import UserError
from research.data import command_line
from research.data.files import read_utf8
from research.sweep import figures, laws

PROG = "research scaling fit TABLE.csv"
# Names of columns that are looked for, in this order, where none is given.
COLUMNS = {
    "params": ("params", "parameters", "N", "Model Size", "model_size"),
    "tokens": ("tokens", "D", "training_tokens", "Training Tokens"),
    "loss": ("metric", "eval_loss", "loss", "L", "Loss"),
    "flops": ("flops", "C", "Training FLOP", "training_flops"),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Fits L(N, D) = E + A / N^alpha + B / D^beta to the rows of a CSV file, a sweep's results.csv or any other."""

    params: str | None = None  # the column of the numbers of parameters; None: the first of the usual names
    tokens: str | None = None  # of the training tokens; without such a column they are FLOPs / 6 / parameters
    loss: str | None = None  # of the losses, nats a token
    flops: str | None = None  # of the training FLOPs
    budget: float | None = None  # FLOPs to tell the best size and number of tokens for
    bootstrap: int = 200  # resamples for the intervals; 0: none
    seed: int = 0  # of the resamples
    # runs that are so many robust standard deviations off are left out; None: all are kept
    outliers: float | None = laws.OUTLIERS
    plot: str | None = None  # a .png, .svg or .pdf of curves of equal FLOPs
    json: bool = False  # the last line is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors

    def __post_init__(self):
        if self.bootstrap < 0 or not 0 <= self.seed < 2**32:
            raise UserError(
                f"--bootstrap is {self.bootstrap} and --seed {self.seed}; expected whole numbers of at least 0"
            )
        for name in ("budget", "outliers"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"--{name} is {value}; expected a number above 0")


def main(argv: Sequence[str]) -> int:
    """`research scaling fit TABLE.csv [options]`."""
    return verbs.run("research scaling NAME", {"fit": fit_command}, argv, "command")


def fit_command(argv: Sequence[str]) -> int:
    """TABLE.csv: E + A / N^alpha + B / D^beta fitted to runs, with intervals, and the best size for a budget"""
    file, arguments = command_line.parse(Arguments(), argv, PROG)
    runs = read(Path(file).expanduser(), arguments)
    found = laws.fit(
        runs["params"], runs["tokens"], runs["loss"], arguments.bootstrap, arguments.seed, arguments.outliers
    )
    out: dict[str, Any] = {"table": file, **dataclasses.asdict(found), "left_out": runs["left_out"]}
    if arguments.budget is not None:
        params, tokens = found.optimal(arguments.budget)
        out["budget"] = {
            "flops": arguments.budget,
            "params": params,
            "tokens": tokens,
            "loss": float(found.loss(params, tokens)),
        }
    if arguments.plot is not None:
        plot(found, runs, Path(arguments.plot).expanduser())
    return command_line.show(lines(out), out, arguments.json)


def read(path: Path, arguments: Arguments) -> dict[str, Any]:
    """The columns of a table as lists, and how many rows were `left_out` since they are of trials that did not complete or have no loss. Raises
    UserError for a file or column that is not there and for a value that is no number."""
    rows = list(csv.DictReader(read_utf8(path).splitlines()))
    if not rows:
        raise UserError(
            f"{path} holds no runs: expected a first line with the names of columns, and a line for every run"
        )
    there = list(rows[0])
    columns = {name: _column(path, there, name, getattr(arguments, name)) for name in COLUMNS}
    for name in ("params", "loss"):
        if columns[name] is None:
            raise UserError(f"{path} has no column of the {name}; it has {there}. Name it by --{name}.")
    if columns["tokens"] is None and columns["flops"] is None:
        raise UserError(
            f"{path} has no column of the tokens, and none of the FLOPs; it has {there}. Name one by --tokens or --flops."
        )
    kept = [
        row
        for row in rows
        if row.get("status", "complete") == "complete" and row[str(columns["loss"])] not in ("", None)
    ]

    def numbers(name: str) -> list[float]:
        return [_number(path, row, str(columns[name])) for row in kept]

    params, loss = numbers("params"), numbers("loss")
    tokens = (
        numbers("tokens") if columns["tokens"] else [c / 6 / n for c, n in zip(numbers("flops"), params, strict=True)]
    )
    return {"params": params, "tokens": tokens, "loss": loss, "left_out": len(rows) - len(kept)}


def _column(path: Path, there: Sequence[str], name: str, asked: str | None) -> str | None:
    if asked is None:
        return next((one for one in COLUMNS[name] if one in there), None)
    if asked not in there:
        raise UserError(f"{path} has no column {asked!r}; it has {list(there)}")
    return asked


def _number(path: Path, row: dict[str, Any], column: str) -> float:
    try:
        return float(row[column])
    except (TypeError, ValueError):
        raise UserError(f"{path}: {row[column]!r} in the column {column!r} is no number") from None


def lines(found: dict[str, Any]) -> list[str]:
    """The fit for a person."""
    without = f", {len(found['dropped'])} left out as outliers" if found["dropped"] else ""
    incomplete = f", {found['left_out']} rows without a loss" if found["left_out"] else ""
    rows = []
    for name in laws.NAMES:
        low, high = found["intervals"].get(name, (None, None))
        rows.append([name, found[name], low, high])
    out = [f"L(N, D) = E + A / N^alpha + B / D^beta, {found['runs']} runs{without}{incomplete}", ""]
    out += command_line.table(["", "fit", "2.5%", "97.5%"], rows)
    out += ["", f"largest relative error {found['error']:.2%}"]
    if "budget" in found:
        best = found["budget"]
        out.append(
            f"for {best['flops']:.3g} FLOPs: {best['params']:.3g} parameters, {best['tokens']:.3g} tokens, loss {best['loss']:.4f}"
        )
    return out


def plot(found: laws.Fit, runs: dict[str, Any], path: Path) -> None:
    """Curves of equal FLOPs with the runs near them. Raises UserError where it cannot be written."""
    import numpy as np

    params, tokens, loss = (np.array(runs[name]) for name in ("params", "tokens", "loss"))
    flops = 6 * params * tokens
    figure, axes = figures.canvas(6.4, 4.4)
    seen = axes.scatter(params, loss, c=np.log10(flops), s=14, cmap="viridis")
    for budget in np.geomspace(flops.min(), flops.max(), 6):
        axes.plot(*found.isoflop(budget), color=seen.cmap(seen.norm(np.log10(budget))), lw=1)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="parameters",
        ylabel="loss, nats a token",
        ylim=(0.98 * loss.min(), 1.02 * loss.max()),
    )
    figure.colorbar(seen, ax=axes, label="log10 of the training FLOPs; lines are of equal FLOPs")
    figures.written(path, figure)
