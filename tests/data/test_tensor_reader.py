"""Slices, transposes and conversions on the way from a file equal NumPy's, and no more of the file is read than they need."""

import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data import tensor_reader as reader
from research.data import tensor_writer as writer
from research.data import tensors as T


def read_into(entry: T.Entry, out: np.ndarray, **how) -> None:
    """One job by itself."""
    reader.read_all([reader.Job(entry, out, **how)])


FLOATS = ("float32", "bfloat16", "float16", "float64")


@pytest.fixture(scope="module")
def keep(tmp_path_factory):
    """`keep(name=array, ...)` writes arrays to a file and returns their entries."""

    def write(**arrays: np.ndarray) -> dict[str, T.Entry]:
        folder = tmp_path_factory.mktemp("stored")
        writer.save(folder, {n: (a.dtype, a.shape, lambda a=a: a) for n, a in arrays.items()}, {}, 1 << 30)
        return dict(T.open_folder(folder).entries)

    return write


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """The bytes of every read of a file's data, in no particular order."""
    sizes: list[int] = []
    real = os.preadv

    def counting(descriptor, buffers, at):
        got = real(descriptor, buffers, at)
        sizes.append(got)
        return got

    monkeypatch.setattr(os, "preadv", counting)
    return sizes


def random(shape, dtype: str, seed: int = 0) -> np.ndarray:
    """Bits at random for whole numbers, and numbers of every float format's range for floats."""
    draw = np.random.default_rng(seed)
    if dtype in FLOATS:
        return (draw.normal(size=shape) * 10.0 ** draw.integers(-3, 4, shape)).astype(jnp.dtype(dtype))
    return draw.integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8).view(dtype)[..., 0]


@st.composite
def wanted(draw):
    """A stored shape, a view of it, an index into the view and a permutation of what the index leaves."""
    view = tuple(draw(st.lists(st.integers(0, 7), max_size=4)))
    joined = draw(st.integers(0, len(view)))
    stored = (int(np.prod(view[:joined], dtype=int)), *view[joined:]) if joined else view
    index = []
    for size in view[: draw(st.integers(0, len(view)))]:
        if size and draw(st.booleans()):
            index.append(draw(st.integers(-size, size - 1)))
        else:
            bounds = st.none() | st.integers(-size - 1, size + 1)
            index.append(slice(draw(bounds), draw(bounds)))
    left = len(view) - sum(isinstance(at, int) for at in index)
    return stored, view, tuple(index), draw(st.permutations(range(left)))


@given(
    wanted(),
    st.sampled_from([(a, b) for a in FLOATS for b in FLOATS] + [(i, i) for i in ("int8", "uint16", "int64")]),
    st.sampled_from([(64, 64, 0), (64, 128, 16), (1 << 20, 1 << 20, 1 << 16)]),
    st.booleans(),
)
def test_what_is_read_is_what_numpy_gives(keep, wanted, dtypes, sizes, ordered):
    stored, view, index, order = wanted
    array = random(stored, dtypes[0])
    expected = array.reshape(view)[index].transpose(order).astype(jnp.dtype(dtypes[1]))
    out = np.empty(expected.shape, expected.dtype, "C" if ordered else "F")
    with pytest.MonkeyPatch.context() as patch:
        for name, size in zip(("_SCRATCH", "_DIRECT", "_GAP"), sizes, strict=True):
            patch.setattr(reader, name, size)
        read_into(keep(a=array)["a"], out, shape=view, index=index, transpose=order)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("source", FLOATS)
