"""Replicas that drift apart are found and named: eight devices, in a process of its own."""

import json

import pytest

CODE = """
import json, jax, jax.numpy as jnp, numpy as np
from research.core import sharding
from research.core.errors import UserError
from research.train import replicas
from jax.sharding import NamedSharding, PartitionSpec as P

mesh = sharding.make_mesh("data=2,fsdp=2,tensor=2")
specs, names = [P("fsdp", "tensor"), P()], ["matrix", "vector"]
values = [np.arange(24, dtype=np.float32).reshape(4, 6), np.ones(5, np.float32)]
where = [NamedSharding(mesh, spec) for spec in specs]


def placed(flip=None):
    out = []
    for i, (value, sharding) in enumerate(zip(values, where)):
        parts = []
        for device, at in sharding.addressable_devices_indices_map(value.shape).items():
            part = value[at].copy()
            if flip == (i, device.id):
                part.view(np.uint32).reshape(-1)[-1] ^= 1
            parts.append(jax.device_put(part, device))
        out.append(jax.make_array_from_single_device_arrays(value.shape, sharding, parts))
    return out


def found(leaves):
    try:
        replicas.check(np.asarray(replicas.sums(mesh, specs)(leaves)), mesh, specs, names, 7)
    except UserError as error:
        return str(error)

print(json.dumps({"fine": found(placed()), "vector": found(placed((1, 5))), "matrix": found(placed((0, 2)))}))
"""


@pytest.fixture(scope="module")
def found(run_python):
    return json.loads(run_python(CODE, devices=8).splitlines()[-1])


def test_equal_replicas_are_fine(found):
    assert found["fine"] is None


def test_one_of_eight_that_differs_in_a_bit_is_named(found):
    assert "step 7: vector differs" in found["vector"] and "device 5 of process 0 of 8." in found["vector"]


def test_of_two_that_differ_one_is_named(found):
    assert "step 7: matrix differs" in found["matrix"] and " of 2." in found["matrix"]
