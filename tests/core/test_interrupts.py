"""Signals that come while a script still imports."""

import signal
import subprocess
import sys

import pytest

from research.core.interrupts import ending_at_once

KILLED_INSIDE = """
import os, signal, sys
from research.core.interrupts import ending_at_once
signal.signal(signal.SIGINT, signal.SIG_IGN if sys.argv[2] == "ignored" else signal.default_int_handler)
with ending_at_once():
    os.kill(os.getpid(), int(sys.argv[1]))
    while True: pass
"""


@pytest.mark.parametrize("before", ["usual", "ignored"])  # as a script's shell starts a background job
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_its_code_and_no_word(number, before):
    command = [sys.executable, "-c", KILLED_INSIDE, str(int(number)), before]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, b"", b"")


def test_handlers_are_given_back_and_those_of_others_left_alone(monkeypatch):
    usual = [(signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)]
    before = [signal.signal(number, handler) for number, handler in usual]
    try:
        with ending_at_once():
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert [signal.getsignal(number) for number, _ in usual] == [handler for _, handler in usual]
        mine = lambda *_: None  # noqa: E731
        signal.signal(signal.SIGINT, mine)
        with ending_at_once():
            assert signal.getsignal(signal.SIGINT) is mine
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with ending_at_once():
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        for (number, _), handler in zip(usual, before, strict=True):
            signal.signal(number, handler)
