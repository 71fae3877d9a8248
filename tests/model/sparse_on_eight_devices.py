"""Run by test_moe_devices.py in a process with 8 devices: for each case, how far a sparse model's loss and gradients are from one device's."""

import dataclasses
import json
import sys

import jax
import numpy as np

from research.core import params as P
from research.core import sharding
from research.model import transformer
from research.model.config import ModelConfig, MoEConfig
from research.tasks import lm

CONFIG = ModelConfig(
    vocab_size=40, context=6, width=16, layers=1, heads=2, feed_forward=("moe",), moe=MoEConfig(experts=4, top_k=2, width=8, shared_width=8)
)  # fmt: skip
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
TASK = lm.LMConfig(balance_loss=0.1, router_z_loss=0.01)


def main(cases: list[str]) -> dict:
    """What the tests ask of each case, which is `MESH IMPLEMENTATION CAPACITY_FACTOR`."""
    draw = np.random.default_rng(0)
    specs = transformer.specs(CONFIG)
    params = P.tree_map(lambda p: (draw.normal(size=p.shape) * 0.3).astype(np.float32), specs)
    tokens = draw.integers(0, 40, (16, 7)).astype(np.int32)
    weights = draw.uniform(size=(16, 6)).astype(np.float32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}

    def program(implementation, factor):
        options = dataclasses.replace(CONFIG.moe, implementation=implementation, capacity_factor=factor)
        loss = lm.make_loss(dataclasses.replace(CONFIG, moe=options), TASK)

        def mean(params, batch):
            total, weight, _ = loss(params, batch)
            return total / weight

        return jax.jit(jax.value_and_grad(mean))

    alone, results = {}, {}
    for case in cases:
        text, implementation, factor = case.split()
        factor = None if factor == "none" else float(factor)
        if factor not in alone:
            alone[factor] = program("dense", factor)(*jax.device_put((params, batch), jax.devices()[0]))
        value, gradients = alone[factor]
        mesh = sharding.make_mesh(text)
        placed = jax.device_put(params, sharding.shardings(specs, mesh))
        with sharding.use(mesh):
            rows = sharding.put_rows(batch, mesh)
            compiled = program(implementation, factor).lower(placed, rows).compile()
        found, spread = compiled(placed, rows)
        far = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max() / np.abs(b).max()), spread, gradients)
        experts = P.flatten(placed)["decoder/0/0/mlp/in"]
        results[case] = {
            "loss": abs(float(found) - float(value)) / float(value),
            "gradients": max(jax.tree.leaves(far)),
            "share": experts.addressable_shards[0].data.size / experts.size,
            "collectives": sorted({kind for kind in COLLECTIVES if f" {kind}(" in compiled.as_text()}),
        }
    return results


if __name__ == "__main__":
    assert jax.device_count() == 8
    print(json.dumps(main(sys.argv[1:])))
