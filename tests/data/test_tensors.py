"""Headers and indices from strangers: what is there is found, and what is damaged, outside or of another format is refused."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data import tensors as T

ONE = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


def stored(header: object, data: bytes = bytes(24)) -> bytes:
    """A file's content; `header` is its JSON, as bytes or to be made."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(content).to_bytes(8, "little") + content + data


def entry(**changes) -> dict:
    return {"a": {**ONE["a"], **changes}}


@pytest.fixture
def folder(tmp_path):
    """`folder(name=content, ...)` writes files into a new folder."""

    def make(**files) -> os.PathLike:
        for name, content in files.items():
            content = json.dumps(content).encode() if isinstance(content, dict) else content
            (tmp_path / name.replace("__", ".")).write_bytes(content)
        return tmp_path

    return make


def refusal(folder) -> str:
    with pytest.raises(UserError) as caught:
        T.open_folder(folder)
    return str(caught.value)


def test_tensors_are_found_by_name_dtype_shape_and_bytes(tmp_path):
    tensors = {
        "b": np.arange(6, dtype=np.int64).reshape(2, 3),
        "a": np.float32(1.5),
        "none": np.zeros((0, 4), np.float16),
    }
    safetensors.numpy.save_file({n: np.asarray(t) for n, t in tensors.items()}, tmp_path / T.WHOLE, {"format": "pt"})
    found = T.open_folder(tmp_path)
    content = (tmp_path / T.WHOLE).read_bytes()
    assert list(found.entries) == ["a", "b", "none"] and found.metadata == {"format": "pt"}
    for name, wanted in tensors.items():
        one = found.entries[name]
        assert (one.dtype, one.shape) == (wanted.dtype, wanted.shape)
        assert content[one.begin : one.end] == wanted.tobytes()


