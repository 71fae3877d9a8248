"""A train step compiled for devices that are not there.

TPUs: libtpu compiles for any slice it knows, on any Linux machine (extra `plan-tpu`). GPUs: JAX's CUDA plugin does, told what the GPU is (extra
`plan-gpu`). Without them, and for CPUs, the step is partitioned for as many fake CPU devices, which tells its sharding and its collectives, though
not how the chip's own compiler arranges memory.
"""

import contextlib
import dataclasses
import importlib.util
import os
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from research.core import sharding
from research.core.errors import UserError
from research.scale import gpus
from research.scale.topology import Topology
from research.train.program import Program

# What lets libtpu compile on a machine that has no TPU: no look-up of metadata, no lock, no log files, some accelerator type.
WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}  # fmt: skip
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for; `real`: whether their own compiler does it, or the fake CPU devices stand in for them."""

    topology: Topology
    devices: list[Any]
    real: bool


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step: its text, its bytes a device at the peak, and the seconds it took. Of one that does not fit `text` is empty."""

    text: str
    peak: int
    seconds: float
    fits: bool = True


def target(topology: Topology) -> Target:
    """The devices of a topology. Call it before JAX has found its own. Raises UserError where they cannot be made up."""
    jax.config.update("jax_platforms", "cpu")
    if topology.platform == "tpu" and importlib.util.find_spec("libtpu") is not None:
        from jax.experimental import topologies

        os.environ.update(WITHOUT_TPU)
        options: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
        if topology.chips == 1:  # a host of its own, where it would be taken for a part of one of four
            options["chips_per_host_bounds"] = [1, 1, 1]
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.shape, **options)
        return Target(topology, list(found.devices), True)
    if topology.platform == "gpu" and (plugin := _cuda_plugin()):
        from jax.experimental import topologies

        assert topology.chip is not None
        gpus.pretend_cudnn(topology.chip.name)
        each = topology.devices // topology.slices
        found = topologies.get_topology_desc(
            platform=plugin,
            target_config=gpus.target_config(topology.chip.name),
            topology=f"1x{topology.slices}x{each}",
        )
        return Target(topology, list(found.devices), True)
    with contextlib.suppress(RuntimeError):  # it has found its devices already; they may do
        jax.config.update("jax_num_cpu_devices", topology.devices)
    if jax.device_count() < topology.devices:
        raise UserError(
            f"JAX has {jax.device_count()} devices already; plan for {topology.name} in a process of its own"
        )
    return Target(topology, jax.devices()[: topology.devices], topology.platform == "cpu")


def _cuda_plugin() -> str | None:
    """The platform of JAX's plugin for CUDA, where it is installed."""
    there = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") is not None for version in (12, 13))
    return "cuda" if there else None


def abstract_batch(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of a program by shapes, rows over the data axes: what `put_batch` makes."""
    config = program.config
    kinds: dict[str, Any] = {"tokens": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}
    if config.rows == "packed":
        kinds["segments"] = jnp.int32
    shape = (config.batch_size, config.row_tokens)
    where = NamedSharding(program.mesh, sharding.spec(("batch", None), shape, program.mesh))
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=where) for name, dtype in kinds.items()}


def compile_step(program: Program, fast: bool = False) -> Compiled:
    """Compiles the program's own step for its mesh. `fast`: with fewer of the compiler's optimisations, whose peak of memory may come out lower.

    A step that the chip's compiler says does not fit is returned with what it would take. Raises UserError where it says anything else.
    """
    began, device = time.perf_counter(), program.mesh.devices.flat[0]
    lowered = program.on_mesh(program.jitted_step.lower)(
        program.abstract_state(), abstract_batch(program), program.hypers
    )
    level = jax.config.jax_optimization_level  # type: ignore[attr-defined]
    try:
        # XLA's GPU compiler of jaxlib 0.10 aborts at O1
        jax.config.update("jax_optimization_level", "O1" if fast and device.platform == "tpu" else level)
        compiled = lowered.compile(
            compiler_options=gpus.COMPILER_OPTIONS if device.platform in ("cuda", "gpu") else None
        )
    except jax.errors.JaxRuntimeError as error:
        took = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])", str(error))
        if took is None:
            raise UserError(f"the compiler refuses the step: {str(error).splitlines()[0][:300]}") from error
        return Compiled("", int(float(took[1]) * UNITS[took[2]]), time.perf_counter() - began, fits=False)
    finally:
        jax.config.update("jax_optimization_level", level)
    return Compiled(compiled.as_text(), peak_bytes(compiled, device.platform == "cpu"), time.perf_counter() - began)


def peak_bytes(compiled: Any, cpu: bool) -> int:
    """Bytes that a compiled program takes of a device at its peak. A CPU's compiler leaves temporaries out of what it calls the peak."""
    memory = compiled.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return kept + memory.temp_size_in_bytes if cpu else memory.peak_memory_in_bytes
