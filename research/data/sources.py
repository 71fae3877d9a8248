"""Text by name: one line of specification gives the documents to train on, to validate with and to test.

| specification                | a document                                                   |
| ---------------------------- | ------------------------------------------------------------ |
| `python_stdlib`              | a `*.py` file of the standard library of this Python         |
| `text:PATH` or a plain path  | a file, every visible file below a folder, or of a glob      |
| any form of `tables/spec.py` | a field of a record: JSONL, CSV, TSV, Parquet, pairs, TFDS, ... |

A source may come with parts of its own, named train, validation and test. What it lacks of them is held out of the rest by a hash: of a file's
path, of a record's text (`tables/splits.py`), so adding documents moves no other one, and equal records land on the same side. Where that
leaves nothing to train on or to validate with, as with a single file, the text is split by position: all of it in order, the first
`int(0.9 * n)` of its n characters to train on, the rest to validate with (the rule of nanoGPT's character-level recipes).
"""

import difflib
import glob
import hashlib
import itertools
import os
import re
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from research.core.errors import UserError
from research.data.files import digest_files, files_below, find_files
from research.data.tables.spec import KINDS, open_tables
from research.data.tables.splits import PARTS as SPLITS
from research.data.tables.splits import bucket
from research.data.tables.table import Table, as_text, piece_of, require_field
from research.data.tables.text import TextFiles

TRAIN_FRACTION_BY_POSITION = 0.9
UNIT = (2 << 20, 32 << 20)  # least and most bytes of the files behind what is prepared at a time
UNITS = 64  # of a source between these
_SPLIT_RULE = "2"  # part of every fingerprint: raise it when the rules above change

# Folders of the standard library that are not the same on every machine: what users install, caches, and the test
# suites, which many distributions and container images leave out. What remains is 11 to 12 MB, whatever the build of
# Python.
_STDLIB_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
_FIELD = re.compile(r"\{([^{}]+)\}")


class Unit(NamedTuple):
    """Consecutive records of one of a source's tables, which are prepared together."""

    part: str
    start: int
    stop: int


class Row(NamedTuple):
    """A text of a split: a document, or a part of one. `begins`, `ends`: a document begins with it, ends with it and others follow;
    `record`: its number; `learned`: whether it is, or is only read."""

    split: str
    text: str
    record: int
    begins: bool
    ends: bool
    learned: bool = True


