"""`research bench sweep`: the wall clock of a sweep beside that of its runs one by one, each with what it really takes: start, imports, data,
compilation, training, evaluation.

64 configurations (8 learning rates, 4 weight decays, 2 seeds) of a model of 2 layers and width 64 train for 100 steps of 8 rows of 32 tokens. Ours is
one command. Beside it stand 64 processes of `research train` and 64 runs in one process that shares no compilation, of which a few are timed and
the rest extrapolated. The persistent compilation cache is off, and then on and warm for all. `--crossover` asks instead up to what size of the
model members are faster together.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from research.bench import crossover
from research.bench.crossover import SIZES
from research.bench.rows import aligned
from research.core import config as C
from research.core.errors import UserError
from research.sweep.sweep import to_stderr

RUNS = 64
RATES, DECAYS, SEEDS = "log:1e-4:1e-2:8", "0,0.01,0.03,0.1", 2
EXPERIMENT = "lm_tiny_text"
FIELDS = {
    "model.layers": 2, "model.width": 64, "model.heads": 4, "model.context": 32, "batch_size": 8, "steps": 100, "eval_every": 100,
    "eval_batches": 1, "sample_every": None, "log_every": 10,
}  # fmt: skip
IN_PROCESS = """
import json, sys, time
began = time.perf_counter()
import jax
from research import train
from research.core import config as C
from research.train import experiments
base = C.set_values(experiments.load(sys.argv[1]).config, json.loads(sys.argv[2]), "fields")
started, took = time.perf_counter() - began, []
for n in range(int(sys.argv[3])):
    began = time.perf_counter()
    train.fit(C.set_values(base, {"seed": n, "run_dir": f"{sys.argv[4]}/{n}"}, "run"))
    took.append(time.perf_counter() - began)
    jax.clear_caches()
