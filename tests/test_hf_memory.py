"""Reading and writing models holds them once: memory at its peak, bytes read, and each device's shards."""

import dataclasses
import json
import math
import os
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from research import families, hf
from research.core import params as P
from research.core import sharding
from research.core.errors import UserError
from research.data import tensor_reader as reader
from research.families.weights import Part, cut
from research.model.config import ModelConfig

COMMON = """
import dataclasses, gc, json, os, sys
import jax, jax.numpy as jnp, numpy as np
from pathlib import Path
from research import families, hf
from research.core import params as P, sharding
from research.model import transformer

folder = Path(sys.argv[1])

def values(config, dtype=np.float32):
    pattern = np.arange(1 << 12, dtype=np.float32).astype(dtype)
    def one(p):
        return np.resize(np.roll(pattern, len(p.shape) + p.shape[-1]), p.shape)
    return P.tree_map(one, transformer.specs(config))

def nbytes(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))

def status(key):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))

def peak(run):  # bytes of memory that `run` took at most beyond what was there before, and what it gives
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = status("VmRSS")
    result = run()
    return status("VmHWM") - before, result

jax.block_until_ready(jnp.zeros(3) + 1)
"""

PEAKS = """
found = {}
for name, config in {
    "gpt2": families.gpt2.config(3, 512, 8, 20_000, 512),
    "llama": families.llama.config(3, 512, 8, 2048, 4, 20_000),
}.items():
    for source, target in (("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "float32")):
        where, tree = folder / f"{name}-{source}-{target}", values(config, jnp.dtype(source))
        largest = max(x.nbytes for x in jax.tree.leaves(tree))
        saving, _ = peak(lambda: hf.save(tree, config, None, where))
        del tree
        loading, model = peak(lambda: hf.load(where, dtype=target))
        found[f"{name} {source} to {target}"] = [loading / nbytes(model.params), saving / largest]
        del model
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark of memory is read from /proc")
def test_a_model_is_in_memory_once_while_it_is_read_and_one_tensor_while_it_is_written(run_python, tmp_path):
    found = json.loads(run_python(COMMON + PEAKS, str(tmp_path)))
    assert len(found) == 6
    for case, (loading, saving) in found.items():
        assert 0.5 < loading < 1.2, f"{case}: {loading:.2f} of its parameters"
        assert saving < 1.5, f"{case}: {saving:.2f} of the largest leaf"


SHARDS = """
seen, real = [], os.preadv
def counting(descriptor, buffers, at):
    got = real(descriptor, buffers, at)
    seen.append(got)
    return got
os.preadv = counting

def shard_by_shard(a, b):
    for shard in a.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), np.asarray(b)[shard.index])

MIXTRAL = dataclasses.replace(families.preset("mixtral-8x7b"), vocab_size=2000, width=256, layers=2, heads=8, kv_heads=4, mlp_width=256)
found = {}
for name, config, mesh in (
    ("gpt2", families.gpt2.config(3, 512, 8, 10_000, 512), "fsdp=2,tensor=4"),
    ("llama", families.llama.config(3, 512, 8, 2048, 4, 10_000), "fsdp=2,tensor=4"),
    ("mixtral", MIXTRAL, "expert=4,fsdp=2"),
):
    where, tree = folder / name, values(config)
    hf.save(tree, config, None, where)
    wanted = sharding.shardings(transformer.specs(config), sharding.make_mesh(mesh))
    seen.clear()
    taken, model = peak(lambda: hf.load(where, dtype="float32", mesh=sharding.make_mesh(mesh)))
    assert jax.tree.map(lambda a: a.sharding, model.params) == wanted
    assert max(len({str(s.index) for s in a.addressable_shards}) for a in jax.tree.leaves(model.params)) == 8
    jax.tree.map(shard_by_shard, model.params, tree)
    found[name] = [taken / nbytes(tree), sum(seen) / nbytes(tree)]
    hf.save(model.params, config, None, folder / "again")
    assert (folder / "again/model.safetensors").read_bytes() == (where / "model.safetensors").read_bytes()
    for file in (folder / "again").iterdir():
        file.unlink()
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark of memory is read from /proc")
def test_every_device_gets_its_shards_and_the_files_are_read_once(run_python, tmp_path):
    found = json.loads(run_python(COMMON + SHARDS, str(tmp_path), devices=8))
    assert len(found) == 3
    for name, (taken, read) in found.items():
        assert read == 1.0, f"{name}: {read:.3f} of the files were read"
        assert name == "mixtral" or taken < 1.25, f"{name}: {taken:.2f} of the parameters"


