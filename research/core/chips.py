"""What the hardware can do: one table of published peaks, and a measured matrix product where nothing is published (CPUs).

Dense bfloat16 figures without sparsity. Sources: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e), NVIDIA data sheets (A100 SXM, H100
SXM, H200 SXM, L4).
"""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak dense bfloat16 FLOP/s, memory in bytes, memory bandwidth in bytes/s."""

    name: str
    flops: float
    memory: float
    bandwidth: float


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("TPU v4", 275e12, 32e9, 1228e9),
        Chip("TPU v5e", 197e12, 16e9, 819e9),
        Chip("TPU v5p", 459e12, 95e9, 2765e9),
        Chip("TPU v6e", 918e12, 32e9, 1640e9),
        Chip("A100", 312e12, 80e9, 2039e9),
        Chip("H100", 989e12, 80e9, 3350e9),
        Chip("H200", 989e12, 141e9, 4800e9),
        Chip("L4", 121e12, 24e9, 300e9),
    )
}
KINDS = {"TPU v5 lite": "TPU v5e", "TPU v5": "TPU v5p", "TPU v6 lite": "TPU v6e"}  # what JAX calls them


def lookup(device_kind: str) -> Chip | None:
    """The chip that JAX's `device.device_kind` names (`NVIDIA H200`, `TPU v5 lite`), or None for one not in the table."""
    if device_kind in KINDS:
        return CHIPS[KINDS[device_kind]]
    return next(
        (chip for name, chip in CHIPS.items() if re.search(rf"\b{name}\b", device_kind)), None
    )  # an L40 is no L4


def measured_matmul_flops(size: int = 1024, seconds: float = 0.3) -> float:
    """FLOP/s of the best of several float32 `size x size` products on the default device: the stand-in peak of a CPU."""
    a = jnp.full((size, size), 0.5, jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        product(a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def peak_flops() -> tuple[float, str]:
    """`(FLOP/s of all devices together, where the figure comes from)`. A CPU's is shared by its fake devices, so counted once."""
    device = jax.devices()[0]
    chip = lookup(device.device_kind)
    if chip:
        return chip.flops * jax.device_count(), f"published peak of {jax.device_count()} x {chip.name}, dense bfloat16"
    processes = jax.process_count()
    return measured_matmul_flops() * processes, "measured: 1024 x 1024 float32 matrix product"
