"""Parameters as data: one tree of `Param` declares shapes, logical axes and initialisation; everything else walks it.

A leaf is declared once, by `specs(config)`. From that tree come the initial values, abstract shapes, shardings, exact counts,
decay masks and the optimisers' view of a layer, so none of them can disagree with the model.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from research.core import rng

Tree = Any
LAYERS = "layers"
STACKS = (LAYERS, "experts")  # axes that, where they lead, number matrices and are no part of them
TABLE_AXES = frozenset({"vocab", "positions"})


@dataclasses.dataclass(frozen=True)
class Init:
    """How a leaf starts: `normal` (mean 0, standard deviation `scale`), `uniform` (in +-`scale`), or `constant` (`scale`)."""

    kind: Literal["normal", "uniform", "constant"]
    scale: float = 0.0

    def __post_init__(self):
        if self.kind not in ("normal", "uniform", "constant"):
            raise ValueError(f"Init kind {self.kind!r}: expected normal, uniform or constant")

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
        """Returns an array of `shape` and `dtype`. Only `normal` and `uniform` read the key."""
        if self.kind == "normal":
            return jax.random.normal(key, shape, dtype) * jnp.asarray(self.scale, dtype)
        if self.kind == "uniform":
            return jax.random.uniform(key, shape, dtype, -self.scale, self.scale)
        return jnp.full(shape, self.scale, dtype)


def normal(scale: float) -> Init:
    return Init("normal", scale)


ZEROS = Init("constant", 0.0)
ONES = Init("constant", 1.0)


@dataclasses.dataclass(frozen=True)
class Param:
    """One leaf: its shape, a logical axis name for every dimension, its initialiser.

    `inputs` is how many dimensions (after leading axes of `layers` and `experts`) a matrix product contracts: 1 for a `(D, N, H)`
    query projection, 2 for an `(N, H, D)` output projection, 0 for whatever is not a matrix (norm scales, biases, lookups).
    `base` is the shape that it has in the model whose hyperparameters it is trained with (`scaled_from`); None: its own.
    Raises ValueError when axes and shape disagree.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Init
    inputs: int = 0
    base: tuple[int, ...] | None = None

    def __post_init__(self):
        if len(self.shape) != len(self.axes):
            raise ValueError(
                f"Param of shape {self.shape} has {len(self.axes)} axis names {self.axes}; expected one per dimension"
            )
        if any(size < 1 for size in self.shape):
            raise ValueError(f"Param of shape {self.shape} (axes {self.axes}) has an empty dimension")
        if not 0 <= self.inputs <= len(self.shape) - self.stacked:
            raise ValueError(f"Param of shape {self.shape} cannot contract {self.inputs} dimensions")

    @property
    def stacked(self) -> int:
        """How many leading dimensions stack what are leaves of their own: the repeats of a layer, the experts of a mixture."""
        return next((i for i, axis in enumerate(self.axes) if axis not in STACKS), len(self.axes))

    @property
    def kind(self) -> Literal["matrix", "table", "vector"]:
        """`table` for embeddings and unembeddings, `matrix` for the other projections, `vector` for norm scales and biases."""
        if TABLE_AXES & set(self.axes):
            return "table" if len(self.shape) - self.stacked > 1 else "vector"
        return "matrix" if self.inputs else "vector"

    @property
    def keeps_precision(self) -> bool:
        """Whether it is computed with in its own dtype and not the compute dtype: what is small and norms or routes."""
        return self.kind == "vector" or self.axes[-1] == "experts"

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """`(fan in, fan out)` of one layer's matrix, of one expert's."""
        shape = self.shape[self.stacked :]
        return math.prod(shape[: self.inputs]), math.prod(shape[self.inputs :])

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def stack(self, repeats: int) -> "Param":
        """The same leaf for `repeats` layers, stacked on a leading `layers` axis."""
        return dataclasses.replace(self, shape=(repeats, *self.shape), axes=(LAYERS, *self.axes))

    @property
    def growth(self) -> tuple[float, float]:
        """How many times as large fan in and fan out are as in the base. All of what is no matrix is fan out."""
        ours, base = self.shape[self.stacked :], (self.shape if self.base is None else self.base)[self.stacked :]
        ratios = [size / before for size, before in zip(ours, base, strict=True)]
        inputs = self.inputs if self.kind == "matrix" else 0
        return math.prod(ratios[:inputs]), math.prod(ratios[inputs:])

    def scaled_from(self, other: "Param") -> "Param":
        """This leaf as maximal update parameterisation has it (muP, arXiv 2203.03466, table 8), from the same leaf of a base model. It starts
        as that one does, and a matrix whose fan in and fan out are i and o times as large with i^-1/2 min(1, (o / i)^1/2) of its deviation
        (which is the spectral condition of arXiv 2310.17813)."""
        made = dataclasses.replace(self, init=other.init, base=other.shape)
        if self.init.kind == "constant":
            return made
        fan_in, fan_out = made.growth
        scale = other.init.scale * fan_in**-0.5 * min(1.0, (fan_out / fan_in) ** 0.5)
        return dataclasses.replace(made, init=dataclasses.replace(other.init, scale=scale))


def is_param(x: Any) -> bool:
    return isinstance(x, Param)


def tree_map(f: Callable, specs: Tree, *rest: Tree) -> Tree:
    """`jax.tree.map` over a spec tree, whose leaves are `Param`s."""
    return jax.tree.map(f, specs, *rest, is_leaf=is_param)


def flatten(tree: Tree) -> dict[str, Any]:
    """A nested dict as `{"decoder/0/0/attention/query": leaf}`, in sorted order of paths."""
    flat = traverse_util.flatten_dict(tree, sep="/")
    return {path: flat[path] for path in sorted(flat)}


def unflatten(flat: dict[str, Any]) -> Tree:
    return traverse_util.unflatten_dict(flat, sep="/")


def init(specs: Tree, key: jax.Array, dtype=jnp.float32) -> Tree:
    """Initial values. Every leaf draws from `fold_in(key, its path)`, so adding a leaf changes no other."""
    return unflatten({path: p.init(rng.fold(key, path), p.shape, dtype) for path, p in flatten(specs).items()})


def abstract(specs: Tree, dtype=jnp.float32) -> Tree:
    """The tree of `jax.ShapeDtypeStruct`, nothing allocated."""
    return tree_map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), specs)


def count(specs: Tree) -> int:
    """The exact number of parameters. Tied weights are one leaf and count once."""
    return sum(p.size for p in flatten(specs).values())


def mask(specs: Tree, predicate: Callable[[str, Param], bool]) -> Tree:
    """A tree of Python bools: `predicate(path, param)` at every leaf."""
    return unflatten({path: bool(predicate(path, p)) for path, p in flatten(specs).items()})


def decay_mask(specs: Tree) -> Tree:
    """True where weight decay applies: matrices and tables, not norm scales and biases (as GPT-2 and its successors train)."""
    return mask(specs, lambda _, p: p.kind != "vector")


def digest(params: Tree) -> str:
    """SHA-256, 64 hex digits, over every leaf in order of paths: path, dtype, shape and bytes. Equal exactly when bitwise equal."""
    h = hashlib.sha256()
    for path, leaf in flatten(params).items():
        array = np.asarray(jax.device_get(leaf))
        h.update(f"{path}\0{array.dtype.name}\0{array.shape}\0".encode())
        h.update(np.ascontiguousarray(array).tobytes())
    return h.hexdigest()
