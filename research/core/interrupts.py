"""Signals before a program is ready for them: while a script imports what it needs, Ctrl-C ends it with its code and no traceback."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """SIGINT and SIGTERM end the process with 130 and 143 while this lasts: there is nothing to be saved yet.

    An exception would not do: raised within the import of an extension it becomes another one, or is lost. Sessions at a prompt or in a
    notebook, other threads than the main one, and handlers that somebody has set already are left alone. SIGINT counts as free where
    it is ignored, which is how a script's shell starts its background jobs: who sends it to one of those means it.
    """
    interactive = hasattr(sys, "ps1") or "IPython" in sys.modules
    if interactive or threading.current_thread() is not threading.main_thread():
        yield
        return
    free = {signal.SIGINT: (signal.default_int_handler, signal.SIG_IGN), signal.SIGTERM: (signal.SIG_DFL,)}
    before = {number: signal.getsignal(number) for number in free}
    taken = {number: handler for number, handler in before.items() if handler in free[number]}
    for number in taken:
        signal.signal(number, lambda number, _: os._exit(128 + number))
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
