"""Models in and out in Hugging Face's format: a folder of config.json, safetensors and a tokeniser, on this machine or on the hub.

`load` reads slices of the files straight into the arrays of the devices that want them; `save` writes what transformers loads. The families say
which stored tensor is which leaf (families/weights.py), data/tensors.py what a safetensors file holds. Only safetensors are read, never a pickle.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from research import families
from research.core import params as P
from research.core import sharding
from research.core.errors import UserError
from research.data import tensor_reader as reader
from research.data import tensor_writer as writer
from research.data import tensors as T
from research.data import tokenizer as tokenizers
from research.data.files import new_folder, write_atomically
from research.data.hub import locate, read_json
from research.data.tokenizer import Tokenizer
from research.families.family import Family
from research.families.weights import Part, Stored, bindings, cut
from research.model import transformer
from research.model.config import ModelConfig
from research.model.standard import standard

CONFIG, GENERATION = "config.json", "generation_config.json"
DTYPES = ("float32", "bfloat16", "float16", "float64")
TOKENS = ("bos_token", "eos_token", "pad_token")


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A model from a folder. `tokenizer` is None where the folder holds none."""

    config: ModelConfig
    params: P.Tree
    tokenizer: Tokenizer | None


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A folder whose weights have been matched with what its config declares, none of them read."""

    folder: Path
    family: Family
    config: ModelConfig
    stored: tuple[tuple[Stored, T.Entry], ...]

    def specs(self) -> P.Tree:
        return transformer.specs(self.config)

    def dtypes(self) -> dict[str, np.dtype]:
        """The stored dtype of every leaf, the widest of its parts."""
        out: dict[str, np.dtype] = {}
        for stored, entry in self.stored:
            for part in stored.parts:
                out[part.path] = np.dtype(jnp.promote_types(entry.dtype, out.get(part.path, entry.dtype)))
        return out


def load(
    where: str | Path, *, dtype: str | None = None, mesh: Mesh | None = None, revision: str | None = None
) -> Pretrained:
    """The model in a folder, or on the hub under an id such as `openai-community/gpt2`.

    `dtype` None keeps each tensor's own; otherwise one of float32, bfloat16, float16, float64. With a `mesh` every leaf is spread over it by
    the rules table, each host reading its own part of the files. Host memory stays within the parameters in the dtype asked for and a few
    megabytes a thread on one device, and within one leaf beside the devices' own otherwise.

    Raises UserError for a folder that is no such model, an architecture or feature that is not here, missing, extra or misshapen tensors
    (all of them), damaged files, and a hub that cannot be reached.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    source = open_source(where, revision)
    return Pretrained(source.config, read(source, dtype, mesh), tokenizer_of(source.folder))


def open_source(where: str | Path, revision: str | None = None) -> Source:
    """What `load` would read. Raises as `load` does, before any weight is read."""
    folder = locate(where, revision)
    for link in (path for path in folder.iterdir() if path.is_symlink()):
        T.contained(folder, link.name)
    values = read_json(folder, CONFIG)
    if "identity" in values and "schema" in values:
        raise UserError(
            f"{folder} is a run directory: open it with research.load_run, or convert it with `research convert {folder} DST --to hf`"
        )
    family, config = _described(where, values)
    return Source(folder, family, config, match(family, config, T.open_folder(folder)))


def read_config(where: str | Path, revision: str | None = None) -> ModelConfig:
    """The config of a model by its folder or hub id; of the hub nothing else is fetched. Raises UserError as `load` does."""
    return _described(where, read_json(locate(where, revision, (CONFIG,)), CONFIG))[1]


