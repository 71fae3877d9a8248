"""The two-way table of weight names: how a family's files lay out what `transformer.specs` declares.

A row says which of our leaves one stored tensor holds, and in which order of axes:

    Row("h.{layer}.attn.c_attn.weight", "D [NH|KH|KH]", "attention/query", "attention/key", "attention/value")

The stored tensor has two dimensions, D and a concatenation of N x H, K x H and K x H; the three parts are our query (D, N, H), key and value
(D, K, H). `N[H|H|H] D` concatenates within each head; `{expert}` is one tensor an expert. `bindings` walks a table against a config once, and
what it returns serves reading, writing and sharding alike: part = stored.reshape(view)[slices].transpose(order).
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator

from research.core import params as P
from research.core.errors import UserError
from research.model import transformer
from research.model.config import ModelConfig

# The axes of every leaf, in its own order, by the letters of docs/design.md. Norms have D; of queries and keys: those of what they norm.
AXES = {
    "embed/tokens": "VD", "embed/positions": "SD", "unembed/kernel": "DV", "unembed/bias": "V",
    "attention/query": "DNH", "attention/key": "DKH", "attention/value": "DKH", "attention/output": "NHD",
    "attention/query_bias": "NH", "attention/key_bias": "KH", "attention/value_bias": "KH", "attention/output_bias": "D",
    "mlp/in": "DF", "mlp/gate": "DF", "mlp/out": "FD", "mlp/in_bias": "F", "mlp/gate_bias": "F", "mlp/out_bias": "D",
    "mlp/router": "DE", "experts/in": "EDF", "experts/gate": "EDF", "experts/out": "EFD",
    "mlp/shared/in": "DF", "mlp/shared/gate": "DF", "mlp/shared/out": "FD", "mlp/shared_gate": "DU",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, init=False)
class Row:
    """One stored tensor, for every `{layer}` and `{expert}` in its name: its dimensions, and the leaves that are its parts, in order.

    A leaf of a layer is named within the layer (`attention/query`), any other from the root (`embed/tokens`).
    """

    name: str
    stored: str
    leaves: tuple[str, ...]

    def __init__(self, name: str, stored: str, *leaves: str):
        for field, value in (("name", name), ("stored", stored), ("leaves", leaves)):
            object.__setattr__(self, field, value)


@dataclasses.dataclass(frozen=True)
class Part:
    """Where one leaf, or one layer or expert of it, lies in a stored tensor: `leaf[index].reshape(shape) = stored.reshape(view)[slices]
    .transpose(order)`."""

    path: str
    index: tuple[int, ...]
    shape: tuple[int, ...]
    axes: tuple[int, ...]  # how many axes of the leaf each dimension of `shape` joins
    view: tuple[int, ...]
    slices: tuple[slice, ...]
    order: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor as the file has it, and the parts of our leaves that it holds."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


def bindings(config: ModelConfig, table: Iterable[Row]) -> list[Stored]:
    """Every stored tensor of a model, in order of its layers. Raises UserError where the table has no place for a leaf of the config, or a row
    wants some of its leaves and the config lacks others."""
    flat, rows = P.flatten(transformer.specs(config)), list(table)
    out = [_bind(row, row.name, flat, "", ()) for row in rows if "{layer}" not in row.name and _wanted(row, flat, "")]
    for layer, (prefix, repeat) in enumerate(places(config)):
        for row in rows:
            if "{layer}" in row.name and _wanted(row, flat, prefix):
                out += _per_layer(row, layer, flat, prefix, repeat)
    missing = sorted(flat.keys() - {part.path for stored in out for part in stored.parts})
    if missing:
        raise UserError(
            f"this family's files have no place for {', '.join(missing)}; save as a family whose models have them"
        )
    return out


def places(config: ModelConfig) -> Iterator[tuple[str, int]]:
    """`(path prefix, index in the stack)` of every layer, in order."""
    for s, (slots, repeats) in enumerate(config.segments):
        for repeat in range(repeats):
            for i in range(len(slots)):
                yield f"decoder/{s}/{i}/", repeat


def _per_layer(row: Row, layer: int, flat: dict[str, P.Param], prefix: str, repeat: int) -> list[Stored]:
    name = row.name.replace("{layer}", str(layer))
    if "{expert}" not in name:
        return [_bind(row, name, flat, prefix, (repeat,))]
    experts = flat[prefix + _path(row.leaves[0])].shape[1]
    return [_bind(row, name.replace("{expert}", str(e)), flat, prefix, (repeat, e)) for e in range(experts)]


def _wanted(row: Row, flat: dict[str, P.Param], prefix: str) -> bool:
    found = [_in_config(leaf, flat, prefix) for leaf in row.leaves]
    if any(found) and not all(found):
        lacking = ", ".join(leaf for leaf, there in zip(row.leaves, found, strict=True) if not there)
        raise UserError(f"{row.name} holds {', '.join(row.leaves)} together, but the model has no {lacking}")
    return all(found)


def _in_config(leaf: str, flat: dict[str, P.Param], prefix: str) -> bool:
    """Whether the model has the leaf here. `mlp/in` is that of a dense layer, `experts/in` that of a sparse one, and both lie in one place."""
    sparse = f"{prefix}mlp/router" in flat
    other = "experts/" if not sparse else ("mlp/in", "mlp/gate", "mlp/out")
    return prefix + _path(leaf) in flat and not (prefix and leaf.startswith(other))


def _path(leaf: str) -> str:
    """Experts lie where a dense feed-forward would."""
    return leaf.replace("experts/", "mlp/")


def _letters(leaf: str, dims: int) -> str:
    """The axes of one layer's leaf; those of norms follow from how many they are."""
    if leaf in AXES:
        return AXES[leaf]
    of = "N" if leaf.startswith("attention/query_norm") else "K"
    return "D" if "attention/" not in leaf else of + "H" if dims == 2 else "H"


