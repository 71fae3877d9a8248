"""The host process: how long it has run, and the memory allocator and compiler settings that suit a training loop."""

import ctypes
import os
import sys
import time
from importlib.metadata import version
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # glibc's malloc.h
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
OF_A_GPU = 0.92  # of its memory, for the process that trains on it; JAX's own default is 0.75


def prepare() -> None:
    """Settles what a process that trains wants of its allocators: freed memory is kept, and of a GPU most is taken, unless the environment
    says how much. Call it before JAX starts."""
    os.environ.setdefault(FRACTION, str(OF_A_GPU))
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Lets the process keep the memory it frees; returns whether the C library could be told (glibc can).

    XLA allocates a step's temporaries anew at every step. glibc serves blocks that large by fresh mappings, or on other threads than the
    first from heaps of their own, and gives both back at once, so that every step faults in every page again: on 2 cores this
    was about 40% of a small model's step. Call it before JAX starts its threads: one heap serves them all from then on, and the process
    stays as large as its largest step.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1))
    return mallopt is not None and all(mallopt(*setting) for setting in settings)


def runs_often(platform: str) -> dict[str, Any]:
    """XLA's options for a program that runs many times, `jax.jit(compiler_options=)`: on a CPU, the analysis that lets a donated state be
    updated in place, as on other devices; without it every step begins by copying the whole state (4% of GPT-2 small's step). With
    jaxlib 0.10 also its older code generator, some percent faster with small models; later releases have no such choice.
    """
    if platform != "cpu":
        return {}
    older = {"xla_cpu_use_fusion_emitters": False} if version("jaxlib").startswith("0.10.") else {}
    return {"xla_cpu_copy_insertion_use_region_analysis": True, **older}


def decodes() -> dict[str, Any]:
    """XLA's options for a loop that decodes: on a CPU, what lets it update its caches in place. The analysis is that of `runs_often`. With
    jaxlib 0.10 barriers are also kept to the end, so that an update which is read does not become a second one, of a copy, for whoever reads it;
    later releases cannot compile a barrier that is left."""
    if not _on_cpu():
        return {}
    kept = {"xla_disable_hlo_passes": "cse_barrier_expander"} if version("jaxlib").startswith("0.10.") else {}
    return {"xla_cpu_copy_insertion_use_region_analysis": True, **kept}


def runs_once() -> dict[str, Any]:
    """XLA's options for a program that runs once: on a CPU, fewer optimisations, in a quarter of the time for a model's initial draw."""
    return {"xla_backend_optimization_level": 1} if _on_cpu() else {}


def _on_cpu() -> bool:
    import jax

    return jax.default_backend() == "cpu"


def seconds_since_process_start() -> float:
    """Wall-clock seconds since the operating system started this process, imports included."""
    import psutil

    return time.time() - psutil.Process().create_time()