print(json.dumps({"started": started, "took": took}))
"""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    runs: int = 4  # of the 64 processes, and of the 64 runs in one, that are timed
    warm: bool = True  # also with a warm compilation cache
    crossover: bool = False  # instead: vmapped beside looped members, over sizes of the model
    sizes: tuple[int, ...] = SIZES  # crossover: widths of the model
    plot: str = "sweep-crossover.png"  # crossover: a .png, .svg or .pdf
    json: bool = False  # the last line is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors

    def __post_init__(self):
        if not 1 <= self.runs <= RUNS:
            raise UserError(f"--runs is {self.runs}; expected a whole number from 1 to {RUNS}")
        if not self.sizes or min(self.sizes) < 1:
            raise UserError(f"--sizes is {self.sizes}; expected widths of at least 1")


def main(argv: Sequence[str]) -> int:
    """`research bench sweep [options]`: prints a few lines, and with `--json` one JSON object on the last line."""
    arguments: Arguments = C.parse(Arguments(), argv, "research bench sweep", main.__doc__ or "")
    if arguments.crossover:
        result = crossed(arguments)
        print("\n".join(crossover_lines(result)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(Path(folder), arguments)
        print("\n".join(lines(result)))
    if arguments.json:
        print(json.dumps(result), flush=True)
    return 0


def measure(folder: Path, arguments: Arguments) -> dict[str, Any]:
    """Seconds of all three, cold and warm, and the ratios."""
    environment = {**os.environ, "RESEARCH_CACHE": str(folder / "cache")}
    _run(["data", "prepare", "python_stdlib"], environment)  # the corpus is there for all
    cold = _sides(folder / "cold", {**environment, "JAX_ENABLE_COMPILATION_CACHE": "false"}, arguments.runs)
    out = {"trials": RUNS, "timed": arguments.runs, **cold, **_ratios(cold)}
    if arguments.warm:
        _sides(folder / "first", environment, 1)  # which fills the cache
        warm = _sides(folder / "warm", environment, arguments.runs)
        out |= {f"{name}_warm": value for name, value in {**warm, **_ratios(warm)}.items()}
    return out


def _ratios(found: dict[str, float]) -> dict[str, float]:
    return {f"vs_{name}": found[f"{name}_seconds"] / found["seconds"] for name in ("processes", "in_process")}


def _sides(folder: Path, environment: dict[str, str], runs: int) -> dict[str, float]:
    """Seconds of the sweep, of 64 processes and of 64 runs in one."""
    swept = [f"{name}={value}" for name, value in FIELDS.items()]
    space = [f"optimizer.learning_rate={RATES}", f"optimizer.weight_decay={DECAYS}", "--seeds", str(SEEDS)]
    ours = _run(["sweep", EXPERIMENT, *swept, *space, "--out", str(folder / "sweep")], environment)
    options = [word for name, value in FIELDS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    alone = [
        _run(["train", EXPERIMENT, *options, "--seed", str(n), "--run-dir", str(folder / f"alone{n}")], environment)
        for n in range(runs)
    ]
    command = [sys.executable, "-c", IN_PROCESS, EXPERIMENT, json.dumps(FIELDS), str(runs), str(folder / "one")]
    told = json.loads(_finished(command, environment).splitlines()[-1])
    return {
        "seconds": ours, "processes_seconds": RUNS * statistics.mean(alone),
        "in_process_seconds": told["started"] + RUNS * statistics.mean(told["took"]),
    }  # fmt: skip


def _run(words: Sequence[str], environment: dict[str, str]) -> float:
    """The wall clock of a command of ours."""
    began = time.perf_counter()
    _finished([sys.executable, "-m", "research", *words], environment)
    return time.perf_counter() - began


def _finished(command: Sequence[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:5])} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def lines(result: dict[str, Any]) -> list[str]:
    """The result for a person."""
    table: list[tuple[str, ...]] = [
        ("", "seconds", "ratio", *(("warm cache", "ratio") if "seconds_warm" in result else ()))
    ]
    for name, key, ratio in (
        ("one sweep", "seconds", None),
        (f"{RUNS} processes", "processes_seconds", "vs_processes"),
        (f"{RUNS} runs in one process", "in_process_seconds", "vs_in_process"),
    ):
        row = [name]
        for suffix in ("", "_warm") if "seconds_warm" in result else ("",):
            row += [f"{result[key + suffix]:.1f}", "" if ratio is None else f"{result[ratio + suffix]:.1f}"]
        table.append(tuple(row))
    return [
        f"{RUNS} runs of {FIELDS['steps']} steps; {result['timed']} of the others timed, the rest extrapolated",
        "",
        *aligned(table),
    ]


def crossed(arguments: Arguments) -> dict[str, Any]:
    """Vmapped beside looped members on this device, and the plot."""
    rows = crossover.measure(EXPERIMENT, FIELDS, arguments.sizes, to_stderr)
    crossover.plot(rows, Path(arguments.plot).expanduser())
    return {
        "device": jax.devices()[0].device_kind,
        "rows": rows,
        "crossover_params": crossover.crossing(rows),
        "plot": arguments.plot,
    }


def crossover_lines(result: dict[str, Any]) -> list[str]:
    """The result for a person."""
    table: list[tuple[str, ...]] = [("width", "parameters", "looped tokens/s", "vmapped", "members", "ratio")]
    for row in result["rows"]:
        wide = ("-", "-", "-")
        if "ratio" in row:
            wide = (f"{row['vmapped_tokens_per_second']:,.0f}", str(row["members"]), f"{row['ratio']:.2f}")
        table.append((str(row["width"]), f"{row['params']:,}", f"{row['looped_tokens_per_second']:,.0f}", *wide))
    end = result["crossover_params"]
    said = "vmap pays at every size" if end is None else f"vmap pays below {end:,} parameters"
    return [result["device"], "", *aligned(table), "", f"{said}; plot: {result['plot']}"]
