"""Several processes that train one run: how they find each other, what they check before the first step, and how they agree while they run.

JAX's multi-controller runtime does the work: every process runs this program, and arrays are spread over the devices of all. The first process
writes the run directory, which all of them see; each other one keeps a log of its own there. What stops a run is voted for at every step and read
a step later, so that all stop at the same one.
"""

import dataclasses
import faulthandler
import hashlib
import json
import os
import platform
import signal
import socket
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from research.core.errors import UserError

OUT_OF_TIME = 256  # a vote that is no signal: the run's time is up
CLOCKS = 60.0  # seconds that the clocks of two hosts may differ
FACTS = 4096  # bytes of what a process says of itself
NAMED = 8  # rows of a process that are named at most
STUCK = 75  # exit code: try again (sysexits.h, EX_TEMPFAIL)


@dataclasses.dataclass(frozen=True)
class Processes:
    """How a process joins the others. All None: as Cloud TPU, Slurm, Open MPI or Kubernetes tell it."""

    coordinator: str | None = None  # HOST:PORT of the first process
    count: int | None = None
    index: int | None = None
    heartbeat: int = 30  # seconds without a sign of life after which a process is taken for dead, and the others end

    def __post_init__(self):
        given = [value is not None for value in (self.coordinator, self.count, self.index)]
        if any(given) and not all(given):
            raise UserError(
                "give --coordinator, --num-processes and --process-id together, or none of them where the cluster tells them"
            )
        if self.count is not None and self.index is not None and not 0 <= self.index < self.count:
            raise UserError(f"--process-id is {self.index}; expected a whole number from 0 to {self.count - 1}")
        if self.heartbeat < 1:
            raise UserError(f"--heartbeat is {self.heartbeat}; expected a whole number of seconds of at least 1")
        if self.coordinator is not None and not self.coordinator.rpartition(":")[2].isdecimal():
            raise UserError(f"--coordinator is {self.coordinator!r}; expected HOST:PORT of the first process")


def join(processes: Processes) -> None:
    """Joins the others. Call it before JAX finds its devices. Raises UserError where no cluster is found or the others do not come."""
    if jax.distributed.is_initialized():
        return
    jax.config.update("jax_enable_preemption_service", False)  # signals are the loop's (signals.py)
    try:
        jax.distributed.initialize(
            processes.coordinator, processes.count, processes.index, heartbeat_timeout_seconds=processes.heartbeat
        )
    except (RuntimeError, ValueError) as error:
        told = str(error).splitlines()[0][:200]
        raise UserError(
            f"cannot join the other processes: {told}; give --coordinator HOST:PORT --num-processes N --process-id I"
        ) from error


def several() -> bool:
    return jax.process_count() > 1


def is_first() -> bool:
    return jax.process_index() == 0


def of_first(value: int) -> int:
    """The first process's value, on every process."""
    return value if not several() else int(all_values(value)[0])


