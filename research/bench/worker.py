"""One side of a benchmark as a process of its own: `python -u worker.py SIDE.py`.

It reads requests as JSON lines from standard input, answers each with one JSON line on standard output, and ends when its input
does; between requests it is blocked on that input and takes no processor time. SIDE.py defines `about() -> facts` and
`build(request) -> (facts, run)`, where `run(n)` does n steps, waits for them and returns the last loss, and may define `peak_bytes()`, of its
device so far. Only the standard library is used
here, and a SIDE may do the same, so that it runs under an interpreter that knows nothing of this project. Every side is timed by the
lines below, so all are timed alike.

    {"do": "about"}                   -> {"versions": {...}, ...}
    {"do": "build", ...the request}   -> {"params": n, ..., "compile_seconds": s, "step_seconds": s}
    {"do": "time", "seconds": s}      -> {"steps": n, "seconds": s, "loss": nats, "peak_bytes": n or null}
    whatever fails                    -> {"error": "missing" | "out_of_memory" | "failed", "text": one line}
"""

import json
import os
import runpy
import sys
import time
import traceback

WARM_UP_SECONDS = 0.5
WARM_UP_STEPS = 20
OUT_OF_MEMORY = ("resource_exhausted", "out of memory", "alloc_failed")  # as XLA, PyTorch and cuBLAS say it


def timed(run, steps):
    """`(seconds, loss)` of so many steps."""
    began = time.perf_counter()
    loss = run(steps)
    return time.perf_counter() - began, loss


def warm_up(run):
    """Compiles and settles; returns `(seconds of compilation, seconds of a step)`."""
    first, _ = timed(run, 1)
    second, _ = timed(run, 1)
    steps = min(WARM_UP_STEPS, int(WARM_UP_SECONDS / second))
    settled = timed(run, steps)[0] / steps if steps > 1 else second
    return max(0.0, first - settled), settled


def timed_round(run, seconds, step_seconds):
    """`(steps, seconds, loss)` of about `seconds` of steps.

    Where steps are short, one goes before that is not counted: it wakes the threads and brings back the caches that another process
    had in the meantime.
    """
    if 4 * step_seconds < seconds:
        run(1)
    steps = max(1, round(seconds / step_seconds))
    took, loss = timed(run, steps)
    return steps, took, loss


class Worker:
    """The requests of one process: what was built, and how long its step took when last seen."""

    def __init__(self, side):
        self.side, self.run, self.step_seconds = side, None, 0.0

    def answer(self, request):
        if request["do"] == "about":
            return self.side["about"]()
        if request["do"] == "build":
            facts, self.run = self.side["build"](request)
            compile_seconds, self.step_seconds = warm_up(self.run)
            return {"compile_seconds": compile_seconds, **facts, "step_seconds": self.step_seconds}
        steps, took, loss = timed_round(self.run, request["seconds"], self.step_seconds)
        self.step_seconds = took / steps
        peak_bytes = self.side["peak_bytes"]() if "peak_bytes" in self.side else None
        return {"steps": steps, "seconds": took, "loss": loss, "peak_bytes": peak_bytes}


def failure(error):
    """An exception as a reply."""
    text = " ".join((str(error).strip() or type(error).__name__).splitlines()[0].split())
    said = f"{type(error).__name__} {error}".lower()
    full = isinstance(error, MemoryError) or any(sign in said for sign in OUT_OF_MEMORY)
    kind = "missing" if isinstance(error, ImportError) else "out_of_memory" if full else "failed"
    return {"error": kind, "text": text[:300]}


def main(path):
    """Answers requests on standard input, one line of JSON each, until it ends. `path` is the file of the side to time."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no reply
    try:
        worker = Worker(runpy.run_path(path))
        for line in sys.stdin:
            try:
                reply = worker.answer(json.loads(line))
            except Exception as error:
                traceback.print_exc()
                reply = failure(error)
            print(json.dumps(reply), file=replies, flush=True)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its file names are none of the side's modules
    main(sys.argv[1])
