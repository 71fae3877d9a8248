"""Units of a corpus made by several processes of this machine at once: `python -m research.data.units`, asked over pipes.

A process that is killed, the one that asks included, leaves whole units alone: a worker ends when its input does.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from research.core.errors import UserError
from research.data.shards import Unfinished
from research.data.sources import Source
from research.data.units import Job, Seen

SMALLEST = 4 << 20  # bytes of a source from which a worker's start, half a second, pays for itself


def count(asked: int | None, source: Source, slow: bool) -> int:
    """How many processes make a source's units: as many as asked for or, where nothing was, as there are processors if the work is `slow`, which is
    to say Python on one of them. Raises UserError for less than 1."""
    if asked is not None and asked < 1:
        raise UserError(f"--workers is {asked}; expected a whole number of at least 1")
    wanted = asked if asked is not None else len(os.sched_getaffinity(0)) if slow and source.size >= SMALLEST else 1
    return min(wanted, len(source.units))


def run(job: Job, seen: Seen, count: int) -> None:
    """Makes all units of a job by so many processes. Raises UserError for what is wrong with the data, OSError for a folder that cannot be written,
    and Unfinished for a worker that died."""
    numbers, lock = iter(range(len(job.units))), threading.Lock()

    def take() -> int | None:
        with lock:
            return next(numbers, None)

    def see(size: int) -> None:
        with lock:
            seen(size)

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(count) as threads:
        processes = [stack.enter_context(_worker(job)) for _ in range(count)]

        def serve(process: subprocess.Popen) -> None:
            for number in iter(take, None):
                _ask(process, number, see)

        try:
            for done in [threads.submit(serve, process) for process in processes]:
                done.result()
        except BaseException:
            for process in processes:
                process.kill()
            numbers = iter(())
            raise


@contextlib.contextmanager
def _worker(job: Job) -> Iterator[subprocess.Popen]:
    """A process that knows the job. It has one thread for the tokeniser, and the paths that this process imports from."""
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "research.data.units"]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died, which the first question finds out
            process.stdin.write(job.to_json() + "\n")
            process.stdin.flush()
        yield process
    finally:
        with contextlib.suppress(OSError, ValueError):
            process.communicate(timeout=5)
        process.kill()
        process.wait()


def _ask(process: subprocess.Popen, number: int, seen: Seen) -> None:
    """Has a process make a unit."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
    for line in process.stdout:
        answer = json.loads(line)
        if "seen" in answer:
            seen(answer["seen"])
        elif "wrong" in answer:
            raise UserError(answer["wrong"])
        elif "unwritten" in answer:
            raise OSError(0, answer["unwritten"])
        else:
            return
    code = process.wait()
    raise Unfinished(
        f"a process that made unit {number} ended with code {code}, perhaps for lack of memory. "
        "Start again with fewer --workers: what is done is kept."
    )
