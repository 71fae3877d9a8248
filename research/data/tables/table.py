"""What a table of records is, and the small things that every kind of table shares."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from research.core.errors import UserError

Record = dict[str, Any]
"""Field name -> str, int, float, bytes, np.ndarray or None. What a format nests deeper stays a list or a dict."""


class Table(Protocol):
    """A length and a pure `record(i)`: the i-th record depends on the content of the source alone."""

    @property
    def name(self) -> str:
        """The specification that the table was made from, for messages."""
        ...

    @property
    def fields(self) -> tuple[str, ...]:
        """The names that a record has."""
        ...

    def __len__(self) -> int: ...

    def record(self, i: int) -> Record:
        """Returns the record at `i`. Raises IndexError outside 0 .. len - 1, and UserError for one that cannot be read."""
        ...

    def identity(self, i: int) -> str:
        """Returns what the split into train, validation and test hashes: the path of a file, else the content."""
        ...

    def digest(self) -> tuple[str, int]:
        """Returns (SHA-256 over the content and the options it is read with, its bytes)."""
        ...


def require_field(table: Table, name: str, option: str) -> None:
    """Raises UserError, naming the command-line `option` and the fields there are, where `table` has no field `name`."""
    if name not in table.fields:
        raise UserError(
            f"{table.name} has no field {name!r}; it has {list(table.fields)}. Name one of them by {option}."
        )


def classes_of(table: Table) -> Mapping[str, tuple[str, ...]]:
    """Returns, for each field whose numbers stand for names, the name of every number; empty where a table knows none."""
    return getattr(table, "classes", {})


def piece_of(table: Table, i: int) -> tuple[int, int]:
    """Returns (which part of its document record i is, of how many): (0, 1) but for a table that cuts long documents (`text.py`)."""
    piece = getattr(table, "piece", None)
    return (0, 1) if piece is None else piece(i)


def check_index(i: int, count: int, name: str) -> None:
    """Raises IndexError where `i` is not one of 0 .. count - 1."""
    if not 0 <= i < count:
        raise IndexError(f"{name} has {count} records; there is no record {i}")


def check_text(record: Record, field: str, where: Callable[[], str]) -> None:
    """Sees to it that a field is text: a list of texts becomes its lines. Raises UserError, saying `where`, for a `field` that is absent, None or
    not text that can be written as UTF-8."""
    text = record[field] = as_text(record.get(field))
    if text is None:
        there = sorted(name for name, value in record.items() if value is not None)
        raise UserError(
            f"{where()} has no field {field!r}; it has {there}. Name the field of the text by --text-field."
        )
    if not isinstance(text, str):
        raise UserError(f"{where()}: field {field!r} is not text but {type(text).__name__}.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"holds half of a surrogate pair at character {error.start}"
        raise UserError(f"{where()}: field {field!r} {half}.") from error


def as_text(value: Any) -> Any:
    """Returns a list of texts as the text with these lines, and any other value as it is."""
    lines = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return "\n".join(value) if lines else value


def content_identity(record: Record) -> str:
    """Returns a line of JSON that is equal for equal records, whatever order their fields are in. Arrays and bytes stand in
    it by their SHA-256."""
    return json.dumps(record, sort_keys=True, default=_describe)


def _describe(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"bytes {hashlib.sha256(value).hexdigest()}"
    if isinstance(value, np.ndarray) and value.dtype != object:
        little_endian = np.ascontiguousarray(value.astype(value.dtype.newbyteorder("<")))
        return f"{value.dtype.name} {value.shape} {hashlib.sha256(little_endian.tobytes()).hexdigest()}"
    return value.tolist() if isinstance(value, np.ndarray) else str(value)


def options_digest(options: str, content: tuple[str, int]) -> tuple[str, int]:
    """Returns the digest `content` with the reading `options` hashed in."""
    return hashlib.sha256(f"{options} {content[0]}".encode("utf-8", "surrogateescape")).hexdigest(), content[1]


@dataclass(frozen=True)
class Joined:
    """Tables of the same kind, one after the other: what several files make."""

    name: str
    fields: tuple[str, ...]
    tables: tuple[Table, ...]
    ends: np.ndarray  # [tables], the records up to and with each table
    digest_all: Callable[[], tuple[str, int]]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def record(self, i: int) -> Record:
        table, place = self._find(i)
        return table.record(place)

    def identity(self, i: int) -> str:
        table, place = self._find(i)
        return table.identity(place)

    def digest(self) -> tuple[str, int]:
        return self.digest_all()

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """See `classes_of`."""
        return classes_of(self.tables[0])

    def _find(self, i: int) -> tuple[Table, int]:
        check_index(i, len(self), self.name)
        at, place = locate(self.ends, i)
        return self.tables[at], place


def join(name: str, tables: Sequence[Table], digest: Callable[[], tuple[str, int]]) -> Joined:
    """Returns `tables` as one; its fields are the first table's. Raises UserError where there is no record at all."""
    ends = np.cumsum([len(table) for table in tables])
    if not tables or ends[-1] == 0:
        raise UserError(f"{name} holds no record: {len(tables)} file(s), none with a record in it.")
    return Joined(name, next(table.fields for table in tables if len(table)), tuple(tables), ends, digest)


def locate(ends: np.ndarray, i: int) -> tuple[int, int]:
    """Returns (piece, place in it) of item `i`, where `ends` counts the items up to the end of every piece, in order."""
    piece = int(np.searchsorted(ends, i, side="right"))
    return piece, i - (int(ends[piece - 1]) if piece else 0)


def flatten(nested: Mapping[str, Any]) -> Record:
    """Returns the leaves of nested mappings, named by their path with dots: {"a": {"b": 1}} gives {"a.b": 1}."""
    flat = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat
