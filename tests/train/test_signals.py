"""One signal asks, two insist; a compile in progress, a forked worker or another thread make no difference."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from research.train import signals
from research.train.signals import Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_sets_the_flag_and_handlers_come_back(number):
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    pipe_before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(pipe_before)
    with Signals() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), number)
        assert stop.requested == number
    assert {n: signal.getsignal(n) for n in before} == before
    assert signal.set_wakeup_fd(-1) == pipe_before
    assert stop.requested == number


def test_blocks_follow_each_other_without_counting_together():
    for _ in range(3):
        with Signals() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == signal.SIGTERM


def test_handlers_come_back_after_an_exception():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError), Signals():
        raise KeyError
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_it_watches_nothing():
    seen = []

    def body():
        before = signal.getsignal(signal.SIGTERM)
        with Signals() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM) is before))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(None, True)]


# Locking a mutex twice is one call into C that never returns and that no signal interrupts, like a long compile.
DEAF = """
    import ctypes, runpy, sys
    Signals = runpy.run_path(sys.argv[1])["Signals"]
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    libc.pthread_mutex_init(mutex, None)
    libc.pthread_mutex_lock(mutex)
    with Signals():
        print("ready", flush=True)
        libc.pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize(("first", "second", "code"), [("SIGINT", "SIGINT", 130), ("SIGINT", "SIGTERM", 143)])
def test_the_second_signal_ends_the_process_while_it_is_in_a_long_call(first, second, code):
    with run_python(DEAF) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(getattr(signal, first))
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(getattr(signal, second))
        output, errors = process.communicate(timeout=60)
    assert process.returncode == code and "second signal" in errors


FORKED = """
    import os, runpy, signal, sys, time
    Signals = runpy.run_path(sys.argv[1])["Signals"]
    ready, started = os.pipe()
    with Signals() as stop:
        child = os.fork()
        if child == 0:
            os.write(started, b"1")
            time.sleep(60)
            os._exit(0)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        status = os.waitpid(child, 0)[1]
        print(os.WTERMSIG(status), stop.requested, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        print(stop.requested)
"""


def test_a_forked_worker_has_its_own_signals():
    with run_python(FORKED) as process:
        output, errors = process.communicate(timeout=60)
    assert output.split() == ["15", "None", "15"] and process.returncode == 0, errors


@contextlib.contextmanager
def run_python(source):
    """Runs `source` with the module's file as its argument: alone it imports in no time."""
    command = [sys.executable, "-c", textwrap.dedent(source), signals.__file__]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
