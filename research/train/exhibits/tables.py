"""Numbers and texts in rows: confusions, tables, translations beside their references, subtitles."""

import difflib
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.train.exhibits.pictures import same_number
from research.train.markup import escaped, left_out, note, shortened

CLASSES = 30  # of a table of confusions
ROWS = 200
PAIRS = 50
SEGMENTS = 300
CHARACTERS = 1500  # of a text that is compared
UNSPACED = (
    r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"  # scripts without spaces between words, compared character by character
)
WORDS = re.compile(rf"(?:[{UNSPACED}]|[^\W{UNSPACED}]+|.)\s*", re.DOTALL)  # a word or a sign, with the gap after it


def confusion(matrix: Any, classes: Sequence[str]) -> str:
    """Returns HTML of counts `matrix` (n, n), a row for each true class and a column for each predicted one, each with its share of the row.

    Cells are shaded by their shares, and those of right predictions are framed. Of more than 30 classes those with the most mistakes, in their row
    and column together, are shown. Raises UserError for another shape, or entries that are no counts.
    """
    counts = np.asarray(matrix)
    if counts.ndim != 2 or counts.shape != (len(classes), len(classes)):
        raise UserError(f"confusions have shape {counts.shape} for {len(classes)} classes; expected (n, n)")
    if counts.dtype.kind not in "iuf" or not (counts >= 0).all() or not (counts == np.floor(counts)).all():
        raise UserError(
            f"confusions of type {counts.dtype} have entries that are no counts; expected whole numbers from 0"
        )
    counts = counts.astype(np.int64)
    totals, hits = counts.sum(axis=1), np.diagonal(counts)
    mistakes = totals + counts.sum(axis=0) - 2 * hits
    shown = np.sort(np.argsort(-mistakes, kind="stable")[:CLASSES]).tolist()
    names = [escaped(shortened(classes[j])) for j in shown]
    whole = [f'title="{escaped(classes[j])}"' for j in shown]
    heads = "".join(f'<th scope="col" {full}><span>{name}</span></th>' for full, name in zip(whole, names, strict=True))
    rows = []
    for i, full, name in zip(shown, whole, names, strict=True):
        cells = "".join(_count(int(counts[i, j]), int(totals[i]), i == j) for j in shown)
        rows.append(f'<tr><th scope="row" {full}>{name}</th>{cells}<td class="number">{totals[i]:,}</td></tr>')
    right = f"{hits.sum() / totals.sum():.2%} of {totals.sum():,} right" if totals.sum() else "nothing counted"
    caption = "<caption>rows: true class; columns: predicted class; count and share of the row</caption>"
    head = f'<thead><tr><td></td>{heads}<th scope="col">all</th></tr></thead>'
    body = f'<table class="confusion">{caption}{head}<tbody>{"".join(rows)}</tbody></table>'
    rest = left_out(len(shown), len(classes), "classes")
    return _scrolled("confusions", body) + note(right, rest and f"{rest}, those with the fewest mistakes")