def small(preset: str) -> ModelConfig:
    """The architecture of a preset with sizes that 2 and 4 divide."""
    config = families.preset(preset)
    sizes = {"vocab_size": 40, "context": 16, "width": 64, "layers": 2, "heads": 8, "head_size": 8, "mlp_width": 24}
    return dataclasses.replace(config, **sizes, kv_heads=4 if config.kv_heads else None)


@dataclasses.dataclass(frozen=True)
class OneOfMany:
    """What a process with one device sees of a sharding over many processes."""

    index: tuple[slice, ...]

    def addressable_devices_indices_map(self, shape):
        return {"the device": self.index}


def part(spec, shape: tuple[int, ...], mesh: dict[str, int], place: dict[str, int]) -> tuple[slice, ...]:
    """The slices that the device at `place` of a mesh holds, by the meaning of a PartitionSpec."""
    out = []
    for axes, size in zip(spec, shape, strict=True):
        axes = () if axes is None else (axes,) if isinstance(axes, str) else axes
        number = 0
        for axis in axes:
            number = number * mesh[axis] + place[axis]
        length = size // math.prod(mesh[axis] for axis in axes)
        out.append(slice(number * length, (number + 1) * length))
    return tuple(out)


@pytest.mark.parametrize("preset", ["gpt2", "pythia-70m", "mixtral-8x7b", "chatglm3-6b", "phi3-mini-4k"])
def test_a_process_reads_its_own_part_of_the_files_and_no_more(preset, tiny, tmp_path, monkeypatch):
    config, sizes, real = small(preset), [], os.preadv
    params = P.flatten(tiny.params(config))
    source = hf.open_source(hf.save(P.unflatten(params), config, None, tmp_path / "model"))
    mesh, place = {"fsdp": 2, "tensor": 4, "expert": 2}, {"fsdp": 1, "tensor": 2, "expert": 1}

    def counting(descriptor, buffers, at):
        sizes.append(real(descriptor, buffers, at))
        return sizes[-1]

    monkeypatch.setattr(os, "preadv", counting)
    monkeypatch.setattr(reader, "_GAP", 0)
    where = {}
    for path, p in P.flatten(source.specs()).items():
        spec = sharding.spec(p.axes, p.shape, SimpleNamespace(shape=mesh))
        where[path] = OneOfMany(part(spec, p.shape, mesh, place))
    leaves = hf._leaves(source, None, where)
    buffers = [leaf.buffers() for leaf in leaves]
    reader.read_all(job for leaf, own in zip(leaves, buffers, strict=True) for job in leaf.jobs(own))
    for leaf, own in zip(leaves, buffers, strict=True):
        (mine,) = own.values()
        np.testing.assert_array_equal(mine, params[leaf.path][where[leaf.path].index], err_msg=leaf.path)
    held = sum(array.nbytes for own in buffers for array in own.values())
    assert sum(sizes) == held < 0.3 * sum(array.nbytes for array in params.values())


def test_axes_that_are_stored_as_one_are_cut_on_the_first_alone():
    one = Part(
        "w", (), (8, 3), (2, 1), (3, 12), (slice(0, 3), slice(4, 12)), (1, 0)
    )  # (N, H, D) of D [..|NH] with N 2, H 4
    assert cut(one, (slice(1, 2), slice(0, 4), slice(0, 2)), (2, 4, 3)) == ((slice(0, 2), slice(8, 12)), (4, 2))
    with pytest.raises(ValueError, match="cannot be split"):
        cut(one, (slice(0, 2), slice(0, 2), slice(0, 3)), (2, 4, 3))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_that_a_dtype_cannot_hold_are_refused_both_ways(dtype, tiny, tmp_path):
    config = small("gpt2")
    params = tiny.params(config)
    params["embed"]["tokens"] = params["embed"]["tokens"].at[1, 2].set(1e6).astype(dtype)
    with pytest.raises(UserError, match="embed/tokens has values beyond the range of float16"):
        hf.save(params, config, None, tmp_path / "no", dtype="float16")
    assert not (tmp_path / "no").exists()
    where = hf.save(params, config, None, tmp_path / "model")
    with pytest.raises(UserError, match="wte.weight.*beyond the range of float16"):
        hf.load(where, dtype="float16")
    assert hf.load(where).params["embed"]["tokens"].dtype == jnp.dtype(dtype)


def test_64_bits_are_refused_before_anything_is_read(tiny, tmp_path, monkeypatch):
    config = small("gpt2")
    where = hf.save(tiny.params(config), config, None, tmp_path / "model")
    monkeypatch.setattr(os, "preadv", None)
    with pytest.raises(UserError, match="JAX_ENABLE_X64=1"):
        hf.load(where, dtype="float64")
