"""`report.html` of a sweep: its best trial as a command, figures, and all trials, in one file that refers to no other. The figures lie beside it,
as PNG and SVG for papers."""

import html
import shlex
from pathlib import Path
from typing import Any

from research.data.files import write_atomically
from research.sweep import figures, results
from research.train.report import PAGE, STYLE, table

FIGURES = "figures"
OWN_STYLE = """
.sweep svg { width: 100%; height: auto; background: #fff; border-radius: 6px; }
.sweep { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 18px; }
section pre { margin-bottom: 18px; overflow-x: auto; }
.trials { overflow-x: auto; }
.trials th { cursor: pointer; text-align: left; }
"""
SORTING = """
for (const head of document.querySelectorAll(".trials th")) head.onclick = () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const key = row => row.cells[column].textContent, sign = head.dataset.up ? -1 : 1;
  head.dataset.up = head.dataset.up ? "" : "1";
  const compare = (x, y) => isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
  const order = (a, b) => key(a) === "" ? 1 : key(b) === "" ? -1 : sign * compare(key(a), key(b));
  body.append(...[...body.rows].sort(order));
};
"""


def write_report(folder: Path) -> Path:
    """Writes the report of a sweep's folder, finished or not, and returns its path. Raises UserError where it is none."""
    described, lines = results.described_in(folder), list(results.read(folder))
    (folder / FIGURES).mkdir(exist_ok=True)
    drawn = [(title, figures.save(folder / FIGURES, name, figure)) for name, title, figure in figures.figures(lines)]
    file = folder / "report.html"
    write_atomically(file, render(folder.absolute().name, described, lines, drawn).encode())
    return file


def render(name: str, described: dict[str, Any], lines: list[dict[str, Any]], drawn: list[tuple[str, str]]) -> str:
    """The page."""
    counts = {
        status: sum(line["status"] == status for line in lines)
        for status in ("complete", "unfinished", "diverged", "stopped")
    }
    kind = "runs" if "comparison" in described else "trials"
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "no trial is over yet"
    shown = "".join(f"<figure><figcaption>{html.escape(title)}</figcaption>{svg}</figure>" for title, svg in drawn)
    body = [
        f"<header><h1>{html.escape(name)}</h1><p>{html.escape(f'{len(lines)} {kind}: {told}')}</p></header>",
        _best(described, lines),
        f'<section class="sweep">{shown}</section>',
        _trials(lines),
        table("Space", described.get("space", {})),
    ]
    return PAGE.format(
        title=html.escape(name), style=STYLE + OWN_STYLE, body="\n".join(filter(None, body)), script=SORTING
    )


def command(described: dict[str, Any], trial: int, fields: dict[str, Any]) -> str:
    """The command that trains a trial by itself, or that shows a run."""
    if "comparison" in described:
        return f"research inspect {shlex.quote(described['comparison'][trial])}"
    options = [word for name, value in fields.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return shlex.join(["research", "train", str(described.get("experiment", "EXPERIMENT")), *options])


def _best(described: dict[str, Any], lines: list[dict[str, Any]]) -> str:
    found = results.best(lines)
    if found is None:
        return ""
    said = f"Best: trial {found['trial']}, held-out loss {found['metric']:.4f}"
    return f"<section><h2>{html.escape(said)}</h2><pre>{html.escape(command(described, found['trial'], found['fields']))}</pre></section>"


def _trials(lines: list[dict[str, Any]]) -> str:
    fields = list(dict.fromkeys(name for line in lines for name in line["fields"]))
    plain = (
        *(("run",) if any("run" in line for line in lines) else ()),
        "trial",
        "status",
        "metric",
        "train_loss",
        "steps",
        "seconds",
    )
    head = "".join(f"<th>{html.escape(name)}</th>" for name in (*plain, *fields))
    ranked = sorted(lines, key=lambda line: (line["metric"] is None, line["metric"], line["trial"]))

    def cells(line: dict[str, Any]) -> str:
        values = [*(line.get(name) for name in plain), *(line["fields"].get(name, "") for name in fields)]
        return "".join(f"<td>{html.escape(_text(value))}</td>" for value in values)

    rows = "".join(f"<tr>{cells(line)}</tr>" for line in ranked)
    return f'<section class="trials"><h2>Trials</h2><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></section>'


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
