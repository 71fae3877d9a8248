"""A model under maximal update parameterisation as one of the standard parameterisation that computes the same: what published formats can hold."""

import dataclasses

import jax
import jax.numpy as jnp

from research.core import params as P
from research.core.errors import UserError
from research.model.config import ModelConfig


def standard(params: P.Tree, config: ModelConfig) -> tuple[P.Tree, ModelConfig]:
    """`(params, config)` without a base width. What the config multiplied by goes into weights: the logits' factor into the last norm (without one,
    into the unembedding), attention's into the queries or their norm, the embedding's into the table.

    A model without a base width is returned as it is. Raises UserError for tied embeddings without a last norm, which nothing can be put into.
    """
    if config.base_width is None:
        return params, config
    flat = dict(P.flatten(params))
    logits, queries, embedding = config.logit_scale, config.query_scale * config.H**0.5, 1.0
    if config.attention_scale is not None:
        queries = 1.0
    if config.embedding_scale == "sqrt-width":
        embedding = config.logit_scale**0.5
        logits = logits / embedding if config.tied else logits
    if config.norm_placement == "post" and config.tied and logits != 1:
        raise UserError(
            f"model.base_width is {config.base_width}: with tied embeddings and no last norm its factor on logits fits into no weight"
        )
    last = ("final_norm/",) if config.norm_placement != "post" else ("unembed/kernel",)
    query = "/query_norm/" if config.qk_norm != "none" else "/attention/query"
    for path, leaf in flat.items():
        factor = 1.0
        if path.startswith(last):
            factor = logits
        elif path == "embed/tokens":
            factor = embedding
        elif query in path and not path.startswith("embed"):
            factor = queries
        flat[path] = (
            leaf
            if factor == 1
            else _scaled(leaf, factor, config.norm_scale == "one-plus" and path.endswith("norm/scale"))
        )
    return P.unflatten(flat), dataclasses.replace(config, base_width=None)


def _scaled(leaf: jax.Array, factor: float, beside_one: bool) -> jax.Array:
    """A leaf times a factor in its own dtype; of a norm that multiplies by 1 + leaf, the leaf of so many times that."""
    wide = jnp.asarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32))
    return ((1 + wide) * factor - 1 if beside_one else wide * factor).astype(leaf.dtype)
