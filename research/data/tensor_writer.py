"""Writing safetensors: one file, or shards and their index, a tensor at a time.

Tensors are made when their turn comes and let go once written, so that memory holds one of them. They are laid out as the format's own
library does it: the widest dtypes first, so that every tensor is aligned, then by name.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from research.core.errors import UserError
from research.data.files import write_atomically
from research.data.tensors import DTYPES, INDEX, METADATA, WHOLE

Tensor = tuple[np.dtype, tuple[int, ...], Callable[[], np.ndarray]]
"""A tensor's dtype and shape, and what makes its values (C-contiguous)."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_RANK = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}


def save(folder: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], max_shard_bytes: int) -> list[Path]:
    """Writes `tensors` to a folder that is there and returns the files: `model.safetensors`, or shards of at most `max_shard_bytes` each
    (more where one tensor alone exceeds it) filled in the order given, and the index that names them.

    Raises UserError where the folder cannot be written, and for a dtype that the format has no name for.
    """
    unnamed = {str(dtype) for dtype, _, _ in tensors.values() if np.dtype(dtype) not in _NAMES}
    if unnamed:
        raise UserError(
            f"safetensors have no {', '.join(sorted(unnamed))}; ask for another dtype out of {', '.join(DTYPES)}"
        )
    shards = _shards(tensors, max_shard_bytes)
    names = [WHOLE] if len(shards) == 1 else [shard_name(i, len(shards)) for i in range(len(shards))]
    try:
        for name, shard in zip(names, shards, strict=True):
            _write(folder / name, shard, metadata)
        if len(shards) > 1:
            total = sum(map(_nbytes, tensors.values()))
            weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            write_atomically(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())
            names.append(INDEX)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    return [folder / name for name in names]


def shard_name(index: int, shards: int) -> str:
    """The file name of one of several shards, as transformers writes it: numbered from 1."""
    return f"model-{index + 1:05d}-of-{shards:05d}.safetensors"


def _shards(tensors: Mapping[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + _nbytes(tensor) > most:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += _nbytes(tensor)
    return shards


def _nbytes(tensor: Tensor) -> int:
    dtype, shape, _ = tensor
    return math.prod(shape) * np.dtype(dtype).itemsize


def _write(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    ordered = sorted(tensors.items(), key=lambda item: (-_RANK[np.dtype(item[1][0])], item[0]))
    header: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    at = 0
    for name, tensor in ordered:
        dtype, shape, _ = tensor
        end = at + _nbytes(tensor)
        header[name] = {"dtype": _NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    content += b" " * (-len(content) % 8)
    with open(file, "wb") as stream:
        stream.write(len(content).to_bytes(8, "little") + content)
        for _, (dtype, shape, make) in ordered:
            values = make()
            assert values.dtype == dtype and values.shape == tuple(shape), "a tensor is what was announced"
            stream.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
            del values  # before the next one is made
        stream.flush()
        os.fsync(stream.fileno())
