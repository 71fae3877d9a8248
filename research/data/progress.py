"""Progress of long preparations on standard error: a bar on a terminal, now and then a plain line elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

Report = Callable[[int, int], None]  # (done, total), in bytes

_SECONDS_BETWEEN_LINES = 5.0


@contextlib.contextmanager
def reporting(label: str, report: Report | None = None) -> Iterator[Report]:
    """Yields the function to call with (bytes done, bytes in all): `report` itself if given, else one that shows
    `label`."""
    if report is not None:
        yield report
    elif sys.stderr is not None and sys.stderr.isatty():
        with _bar(label) as show:
            yield show
    else:
        yield _plain_lines(label)


@contextlib.contextmanager
def _bar(label: str) -> Iterator[Report]:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn(label),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=max(done, total))


def _plain_lines(label: str) -> Report:
    """Silent for work of a few seconds, so that scripts and logs get lines only where one would wonder."""
    last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{label}: {done / 1e6:.1f} of about {max(done, total) / 1e6:.1f} MB", file=sys.stderr, flush=True)

    return show
