"""The form of every augmentation: a frozen dataclass that is called on a batch of arrays with a key.

`augmentation(batch, key, strength=None)` returns a new batch. A batch is a dict of arrays with a leading axis of rows; what an augmentation does
not know is left as it is. Every augmentation has a `strength`, and at strength 0 it returns what it was given, exactly. Dataclasses are
pytrees whose leaves are strengths and tables, while everything else is static: under `jax.jit(augment)(batch, key, chain)` one compiled
program serves all strengths, and `jax.vmap` goes over keys or over stacked strengths.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from research.core.dtypes import at_least_float32
from research.core.errors import UserError

Batch = dict[str, jax.Array]
"""Arrays by name, each with a leading axis of rows."""
T = TypeVar("T")


def leaves(*names: str) -> Callable[[type[T]], type[T]]:
    """A decorator that makes a dataclass a pytree with the fields of these names as leaves and the others static."""

    def register(cls: type[T]) -> type[T]:
        static = [field.name for field in dataclasses.fields(cls) if field.name not in names]  # pyright: ignore[reportArgumentType]
        jax.tree_util.register_dataclass(cls, data_fields=list(names), meta_fields=static)
        return cls

    return register


@dataclass(frozen=True)
class Augmentation(abc.ABC):
    """What all augmentations share: a strength, checks of the numbers and choices given, and the override of the strength in a call.

    `RANGES` and `CHOICES` say what fields may hold. Numbers that are traced are not checked, nor are arrays.
    """

    strength: ArrayLike
    RANGES: ClassVar[Mapping[str, tuple[float, float]]] = {"strength": (0, math.inf)}
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __post_init__(self):
        name = type(self).__name__
        for field, (low, high) in self.RANGES.items():
            value = getattr(self, field)
            if isinstance(value, (int, float, np.number)) and not (low <= value <= high and math.isfinite(value)):
                expected = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
                raise UserError(f"{field} of {name} is {value}; expected a number {expected}")
        for field, choices in self.CHOICES.items():
            value = getattr(self, field)
            if isinstance(value, str) and value not in choices:
                raise UserError(f"{field} of {name} is {value!r}; expected one of {', '.join(choices)}")

    def __call__(self, batch: Batch, key: jax.Array, strength: ArrayLike | None = None) -> Batch:
        """Returns the batch augmented. A `strength`, which may be traced, is taken instead of the field. Raises UserError for a batch without the
        array that is augmented, or with one of a wrong kind, and for a strength out of range that is not traced."""
        return (self if strength is None else dataclasses.replace(self, strength=strength)).apply(batch, key)

    @abc.abstractmethod
    def apply(self, batch: Batch, key: jax.Array) -> Batch:
        """Returns the batch augmented at the strength of the field."""

    def need(self, batch: Batch, name: str, axes: tuple[int, ...], kind: type = jnp.floating) -> jax.Array:
        """The array of a name. Raises UserError where it is missing, has another number of axes or is no array of the kind (`jnp.floating` or
        `jnp.integer`)."""
        who = type(self).__name__
        if name not in batch:
            raise UserError(f"{who} needs {name!r} in the batch, which has {', '.join(sorted(batch)) or 'nothing'}")
        array = jnp.asarray(batch[name])
        if array.ndim not in axes:
            expected = " or ".join(map(str, axes))
            raise UserError(
                f"{who} got {name!r} of shape {array.shape}; expected {expected} axes, the first of them rows"
            )
        if not jnp.issubdtype(array.dtype, kind):
            hint = "; divide images by 255 first" if name == "image" else ""
            expected = "floating" if kind is jnp.floating else "whole"
            raise UserError(f"{who} got {name!r} of {array.dtype}; expected {expected} numbers{hint}")
        return array


class Rows(Augmentation):
    """An augmentation of one array of floating numbers, each row by itself under a key of its own.

    `ARRAY` is the array's name, `AXES` the numbers of axes that it may have. Rows are augmented in at least float32 and keep their dtype.
    """

    ARRAY: ClassVar[str]
    AXES: ClassVar[tuple[int, ...]]

    def apply(self, batch: Batch, key: jax.Array) -> Batch:
        """Returns the batch with the array's rows augmented."""
        array = self.need(batch, self.ARRAY, self.AXES)
        made = jax.vmap(self.row)(at_least_float32(array), jax.random.split(key, len(array)))
        return {**batch, self.ARRAY: made.astype(array.dtype)}

    @abc.abstractmethod
    def row(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Returns one row augmented, of the shape that it had."""
