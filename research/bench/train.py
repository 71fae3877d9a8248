"""`research bench train`: tokens/s of our training step and of transformers' GPT-2 on PyTorch, side by side in one run.

Every side has a process of its own (`worker.py`), so that neither allocators nor thread pools meet. On a CPU the processes of a shape
stand by together and are timed in turn, a short round each, over and over, since machines drift; all but one are blocked on their input
at any time, and the median round counts. On an accelerator the sides have its memory one after the other.
"""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import research
from research.bench import shapes
from research.bench.process import Ask, Reply, Side, failed, started
from research.bench.rows import OURS, Sample, doubts, expect, lines, rows_of
from research.bench.shapes import Shape
from research.core import config as C
from research.core import host
from research.core.errors import UserError

FOLDER = Path(__file__).parent
OPTIMIZER = {"learning_rate": 3e-4, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "clip_norm": 1.0}
MODES = {"both": ("eager", "compiled"), "eager": ("eager",), "compiled": ("compiled",), "none": ()}
FIRST_BATCH = 32  # where the search for the largest batch begins


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    # small, medium, gpt2, gpt2-largest-batch, or LAYERSxWIDTHxHEADSxCONTEXTxBATCHxVOCABULARY; none given: those of the device
    shapes: tuple[str, ...] = ()
    seconds: float = 15.0  # of timing, for each side at each shape
    rounds: int = 5  # that the time is split into; the median counts
    peer: Literal["both", "eager", "compiled", "none"] = "both"  # how PyTorch runs
    peer_python: str | None = None  # the interpreter that has torch and transformers; None: this one
    json: bool = False  # the last line is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors

    def __post_init__(self):
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"--seconds is {self.seconds}; expected a number above 0")
        if self.rounds < 1:
            raise UserError(f"--rounds is {self.rounds}; expected a whole number of at least 1")


def main(argv: Sequence[str]) -> int:
    """`research bench train [options]`: prints a table, and with `--json` one JSON object on the last line."""
    arguments: Arguments = C.parse(Arguments(), argv, "research bench train", main.__doc__ or "")
    asked = [shapes.parse(text) for text in arguments.shapes]
    ours, peers = sides(arguments)
    busy = others_use()
    result = measure(asked, ours, peers, arguments.rounds, arguments.seconds / arguments.rounds)
    result["busy_at_start"], result["warnings"] = busy, doubts(result["rows"], busy)
    print("\n".join([*lines(result), *result["warnings"]]))
    if arguments.json:
        print(json.dumps(result), flush=True)
    return 0


def others_use() -> float:
    """The fraction of this machine's processors that was in use during the last half second, by others."""
    import psutil

    return psutil.cpu_percent(0.5) / 100


def sides(arguments: Arguments) -> tuple[Side, list[Side]]:
    """Our side and the peers that are asked for."""
    python = arguments.peer_python or sys.executable
    script = FOLDER / "peer_torch.py"
    peers = [Side(f"transformers, PyTorch {mode}", python, script, {"mode": mode}) for mode in MODES[arguments.peer]]
    return Side(OURS, sys.executable, FOLDER / "ours.py", environment=our_environment()), peers


