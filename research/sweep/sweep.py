"""A sweep as a value: a base config, a space, how it is searched, and where its results go. `run` plans it, trains its members, and goes on where an
earlier run of the same sweep stopped."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
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
from research.sweep.study import SAMPLERS
from research.train import compile_cache
from research.train import config as T

Search = Literal["grid", "random", "halving", "population", "tpe", "gp", "cmaes", "qmc", "nsgaii"]
Pruner = Literal["none", "median", "halving", "hyperband"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a space is searched, and where the results go."""

    seeds: int = 1  # each choice of fields with so many seeds, from the experiment's on
    # how choices are made; halving: of the grid, or of random trials, the best go on at each rung; tpe, gp, cmaes, qmc, nsgaii: by Optuna
    search: Search = "grid"
    trials: int | None = None  # choices of the space; None: the grid
    out: str | None = None  # the sweep's folder; None: sweeps/NAME
    seed: int = 0  # of the search
    width: int | None = None  # members at once; None: what is fastest here
    eta: int = 3  # halving: of so many members one goes on at each rung
    # times that members are ranked before their end; None: halving until one is left, 5 for a population
    rungs: int | None = None
    share: float = 0.25  # population: the share of members that take over from better ones at a rung
    # an Optuna storage that any number of workers share: postgresql://..., mysql://..., sqlite:///FILE, journal:FILE
    storage: str | None = None
    study: str | None = None  # the name of the study in the storage; None: the sweep's
    pruner: Pruner = "none"  # of Optuna, by the held-out losses of all trials so far
    batch: int = 8  # choices that a worker of a study takes at a time
    heartbeat: float = 15.0  # seconds between a worker's signs of life; after four without one its batch is taken over

    def __post_init__(self):
        if self.search not in get_args(Search):
            raise UserError(f"--search is {self.search!r}; expected one of {', '.join(get_args(Search))}")
        for name, least in (("seeds", 1), ("trials", 1), ("width", 1), ("eta", 2), ("rungs", 1), ("batch", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} is {value}; expected a whole number of at least {least}")
        if not 0 < self.share <= 0.5:
            raise UserError(f"--share is {self.share}; expected a share above 0 and at most 0.5")
        if not 0 < self.heartbeat < float("inf"):
            raise UserError(f"--heartbeat is {self.heartbeat}; expected a number of seconds above 0")
        if self.search not in ("grid", "halving", "population") and self.trials is None:
            raise UserError(f"--search {self.search} needs a number of choices: --trials N")
        if self.search == "grid" and self.trials is not None:
            raise UserError(
                f"--trials {self.trials} goes with other searches than grid, which has the trials that its values make"
            )
        ranked = self.search in ("halving", "population")
        if ranked and (self.storage is not None or self.pruner != "none"):
            raise UserError(
                f"--search {self.search} ranks the members of one process; on a storage give --search random --pruner halving"
            )
        if self.study is not None and self.storage is None:
            raise UserError(f"--study {self.study} names a study of a --storage; give its URL")

    @property
    def shared(self) -> bool:
        """Whether it runs as a study of Optuna, which workers share."""
        return self.storage is not None or self.pruner != "none" or self.search in SAMPLERS


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
        return P.trials(self.base, self.choices(), self.seeds)

    def choices(self) -> Iterator[dict[str, Any]]:
        """The choices of fields of a search that knows them beforehand: the grid, or random ones."""
        found = self.dimensions()
        return found.grid() if self.trials is None else found.random(self.trials, self.seed)

    @property
    def folder(self) -> Path:
        return Path(self.out or Path("sweeps") / self.name).expanduser()

    def described(self) -> dict[str, Any]:
        """What a sweep that goes on has to agree with, as JSON values."""
        kept = {
            name: getattr(self, name)
            for name in ("search", "seeds", "trials", "seed", "eta", "rungs", "share", "pruner")
        }
        ranges = {one.field: _plain(one) for one in self.dimensions().dimensions}
        return {"experiment": self.name, "base": C.to_dict(self.base), "space": ranges, **kept}

    def run(self, say: Report | None = None, plan_only: bool = False) -> "Results":
        """Trains what is not done yet and returns all results. With `plan_only` the plan is printed, and that is all.

        A signal ends it after what is on disk; the same call goes on. Raises UserError for bad input before anything trains.
        """
        say = to_stderr if say is None else say
        host.prepare()
        compile_cache.enable()
        if self.shared:
            from research.sweep import worker

            return Results(self, *worker.run(self, say, plan_only))
        planned = self.planned()
        execution = Execution(self, planned, say)
        execution.prepare()
        if plan_only:
            execution.show_plan()
            return Results(self, [], len(planned))
        folder = Folder(self.folder, self.described())
        try:
            execution.run(folder)
            folder.write_table()
            write_report(folder.path)
            return Results(self, folder.lines, len(planned))
        finally:
            folder.close()


def _plain(dimension: Any) -> Any:
    if dimension.values is not None:
        return list(dimension.values)
    return f"{dimension.scale}:{dimension.low:g}:{dimension.high:g}"


@dataclasses.dataclass(frozen=True)
class Results:
    """The trials of a sweep that are over: `lines` of results.jsonl, as they ended. `planned`: how many there shall be."""

    sweep: Sweep
    lines: list[dict[str, Any]]
    planned: int

    @property
    def path(self) -> Path:
        return self.sweep.folder

    @property
    def complete(self) -> list[dict[str, Any]]:
        """Those that trained to their end, in order."""
        return sorted((one for one in self.lines if one["status"] == "complete"), key=lambda one: one["trial"])

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