@dataclass(frozen=True, eq=False)
class Source:
    """Documents of text, read when asked for. `tables`: {"all": table}, or parts of the source's own (`tables/spec.py`). `text_field`: the field
    that holds the text, or a text with fields in braces, such as `{question} {answer}`. `learn`: the fields in braces of which the text is learned,
    while the rest is only read; None: all of it."""

    name: str
    tables: Mapping[str, Table]
    text_field: str = "text"
    learn: tuple[str, ...] | None = None

    def documents(self, split: str) -> Iterator[str]:
        """Returns the texts of `split` (train, validation or test) in a fixed order; none is empty, and a long document comes in parts.

        Raises UserError at the document that cannot be read, and where there is no text, or too little to hold any out.
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
        _ = self._boundary  # there is text
        return (row.text for unit in self.units for row in self.rows(unit) if row.split == split)

    @cached_property
    def units(self) -> list[Unit]:
        """All records, in pieces that several processes can share: about a 64th of the source, within the bounds of `UNIT`."""
        least, most = UNIT
        bytes_each = min(max(self.size // UNITS, least), most)
        found = []
        for part in (part for part in ("all", *SPLITS) if part in self.tables):
            records, size = len(self.tables[part]), self._digests[part][1]
            count = max(1, min(records, -(-size // bytes_each)))
            found += [Unit(part, i * records // count, (i + 1) * records // count) for i in range(count)]
        return found

    def rows(self, unit: Unit) -> Iterator[Row]:
        """Returns the texts of a unit, empty ones left out."""
        table = self.tables[unit.part]
        for i in range(unit.start, unit.stop):
            spans = self._spans(table, i)
            if spans:
                part, parts = piece_of(table, i)
                followed = part + 1 == parts and i + 1 < len(table)
                sides = self._sides(unit.part, i, "".join(text for text, _ in spans))
                at = 0
                for number, (split, piece) in enumerate(sides):
                    own = list(_between(spans, at, at + len(piece)))
                    at += len(piece)
                    for place, (text, learned) in enumerate(own):
                        begins = place == 0 and (part == 0 or number > 0)
                        ends = followed and number + 1 == len(sides) and place + 1 == len(own)
                        yield Row(split, text, i, begins, ends, learned)

    def _text(self, table: Table, i: int) -> str:
        return "".join(text for text, _ in self._spans(table, i))

    def _spans(self, table: Table, i: int) -> list[tuple[str, bool]]:
        """The text of a record in parts, none empty, each with whether it is learned."""
        record = table.record(i)
        if "{" not in self.text_field:
            return [(record[self.text_field], True)] if record[self.text_field] else []
        fields = _FIELD.findall(self.text_field)
        if lacking := [name for name in fields if record.get(name) is None]:
            raise UserError(
                f"{self.name}, record {i} has no value in the field {lacking[0]!r}, which --text-field names."
            )
        between = _FIELD.split(self.text_field)  # texts, and at odd places the names of fields
        parts = [
            (str(as_text(record[one])) if n % 2 else one, self.learn is None or (n % 2 == 1 and one in self.learn))
            for n, one in enumerate(between)
        ]
        runs = itertools.groupby((part for part in parts if part[0]), key=lambda part: part[1])
        return [("".join(text for text, _ in run), learned) for learned, run in runs]

    def _sides(self, part: str, i: int, text: str) -> list[tuple[str, str]]:
        """The splits that a record's text belongs to, each with what it has of it."""
        if part not in ("all", "train"):
            return [(part, text)]
        if self._boundary is None:
            split = bucket(self.tables[part].identity(i))
            return [("train" if split in self.tables else split, text)]
        row, within = self._boundary
        cut = len(text) if i < row else within if i == row else 0
        return [(split, piece) for split, piece in (("train", text[:cut]), ("validation", text[cut:])) if piece]

    @cached_property
    def _boundary(self) -> tuple[int, int] | None:
        """Where a source that is split by position is cut, (record, characters of it); None for one that is split by hash."""
        part = "all" if "all" in self.tables else "train"
        table, sides = self.tables[part], set()
        if "validation" in self.tables:
            return None
        for i in range(len(table)):
            side = bucket(table.identity(i))
            if side not in sides and self._text(table, i):
                sides.add(side)
            if sides >= {"train", "validation"}:
                return None
        sizes = [len(self._text(table, i)) for i in range(len(table))]
        left = boundary = int(TRAIN_FRACTION_BY_POSITION * sum(sizes))
        if sum(sizes) == 0:
            raise UserError(f"{self.name} holds no text. Give a source with at least a few thousand characters.")
        if boundary == 0:
            raise UserError(f"{self.name} holds {sum(sizes)} character(s): too few to hold some out for evaluation.")
        for row, size in enumerate(sizes):
            if left < size:
                return row, left
            left -= size
        raise AssertionError("the boundary lies within the text")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the content and the rule that splits it: equal fingerprints give equal documents."""
        content = " ".join(f"{part} {digest}" for part, (digest, _) in sorted(self._digests.items()))
        learn = "" if self.learn is None else f" {','.join(sorted(self.learn))}"
        return hashlib.sha256(f"{_SPLIT_RULE} {self.text_field}{learn} {content}".encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of the files behind the source: close to the UTF-8 bytes of its text, and cheap."""
        return sum(size for _, size in self._digests.values())

    @cached_property
    def _digests(self) -> dict[str, tuple[str, int]]:
        return {part: table.digest() for part, table in self.tables.items()}


