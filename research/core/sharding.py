"""Where arrays live: a mesh, and one table from logical axes to mesh axes.

Parameters name their axes in `Param.axes`, activations at the few places that call `constrain`. Nothing else names a device.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from research.core import params as P
from research.core.errors import UserError

# Those that talk most come last: neighbours, as far as there are some.
MESH_AXES = ("member", "data", "stage", "fsdp", "expert", "sequence", "tensor")

# Logical axis -> the mesh axes that it is spread over, in this order. Axes that a mesh lacks, or has at size 1, drop out.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "stage", "fsdp", "expert"),
    "replicas": ("data", "stage", "expert"),  # rows whose other dimension is spread over `fsdp`
    "dealt": ("data", "stage", "fsdp"),  # rows whose other dimension is spread over `expert`
    "microbatch": ("data", "fsdp", "expert"),  # rows at one stage of a pipeline
    "sequence": ("sequence",),
    "stream": ("sequence", "tensor"),  # positions of the residual stream between the layers' branches
    "layers": ("stage",),  # the repeats of a segment
    "stages": ("stage",),  # what every stage of a pipeline works on at a time
    "vocab": ("tensor",),
    "positions": (),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head": (),
    "mlp": ("tensor",),
    "experts": ("expert",),
    "member": ("member",),
}


def parse_mesh(text: str, device_count: int, slices: int = 1) -> dict[str, int]:
    """`auto` (all devices of a slice under `fsdp`, the slices under `data`) or `data=2,fsdp=4` as `{axis: size}`; the product must be the
    number of devices. Raises UserError otherwise."""
    if text == "auto":
        return {**({"data": slices} if slices > 1 else {}), "fsdp": device_count // slices}
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in MESH_AXES or not size.isdecimal() or int(size) < 1 or name in sizes:
            raise UserError(f"mesh {text!r}: {part!r} is not AXIS=SIZE with a new axis out of {', '.join(MESH_AXES)}")
        sizes[name] = int(size)
    if math.prod(sizes.values()) != device_count:
        raise UserError(
            f"mesh {text!r} has {math.prod(sizes.values())} devices, but there are {device_count}; make the product {device_count}"
        )
    return sizes


def make_mesh(text: str = "auto", devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over `devices`, or all of all hosts. Slices (or nodes of GPUs, whose devices say which they are on) differ along the first of
    `data`, `stage` and `fsdp` that their number divides. Raises UserError where none is."""
    devices = jax.devices() if devices is None else devices
    slices = len({node_of(device) for device in devices})
    asked = parse_mesh(text, len(devices), slices)
    sizes = {axis: asked[axis] for axis in MESH_AXES if axis in asked}
    shape, outer = list(sizes.values()), [1] * len(sizes)
    if slices > 1:
        across = next((axis for axis in ("data", "stage", "fsdp") if sizes.get(axis, 1) % slices == 0), None)
        if across is None:
            raise UserError(
                f"mesh {text!r}: {slices} slices have to differ along an axis; make data, stage or fsdp a multiple of {slices}"
            )
        place = list(sizes).index(across)
        shape[place], outer[place] = shape[place] // slices, slices
    if slices > 1:
        laid = mesh_utils.create_hybrid_device_mesh(
            shape, outer, devices, process_is_granule=_is_planned_gpu(devices[0]), allow_split_physical_axes=True
        )
    else:
        laid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(laid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def node_of(device: Any) -> int | None:
    """Which slice of TPUs, or node of GPUs, a device is on; None where it does not say, as CPUs."""
    return device.process_index if _is_planned_gpu(device) else getattr(device, "slice_index", None)


def _is_planned_gpu(device: Any) -> bool:
    """Whether a device is a GPU of a topology that is elsewhere: such a one names its node by its process alone."""
    return device.platform in ("cuda", "gpu", "rocm") and jax.default_backend() == "cpu"


def spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh | Any, rules=RULES) -> PartitionSpec:
    """The PartitionSpec of an array. A dimension that its mesh axes do not divide stays whole.

    Raises ValueError for an unknown logical axis, or when two dimensions want one mesh axis.
    """
    sizes, used, out = dict(mesh.shape), set(), []
    for name, size in zip(axes, shape, strict=True):
        if name is not None and name not in rules:
            raise ValueError(f"unknown logical axis {name!r} in {axes}; the rules name {', '.join(rules)}")
        wanted = tuple(a for a in (rules[name] if name else ()) if sizes.get(a, 1) > 1)
        if size % math.prod(sizes[a] for a in wanted):
            wanted = ()
        if used & set(wanted):
            raise ValueError(f"two dimensions of {axes} are sharded over one mesh axis {sorted(used & set(wanted))}")
        used |= set(wanted)
        out.append(wanted[0] if len(wanted) == 1 else wanted or None)
    return PartitionSpec(*out)


