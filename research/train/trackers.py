"""Experiment trackers, fed the records of metrics.jsonl. Each is an optional extra; one that is down never stops a run."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from research.core.errors import UserError

TrackerName = Literal["tensorboard", "wandb", "trackio"]
Record = dict[str, Any]


def _tensorboard(folder: Path, name: str, config: dict[str, Any]) -> Callable[[Record], None]:
    from tensorboardX import SummaryWriter

    del name, config
    writer = SummaryWriter(str(folder / "tensorboard"))

    def write(record: Record) -> None:
        for key, value in record.items():
            if isinstance(value, (int, float)) and key not in ("step", "time"):
                writer.add_scalar(f"{record['split']}/{key}", value, record["step"])
        writer.flush()

    return write


def _logger(module: Any, folder: Path, name: str, config: dict[str, Any]) -> Callable[[Record], None]:
    """Weights & Biases and Trackio share one interface."""
    extra = {"dir": str(folder)} if module.__name__ == "wandb" else {}
    module.init(project="purestep", name=name, config=config, **extra)

    def write(record: Record) -> None:
        values = {
            f"{record['split']}/{k}": v
            for k, v in record.items()
            if isinstance(v, (int, float)) and k not in ("step", "time")
        }
        module.log(values, step=record["step"])

    return write


def _open(tracker: TrackerName, folder: Path, name: str, config: dict[str, Any]) -> Callable[[Record], None]:
    if tracker == "tensorboard":
        return _tensorboard(folder, name, config)
    return _logger(importlib.import_module(tracker), folder, name, config)


def require(names: tuple[TrackerName, ...]) -> None:
    """Raises UserError, with the command that installs it, for a tracker that is not installed."""
    for tracker in names:
        if importlib.util.find_spec("tensorboardX" if tracker == "tensorboard" else tracker) is None:
            raise UserError(f"tracker {tracker} is not installed; pip install 'purestep[{tracker}]'")


def start(
    names: tuple[TrackerName, ...], folder: Path, name: str, config: dict[str, Any], warn: Callable[[str], None]
) -> Callable[[Record], None]:
    """A function that passes a record to every tracker. A tracker that fails is named once and left out from then on."""
    live: dict[str, Callable[[Record], None]] = {}
    for tracker in names:
        try:
            live[tracker] = _open(tracker, folder, name, config)
        except Exception as error:  # whatever a tracker's service does wrong is no reason not to train
            warn(f"tracker {tracker} is left out: {error}")

    def write(record: Record) -> None:
        for tracker, send in list(live.items()):
            try:
                send(record)
            except Exception as error:
                del live[tracker]
                warn(f"tracker {tracker} is left out from step {record['step']}: {error}")

    return write
