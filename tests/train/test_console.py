"""What a person reads: durations and counts in few characters."""

import pytest

from research.train.console import count, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0s"), (4.24, "4.2s"), (59.94, "59.9s"), (75, "1m15s"), (3599, "59m59s"), (7260, "2h01m")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("n", "text"), [(7, "7"), (999, "999"), (1234, "1.23k"), (124_439_808, "124M"), (1.5e12, "1.5T")]
)
def test_counts(n, text):
    assert count(n) == text