def resolve(spec: str, text_field: str | None = None, learn: str | None = None) -> Source:
    """Returns the source that `spec` names (see the table above). `text_field` names the field that holds the text, or says how fields make it;
    None: `text`, and of pairs both sides with a tab between them. `learn`: the fields of such a text that are learned, with commas between
    them; None: all of the text.

    Raises UserError for an unknown form, a missing file or data set, a pattern that matches nothing, and a field that is not there.
    """
    source = _resolve(spec, text_field)
    return source if learn is None else replace(source, learn=_learned(source, learn))


def _learned(source: Source, learn: str) -> tuple[str, ...]:
    """The names of the fields to learn. Raises UserError for one that the text is not made of."""
    names = tuple(name.strip() for name in learn.split(","))
    made_of = _FIELD.findall(source.text_field)
    if strangers := [name for name in names if name not in made_of]:
        of = f"makes the text of {', '.join(made_of)}" if made_of else f"names one field, {source.text_field!r}"
        raise UserError(
            f"--learn names {strangers[0]!r}, but --text-field {of}. Give both, as in --text-field '{{question}} {{answer}}' --learn answer."
        )
    return names


def _between(spans: Sequence[tuple[str, bool]], start: int, stop: int) -> Iterator[tuple[str, bool]]:
    """What lies between two places of the text that spans are of, in parts as they are."""
    at = 0
    for text, learned in spans:
        piece = text[max(0, start - at) : max(0, stop - at)]
        if piece:
            yield piece, learned
        at += len(text)


def _resolve(spec: str, text_field: str | None) -> Source:
    kind, colon, rest = spec.partition(":")
    if spec == "python_stdlib":
        return Source(spec, {"all": _python_stdlib()})
    if colon and kind in (*KINDS, "text"):
        if not rest:
            raise UserError(f"the data source {spec!r} names nothing after the colon. Known forms: {FORMS}")
        return Source(spec, {"all": _text(spec, rest)}) if kind == "text" else _of_records(spec, kind, text_field)
    if spec and (
        os.path.lexists(os.path.expanduser(spec)) or (glob.has_magic(spec) and glob.glob(spec, recursive=True))
    ):
        return Source(spec, {"all": _text(spec, spec)})
    near = difflib.get_close_matches(spec, ["python_stdlib", "text:", *(f"{kind}:" for kind in KINDS)], n=1)
    advice = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"unknown data source {spec!r}: there is no such file and no such form.{advice} Known forms: {FORMS}"
    )


FORMS = (
    "python_stdlib, text:PATH (a file, a folder or a glob), jsonl:PATH, json:PATH, csv:PATH, tsv:PATH, parquet:PATH, hf:FOLDER, pairs:A,B, "
    "pairs:PATH, tfds:NAME[/CONFIG][:SPLIT], prepared:FOLDER, mix:FILE.json"
)


def _of_records(spec: str, kind: str, text_field: str | None) -> Source:
    field = text_field or ("{source}\t{target}" if kind == "pairs" else "text")
    names = _FIELD.findall(field) if "{" in field else [field]
    tables = open_tables(spec, text_field=None if "{" in field else field)
    tables = {part: table for part, table in tables.items() if part in ("all", *SPLITS)}
    if not {"all", "train"} & tables.keys():
        raise UserError(f"{spec} has the parts {', '.join(tables) or 'of no known name'}, and none to train on.")
    for table in tables.values():
        for name in names:
            require_field(table, name, "--text-field")
    return Source(spec, tables, field)


def _text(spec: str, pattern: str) -> Table:
    files = find_files(spec, pattern)
    if not any(os.path.getsize(path) for _, path in files):
        raise UserError(f"{pattern!r} is empty: {len(files)} file(s), 0 bytes (data source {spec!r}).")
    return TextFiles(spec, files, partial(digest_files, files))


def _python_stdlib() -> Table:
    """Sources in other encodings, which a few builds ship, are empty."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [(name, path) for name, path in files_below(root, _STDLIB_SKIPPED) if name.endswith(".py")]
    if not files:
        raise UserError(f"this Python has no readable standard library in {root}: give your own text with text:PATH.")
    return TextFiles("python_stdlib", files, partial(digest_files, files), lenient=True)
