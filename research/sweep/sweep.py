"""A sweep as a value: a base config, a space, how it is searched, and where its results go. `run` plans it, trains its members, and goes on where an
earlier run of the same sweep stopped."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from research.core import config as C
from research.core import host
from research.core.errors import UserError
from research.sweep import plan as P
from research.sweep.execute import Execution, Report
from research.sweep.report import write_report
from research.sweep.results import Folder, best
from research.sweep.space import Space, space
from research.train import compile_cache
from research.train import config as T

Search = Literal["grid", "random", "halving", "population"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a space is searched, and where the results go."""

    seeds: int = 1  # each choice of fields with so many seeds, from the experiment's on
    search: Search = (
        "grid"  # how choices are made; halving: of the grid, or of random trials, the best go on at each rung
    )
    trials: int | None = None  # random choices of the space; None: the grid
    out: str | None = None  # the sweep's folder; None: sweeps/NAME
    seed: int = 0  # of the search
    width: int | None = None  # members at once; None: what is fastest here
    eta: int = 3  # halving: of so many members one goes on at each rung
    # times that members are ranked before their end; None: halving until one is left, 5 for a population
    rungs: int | None = None
    share: float = 0.25  # population: the share of members that take over from better ones at a rung

    def __post_init__(self):
        if self.search not in get_args(Search):
            raise UserError(f"--search is {self.search!r}; expected one of {', '.join(get_args(Search))}")
        for name, least in (("seeds", 1), ("trials", 1), ("width", 1), ("eta", 2), ("rungs", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} is {value}; expected a whole number of at least {least}")
        if not 0 < self.share <= 0.5:
            raise UserError(f"--share is {self.share}; expected a share above 0 and at most 0.5")
        if self.search == "random" and self.trials is None:
            raise UserError("--search random needs a number of draws: --trials N")
        if self.search == "grid" and self.trials is not None:
            raise UserError(
                f"--trials {self.trials} goes with --search random, halving or population; a grid has the trials that its values make"
            )


@dataclasses.dataclass(frozen=True)
class Sweep(Options):
    """Many runs of `base`, by what `space` says of its fields: dotted names to specs (`space.py`), lists of values, or single values."""

    base: T.Config
    space: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    name: str = "sweep"

    def dimensions(self) -> Space:
        """The space, checked. Raises UserError for what does not fit the base."""
        return space(self.base, self.space)

    def planned(self) -> list[P.Trial]:
        """Every trial, in order. Raises UserError before anything runs for a space that is empty or makes no config."""
        found = self.dimensions()
        chosen = found.grid() if self.trials is None else found.random(self.trials, self.seed)
        return P.trials(self.base, chosen, self.seeds)

    @property
    def folder(self) -> Path:
        return Path(self.out or Path("sweeps") / self.name).expanduser()

    def described(self) -> dict[str, Any]:
        """What a sweep that goes on has to agree with, as JSON values."""
        kept = {name: getattr(self, name) for name in ("search", "seeds", "trials", "seed", "eta", "rungs", "share")}
        ranges = {one.field: _plain(one) for one in self.dimensions().dimensions}
        return {"experiment": self.name, "base": C.to_dict(self.base), "space": ranges, **kept}

    def run(self, say: Report | None = None, plan_only: bool = False) -> "Results":
        """Trains what is not done yet and returns all results. With `plan_only` the plan is printed, and that is all.

        A signal ends it after what is on disk; the same call goes on. Raises UserError for bad input before anything trains.
        """
        say = to_stderr if say is None else say
        host.keep_freed_memory()
        compile_cache.enable()
        planned = self.planned()
        execution = Execution(self, planned, say)
        execution.prepare()
        if plan_only:
            execution.show_plan()
            return Results(self.folder, [], len(planned))
        folder = Folder(self.folder, self.described())
        try:
            execution.run(folder)
            folder.write_table()
            write_report(folder.path)
            return Results(self.folder, folder.lines, len(planned))
        finally:
            folder.close()


def _plain(dimension: Any) -> Any:
    if dimension.values is not None:
        return list(dimension.values)
    return f"{dimension.scale}:{dimension.low:g}:{dimension.high:g}"


@dataclasses.dataclass(frozen=True)
class Results:
    """The trials that are over, by number: lines of results.jsonl."""

    path: Path
    lines: list[dict[str, Any]]
    planned: int

    @property
    def best(self) -> dict[str, Any] | None:
        """The complete trial of the least held-out loss."""
        return best(self.lines)

    def summary(self) -> dict[str, Any]:
        """The JSON object of the contract for scripts."""
        counts = {
            status: sum(one["status"] == status for one in self.lines) for status in ("complete", "diverged", "stopped")
        }
        found = self.best
        return {
            "trials": self.planned, **counts, "results": str(self.path / "results.jsonl"),
            "best": None if found is None else {"trial": found["trial"], "fields": found["fields"], "metric": found["metric"]},
        }  # fmt: skip


def to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
