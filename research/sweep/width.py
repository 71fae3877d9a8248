"""How many members train at once: the width that this device was measured to be fastest at, and has the memory for.

`vmap` over members fills an accelerator that one small model leaves idle; two CPU cores are full with one. So widths 1, 2, 4, ... are tried, as long
as each is faster than the last and the time that it can save is worth its compilation. What was found is remembered by device, program and versions.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from research.core.errors import UserError
from research.core.paths import research_cache_dir
from research.data.files import write_atomically
from research.sweep.members import Together
from research.sweep.plan import Group
from research.train.program import Program

WARM, TIMED = 2, 5  # steps of a measurement
WORTH = 0.25  # a wider program is tried while its compilation takes less than this share of the time that is left
FASTER = 1.05  # and goes on being tried while it is faster than the last by this


@dataclasses.dataclass(frozen=True)
class Measured:
    """`seconds` of a member's step at this width, `bytes` that a step of all members takes, `compile_seconds` it took to find out; `of`: what was
    compiled for it."""

    of: Program | Together
    width: int
    seconds: float
    bytes: int
    compile_seconds: float


def measure(program: Program, width: int, shared: bool) -> Measured:
    """Compiles a width and times a few steps of it."""
    began = time.perf_counter()
    of = program if width == 1 else Together(program, width, shared)
    compiled = of.compiled_step
    needed = bytes_of(compiled)
    check_memory(needed, width)
    if isinstance(of, Together):
        programs = [program] * width
        hypers, batch = of.hypers(programs), of.batch(programs, 0)
        state = of.init(hypers)
    else:
        hypers, batch = program.hypers, program.put_batch(program.batches(0))
        state = program.initial_state()
    for step in range(WARM + TIMED):
        if step == WARM:
            jax.block_until_ready(state)
            compile_seconds, began = time.perf_counter() - began, time.perf_counter()
        state, _ = compiled(state, batch, hypers)
    jax.block_until_ready(state)
    return Measured(of, width, (time.perf_counter() - began) / TIMED / width, needed, compile_seconds)


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
    if asked is not None:
        if asked % least:
            raise UserError(f"--width is {asked}; the mesh has {least} devices, so give a multiple of {least}")
        return measure(program, asked, shared)
    known, key = _remembered(), _key(program, group, shared)
    if key in known and least <= known[key] <= max(count, least):
        return measure(program, known[key], shared)
    best = measure(program, least, shared)
    width = 2 * least
    while width <= count:
        left = best.seconds * group.config.steps * count
        if best.compile_seconds > WORTH * left:
            return best  # not remembered: a longer sweep may look further
        try:
            wider = measure(program, width, shared)
        except (TooWide, jax.errors.JaxRuntimeError) as error:
            say(f"width {width} does not fit: {str(error).splitlines()[0]}")
            break
        say(
            f"width {width}: {wider.seconds * 1e3:.3g} ms a member's step, {best.seconds * 1e3:.3g} at width {best.width}"
        )
        if wider.seconds * FASTER > best.seconds:
            break
        best, width = wider, width * 2
    _remember(key, best.width)
    return best


def shares_data(group: Group) -> bool:
    """Whether all of a group's members take the same batches."""
    return len({trial.config.order_seed for trial in group.trials}) == 1


def _key(program: Program, group: Group, shared: bool) -> str:
    device = jax.local_devices()[0].device_kind
    said = [group.program_key, device, program.mesh.size, jax.__version__, shared, program.corpus.tokenizer.vocab_size]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _file() -> Path:
    return Path(research_cache_dir()).expanduser() / "sweep-widths.json"


def _remembered() -> dict[str, int]:
    try:
        found = json.loads(_file().read_text())
        return {key: width for key, width in found.items() if isinstance(width, int) and width > 0}
    except (OSError, ValueError, AttributeError):
        return {}


def _remember(key: str, width: int) -> None:
    _file().parent.mkdir(parents=True, exist_ok=True)
    write_atomically(_file(), json.dumps({**_remembered(), key: width}).encode())
