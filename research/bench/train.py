"""`research bench train`: tokens/s of our training step and of transformers' GPT-2 on PyTorch, side by side in one run.

Every side has a process of its own (`worker.py`), so that neither allocators nor thread pools meet. On a CPU the processes of a shape
stand by together and are timed in turn, a short round each, over and over, since machines drift; all but one are blocked on their input
at any time, and the median round counts. On an accelerator the sides have its memory one after the other.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import research
from research.bench import shapes
from research.bench.process import Ask, Reply, Side, failed, started, tokens_per_second
from research.bench.shapes import Shape
from research.core import config as C
from research.core.errors import UserError

FOLDER = Path(__file__).parent
OURS = "ours"
OPTIMIZER = {"learning_rate": 3e-4, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "clip_norm": 1.0}
MODES = {"both": ("eager", "compiled"), "eager": ("eager",), "compiled": ("compiled",), "none": ()}
PEER_SETTINGS = ("attention", "adamw", "clipping")  # what the peer chose among PyTorch's implementations
FIRST_BATCH = 32  # where the search for the largest batch begins
BUSY, SPREAD = 0.15, 1.25  # from where on others on the machine, and rounds that differ, are worth a warning
MEMORY_FRACTION = "0.92"  # of a GPU for our process, which has it alone; JAX's own default is 0.75


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    shapes: tuple[
        str, ...
    ] = ()  # small, medium, gpt2, gpt2-largest-batch, or LAYERSxWIDTHxHEADSxCONTEXTxBATCHxVOCABULARY; none given: those of the device
    seconds: float = 15.0  # of timing, for each side at each shape
    rounds: int = 5  # that the time is split into; the median counts
    peer: Literal["both", "eager", "compiled", "none"] = "both"
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


def doubts(rows: Sequence[dict[str, Any]], busy: float) -> list[str]:
    """Why the figures may not be worth much, a line for each reason."""
    found = []
    if busy > BUSY:
        found.append(f"warning: {busy:.0%} of the processors were in use before the start; measure on an idle machine")
    for row in rows:
        for name, rates in ((OURS, row["ours_rounds"]), (row["peer"], row["peer_rounds"])):
            if rates and max(rates) > SPREAD * min(rates):
                found.append(
                    f"warning: {row['shape']}: rounds of {name} lie between {min(rates):,.0f} and {max(rates):,.0f} tokens/s"
                )
    return list(dict.fromkeys(found))


def sides(arguments: Arguments) -> tuple[Side, list[Side]]:
    """Our side and the peers that are asked for."""
    path = os.pathsep.join(filter(None, [str(Path(research.__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    environment = {
        "PYTHONPATH": path,
        "XLA_PYTHON_CLIENT_MEM_FRACTION": os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", MEMORY_FRACTION),
    }
    python = arguments.peer_python or sys.executable
    script = FOLDER / "peer_torch.py"
    peers = [Side(f"transformers, PyTorch {mode}", python, script, {"mode": mode}) for mode in MODES[arguments.peer]]
    return Side(OURS, sys.executable, FOLDER / "ours.py", environment=environment), peers


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
    note = f"no peer: {known['text']}" if failed(known) else "no peer was asked for" if not peers else None
    present = [] if note else peers
    settings = {"device": about["device"], "dtype": about["dtype"], "threads": threads(), **OPTIMIZER}
    rows = []
    for shape in asked:
        if shape.batch_size == 0:
            shape = largest_batch(shape, [ours, *present], settings)
        sampled = (_one_by_one if alone else _in_turn)(shape, [ours, *present], settings, rounds, seconds)
        rows += _rows(shape, ours, present, sampled, note)
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


def expect(reply: Reply, side: Side, shape: Shape | None) -> Reply:
    """The reply, which our own side owes. Raises UserError where memory ran out, RuntimeError for any other failure."""
    kind = failed(reply)
    if kind == "out_of_memory":
        raise UserError(
            f"{side.name} runs out of memory at {shape} ({reply['text']}); give --shapes with a smaller batch or context"
        )
    if kind is not None:
        raise RuntimeError(f"{side.name} failed{f' at {shape}' if shape else ''}: {reply['text']}")
    return reply


def _about(side: Side) -> Reply:
    with started(side) as ask:
        return ask("about")


def _build(ask: Ask, side: Side, shape: Shape, settings: dict[str, Any]) -> Reply:
    """Compiles a side at a shape and says how it went."""
    reply = ask("build", **dataclasses.asdict(shape), **settings)
    if failed(reply):
        say(f"{shape}: {side.name}: {reply['error']}: {reply['text']}")
    else:
        say(
            f"{shape}: {side.name} is ready, {reply['compile_seconds']:.1f} s of compilation, {1000 * reply['step_seconds']:.1f} ms a step"
        )
    return reply


@dataclasses.dataclass
class Sample:
    """What a side did at a shape: the reply to its building, and tokens/s of its rounds."""

    built: Reply
    rates: list[float] = dataclasses.field(default_factory=list)

    def add(self, reply: Reply, shape: Shape) -> None:
        if failed(reply):
            self.built = reply
        else:
            self.rates.append(tokens_per_second(reply, shape.tokens))

    @property
    def median(self) -> float | None:
        return None if failed(self.built) else statistics.median(self.rates)


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
    fresh process. Raises UserError when not one row fits.
    """

    def fits(side: Side, batch: int) -> bool:
        with started(side) as ask:
            return failed(_build(ask, side, dataclasses.replace(shape, batch_size=batch), settings)) not in (
                "out_of_memory",
                "died",
            )

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