def _described(where: str | Path, values: Mapping[str, Any]) -> tuple[Family, ModelConfig]:
    """The family of a config.json and what it describes; an error says whose it is."""
    try:
        family = families.of_hf(values)
        return family, family.config_from_hf(values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def match(family: Family, config: ModelConfig, tensors: T.Tensors) -> tuple[tuple[Stored, T.Entry], ...]:
    """Every tensor that the model needs with its place in the files. Raises UserError listing all that are missing, extra or misshapen."""
    entries = tensors.entries
    bare = not any(name.startswith(family.prefix) for name in entries)
    wanted = {
        stored.name.removeprefix(family.prefix) if bare else stored.name: stored
        for stored in bindings(config, family.weights)
    }
    head = {row.name for row in family.weights if row.leaves == ("unembed/kernel",)} if config.tied else set()
    others = entries.keys() - wanted.keys() - head
    extra = sorted(T.shown(name)[1:-1] for name in others if not any(re.fullmatch(p, name) for p in family.ignored))
    missing = sorted(wanted.keys() - entries.keys())
    shapes = {name: stored.shape for name, stored in wanted.items()} | dict.fromkeys(head, (config.V, config.width))
    misshapen = [
        f"{name} is {_shape(entries[name].shape)}, expected {_shape(shape)}"
        for name, shape in shapes.items()
        if name in entries and entries[name].shape != shape
    ]
    kinds = [
        f"{name} is {entries[name].dtype}, expected floating point"
        for name in sorted(wanted.keys() & entries.keys())
        if not jnp.issubdtype(entries[name].dtype, jnp.floating)
    ]
    if missing or extra or misshapen or kinds:
        found = (("missing", missing), ("extra", extra), ("misshapen", misshapen), ("of a wrong type", kinds))
        parts = [f"{len(x)} {word}: {'; '.join(x)}" for word, x in found if x]
        raise UserError(
            f"{tensors.folder}: the tensors are not those of its config.json ({family.name}). {'. '.join(parts)}"
        )
    return tuple((stored, entries[name]) for name, stored in wanted.items())


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def read(source: Source, dtype: str | None = None, mesh: Mesh | None = None) -> P.Tree:
    """The parameters, on the first device or spread over a mesh."""
    specs = source.specs()
    if mesh is None:
        where = dict.fromkeys(P.flatten(specs), SingleDeviceSharding(jax.local_devices()[0]))
    else:
        where = P.flatten(sharding.shardings(specs, mesh))
    leaves = _leaves(source, dtype, where)
    # on a CPU the arrays are the buffers themselves, and the files are read from end to end; elsewhere one leaf at a time passes through
    host = all(device.platform == "cpu" for leaf in leaves for device in leaf.sharding.device_set)
    groups = [leaves] if host else [[leaf] for leaf in leaves]
    return P.unflatten({path: array for group in groups for path, array in _arrays(group).items()})


def _leaves(source: Source, dtype: str | None, where: Mapping[str, Sharding]) -> list["_Leaf"]:
    """Every leaf, to be read in `dtype` (None: its own) for the devices of `where`."""
    parts: dict[str, list[tuple[Part, T.Entry]]] = {}
    for stored, entry in source.stored:
        for part in stored.parts:
            parts.setdefault(part.path, []).append((part, entry))
    kept = source.dtypes()
    return [
        _Leaf(path, p.shape, kept[path] if dtype is None else np.dtype(jnp.dtype(dtype)), where[path], parts[path])
        for path, p in P.flatten(source.specs()).items()
    ]


def _arrays(leaves: list["_Leaf"]) -> dict[str, jax.Array]:
    """The leaves by path, read in the order of the files. What host memory that took is free again, but for arrays that lie there."""
    buffers = [leaf.buffers() for leaf in leaves]
    reader.read_all(job for leaf, own in zip(leaves, buffers, strict=True) for job in leaf.jobs(own))
    return {leaf.path: jax.block_until_ready(leaf.array(own)) for leaf, own in zip(leaves, buffers, strict=True)}


Index = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """One leaf to be read: what it is, where it goes, and the stored tensors that hold its parts."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    sharding: Sharding
    parts: list[tuple[Part, T.Entry]]

    def _indices(self) -> dict[Any, Index]:
        """The part of the leaf that each device of this host holds."""
        found = self.sharding.addressable_devices_indices_map(self.shape)
        return {
            device: tuple(s.indices(n)[:2] for s, n in zip(index or (), self.shape, strict=True))
            for device, index in found.items()
        }

    def buffers(self) -> dict[Index, np.ndarray]:
        """Memory for each different part."""
        return {i: reader.allocate(tuple(b - a for a, b in i), self.dtype) for i in set(self._indices().values())}

    def jobs(self, buffers: dict[Index, np.ndarray]) -> Iterator[reader.Job]:
        """What fills the buffers."""
        for index, buffer in buffers.items():
            for part, entry in self.parts:
                n = len(part.index)
                if all(a <= i < b for i, (a, b) in zip(part.index, index, strict=False)):
                    slices, shape = cut(part, tuple(slice(a, b) for a, b in index[n:]), self.shape[n:])
                    out = buffer[tuple(i - a for i, (a, _) in zip(part.index, index, strict=False))].reshape(shape)
                    yield reader.Job(entry, out, part.view, slices, part.order)

    def array(self, buffers: dict[Index, np.ndarray]) -> jax.Array:
        """The leaf made of its filled buffers."""
        pieces = [reader.adopt(buffers[index], device) for device, index in self._indices().items()]
        return jax.make_array_from_single_device_arrays(self.shape, self.sharding, pieces)


def tokenizer_of(folder: Path) -> Tokenizer | None:
    """The tokeniser of a model's folder, which stops where the model's own generation settings say; None where there is none."""
    tokenizer = tokenizers.load_optional(folder)
    if tokenizer is None:
        return None
    for name in (GENERATION, CONFIG):
        stops = read_json(folder, name).get("eos_token_id") if (folder / name).is_file() else None
        ids = [stops] if isinstance(stops, int) else stops if isinstance(stops, list) else []
        ids = [i for i in ids if isinstance(i, int) and 0 <= i < tokenizer.vocab_size]
        if ids:
            return tokenizer.with_stop_ids(ids)
    return tokenizer


def save(
    params: P.Tree, config: ModelConfig, tokenizer: Tokenizer | None, directory: str | Path, *, dtype: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> Path:  # fmt: skip
    """Writes what Hugging Face transformers loads unchanged, in the format of the config's family, and returns the folder.

    `dtype` None keeps each leaf's own, so that `load` gives back the same bits. The folder appears whole or not at all. Raises UserError
    for a directory that already holds something else, parameters that are not those of the config, and a model that no family's format can hold.
    A model with a base width (muP) is written as the standard one that computes the same (`model/standard.py`).
    """
    directory = Path(directory).expanduser()
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    written, plain = standard(params, config)
    family = families.of_config(plain)
    values = family.config_to_hf(plain)
    stored = bindings(plain, family.weights)
    _checked(params, config)
    leaves = P.flatten(written)
    kinds = {str(np.dtype(leaf.dtype) if dtype is None else jnp.dtype(dtype)) for leaf in leaves.values()}
    name = kinds.pop() if len(kinds) == 1 else "float32"
    ids = token_ids(tokenizer)
    with new_folder(directory) as fresh:
        writer.save(fresh, {s.name: _tensor(s, leaves, dtype) for s in stored}, {"format": "pt"}, max_shard_bytes)
        if tokenizer is not None:
            tokenizer.save_pretrained(fresh)
            write_atomically(fresh / GENERATION, _pretty(ids))
        write_atomically(fresh / CONFIG, _pretty({**values, **ids, "dtype": name, "torch_dtype": name}))
    return directory


def _pretty(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()


def token_ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The ids of special tokens as config.json and generation_config.json name them."""
    if tokenizer is None:
        return {}
    special = tokenizer.special_tokens
    found: dict[str, Any] = {f"{name}_id": tokenizer.token_id(special[name]) for name in TOKENS if name in special}
    stops = list(tokenizer.stop_ids)
    found["eos_token_id"] = stops[0] if len(stops) == 1 else stops or None
    return {name: value for name, value in found.items() if value is not None}


def _checked(params: P.Tree, config: ModelConfig) -> None:
    """Raises UserError listing the leaves that are not as the config declares them."""
    declared, leaves = P.flatten(transformer.specs(config)), P.flatten(params)
    wrong = [f"{path} is missing" for path in declared.keys() - leaves.keys()]
    wrong += [f"{path} is extra" for path in leaves.keys() - declared.keys()]
    wrong += [
        f"{path} is {_shape(leaves[path].shape)}, expected {_shape(p.shape)}"
        for path, p in declared.items()
        if path in leaves and leaves[path].shape != p.shape
    ]
    if wrong:
        raise UserError(f"the parameters are not those of the config: {'; '.join(sorted(wrong))}")


def _tensor(
    stored: Stored, leaves: Mapping[str, jax.Array], dtype: str | None
) -> tuple[np.dtype, tuple[int, ...], Callable[[], np.ndarray]]:
    """What the writer wants of one stored tensor: its dtype, its shape, and how to make it, once, when its turn comes. Making it raises
    UserError where the dtype cannot hold its values."""
    first = leaves[stored.parts[0].path]
    kind = np.dtype(first.dtype if dtype is None else jnp.dtype(dtype))

    def make() -> np.ndarray:
        out = np.empty(stored.shape, kind)
        for part in stored.parts:
            own = np.asarray(jax.device_get(leaves[part.path][part.index])).reshape(part.shape)
            own, place = own.transpose(np.argsort(part.order)), out.reshape(part.view)[part.slices]
            with np.errstate(all="ignore"):  # the range is checked here, where 16-bit formats raise no flags
                place[...] = own
                if T.beyond_range(own, place):
                    raise UserError(f"{part.path} has values beyond the range of {kind}; ask for bfloat16 or float32")
        return out

    return kind, stored.shape, make


def sizes(source: Source) -> int:
    """The bytes that the weights take on disk."""
    return sum(os.stat(file).st_size for file in {entry.file for _, entry in source.stored})
