"""Whether devices that should hold the same parameters do: a flipped bit or a broken chip makes replicas drift apart in silence.

Every device sums the bits of its own shards, leaf by leaf; devices whose shards are of the same part have to come to the same sums.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from research.core.errors import UserError


def sums(mesh: Mesh, specs: list[PartitionSpec]) -> Any:
    """The jitted `leaves -> (devices, leaves)`: sums of the bits of each device's shards modulo 2^32, devices as the mesh has them. Leaves are
    float32."""
    axes = tuple(mesh.axis_names)

    def of_shards(leaves: list[jax.Array]) -> jax.Array:
        bits = [jax.lax.bitcast_convert_type(leaf, jnp.uint32) for leaf in leaves]
        return jnp.stack([jnp.sum(x * _odd(x.shape), dtype=jnp.uint32) for x in bits])[None]

    spread = jax.shard_map(of_shards, mesh=mesh, in_specs=(specs,), out_specs=PartitionSpec(axes), check_vma=False)
    whole = jax.sharding.NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda leaves: jax.lax.with_sharding_constraint(spread(leaves), whole))


def _odd(shape: tuple[int, ...]) -> jax.Array:
    """An odd factor for every place, so that two bits that change places are seen."""
    count = jnp.arange(int(np.prod(shape)), dtype=jnp.uint32)
    return (2 * count + 1).reshape(shape)


def check(found: np.ndarray, mesh: Mesh, specs: list[PartitionSpec], names: list[str], step: int) -> None:
    """Raises UserError naming the leaf and the devices, with their hosts, that disagree with the most of their replicas."""
    devices = mesh.devices.reshape(-1)
    places = np.stack(np.unravel_index(np.arange(mesh.size), mesh.devices.shape), axis=1)
    for leaf, (name, spec) in enumerate(zip(names, specs, strict=True)):
        over = {axis for part in spec if part is not None for axis in (part if isinstance(part, tuple) else (part,))}
        kept = [i for i, axis in enumerate(mesh.axis_names) if axis in over]
        groups: dict[tuple[int, ...], list[int]] = {}
        for device, place in enumerate(places):
            groups.setdefault(tuple(place[kept].tolist()), []).append(device)
        for members in groups.values():
            values, counts = np.unique(found[members, leaf], return_counts=True)
            if len(values) > 1:
                usual = values[np.argmax(counts)]
                wrong = [devices[i] for i in members if found[i, leaf] != usual]
                said = ", ".join(f"device {device.id} of process {device.process_index}" for device in wrong)
                raise UserError(
                    f"step {step}: {name} differs between replicas that hold the same part of it: {said} of {len(members)}. A device is broken, or "
                    "the program is not the same everywhere; go on from the last checkpoint without it"
                )
