"""The run directory as all processes but the first see it: they write a log of their own there, `train.N.log`, and nothing else."""

import datetime
from pathlib import Path
from typing import Any

from research.train.rundir import RunDir, append


class Follower(RunDir):
    """The run directory of process `index`; what the first process writes, it does not."""

    def __init__(self, path: str | Path, index: int):
        super().__init__(Path(path).expanduser().absolute(), -1)
        self._log = self.path / f"train.{index}.log"

    def write_metrics(self, record: dict[str, Any]) -> None:
        """Nothing."""

    def write_sample(self, step: int, text: str) -> None:
        """Nothing."""

    def write_log(self, line: str) -> None:
        """Appends a line with the time of day to the process's own log."""
        now = datetime.datetime.now().isoformat(timespec="seconds")
        append(self._log, f"{now} {line}\n".encode(errors="replace"))

    def cut_back(self, step: int) -> None:
        """Nothing."""

    def finish(self, result: dict[str, Any], conditions: dict[str, Any]) -> None:
        """Nothing."""
