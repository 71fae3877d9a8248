"""`research bench data`: how fast batches come from the loader to the device, beside how fast the step uses them up; and rows of what comes
before, each beside a peer or a limit (`data_rows.py`).

Of the first, three things are timed in turn, the median round counts: batches alone (cut by the prefetching thread, put on the device, waited
for), steps alone (of batches that are on the device already: the demand), and steps fed by the prefetching loader, as in training.
"""

import contextlib
import dataclasses
import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from research.bench import shapes
from research.bench.rows import aligned
from research.bench.shapes import Shape
from research.bench.train import OPTIMIZER
from research.bench.worker import timed_round, warm_up
from research.core import config as C
from research.core.errors import UserError

ROWS = (32, 1024)  # and tokens of each, in the batches that are read beside peers; fewer where the text is short
READY = 8  # batches on the device beforehand, for the steps that are timed alone


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    data: str = "python_stdlib"  # a source of text, as in training
    text_field: str | None = None  # of records: the field that holds the text; None: text
    tokenizer: str = "byte"  # byte, char, bpe:SIZE, or a tokenizer.json
    shape: str = "small"  # small, medium, gpt2, or LAYERSxWIDTHxHEADSxCONTEXTxBATCHxVOCABULARY; the vocabulary is the tokeniser's
    seconds: float = 6.0  # of timing, for each of the three
    rounds: int = 3  # that the time is split into; the median counts
    gigabytes: float = 0.5  # of the corpus that is generated and prepared while its memory is watched; 0: none
    images: int = 64  # JPEG files that are decoded; 0: none
    json: bool = False  # the last line is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors

    def __post_init__(self):
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"--seconds is {self.seconds}; expected a number above 0")
        if self.rounds < 1:
            raise UserError(f"--rounds is {self.rounds}; expected a whole number of at least 1")
        if not 0 <= self.gigabytes < float("inf") or self.images < 0:
            raise UserError(f"--gigabytes is {self.gigabytes} and --images {self.images}; expected 0 or more")


def main(argv: Sequence[str]) -> int:
    """`research bench data [options]`: prints a few lines, and with `--json` one JSON object on the last line."""
    arguments: Arguments = C.parse(Arguments(), argv, "research bench data", main.__doc__ or "")
    shape = shapes.parse(arguments.shape)
    if shape.batch_size == 0:
        raise UserError(f"--shape: {arguments.shape} has no batch size; give one that has")
    result = {**measure(arguments, shape), "rows": beside(arguments, shape)}
    print("\n".join(lines(result)))
    if arguments.json:
        print(json.dumps(result), flush=True)
    return 0


def measure(arguments: Arguments, shape: Shape) -> dict[str, Any]:
    """The result as JSON values. Raises UserError for data that cannot be used."""
    from research.bench import ours
    from research.core import host
    from research.data.tokens import prepare
    from research.train import program

    host.prepare()
    corpus = prepare(arguments.data, arguments.tokenizer, text_field=arguments.text_field)
    built = program.build(ours.config_of(shape, None, OPTIMIZER), corpus)
    shape = dataclasses.replace(shape, vocabulary=built.model.V)
    with contextlib.ExitStack() as stack:
        runs = contenders(built, stack)
        rates = {name: [rate * shape.tokens for rate in rounds] for name, rounds in in_turn(runs, arguments).items()}
    loader, demand, fed = (statistics.median(rates[name]) for name in ("loader", "step", "fed"))
    about = ours.about()
    return {
        "shape": str(shape), **dataclasses.asdict(shape), "loader_batches_per_second": loader / shape.tokens, "loader_tokens_per_second": loader,
        "step_tokens_per_second": demand, "ratio": loader / demand, "fed_tokens_per_second": fed, "fed_ratio": fed / demand,
        "rounds": rates, "data": arguments.data, "train_tokens": len(corpus.train), "device": about["kind"], "versions": about["versions"],
    }  # fmt: skip


def beside(arguments: Arguments, shape: Shape) -> list[dict[str, Any]]:
    """The rows of `data_rows.py` on the same data, with a tokeniser of the tokenizers library where ours is none."""
    import tempfile
    from pathlib import Path

    import numpy as np

    from research.bench import data_rows as R
    from research.data import sources
    from research.data import tokenizer as tokenizers
    from research.data.tokens import prepare

    source = sources.resolve(arguments.data, arguments.text_field)
    tokenizer = tokenizers.build(arguments.tokenizer if ":" in arguments.tokenizer else "bpe:1024", source)
    ids = np.asarray(prepare(arguments.data, arguments.tokenizer, text_field=arguments.text_field).train.tokens)
    often, seconds = arguments.rounds, arguments.seconds
    with tempfile.TemporaryDirectory() as folder:
        context = min(ROWS[1], len(ids) // 4)
        rows = R.batches(ids, Path(folder), min(ROWS[0], len(ids) // (context + 1)), context, often, seconds)
        rows += R.tokenising(source, tokenizer, often, seconds)
        rows += R.images(Path(folder), arguments.images, 224, often, seconds) if arguments.images else []
        return rows + (R.memory(Path(folder), arguments.gigabytes) if arguments.gigabytes else [])


def contenders(built: Any, stack: contextlib.ExitStack) -> dict[str, Callable[[int], float]]:
    """What is timed, each as `run(n)`: `loader`, `step` and `fed`. The stack ends their threads."""
    import jax

    from research.bench.ours import stepper
    from research.data.prefetch import prefetch

    def loader():
        return stack.enter_context(
            contextlib.closing(prefetch(built.batches, 0, None, built.put_batch, built.config.prefetch))
        )

    alone, feeding = loader(), loader()
    ready = itertools.cycle([built.put_batch(built.batches(i)) for i in range(READY)])

    def load(n: int) -> float:
        for _ in range(n):
            jax.block_until_ready(next(alone))
        return 0.0

    return {"loader": load, "step": stepper(built, lambda: next(ready)), "fed": stepper(built, lambda: next(feeding))}


def in_turn(runs: dict[str, Callable[[int], float]], arguments: Arguments) -> dict[str, list[float]]:
    """Batches or steps a second, of every round of every run."""
    seconds = arguments.seconds / arguments.rounds
    estimates = {name: warm_up(run)[1] for name, run in runs.items()}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            steps, took, _ = timed_round(run, seconds, estimates[name])
            estimates[name] = took / steps
            rates[name].append(steps / took)
    return rates


def lines(result: dict[str, Any]) -> list[str]:
    """The result for a person."""
    table = [
        ("", "tokens/s", "over the step's demand"),
        ("loader to device", f"{result['loader_tokens_per_second']:,.0f}", f"{result['ratio']:,.1f}"),
        ("step alone (the demand)", f"{result['step_tokens_per_second']:,.0f}", "1.0"),
        ("step fed by the loader", f"{result['fed_tokens_per_second']:,.0f}", f"{result['fed_ratio']:.3f}"),
    ]
    further: list[tuple[str, ...]] = [("", "ours", "unit", "peer", "its", "ratio", "")]
    for row in result["rows"]:
        its = ("", "") if row["ratio"] is None else (f"{row['peer_rate']:,.1f}", f"{row['ratio']:.2f}")
        further.append((row["what"], f"{row['ours']:,.1f}", row["unit"], row["peer"], *its, row["note"] or ""))
    head = f"{result['shape']}; {result['data']}, {result['train_tokens']:,} training tokens; {result['device']}"
    batches = f"{result['loader_batches_per_second']:,.0f} batches/s from the loader"
    return [head, batches, "", *aligned(table), "", *aligned(further)]
