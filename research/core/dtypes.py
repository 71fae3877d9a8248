"""Which number format is used where: master weights float32, compute bfloat16 on accelerators, reductions at least float32."""

from typing import Literal

import jax
import jax.numpy as jnp

from research.core import sharding

DTypeName = Literal["auto", "float32", "bfloat16", "float16", "float64"]


def compute_dtype(requested: DTypeName, params_dtype) -> jnp.dtype:
    """The dtype of matrix products and the residual stream.

    `auto` is bfloat16 on accelerators and float32 on CPU, except that float64 parameters compute in float64 throughout.
    """
    if requested != "auto":
        return jnp.dtype(requested)
    if jnp.dtype(params_dtype) == jnp.float64:
        return jnp.dtype("float64")
    return jnp.dtype("float32" if sharding.platform() == "cpu" else "bfloat16")


def at_least_float32(x: jax.Array) -> jax.Array:
    """`x` promoted for a reduction: half precisions become float32, float32 and float64 stay."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
