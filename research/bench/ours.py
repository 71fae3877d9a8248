"""Our side: the step that `research train` runs, called as its loop calls it.

A side of `worker.py`. `Program` makes the jitted, donating step with everything that training has: the language-modelling loss, clipping,
AdamW under its schedule, the check for non-finite gradients and all metrics.
"""

import functools
import itertools
import json
import platform
import re
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType

from research.bench.shapes import Shape
from research.core import chips, host
from research.data import tokenizer
from research.data.encoding import byte_description
from research.data.streams import TokenStream
from research.data.tokens import Corpus
from research.families import gpt2
from research.scale import aot, roofline
from research.train import config as C
from research.train.optim import OptimizerConfig, ScheduleConfig
from research.train.program import Program

BATCHES = 8
OPTIMIZER = ("learning_rate", "weight_decay", "beta1", "beta2", "eps", "clip_norm")


def about() -> dict[str, Any]:
    """Versions, and the device that the benchmark is about: its platform as JAX and as PyTorch name it, its kind, the compute dtype."""
    device = jax.devices()[0]
    accelerator = device.platform != "cpu"
    return {
        "versions": {"purestep": _version("purestep"), "jax": jax.__version__, "python": platform.python_version()},
        "platform": device.platform, "device": {"gpu": "cuda"}.get(device.platform, device.platform),
        "kind": device.device_kind if accelerator else _processor(),
        "dtype": "bfloat16" if accelerator else "float32",
    }  # fmt: skip


def _processor() -> str:
    """The processor's own name for itself, where Linux tells it."""
    try:
        names = re.findall(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else f"cpu ({platform.machine()})"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def build(request: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[[int], float]]:
    """`(facts, run)` for one shape: see `worker.py`."""
    host.prepare()  # as training does
    shape = Shape(**{name: request[name] for name in Shape.__dataclass_fields__})
    program = one_device_program(shape, {name: request[name] for name in OPTIMIZER})
    began = time.perf_counter()
    compiled = program.compiled_step  # the same that `step` runs
    compile_seconds = time.perf_counter() - began
    peak, source = _peak()
    batches = itertools.cycle([program.put_batch(program.batches(i)) for i in range(BATCHES)])
    facts = {
        "params": program.n_params,
        "compile_seconds": compile_seconds,
        "flops_per_token": program.flops_per_token,
        "peak_flops": peak,
        "peak_source": source,
        **planned(program, compiled),
    }
    return facts, stepper(program, functools.partial(next, batches))


def planned(program: Program, compiled: Any) -> dict[str, float]:
    """What `research plan` says of the step: tokens/s and bytes at the peak. Nothing of a device without a published peak."""
    chip = chips.lookup(jax.devices()[0].device_kind)
    if chip is None:
        return {}
    seconds = roofline.predict(program, chip, [], np.zeros(1, int)).seconds
    return {
        "planned_tokens_per_second": program.config.step_tokens / seconds,
        "planned_bytes": aot.peak_bytes(compiled, cpu=False),
    }


def peak_bytes() -> int | None:
    """The most bytes of the device that were in use at a time; None where it does not tell."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _peak() -> tuple[float, str]:
    """FLOP/s of the one device, published or measured now."""
    chip = chips.lookup(jax.devices()[0].device_kind)
    if chip:
        return chip.flops, f"published peak of {chip.name}, dense bfloat16"
    return chips.measured_matmul_flops(), "measured: 1024 x 1024 float32 matrix product"


def config_of(shape: Shape, vocabulary: int | None, optimizer: Mapping[str, Any]) -> C.Config:
    """The run of a shape: GPT-2 without dropout, its layers unrolled, AdamW at a constant rate. None: the tokeniser's vocabulary."""
    return C.Config(
        model=gpt2.config(shape.layers, shape.width, shape.heads, vocabulary, shape.context, unroll=shape.layers),
        optimizer=OptimizerConfig(kind="adamw", schedule=ScheduleConfig(kind="constant", warmup_steps=0), **optimizer),
        batch_size=shape.batch_size,
    )


def one_device_program(shape: Shape, optimizer: Mapping[str, float]) -> Program:
    """The program of a shape on the first device, over random tokens."""
    config = config_of(shape, shape.vocabulary, optimizer)
    tokens = np.random.default_rng(0).integers(shape.vocabulary, size=BATCHES * shape.tokens + 2 * shape.context + 1)
    stream = TokenStream(tokens, len(tokens))
    unused = tokenizer.parse(json.dumps(byte_description()), "the byte tokeniser")
    corpus = Corpus(stream, stream, unused, "", "", True)
    mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    return Program(config, corpus, config.model, mesh, C.hypers(config))


def stepper(program: Program, next_batch: Callable[[], Any]) -> Callable[[int], float]:
    """`run(n)`: n steps of one state that goes on from call to call, waited for; returns the last loss.

    As in the training loop, one step stays in flight: what became of a step is read when the next has been dispatched.
    """
    state = program.initial_state()

    def run(steps: int) -> float:
        nonlocal state
        metrics = None
        for _ in range(steps):
            before = metrics
            state, metrics = program.step(state, next_batch(), program.hypers)
            if before is not None:
                int(before["skipped_in_a_row"])
        jax.block_until_ready(state)
        assert metrics is not None
        return float(metrics["loss"])

    return run
