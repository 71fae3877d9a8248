"""Where `vmap` over members stops paying: tokens/s of one member at a time beside many at once, over sizes of the model.

A small model leaves an accelerator idle, so that many members take about as long as one; a large one fills it. Each size trains with 1 member and
with 4, 16 and 64 at once, as many as memory holds; the fastest of the latter is set beside the former.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from research.core import config as C
from research.core.errors import UserError
from research.sweep import figures, width
from research.train import experiments, start

SIZES = (64, 128, 256, 512, 1024)
MEMBERS = (4, 16, 64)


def measure(
    experiment: str, fields: dict[str, Any], sizes: Sequence[int], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One row a size: parameters, tokens/s looped and `vmapped`, over how many `members`, and their ratio. Raises UserError where not one member
    of a size fits."""
    base, corpora, rows = C.set_values(experiments.load(experiment).config, fields, "the benchmark"), {}, []
    for size in sizes:
        program = start.program_of(C.set_values(base, {"model.width": size}, "the benchmark"), corpora)
        tokens = program.config.step_tokens
        looped, best = width.measure(program, 1, shared=True), None
        for members in MEMBERS:
            try:
                wide = width.measure(program, members, shared=True)
            except (UserError, jax.errors.JaxRuntimeError) as error:
                say(f"width {size}, {members} members: {str(error).splitlines()[0]}")
                break
            say(
                f"width {size}, {members} members: {wide.seconds * 1e3:.3g} ms a member's step, {looped.seconds * 1e3:.3g} alone"
            )
            if best is None or wide.seconds < best.seconds:
                best = wide
        row = {"width": size, "params": program.n_params, "looped_tokens_per_second": tokens / looped.seconds}
        if best is not None:
            row |= {
                "vmapped_tokens_per_second": tokens / best.seconds,
                "members": best.width,
                "ratio": looped.seconds / best.seconds,
            }
        rows.append(row)
    return rows


def crossing(rows: Sequence[dict[str, Any]]) -> int | None:
    """The least number of parameters from which on `vmap` is not faster; None where it always is."""
    slower = [row["params"] for row in rows if row.get("ratio", 0) <= 1]
    return min(slower, default=None)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The ratio over the size of the model. Raises UserError where it cannot be written."""
    figure, axes = figures.canvas(6.0, 3.8)
    known = [row for row in rows if "ratio" in row]
    axes.plot([row["params"] for row in known], [row["ratio"] for row in known], marker="o", ms=4)
    axes.axhline(1, lw=0.8, ls=":", color="black")
    axes.set(
        xscale="log",
        ylim=(0, 1.15 * max([1, *(row["ratio"] for row in known)])),
        xlabel="parameters",
        ylabel="tokens/s, vmapped / looped",
        title=jax.devices()[0].device_kind,
    )
    for row in known:
        axes.annotate(
            f"{row['members']}", (row["params"], row["ratio"]), xytext=(4, 4), textcoords="offset points", fontsize=7
        )
    figures.written(path, figure)
