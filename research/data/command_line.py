"""What the commands of `research data` share: `SOURCE [options]`, and `--json` for one JSON object on the last line."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from research.core import config as C
from research.core.errors import UserError


def parse(default: Any, argv: Sequence[str], prog: str) -> tuple[str, Any]:
    """Returns (the first word, the options that follow it). `prog` ends with the name of the first word. Raises UserError for a first word that
    is missing and for options that cannot be used; `--help` prints and exits."""
    if argv and argv[0] in ("-h", "--help"):
        C.parse(default, argv[:1], prog, type(default).__doc__ or "")
    if not argv or argv[0].startswith("-"):
        raise UserError(f"usage: {prog} [options]; {prog.rpartition(' ')[0]} --help lists them")
    return argv[0], C.parse(default, argv[1:], prog, type(default).__doc__ or "")


def show(lines: Iterable[str], found: dict[str, Any], as_json: bool) -> int:
    """Prints lines for a person and, if asked for, `found` as the last line; returns the exit code 0."""
    for line in lines:
        print(line)
    if as_json:
        print(json.dumps(found), flush=True)
    return 0


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Returns the lines of a table: the first column to the left, numbers to the right with commas."""
    cells = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return [
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]  # fmt: skip


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:,.3g}"
    return f"{value:,}" if isinstance(value, int) else "-" if value is None else str(value)