def table(rows: Sequence[Sequence[Any] | Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Returns HTML of rows, each a value for every column or a mapping of some columns to values, numbers at the right of their columns.

    The first 200 rows are shown. Raises UserError for a row of another length, or with a name that is no column.
    """
    found = []
    for i, row in enumerate(rows[:ROWS]):
        unknown = sorted(set(row) - set(columns)) if isinstance(row, Mapping) else []
        if unknown or (not isinstance(row, Mapping) and len(row) != len(columns)):
            given = f"unknown columns {unknown}" if unknown else f"{len(row)} values"
            raise UserError(f"row {i} of a table has {given}; its columns are {list(columns)}")
        found.append([row.get(name) for name in columns] if isinstance(row, Mapping) else list(row))
    numeric = [any(map(_is_number, column)) for column in zip(*found, strict=True)] or [False] * len(columns)
    styles = [' class="number"' if is_numeric else "" for is_numeric in numeric]
    heads = "".join(f'<th scope="col"{s}>{escaped(name)}</th>' for name, s in zip(columns, styles, strict=True))
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in found)
    made = f'<table class="data"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    return _scrolled("table", made) + note(left_out(len(found), len(rows), "rows"))


def pairs(sources: Sequence[str], outputs: Sequence[str], references: Sequence[str]) -> str:
    """Returns HTML of texts, what a model made of them, and what was expected, side by side: words of an output that its reference lacks are struck
    through, and words of a reference that its output lacks are underlined.

    The first 50 are shown, and the first 1,500 characters of each text. Raises UserError for unequal numbers.
    """
    same_number("sources", sources, outputs=outputs, references=references)
    rows, exact = [], sum(o == r for o, r in zip(outputs, references, strict=True))
    for source, output, reference in list(zip(sources, outputs, references, strict=True))[:PAIRS]:
        made, expected = _compared(_cut(output), _cut(reference))
        cells = (f'<td dir="auto">{cell}</td>' for cell in (escaped(_cut(source)), made, expected))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("source", "output", "reference"))
    body = f'<table class="pairs"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    told = f"{exact:,} of {len(sources):,} outputs are their reference" if len(sources) else ""
    key = "struck through: not in the reference; underlined: not in the output" if len(sources) else ""
    return _scrolled("texts beside their references", body) + note(
        key, told, left_out(len(rows), len(sources), "texts")
    )


def subtitles(segments: Sequence[tuple[float, float, str]]) -> str:
    """Returns HTML of `(start, end, text)`, times in seconds, a line each.

    The first 300 are shown. Raises UserError for a segment of other parts, or one that does not end at or after its start, from 0 on.
    """
    rows = []
    for i, segment in enumerate(segments[:SEGMENTS]):
        if len(segment) != 3 or not 0 <= segment[0] <= segment[1] < float("inf"):
            raise UserError(
                f"subtitle {i} is {tuple(segment)!r}; expected (start, end, text), seconds with 0 <= start <= end"
            )
        start, end, text = segment
        times = f'<td class="number">{clock(start)}</td><td class="number">{clock(end)}</td>'
        rows.append(f'<tr>{times}<td dir="auto">{escaped(text)}</td></tr>')
    heads = '<th scope="col" class="number">from</th><th scope="col" class="number">to</th><th scope="col">text</th>'
    body = f'<table class="data"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return _scrolled("subtitles", body) + note(left_out(len(rows), len(segments), "subtitles"))


def clock(seconds: float) -> str:
    """Returns `1:02.345`, or `1:00:02.345` from an hour on."""
    whole = round(float(seconds) * 1000)
    minutes, rest = divmod(whole, 60_000)
    hours, minutes = divmod(minutes, 60)
    tail = f"{rest // 1000:02d}.{rest % 1000:03d}"
    return f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"


def _scrolled(what: str, body: str) -> str:
    """Something wide that scrolls by itself, by keys as well."""
    return f'<div class="scrolled" role="region" aria-label="{what}" tabindex="0">{body}</div>'


def _count(count: int, total: int, right: bool) -> str:
    share = count / total if total else 0.0
    style = " ".join(["number", *(["hit"] if right else []), *(["zero"] if not count else [])])
    told = f"<small>{f'{share:.0%}' if share >= 0.005 else '&lt;1%'}</small>" if count else ""
    return f'<td class="{style}" style="--share:{share:.3f}">{count:,}{told}</td>'


def _is_number(value: Any) -> bool:
    return isinstance(value, (numbers.Real, np.number)) and not isinstance(value, (bool, np.bool_))


def _cell(value: Any) -> str:
    if value is None:
        return "<td></td>"
    if not _is_number(value):
        told = {True: "yes", False: "no"}[bool(value)] if isinstance(value, (bool, np.bool_)) else value
        return f'<td dir="auto">{escaped(told)}</td>'
    number = value.item() if isinstance(value, np.generic) else value
    text = f"{number:,}" if isinstance(number, int) else f"{number:.6g}"
    return f'<td class="number">{escaped(text)}</td>'


def _cut(text: str) -> str:
    text = str(text)
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} … {len(text) - CHARACTERS:,} more characters"


def _compared(output: str, reference: str) -> tuple[str, str]:
    """The two texts, escaped, each with what the other lacks marked. Gaps are not compared.

    In more than 200 words, what is repeated all over finds no place of its own (`autojunk`): a model that says one thing again and again would take
    the cube of its words.
    """
    a, b = WORDS.findall(output), WORDS.findall(reference)
    matcher = difflib.SequenceMatcher(None, [word.strip() for word in a], [word.strip() for word in b])
    left, right = [], []
    for kind, i, j, k, m in matcher.get_opcodes():
        left.append(_marked("".join(a[i:j]), "del", kind == "equal"))
        right.append(_marked("".join(b[k:m]), "ins", kind == "equal"))
    return "".join(left), "".join(right)


def _marked(text: str, tag: str, same: bool) -> str:
    """`text` escaped, within the element `tag` up to the gap at its end unless it is the same in both."""
    kept = text.rstrip()
    return escaped(text) if same or not kept else f"<{tag}>{escaped(kept)}</{tag}>{escaped(text[len(kept) :])}"
