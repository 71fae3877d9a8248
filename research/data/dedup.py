"""`research data dedup`: the records of a source without duplicates, and without those that hold parts of a benchmark, as JSONL."""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.data import command_line, contamination, duplicates, sources
from research.data.files import writing
from research.data.sources import SPLITS, Source, Unit
from research.data.tables.table import Record, Table

PROG = "research data dedup SOURCE"
_SHOWN = 10  # items of a benchmark that are listed


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Writes the records of SOURCE, of several equal ones the first, to a new file of JSONL. Of a source with parts of its own the part to train on
    is read."""

    out: str | None = None  # the file to write
    # of records: the field that holds the text, or a text with fields in braces; None: text
    text_field: str | None = None
    near: bool = False  # near duplicates, too
    # least Jaccard similarity of near duplicates, between 5-grams of words; None: any candidate counts
    threshold: float | None = 0.8
    against: str | None = None  # a source of benchmark items: records that share an n-gram with one are dropped
    ngram: int = 13  # words of an n-gram of --against
    json: bool = False  # the last line is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors


def main(argv: Sequence[str]) -> int:
    """`research data dedup SOURCE --out FILE.jsonl [options]`."""
    source, arguments = command_line.parse(Arguments(), argv, PROG)
    if arguments.out is None:
        raise UserError("--out is missing; name the file to write, as in --out kept.jsonl")
    found = deduplicate(source, arguments.out, arguments)
    return command_line.show(lines(found), found, arguments.json)


@dataclasses.dataclass(frozen=True, eq=False)
class _Texts:
    """The texts of the records at `chosen` of a table, read each time they are iterated over."""

    source: Source
    table: Table
    chosen: np.ndarray

    def __iter__(self) -> Iterator[str]:
        return (text for _, text in numbered(self.source, self.table, self.chosen))


def numbered(source: Source, table: Table, chosen: np.ndarray | None = None) -> Iterator[tuple[int, str]]:
    """Returns (number, text) of the records of one of a source's tables that have text, of those at `chosen`, ascending, if it is given."""
    whole = Source(source.name, {"test": table}, source.text_field)  # the part of which every text is in one split
    ranges = [(0, len(table))] if chosen is None else ((i, i + 1) for i in chosen.tolist())
    for start, stop in ranges:
        yield from ((row.record, row.text) for row in whole.rows(Unit("test", start, stop)))


def deduplicate(spec: str, out: str | Path, arguments: Arguments = Arguments()) -> dict[str, Any]:
    """Writes the records of a source that are kept to `out`, whole or not at all, and returns the counts as JSON values.

    Dropped are, in this order: records without text, equal texts, near duplicates (`duplicates.near`), records that share an n-gram with a
    benchmark (`contamination.find`). Raises UserError where nothing is kept, for a file that is there already or cannot be written, for a
    record that JSON cannot hold, and as those functions do.
    """
    source, path = sources.resolve(spec, arguments.text_field), _new_file(Path(out).expanduser())
    table = source.tables.get("train", source.tables.get("all"))
    if table is None:
        raise UserError(f"{spec} has the parts {', '.join(source.tables)}, and none to train on to be read.")
    benchmark = None if arguments.against is None else _benchmark(arguments)
    full = np.array([number for number, _ in numbered(source, table)], np.int64)
    found: dict[str, Any] = {"source": spec, "out": str(path), "records": len(table), "empty": len(table) - len(full)}
    exact = duplicates.exact(_Texts(source, table, full))
    chosen, found["exact"] = full[exact.kept], dataclasses.asdict(duplicates.counts(exact))
    if arguments.near:
        near = duplicates.near(_Texts(source, table, chosen), threshold=arguments.threshold)
        chosen, found["near"] = chosen[near.kept], dataclasses.asdict(duplicates.counts(near))
    if benchmark is not None:
        report = contamination.scan(benchmark, numbered(source, table, chosen))
        chosen = np.setdiff1d(chosen, contamination.contaminated(report))
        found["against"] = {"source": arguments.against, **contamination.counts(benchmark, report)}
    if not len(chosen):
        raise UserError(f"zero of the {len(table)} records of {spec} are left; nothing is written. Drop fewer of them.")
    found["kept"] = len(chosen)
    with writing(path) as file:
        for i in chosen.tolist():
            file.write(_line(table.record(i), f"record {i} of {spec}"))
    return found


def _new_file(path: Path) -> Path:
    if os.path.lexists(path):
        raise UserError(f"{path} is there already; give a new file by --out, or remove it.")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} into.")
    return path


def _benchmark(arguments: Arguments) -> contamination.Benchmark:
    source = sources.resolve(arguments.against or "")
    items = [text for part in ("all", *SPLITS) if part in source.tables for _, text in numbered(source, source.tables[part])]  # fmt: skip
    return contamination.index_benchmark(items, arguments.ngram)


def _line(record: Record, where: str) -> bytes:
    """A record as a line of JSONL. Arrays are lists."""
    try:
        text = json.dumps(record, ensure_ascii=False, default=_plain)
        return f"{text}\n".encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape
        return f"{json.dumps(record, default=_plain)}\n".encode()
    except TypeError as error:
        raise UserError(f"{where} cannot be written as JSON: {error}. Give a source whose fields are text and numbers.") from error  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"it holds {type(value).__name__}")


def lines(found: dict[str, Any]) -> list[str]:
    """Returns what `deduplicate` found for a person."""
    out = [f"{found['records']:,} records of {found['source']}", f"  {found['empty']:,} without text"]
    for name in ("exact", "near"):
        if name in found:
            one = found[name]
            out.append(f"  {one['dropped']:,} {name} duplicates: {one['clusters']:,} clusters, the largest of {one['largest']:,}")  # fmt: skip
    out += _against_lines(found["against"]) if "against" in found else []
    return [*out, f"{found['kept']:,} kept in {found['out']}"]


def _against_lines(found: dict[str, Any]) -> list[str]:
    items = f"{found['found']:,} of {found['items']:,} items of {found['source']}"
    out = [
        f"  {found['contaminated']:,} share an n-gram with {items}; {found['too_short']:,} items are too short to be found"
    ]
    ranked = sorted(found["by_item"], key=lambda item: (-item["documents"], item["item"]))
    for one in ranked[:_SHOWN]:
        out.append(f"    item {one['item']}: {one['documents']:,} records, at most {one['overlap']:.0%} of its words")
    return [*out, f"    and {len(ranked) - _SHOWN:,} more items"] if len(ranked) > _SHOWN else out
