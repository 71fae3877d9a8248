"""Search spaces: for each swept field of a config the values, or the range, that it is drawn from.

| spec                  | values                                                                                  |
| --------------------- | --------------------------------------------------------------------------------------- |
| `a,b,c`, `choice:a,b` | those, as the field's type has them; `None` where the field may be off                  |
| `log:LOW:HIGH:N`      | N from LOW to HIGH, equal ratios apart; without N any number, uniform in its logarithm  |
| `lin:LOW:HIGH:N`      | N from LOW to HIGH, equally far apart; without N any number, uniform                    |
| `int:LOW:HIGH[:N]`    | every whole number from LOW to HIGH; with N as many of them, equally far apart          |

Of a field that holds several things a value joins them by `+`, as in `model.patterns=full,sliding+full`.

From Python a spec is a string of these, a list of values, or one value.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import numpy as np

from research.core import config as C
from research.core.errors import UserError

FORMS = "a,b,c, choice:a,b,c, log:LOW:HIGH:N, lin:LOW:HIGH:N or int:LOW:HIGH"
LARGEST = 1_000_000  # members of a grid


@dataclasses.dataclass(frozen=True)
class Dimension:
    """What one field is drawn from: `values`, or where that is None, all numbers from `low` to `high`."""

    field: str
    scale: Literal["choice", "log", "lin", "int"]
    values: tuple[Any, ...] | None
    low: float = 0.0
    high: float = 0.0

    @property
    def count(self) -> float:
        """How many different values there are."""
        if self.values is not None:
            return len(self.values)
        return math.inf if self.low < self.high else 1

    def at(self, u: float) -> Any:
        """The value at a place `u` in [0, 1): uniform places give what random search draws."""
        if self.values is not None:
            return self.values[int(u * len(self.values))]
        if self.scale == "log":
            return float(math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low))))
        return float(self.low + u * (self.high - self.low))


@dataclasses.dataclass(frozen=True)
class Space:
    """Dimensions of a config's fields, each field once."""

    dimensions: tuple[Dimension, ...]

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every combination, the last field fastest. Raises UserError for a range without a number of points, and for too many."""
        for one in self.dimensions:
            if one.values is None:
                raise UserError(
                    f"{one.field} is a range; a grid needs points: {one.scale}:{one.low:g}:{one.high:g}:N, or --search random"
                )
        count = math.prod(one.count for one in self.dimensions)
        if count > LARGEST:
            raise UserError(
                f"the grid has {count:,} members; at most {LARGEST:,}. Give fewer values, or --search random --trials N"
            )
        names = [one.field for one in self.dimensions]
        return (dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*(one.values or () for one in self.dimensions)))  # fmt: skip

    def random(self, trials: int, seed: int) -> Iterator[dict[str, Any]]:
        """So many draws, each field by itself and no two the same. The first n are the same however many follow. Raises UserError for more than
        there are."""
        count = math.prod(one.count for one in self.dimensions)
        if trials > count:
            raise UserError(
                f"--trials is {trials}, but the space has {count} choices; give --trials {count}, or --search grid"
            )
        return itertools.islice(self._draws(seed), trials)

    def _draws(self, seed: int) -> Iterator[dict[str, Any]]:
        names, seen = [one.field for one in self.dimensions], set()
        for n in itertools.count():
            places = np.random.default_rng([seed, n]).random(len(names))
            chosen = tuple(one.at(u) for one, u in zip(self.dimensions, places.tolist(), strict=True))
            if chosen not in seen:
                seen.add(chosen)
                yield dict(zip(names, chosen, strict=True))


def space(base: Any, specs: Mapping[str, Any]) -> Space:
    """The space that specs by dotted field name describe. Raises UserError for a field that is not there, with the nearest name, for a value of
    a wrong type, and for a spec that selects nothing."""
    kinds = dict(C.field_types(base))
    made = []
    for field, spec in specs.items():
        name = field.replace("-", "_")
        if name not in kinds:
            raise UserError(f"there is no field {field!r}; did you mean {C.nearest(name, list(kinds))!r}?")
        made.append(dimension(name, spec, kinds[name]))
    names = [one.field for one in made]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{twice[0]} is given two specs; give one")
    return Space(tuple(made))


def dimension(field: str, spec: Any, hint: Any) -> Dimension:
    """The dimension of a field of the annotated type."""
    several = isinstance(spec, (list, tuple, np.ndarray, range))
    if get_origin(hint) is tuple and several:  # of such fields one value is a sequence itself
        several = len(spec) > 0 and all(isinstance(value, (list, tuple)) for value in spec)
    if several:
        return _choice(field, [value.item() if isinstance(value, np.generic) else value for value in spec], hint)
    if not isinstance(spec, str):
        return _choice(field, [spec], hint)
    kind, colon, rest = spec.partition(":")
    if not colon or kind not in ("log", "lin", "int", "choice"):
        return _choice(field, [_read(word, hint) for word in spec.split(",")] if spec else [], hint)
    if kind == "choice":
        return _choice(field, [_read(word, hint) for word in rest.split(",")] if rest else [], hint)
    return _range(field, spec, kind, rest.split(":"), hint)


def _choice(field: str, values: Sequence[Any], hint: Any) -> Dimension:
    converted = [C.convert(value, hint, field) for value in values]
    if not converted:
        raise UserError(f"{field}= selects nothing; expected {FORMS}")
    unique = tuple(dict.fromkeys(converted))
    if len(unique) < len(converted):
        again = next(value for value in unique if converted.count(value) > 1)
        raise UserError(f"{field} has the value {again!r} more than once; give each value once")
    return Dimension(field, "choice", unique)


def _range(field: str, spec: str, kind: Any, parts: Sequence[str], hint: Any) -> Dimension:
    whole = int in (hint, *get_args(hint)) and float not in (hint, *get_args(hint))
    if not whole and float not in (hint, *get_args(hint)):
        raise UserError(f"{field}={spec}: a range of numbers, but the field is {C.type_name(hint)}")
    try:
        numbers = [float(part) for part in parts[:2]]
        points = int(parts[2]) if len(parts) == 3 else None
    except ValueError:
        numbers, points = [], None
    if len(numbers) != 2 or len(parts) > 3 or not all(map(math.isfinite, numbers)):
        raise UserError(
            f"{field}={spec} is not {kind}:LOW:HIGH:N, as in {kind}:{'1:8' if kind == 'int' else '0.001:0.1:8'}"
        )
    low, high = numbers
    if low > high or (points is not None and points < 1):
        raise UserError(f"{field}={spec} selects nothing: LOW has to be at most HIGH, and N at least 1")
    if kind == "log" and low <= 0:
        raise UserError(f"{field}={spec}: a logarithmic range begins above 0")
    if kind == "int" and (low % 1 or high % 1):
        raise UserError(f"{field}={spec}: the bounds of int: are whole numbers")
    if kind == "int" and points is None:
        if high - low >= LARGEST:
            raise UserError(
                f"{field}={spec} has {high - low + 1:,.0f} values; give int:LOW:HIGH:N with a number of them"
            )
        return dataclasses.replace(_choice(field, range(int(low), int(high) + 1), hint), scale=kind)
    if points is None and not whole:
        C.convert(low, hint, field)
        return Dimension(field, kind, None, low, high)
    if points is None:
        raise UserError(f"{field}={spec}: the field is a whole number; give int:LOW:HIGH or a number of points")
    places = np.geomspace(low, high, points) if kind == "log" else np.linspace(low, high, points)
    if not whole and kind != "int":
        return dataclasses.replace(_choice(field, _rounded(places), hint), scale=kind)
    return dataclasses.replace(_choice(field, list(dict.fromkeys(int(round(x)) for x in places)), hint), scale=kind)


def _rounded(places: np.ndarray) -> list[float]:
    """Points as they would be written: of nine digits, so that 0.01 is 0.01."""
    return list(dict.fromkeys(float(f"{x:.9g}") for x in places.tolist()))


def _read(word: str, hint: Any) -> Any:
    """A word as the JSON value that it would be in a config; the type is checked afterwards."""
    word, kinds = word.strip(), get_args(hint) or (hint,)
    if word == "None" and type(None) in kinds:
        return None
    if bool in kinds and word.lower() in ("true", "false"):
        return word.lower() == "true"
    for kind in (int, float):
        if kind in kinds or (kind is int and float in kinds):
            try:
                return kind(word)
            except ValueError:
                continue
    if get_origin(hint) is tuple:
        return [_read(part, kinds[0]) for part in word.split("+")] if word else []
    return word
