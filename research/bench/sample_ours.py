"""Our side of `research bench sample`: `sample.continuations`, greedily, for prompts of token ids. A side of `worker.py`."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from research.bench.ours import about
from research.core import dtypes, host
from research.core import params as P
from research.families import gpt2
from research.model import transformer
from research.model.config import ModelConfig
from research.sample import engine
from research.sample.models import Loaded
from research.sample.options import Sampling

__all__ = ["about", "build"]

PROMPT_ROUNDS = 5


def build(request: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[[int], float]]:
    """`(facts, run)`: see `worker.py`. One step generates `new` tokens after every prompt of the batch, the prompts included."""
    host.prepare()
    config = gpt2.config(request["layers"], request["width"], request["heads"], request["vocabulary"])
    specs, dtype = transformer.specs(config), dtypes.compute_dtype("auto", np.float32)
    model = Loaded(jax.jit(lambda: P.init(specs, jax.random.key(0), dtype))(), config, None)
    prompts = list(np.random.default_rng(0).integers(config.V, size=(request["batch"], request["prompt"])))

    def generate(tokens: int) -> float:
        found = engine.continuations(model, prompts, Sampling(max_tokens=tokens, temperature=0.0))
        return float(sum(one.tokens[-1] for one in found))

    began = time.perf_counter()
    generate(request["new"])
    compile_seconds = time.perf_counter() - began
    facts = {
        "params": P.count(specs), "bytes_per_step": bytes_per_step(config, request, np.dtype(dtype).itemsize),
        "prompt_seconds": prompt_seconds(generate), "compile_seconds": compile_seconds,
    }  # fmt: skip

    def run(steps: int) -> float:
        return sum(generate(request["new"]) for _ in range(steps))

    return facts, run


def prompt_seconds(generate: Callable[[int], float]) -> float:
    """How long a generation takes whose only token follows from the prompts: the median of a few."""
    generate(1)
    taken = []
    for _ in range(PROMPT_ROUNDS):
        began = time.perf_counter()
        generate(1)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def bytes_per_step(config: ModelConfig, request: Mapping[str, Any], itemsize: int) -> float:
    """What one token of every row reads: every weight once but the tables that are looked up, and the keys and values of all positions so far,
    on the average of the generation."""
    looked_up = config.context * config.width  # of the positions; the tied table is read whole, to unembed
    weights = P.count(transformer.specs(config)) - looked_up
    keys = request["prompt"] + request["new"] / 2
    return itemsize * (weights + request["batch"] * 2 * config.layers * config.K * config.H * keys)
