"""`research compare RUN RUN ...`: runs beside each other as a sweep's trials are, by the config fields in which they differ."""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.core import config as C
from research.core.errors import UserError
from research.data.command_line import table
from research.data.files import write_atomically
from research.sweep import report, results
from research.train import rundir
from research.train.config import HOST_ONLY

PROG = "research compare RUN RUN"
SHOWN = ("metric", "bits_per_byte", "train_loss", "steps", "tokens", "seconds")
LEFT_OUT = HOST_ONLY - {"steps"}
SAME = ("data", "tokenizer")  # fingerprints: losses of other ones mean something else


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compares runs, finished or not: the fields in which they differ beside their losses, their curves, and the figures of a sweep."""

    out: str = "comparison"  # a folder for report.html, the figures and results.jsonl
    json: bool = False  # the last line is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors


def main(argv: Sequence[str]) -> int:
    """`research compare RUN RUN ... [options]`."""
    names = [word for n, word in enumerate(argv) if not word.startswith("-") and not (n and argv[n - 1] == "--out")]
    if set(argv) & {"-h", "--help"}:
        C.parse(Arguments(), ["--help"], PROG, Arguments.__doc__ or "")
    arguments: Arguments = C.parse(
        Arguments(), [word for word in argv if word not in names], PROG, Arguments.__doc__ or ""
    )
    if len(names) < 2:
        raise UserError(f"usage: {PROG} ... [options]; {len(names)} run(s) given, expected at least 2 run directories")
    lines, unlike = compared([Path(name).expanduser() for name in names])
    for name in unlike:
        print(
            f"the runs differ in their {name}: their losses are not comparable, their bits per byte at best",
            file=sys.stderr,
        )
    folder = Path(arguments.out).expanduser()
    write(folder, lines)
    print("\n".join(shown(lines, by="bits_per_byte" if unlike else "metric")))
    print(f"\n{folder / 'report.html'}")
    if arguments.json:
        print(json.dumps({"runs": lines, "unlike": unlike, "report": str(folder / "report.html")}), flush=True)
    return 0


def compared(paths: Sequence[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns a line for every run, as results.jsonl has them for trials, `run` being its path; and in which of data and tokeniser they differ.
    Raises UserError for a folder that is no run's and one that is named twice."""
    if twice := [path for n, path in enumerate(paths) if path.resolve() in {p.resolve() for p in paths[:n]}]:
        raise UserError(f"{twice[0]} is given twice; give different runs")
    stored = [rundir.read_config(path) for path in paths]
    flat = [{k: v for k, v in C.flat(one["config"]).items() if k not in LEFT_OUT} for one in stored]
    names = [
        name
        for name in dict.fromkeys(n for one in flat for n in one)
        if len({json.dumps(one.get(name)) for one in flat}) > 1
    ]
    lines = [
        _line(n, path, {name: one.get(name) for name in names})
        for n, (path, one) in enumerate(zip(paths, flat, strict=True))
    ]
    prints = [one.get("identity", {}) for one in stored]
    unlike = [name for name in SAME if len({json.dumps(one.get(name)) for one in prints}) > 1]
    return lines, unlike


def _line(number: int, path: Path, fields: dict[str, Any]) -> dict[str, Any]:
    metrics, result = rundir.read_metrics(path), rundir.read_result(path)
    curve = {
        split: [[one["step"], results.finite(one.get("loss"))] for one in metrics if one.get("split") == split]
        for split in ("train", "eval")
    }
    held_out = [one for one in metrics if one.get("split") == "eval"]
    last = held_out[-1] if held_out else {}
    train = [one for one in metrics if one.get("split") == "train"]
    loss = last.get("loss")
    return {
        "trial": number, "run": str(path), "status": "complete" if result else "unfinished", "fields": fields,
        "metric": loss if loss is not None and math.isfinite(loss) else None, "bits_per_byte": last.get("bits_per_byte"),
        "train_loss": results.finite(train[-1].get("loss")) if train else None, "steps": metrics[-1]["step"] if metrics else 0,
        "tokens": train[-1].get("tokens") if train else None, "seconds": metrics[-1].get("time") if metrics else None, "curve": curve,
        "rungs": [],
    }  # fmt: skip


def write(folder: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Writes a comparison's folder, or one anew that is a comparison's already. Raises UserError for a folder that holds something else."""
    described = {"comparison": [line["run"] for line in lines]}
    try:
        if folder.exists() and any(folder.iterdir()) and "comparison" not in results.described_in(folder):
            raise UserError(f"{folder} holds a sweep, no comparison; give another folder by --out")
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (
            (results.SWEEP, json.dumps(described, indent=1)),
            (results.RESULTS, "".join(json.dumps(line) + "\n" for line in lines)),
            (results.TABLE, results.table(lines)),
        ):
            write_atomically(folder / name, content.encode())
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}; give another folder by --out") from error
    report.write_report(folder)


def shown(lines: Sequence[dict[str, Any]], by: str) -> list[str]:
    """The runs as a table, the best first by the loss or by bits per byte."""
    fields = list(lines[0]["fields"])
    ranked = sorted(lines, key=lambda line: (line[by] is None, line[by]))
    rows = [
        [line["run"], *(line[name] for name in SHOWN), *(_said(line["fields"][name]) for name in fields)]
        for line in ranked
    ]
    return table(["run", "loss", *SHOWN[1:], *fields], rows)


def _said(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) and not value.isprintable() else str(value)
