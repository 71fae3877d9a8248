"""What is written is, byte for byte, what the format's own library writes, a tensor at a time."""

import json
import weakref

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data import tensor_reader as reader
from research.data import tensor_writer as writer
from research.data import tensors as T

METADATA = {"format": "pt"}


def announced(arrays: dict[str, np.ndarray]) -> dict[str, writer.Tensor]:
    return {name: (array.dtype, array.shape, lambda array=array: array) for name, array in arrays.items()}


def bits(shape, dtype: np.dtype, seed: int) -> np.ndarray:
    raw = np.random.default_rng(seed).integers(0, 2 if dtype.kind == "b" else 256, (*shape, dtype.itemsize), np.uint8)
    return raw.view(dtype)[..., 0]


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != T.METADATA)
shapes = st.lists(st.integers(0, 4), max_size=3)
described = st.dictionaries(names, st.tuples(shapes, st.sampled_from(list(T.DTYPES.values()))), min_size=1, max_size=6)


@given(described)
def test_a_file_is_the_librarys_to_the_byte_and_reads_back_by_both(tmp_path_factory, described):
    arrays = {name: bits(*one, seed) for seed, (name, one) in enumerate(described.items())}
    folder = tmp_path_factory.mktemp("written")
    assert writer.save(folder, announced(arrays), METADATA, 1 << 30) == [folder / T.WHOLE]
    content = (folder / T.WHOLE).read_bytes()
    assert content == safetensors.numpy.save(arrays, METADATA)
    found = T.open_folder(folder)
    assert found.metadata == METADATA and found.entries.keys() == arrays.keys()
    for name, theirs in safetensors.deserialize(content):
        entry, array = found.entries[name], arrays[name]
        out = np.empty(entry.shape, entry.dtype)
        reader.read_all([reader.Job(entry, out)])
        assert theirs["data"] == out.tobytes() == array.tobytes()
        assert tuple(theirs["shape"]) == out.shape == array.shape and out.dtype == array.dtype
        assert entry.begin % entry.dtype.itemsize == 0


def test_every_dtype_of_the_table_is_the_librarys(tmp_path):
    arrays = {name: np.ones(3, dtype) for name, dtype in T.DTYPES.items()}
    content = safetensors.numpy.save(arrays)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert {name: header[name]["dtype"] for name in arrays} == {name: name for name in arrays}


def test_shards_are_filled_in_order_and_indexed_as_transformers_does(tmp_path):
    sizes = {"d": 4, "a": 5, "e": 11, "c": 1, "b": 9, "z": 0}
    arrays = {name: np.full(size, size, np.uint8) for name, size in sizes.items()}
    files = writer.save(tmp_path, announced(arrays), METADATA, 10)
    held = {file.name: sorted(safetensors.numpy.load_file(file)) for file in files[:-1]}
    assert held == {
        "model-00001-of-00003.safetensors": ["a", "d"],
        "model-00002-of-00003.safetensors": ["e"],
        "model-00003-of-00003.safetensors": ["b", "c", "z"],
    }
    index = json.loads((tmp_path / T.INDEX).read_text())
    weight_map = {tensor: name for name, tensors in held.items() for tensor in tensors}
    assert index == {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    assert files[-1].name == T.INDEX and list(index["weight_map"]) == sorted(sizes)
    entries = T.open_folder(tmp_path).entries
    assert {name: entry.shape for name, entry in entries.items()} == {name: (size,) for name, size in sizes.items()}


def test_one_tensor_is_held_at_a_time(tmp_path):
    references, made = [], []

    class Watched(np.ndarray):
        """An array that can be watched."""

    def make(name: str) -> np.ndarray:
        assert all(reference() is None for reference in references), "the one before has been let go"
        array = np.zeros((2, 3), np.float32).view(Watched)
        references.append(weakref.ref(array))
        made.append(name)
        return array

    described = {name: (np.dtype(np.float32), (2, 3), lambda name=name: make(name)) for name in "cab"}
    writer.save(tmp_path, described, {}, 50)
    assert sorted(made) == ["a", "b", "c"]


def test_what_is_not_contiguous_is_written_row_by_row(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    writer.save(tmp_path, announced({"a": array}), {}, 1 << 30)
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / T.WHOLE)["a"], array)


def test_a_dtype_without_a_name_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="safetensors have no complex64, int4"):
        writer.save(tmp_path, announced({"a": np.zeros(2, np.complex64), "b": np.zeros(2, jnp.int4)}), {}, 1 << 30)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot write .*nowhere: No such file or directory"):
        writer.save(tmp_path / "nowhere", announced({"a": np.zeros(2)}), {}, 1 << 30)
