"""Tables in text files with a record a line, or an item of a list: JSONL, JSON, and CSV and TSV whose first line names the columns.

| form         | a record                                                                                            |
| ------------ | --------------------------------------------------------------------------------------------------- |
| `jsonl:PATH` | a line with a JSON object; its values as JSON has them; a field of the first record that is absent is None |
| `json:PATH`  | an object of the list that the file is (`array.py`)                                                 |
| `csv:PATH`   | a record of RFC 4180: values between commas, in double quotes where they hold commas, quotes or newlines |
| `tsv:PATH`   | a line, split at every tab (IANA text/tab-separated-values: no quoting, no escapes)                   |

CSV and TSV values are text, numbers too. PATH is a file, a folder or a glob; blank lines are no records.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from research.core.errors import UserError
from research.data.files import digest_files
from research.data.tables.array import index_array, parse_element
from research.data.tables.finding import Files, find_parts
from research.data.tables.index import IndexedFile, index_file
from research.data.tables.table import (
    Record,
    Table,
    check_index,
    check_text,
    content_identity,
    join,
    options_digest,
)

SUFFIXES = {"jsonl": (".jsonl", ".ndjson", ".json"), "json": (".json",), "csv": (".csv",), "tsv": (".tsv", ".tab")}
_BLANK = {"jsonl": b" \t\r\n\v\f", "csv": b"\r\n", "tsv": b"\r\n"}
_CSV_VALUE = re.compile(r'"([^"]*(?:""[^"]*)*)"|([^",\r\n]*)')


class Malformed(ValueError):
    """A line is not what its format asks for; whoever knows its file and number says so to the user."""


def open_lines(spec: str, kind: str, pattern: str, text_field: str | None = None) -> dict[str, Table]:
    """Returns the tables of the files that `pattern` names, by part, for `kind` "jsonl", "json", "csv" or "tsv".

    With `text_field` that field is the identity of a record, and each record has to have text in it.
    Raises UserError for files that cannot be read, hold no record, or have columns that disagree.
    """
    parts = find_parts(spec, pattern, SUFFIXES[kind])
    return {part: open_line_files(spec, kind, files, text_field) for part, files in parts.items()}


def open_line_files(spec: str, kind: str, files: Files, text_field: str | None = None) -> Table:
    """Returns the given files as one table (see `open_lines`)."""
    tables = [_open_file(spec, kind, path, text_field) for _, path in files]
    if kind in ("csv", "tsv"):
        _same_columns(tables)

    def digest() -> tuple[str, int]:
        return options_digest(f"{kind} {text_field}", digest_files(files))

    return join(spec, tables, digest)


@dataclass(frozen=True)
class LineTable:
    """The records of one file. The first `skipped` lines of the file are none."""

    name: str
    fields: tuple[str, ...]
    file: IndexedFile
    parse: Callable[[str], Record]
    skipped: int
    text_field: str | None

    def __len__(self) -> int:
        return len(self.file) - self.skipped

    def record(self, i: int) -> Record:
        check_index(i, len(self), self.name)
        text = self.file.text(i + self.skipped)
        try:
            record = self.parse(text)
        except Malformed as error:
            raise UserError(f"{self.where(i)} {error}") from error
        if self.text_field is not None:
            check_text(record, self.text_field, partial(self.where, i))
        return record

    def identity(self, i: int) -> str:
        record = self.record(i)
        return content_identity(record) if self.text_field is None else record[self.text_field]

    def digest(self) -> tuple[str, int]:
        return digest_files([("", self.file.path)])

    def where(self, i: int) -> str:
        """Returns "PATH, line N" of the record, for messages."""
        return self.file.where(i + self.skipped)


def _open_file(spec: str, kind: str, path: Path, text_field: str | None) -> LineTable:
    if kind in ("jsonl", "json"):
        file = index_array(path) if kind == "json" else index_file(path, blank=_BLANK[kind])
        parse = parse_element if kind == "json" else json.loads
        fields = tuple(_first_object(file, parse)) if len(file) else ()
        return LineTable(spec, fields, file, partial(_json_record, fields=fields, parse=parse), 0, text_field)
    file = index_file(path, blank=_BLANK[kind], quoted=kind == "csv")
    if not len(file):
        raise UserError(f"{path} is empty: expected a first line with the names of the columns.")
    split = split_csv if kind == "csv" else split_tsv
    try:
        fields = tuple(split(file.text(0)))
        _check_names(fields)
    except Malformed as error:
        raise UserError(f"{file.where(0)} {error}") from error
    return LineTable(spec, fields, file, partial(_named_values, fields=fields, split=split), 1, text_field)


def _first_object(file: IndexedFile, parse: Callable[[str], Any]) -> Record:
    try:
        return _json_record(file.text(0), (), parse)
    except Malformed as error:
        raise UserError(f"{file.where(0)} {error}") from error


def _json_record(text: str, fields: tuple[str, ...], parse: Callable[[str], Any]) -> Record:
    try:
        record = parse(text)
    except (ValueError, RecursionError) as error:
        hint = " A file that is one list of objects is named json:PATH." if text.strip() == "[" else ""
        raise Malformed(f"is not JSON: {error}.{hint}") from error
    if not isinstance(record, dict):
        hint = " A file that is one list is named json:PATH." if isinstance(record, list) else ""
        raise Malformed(f"is not a JSON object with named fields but a {type(record).__name__}.{hint}")
    return {**dict.fromkeys(fields), **record}


def _named_values(text: str, fields: tuple[str, ...], split: Callable[[str], list[str]]) -> Record:
    values = split(text)
    if len(values) != len(fields):
        raise Malformed(f"has {len(values)} values; the first line names {len(fields)} columns: {list(fields)}.")
    return dict(zip(fields, values, strict=True))


def split_tsv(line: str) -> list[str]:
    """Returns the values of a line of TSV."""
    return line.rstrip("\r\n").split("\t")


def split_csv(text: str) -> list[str]:
    """Returns the values of one record of CSV (RFC 4180, section 2). Raises Malformed where it is none."""
    text = text.rstrip("\r\n")
    if '"' not in text and "\r" not in text:
        return text.split(",")
    values, at = [], 0
    while True:
        match = _CSV_VALUE.match(text, at)
        assert match is not None  # the second alternative matches nothing at all
        values.append(match[2] if match[1] is None else match[1].replace('""', '"'))
        at = match.end()
        if at == len(text):
            return values
        if text[at] != ",":
            raise Malformed(f"is not CSV: {text[at]!r} at character {at} where a comma or the end was expected.")
        at += 1


def _check_names(fields: tuple[str, ...]) -> None:
    wrong = next((name for name in fields if not name.strip() or fields.count(name) > 1), None)
    if wrong is not None:
        fault = f"names two columns {wrong!r}" if wrong.strip() else "has a column without a name"
        raise Malformed(f"{fault}: {list(fields)}. The first line has to name the columns, each by a name of its own.")


def _same_columns(tables: list[LineTable]) -> None:
    for table in tables[1:]:
        if table.fields != tables[0].fields:
            raise UserError(
                f"{table.file.path} has the columns {list(table.fields)}, and {tables[0].file.path} has "
                f"{list(tables[0].fields)}: files of one table have the same columns."
            )
