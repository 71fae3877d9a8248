"""`research bench NAME ...`: one verb for every measurement."""

import contextlib
import difflib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

from research.core.errors import UserError

EXIT_SIGNAL = 128


def train(argv: Sequence[str]) -> int:
    """tokens/s of the training step beside transformers' GPT-2 on PyTorch, where that is installed"""
    from research.bench import train

    return train.main(argv)


def data(argv: Sequence[str]) -> int:
    """tokens/s of the loader beside what the step asks for"""
    from research.bench import data

    return data.main(argv)


def sample(argv: Sequence[str]) -> int:
    """tokens/s of greedy decoding beside transformers' generate, and the share of the memory bandwidth"""
    from research.bench import sample

    return sample.main(argv)


BENCHMARKS: dict[str, Callable[[Sequence[str]], int]] = {"train": train, "data": data, "sample": sample}


def usage() -> str:
    """The benchmarks, one line each."""
    lines = ["usage: research bench NAME [options] [--json]", ""]
    lines += [f"  {name:<8} {benchmark.__doc__}" for name, benchmark in BENCHMARKS.items()]
    return "\n".join([*lines, "", "research bench NAME --help lists the options."])


def main(argv: Sequence[str]) -> int:
    """Runs one benchmark; returns 0, or 128 + n after signal n. Raises UserError for one that there is not."""
    if argv and argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if not argv or argv[0] not in BENCHMARKS:
        near = difflib.get_close_matches(argv[0], BENCHMARKS, 1, 0.3) if argv else []
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(BENCHMARKS)}"
        raise UserError((f"there is no benchmark {argv[0]!r}" if argv else "usage: research bench NAME") + hint)
    try:
        with _terminated_as_interrupted():
            return BENCHMARKS[argv[0]](argv[1:])
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
