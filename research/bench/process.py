"""The parent's end of a side of a benchmark: start its process, ask it, end it."""

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from research.core.errors import UserError

WORKER = Path(__file__).with_name("worker.py")
ENDS_WITHIN = 5.0  # seconds that a process has to end once its input or output is closed
ANSWER_WITHIN = 1800.0  # seconds; a side that takes longer is taken to hang

Reply = dict[str, Any]
Ask = Callable[..., Reply]


@dataclasses.dataclass(frozen=True)
class Side:
    """One contender: its name, the interpreter and script that run it, and what its requests and environment hold besides."""

    name: str
    python: str
    script: Path
    request: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def failed(reply: Reply) -> str | None:
    """The kind of failure that a reply reports, or None."""
    return reply.get("error")


@contextlib.contextmanager
def started(side: Side, answer_within: float = ANSWER_WITHIN) -> Iterator[Ask]:
    """A process of the side, as `ask(do, **values) -> reply`; it ends with the block.

    A process that dies or does not answer in time gives the reply `{"error": "died", "text": ...}`, to this request and every one after
    it. Raises UserError when the interpreter cannot be started.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = _start(side, errors)
        try:
            yield lambda do, **values: _ask(process, errors, {"do": do, **side.request, **values}, answer_within)
        finally:
            _end(process)


def _start(side: Side, errors: IO[str]) -> subprocess.Popen:
    command = [side.python, "-u", str(WORKER), str(side.script)]
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=errors, text=True, env={**os.environ, **side.environment}
        )
    except OSError as error:
        raise UserError(f"{side.python} cannot be run as Python for {side.name}: {error.strerror or error}") from None


def _end(process: subprocess.Popen) -> None:
    """Closes the input, upon which a side ends; one that does not is ended."""
    try:
        process.communicate(timeout=ENDS_WITHIN)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        pass
    finally:
        process.kill()
        process.wait()


def _ask(process: subprocess.Popen, errors: IO[str], request: dict[str, Any], answer_within: float) -> Reply:
    assert process.stdin is not None and process.stdout is not None
    timer = threading.Timer(answer_within, process.kill)
    timer.start()
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())
    except (OSError, ValueError):
        late = timer.finished.is_set()
        return {
            "error": "died",
            "text": f"no answer within {answer_within:g} s" if late else _last_words(process, errors),
        }
    finally:
        timer.cancel()


def _last_words(process: subprocess.Popen, errors: IO[str]) -> str:
    """How a process ended, and the last line that it wrote."""
    try:
        code = process.wait(ENDS_WITHIN)
    except subprocess.TimeoutExpired:
        return "its process gave an answer that is none"
    errors.seek(0)
    lines = [line.strip() for line in errors if line.strip()]
    how = f"its process ended with {signal.Signals(-code).name}" if code < 0 else f"its process ended with code {code}"
    return f"{how}: {lines[-1][:200]}" if lines else how


def tokens_per_second(reply: Reply, tokens_per_step: int) -> float:
    """The rate of a timed round. Raises RuntimeError where the loss is not finite: what was timed was no training."""
    if not math.isfinite(reply["loss"]):
        raise RuntimeError(f"the loss is {reply['loss']} in a timed round; nothing that was timed counts")
    return reply["steps"] * tokens_per_step / reply["seconds"]