def param_spec(p: P.Param, mesh: Mesh | Any, rules=RULES) -> PartitionSpec:
    """Where a parameter lives. Norm scales and biases are whole under `fsdp`: they are small, and each would be a message of its own."""
    return spec(p.axes, p.shape, mesh, without(rules, "fsdp") if p.kind == "vector" else rules)


def stored_rules(zero: int) -> dict[str, tuple[str, ...]]:
    """The rules by which parameters lie between steps. 3: everything is spread over `fsdp` (ZeRO-3, arXiv 1910.02054); 1: parameters are whole, and
    their gradients and optimiser state alone are spread."""
    return RULES if zero == 3 else without(RULES, "fsdp")


def without(rules: dict[str, tuple[str, ...]], axis: str) -> dict[str, tuple[str, ...]]:
    """The rules of a mesh that lacks an axis."""
    return {name: tuple(a for a in axes if a != axis) for name, axes in rules.items()}


def shardings(specs: P.Tree, mesh: Mesh, rules=RULES) -> P.Tree:
    """The tree of NamedSharding for a spec tree."""
    return P.tree_map(lambda p: NamedSharding(mesh, param_spec(p, mesh, rules)), specs)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh) -> int:
    """Over how many devices the rows of a batch are spread."""
    return spread(dict(mesh.shape), "batch")


def spread(sizes: dict[str, int], axis: str, rules=RULES) -> int:
    """Over how many devices of a mesh of these sizes a logical axis is spread."""
    return math.prod(sizes.get(name, 1) for name in rules[axis])


def check_batch(batch_size: int, mesh: Mesh, length: int | None = None) -> None:
    """Raises UserError when the rows of one pass, or their `length` in tokens, cannot be split evenly over the devices."""
    parts = math.prod(dict(mesh.shape).get(axis, 1) for axis in RULES["stream"])
    if length is not None and length % parts:
        raise UserError(
            f"rows of {length} tokens cannot be split over {parts} devices (sequence x tensor); use a multiple of {parts}, or another --mesh"
        )
    shards = batch_shards(mesh)
    if batch_size % shards:
        raise UserError(
            f"{batch_size} rows in one pass (batch size / micro-batches) cannot be split over {shards} devices; "
            f"use a multiple of {shards}, or another --mesh"
        )


def row_part(mesh: Mesh) -> tuple[int, int]:
    """`(index, count)`: which of how many equal parts of a batch's rows this process's devices hold. Processes that differ along `tensor` alone
    hold the same one; all rows, where a process's are not neighbours."""
    if jax.process_count() == 1:
        return 0, 1
    count = batch_shards(mesh)
    where = NamedSharding(mesh, spec(("batch",), (count,), mesh))
    held: dict[int, set[int]] = {}
    for device, (rows, *_) in where.devices_indices_map((count,)).items():
        held.setdefault(device.process_index, set()).update(range(*rows.indices(count)))
    parts = sorted({tuple(sorted(rows)) for rows in held.values()})
    size = len(parts[0])
    if [row for part in parts for row in part] != list(range(count)) or any(len(part) != size for part in parts):
        return 0, 1
    return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)