def test_a_transposed_matrix_of_many_pieces_is_right(keep, monkeypatch, source, target):
    monkeypatch.setattr(reader, "_SCRATCH", 1 << 14)
    array = random((100, 256), source)
    leaf = np.zeros((3, 256, 100), jnp.dtype(target))
    read_into(keep(a=array)["a"], leaf[1], transpose=(1, 0))
    np.testing.assert_array_equal(leaf[1], array.T.astype(leaf.dtype))
    assert not leaf[0].any() and not leaf[2].any()


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.data())
def test_several_jobs_on_one_tensor_each_get_their_part(keep, d, a, b, h, turned, data):
    stored = random((d, (a + b) * h), "float32")
    entry = keep(a=stored)["a"]
    order = data.draw(st.permutations(range(2))) if turned else (0, 1)
    cuts = [(0, a * h), (a * h, (a + b) * h), (data.draw(st.integers(0, a * h)), (a + b) * h)]
    rows = [(0, d), (data.draw(st.integers(0, d - 1)), d), (0, 1)]
    indices = [(slice(*r), slice(*c)) for r, c in zip(rows, cuts, strict=True)]
    outs = [np.empty(stored[index].transpose(order).shape, np.float32) for index in indices]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "_GAP", data.draw(st.sampled_from([0, 8, 1 << 16])))
        patch.setattr(reader, "_SCRATCH", data.draw(st.sampled_from([16, 64, 1 << 16])))
        reader.read_all(reader.Job(entry, o, None, i, order) for o, i in zip(outs, indices, strict=True))
    for out, index in zip(outs, indices, strict=True):
        np.testing.assert_array_equal(out, stored[index].transpose(order))


def test_only_the_rows_asked_for_are_read(keep, reads):
    array = random((64, 1024), "float32")
    entry = keep(a=array)["a"]
    out = np.empty((8, 1024), np.float32)
    read_into(entry, out, index=(slice(16, 24),))
    assert sum(reads) == out.nbytes
    reads.clear()
    turned = np.empty((1024, 8), np.float16)
    read_into(entry, turned, index=(slice(16, 24),), transpose=(1, 0))
    assert sum(reads) == out.nbytes
    np.testing.assert_array_equal(turned, array[16:24].T.astype(np.float16))


def test_columns_are_read_alone_where_the_gaps_between_are_worth_skipping(keep, reads, monkeypatch):
    array = random((8, 4096), "float32")
    entry, out = keep(a=array)["a"], np.empty((8, 1024), np.float32)
    for gap, expected in ((4 * 1024, out.nbytes), (16 * 4096, array.nbytes)):
        monkeypatch.setattr(reader, "_GAP", gap)
        reads.clear()
        read_into(entry, out, index=(slice(None), slice(1024, 2048)))
        assert sum(reads) == expected
        np.testing.assert_array_equal(out, array[:, 1024:2048])


def test_the_parts_of_a_fused_matrix_are_read_once(keep, reads):
    array = random((64, 3 * 128), "float32")
    entry = keep(a=array)["a"]
    outs = [np.empty((64, 128), np.float32) for _ in range(3)]
    reader.read_all(
        reader.Job(entry, out, None, (slice(None), slice(128 * i, 128 * (i + 1)))) for i, out in enumerate(outs)
    )
    assert sum(reads) == array.nbytes
    np.testing.assert_array_equal(np.concatenate(outs, 1), array)


def test_parts_that_lie_apart_are_read_alone_and_straight_into_place(keep, reads):
    array = random((64, 128), "float32")
    entry = keep(a=array)["a"]
    outs = [np.empty((16, 128), np.float32) for _ in range(2)]
    reader.read_all(
        [reader.Job(entry, outs[0], index=(slice(0, 16),)), reader.Job(entry, outs[1], index=(slice(48, 64),))]
    )
    assert sorted(reads) == [outs[0].nbytes] * 2
    np.testing.assert_array_equal(outs[1], array[48:])


def test_whole_numbers_and_floats_are_not_mixed(keep):
    entries = keep(i=random((2,), "int64"), f=random((2,), "float32"))
    for name, dtype in (("i", np.float32), ("i", np.int32), ("f", np.int32)):
        with pytest.raises(UserError, match="only floating point numbers are converted"):
            read_into(entries[name], np.empty(2, dtype))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("source", "target"), [("float32", "float16"), ("bfloat16", "float16"), ("float64", "bfloat16")]
)
def test_values_beyond_the_range_of_the_dtype_are_refused(keep, source, target, turned):
    array = np.ones((4, 4), jnp.dtype(source))
    array[2, 3] = jnp.finfo(source).max
    entry, out = keep(a=array)["a"], np.empty((4, 4), jnp.dtype(target))
    with pytest.raises(UserError, match=f"'a'.*values beyond the range of {target}"):
        read_into(entry, out, transpose=(1, 0) if turned else None)
    array[2, 3], array[0, 0] = np.nan, np.inf
    read_into(keep(a=array)["a"], out)
    np.testing.assert_array_equal(out.astype(np.float64), array.astype(out.dtype).astype(np.float64))


