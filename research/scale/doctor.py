"""`research doctor`: whether this machine is fit to train, and what to do where it is not."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil

from research.core import chips
from research.core import config as core_config
from research.core.paths import research_cache_dir

PYTHONS = ((3, 11), (3, 13))
RANGES = {
    "jax": ("0.10", "0.13"),
    "flax": ("0.12", "0.14"),
    "optax": ("0.2.8", "0.3"),
    "orbax-checkpoint": ("0.12", "0.14"),
}
BAD = {  # releases with a known fault, and what it is
    (
        "jax",
        "0.11.0",
    ): "host offload of activations gives wrong gradients on GPUs (openxla/xla issue 46231); use another release",
    (
        "jax",
        "0.11.1",
    ): "on CPUs small updates inside a loop copy the whole buffer (jax issue 40101); use another release",
}
LOCKFILE = Path("/tmp/libtpu_lockfile")
CUDA_DRIVERS = {12: 525, 13: 580}  # the first driver of each CUDA
ROOM, WRITE = 5e9, 64 * 2**20  # bytes that a disk should have free; bytes of the reading of its speed
SLOW_WRITE, SLOW_SHARE = 20e6, 0.25  # bytes/s; of what is published of a chip
CLOCK = 2.0  # seconds that the disk's clock and ours may differ
Status = Literal["ok", "warn", "FAIL"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Looks at versions, devices, memory, disks and clocks, and takes three short readings. Exits with 1 where something will not work."""

    run_dir: str = "runs"  # the folder that runs are written to
    readings: bool = True  # a matrix product and a copy on the device, and a file
    json: bool = False  # the last line is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at, how it is, and what to do about it."""

    name: str
    status: Status
    said: str
    do: str = ""


def main(argv: Sequence[str]) -> int:
    """`research doctor [options]`."""
    asked: Arguments = core_config.parse(Arguments(), argv, "research doctor", Arguments.__doc__ or "")
    found = list(examine(asked))
    width = max(len(one.name) for one in found)
    for one in found:
        print(
            f"{one.status:<5} {one.name:<{width}}  {one.said}"
            + (f"\n      {'':<{width}}  -> {one.do}" if one.do else "")
        )
    if asked.json:
        print(
            json.dumps({"healthy": healthy(found), "findings": [dataclasses.asdict(one) for one in found]}), flush=True
        )
    return 0 if healthy(found) else 1


def healthy(found: Sequence[Finding]) -> bool:
    return all(one.status != "FAIL" for one in found)


def examine(asked: Arguments) -> Iterator[Finding]:
    """Every finding, in the order in which they are worth reading."""
    folder = Path(asked.run_dir).expanduser()
    yield python()
    yield from versions(_version)
    yield tpu_lock(LOCKFILE)
    yield from devices()
    yield driver(_nvidia_smi)
    yield memory()
    place = disk("run folder", folder)
    yield place
    yield disk("cache folder", research_cache_dir())
    writable = place.status != "FAIL"
    if writable:
        yield clock(folder)
    if asked.readings:
        yield from readings()
        if writable:
            yield writing(folder)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def python() -> Finding:
    """The interpreter."""
    fine = PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]
    said = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("python", "ok" if fine else "FAIL", said, "" if fine else "use Python 3.11, 3.12 or 3.13")


def versions(version: Callable[[str], str | None]) -> Iterator[Finding]:
    """The packages that training stands on, whether they go together, and faults that their releases are known for."""
    for name, (least, below) in RANGES.items():
        found = version(name)
        fine = found is not None and _numbers(least) <= _numbers(found) < _numbers(below)
        said = f"{found or 'missing'} (from {least}, below {below})"
        yield Finding(name, "ok" if fine else "FAIL", said, "" if fine else f"pip install '{name}>={least},<{below}'")
        if found is not None and (name, found) in BAD:
            yield Finding(f"{name} {found}", "warn", "has a known fault", BAD[name, found])
    jax, jaxlib = version("jax"), version("jaxlib")
    fine = jax is not None and jaxlib is not None and _numbers(jax)[:2] == _numbers(jaxlib)[:2]
    yield Finding(
        "jaxlib",
        "ok" if fine else "FAIL",
        f"{jaxlib or 'missing'} beside jax {jax or 'missing'}",
        "" if fine else "pip install -U jax",
    )
    for plugin in ("jax-cuda12-plugin", "jax-cuda13-plugin"):
        found = version(plugin)
        if found is not None and jaxlib is not None and _numbers(found)[:3] != _numbers(jaxlib)[:3]:
            yield Finding(
                plugin,
                "FAIL",
                f"{found} beside jaxlib {jaxlib}",
                "pip install -U 'jax[cuda12]', so that both are of one release",
            )


def _numbers(version: str) -> tuple[int, ...]:
    out = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        out.append(int(digits))
    return tuple(out)


def tpu_lock(lockfile: Path) -> Finding:
    """Who holds the TPU of this machine."""
    if importlib.util.find_spec("libtpu") is None:
        return Finding("libtpu", "ok", "not installed")
    if not lockfile.exists():
        return Finding("libtpu", "ok", "installed, and no process holds a TPU")
    holders = []
    for process in psutil.process_iter(["pid", "name"]):
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and any(one.path == str(lockfile) for one in process.open_files()):
                holders.append(f"{process.info['name']} ({process.pid})")
    if holders:
        return Finding(
            "libtpu",
            "warn",
            f"held by {', '.join(holders)}",
            "one process has a host's TPU at a time: end that one, or wait for it",
        )
    return Finding(
        "libtpu", "warn", f"{lockfile} was left behind", f"if training says that the TPU is in use, delete {lockfile}"
    )


