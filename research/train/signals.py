"""Stopping on request: the first SIGINT or SIGTERM sets a flag that the loop reads, the second ends the process at once.

Python runs signal handlers in the main thread between bytecodes, which may be minutes away while XLA compiles. The second
signal must not wait for that, so signals are read from the wake-up pipe, to which the interpreter's C handler writes at
once, by a thread of our own.
"""

import os
import signal
import threading

WATCHED = (signal.SIGINT, signal.SIGTERM)
CLOSE = 0  # no signal has this number


class Signals:
    """Watches within a `with` block; `requested` is the number of the first signal received, or None.

    Handlers are as they were afterwards. A second signal ends the process with 128 + its number and saves nothing.
    Outside the main thread, where Python allows no handlers, it watches nothing.
    """

    def __init__(self):
        self.requested: int | None = None
        self._writer = -1

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            threading.Thread(target=self._watch, args=(reader,), name="signals", daemon=True).start()
            _restore["pipe"] = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            _restore["handlers"] = {number: signal.signal(number, self._request) for number in WATCHED}
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer >= 0:
            _give_back(_restore["pipe"])
            os.write(self._writer, bytes([CLOSE]))
            os.close(self._writer)
            self._writer = -1

    def _request(self, number: int, _frame: object = None) -> None:
        if self.requested is None:
            self.requested = number

    def _watch(self, reader: int) -> None:
        seen = 0
        with open(reader, "rb", buffering=0) as pipe:
            while number := (pipe.read(1) or bytes([CLOSE]))[0]:
                if number not in WATCHED:
                    continue
                seen += 1
                self._request(number)
                if seen == 2:
                    os.write(2, b"\nended at once by a second signal; what was not yet saved is lost\n")
                    os._exit(128 + number)


_restore: dict = {}  # what was there before, while the watch is on


def _give_back(pipe: int = -1) -> None:
    signal.set_wakeup_fd(pipe)
    for number, handler in _restore["handlers"].items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
    _restore.clear()


# A forked worker shares the pipe: a Ctrl-C, which reaches the whole group, would count once for each of them.
os.register_at_fork(after_in_child=lambda: _give_back() if _restore else None)
