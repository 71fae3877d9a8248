"""A run directory: everything needed to repeat, resume, read and show a run, held by one process at a time.

config.json      the config, what resuming must agree on, versions, device, git revision, and what these were before
metrics.jsonl    one record a line, whole or absent; cut back to the restored step on resume
samples.txt      samples as the run learned, likewise
train.log        what was printed           tokenizer.json   the run's tokeniser
checkpoints/     see checkpoint.py          status.json      the result, once finished
exhibits/        see exhibits/store.py      report.html      see report.py      .lock   held by the process that trains
"""

import datetime
import fcntl
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from research.core import config as core_config
from research.core.errors import UserError
from research.data.files import write_atomically

SCHEMA = 1
CONFIG, METRICS, SAMPLES, LOG, STATUS, LOCK = (
    "config.json",
    "metrics.jsonl",
    "samples.txt",
    "train.log",
    "status.json",
    ".lock",
)
# What `fresh` deletes, in this order: a kill in between leaves an unfinished run, and last of all no run.
HELD = (
    STATUS,
    "checkpoints",
    METRICS,
    SAMPLES,
    LOG,
    "exhibits",
    "report.html",
    "profile",
    "tensorboard",
    "wandb",
    "tokenizer.json",
    CONFIG,
)
VERSIONED = ("purestep", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers")
SAMPLE_HEAD = re.compile(rb"===== step (\d+), (\d+) bytes =====\n")


class RunDir:
    """An open run directory. `open` it in a `with` statement; the operating system drops the lock when the process ends."""

    def __init__(self, path: Path, lock: int):
        self.path, self._lock = path, lock
        self._track: Callable[[dict[str, Any]], None] | None = None
        _open_runs.add(self)

    @classmethod
    def open(
        cls, path: str | Path, config: dict, identity: dict, *, resume: bool = True, fresh: bool = False
    ) -> "RunDir":
        """Creates the directory, or checks that the run in it is this one; with `fresh`, deletes the run in it first.

        Raises UserError when it cannot be written, another process trains in it, it holds a run that disagrees in its identity
        (each differing field with both values), it holds something else, or it holds a run and `resume` is false.
        """
        path = Path(path).expanduser().absolute()
        try:
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path, _lock(path))
        except OSError as error:
            raise _cannot_write(path, error) from None
        try:
            run._prepare(config, identity, resume, fresh)
        except BaseException as error:
            run.close()
            raise _cannot_write(path, error) if isinstance(error, OSError) else error from None
        return run

    def _prepare(self, config: dict, identity: dict, resume: bool, fresh: bool) -> None:
        entries = sorted(p.name for p in self.path.iterdir() if not p.name.startswith("."))
        exists = CONFIG in entries
        if entries and not exists:
            raise UserError(
                f"{self.path} is not a run directory: it holds {', '.join(entries[:3])} and no {CONFIG}; choose another with --run-dir"
            )
        described = _plain({"schema": SCHEMA, "config": config, "identity": identity, **surroundings()})
        if exists and fresh:
            self._clear()
        elif exists:
            stored = read_config(self.path)
            if not resume:
                raise UserError(
                    f"{self.path} already holds a run; drop --no-resume to go on with it, or use --fresh or another --run-dir"
                )
            _check_identity(self.path, stored.get("identity", {}), described["identity"])
            described["history"] = _history(stored, described)
        write_atomically(self.path / CONFIG, _pretty(described))

    def _clear(self) -> None:
        """Deletes what a run directory holds, and nothing else."""
        for entry in (self.path / name for name in HELD):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)

    def __enter__(self) -> "RunDir":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives up the lock."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def track(self, tracker: Callable[[dict[str, Any]], None]) -> None:
        """Passes every metrics record to `tracker` too."""
        self._track = tracker

    def write_metrics(self, record: dict[str, Any]) -> None:
        """Appends one line. Numbers that are not finite are written as null, so that every line is JSON."""
        append(self.path / METRICS, json.dumps(_plain(record), allow_nan=False).encode() + b"\n")
        if self._track is not None:
            self._track(record)

    def write_sample(self, step: int, text: str) -> None:
        """Appends a sample under a heading that says its step and length."""
        data = text.encode(errors="replace")
        append(self.path / SAMPLES, b"===== step %d, %d bytes =====\n%s\n" % (step, len(data), data))

    def write_log(self, line: str) -> None:
        """Appends a line with the time of day."""
        now = datetime.datetime.now().isoformat(timespec="seconds")
        append(self.path / LOG, f"{now} {line}\n".encode(errors="replace"))

    def cut_back(self, step: int) -> None:
        """Drops the metrics and samples after `step`, and a torn last line: what follows writes them again.

        A run that starts again from nothing cuts back to -1, before the sample of step 0.
        """
        lines = _lines(self.path / METRICS)
        if any(_record(line) is None for line in lines[:-1]):  # a kill tears the last line alone
            aside = self.path / f"{METRICS}.damaged"
            shutil.copyfile(self.path / METRICS, aside)
            print(f"{METRICS} is damaged: what cannot be read is left out, and a copy kept as {aside}", file=sys.stderr)
        kept = [line for line in lines if (r := _record(line)) is not None and r["step"] <= step]
        _rewrite(self.path / METRICS, kept)
        _rewrite(self.path / SAMPLES, [entry for number, entry in _samples(self.path) if number <= step])
        (self.path / STATUS).unlink(missing_ok=True)

    def finished(self, conditions: dict[str, Any]) -> dict[str, Any] | None:
        """The result of a run that ended under the same stop conditions; None for one that has to go on."""
        try:
            status = json.loads((self.path / STATUS).read_text())
            result = status["result"] if status["conditions"] == _plain(conditions) else None
            return result if isinstance(result, dict) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def finish(self, result: dict[str, Any], conditions: dict[str, Any]) -> None:
        """Marks the run as over. Raises UserError when that cannot be written."""
        write_atomically(self.path / STATUS, _pretty(_plain({"conditions": conditions, "result": result})))


