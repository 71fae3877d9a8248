"""`research bench NAME ...`: one verb for every measurement."""

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence

from research.core import verbs

EXIT_SIGNAL = 128


def train(argv: Sequence[str]) -> int:
    """tokens/s of the training step beside transformers' GPT-2 on PyTorch, where that is installed"""
    from research.bench import train

    return train.main(argv)


def data(argv: Sequence[str]) -> int:
    """the loader beside what the step asks for; batches, tokenising, images and memory beside peers"""
    from research.bench import data

    return data.main(argv)


def sample(argv: Sequence[str]) -> int:
    """tokens/s of greedy decoding beside transformers' generate, and the share of the memory bandwidth"""
    from research.bench import sample

    return sample.main(argv)


def sweep(argv: Sequence[str]) -> int:
    """wall clock of a sweep of 64 small runs beside 64 processes, and 64 runs in one process"""
    from research.bench import sweep

    return sweep.main(argv)


def remat(argv: Sequence[str]) -> int:
    """memory and time of a training step under each policy of recomputation"""
    from research.bench import remat

    return remat.main(argv)


BENCHMARKS = {"train": train, "data": data, "sample": sample, "sweep": sweep, "remat": remat}


def main(argv: Sequence[str]) -> int:
    """Runs one benchmark; returns 0, or 128 + n after signal n. Raises UserError for one that there is not."""
    try:
        with _terminated_as_interrupted():
            return verbs.run("research bench NAME", BENCHMARKS, argv, "benchmark")
    except _Stopped as stopped:
        print("stopped; nothing was measured to the end", file=sys.stderr)
        return EXIT_SIGNAL + stopped.number


class _Stopped(BaseException):
    """SIGINT or SIGTERM arrived."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Both signals unwind the stack, so that the processes of a benchmark end with it."""

    def stop(number: int, _frame: object) -> None:
        raise _Stopped(number)

    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are another's business
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
