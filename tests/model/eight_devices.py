"""Run by test_devices.py in a process with 8 devices: prints, for each mesh, how far loss and gradients are from one device's."""

import json
import sys

import jax
import numpy as np

from research.core import params as P
from research.core import sharding
from research.model import transformer
from research.model.config import ModelConfig
from research.tasks import lm

CONFIG = ModelConfig(
    vocab_size=40, context=6, width=16, layers=2, heads=4, kv_heads=2, mlp_width=32, patterns=("sliding",), window=3, tied=False,
    positions="learned", norm="layer", bias=("mlp-out", "norm"), dropout=0.2,
)  # fmt: skip


TILES = {"fsdp=8": 24}  # tokens whose logits are held at a time; none: all


def main(meshes: list[str]) -> dict:
    draw = np.random.default_rng(0)
    specs = transformer.specs(CONFIG)
    params = P.tree_map(lambda p: (draw.normal(size=p.shape) * 0.3).astype(np.float32), specs)
    tokens = draw.integers(0, 40, (16, 7)).astype(np.int32)
    batch = {
        "tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segments": (np.arange(6)[None] > draw.integers(0, 6, (16, 1))).astype(np.int32),
        "weights": draw.uniform(size=(16, 6)).astype(np.float32),
    }  # fmt: skip

    def program(tile=None):
        def mean(params, batch):
            total, weight, _ = lm.make_loss(CONFIG, lm.LMConfig(head_tile=tile))(params, batch, jax.random.key(1))
            return total / weight

        return jax.jit(jax.value_and_grad(mean))

    value, gradients = program()(jax.device_put(params, jax.devices()[0]), jax.device_put(batch, jax.devices()[0]))
    flat, results = P.flatten(specs), {}
    matrices = [path for path, p in flat.items() if path.startswith("decoder") and p.kind == "matrix"]
    for text in meshes:
        mesh = sharding.make_mesh(text)
        where = sharding.shardings(specs, mesh)
        placed = jax.device_put(params, where)
        with sharding.use(mesh):
            found, spread = program(TILES.get(text))(placed, sharding.put_rows(batch, mesh))
        far = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max() / np.abs(b).max()), spread, gradients)
        shards, spread, placed = P.flatten(where), P.flatten(spread), P.flatten(placed)
        results[text] = {
            "loss": abs(float(found) - float(value)) / float(value),
            "gradients": max(jax.tree.leaves(far)),
            "on their shards": all(
                spread[path].sharding.is_equivalent_to(shards[path], len(flat[path].shape)) for path in matrices
            ),
            "shares": sorted({placed[path].addressable_shards[0].data.size / flat[path].size for path in matrices}),
        }
    return results


if __name__ == "__main__":
    assert jax.device_count() == 8
    print(json.dumps(main(sys.argv[1:])))
