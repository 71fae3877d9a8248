"""Examples: the records of a task that is no stream of text, as arrays in memory, and their batches as pure functions of the step.

Sources have names. `@source("digits")` makes a function one: it returns Examples, and `digits` as a run's `data` stands for them; what follows a
colon (`shapes:4000`) is handed to it as text. A file of an experiment may define sources of its own.
"""

import dataclasses
import difflib
import hashlib
import importlib
import pkgutil
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.data.loader import Batch, ByIndex, ByStep, Stretch, check, shuffled
from research.data.permutation import permute
from research.data.tokenizer import Tokenizer

Arrays = dict[str, np.ndarray]
"""By name, each with as many records as the others: [n, ...]."""


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Records to train on and records held out, by the names that a task reads; `classes` are the names of labels, in order.

    Raises UserError for arrays of unequal length, and for a part without records.
    """

    train: Arrays = dataclasses.field(repr=False)
    eval: Arrays = dataclasses.field(repr=False)
    classes: tuple[str, ...] = ()
    tokenizer: Tokenizer | None = None
    name: str = "examples"

    def __post_init__(self):
        for part, arrays in (("train", self.train), ("eval", self.eval)):
            lengths = {name: len(array) for name, array in arrays.items()}
            if len(set(lengths.values())) != 1 or not min(lengths.values()):
                raise UserError(
                    f"{self.name}: the part {part!r} has {lengths or 'nothing'}; expected arrays of one length, at least 1"
                )
        if self.train.keys() != self.eval.keys():
            raise UserError(
                f"{self.name}: the parts have {sorted(self.train)} and {sorted(self.eval)}; expected the same names"
            )

    @cached_property
    def source_fingerprint(self) -> str:
        """SHA-256, 64 hex digits, of all records, their names and their classes."""
        made = hashlib.sha256("\0".join(self.classes).encode())
        for part in (self.train, self.eval):
            for name, array in sorted(part.items()):
                made.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
                made.update(
                    "\0".join(array).encode() if array.dtype == object else np.ascontiguousarray(array).tobytes()
                )
        return made.hexdigest()

    @property
    def tokenizer_fingerprint(self) -> str:
        """That of the tokeniser; nothing without one."""
        return "" if self.tokenizer is None else self.tokenizer.fingerprint

    @property
    def described(self) -> str:
        """How many records there are, in words."""
        return f"{count(self.train):,} examples to learn from, {count(self.eval):,} held out"


def count(arrays: Arrays) -> int:
    """How many records arrays have."""
    return len(next(iter(arrays.values())))


def take(arrays: Arrays, records: Any) -> Arrays:
    """Some of the records, by their numbers, a mask or a slice."""
    return {name: array[records] for name, array in arrays.items()}


def split(arrays: Arrays, held_out: float, seed: int = 0) -> tuple[Arrays, Arrays]:
    """`(train, eval)`: a share of the records is held out, at least one, chosen by the seed alone."""
    n = count(arrays)
    order = permute(np.arange(n, dtype=np.uint64), n, np.array([seed], np.uint64)).astype(np.int64)
    cut = max(1, round(n * held_out))
    return take(arrays, np.sort(order[cut:])), take(arrays, np.sort(order[:cut]))


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleBatches(ByStep):
    """Training batches of examples, each epoch in an order of its own. A batch has the arrays by their names, [B, ...], and `weights` float32 [B],
    ones, where the examples bring none."""

    arrays: Arrays = dataclasses.field(repr=False)
    batch_size: int
    context: int
    seed: int
    part: tuple[int, int] = (0, 1)

    def __post_init__(self):
        check(self)

    def read(self, records: np.ndarray) -> Batch:
        return _weighted(take(self.arrays, self._numbers(records)), np.ones(len(records), np.float32))

    def stretches(self, records: np.ndarray) -> list[list[Stretch]]:
        """Returns the record of each row."""
        return [[Stretch(0, number, number + 1)] for number in self._numbers(records).tolist()]

    def _numbers(self, records: np.ndarray) -> np.ndarray:
        return shuffled(records, count(self.arrays), self.seed)[0].astype(np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleRows(ByIndex):
    """Every example once, in order. What fills up the last batch is zeros of weight 0."""

    arrays: Arrays = dataclasses.field(repr=False)
    batch_size: int
    context: int
    limit_batches: int | None = None
    part: tuple[int, int] = (0, 1)

    @property
    def count(self) -> int:
        return count(self.arrays)

    def read(self, numbers: np.ndarray) -> Batch:
        there = numbers < self.count
        rows = _weighted(take(self.arrays, np.where(there, numbers, 0)), there.astype(np.float32))
        return {
            name: np.where(there.reshape(-1, *[1] * (x.ndim - 1)), x, np.zeros((), x.dtype)) for name, x in rows.items()
        }


def _weighted(rows: Batch, weights: np.ndarray) -> Batch:
    return rows if "weights" in rows else {**rows, "weights": weights}


_SOURCES: dict[str, Callable[[str], Examples]] = {}


def source(name: str) -> Callable[[Callable[[str], Examples]], Callable[[str], Examples]]:
    """Makes a function the source of a name. The function takes what stands behind the colon, or nothing, as text."""

    def register(function: Callable[[str], Examples]) -> Callable[[str], Examples]:
        _SOURCES[name] = function
        return function

    return register


def open_source(data: str) -> Examples:
    """The examples of a source by its name. Raises UserError, with the nearest name, where there is none."""
    name, _, rest = data.partition(":")
    if name not in _SOURCES:
        package = importlib.import_module("research.data.made")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"research.data.made.{module.name}")
    if name not in _SOURCES:
        near = difflib.get_close_matches(name, _SOURCES, 1, 0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f"there is no source of examples {name!r}; there are {', '.join(sorted(_SOURCES)) or 'none'}{hint}"
        )
    return dataclasses.replace(_SOURCES[name](rest), name=data)
