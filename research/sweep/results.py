"""A sweep's folder: what was asked, and the trials that are over, one line each.

sweep.json       the base config, the space and how it is searched: what a sweep that goes on has to agree with
results.jsonl    one object a line for every trial that is over, whole or absent, never changed
results.csv      made of it, without the curves
report.html      see report.py                      .lock    held by the process that runs it
"""

import csv
import fcntl
import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from research.core import config as C
from research.core.errors import UserError
from research.data.files import write_atomically
from research.sweep.members import Member

SWEEP, RESULTS, TABLE, LOCK = "sweep.json", "results.jsonl", "results.csv", ".lock"
LEFT_OUT = ("curve", "rungs", "fields")  # of the table


class Folder:
    """A sweep's folder, held by this process until `close`."""

    def __init__(self, path: Path, described: dict[str, Any], wait: bool = False):
        """Opens a folder for the sweep that `described` describes, new or begun. Raises UserError for one of another sweep, for one that another
        process holds, unless it shall `wait`, and for one that cannot be written."""
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = open(path / LOCK, "wb")  # noqa: SIM115
        except OSError as error:
            raise UserError(
                f"cannot write the sweep's folder {path}: {error.strerror or error}; give another by --out"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            self._lock.close()
            raise UserError(
                f"another process runs the sweep in {path}; wait for it, or give another folder by --out"
            ) from error
        try:
            self._agree(described)
            self.lines = list(read(path))
            _cut_back(path / RESULTS)
        except BaseException:
            self.close()
            raise

    def _agree(self, described: dict[str, Any]) -> None:
        file = self.path / SWEEP
        if not file.exists():
            if (self.path / RESULTS).exists():
                raise UserError(
                    f"{self.path} has a {RESULTS} but no {SWEEP} that says what it is of; give a new folder by --out"
                )
            write_atomically(file, json.dumps(described, indent=1).encode())
            return
        found = described_in(self.path)
        refuse_other(
            f"{self.path} holds another sweep",
            found,
            described,
            "Give a new folder by --out, or ask for the same sweep to go on.",
        )

    def add(self, line: dict[str, Any]) -> None:
        """Adds a trial that is over. It is on disk, whole, when this returns."""
        self.lines.append(line)
        content = (json.dumps(line) + "\n").encode()
        try:
            with open(self.path / RESULTS, "ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {self.path / RESULTS}: {error.strerror or error}; the sweep goes on from here when there is space"
            ) from error

    def write_table(self) -> None:
        """Writes results.csv anew."""
        write_atomically(self.path / TABLE, table(self.lines).encode())

    def close(self) -> None:
        self._lock.close()


def refuse_other(what: str, found: dict[str, Any], asked: dict[str, Any], advice: str) -> None:
    """Raises UserError naming the first thing in which the description of a sweep that is there differs from the one that is asked for."""
    one, other = (C.flat(json.loads(json.dumps(value))) for value in (found, asked))
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            raise UserError(f"{what}: its {name} is {one.get(name)!r}, and {other.get(name)!r} is asked for. {advice}")


def described_in(path: Path) -> dict[str, Any]:
    """What a folder says of its sweep. Raises UserError where it is no sweep's."""
    try:
        found = json.loads((path / SWEEP).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no sweep's folder: {path / SWEEP} cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path / SWEEP} does not describe a sweep")
    return found


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a folder's results; what a killed process left of a last one is left out. Raises UserError for a line that is none."""
    file = path / RESULTS
    content = file.read_bytes() if file.exists() else b""
    for number, line in enumerate(content.split(b"\n")[:-1]):
        try:
            value = json.loads(line)
            assert isinstance(value["trial"], int) and isinstance(value["fields"], dict)
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise UserError(
                f"{file}, line {number + 1} is no result of a trial; remove the line, and the trial runs again"
            ) from error
        yield value


def _cut_back(file: Path) -> None:
    """Takes away what a killed process left of a last line."""
    if file.exists():
        whole = file.read_bytes().rpartition(b"\n")
        if whole[2]:
            os.truncate(file, len(whole[0]) + len(whole[1]))


def line(member: Member, status: str, group: int) -> dict[str, Any]:
    """The result of a member that goes no further, as JSON values. `status`: complete, diverged or stopped."""
    program, config, step = member.program, member.trial.config, member.step
    last = member.evals[-1][1] if member.evals else None
    loss = finite(last) if status != "diverged" else None
    known = [loss for _, loss in member.evals if math.isfinite(loss)]
    tokens = step * config.step_tokens
    return {
        "trial": member.trial.number, "status": status, "fields": member.trial.fields, "seed": config.seed, "group": group, "steps": step,
        "tokens": tokens, "params": program.n_params, "flops": tokens * program.flops_per_token, "metric": loss, "eval_loss": loss,
        "best_eval_loss": min(known, default=None), "train_loss": finite(member.train[-1][1]) if member.train else None,
        "bits_per_byte": None, **({} if loss is None else member.measures), "seconds": member.seconds,
        "curve": {"train": _plain(member.train), "eval": _plain(member.evals)}, "rungs": _plain(member.rungs),
    }  # fmt: skip


def finite(value: float | None) -> float | None:
    """The value, or None for what JSON lacks."""
    return value if value is not None and math.isfinite(value) else None


def _plain(points: Sequence[tuple[int, float]]) -> list[list[Any]]:
    return [[step, finite(value)] for step, value in points]


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Results as CSV, by number of the trial; swept fields are columns under their dotted names."""
    lines = sorted(lines, key=lambda one: one["trial"])
    fields = list(dict.fromkeys(name for one in lines for name in one["fields"] if name != "seed"))
    plain = list(dict.fromkeys(name for one in lines for name in one if name not in LEFT_OUT))
    out = io.StringIO()
    writer = csv.DictWriter(out, [*plain[:2], *fields, *plain[2:]], lineterminator="\n")
    writer.writeheader()
    for one in lines:
        writer.writerow({**one["fields"], **{name: one.get(name) for name in plain}})
    return out.getvalue()


def best(lines: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The complete trial of the least loss, the first of equal ones; None without any."""
    known = [one for one in lines if one["status"] == "complete" and one["metric"] is not None]
    return min(known, key=lambda one: (one["metric"], one["trial"]), default=None)
