"""The table from logical to mesh axes. What it does on many devices is in tests/model/test_devices.py."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from research.core import params as P
from research.core import sharding
from research.core.errors import UserError
from research.model import transformer
from research.model.config import ModelConfig

MESH = AbstractMesh((2, 4, 3), ("data", "fsdp", "tensor"))
EVERYTHING = ModelConfig(
    vocab_size=96, width=96, heads=12, kv_heads=6, mlp_width=48, layers=7, patterns=("full",) * 6, tied=False, positions="learned",
    norm="layer", norm_placement="sandwich", qk_norm="whole",
    bias=("query", "key", "value", "attention-output", "mlp-in", "mlp-gate", "mlp-out", "norm", "unembed"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "count", "sizes"),
    [
        ("auto", 1, {"fsdp": 1}),
        ("auto", 8, {"fsdp": 8}),
        ("data=8", 8, {"data": 8}),
        ("data=2,fsdp=4", 8, {"data": 2, "fsdp": 4}),
        ("stage=1,tensor=2", 2, {"stage": 1, "tensor": 2}),
    ],
)
def test_meshes_are_read(text, count, sizes):
    assert sharding.parse_mesh(text, count) == sizes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "data",
        "data=",
        "data=0",
        "data=-1",
        "data=x",
        "data=2,",
        "data=2,data=4",
        "batch=8",
        "data=8.0",
        "data=2 fsdp=4",
    ],
)
def test_malformed_meshes_are_refused(text):
    with pytest.raises(UserError, match="AXIS=SIZE"):
        sharding.parse_mesh(text, 8)


def test_a_mesh_must_use_every_device():
    with pytest.raises(UserError, match="has 4 devices, but there are 8"):
        sharding.parse_mesh("data=2,fsdp=2", 8)


def test_rules_lead_to_mesh_axes():
    assert {axis for axes in sharding.RULES.values() for axis in axes} <= set(sharding.MESH_AXES)


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        (("batch", "stream", None), (16, 6, 7), Spec(("data", "fsdp"), "tensor", None)),
        (("batch", None), (8, 5), Spec(("data", "fsdp"), None)),
        (("batch",), (4,), Spec(None)),  # 4 rows over 2 x 4 devices
        (("embed", "heads", "head"), (8, 6, 5), Spec("fsdp", "tensor", None)),
        (("embed", "heads", "head"), (8, 4, 5), Spec("fsdp", None, None)),  # 4 heads over 3 devices
        (("layers", "mlp", "embed"), (2, 9, 6), Spec(None, "tensor", None)),
        ((), (), Spec()),
    ],
)
def test_rules_are_applied_and_what_does_not_divide_stays_whole(axes, shape, expected):
    assert sharding.spec(axes, shape, MESH) == expected


def test_axes_that_a_mesh_lacks_or_has_once_drop_out():
    assert sharding.spec(("batch", "embed"), (6, 6), AbstractMesh((2,), ("data",))) == Spec("data", None)
    assert sharding.spec(
        ("batch", "embed"), (6, 6), AbstractMesh((1, 3), ("data", "fsdp")), {"batch": ("data",), "embed": ("fsdp",)}
    ) == Spec(None, "fsdp")


def test_unknown_axes_and_shared_mesh_axes_are_errors():
    with pytest.raises(ValueError, match="unknown logical axis 'wdith'"):
        sharding.spec(("batch", "wdith"), (8, 8), MESH)
    with pytest.raises(ValueError, match="two dimensions .* one mesh axis"):
        sharding.spec(("heads", "mlp"), (6, 6), MESH)
    with pytest.raises(ValueError, match="two dimensions .* one mesh axis"):
        sharding.spec(("batch", "embed"), (8, 8), MESH)
    with pytest.raises(ValueError):
        sharding.spec(("batch",), (8, 8), MESH)


def test_every_leaf_of_a_transformer_has_a_sharding_and_every_matrix_is_spread():
    specs = transformer.specs(EVERYTHING)
    placed = P.flatten(sharding.shardings(specs, MESH))
    for path, p in P.flatten(specs).items():
        assert isinstance(placed[path], NamedSharding) and len(placed[path].spec) == len(p.shape), path
        wanted = set() if p.kind == "vector" else {"fsdp"} if "positions" in path else {"fsdp", "tensor"}
        assert wanted <= set(placed[path].spec), path
        assert "data" not in placed[path].spec, path


def test_lengths_must_split_evenly():
    sharding.check_batch(16, MESH, 9)
    with pytest.raises(UserError, match=r"rows of 10 tokens cannot be split over 3 devices .* use a multiple of 3"):
        sharding.check_batch(16, MESH, 10)


def test_rows_must_split_evenly():
    assert sharding.batch_shards(MESH) == 8 and sharding.batch_shards(AbstractMesh((3,), ("tensor",))) == 1
    sharding.check_batch(16, MESH)
    with pytest.raises(UserError, match="12 rows .* cannot be split over 8 devices; use a multiple of 8"):
        sharding.check_batch(12, MESH)


def test_without_a_mesh_nothing_is_constrained():
    x = jnp.zeros((2, 3))
    assert sharding.constrain(x, "batch", "embed") is x
    assert sharding.axis_size("tensor") == 1
    with sharding.use(None):
        assert sharding.constrain(x, "batch", "embed") is x
    with sharding.use(sharding.make_mesh("data=1")):
        assert sharding.constrain(x, "batch", "embed") is x


class _Device:
    """As much of a device as knows its process."""

    def __init__(self, number: int, process: int):
        self.id, self.process_index, self.platform, self.device_kind = number, process, "cpu", "cpu"


@pytest.mark.parametrize(
    ("shape", "axes", "processes", "index", "part"),
    [
        ((4,), ("fsdp",), [0, 0, 1, 1], 1, (1, 2)),
        ((4,), ("fsdp",), [0, 1, 2, 3], 2, (2, 4)),
        ((2, 2), ("fsdp", "tensor"), [0, 0, 1, 1], 1, (1, 2)),
        ((2, 2), ("fsdp", "tensor"), [0, 1, 2, 3], 3, (1, 2)),  # two processes hold the same rows
        ((4,), ("tensor",), [0, 0, 1, 1], 1, (0, 1)),
        ((4,), ("fsdp",), [0, 1, 0, 1], 1, (0, 1)),  # no neighbours: all rows
    ],
)
def test_a_process_reads_the_rows_that_its_devices_hold(shape, axes, processes, index, part, monkeypatch):
    held = np.array([_Device(number, process) for number, process in enumerate(processes)]).reshape(shape)
    count = int(np.prod([n for n, axis in zip(shape, axes, strict=True) if axis == "fsdp"]))
    places = {device: (slice(place[axes.index("fsdp")], place[axes.index("fsdp")] + 1) if "fsdp" in axes else slice(None),)
              for place, device in np.ndenumerate(held)}  # fmt: skip
    monkeypatch.setattr(sharding.NamedSharding, "devices_indices_map", lambda self, shape: places)
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: len(set(processes)))
    assert sharding.batch_shards(AbstractMesh(shape, axes)) == count
    assert sharding.row_part(AbstractMesh(shape, axes)) == part


def test_rows_are_put_as_they_are():
    rows = {"tokens": np.arange(6, dtype=np.int32).reshape(2, 3), "weights": np.array([0.5, 1], np.float32)}
    placed = sharding.put_rows(rows, sharding.make_mesh("data=1"))
    for name, x in rows.items():
        assert isinstance(placed[name], jax.Array) and placed[name].dtype == x.dtype
        np.testing.assert_array_equal(placed[name], x)


def test_gathered_matrices_take_the_compute_dtype_and_vectors_keep_theirs():
    specs = {"w": P.Param((4, 2), ("embed", "mlp"), P.ZEROS, 1), "scale": P.Param((4,), ("embed",), P.ONES)}
    used = sharding.gather({"w": jnp.ones((4, 2)), "scale": jnp.full((4,), 1.001)}, specs, jnp.dtype("bfloat16"))
    assert used["w"].dtype == jnp.bfloat16
    assert used["scale"].dtype == jnp.float32 and float(used["scale"][0]) == np.float32(1.001)


def test_a_planned_gpu_is_on_the_node_of_its_process():
    gpu, tpu = (
        SimpleNamespace(platform="cuda", slice_index=0, process_index=3),
        SimpleNamespace(platform="tpu", slice_index=1, process_index=3),
    )
    assert sharding.node_of(gpu) == 3 and sharding.node_of(tpu) == 1
    assert sharding.node_of(jax.devices()[0]) is None
