"""A run directory: everything needed to repeat, resume, read and show a run, held by one process at a time.

    config.json      the config, what resuming must agree on, versions, device, git revision
    metrics.jsonl    one record a line, whole or absent; cut back to the restored step on resume
    samples.txt      samples as the run learned, likewise
    train.log        what was printed          tokenizer.json   the run's tokeniser
    checkpoints/     see checkpoint.py          status.json      the result, once finished
    report.html      see report.py              .lock            held by the process that trains
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
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from research.core.errors import UserError
from research.data.files import write_atomically

SCHEMA = 1
CONFIG, METRICS, SAMPLES, LOG, STATUS, LOCK = "config.json", "metrics.jsonl", "samples.txt", "train.log", "status.json", ".lock"
HELD = {CONFIG, METRICS, SAMPLES, LOG, STATUS, LOCK, "tokenizer.json", "report.html", "checkpoints", "profile", "tensorboard", "wandb"}
VERSIONED = ("purestep", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers")
SAMPLE_HEAD = re.compile(r"^===== step (\d+) =====$")


class RunDir:
    """An open run directory. `open` it in a `with` statement; the operating system drops the lock when the process ends."""

    def __init__(self, path: Path, lock: int):
        self.path, self._lock = path, lock
        self._track: Callable[[dict[str, Any]], None] | None = None

    @classmethod
    def open(cls, path: str | Path, config: dict, identity: dict, *, resume: bool = True, fresh: bool = False) -> "RunDir":
        """Creates the directory, or checks that the run in it is this one.

        Raises UserError when it cannot be written, another process trains in it, it holds a run that disagrees in its identity
        (each differing field with both values), it holds something else, or it exists and `resume` is false.
        """
        path = Path(path).absolute()
        try:
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path, _lock(path))
        except OSError as error:
            raise UserError(f"run directory {path} cannot be written: {error.strerror or error}; choose another with --run-dir") from None
        try:
            run._prepare(config, identity, resume, fresh)
        except BaseException as error:
            run.close()
            if isinstance(error, OSError):
                raise UserError(f"run directory {path} cannot be written: {error.strerror or error}; choose another with --run-dir") from None
            raise
        return run

    def _prepare(self, config: dict, identity: dict, resume: bool, fresh: bool) -> None:
        strangers = sorted(p.name for p in self.path.iterdir() if p.name not in HELD and not p.name.startswith("."))
        exists = (self.path / CONFIG).exists()
        if strangers and not exists:
            raise UserError(f"{self.path} is not a run directory: it holds {', '.join(strangers[:3])}; choose another with --run-dir")
        if exists and fresh:
            self._clear()
        elif exists:
            stored = read_config(self.path)
            if not resume:
                raise UserError(f"{self.path} already holds a run; drop --no-resume to go on with it, or use --fresh or another --run-dir")
            _check_identity(self.path, stored.get("identity", {}), identity)
        described = {"schema": SCHEMA, "config": config, "identity": identity, **surroundings()}
        write_atomically(self.path / CONFIG, _pretty(described))

    def _clear(self) -> None:
        """Deletes what a run directory holds, and nothing else."""
        for name in HELD - {LOCK}:
            entry = self.path / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)

    def __enter__(self) -> "RunDir":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def track(self, tracker: Callable[[dict[str, Any]], None]) -> None:
        """Passes every metrics record to `tracker` too."""
        self._track = tracker

    def write_metrics(self, record: dict[str, Any]) -> None:
        """Appends one line. Values that are not finite are written as null, so that every line is JSON."""
        _append(self.path / METRICS, json.dumps({k: _finite(v) for k, v in record.items()}) + "\n")
        if self._track is not None:
            self._track(record)

    def write_sample(self, step: int, text: str) -> None:
        """Appends a sample under a heading; a line of it that looks like a heading is indented."""
        lines = (f" {line}" if SAMPLE_HEAD.match(line) else line for line in text.split("\n"))
        _append(self.path / SAMPLES, f"===== step {step} =====\n" + "\n".join(lines) + "\n")

    def write_log(self, line: str) -> None:
        now = datetime.datetime.now().isoformat(timespec="seconds")
        _append(self.path / LOG, f"{now} {line}\n")

    def cut_back(self, step: int) -> None:
        """Drops the metrics and samples after `step`, and a torn last line: what follows writes them again."""
        kept = [line for line in _lines(self.path / METRICS) if (r := _record(line)) is not None and r["step"] <= step]
        _rewrite(self.path / METRICS, kept)
        _rewrite(self.path / SAMPLES, [part for number, part in _samples(self.path) if number <= step])
        (self.path / STATUS).unlink(missing_ok=True)

    def finished(self, conditions: dict[str, Any]) -> dict[str, Any] | None:
        """The result of a run that ended under the same stop conditions; None for one that has to go on."""
        try:
            status = json.loads((self.path / STATUS).read_text())
            return status["result"] if status["conditions"] == conditions else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def finish(self, result: dict[str, Any], conditions: dict[str, Any]) -> None:
        """Marks the run as over."""
        write_atomically(self.path / STATUS, _pretty({"conditions": conditions, "result": result}))


def _lock(path: Path) -> int:
    """A lock on the directory that dies with this process. Raises UserError when another process has it."""
    handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise UserError(f"{path} is being trained by process {holder}; wait for it, or choose another --run-dir") from None
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    return handle


def _check_identity(path: Path, stored: dict[str, Any], given: dict[str, Any]) -> None:
    given = json.loads(json.dumps(given))
    names = sorted(name for name in stored.keys() | given.keys() if stored.get(name) != given.get(name))
    if names:
        differing = "; ".join(f"{name}: {stored.get(name)!r} there, {given.get(name)!r} now" for name in names)
        raise UserError(f"{path} holds a run of another config ({differing}); use another --run-dir, or --fresh to delete it")


def read_config(path: str | Path) -> dict[str, Any]:
    """The parsed config.json of a run directory. Raises UserError when it is missing or damaged."""
    file = Path(path) / CONFIG
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not a run directory: it has no {CONFIG}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not isinstance(stored, dict) or not isinstance(stored.get("config"), dict):
        raise UserError(f"{file} is not a run's config: expected an object with a `config`")
    return stored


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, in order; a torn last line is left out."""
    return [record for line in _lines(Path(path) / METRICS) if (record := _record(line)) is not None]