def devices() -> Iterator[Finding]:
    """What JAX finds."""
    import jax

    try:
        found = jax.devices()
    except RuntimeError as error:
        yield Finding(
            "devices",
            "FAIL",
            str(error).splitlines()[0],
            "set JAX_PLATFORMS=cpu, or install the extra of the accelerator",
        )
        return
    chip = chips.lookup(found[0].device_kind)
    yield Finding(
        "devices",
        "ok",
        f"{len(found)} x {found[0].device_kind}"
        + ("" if chip or found[0].platform == "cpu" else ", of which no peak is known"),
    )
    if found[0].platform == "cpu" and shutil.which("nvidia-smi"):
        yield Finding("gpu", "warn", "there is one, and JAX does not use it", "pip install 'purestep[cuda]'")
    for device in jax.local_devices():
        stats = device.memory_stats() if device.platform != "cpu" else None
        if stats and stats.get("bytes_in_use", 0) > 0.1 * stats.get("bytes_limit", float("inf")):
            yield Finding(
                f"device {device.id}",
                "warn",
                f"{stats['bytes_in_use'] / 1e9:.1f} GB in use already",
                "end the process that uses it",
            )


def _nvidia_smi() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, timeout=30, check=False
    )  # fmt: skip
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


def driver(ask: Callable[[], str | None]) -> Finding:
    """NVIDIA's driver beside the CUDA that JAX's plugin is built for, and NCCL."""
    found = ask()
    if found is None:
        return Finding("nvidia driver", "ok", "none")
    plugin = next((cuda for cuda in CUDA_DRIVERS if _version(f"jax-cuda{cuda}-plugin") is not None), None)
    nccl = next(
        (version for cuda in CUDA_DRIVERS if (version := _version(f"nvidia-nccl-cu{cuda}")) is not None), "none"
    )
    said = f"{found}, CUDA {plugin or 'none'} of JAX, NCCL {nccl}"
    if plugin is not None and _numbers(found)[0] < CUDA_DRIVERS[plugin]:
        return Finding("nvidia driver", "FAIL", said, f"CUDA {plugin} needs driver {CUDA_DRIVERS[plugin]} or newer")
    return Finding("nvidia driver", "ok", said)


def memory() -> Finding:
    """The host's."""
    found = psutil.virtual_memory()
    tight = found.available < 2e9
    said = f"{found.available / 1e9:.1f} of {found.total / 1e9:.1f} GB free, {os.cpu_count()} cores"
    return Finding(
        "memory", "warn" if tight else "ok", said, "end what uses it, or the host may be out of memory" if tight else ""
    )


def _there(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())


def disk(name: str, folder: Path) -> Finding:
    """Room, and whether it can be written."""
    there = _there(folder)
    try:
        with _scratch(folder) as file:
            file.write_bytes(b"")
    except OSError as error:
        do = "choose another by --run-dir, or by RESEARCH_CACHE for the cache"
        return Finding(name, "FAIL", f"{there} cannot be written: {error.strerror}", do)
    free = shutil.disk_usage(there).free
    tight = free < ROOM
    return Finding(
        name,
        "warn" if tight else "ok",
        f"{folder}: {free / 1e9:.1f} GB free",
        "make room: checkpoints need some" if tight else "",
    )


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    file = _there(folder) / f".doctor-{os.getpid()}"
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def clock(folder: Path) -> Finding:
    """Ours beside that of the disk, which is another host's where the disk is shared."""
    with _scratch(folder) as file:
        file.write_bytes(b"")
        apart = file.stat().st_mtime - time.time()
    fine = abs(apart) < CLOCK
    return Finding(
        "clock",
        "ok" if fine else "warn",
        f"{apart:+.1f} s between the disk's and ours",
        "" if fine else "synchronise them (NTP)",
    )


def readings() -> Iterator[Finding]:
    """A matrix product and a copy, beside what is published of the chip."""
    import jax

    chip = chips.lookup(jax.devices()[0].device_kind)
    size, dtype, copied = (8192, "bfloat16", 2**30) if chip else (1024, "float32", 2**26)
    product, bandwidth = chips.measured_matmul_flops(size, dtype=dtype), chips.measured_copy_bandwidth(copied)
    for name, found, peak, unit in (
        ("matrix product", product, chip and chip.flops, f"TFLOP/s, {dtype}"), ("copy", bandwidth, chip and chip.bandwidth, "TB/s"),
    ):  # fmt: skip
        slow = peak is not None and name == "copy" and found < SLOW_SHARE * peak
        beside = "" if peak is None else f" (published: {peak / 1e12:,.3g})"
        yield Finding(
            name,
            "warn" if slow else "ok",
            f"{found / 1e12:.3g} {unit}{beside}",
            "another process may use the device" if slow else "",
        )


def writing(folder: Path) -> Finding:
    """How fast the run folder's disk takes what checkpoints write."""
    try:
        with _scratch(folder) as file:
            data, began = os.urandom(WRITE), time.perf_counter()
            with open(file, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            speed = WRITE / (time.perf_counter() - began)
    except OSError as error:
        return Finding(
            "writing", "FAIL", f"{error.strerror}: {folder}", "choose another folder by --run-dir, or make room"
        )
    slow = speed < SLOW_WRITE
    return Finding(
        "writing",
        "warn" if slow else "ok",
        f"{speed / 1e6:,.0f} MB/s to {folder}",
        "checkpoints will hold the run up" if slow else "",
    )
