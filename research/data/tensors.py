"""What a folder of safetensors holds: every tensor's file, dtype, shape and bytes, read from the headers alone.

A safetensors file is 8 bytes (the header's length, little endian), a JSON header {name: {dtype, shape, data_offsets}}, and the data. A
folder holds one `model.safetensors`, or `model.safetensors.index.json` that says which shard holds which tensor. Both come from strangers,
so nothing in them is believed before it is checked: sizes against the file, offsets against shapes and each other, names of shards
against the folder.
"""

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from research.core.errors import UserError

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
METADATA = "__metadata__"
MAX_HEADER = 100_000_000  # the format's own library draws the line here too

DTYPES: Mapping[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
}
"""The dtypes read and written, by the format's names, in the order in which the format's library lays tensors out (last first)."""

_OTHER_FORMATS = {
    ".bin": "pickle",
    ".pt": "pickle",
    ".pth": "pickle",
    ".ckpt": "pickle",
    ".pkl": "pickle",
    ".msgpack": "Flax msgpack",
    ".h5": "TensorFlow HDF5",
    ".gguf": "GGUF",
}
_BEGINNINGS = {
    b"version ": "a Git LFS pointer: `git lfs pull` in its repository fetches the file itself",
    b"PK\x03\x04": "a zip archive, as torch.save writes it (pickle inside)",
    b"\x80\x02": "pickle",
    b"\x80\x04": "pickle",
    b"GGUF": "GGUF",
    b"\x89HDF": "HDF5",
    b"<": "a web page",
}
_CONVERT = (
    "Only safetensors are read: pickle can run code, so such files are never opened. Take model.safetensors from the same hub "
    "repository, or convert on a machine that trusts the file: "
    "transformers.AutoModelForCausalLM.from_pretrained(SRC).save_pretrained(DST, safe_serialization=True)."
)


@dataclass(frozen=True)
class Entry:
    """One stored tensor: bytes `begin` to `end` of `file` hold its values row by row."""

    name: str
    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Tensors:
    """Every tensor of a folder by name (sorted), and the free text that its files carry (later shards add to earlier ones)."""

    folder: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]