def test_what_does_not_fit_is_a_programming_error(keep):
    entry = keep(a=random((4, 6), "float32"))["a"]
    for wrong in (
        {"shape": (5, 5)},
        {"index": (slice(0, 4, 2),)},
        {"index": (0, 0, 0)},
        {"transpose": (0, 0)},
        {"transpose": (0,)},
        {"index": (slice(0, 2),)},
    ):
        with pytest.raises(ValueError):
            read_into(entry, np.empty((4, 6), np.float32), **wrong)
    with pytest.raises(IndexError):
        read_into(entry, np.empty((6,), np.float32), index=(4,))


def test_a_file_that_went_away_or_became_shorter_is_said_so(keep):
    entry = keep(a=random((4, 6), "float32"))["a"]
    out = np.empty((4, 6), np.float32)
    os.truncate(entry.file, entry.end - 1)
    with pytest.raises(UserError, match="has become shorter while it was read"):
        read_into(entry, out)
    entry.file.unlink()
    with pytest.raises(UserError, match="cannot read .*No such file"):
        read_into(entry, out)


def test_after_an_error_no_thread_begins_another_piece(keep, monkeypatch):
    entry, out = keep(a=random((1000, 16), "float32"))["a"], np.empty((1000, 16), np.float32)
    monkeypatch.setattr(reader, "_DIRECT", 64)
    begun = []

    def failing(piece, descriptor, scratch):
        begun.append(piece)
        time.sleep(0.002)
        if begun[4:5] == [piece]:
            raise UserError("the fifth")

    monkeypatch.setattr(reader, "_read_piece", failing)
    with pytest.raises(UserError, match="the fifth"):
        reader.read_all([reader.Job(entry, out)], threads=1)
    assert len(begun) == 5
    begun.clear()
    with pytest.raises(UserError, match="the fifth"):
        reader.read_all([reader.Job(entry, out)], threads=2)
    assert len(begun) < 500


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (700, 300)])
def test_an_allocated_array_becomes_jaxs_own_without_a_copy(shape, dtype):
    array = reader.allocate(shape, jnp.dtype(dtype))
    array[...] = 1
    adopted = reader.adopt(array, jax.devices()[0])
    assert (adopted.shape, adopted.dtype) == (shape, dtype)
    if array.size:
        assert adopted.unsafe_buffer_pointer() == array.ctypes.data


def test_donating_an_adopted_array_leaves_other_arrays_of_its_memory_alone():
    array = reader.allocate((700, 300), np.float32)
    array[...] = 1
    first, second = reader.adopt(array), reader.adopt(array)
    doubled = jax.jit(lambda x: x * 2, donate_argnums=0)(first)
    assert float(doubled[0, 0]) == 2 and float(second[0, 0]) == 1


def test_64_bits_are_refused_where_jax_would_cut_them():
    with pytest.raises(UserError, match="float64 needs JAX_ENABLE_X64=1"):
        reader.allocate((2,), np.float64)
    with jax.enable_x64(True):
        assert reader.adopt(reader.allocate((2,), np.float64)).dtype == np.float64


def test_every_piece_is_read_by_any_number_of_threads(keep, monkeypatch):
    monkeypatch.setattr(reader, "_DIRECT", 256)
    array = random((300, 16), "float32")
    entry = keep(a=array)["a"]
    for threads in (1, 3, None):
        out = np.empty_like(array)
        reader.read_all([reader.Job(entry, out)], threads)
        np.testing.assert_array_equal(out, array)
