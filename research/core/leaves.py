"""Kinds of leaves besides plain arrays that a parameter tree may hold, and that the dot seam (model/layers.py) knows how to multiply by."""

import math

import jax
import jax.numpy as jnp
from flax import struct

Shape = tuple[int, ...]


@struct.dataclass
class Rows:
    """One matrix, or several that read the same input, stored a row for each output: `w_OI` (O, I), and the bias of every output if they have one.

    Every output is then one dot product of the input with bytes that lie side by side. That is the order in which matrix-vector products are
    fastest, so models are brought into it for decoding; it also joins what would otherwise be several narrow products.
    """

    w_OI: jax.Array
    b_O: jax.Array | None
    outs: tuple[Shape, ...] = struct.field(pytree_node=False)  # the shape of each matrix's output

    @property
    def sizes(self) -> list[int]:
        """How many rows each matrix has."""
        return [math.prod(out) for out in self.outs]


def rows_of(ws: list[jax.Array], bs: list[jax.Array | None], inputs: int, dtype) -> Rows:
    """The matrices (inputs..., outputs...) of one input, and their biases (outputs...) where there are any, as one leaf of `dtype`."""
    w_OI = jnp.concatenate([w.astype(dtype).reshape(math.prod(w.shape[:inputs]), -1).T for w in ws])
    b_O = None
    if any(b is not None for b in bs):
        b_O = jnp.concatenate(
            [
                jnp.zeros(math.prod(w.shape[inputs:]), dtype) if b is None else b.astype(dtype).reshape(-1)
                for w, b in zip(ws, bs, strict=True)
            ]
        )
    return Rows(w_OI, b_O, tuple(w.shape[inputs:] for w in ws))
