"""What XLA has to know of a GPU to compile for it where there is none: a description by its published facts.

Sources: NVIDIA's data sheets and its CUDA programming guide (limits by compute capability), clocks and sizes as OpenXLA's own descriptions have them
(openxla/xla, xla/backends/gpu/target_config/specs, read 2026-11); H200's as the device itself printed them (2026-11-27, driver 580.159, CUDA 13).
B200 has jax-cuda12 0.10 as the newest that compiles for it.
"""

import dataclasses
import importlib
from typing import Any

CUDNN = 91000  # the release that is taken to be where the GPU is, as JAX numbers it
# Where there is no GPU to time them on, XLA writes its own kernels for products; where there is one it takes cuBLAS's for most, which leave their
# operands in memory (an H200's step of GPT-2 124M: 36.61 GiB in use at the peak, 36.65 planned with this, 30.72 without; 2026-11-27).
COMPILER_OPTIONS = {"xla_gpu_enable_triton_gemm": False}


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Sizes in bytes, bandwidth in bytes/s, the boost clock in GHz."""

    name: str
    capability: tuple[int, int]
    cores: int
    units: int  # float32 units of a core
    clock: float
    memory: int
    bandwidth: int
    cache: int
    shared: int  # of a core
    shared_most: int  # of a block


GPUS = {
    "A100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 85_100_068_864, 2_039_040_000_000, 41_943_040, 167_936, 166_912),
    "H100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 84_942_979_072, 3_352_320_000_000, 52_428_800, 233_472, 232_448),
    "H200": Gpu("NVIDIA H200", (9, 0), 132, 128, 1.98, 150_109_880_320, 4_814_304_000_000, 62_914_560, 233_472, 232_448),
    "B200": Gpu("NVIDIA B200", (10, 0), 148, 128, 1.965, 191_514_411_008, 7_672_320_000_000, 132_644_864, 233_472, 232_448),
}  # fmt: skip
SAME = {  # of every one of them
    "threads_per_block_limit": 1024, "threads_per_warp": 32, "shared_memory_per_block": 49152, "threads_per_core_limit": 2048,
    "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65535, "block_dim_limit_z": 65535, "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536, "thread_dim_limit_x": 1024, "thread_dim_limit_y": 1024, "thread_dim_limit_z": 64,
}  # fmt: skip


def target_config(name: str) -> str:
    """The description of a GPU of `GPUS` as XLA reads it (a GpuTargetConfigProto as text)."""
    gpu = GPUS[name]
    major, minor = gpu.capability
    facts = {
        **SAME, "core_count": gpu.cores, "fpus_per_core": gpu.units, "clock_rate_ghz": gpu.clock, "device_memory_size": gpu.memory,
        "memory_bandwidth": gpu.bandwidth, "l2_cache_size": gpu.cache, "shared_memory_per_core": gpu.shared,
        "shared_memory_per_block_optin": gpu.shared_most,
    }  # fmt: skip
    lines = [f"  {key}: {value}" for key, value in facts.items()]
    extension = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
    lines.append(f"  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}")
    about = [
        'platform_name: "CUDA"',
        "dnn_version_info { major: 9 minor: 10 }",
        f'device_description_str: "{gpu.name}"',
    ]
    return "\n".join(["gpu_device_info {", *lines, "}", *about, ""])


def pretend_cudnn(name: str) -> None:
    """Lets this process trace cuDNN's attention for a GPU of `GPUS` that is elsewhere: JAX asks the machine that it runs on which cuDNN and what GPU
    there are, by two functions that it keeps to itself. Where a later JAX has none of that name, attention is planned for in blocks."""
    capability = GPUS[name].capability
    asked: Any = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    if hasattr(asked, "check_cudnn_version") and hasattr(asked, "check_compute_capability"):
        asked.check_cudnn_version = lambda: CUDNN
        asked.check_compute_capability = lambda least: capability >= tuple(int(part) for part in least.split("."))