def _rows(
    shape: Shape, ours: Side, peers: Sequence[Side], samples: Sequence[Sample], note: str | None
) -> list[dict[str, Any]]:
    """One row for each peer, or one without."""
    mine, *others = samples
    built = expect(mine.built, ours, shape)
    assert mine.median is not None
    of_peak = built["flops_per_token"] / built["peak_flops"]
    common = {
        "shape": str(shape), **dataclasses.asdict(shape), "params": built["params"], "ours_tokens_per_second": mine.median,
        "compile_seconds": built["compile_seconds"], "mfu": mine.median * of_peak, "peak": built["peak_source"], "ours_rounds": mine.rates,
    }  # fmt: skip
    absent = {"peer": None, "peer_tokens_per_second": None, "ratio": None, "note": note}
    absent.update(dict.fromkeys(("peer_compile_seconds", "peer_mfu", "peer_rounds", "peer_settings")))
    if not peers:
        return [{**common, **absent}]
    rows = []
    for side, sample in zip(peers, others, strict=True):
        row = {**common, **absent, "peer": side.name}
        if sample.median is None:
            rows.append({**row, "note": f"{sample.built['error']}: {sample.built['text']}"})
            continue
        if sample.built["params"] != built["params"]:
            raise RuntimeError(
                f"{side.name} has {sample.built['params']:,} parameters, ours {built['params']:,}; that is not the same model"
            )
        rows.append({
            **row, "peer_tokens_per_second": sample.median, "ratio": mine.median / sample.median, "peer_mfu": sample.median * of_peak,
            "peer_compile_seconds": sample.built["compile_seconds"], "peer_rounds": sample.rates,
            "peer_settings": {name: sample.built.get(name) for name in PEER_SETTINGS},
        })  # fmt: skip
    return rows


def lines(result: dict[str, Any]) -> list[str]:
    """The result for a person."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    head = [f"{result['device']}, {result['threads']} threads, {result['dtype']}; {versions}"]
    head += [
        f"tokens/s, median of {result['rounds']} rounds; MFU against the {source}"
        for source in sorted({r["peak"] for r in result["rows"]})
    ]
    table = [("shape", "ours", "MFU", "compile", "peer", "its", "ratio")]
    for row in result["rows"]:
        rate, ratio = row["peer_tokens_per_second"], row["ratio"]
        said = (
            row["peer"] or row["note"] if rate is not None or row["peer"] is None else f"{row['peer']} ({row['note']})"
        )
        table.append((
            row["shape"], f"{row['ours_tokens_per_second']:,.0f}", f"{row['mfu']:.1%}", f"{row['compile_seconds']:.1f} s", said,
            "" if rate is None else f"{rate:,.0f}", "" if ratio is None else f"{ratio:.2f}",
        ))  # fmt: skip
    return [*head, "", *aligned(table)]


def aligned(table: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of text in columns; those of numbers, where they have a digit first, to the right."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    right = [all(row[i][:1].isdigit() or not row[i] for row in table[1:]) and i > 0 for i in range(len(widths))]
    return [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in table
    ]
