"""Which part of a source a record belongs to: train, validation or test, by a hash of its identity.

A record's part depends on its identity alone, so that adding records moves no other one, and equal records are in the
same part.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from research.core.errors import UserError
from research.data.tables.table import Record, Table, check_index, classes_of, options_digest

PARTS = ("train", "validation", "test")
HELD_OUT_FRACTION = 0.05  # of the records, for validation
TEST_FRACTION = 0.05


def bucket(identity: str) -> str:
    """Returns "validation" where the first 8 bytes of the SHA-256 of `identity`, as a fraction of 2^64, are below
    HELD_OUT_FRACTION, "test" for the next TEST_FRACTION, and "train" above."""
    first = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).digest()[:8]
    number = int.from_bytes(first, "big")
    if number < HELD_OUT_FRACTION * 2**64:
        return "validation"
    return "test" if number < (HELD_OUT_FRACTION + TEST_FRACTION) * 2**64 else "train"


@dataclass(frozen=True)
class Part:
    """The records of a table at `indices`, in that order."""

    table: Table
    indices: np.ndarray  # integers, [records]

    @property
    def name(self) -> str:
        return self.table.name

    @property
    def fields(self) -> tuple[str, ...]:
        return self.table.fields

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """See `classes_of`."""
        return classes_of(self.table)

    def __len__(self) -> int:
        return len(self.indices)

    def record(self, i: int) -> Record:
        return self.table.record(self._row(i))

    def identity(self, i: int) -> str:
        return self.table.identity(self._row(i))

    def digest(self) -> tuple[str, int]:
        """Returns the digest of the whole table with the indices hashed in, and the bytes of the whole."""
        chosen = hashlib.sha256(self.indices.astype("<u8").tobytes()).hexdigest()
        return options_digest(f"part {chosen}", self.table.digest())

    def _row(self, i: int) -> int:
        check_index(i, len(self), self.name)
        return int(self.indices[i])


def split(tables: Mapping[str, Table]) -> dict[str, Table]:
    """Returns {"train", "validation", "test"} of an opened source, no two with a record in common.

    A part that the source comes with is taken as it is; one that it lacks is what `bucket` puts there of "train", or
    of "all", which then is without it. A part may be empty where there are few records. This reads every record once
    where a part is lacking. Raises UserError for a source with neither "train" nor "all".
    """
    whole = tables.get("train", tables.get("all"))
    if whole is None:
        raise UserError(f"there is nothing to train on: the source has the parts {sorted(tables)} and no 'train'.")
    lacking = [part for part in PARTS[1:] if part not in tables]
    if not lacking:
        return {part: tables[part] for part in PARTS}
    number = {part: lacking.index(part) + 1 if part in lacking else 0 for part in PARTS}
    sides = np.fromiter((number[bucket(whole.identity(i))] for i in range(len(whole))), np.uint8, len(whole))
    found: dict[str, Table] = {part: Part(whole, np.flatnonzero(sides == number[part])) for part in ("train", *lacking)}
    return {part: found[part] if part in found else tables[part] for part in PARTS}
