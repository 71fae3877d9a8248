"""A sweep on an Optuna storage, which any number of workers share: who proposes, what is taken, what is over.

A trial of the study is one choice of fields, of all its seeds. Choices are counted: the n-th trial that is asked for is choice n. A trial whose
worker died is failed, and another trial with its fields, marked by `CHOICE`, stands for the same choice; so a choice has any number of trials and
at most one that is over. Optuna's own heartbeats serve relational storages under `Study.optimize` alone; here each worker counts up an attribute
of the study, and one whose count stands still, by the clock of who looks, is dead. That works on every storage and needs no clocks that agree.
"""

import contextlib
import importlib.util
import json
import os
import platform
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psutil

from research.core import config as C
from research.core.errors import UserError
from research.sweep.space import Dimension, Space

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

SAMPLERS = {
    "tpe": "TPESampler",
    "gp": "GPSampler",
    "cmaes": "CmaEsSampler",
    "qmc": "QMCSampler",
    "nsgaii": "NSGAIISampler",
}
NEEDS = {"gp": ("torch",), "cmaes": ("cmaes",)}  # other packages, which Optuna imports in the middle of a study
PRUNERS = {"median": "MedianPruner", "halving": "SuccessiveHalvingPruner", "hyperband": "HyperbandPruner"}
# Attributes. Of a study: what sweep it is, and the beats of its workers. Of a trial: the choice it stands for again, its worker, its results.
SWEEP, BEAT, CHOICE, WORKER, LINES = "sweep", "beat:", "choice", "worker", "lines"
DRIVERS = {"postgresql": "psycopg", "mysql": "pymysql"}  # those of our extras, where a URL names none
LOCKED = 60.0  # seconds to wait for a SQLite file that another worker writes
DEAD_AFTER = 4  # beats that a worker misses


def optuna_module() -> Any:
    """Optuna, quiet about what each trial gave and what of it is experimental."""
    try:
        import optuna
    except ImportError as error:
        raise UserError("searches by Optuna and sweeps on a storage need it: pip install 'purestep[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


# -- the storage


@contextlib.contextmanager
def storage_at(url: str) -> Iterator[Any]:
    """The storage at a URL: `postgresql://...`, `mysql://...`, `sqlite:///FILE`, or `journal:FILE`, Optuna's journal. Its connections are closed
    when the block ends. Raises UserError for one that is malformed, lacks its driver, or cannot be reached."""
    storage = _reached(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        if hasattr(storage, "engine"):
            storage.engine.dispose()


def _reached(url: str) -> Any:
    for again in (True, True, False):
        try:
            return _opened(url)
        except (ImportError, OSError, ValueError, *lost()) as error:
            if again and isinstance(
                error, lost()
            ):  # workers that begin together all make the tables of a new database, and all but one fail
                time.sleep(0.5)
                continue
            raise UserError(
                f"cannot open the storage {_safe(url)}: {_first_line(error)}. Expected postgresql://USER:PASSWORD@HOST/NAME, mysql://..., "
                "sqlite:///FILE or journal:FILE, a server that answers, and its driver"
            ) from error


def _opened(url: str) -> Any:
    storages, (scheme, _, rest) = optuna_module().storages, url.partition(":")
    if scheme == "journal":
        return storages.JournalStorage(storages.journal.JournalFileBackend(os.path.expanduser(rest)))
    driver, options = DRIVERS.get(scheme), {}
    if scheme == "sqlite":
        options = {"connect_args": {"timeout": LOCKED}}
    return storages.RDBStorage(url if driver is None else f"{scheme}+{driver}:{rest}", engine_kwargs=options)


@contextlib.contextmanager
def reached(url: str) -> Iterator[None]:
    """Whatever a storage that went away raises inside, as a UserError."""
    try:
        yield
    except lost() as error:
        raise UserError(
            f"the storage {_safe(url)} cannot be reached any more: {_first_line(error)}; the same command goes on when it can"
        ) from error


def lost() -> tuple[type[BaseException], ...]:
    """What a storage raises that cannot be reached."""
    from sqlalchemy.exc import SQLAlchemyError

    return (optuna_module().exceptions.StorageInternalError, SQLAlchemyError)


def _safe(url: str) -> str:
    """A URL without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return url


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# -- proposals


def sampler_of(search: str, seed: int, made: int) -> Any:
    """One of Optuna's samplers, seeded for the proposal after `made` others, so that those of one worker alone are the same in each run."""
    options: dict[str, Any] = {"multivariate": True, "constant_liar": True} if search == "tpe" else {}
    return getattr(optuna_module().samplers, SAMPLERS[search])(seed=(seed * 1_000_003 + made) % 2**31, **options)


def check_installed(search: str) -> None:
    """Raises UserError where a sampler's packages are missing."""
    optuna_module()
    for package in NEEDS.get(search, ()):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--search {search} of Optuna needs another package: pip install {package}")


def pruner_of(name: str) -> Any:
    """One of Optuna's pruners, as it stands."""
    pruners = optuna_module().pruners
    return pruners.NopPruner() if name == "none" else getattr(pruners, PRUNERS[name])()


def distributions(space: Space) -> dict[str, "optuna.distributions.BaseDistribution"]:
    """The space in Optuna's terms: ranges as numbers, whole numbers in a row as such, all else as categories."""
    return {one.field: _distribution(one) for one in space.dimensions}


def _distribution(one: Dimension) -> Any:
    kinds = optuna_module().distributions
    if one.values is None:
        return kinds.FloatDistribution(one.low, one.high, log=one.scale == "log")
    values = one.values
    if one.scale == "int" and values == tuple(range(values[0], values[0] + len(values))):
        return kinds.IntDistribution(values[0], values[-1])
    return kinds.CategoricalDistribution([_label(value) for value in values])


def _label(value: Any) -> Any:
    """A value as a category that every storage can keep."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(C.to_dict(value))


def fields_of(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's parameters as the fields of a config."""
    out = {}
    for one in space.dimensions:
        given = params[one.field]
        by_label = {} if one.values is None else {repr(_label(value)): value for value in one.values}
        out[one.field] = by_label.get(repr(given), given)
    return out


def params_of(space: Space, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse: fields of a config as a trial's parameters."""
    return {one.field: _label(fields[one.field]) for one in space.dimensions}


# -- what is there


class Board:
    """The trials of a study by the choices that they stand for. `total`: how many choices there shall be."""

    def __init__(self, trials: Sequence["FrozenTrial"], total: int):
        self.trials = sorted(trials, key=lambda one: one.number)
        self.total, self.choice_of, self.standing = total, {}, {}
        self.originals: dict[int, FrozenTrial] = {}
        asked = 0
        for trial in self.trials:
            choice = trial.user_attrs.get(CHOICE)
            if choice is None:
                choice, asked = asked, asked + 1
            self.choice_of[trial.number] = choice
            self.originals.setdefault(choice, trial)
            if trial.state.name != "FAIL" or LINES in trial.user_attrs:
                self.standing.setdefault(choice, trial)

    @property
    def over(self) -> dict[int, "FrozenTrial"]:
        """The choices that have their results."""
        return {n: one for n, one in self.standing.items() if one.state.is_finished() and n < self.total}

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The results of all choices that are over, in order."""
        return [line for _, trial in sorted(self.over.items()) for line in trial.user_attrs[LINES]]

    @property
    def abandoned(self) -> list[int]:
        """The choices that were begun and have no trial that stands for them."""
        return [n for n in sorted(self.originals) if n not in self.standing and n < self.total]

    def is_spare(self, number: int) -> bool:
        """Whether another trial stands for the choice of this one, or there are enough choices."""
        choice = self.choice_of[number]
        return choice >= self.total or self.standing.get(choice) is None or self.standing[choice].number != number


class Watch:
    """Which workers of a study are dead, by how their beats move under the clock of who looks."""

    def __init__(self):
        self._seen: dict[str, tuple[int, float]] = {}

    def dead(self, beats: Mapping[str, tuple[int, float]], now: float) -> set[str]:
        """The workers among `beats` (count, seconds between two) that are known to be dead."""
        out = set()
        for worker, (count, interval) in beats.items():
            if self._seen.get(worker, (None, 0.0))[0] != count:
                self._seen[worker] = (count, now)
            if now - self._seen[worker][1] > DEAD_AFTER * interval or not _may_live(worker):
                out.add(worker)
        return out


def worker_name() -> str:
    """A name for a worker in this process, told apart from all others: where it runs, the process's number, when that began, and a word."""
    me = psutil.Process()
    return f"{_place()}/{me.pid}/{me.create_time():.2f}/{uuid.uuid4().hex[:8]}"


def _place() -> str:
    """The host and, on Linux, the namespace that process numbers belong to."""
    try:
        return f"{platform.node()}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _may_live(worker: str) -> bool:
    """Whether a worker may be alive: it is elsewhere, or its process is here."""
    place, *process = worker.rsplit("/", 3)
    if place != _place() or len(process) < 3:
        return True
    number, began, _ = process
    try:
        return f"{psutil.Process(int(number)).create_time():.2f}" == began
    except psutil.NoSuchProcess:
        return False