def test_shards_are_found_through_their_index(folder):
    index = {"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}
    other = {"b": {"dtype": "U8", "shape": [24], "data_offsets": [0, 24]}}
    where = folder(x__safetensors=stored(ONE), y__safetensors=stored(other), model__safetensors__index__json=index)
    found = T.open_folder(where)
    assert {name: one.file.name for name, one in found.entries.items()} == {"a": "x.safetensors", "b": "y.safetensors"}


DAMAGED = {
    "empty": (b"", "truncated: it has 0 bytes"),
    "cut within the length": (b"\x10\0\0", "truncated"),
    "cut within the header": (stored(ONE)[:30], "truncated"),
    "cut within the data": (stored(ONE)[:-1], "truncated"),
    "longer than described": (stored(ONE) + b"\0", "describes only"),
    "a header of 2^63 bytes": (b"\xff" * 7 + b"\x7f" + bytes(99), "announces a header of"),
    "a header over the limit": ((T.MAX_HEADER + 1).to_bytes(8, "little") + bytes(99), "100000000 is the most"),
    "no header": (stored(b"", b""), "what should be JSON is not"),
    "not UTF-8": (stored(b'{"\xff": 1}'), "what should be JSON is not"),
    "not JSON": (stored(b"{a: 1}"), "what should be JSON is not"),
    "not an object": (stored(b"[1]"), "expected a JSON object, found list"),
    "nested without end": (stored(b"[" * 200_000), "what should be JSON is not"),
    "a nested dtype": (stored(b'{"a": {"dtype": ' + b"[" * 900 + b"]" * 900 + b"}}"), "without dtype, shape"),
    "NaN": (stored(b'{"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], "x": NaN}}'), "NaN is no JSON"),
    "Infinity": (stored(b'{"__metadata__": -Infinity}'), "-Infinity is no JSON"),
    "a number of too many digits": (stored(b'{"a": ' + b"9" * 10_000 + b"}"), "what should be JSON is not"),
    "half a surrogate pair": (stored(b'{"\\ud800": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}'), "surrogates"),
    "a tensor twice": (stored(json.dumps(ONE).encode()[:-1] + b"," + json.dumps(ONE).encode()[1:]), "'a' stands there twice"),
    "a field twice": (stored(b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}'), "stands there twice"),
    "a tensor without fields": (stored({"a": {}}), "without dtype, shape and data_offsets"),
    "a tensor that is a text": (stored({"a": "F32"}), "without dtype, shape and data_offsets"),
    "an unknown dtype": (stored(entry(dtype="F31")), "dtype 'F31'; known are BOOL, U8"),
    "a dtype that is a list": (stored(entry(dtype=["F32"])), "dtype a list"),
    "a shape that is a number": (stored(entry(shape=6)), "no valid shape"),
    "a negative size": (stored(entry(shape=[-2, -3])), "no valid shape"),
    "a fraction": (stored(entry(shape=[2.0, 3])), "no valid shape"),
    "true": (stored(entry(shape=[True, 6])), "no valid shape"),
    "sizes beyond any file": (stored(entry(shape=[2**40, 2**40])), "no valid shape"),
    "sizes beyond any file, times 0": (stored(entry(shape=[0, 2**59, 2**59], data_offsets=[0, 0])), "no valid shape"),
    "33 dimensions": (stored(entry(shape=[1] * 33)), "no valid shape"),
    "three offsets": (stored(entry(data_offsets=[0, 24, 48])), "no valid data_offsets"),
    "negative offsets": (stored(entry(data_offsets=[-24, 0])), "no valid data_offsets"),
    "offsets that go back": (stored(entry(data_offsets=[24, 0])), "needs 24 bytes; its offsets hold -24"),
    "offsets that disagree with the shape": (stored(entry(data_offsets=[0, 20]), bytes(20)), "needs 24 bytes; its offsets hold 20"),
    "offsets beyond the file": (stored(entry(data_offsets=[24, 48])), "leaves a hole"),
    "a hole": (stored({**ONE, "b": {"dtype": "U8", "shape": [4], "data_offsets": [28, 32]}}, bytes(32)), "'b' leaves a hole"),
    "an overlap": (stored({**ONE, "b": {"dtype": "U8", "shape": [4], "data_offsets": [20, 24]}}), "'b' overlaps"),
    "the same bytes twice": (stored({**ONE, "b": ONE["a"]}), "'b' overlaps"),
    "metadata that is a list": (stored({**ONE, "__metadata__": [1]}), "must hold texts by name"),
    "metadata that holds a number": (stored({**ONE, "__metadata__": {"format": 1}}), "must hold texts by name"),
    "a zip archive": (b"PK\x03\x04\x14\x00\x08\x08" + bytes(99), "not safetensors but a zip archive, as torch.save writes it"),
    "a pickle": (b"\x80\x02}q\x00(X\x05\x00\x00", "not safetensors but pickle"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "a web page": (b"<!DOCTYPE html><html></html>", "a web page"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_with_what_is_wrong(folder, name):
    content, wrong = DAMAGED[name]
    message = refusal(folder(model__safetensors=content))
    assert wrong in message and "model.safetensors" in message
    assert message.isascii() and len(message) < 1000


def test_names_of_any_length_and_kind_make_short_messages_in_plain_characters(folder):
    name = "\x1b[31m\n权" + "x" * 100_000
    message = refusal(folder(model__safetensors=stored({name: {"dtype": name, "shape": [6], "data_offsets": [0, 24]}})))
    assert message.isascii() and message.isprintable() and len(message) < 1000


OUTSIDE = ["/etc/x.safetensors", "../x.safetensors", "a/../../x.safetensors", "sub/x.safetensors", "..\\x.safetensors",
           "C:x.safetensors", "x\0.safetensors", "x.bin", "", 7, None, ["x.safetensors"]]  # fmt: skip


@pytest.mark.parametrize("shard", OUTSIDE)
def test_an_index_may_only_name_files_beside_it(folder, shard):
    where = folder(model__safetensors__index__json={"weight_map": {"a": shard}})
    (where.parent / "x.safetensors").write_bytes(stored(ONE))
    assert "expected the bare name of a .safetensors file beside the index" in refusal(where)


@pytest.mark.parametrize(
    ("index", "wrong"),
    [
        (b"{", "what should be JSON is not"),
        (b"[]", "expected a JSON object"),
        (b"{}", "has no weight_map"),
        (b'{"weight_map": {}}', "has no weight_map"),
        (b'{"weight_map": ["a"]}', "has no weight_map"),
        (b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "'a' stands there twice"),
        (b'{"weight_map": {"a": "y.safetensors"}}', "lacks 1 of the 1 shards of model.safetensors.index.json: y.safetensors"),
        (b'{"weight_map": {"a": "' + b"y" * 300 + b'.safetensors"}}', "lacks 1 of the 1 shards"),
        (b'{"weight_map": {"a": "\\udc80.safetensors"}}', "lacks 1 of the 1 shards"),
        (b'{"weight_map": {"b": "x.safetensors"}}', "Not in their shard: b in x.safetensors. Not in the index: a in x.safetensors"),
    ],
)  # fmt: skip
def test_an_index_that_is_damaged_or_disagrees_with_its_shards_is_refused(folder, index, wrong):
    assert wrong in refusal(folder(x__safetensors=stored(ONE), model__safetensors__index__json=index))


def test_links_are_followed_within_the_folder_and_nowhere_else(tmp_path):
    inside, outside = tmp_path / "model", tmp_path / "elsewhere"
    for place in (inside, outside):
        place.mkdir()
        (place / "real").write_bytes(stored(ONE))
    link = inside / T.WHOLE
    link.symlink_to("real")
    assert list(T.open_folder(inside).entries) == ["a"]
    for target in (outside / "real", "../elsewhere/real", "nowhere", T.WHOLE, "."):
        link.unlink()
        link.symlink_to(target)
        message = refusal(inside)
        assert "outside the folder" in message or "cannot read" in message or "not an ordinary file" in message


def test_shards_and_the_index_itself_may_not_be_links_out(tmp_path):
    inside, outside = tmp_path / "model", tmp_path / "elsewhere"
    inside.mkdir()
    outside.mkdir()
    (outside / "x").write_bytes(stored(ONE))
    (outside / "index").write_text('{"weight_map": {"a": "x.safetensors"}}')
    (inside / "x.safetensors").symlink_to(outside / "x")
    (inside / T.INDEX).write_bytes((outside / "index").read_bytes())
    assert "x.safetensors is a link to" in refusal(inside)
    (inside / T.INDEX).unlink()
    (inside / T.INDEX).symlink_to(outside / "index")
    assert f"{T.INDEX} is a link to" in refusal(inside)


def test_a_hub_cache_links_to_the_blobs_of_its_own_repository_only(tmp_path):
    home = tmp_path / "models--org--name" / "snapshots" / "0123"
    for place in (home, tmp_path / "models--org--name" / "blobs", tmp_path / "models--org--other" / "blobs"):
        place.mkdir(parents=True)
    for name in ("name", "other"):
        (tmp_path / f"models--org--{name}" / "blobs" / "beef").write_bytes(stored(ONE))
    (home / T.WHOLE).symlink_to("../../blobs/beef")
    assert list(T.open_folder(home).entries) == ["a"]
    (home / T.WHOLE).unlink()
    (home / T.WHOLE).symlink_to("../../../models--org--other/blobs/beef")
    assert "outside the folder" in refusal(home)


def test_what_is_no_ordinary_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / T.WHOLE)
    assert "not an ordinary file" in refusal(tmp_path)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "flax_model.msgpack", "tf_model.h5", "m.gguf"]
)
def test_other_formats_are_named_and_never_opened(folder, name, monkeypatch):
    where = folder(**{name.replace(".", "__"): b"\x80\x04"})
    monkeypatch.setattr("builtins.open", None)
    message = refusal(where)
    assert name in message and "Only safetensors are read" in message and "safe_serialization=True" in message
    assert "save_pretrained" in refusal(where / name)


def test_folders_without_safetensors_say_what_they_hold(folder, tmp_path):
    assert "It has no files" in refusal(tmp_path)
    assert "nothing is there" in refusal(tmp_path / "nowhere")
    assert "nothing is there" in refusal(tmp_path / ("x" * 300))
    assert "It has notes.txt" in refusal(folder(notes__txt=b""))
    assert "though it has part.safetensors" in refusal(folder(part__safetensors=stored(ONE)))


def holds(entries: dict[str, T.Entry], size: int) -> bool:
    """Whether entries are sound: within the file, and of as many bytes as their shape needs."""
    return all(
        0 < e.begin <= e.end <= size and e.end - e.begin == np.prod(e.shape, dtype=object) * e.dtype.itemsize
        for e in entries.values()
    )


VALID = stored(
    {"__metadata__": {"format": "pt"}, **ONE, "b": {"dtype": "BF16", "shape": [2], "data_offsets": [24, 28]}}, bytes(28)
)
edits = st.lists(st.tuples(st.integers(0, len(VALID) - 29), st.integers(0, 255)), min_size=1, max_size=4)


@given(edits, st.integers(0, len(VALID)), st.binary(max_size=3))
def test_random_damage_gives_a_user_error_or_a_sound_header(tmp_path_factory, edits, cut, added):
    content = bytearray(VALID)
    for at, byte in edits:
        content[at] = byte
    file = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    for damaged in (content, content[:cut], content[:cut] + added + content[cut:]):
        file.write_bytes(damaged)
        try:
            entries, _ = T.read_header(file)
        except UserError:
            continue
        assert holds(entries, len(damaged))


leaves = st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.sampled_from(["F32", "U8", "x"])
fields = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "U8"]) | leaves, "shape": st.lists(st.integers(0, 5) | leaves, max_size=3) | leaves},
    optional={"data_offsets": st.lists(st.integers(0, 30) | leaves, max_size=3) | leaves},
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), fields | leaves), st.integers(0, 40))
def test_any_json_gives_a_user_error_or_a_sound_header(tmp_path_factory, header, size):
    file = tmp_path_factory.getbasetemp() / "any.safetensors"
    file.write_bytes(stored(header, bytes(size)))
    try:
        entries, _ = T.read_header(file)
    except UserError:
        return
    assert holds(entries, file.stat().st_size)


@pytest.mark.parametrize(
    ("source", "target", "value", "beyond"),
    [
        ("float32", "float16", 65504.0, False),
        ("float32", "float16", 65536.0, True),
        ("bfloat16", "float16", -65536.0, True),
        ("float32", "bfloat16", 3.4e38, True),
        ("float64", "float32", 1e39, True),
        ("float16", "float32", 65504.0, False),
        ("float16", "float8_e4m3fn", 500.0, True),
        ("float32", "float16", np.inf, False),
        ("float32", "float16", np.nan, False),
    ],
)
def test_numbers_that_a_format_cannot_hold_are_told_from_infinities(source, target, value, beyond):
    for values in ([value], [1.0, value], [value, np.nan, -np.inf, 0.0]):
        values = np.asarray(values, jnp.dtype(source))
        with np.errstate(all="ignore"):
            assert T.beyond_range(values, values.astype(jnp.dtype(target))) == beyond
    nothing = np.zeros(0, jnp.dtype(source))
    assert not T.beyond_range(nothing, nothing.astype(jnp.dtype(target)))
