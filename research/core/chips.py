"""What the hardware can do: one table of published peaks, and a measured matrix product where nothing is published (CPUs)."""

import dataclasses
import re
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from research.core.host import OF_A_GPU


@dataclasses.dataclass(frozen=True)
class Chip:
    """What is published of a chip. Of one with several devices (`TPU7x` has two) all figures are those of one device.

    `flops`: peak dense bfloat16 FLOP/s, without sparsity; `memory`: bytes; `bandwidth`: of the memory, bytes/s; `link`: bytes/s out of it to
    the chips of its slice or node, over all its links together; `network`: bytes/s out of it to others; `dimensions`: of the torus that the
    links make, 0 for a switch; `usable`: bytes of the memory that a program may fill, where known; `sustained`: FLOP/s of large matrix products, of
    a chip whose clock falls under them.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    link: float | None = None
    network: float | None = None
    dimensions: int = 0
    usable: float | None = None
    sustained: float | None = None

    @property
    def products(self) -> float:
        """FLOP/s that matrix products could reach."""
        return self.sustained or self.flops

    @property
    def room(self) -> float:
        """Bytes that a program may fill, as far as is known."""
        return self.usable or self.memory


# Google's figures: docs.cloud.google.com/tpu/docs, whose link bandwidths are of both directions, and networks in Gbit/s a chip or a pod (v5e, v5p and
# v6e, and the peak and memory of tpu7x, read 2026-11; its bandwidths are as announced, to be checked before much is built on them). NVIDIA's: the
# data sheets of A100 SXM, H100 SXM, H200 SXM, B200 (HGX) and L4, whose NVLink bandwidths are of both directions too; a network card of 400 Gbit/s a
# GPU, as in DGX H100, of 200 for A100. `usable` of TPUs is what libtpu 0.0.42 says of an allocation that does not fit (2026-11); of GPUs the share
# that training takes of what CUDA says of the device (an H200's own words, 2026-11-27; of the others as OpenXLA's descriptions have it).
# `sustained`: a bfloat16 product of 8,192 x 8,192 random numbers, as others have measured it (769 to 798 TFLOP/s on H100 and H200, 2026-11).
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("TPU v4", 275e12, 32e9, 1228e9, dimensions=3),
        Chip("TPU v5e", 197e12, 16e9, 819e9, 200e9, 3.125e9, 2, 15.75 * 2**30),
        Chip("TPU v5p", 459e12, 95e9, 2765e9, 600e9, 6.25e9, 3, 95.74 * 2**30),
        Chip("TPU v6e", 918e12, 32e9, 1640e9, 400e9, 12.5e9, 2, 31.25 * 2**30),
        Chip("TPU7x", 1153.5e12, 96 * 2**30, 3690e9, 300e9, 6.25e9, 3, 94.75 * 2**30),
        Chip("A100", 312e12, 80e9, 2039e9, 300e9, 25e9, usable=OF_A_GPU * 85.100e9),
        Chip("H100", 989e12, 80e9, 3350e9, 450e9, 50e9, usable=OF_A_GPU * 84.943e9, sustained=790e12),
        Chip("H200", 989e12, 141e9, 4800e9, 450e9, 50e9, usable=OF_A_GPU * 150.110e9, sustained=790e12),
        Chip("B200", 2250e12, 180e9, 7700e9, 900e9, 50e9, usable=OF_A_GPU * 191.514e9),
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


def measured_matmul_flops(size: int = 1024, seconds: float = 0.3, dtype: str = "float32") -> float:
    """FLOP/s of the best of several `size x size` products of random numbers on the default device: the stand-in peak of a CPU."""
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)  # zeros take a GPU less power, and so less time
    return 2 * size**3 / _least_seconds(lambda a: a @ a, a, seconds)


def measured_copy_bandwidth(size: int = 2**26, seconds: float = 0.3) -> float:
    """Bytes/s of the best of several copies of `size` bytes within the memory of the default device, read and written both counted."""
    return 2 * size / _least_seconds(lambda a: a + 1, jnp.zeros(size // 4, jnp.float32), seconds)


def _least_seconds(function: Callable[[jax.Array], jax.Array], a: jax.Array, seconds: float) -> float:
    """Of as many runs of a compiled function as fit into `seconds`, the shortest."""
    compiled = jax.jit(function)
    compiled(a).block_until_ready()
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        compiled(a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return best


def peak_flops() -> tuple[float, str]:
    """`(FLOP/s of all devices together, where the figure comes from)`. A CPU's is shared by its fake devices, so counted once."""
    device = jax.devices()[0]
    chip = lookup(device.device_kind)
    if chip:
        return chip.flops * jax.device_count(), f"published peak of {jax.device_count()} x {chip.name}, dense bfloat16"
    processes = jax.process_count()
    return measured_matmul_flops() * processes, "measured: 1024 x 1024 float32 matrix product"