def put_rows(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Each process's part of the rows as global arrays: rows over the data axes, everything else whole."""
    index, count = row_part(mesh)

    def one(x: np.ndarray) -> jax.Array:
        shape = (x.shape[0] * count, *x.shape[1:])
        where = NamedSharding(mesh, spec(("batch", *[None] * (x.ndim - 1)), shape, mesh))

        def part(at: Any) -> np.ndarray:
            first, end, _ = at[0].indices(shape[0])
            return x[(slice(first - index * len(x), end - index * len(x)), *at[1:])]

        return jax.make_array_from_callback(shape, where, part)

    return {name: one(x) for name, x in batch.items()}


_ZERO = contextvars.ContextVar("zero", default=3)
_RULES = contextvars.ContextVar("rules", default=RULES)


@contextlib.contextmanager
def use(mesh: Mesh | None, zero: int = 3) -> Iterator[None]:
    """Makes `constrain` act on `mesh` for what is traced inside, and `gather` on parameters as `stored_rules(zero)` has them; no mesh, or one device
    of this process, leaves the code untouched."""
    ours = mesh is None or (mesh.size == 1 and mesh.devices.flat[0] in jax.local_devices())
    token = _ZERO.set(zero)
    try:
        with contextlib.nullcontext() if ours else jax.set_mesh(mesh):
            yield
    finally:
        _ZERO.reset(token)


@contextlib.contextmanager
def each_along(axis: str) -> Iterator[None]:
    """For what is traced inside a `shard_map` over a mesh axis: every device along it works on something of its own, so nothing is spread over it."""
    token = _RULES.set(without(_RULES.get(), axis))
    try:
        yield
    finally:
        _RULES.reset(token)


def rules() -> dict[str, tuple[str, ...]]:
    """The rules in use: RULES, but for the axes that `each_along` has taken."""
    return _RULES.get()


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` held to the rules' sharding of its logical axes on the mesh in use; without one, `x` itself."""
    if not is_spread():
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, jax.sharding.get_abstract_mesh(), rules()))


def axis_sizes() -> dict[str, int]:
    """How many devices the mesh in use has along each of its axes: none without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return {} if mesh.empty else dict(mesh.shape)


def axis_size(axis: str) -> int:
    return axis_sizes().get(axis, 1)


def on_shards(function: Callable, in_specs: Any, out_specs: Any, axes: set[str] | None = None) -> Callable:
    """`function` on every device by itself, on its shards of the arguments: over these axes of the mesh in use, or all that no outer one has taken
    (within a stage of a pipeline `stage` is)."""
    mesh = jax.sharding.get_abstract_mesh()
    names = set(mesh.axis_names) - set(mesh.manual_axes) if axes is None else axes
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, axis_names=names, check_vma=False)


def platform() -> str:
    """What the code that is traced will run on, cpu, gpu or tpu: the devices of the mesh in use, which may be of another machine."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    name = jax.default_backend() if device is None or device.platform is None else device.platform
    return {"cuda": "gpu", "rocm": "gpu"}.get(name, name)


def is_spread() -> bool:
    """Whether the mesh in use has more than one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1


def cast(tree: P.Tree, specs: P.Tree, dtype) -> P.Tree:
    """One layer's parameters in the compute dtype. Norm scales, biases and routers keep their own precision: they are small, and norms and
    routing compute in at least float32."""
    return jax.tree.map(lambda w, p: w if p.keeps_precision else w.astype(dtype), tree, specs)


def gather(tree: P.Tree, specs: P.Tree, dtype) -> P.Tree:
    """One layer's parameters as its computation uses them: cast to the compute dtype and gathered over `fsdp`.

    The cast comes before the gather, so half the bytes travel, and the gradient is held to the parameter's own shard, so it is
    reduced by scattering; a plain constraint to gathered weights would all-reduce every gradient whole.
    """
    if not is_spread():
        return cast(tree, specs, dtype)
    mesh = jax.sharding.get_abstract_mesh()
    whole, stored = without(RULES, "fsdp"), stored_rules(_ZERO.get())

    def one(w, p):
        used = w.dtype if p.keeps_precision else dtype
        return _gather(w, *(param_spec(p, mesh, rules) for rules in (stored, whole, RULES)), used)

    return jax.tree.map(one, tree, specs)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _gather(w, stored, whole, shard, dtype):
    del shard
    hold = jax.lax.with_sharding_constraint
    return hold(hold(w.astype(dtype), stored), whole)


def _gather_forward(w, stored, whole, shard, dtype):
    return _gather(w, stored, whole, shard, dtype), jnp.zeros((), w.dtype)


def _gather_backward(stored, whole, shard, dtype, like, g):
    del stored, whole, dtype
    return (jax.lax.with_sharding_constraint(g, shard).astype(like.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)