def all_values(value: int) -> np.ndarray:
    """The values of all processes, in their order."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.int32(value))).reshape(-1)


def in_order(values: Any) -> Any:
    """The values, once they are there where several CPU processes run: independent programs would run side by side there, and Gloo takes the messages
    of one for those of another. Accelerators run them in order."""
    return jax.block_until_ready(values) if several() and jax.default_backend() == "cpu" else values


class Votes:
    """What all processes agree upon: in `agreed` what stops the run, the largest vote of any, the number of a signal or `OUT_OF_TIME`; in `save`
    whether a checkpoint is due.

    `cast` starts an agreement and returns it; `read` takes in its outcome. All processes cast and read in the same order.
    """

    def __init__(self):
        first = {device.process_index: device for device in reversed(jax.devices())}
        mesh = Mesh(np.array([first[index] for index in sorted(first)]), ("process",), axis_types=(AxisType.Auto,))
        self._where = NamedSharding(mesh, PartitionSpec("process"))
        self._largest = jax.jit(lambda votes: votes.max(axis=0), out_shardings=NamedSharding(mesh, PartitionSpec()))
        self.agreed: int | None = None
        self.save = False

    def cast(self, stop: int, save: bool) -> jax.Array:
        mine = np.array([[stop, save]], np.int32)
        return in_order(
            self._largest(jax.make_array_from_process_local_data(self._where, mine, (jax.process_count(), 2)))
        )

    def read(self, outcome: jax.Array) -> None:
        stop, save = np.asarray(outcome).tolist()
        self.save = self.save or bool(save)
        if stop and self.agreed is None:
            self.agreed = stop


def facts(config: dict[str, Any], data: str, rows: tuple[int, int]) -> dict[str, Any]:
    """What a process says of itself; all but `host`, `clock` and `rows` have to be the same everywhere."""
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "purestep")} | {
        "python": platform.python_version()
    }
    said = json.dumps(config, sort_keys=True, default=str).encode()
    return {
        "versions": versions, "config": hashlib.sha256(said).hexdigest()[:16], "data": data[:32], "devices": jax.local_device_count(),
        "kind": jax.local_devices()[0].device_kind, "host": socket.gethostname(), "clock": time.time(), "rows": list(rows),
    }  # fmt: skip


def preflight(mine: dict[str, Any], folder: Path, batch_size: int) -> None:
    """Compares what all processes say of themselves, sums a number that is known over all devices, and looks whether all see the run directory.

    Raises UserError, on every process, that names the process and host which disagree with the first.
    """
    everyone = _exchanged(mine)
    first = everyone[0]
    wrong = []
    for index, one in enumerate(everyone):
        who = f"process {index} on {one['host']}"
        wrong += [
            f"{who} has {name} {one[name]!r}, process 0 on {first['host']} has {first[name]!r}"
            for name in ("versions", "config", "data", "devices", "kind") if one[name] != first[name]
        ]  # fmt: skip
        if abs(one["clock"] - first["clock"]) > CLOCKS:
            wrong.append(
                f"the clock of {who} is {one['clock'] - first['clock']:+.0f} s off that of process 0 on {first['host']}"
            )
    read = {tuple(one["rows"]) for one in everyone}
    count = next(iter(read))[1]
    if (
        {index for index, _ in read} != set(range(count))
        or any(each != count for _, each in read)
        or batch_size % count
    ):
        wrong.append(f"the processes read the parts {sorted(read)} of {batch_size} rows, which do not make up a batch")
    if wrong:
        raise UserError("the processes disagree: " + "; ".join(wrong[:4]))
    _check_sum(everyone)
    _check_folder(folder, everyone)


def _exchanged(mine: dict[str, Any]) -> list[dict[str, Any]]:
    from jax.experimental import multihost_utils

    said = json.dumps(mine).encode().ljust(FACTS)
    if len(said) > FACTS:
        raise ValueError(f"facts of {len(said)} bytes")
    gathered = np.asarray(multihost_utils.process_allgather(np.frombuffer(said, np.uint8))).reshape(-1, FACTS)
    return [json.loads(bytes(row).decode()) for row in gathered]


def name_rows(rows: list[int]) -> str:
    """Rows of a batch that processes found among theirs, with the process and host of each; those of all processes, on every one."""
    mine = {"host": socket.gethostname(), "rows": rows[:NAMED], "count": len(rows)}
    said, told = [], set()
    for index, one in enumerate(_exchanged(mine) if several() else [mine]):
        if one["rows"] and one["rows"][0] not in told:  # processes that differ along `tensor` have the same rows
            told |= set(one["rows"])
            more = f" and {one['count'] - NAMED} more" if one["count"] > NAMED else ""
            said.append(f"row(s) {', '.join(map(str, one['rows']))}{more} of process {index} on {one['host']}")
    return "; ".join(said) or "no row by itself"


def _check_sum(everyone: list[dict[str, Any]]) -> None:
    """Raises UserError where a sum over all devices of their numbers is not what it is."""
    count = jax.device_count()
    mesh = Mesh(np.array(jax.devices()), ("device",), axis_types=(AxisType.Auto,))
    where = NamedSharding(mesh, PartitionSpec("device"))
    numbers = jax.make_array_from_callback((count,), where, lambda at: np.arange(count, dtype=np.float32)[at])
    found = float(jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, PartitionSpec()))(numbers))
    if found != count * (count - 1) / 2:
        hosts = ", ".join(one["host"] for one in everyone)
        raise UserError(
            f"a sum over the {count} devices of {hosts} is {found}, not {count * (count - 1) / 2}: look at their network"
        )


def _check_folder(folder: Path, everyone: list[dict[str, Any]]) -> None:
    """Raises UserError naming the processes that do not see what the first one wrote."""
    token = folder / ".preflight"
    if is_first():
        token.write_text(str(time.time()))
    of_first(0)  # it is there now
    seen = all_values(int(token.exists()))
    if is_first():
        token.unlink()
    blind = [f"process {index} on {everyone[index]['host']}" for index in np.flatnonzero(seen == 0)]
    if blind:
        raise UserError(f"{', '.join(blind)} cannot see {folder}: give a --run-dir on a disk that all hosts share")


class Watchdog:
    """Ends the process, its stacks on standard error, when no step has ended for so many seconds: a launcher then starts it again. None: never."""

    def __init__(self, seconds: float | None):
        self._seconds, self._last, self._over = seconds, time.monotonic(), threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._seconds is not None:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def alive(self) -> None:
        """Something has come to its end: a step, an evaluation, a save."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        assert self._seconds is not None
        while not self._over.wait(min(1.0, self._seconds / 4)):
            silent = time.monotonic() - self._last
            if silent > self._seconds:
                print(
                    f"no step has ended for {silent:.0f} s (--step-timeout {self._seconds:g}); ending, to be started again",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(all_threads=True)
                os._exit(STUCK)


def signal_of(vote: int) -> str:
    """What a vote is called as the reason for a stop."""
    return "max_seconds" if vote == OUT_OF_TIME else signal.Signals(vote).name
