"""How fast this machine reads memory in matrix-vector products: the limit of decoding one row. A side of `worker.py`.

On a CPU the fastest of NumPy's and XLA's products with a matrix as large as the model; elsewhere XLA's, and a copy, which is what vendors quote.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.bench.ours import about

__all__ = ["about", "build"]

COLUMNS = 4096
TRIES = 5


def build(request: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[[int], float]]:
    """`(facts, run)`: one step reads `bytes` once, by the way that was fastest in a few tries."""
    platform = jax.default_backend()
    dtype = jnp.float32 if platform == "cpu" else jnp.bfloat16
    rows = max(1, int(request["bytes"]) // (COLUMNS * np.dtype(dtype).itemsize))
    ways = _ways(rows, dtype, platform == "cpu")
    name = min(ways, key=lambda name: _least(ways[name]))
    way = ways[name]

    def run(steps: int) -> float:
        for _ in range(steps):
            way()
        return 0.0

    return {"way": name, "bytes": rows * COLUMNS * np.dtype(dtype).itemsize * (2 if name == "copy" else 1)}, run


def _ways(rows: int, dtype, cpu: bool) -> dict[str, Callable[[], Any]]:
    w = jax.jit(lambda: jax.random.uniform(jax.random.key(0), (rows, COLUMNS), jnp.float32).astype(dtype))()
    x = jnp.ones(COLUMNS, dtype)
    product = jax.jit(jnp.matmul)
    ways: dict[str, Callable[[], Any]] = {"xla": lambda: product(w, x).block_until_ready()}
    if cpu:
        w_host, x_host = np.asarray(w), np.asarray(x)
        return {**ways, "numpy": lambda: w_host @ x_host}
    copy = jax.jit(lambda w: w + jnp.ones((), dtype))
    return {**ways, "copy": lambda: copy(w).block_until_ready()}


def _least(way: Callable[[], Any]) -> float:
    way()
    taken = []
    for _ in range(TRIES):
        began = time.perf_counter()
        way()
        taken.append(time.perf_counter() - began)
    return min(taken)
