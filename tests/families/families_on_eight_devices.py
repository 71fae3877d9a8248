"""Run by test_family_devices.py in a process with 8 devices: how far loss and gradients of each family are from one device's, on some meshes each."""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from research import families
from research.core import params as P
from research.core import sharding
from research.model import transformer
from research.tasks import lm

ROWS, LENGTH = 8, 8


def batch(vocabulary: int) -> dict:
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, vocabulary, (ROWS, LENGTH + 1)).astype(np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": draw.uniform(size=(ROWS, LENGTH)).astype(np.float32),
    }


def far(found, expected) -> float:
    """The largest distance of any leaf, of its own largest value. What is zero but for rounding (the gradient of a bias of keys) has none."""
    largest = max(float(np.abs(b).max()) for b in jax.tree.leaves(expected))
    distance = jax.tree.map(
        lambda a, b: float(np.abs(np.asarray(a) - b).max() / max(np.abs(b).max(), 1e-3 * largest)), found, expected
    )
    return max(jax.tree.leaves(distance))


def main(asked: dict[str, tuple[dict, list[str]]]) -> dict:
    """`asked`: name -> (published config, meshes)."""
    results = {}
    for name, (values, meshes) in asked.items():
        config = families.of_hf(values).config_from_hf(values)
        specs, rows, loss = transformer.specs(config), batch(config.V), lm.make_loss(config, lm.LMConfig())
        draw = np.random.default_rng(1)
        params = P.tree_map(lambda p, draw=draw: (draw.normal(size=p.shape) * 0.3).astype(np.float32), specs)

        def mean(params, batch, loss=loss):
            total, weight, _ = loss(params, batch)
            return total / weight

        alone = jax.jit(jax.value_and_grad(mean))(*jax.device_put((params, rows), jax.devices()[0]))
        for text in meshes:
            mesh = sharding.make_mesh(text)
            placed = jax.device_put(params, sharding.shardings(specs, mesh))
            with sharding.use(mesh):
                spread = jax.jit(jax.value_and_grad(mean))(placed, sharding.put_rows(rows, mesh))
            results[f"{name} {text}"] = far(spread, alone)
    return results


if __name__ == "__main__":
    assert jax.device_count() == 8
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
