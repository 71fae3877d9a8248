"""What metrics take: arrays without NaN, labels that are classes, as many of the one as of the other."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from research.core.errors import UserError

Classes = int | Sequence[str]  # how many there are, or their names


def floats(values: Any, what: str, *, ndim: int | tuple[int, ...] = 1, finite: bool = False) -> np.ndarray:
    """The values as float64 with `ndim` dimensions, one of several. Raises UserError for none at all, for another number of dimensions
    and, naming its index, for NaN; with `finite`, for infinity as well."""
    found = np.asarray(values, np.float64)
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if found.ndim not in allowed or not found.size:
        expected = " or ".join(map(str, allowed))
        raise UserError(f"{what} have the shape {found.shape}; expected {expected} dimension(s), none of them empty")
    wrong = np.argwhere(~np.isfinite(found) if finite else np.isnan(found))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        where = place[0] if len(place) == 1 else place
        raise UserError(
            f"{what}: number {where} is {found[place]}, as {len(wrong)} are; expected {'finite numbers' if finite else 'no NaN'}"
        )
    return found


def same_length(one: Sequence | np.ndarray, other: Sequence | np.ndarray, what: str, than: str) -> None:
    """Raises UserError where the two do not have a partner each."""
    if len(one) != len(other):
        raise UserError(f"{len(one)} {what} for {len(other)} {than}; expected one for each")


def labels(values: Any, classes: int, what: str = "labels") -> np.ndarray:
    """The labels as int64 (n,). Raises UserError for none, for what are no whole numbers, and for one outside [0, classes)."""
    found = np.asarray(values)
    if found.ndim != 1 or not found.size or found.dtype.kind not in "biu":
        raise UserError(
            f"{what} are {found.dtype} of shape {found.shape}; expected whole numbers in one dimension, at least one"
        )
    found = found.astype(np.int64)
    outside = np.flatnonzero((found < 0) | (found >= classes))
    if len(outside):
        raise UserError(f"{what}: number {outside[0]} is {found[outside[0]]}; there are classes 0 to {classes - 1}")
    return found


def number_of(classes: Classes) -> int:
    """How many classes there are."""
    return classes if isinstance(classes, int) else len(classes)


def none_empty(counts: np.ndarray, classes: Classes, what: str) -> None:
    """Raises UserError, naming it, for a class without any example."""
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        named = f"the class {empty[0]}" if isinstance(classes, int) else f"the class {classes[empty[0]]!r}"
        raise UserError(
            f"{what} is undefined: {named} has no example; score a set that has one, or leave the class out"
        )