def _bind(row: Row, name: str, flat: dict[str, P.Param], prefix: str, index: tuple[int, ...]) -> Stored:
    leaves = [(leaf, prefix + _path(leaf)) for leaf in row.leaves]
    shapes = [flat[path].shape[len(index) :] for _, path in leaves]
    letters = [
        _letters(leaf, len(shape))[len(index) - 1 if index else 0 :]
        for (leaf, _), shape in zip(leaves, shapes, strict=True)
    ]
    sizes = [dict(zip(axes, shape, strict=True)) for axes, shape in zip(letters, shapes, strict=True)]
    dims = [_Dim.parse(text, len(leaves)) for text in row.stored.split()]
    parts = tuple(
        _part(number, path, index, axes, dims, sizes)
        for number, ((_, path), axes) in enumerate(zip(leaves, letters, strict=True))
    )
    return Stored(name, tuple(dim.size(sizes) for dim in dims), parts)


def _part(number: int, path: str, index, axes: str, dims: list["_Dim"], sizes: list[dict[str, int]]) -> Part:
    view: list[int] = []
    slices: list[slice] = []
    groups: list[str] = []
    for dim in dims:
        for group, size, start, length in dim.view(number, sizes):
            view.append(size)
            slices.append(slice(start, start + length))
            groups.append(group)
    order = tuple(sorted(range(len(groups)), key=lambda i: axes.index(groups[i][0])))
    assert "".join(groups[i] for i in order) == axes, f"{path}: {axes} is not {groups} in any order"
    shape = tuple(slices[i].stop - slices[i].start for i in order)
    return Part(path, index, shape, tuple(len(groups[i]) for i in order), tuple(view), tuple(slices), order)


@dataclasses.dataclass(frozen=True)
class _Dim:
    """One stored dimension: leading letters, then what is concatenated, a run of letters for each leaf. Without brackets every leaf has all
    of it."""

    lead: str
    parts: tuple[str, ...]
    joined: bool

    @staticmethod
    def parse(text: str, leaves: int) -> "_Dim":
        found = re.fullmatch(r"([A-Z]*)\[([A-Z|]+)\]", text)
        return _Dim(found[1], tuple(found[2].split("|")), True) if found else _Dim("", (text,) * leaves, False)

    def lengths(self, sizes: list[dict[str, int]]) -> list[int]:
        return [math.prod(own[a] for a in part) for part, own in zip(self.parts, sizes, strict=True)]

    def size(self, sizes: list[dict[str, int]]) -> int:
        lengths = self.lengths(sizes)
        return math.prod(sizes[0][a] for a in self.lead) * (sum(lengths) if self.joined else lengths[0])

    def view(self, number: int, sizes: list[dict[str, int]]) -> Iterator[tuple[str, int, int, int]]:
        """`(letters, size, start, length)` of each dimension that this one is viewed as, for one leaf."""
        lengths, own = self.lengths(sizes), sizes[number]
        for a in (
            a if a in own else "K" for a in self.lead
        ):  # what is concatenated in each head has as many heads of each kind
            yield a, own[a], 0, own[a]
        start, whole = (sum(lengths[:number]), sum(lengths)) if self.joined else (0, lengths[number])
        yield self.parts[number], whole, start, lengths[number]


def cut(part: Part, wanted: tuple[slice, ...], sizes: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[int, ...]]:
    """`(slices of the stored view, shape in the leaf's order)` of what `wanted`, a slice of each of the leaf's own axes (of these sizes), takes.

    Raises ValueError for a slice that is no single run of the stored bytes' order: of an inner axis of several that are stored as one.
    """
    slices, shape, axis = list(part.slices), [], 0
    for dim, count in zip(part.order, part.axes, strict=True):
        outer, inner = wanted[axis], range(axis + 1, axis + count)
        if any(wanted[a] != slice(0, sizes[a]) for a in inner):
            raise ValueError(f"{part.path}: axes {list(inner)} are stored as one with axis {axis} and cannot be split")
        width, start = math.prod(sizes[a] for a in inner), part.slices[dim].start
        slices[dim] = slice(start + outer.start * width, start + outer.stop * width)
        shape.append((outer.stop - outer.start) * width)
        axis += count
    return tuple(slices), tuple(shape)
