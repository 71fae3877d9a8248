"""Run by test_pipeline.py in a process with 8 devices: how far the loss and gradients of a pipeline are from those of one device."""

import dataclasses
import json
import sys
from collections import Counter

import jax
import numpy as np

from research.core import params as P
from research.core import sharding
from research.model import transformer
from research.model.config import ModelConfig, MoEConfig
from research.scale import hlo
from research.tasks import lm

ROWS, LENGTH = 16, 8
CONFIG = ModelConfig(vocab_size=64, context=LENGTH, width=16, heads=4, layers=8, kv_heads=2)
MOE = MoEConfig(experts=4, top_k=2)
KINDS = {
    "gpipe": {},
    "packed": {},
    "circular": {"pipeline_rounds": 2, "remat": "full"},
    "thrice": {"pipeline_rounds": 3, "layers": 12, "remat": "matmuls"},
    "sparse": {"feed_forward": ("moe",), "moe": MOE},
    "rest": {"feed_forward": ("dense", "moe"), "moe": MOE, "layers": 9},
}


def batch(packed: bool) -> dict:
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, 64, (ROWS, LENGTH + 1)).astype(np.int32)
    out = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": draw.uniform(size=(ROWS, LENGTH)).astype(np.float32),
    }
    if packed:
        out["segments"] = np.sort(draw.integers(0, 3, (ROWS, LENGTH)), axis=1).astype(np.int32)
    return out


def far(found, expected) -> float:
    distance = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max() / np.abs(b).max()), found, expected)
    return max(jax.tree.leaves(distance))


def compared(text: str, kinds: list[str]) -> dict:
    config = dataclasses.replace(CONFIG, **KINDS[kinds[0]])
    sparse = "moe" in config.feed_forward
    loss = lm.make_loss(config, lm.LMConfig(balance_loss=0.5, router_z_loss=0.1) if sparse else lm.LMConfig())
    specs, rows, draw = transformer.specs(config), batch("packed" in kinds), np.random.default_rng(1)
    params = P.tree_map(lambda p: (draw.normal(size=p.shape) * 0.3).astype(np.float32), specs)

    def mean(params, batch):
        total, weight, _ = loss(params, batch)
        return total / weight

    alone = jax.jit(jax.value_and_grad(mean))(*jax.device_put((params, rows), jax.devices()[0]))
    mesh = sharding.make_mesh(text)
    where = sharding.shardings(specs, mesh)
    with sharding.use(mesh):
        given = jax.device_put(params, where), sharding.put_rows(rows, mesh)
        compiled = jax.jit(jax.value_and_grad(mean), out_shardings=(None, where)).lower(*given).compile()
    found: Counter = Counter()
    for one in hlo.collectives(compiled.as_text(), np.zeros(8, int)):
        found[one.kind] += one.executed
    return {"far": far(compiled(*given), alone), "collectives": found}


def dropped() -> list:
    """Rows of two calls with one key, all of one token whose embedding is 0: what differs between them is what the layers drop."""
    config = dataclasses.replace(CONFIG, dropout=0.5, bias=("attention-output",))
    draw, mesh = np.random.default_rng(1), sharding.make_mesh("stage=8")
    params = P.tree_map(lambda p: (draw.normal(size=p.shape) * 0.3).astype(np.float32), transformer.specs(config))
    params["embed"] = jax.tree.map(np.zeros_like, params["embed"])

    @jax.jit
    def last(params, tokens):
        return transformer.hidden(params, tokens, config, key=jax.random.key(0)).outputs[:, -1, 0]

    with sharding.use(mesh):
        return [np.asarray(last(params, np.ones((ROWS, LENGTH), np.int32))).tolist() for _ in range(2)]


if __name__ == "__main__":
    assert jax.device_count() == 8
    results: dict = {case: compared(case.split()[0], case.split()[1:]) for case in sys.argv[1:]}
    print(json.dumps({**results, "dropout": dropped()}))