def our_environment() -> dict[str, str]:
    """The environment of our own sides: this very package, and most of a GPU's memory."""
    path = os.pathsep.join(filter(None, [str(Path(research.__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, host.FRACTION: os.environ.get(host.FRACTION, str(host.OF_A_GPU))}


def measure(asked: Sequence[Shape], ours: Side, peers: Sequence[Side], rounds: int, seconds: float) -> dict[str, Any]:
    """The result as JSON values: `rows` and what they were measured on. `seconds` are those of one round of one side.

    Without shapes, those of the device. Raises UserError when the peer's interpreter cannot be run, or our side does not fit.
    """
    about = expect(_about(ours), ours, None)
    alone = about["platform"] != "cpu"
    asked = asked or [shapes.NAMED[name] for name in (shapes.ON_ACCELERATOR if alone else shapes.ON_CPU)]
    if not alone and any(shape.batch_size == 0 for shape in asked):
        raise UserError("--shapes: the largest batch that fits is for accelerators; on a CPU give a batch size")
    known = _about(peers[0]) if peers else {}
    note = None if peers else "no peer was asked for"
    if failed(known):
        note = f"no peer: {known['text']} in {peers[0].python}; --peer-python names another interpreter"
    present = [] if note else peers
    settings = {"device": about["device"], "dtype": about["dtype"], "threads": threads(), **OPTIMIZER}
    rows = []
    for shape in asked:
        if shape.batch_size == 0:
            shape = largest_batch(shape, [ours, *present], settings)
        sampled = (_one_by_one if alone else _in_turn)(shape, [ours, *present], settings, rounds, seconds)
        rows += rows_of(shape, ours, present, sampled, note)
    return {
        "rows": rows, "device": about["kind"], "platform": about["platform"], "threads": settings["threads"], "dtype": about["dtype"],
        "rounds": rounds, "seconds_per_round": seconds, "optimizer": OPTIMIZER, "versions": {**about["versions"], **known.get("versions", {})},
    }  # fmt: skip


def threads() -> int:
    """The processors that this process may use: as many threads as XLA takes, and as the peer is given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def say(message: str) -> None:
    """Where the benchmark stands, on standard error."""
    print(message, file=sys.stderr, flush=True)


def _about(side: Side) -> Reply:
    with started(side) as ask:
        return ask("about")


def _build(ask: Ask, side: Side, shape: Shape, settings: dict[str, Any]) -> Reply:
    """Compiles a side at a shape and says how it went."""
    reply = ask("build", **dataclasses.asdict(shape), **settings)
    if failed(reply):
        say(f"{shape}: {side.name}: {reply['error']}: {reply['text']}")
    else:
        took, step = reply["compile_seconds"], 1000 * reply["step_seconds"]
        say(f"{shape}: {side.name} is ready, {took:.1f} s of compilation, {step:.1f} ms a step")
    return reply


def _in_turn(shape: Shape, contenders: Sequence[Side], settings, rounds: int, seconds: float) -> list[Sample]:
    """All sides stand by, and are timed one round each, in turn."""
    with contextlib.ExitStack() as stack:
        asks = [stack.enter_context(started(side)) for side in contenders]
        samples = [Sample(_build(ask, side, shape, settings)) for ask, side in zip(asks, contenders, strict=True)]
        for _ in range(rounds):
            for ask, sample in zip(asks, samples, strict=True):
                if not failed(sample.built):
                    sample.add(ask("time", seconds=seconds), shape)
        return samples


def _one_by_one(shape: Shape, contenders: Sequence[Side], settings, rounds: int, seconds: float) -> list[Sample]:
    """The sides one after the other, each with the whole device: for accelerators, whose memory one process takes."""
    return [sample for side in contenders for sample in _in_turn(shape, [side], settings, rounds, seconds)]


def largest_batch(shape: Shape, contenders: Sequence[Side], settings: dict[str, Any]) -> Shape:
    """The shape with the largest power of two of rows that every side holds; one that fails for another reason has no say.

    Our side doubles from FIRST_BATCH (or halves, where that does not fit); each of the others halves what is left. Every try has a
    fresh process. Raises UserError when not one row fits, RuntimeError when our side fails for another reason.
    """

    def fits(side: Side, batch: int) -> bool:
        with started(side) as ask:
            reply = _build(ask, side, dataclasses.replace(shape, batch_size=batch), settings)
        if failed(reply) in ("out_of_memory", "died"):
            return False
        if side is ours:
            expect(reply, side, shape)
        return True

    ours, *peers = contenders
    batch = FIRST_BATCH
    while fits(ours, batch):
        batch *= 2
    batch //= 2
    for side in [ours, *peers] if batch < FIRST_BATCH else peers:
        while batch and not fits(side, batch):
            batch //= 2
    if not batch:
        raise UserError(f"not one row of {shape} fits in the device's memory; give --shapes with a smaller context")
    return dataclasses.replace(shape, batch_size=batch)