def open_folder(folder: str | Path) -> Tensors:
    """Returns what the safetensors of `folder` hold; only headers are read. `model.safetensors` is used where it is there, the
    index and its shards otherwise.

    Raises UserError where there are none (naming files of other formats, which are never opened), where a header or the index is
    damaged or does not describe its file exactly, where the index and the shards disagree (a tensor that its shard lacks, a tensor
    in a shard that the index does not name: both are listed), or where a file lies outside the folder. Links are followed inside
    the folder, and from a snapshot of a hub cache to the blobs of the same repository.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is not a folder{_why_not(folder)}. Give the folder that holds {WHOLE} or {INDEX}.")
    if _exists(folder / WHOLE):
        entries, metadata = read_header(contained(folder, WHOLE))
    elif _exists(folder / INDEX):
        entries, metadata = _read_shards(folder, _read_index(contained(folder, INDEX)))
    else:
        raise UserError(_nothing_here(folder))
    return Tensors(folder, dict(sorted(entries.items())), metadata)


def read_header(file: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Returns the tensors of one safetensors file and its metadata. Raises UserError where the header is damaged, too long, not
    JSON, or does not account for every byte of the file exactly once."""
    try:
        with open(file, "rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            start = stream.read(8)
            length = _header_length(file, start, size)
            header = _parse(stream.read(length), str(file))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    metadata = header.pop(METADATA, None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(f"{file}: {METADATA} must hold texts by name. {_DAMAGED}")
    entries = {name: _entry(file, name, stored, 8 + length) for name, stored in header.items()}
    _check_layout(file, list(entries.values()), 8 + length, size)
    return entries, metadata


_DAMAGED = "The file is damaged or was not written by a safetensors library: fetch or convert it again."


def _exists(path: Path) -> bool:
    """Whether something has this name, a link to nowhere included: that one is for `_contained` to explain. A name that no file can
    have is one that none has."""
    return os.path.lexists(path)


def _why_not(path: Path) -> str:
    if path.suffix in _OTHER_FORMATS:
        return f" but a {path.suffix} file ({_OTHER_FORMATS[path.suffix]}). {_CONVERT[:-1]}"
    return " but a file" if _exists(path) else ": nothing is there"


def _nothing_here(folder: Path) -> str:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return f"cannot read {folder}: {error.strerror or error}"
    loose = [name for name in names if name.endswith(".safetensors")]
    others = [name for name in names if Path(name).suffix in _OTHER_FORMATS]
    if loose:
        return (
            f"{folder} has neither {WHOLE} nor {INDEX}, though it has {_listed(loose)}. "
            f"Fetch the index, or rename a single file to {WHOLE}."
        )
    if others:
        formats = sorted({_OTHER_FORMATS[Path(name).suffix] for name in others})
        return f"{folder} has no safetensors, only {_listed(others)} ({', '.join(formats)}). {_CONVERT}"
    return f"{folder} has no safetensors: neither {WHOLE} nor {INDEX}. It has {_listed(names) or 'no files'}."


def _listed(names: list[str], most: int = 20) -> str:
    """`names` in one line, the first `most` of them."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name)[1:-1] for name in names[:most]) + rest


def shown(value: Any, most: int = 200) -> str:
    """What a file holds, in plain characters and not too many of them: a text as Python writes it, anything else by its type."""
    if not isinstance(value, str):
        return f"a {type(value).__name__}"
    return ascii(value if len(value) <= most else value[:most] + "...")


def contained(folder: Path, name: str) -> Path:
    """The file `name` of `folder` with every link followed. Raises UserError where that leads out of the folder (and is not a hub
    cache's own link to its blobs), or to no ordinary file."""
    try:
        home, file = folder.resolve(strict=True), (folder / name).resolve(strict=True)
        ordinary = stat.S_ISREG(file.stat().st_mode)
    except (OSError, RuntimeError) as error:  # before Python 3.13 a loop of links is a RuntimeError
        reason = error.strerror if isinstance(error, OSError) else "a loop of links"
        raise UserError(f"cannot read {folder / name}: {reason}. Fetch it again.") from error
    if not any(file.is_relative_to(place) for place in (home, *_blobs(home))):
        raise UserError(
            f"{folder / name} is a link to {file}, outside the folder; only a hub cache's links to its own blobs are followed. "
            "Put the file itself there."
        )
    if not ordinary:
        raise UserError(f"{folder / name} is not an ordinary file. Put the file itself there.")
    return file


def _blobs(home: Path) -> list[Path]:
    """Where the links of a hub cache's snapshot (`models--ORG--NAME/snapshots/REVISION`) lead: `models--ORG--NAME/blobs`."""
    inside = home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--")
    return [home.parent.parent / "blobs"] if inside else []


def _header_length(file: Path, start: bytes, size: int) -> int:
    """The header's length by the file's first 8 bytes. Raises UserError where they are not those of a whole safetensors file."""
    length = int.from_bytes(start, "little")
    if len(start) == 8 and length <= MAX_HEADER and 8 + length <= size:
        return length
    # only now: the low bytes of a valid length can look like any of these
    looks = next((what for beginning, what in _BEGINNINGS.items() if start.startswith(beginning)), None)
    if looks:
        raise UserError(f"{file} is not safetensors but {looks}. {_CONVERT}")
    if len(start) == 8 and length > MAX_HEADER:
        raise UserError(f"{file} announces a header of {length} bytes, and {MAX_HEADER} is the most. {_DAMAGED}")
    needed = f"its header alone needs {8 + length}" if len(start) == 8 else "the header's length alone needs 8"
    raise UserError(f"{file} is truncated: it has {size} bytes, and {needed}. {_DAMAGED}")


def _parse(content: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `content`. Raises UserError, naming `what`, where it is none or a key stands there twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"{shown(key)} stands there twice")
            key.encode("utf-8")  # half of a surrogate pair raises here: no library writes it, and no terminal prints it
            found[key] = value
        return found

    def refuse(constant: str):
        raise ValueError(f"{constant} is no JSON")

    try:
        parsed = json.loads(content.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # bytes that are no UTF-8 and numbers too long are ValueErrors too
        raise UserError(f"{what}: what should be JSON is not ({shown(str(error))[1:-1]}). {_DAMAGED}") from error
    if not isinstance(parsed, dict):
        raise UserError(f"{what}: expected a JSON object, found {type(parsed).__name__}. {_DAMAGED}")
    return parsed


def _entry(file: Path, name: str, stored: Any, data: int) -> Entry:
    """The tensor that a header describes, its data from byte `data` on. Raises UserError where the description is not whole or
    disagrees with itself."""
    where = f"{file}: tensor {shown(name)}"
    if not isinstance(stored, dict) or not {"dtype", "shape", "data_offsets"} <= stored.keys():
        raise UserError(f"{where} is described without dtype, shape and data_offsets. {_DAMAGED}")
    dtype, shape, offsets = stored["dtype"], stored["shape"], stored["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UserError(f"{where} has dtype {shown(dtype)}; known are {', '.join(DTYPES)}. Convert it to one of these.")
    if not _counts(shape) or len(shape) > 32 or math.prod(n or 1 for n in shape) >= 2**60:
        raise UserError(f"{where} has no valid shape. {_DAMAGED}")
    if not _counts(offsets) or len(offsets) != 2:
        raise UserError(f"{where} has no valid data_offsets. {_DAMAGED}")
    begin, end = offsets
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != expected:
        raise UserError(
            f"{where} of shape {tuple(shape)} and dtype {dtype} needs {expected} bytes; its offsets hold {end - begin}. {_DAMAGED}"
        )
    return Entry(name, file, DTYPES[dtype], tuple(shape), data + begin, data + end)


def _counts(value: Any) -> bool:
    """Whether `value` is a list of whole numbers from 0 to 2^60, `true` not being a number."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**60 for n in value)


def _check_layout(file: Path, entries: list[Entry], data: int, size: int) -> None:
    """Raises UserError unless the tensors' bytes follow each other from `data` to `size` without overlap or hole."""
    at = data
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != at:
            wrong = "overlaps the one before it" if entry.begin < at else "leaves a hole before it"
            raise UserError(f"{file}: tensor {shown(entry.name)} {wrong} in the file. {_DAMAGED}")
        at = entry.end
    if at > size:
        raise UserError(f"{file} is truncated: it has {size} bytes, and its header describes {at}. Fetch it again.")
    if at < size:
        raise UserError(f"{file} has {size} bytes, and its header describes only {at}. {_DAMAGED}")


def _read_index(file: Path) -> dict[str, str]:
    """The index's shard of every tensor. Raises UserError where a shard is not named as a file beside the index."""
    try:
        with open(file, "rb") as stream:
            content = stream.read(MAX_HEADER + 1)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    if len(content) > MAX_HEADER:
        raise UserError(f"{file} has more than {MAX_HEADER} bytes. {_DAMAGED}")
    shards = _parse(content, str(file)).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{file} has no weight_map. {_DAMAGED}")
    for name, shard in shards.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or set(shard) & set("/\\:\0"):
            raise UserError(
                f"{file} puts tensor {shown(name)} into {shown(shard)}; expected the bare name of a .safetensors file beside the "
                "index: no folders, no `..`, no absolute path. Fetch the index again from a source you trust."
            )
    return shards


def _read_shards(folder: Path, shards: dict[str, str]) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors that the index names, from their shards' headers. Raises UserError listing shards that are not there, tensors that
    their shard lacks and tensors that the index does not name."""
    names = sorted(set(shards.values()))
    absent = [name for name in names if not _exists(folder / name)]
    if absent:
        raise UserError(
            f"{folder} lacks {len(absent)} of the {len(names)} shards of {INDEX}: {_listed(absent)}. Fetch them."
        )
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    unnamed: list[str] = []
    for name in names:
        found, texts = read_header(contained(folder, name))
        entries |= {tensor: entry for tensor, entry in found.items() if shards.get(tensor) == name}
        unnamed += [f"{tensor} in {name}" for tensor in found if shards.get(tensor) != name]
        metadata |= texts
    missing = [f"{tensor} in {shards[tensor]}" for tensor in sorted(shards.keys() - entries.keys())]
    if missing or unnamed:
        raise UserError(
            f"{folder}: {INDEX} and the shards disagree. Not in their shard: {_listed(missing) or 'none'}. "
            f"Not in the index: {_listed(unnamed) or 'none'}. Files of two revisions may be mixed: fetch all of them again."
        )
    return entries, metadata


def beyond_range(values: np.ndarray, converted: np.ndarray) -> bool:
    """Whether a finite number among `values` is none any more in `converted`, whose floating point format has a smaller range."""
    most = float(jnp.finfo(converted.dtype).max) if jnp.issubdtype(converted.dtype, jnp.floating) else math.inf
    if values.size == 0 or values.dtype == converted.dtype or float(jnp.finfo(values.dtype).max) <= most:
        return False
    # quick, and nearly always so; NaN are passed over
    if -most <= np.fmin.reduce(values, axis=None) and np.fmax.reduce(values, axis=None) <= most:
        return False
    return bool(np.any(np.isfinite(values) & ~np.isfinite(converted)))
