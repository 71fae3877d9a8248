"""Stopping on request: the first SIGINT or SIGTERM sets a flag that the loop reads, the second ends the process at once.

Python runs signal handlers in the main thread between bytecodes, which may be minutes away while XLA compiles. The second
signal must not wait for that, so it is read from the wake-up pipe, which the interpreter's C handler writes to at once, by a
thread of our own.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

WATCHED = (signal.SIGINT, signal.SIGTERM)
_CLOSE = 0  # no signal has this number


class Stop:
    """`requested` is the number of the first signal received, or None."""

    def __init__(self):
        self.requested: int | None = None

    @property
    def exit_code(self) -> int:
        """What a process stopped by that signal exits with: 130 for SIGINT, 143 for SIGTERM; 0 when none came."""
        return 0 if self.requested is None else 128 + self.requested

    def _request(self, number: int) -> None:
        if self.requested is None:
            self.requested = number


_before_fork: dict[signal.Signals, object] = {}  # the handlers to give back to a child, while the watch is on


@contextmanager
def catch_signals() -> Iterator[Stop]:
    """Watches for signals within the block and yields the flag. Outside the main thread it never sets it.

    Handlers are as they were afterwards. A second signal ends the process with 128 + its number, saving nothing.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(target=_watch, args=(reader, stop), name="signals", daemon=True).start()
    pipe_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _before_fork.update({number: signal.signal(number, lambda n, _: stop._request(n)) for number in WATCHED})
    try:
        yield stop
    finally:
        _give_back(pipe_before)
        os.write(writer, bytes([_CLOSE]))
        os.close(writer)


def _watch(reader: int, stop: Stop) -> None:
    seen = 0
    with open(reader, "rb", buffering=0) as pipe:
        while number := (pipe.read(1) or bytes([_CLOSE]))[0]:
            if number not in WATCHED:
                continue
            seen += 1
            stop._request(number)
            if seen == 2:
                os.write(2, b"\nstopped at once by a second signal; what was not yet saved is lost\n")
                os._exit(128 + number)


def _give_back(wakeup_fd: int = -1) -> None:
    signal.set_wakeup_fd(wakeup_fd)
    for number, handler in _before_fork.items():
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # type: ignore[arg-type]
    _before_fork.clear()


# A forked worker shares the pipe: a Ctrl-C, which reaches the whole group, would count once for each of them.
os.register_at_fork(after_in_child=lambda: _give_back() if _before_fork else None)
