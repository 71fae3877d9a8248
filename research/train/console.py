"""What a run tells a person: a progress bar on a terminal, plain lines elsewhere, and the same lines in train.log."""

import sys
from collections.abc import Callable
from typing import Any


def duration(seconds: float) -> str:
    """`75` as `1m15s`, `4.2` as `4.2s`."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def count(n: float) -> str:
    """`1234567` as `1.23M`."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.3g}"


class Console:
    """Lines go to standard output and to `log`; on a terminal, a bar below them shows where the run stands. `quiet`: to the log alone."""

    def __init__(self, total: int, done: int, log: Callable[[str], None], quiet: bool = False):
        self._log, self._total, self._bar, self._quiet = log, total, None, quiet
        if sys.stdout.isatty() and not quiet:
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("{task.fields[status]}"),
            )
            self._bar = Progress(*columns, transient=True)
            self._bar.start()
            self._bar.add_task("train", total=total, completed=done, status="")

    def say(self, line: str) -> None:
        """One line for the person and the log."""
        self._log(line)
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif not self._quiet:
            print(line, flush=True)

    def progress(self, step: int, record: dict[str, Any], left: float) -> None:
        """A logged step: moves the bar, or prints a line."""
        mfu = f"  mfu {record['mfu']:.1%}" if record.get("mfu") else ""
        loss = f"loss {record['loss']:.4f}  {count(record['tokens_per_second'])} tokens/s{mfu}  {duration(left)} left"
        self._log(f"step {step}  {loss}")
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, total=self._total, status=loss)
        elif not self._quiet:
            print(f"step {step}/{self._total}  {loss}", flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