_open_runs: "weakref.WeakSet[RunDir]" = weakref.WeakSet()


def _close_in_child() -> None:
    """A forked worker that outlives its parent would otherwise keep the parent's lock."""
    for run in list(_open_runs):
        run.close()


os.register_at_fork(after_in_child=_close_in_child)


def _lock(path: Path) -> int:
    """A lock on the directory that dies with this process. Raises UserError when another process has it."""
    handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
    except BlockingIOError:
        holder = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise UserError(
            f"{path} is being trained by process {holder}; wait for it, or choose another --run-dir"
        ) from None
    except OSError:
        os.close(handle)
        raise
    return handle


def _check_identity(path: Path, stored: dict[str, Any], given: dict[str, Any]) -> None:
    absent = "(absent)"
    names = sorted(name for name in stored.keys() | given.keys() if stored.get(name, absent) != given.get(name, absent))
    if names:
        differing = "; ".join(
            f"{name}: {stored.get(name, absent)!r} there, {given.get(name, absent)!r} now" for name in names
        )
        raise UserError(
            f"{path} holds a run of another config ({differing}); use another --run-dir, or --fresh to delete it"
        )


def _history(stored: dict[str, Any], described: dict[str, Any]) -> list[dict[str, Any]]:
    """What the config and surroundings of earlier starts were where they differed from the start after."""
    history = stored.pop("history", [])
    before, now = core_config.flat(stored), core_config.flat(described)
    changed = {name: before.get(name) for name in sorted(before | now) if before.get(name) != now.get(name)}
    return (
        [*history, {"until": datetime.datetime.now().isoformat(timespec="seconds"), "was": changed}]
        if changed
        else history
    )


def read_config(path: str | Path) -> dict[str, Any]:
    """The parsed config.json of a run directory. Raises UserError when it is missing or damaged."""
    file = Path(path) / CONFIG
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not a run directory: it has no {CONFIG}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    kinds = {"config": dict, "identity": dict, "history": list}
    if not isinstance(stored, dict) or "config" not in stored:
        raise UserError(f"{file} is not a run's config: expected an object with a `config`")
    for name, kind in kinds.items():
        if not isinstance(stored.get(name, kind()), kind):
            raise UserError(
                f"{file} is damaged: its `{name}` is {stored[name]!r}; bring back a copy, or start again with --fresh"
            )
    return stored


def holds_run(path: Path) -> bool:
    """Whether a folder is a run directory, be it a damaged one, and not a model in another layout."""
    if (path / "checkpoints").is_dir() or (path / METRICS).is_file():
        return True
    try:
        stored = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(stored, dict) and "config" in stored


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, in order; a torn last line is left out."""
    return [record for line in _lines(Path(path) / METRICS) if (record := _record(line)) is not None]


def read_samples(path: str | Path) -> list[tuple[int, str]]:
    """(step, text) of samples.txt, in order."""
    return [(step, entry.partition(b"\n")[2][:-1].decode(errors="replace")) for step, entry in _samples(Path(path))]


def read_result(path: str | Path) -> dict[str, Any] | None:
    """What a finished run ended with; None for one that is not finished."""
    try:
        return json.loads((Path(path) / STATUS).read_text())["result"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def surroundings() -> dict[str, Any]:
    """What the run ran on: versions, git revision, devices."""
    devices = jax.devices()
    versions = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    where = {
        "kind": devices[0].device_kind,
        "platform": devices[0].platform,
        "count": len(devices),
        "processes": jax.process_count(),
    }
    return {"versions": versions, "git": git_revision(), "device": where}


def git_revision() -> str | None:
    """The commit of the source tree, with `+` when it has changes; None outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # installed elsewhere: a repository around it is not ours
        return None

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _plain(value: Any) -> Any:
    """`value` as JSON has it: NumPy and JAX scalars as numbers, what is not finite as null, paths and such as text."""
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if hasattr(value, "item"):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def _pretty(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(
        f"run directory {path} cannot be written: {error.strerror or error}; choose another with --run-dir"
    )


def append(file: Path, data: bytes) -> None:
    """All of `data` or nothing. Raises UserError when the disk is full."""
    try:
        handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            before = os.fstat(handle).st_size
            try:
                rest = data
                while rest:
                    rest = rest[os.write(handle, rest) :]
            except OSError:
                os.ftruncate(handle, before)
                raise
        finally:
            os.close(handle)
    except OSError as error:
        raise UserError(
            f"{file} cannot be written: {error.strerror or error}; make room and start again, to go on from the last checkpoint"
        ) from None


def _lines(file: Path) -> list[bytes]:
    try:
        return file.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


def _samples(path: Path) -> list[tuple[int, bytes]]:
    """(step, heading and text) of every whole sample, up to the first place that is not one."""
    try:
        data = (path / SAMPLES).read_bytes()
    except FileNotFoundError:
        return []
    found, at = [], 0
    while head := SAMPLE_HEAD.match(data, at):
        end = head.end() + int(head[2]) + 1
        if data[end - 1 : end] != b"\n":
            break
        found.append((int(head[1]), data[at:end]))
        at = end
    return found


def _rewrite(file: Path, parts: list[bytes]) -> None:
    """Raises UserError when the disk is full; the file is then as it was."""
    content = b"".join(parts)
    if file.exists() and file.read_bytes() != content:
        write_atomically(file, content)
