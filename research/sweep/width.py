"""How many members train at once, and how: what this device was measured to be fastest at, and has the memory for.

`vmap` over members fills an accelerator that one small model leaves idle. A processor's few cores are nearly full with one member; what is idle
between the kernels of a small step is filled by looping over members on a few host threads, which takes no compilation and keeps every bit. So on a
CPU 2, 4, ... threads are tried first, and on any device `vmap` over 2, 4, ... members, as long as each is faster than the last and the time that it
can save is worth its compilation. What was found is remembered by device, program and versions.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from research.core.errors import UserError
from research.core.paths import research_cache_dir
from research.data.files import write_atomically
from research.sweep.members import Together, on_threads
from research.sweep.plan import Group
from research.train.program import Program

HOW = ("loop", "threads", "vmap")
WARM, TIMED = 2, 5  # steps of a measurement, or more of them where they take no time:
AT_LEAST = 0.25  # seconds
WORTH = 0.25  # a wider program is tried while its compilation takes less than this share of the time that is left
WORTH_ON_CPU = 0.1  # where there is less to win
FASTER = 1.05  # and goes on being tried while it is faster than the last by this


@dataclasses.dataclass(frozen=True)
class Measured:
    """`of` is what was compiled: the step of a member, of which `width` members run side by side on threads, or a `vmap`ped one of that width.
    `seconds` of a member's step, `bytes` that a step of all members takes, `compile_seconds` it took to find out."""

    of: Program | Together
    width: int
    seconds: float
    bytes: int
    compile_seconds: float

    @property
    def how(self) -> str:
        if isinstance(self.of, Together):
            return "vmap"
        return "loop" if self.width == 1 else "threads"


def measure(program: Program, width: int, shared: bool, *, how: str = "vmap") -> Measured:
    """Compiles a width (`how`: one of HOW; all the same for 1) and times a few steps of it. Raises TooWide for what does not fit."""
    began = time.perf_counter()
    of = Together(program, width, shared) if how == "vmap" and width > 1 else program
    compiled = of.compiled_step
    loops = width if of is program else 1
    needed = bytes_of(compiled) * loops
    check_memory(needed, width)
    if isinstance(of, Together):
        programs = [program] * width
        hypers, batch = of.hypers(programs), of.batch(programs, 0)
        states = [of.init(hypers)]
    else:
        hypers, batch = program.hypers, program.put_batch(program.batches(0))
        states = [program.initial_state() for _ in range(loops)]

    def steps(count: int) -> float:
        """The seconds of so many steps of all members."""

        def of_one(n: int, _stopped: Callable[[], bool]) -> None:
            for _ in range(count):
                states[n], _metrics = compiled(states[n], batch, hypers)
            jax.block_until_ready(states[n])

        began = time.perf_counter()
        on_threads(of_one, range(loops))
        return time.perf_counter() - began

    steps(WARM)
    compile_seconds = time.perf_counter() - began
    one = steps(1)
    count = max(TIMED, min(round(AT_LEAST / one), 100))
    return Measured(of, width, steps(count) / count / width, needed, compile_seconds)


def bytes_of(compiled: Any) -> int:
    """What a compiled step takes of each device's memory: arguments, results that are no argument's place, and temporaries."""
    stats = compiled.memory_analysis()
    kinds = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return sum(getattr(stats, kind) for kind in kinds) - stats.alias_size_in_bytes


def memory() -> int:
    """Bytes of a device that may be taken."""
    stats = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    if stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    import psutil

    return psutil.virtual_memory().available


class TooWide(UserError):
    """Members that the device has no memory for."""


def check_memory(needed: int, width: int) -> None:
    """Raises TooWide where a step of so many members takes more than there is."""
    if needed > (there := memory()):
        raise TooWide(
            f"{width} member(s) at once take {needed / 2**30:.2f} GiB of {there / 2**30:.2f} GiB that the device has left; "
            "lower batch_size or the model's size, or raise micro_batches"
        )


def choose(program: Program, group: Group, asked: int | None, say: Callable[[str], None]) -> Measured:
    """The width for a group, as it was asked for, remembered, or measured now. Raises UserError where not even the least width fits."""
    count, least = len(group.trials), program.mesh.size
    shared = shares_data(group)
    if any(size > 1 and axis != "member" for axis, size in program.mesh.shape.items()):
        if asked not in (None, 1):
            raise UserError(
                f"--width is {asked}; a member takes the whole mesh {group.config.mesh}, so give 1, or leave mesh out"
            )
        return measure(program, 1, shared)
    if asked is not None:
        if asked % least:
            raise UserError(f"--width is {asked}; the mesh has {least} devices, so give a multiple of {least}")
        return measure(program, asked, shared)
    key = _key(program, group, shared)
    if known := _remembered().get(key):
        how, width = known
        if least <= width <= max(count, least):
            return measure(program, width, shared, how=how)
    best = measure(program, least, shared)
    if jax.default_backend() == "cpu" and least == 1:
        best, _ = _widened(best, "threads", min(count, os.cpu_count() or 1), program, group, say)
    best, sure = _widened(best, "vmap", count, program, group, say)
    if sure:
        _remember(key, (best.how, best.width))
    return best


def _widened(
    best: Measured, how: str, most: int, program: Program, group: Group, say: Callable[[str], None]
) -> tuple[Measured, bool]:
    """The fastest of what was measured and of 2, 4, ... times the least width, and whether a longer sweep would look no further."""
    width = 2 * program.mesh.size
    while width <= most:
        left = best.seconds * group.config.steps * len(group.trials)
        worth = WORTH_ON_CPU if jax.default_backend() == "cpu" else WORTH
        if how == "vmap" and best.compile_seconds > worth * left:
            return best, False
        try:
            wider = measure(program, width, shares_data(group), how=how)
        except (TooWide, jax.errors.JaxRuntimeError) as error:
            say(f"width {width} does not fit: {str(error).splitlines()[0]}")
            break
        say(
            f"width {width}, {how}: {wider.seconds * 1e3:.3g} ms a member's step, {best.seconds * 1e3:.3g} at width {best.width}"
        )
        if wider.seconds * FASTER > best.seconds:
            break
        best, width = wider, width * 2
    return best, True


def shares_data(group: Group) -> bool:
    """Whether all of a group's members take the same batches."""
    return len({trial.config.order_seed for trial in group.trials}) == 1


def _key(program: Program, group: Group, shared: bool) -> str:
    device = jax.local_devices()[0].device_kind
    said = [group.program_key, device, program.mesh.size, jax.__version__, shared, program.corpus.tokenizer_fingerprint]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _file() -> Path:
    return Path(research_cache_dir()).expanduser() / "sweep-widths.json"


def _remembered() -> dict[str, tuple[str, int]]:
    try:
        found = json.loads(_file().read_text())
        return {
            key: (how, width)
            for key, (how, width) in found.items()
            if how in HOW and isinstance(width, int) and width > 0
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _remember(key: str, found: tuple[str, int]) -> None:
    _file().parent.mkdir(parents=True, exist_ok=True)
    write_atomically(_file(), json.dumps({**_remembered(), key: found}).encode())
