"""Pairs of texts, as translation has them: the fields `source` and `target`.

- `pairs:a.en,b.de`: line i of the first file with line i of the second. Blank lines count, so both have as many lines.
- `pairs:PATH`: a TSV file, folder or glob. Where the first line has the columns `source` and `target`, those columns;
  else every line is a pair of its first two columns.

The identity of a pair is its source, so that all targets of one source are in the same part.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from research.core.errors import UserError
from research.data.files import digest_files
from research.data.tables.finding import Files, find_parts, refuse_packed
from research.data.tables.index import IndexedFile, index_file
from research.data.tables.lines import LineTable, Malformed, split_tsv
from research.data.tables.table import Record, Table, check_index, join, options_digest

FIELDS = ("source", "target")
_SUFFIXES = (".tsv", ".tab", ".txt")


def open_pairs(spec: str, pattern: str) -> dict[str, Table]:
    """Returns the tables that `pattern` names, by part (see the forms above).

    Raises UserError for files that cannot be read or hold no pair, a line without two columns, and two files with
    different numbers of lines.
    """
    first, comma, second = pattern.partition(",")
    if comma and not Path(pattern).expanduser().exists():
        return {"all": _aligned(spec, Path(first).expanduser(), Path(second).expanduser())}
    return {part: _joined(spec, files) for part, files in find_parts(spec, pattern, _SUFFIXES).items()}


@dataclass(frozen=True)
class AlignedFiles:
    """Line i of one file with line i of another."""

    name: str
    files: tuple[IndexedFile, IndexedFile]
    fields: tuple[str, ...] = FIELDS

    def __len__(self) -> int:
        return len(self.files[0])

    def record(self, i: int) -> Record:
        check_index(i, len(self), self.name)
        return {field: file.text(i).rstrip("\r\n") for field, file in zip(FIELDS, self.files, strict=True)}

    def identity(self, i: int) -> str:
        return self.record(i)["source"]

    def digest(self) -> tuple[str, int]:
        return options_digest("aligned", digest_files(zip(FIELDS, (file.path for file in self.files), strict=True)))


def _aligned(spec: str, *paths: Path) -> AlignedFiles:
    for path in paths:
        if not path.is_file():
            raise UserError(f"there is no file {str(path)!r} (data source {spec!r}).")
    refuse_packed([("", path) for path in paths])
    source, target = (index_file(path, blank=None) for path in paths)
    if len(source) != len(target):
        raise UserError(
            f"{source.path} has {len(source)} lines and {target.path} has {len(target)}: "
            "line i of one belongs to line i of the other, so both need as many."
        )
    if not len(source):
        raise UserError(f"{spec} holds no pair: both files are empty.")
    return AlignedFiles(spec, (source, target))


def _joined(spec: str, files: Files) -> Table:
    tables = list(_tables(spec, files))
    return join(spec, tables, lambda: options_digest("pairs", digest_files(files)))


def _tables(spec: str, files: Files) -> Iterator[LineTable]:
    for _, path in files:
        file = index_file(path, blank=b"\r\n")
        header = split_tsv(file.text(0)) if len(file) else []
        named = all(field in header for field in FIELDS)
        places = (header.index("source"), header.index("target")) if named else (0, 1)
        yield LineTable(spec, FIELDS, file, partial(_pair, places=places), int(named), text_field="source")


def _pair(line: str, places: tuple[int, int]) -> Record:
    values = split_tsv(line)
    if len(values) <= max(places):
        raise Malformed(f"has {len(values)} column(s) between tabs, expected at least {max(places) + 1}.")
    return {field: values[place] for field, place in zip(FIELDS, places, strict=True)}
