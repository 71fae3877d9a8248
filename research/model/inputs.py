"""Front ends: how what a stack reads, be it tokens, pictures, films, tables or vectors, becomes its residual stream.

An image is cut into patches, each a matrix product away from the stream (ViT, arXiv 2010.11929, equation 1); a film into tubelets (ViViT, arXiv
2103.15691, section 3.2). Every column of a table is a token: a number times a vector plus a vector, a category's row of a table (FT-Transformer,
arXiv 2106.11959, section 3.3). A vector is projected.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core import params as P
from research.model.config import ImageConfig, ModelConfig
from research.model.layers import beside, dot, lookup

EMBED_INIT = 0.02


def specs(config: ModelConfig) -> P.Tree:
    """The parameters that make the stream, without positions and norm."""
    D = config.width
    tree: dict[str, Any] = {}
    if config.inputs == "tokens":
        tree["tokens"] = P.Param((config.V, D), ("vocab", "embed"), P.normal(EMBED_INIT))
    elif config.inputs == "features":
        columns = config.features
        if columns.numbers:
            for name in ("numbers", "numbers_bias"):
                tree[name] = P.Param((columns.numbers, D), ("positions", "embed"), P.normal(EMBED_INIT))
        if columns.categories:
            tree["categories"] = P.Param((sum(columns.categories), D), ("positions", "embed"), P.normal(EMBED_INIT))
    else:
        size = config.image.patch_values if config.inputs == "image" else config.vector_size
        tree["patch"] = P.Param((size, D), (None, "embed"), P.normal(size**-0.5), inputs=1)
        tree["patch_bias"] = P.Param((D,), ("embed",), P.ZEROS)
    if config.pool == "cls":
        tree["cls"] = P.Param((D,), ("embed",), P.normal(EMBED_INIT))
    return tree


def shapes(config: ModelConfig) -> dict[str, tuple[int | None, ...]]:
    """The arrays that are read, by name, with the shapes that their rows have; None for any size."""
    if config.inputs == "features":
        columns = {"numbers": config.features.numbers, "categories": len(config.features.categories)}
        return {name: (size,) for name, size in columns.items() if size}
    row = {"tokens": (None,), "image": config.image.shape, "vectors": (None, config.vector_size)}
    return {config.inputs: row[config.inputs]}


def length(inputs: Mapping[str, jax.Array], config: ModelConfig) -> int:
    """Positions of the stream that the arrays of `inputs` give. Raises ValueError for images of another size than the config's."""
    if config.inputs in ("tokens", "vectors"):
        return inputs[config.inputs].shape[1] + (config.pool == "cls")
    if config.inputs == "image" and inputs["image"].shape[1:] != config.image.shape:
        raise ValueError(
            f"images of shape {inputs['image'].shape[1:]}; expected {config.image.shape}, as model.image has it"
        )
    return config.length


def embed(p: P.Tree, inputs: Mapping[str, jax.Array], config: ModelConfig, dtype) -> jax.Array:
    """The stream (B, T, D) before positions: what is read, behind the class token where there is one."""
    if config.inputs == "tokens":
        x_BTD = lookup(p["tokens"], inputs["tokens"], dtype)
    elif config.inputs == "features":
        x_BTD = _columns(p, inputs, config, dtype)
    else:
        read = patches(inputs["image"], config.image) if config.inputs == "image" else inputs["vectors"]
        x_BTD = dot(read.astype(dtype), p["patch"], p["patch_bias"])
    if config.pool == "cls":
        cls_B1D = jnp.broadcast_to(beside(p["cls"], x_BTD), (len(x_BTD), 1, config.width))
        x_BTD = jnp.concatenate([cls_B1D, x_BTD], axis=1)
    return x_BTD


def patches(image: jax.Array, config: ImageConfig) -> jax.Array:
    """Pictures (B, height, width, C), or films (B, frames, height, width, C), as rows of patches (B, P, values), from the top left to the bottom
    right, the first frames first."""
    p, f = config.patch, config.tubelet
    film = image if image.ndim == 5 else image[:, None]
    B, frames, high, wide, C = film.shape
    cut = film.reshape(B, frames // f, f, high // p, p, wide // p, p, C)
    return cut.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(B, -1, f * p * p * C)


def _columns(p: P.Tree, inputs: Mapping[str, jax.Array], config: ModelConfig, dtype) -> jax.Array:
    columns, parts = config.features, []
    if columns.numbers:
        numbers_BT1 = inputs["numbers"].astype(dtype)[..., None]
        parts.append(numbers_BT1 * beside(p["numbers"], numbers_BT1) + beside(p["numbers_bias"], numbers_BT1))
    if columns.categories:
        first = np.cumsum((0, *columns.categories[:-1]), dtype=np.int32)
        parts.append(lookup(p["categories"], inputs["categories"] + first[None], dtype))
    return jnp.concatenate(parts, axis=1)
