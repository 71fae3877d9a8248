"""How fast this machine reads memory in matrix-vector products: the limit of decoding one row. A side of `worker.py`.

The products are those of one token with the model's own matrices, one after the other and nothing else, by the faster of NumPy and XLA on a CPU; on
an accelerator by XLA, or a copy of one array of as many bytes, which is what vendors quote: by whichever moves more bytes a second.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.bench.ours import about

__all__ = ["about", "build"]

TRIES = 5


def build(request: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[[int], float]]:
    """`(facts, run)`: one step reads `bytes` once, by the way that was fastest in a few tries."""
    on_cpu = jax.default_backend() == "cpu"
    dtype = jnp.float32 if on_cpu else jnp.bfloat16
    read = sum(rows * columns for rows, columns in shapes(request)) * np.dtype(dtype).itemsize
    ways, moved = _ways(shapes(request), dtype, on_cpu), {"copy": 2 * read}
    name = max(ways, key=lambda name: moved.get(name, read) / _least(ways[name]))
    way = ways[name]

    def run(steps: int) -> float:
        for _ in range(steps):
            way()
        return 0.0

    return {"way": name, "bytes": moved.get(name, read)}, run


def shapes(request: Mapping[str, Any]) -> list[tuple[int, int]]:
    """`(rows, columns)` of the matrices that a token of GPT-2 meets: queries, keys and values, their output, the feed-forward's two; the head."""
    D = request["width"]
    return [(3 * D, D), (D, D), (4 * D, D), (D, 4 * D)] * request["layers"] + [(request["vocabulary"], D)]


def _ways(sizes: list[tuple[int, int]], dtype, on_cpu: bool) -> dict[str, Callable[[], Any]]:
    ws = [jnp.full(size, 0.5, dtype) for size in sizes]
    xs = {columns: jnp.ones(columns, dtype) for _, columns in sizes}
    products = jax.jit(lambda ws, xs: [w @ xs[w.shape[1]] for w in ws])
    ways: dict[str, Callable[[], Any]] = {"xla": lambda: jax.block_until_ready(products(ws, xs))}
    if on_cpu:
        ws_host, xs_host = [np.array(w) for w in ws], {n: np.array(x) for n, x in xs.items()}
        return {**ways, "numpy": lambda: [w @ xs_host[w.shape[1]] for w in ws_host]}
    whole = jnp.zeros(sum(rows * columns for rows, columns in sizes), dtype)
    copy = jax.jit(lambda whole: whole + jnp.ones((), dtype))
    return {**ways, "copy": lambda: jax.block_until_ready(copy(whole))}


def _least(way: Callable[[], Any]) -> float:
    way()
    taken = []
    for _ in range(TRIES):
        began = time.perf_counter()
        way()
        taken.append(time.perf_counter() - began)
    return min(taken)
