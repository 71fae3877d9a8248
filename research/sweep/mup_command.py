"""`research mup-check EXPERIMENT`: whether a parameterisation keeps its activations as a model grows wider."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.core import config as C
from research.core.errors import UserError
from research.data import command_line
from research.sweep import figures, mup, space
from research.sweep.command import specs_in
from research.sweep.sweep import to_stderr
from research.train import compile_cache, experiments
from research.train.config import Config

PROG = "research mup-check EXPERIMENT"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Trains EXPERIMENT for a few steps at several widths, and tells how sizes of activations and of their changes go with the width. FIELD=VALUE
    sets a field. The warm-up is left out, so that the first steps are whole ones. Exits with 1 where the check fails."""

    widths: tuple[int, ...] = (64, 128, 256, 512)  # of the model, whose other sizes are in proportion
    # whose hyperparameters all widths use; None: the experiment's own, else the least width
    base_width: int | None = None
    standard: bool = False  # the standard parameterisation instead, to see it fail
    steps: int = 5  # that each width trains for
    seeds: int = 3  # that sizes are means over
    tolerance: float = 0.2  # largest exponent of the width that passes
    plot: str = "mup-check.png"  # a .png, .svg or .pdf
    json: bool = False  # the last line is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors

    def __post_init__(self):
        if len(set(self.widths)) < 2 or min(self.widths) < 1 or len(set(self.widths)) < len(self.widths):
            raise UserError(f"--widths is {' '.join(map(str, self.widths))}; expected at least two different widths")
        for name in ("steps", "seeds"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; expected a whole number of at least 1")
        if not 0 < self.tolerance < float("inf"):
            raise UserError(f"--tolerance is {self.tolerance}; expected a number above 0")
        if self.standard and self.base_width is not None:
            raise UserError(f"--base-width {self.base_width} and --standard exclude each other; give one")


def main(argv: Sequence[str]) -> int:
    """`research mup-check EXPERIMENT [FIELD=VALUE ...] [options]`."""
    specs, words = specs_in(argv)
    name, arguments = command_line.parse(Arguments(), words, PROG)
    compile_cache.enable()
    config = configured(experiments.load(name).config, specs, arguments)
    found = mup.check(
        config, sorted(arguments.widths), arguments.steps, arguments.seeds, arguments.tolerance, to_stderr
    )
    figures.written(Path(arguments.plot).expanduser(), drawn(found, config))
    out = {"plot": arguments.plot, "base_width": config.model.base_width, **summary(found)}
    command_line.show([*lines(out), "", f"plot: {arguments.plot}"], out, arguments.json)
    return 0 if found.passed else 1


def configured(config: Config, specs: dict[str, str], arguments: Arguments) -> Config:
    """The experiment's config with fields set, without warm-up, under the parameterisation to be checked. Raises UserError for a field with several
    values, and for what has no widths to compare."""
    dimensions = space.space(config, specs).dimensions
    several = [one.field for one in dimensions if one.values is None or len(one.values) != 1]
    if several:
        raise UserError(f"{several[0]}={specs[several[0]]} has several values; a check takes one of each field")
    chosen = {one.field: one.values[0] for one in dimensions if one.values is not None}
    config = C.set_values(config, {"optimizer.schedule.warmup_steps": 0, **chosen}, "the command line")
    if config.init_from is not None:
        raise UserError(f"init_from is {config.init_from!r}: its weights have one width; set init_from=None")
    base = None if arguments.standard else arguments.base_width or config.model.base_width or min(arguments.widths)
    return C.set_values(config, {"model.base_width": base}, "the command line")


def summary(found: mup.Check) -> dict[str, Any]:
    """The JSON object of the contract for scripts."""
    coordinates = {
        name: {
            "growth": found.growth(name), "change": found.moved(name), "passed": found.passes(name),
            "sizes": found.sizes[name].tolist(), "changes": found.changes[name].tolist(),
        }
        for name in found.sizes
    }  # fmt: skip
    return {"passed": found.passed, "widths": found.widths, "tolerance": found.tolerance, "coordinates": coordinates}


def lines(out: dict[str, Any]) -> list[str]:
    """The check for a person."""
    base = out["base_width"]
    rows = [
        [name, one["growth"], one["change"], "ok" if one["passed"] else "FAILS"]
        for name, one in out["coordinates"].items()
    ]
    said = "standard parameterisation" if base is None else f"muP of base width {base}"
    return [
        f"{said}, widths {', '.join(map(str, out['widths']))}: exponents of the width, tolerance {out['tolerance']:g}",
        "",
        *command_line.table(["", "growth", "change", ""], rows),
        "",
        "passed: no size grows with the width, and training moves each as much at every width"
        if out["passed"]
        else "FAILED: sizes, or what training changes of them, go with the width",
    ]


def drawn(found: mup.Check, config: Config) -> Any:
    """Sizes at the start, sizes after the last step, and changes, over widths, a line for every coordinate."""
    figure, all_axes = figures.canvas(12.6, 4.2, columns=3)
    last = len(found.sizes["logits"]) - 1
    shown = (
        ("size at the start", found.sizes, 0),
        (f"size after {last} steps", found.sizes, last),
        ("change", found.changes, last),
    )
    for axes, (title, values, step) in zip(all_axes, shown, strict=True):
        for n, (name, sizes) in enumerate(values.items()):
            axes.plot(
                found.widths,
                sizes[step],
                marker="o",
                ms=3,
                lw=1,
                color=f"C{n % 10}",
                ls="-" if n < 10 else "--",
                label=name,
            )
        axes.set(xscale="log", yscale="log", xlabel="width", title=title)
        axes.set_xticks(found.widths, [str(width) for width in found.widths], minor=False)
        axes.minorticks_off()
    all_axes[0].set_ylabel("root mean square")
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7, frameon=False)
    base = config.model.base_width
    figure.suptitle("standard parameterisation" if base is None else f"muP, base width {base}")
    return figure