def read_samples(path: str | Path) -> list[tuple[int, str]]:
    """(step, text) of samples.txt, in order."""
    return [(step, part.split("\n", 1)[1].removesuffix("\n")) for step, part in _samples(Path(path))]


def surroundings() -> dict[str, Any]:
    """What the run ran on: versions, git revision, devices."""
    devices = jax.devices()
    versions = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    where = {"kind": devices[0].device_kind, "platform": devices[0].platform, "count": len(devices), "processes": jax.process_count()}
    return {"versions": versions, "git": git_revision(), "device": where}


def git_revision() -> str | None:
    """The commit of the source tree, with `+` when it has changes; None outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _pretty(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _append(file: Path, text: str) -> None:
    """In one write, so that a line is whole or absent. Raises UserError when the disk is full."""
    try:
        with open(file, "ab", buffering=0) as out:
            out.write(text.encode())
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}; free some space and start again to go on from the last checkpoint") from None


def _lines(file: Path) -> list[str]:
    return file.read_bytes().decode(errors="replace").splitlines(keepends=True) if file.exists() else []


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _samples(path: Path) -> list[tuple[int, str]]:
    parts: list[tuple[int, str]] = []
    for line in _lines(path / SAMPLES):
        head = SAMPLE_HEAD.match(line.rstrip("\n"))
        if head:
            parts.append((int(head[1]), line))
        elif parts:
            parts[-1] = (parts[-1][0], parts[-1][1] + line)
    return parts


def _rewrite(file: Path, parts: list[str]) -> None:
    if file.exists():
        write_atomically(file, "".join(parts).encode())
