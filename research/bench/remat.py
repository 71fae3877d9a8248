"""`research bench remat`: what each policy of recomputation takes in memory and in time, of one training step, in one run."""

import dataclasses
import functools
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax

from research.bench import ours, shapes
from research.bench.rows import aligned
from research.bench.train import OPTIMIZER
from research.core import config as C
from research.core.errors import UserError
from research.scale import aot, roofline, search
from research.train.program import Program


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    # LAYERSxWIDTHxHEADSxCONTEXTxBATCHxVOCABULARY, or a name as for bench train; None: 12 layers of 256 on a CPU, GPT-2 350M elsewhere
    shape: str | None = None
    rounds: int = 7  # of each policy, in turn; the median counts
    json: bool = False  # the last line is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors

    def __post_init__(self):
        if self.rounds < 1:
            raise UserError(f"--rounds is {self.rounds}; expected a whole number of at least 1")


def main(argv: Sequence[str]) -> int:
    """`research bench remat [options]`: prints a table, and with `--json` one JSON object on the last line."""
    arguments: Arguments = C.parse(Arguments(), argv, "research bench remat", main.__doc__ or "")
    on_cpu = jax.default_backend() == "cpu"
    shape = shapes.parse(arguments.shape or ("12x256x4x512x8x512" if on_cpu else "gpt2-medium"), "--shape")
    if shape.batch_size < 1:
        raise UserError(f"--shape {arguments.shape} has no batch; give one with a batch of at least 1")
    result = {"shape": str(shape), "device": ours.about()["kind"], "rows": measure(shape, arguments.rounds)}
    print("\n".join(lines(result)))
    if arguments.json:
        print(json.dumps(result), flush=True)
    return 0


def measure(shape: shapes.Shape, rounds: int) -> list[dict[str, Any]]:
    """For each policy: bytes at the step's peak, bytes that the forward pass keeps by the planner's arithmetic, and seconds of a step."""
    sides = [_side(shape, policy) for policy in search.POLICIES]
    seconds: list[list[float]] = [[] for _ in sides]
    for _, (taken, (run, _, _)) in itertools.product(range(rounds), list(zip(seconds, sides, strict=True))):
        began = time.perf_counter()
        run(1)
        taken.append(time.perf_counter() - began)
    none, least = sides[0][1], statistics.median(seconds[0])
    return [
        {"remat": policy, "peak_bytes": peak, "of_memory": peak / none, "kept_bytes": kept, "seconds": statistics.median(taken),
         "of_time": statistics.median(taken) / least, "rounds": taken}
        for policy, (_, peak, kept), taken in zip(search.POLICIES, sides, seconds, strict=True)
    ]  # fmt: skip


def _side(shape: shapes.Shape, policy: str) -> tuple[Any, int, float]:
    """(a function that does so many steps, bytes at the step's peak, bytes that are kept by arithmetic)."""
    program = ours.one_device_program(shape, OPTIMIZER)
    model = dataclasses.replace(program.model, remat=policy, unroll=1)  # a loop over the layers, as of large models
    program = Program(
        dataclasses.replace(program.config, model=model), program.corpus, model, program.mesh, program.hypers
    )
    cpu = program.mesh.devices.flat[0].platform == "cpu"
    peak = aot.peak_bytes(program.compiled_step, cpu)
    kept = roofline.kept_bytes(model, shape.tokens, 1, 1) * (2 if cpu else 1)
    batches = itertools.cycle([program.put_batch(program.batches(i)) for i in range(2)])
    run = ours.stepper(program, functools.partial(next, batches))
    run(1)
    return run, peak, kept


def lines(result: dict[str, Any]) -> list[str]:
    """The result for a person."""
    table = [("remat", "GiB at the peak", "of none", "GiB kept by arithmetic", "ms a step", "of none")]
    table += [
        (row["remat"], f"{row['peak_bytes'] / 2**30:.2f}", f"{row['of_memory']:.2f}", f"{row['kept_bytes'] / 2**30:.2f}",
         f"{1000 * row['seconds']:.0f}", f"{row['of_time']:.2f}")
        for row in result["rows"]
    ]  # fmt: skip
    return [f"{result['device']}; {result['shape']}", "", *aligned(table)]
