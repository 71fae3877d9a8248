"""The dense feed-forward: two projections around a non-linearity, or three where it is gated; and how projections start."""

import math
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from research.core import params as P
from research.core import sharding
from research.model.config import GATED, ModelConfig
from research.model.layers import activate, project


def inner_init(config: ModelConfig, fan_in: int, fan_out: int, carries: bool = True) -> P.Init:
    """Projections out of the residual stream: 0.02 as GPT-2, 1 / sqrt(fan in), or Xavier's. `carries`: what they give reaches the stream
    again (values, feed-forwards), as queries and keys do not."""
    if config.init == "deepnorm":
        return P.normal(xavier(fan_in, fan_out) * (glm_beta(config) if carries else 1))
    return P.normal(0.02 if config.init == "gpt2" else fan_in**-0.5)


def outer_init(config: ModelConfig, fan_in: int, fan_out: int) -> P.Init:
    """Projections into the residual stream, scaled by the number of branches that add up in it, or zero."""
    if config.init == "fan-in-zero":
        return P.ZEROS
    if config.init == "deepnorm":
        return P.normal(xavier(fan_in, fan_out) * glm_beta(config))
    return P.normal((0.02 if config.init == "gpt2" else fan_in**-0.5) / math.sqrt(2 * config.layers))


def xavier(fan_in: int, fan_out: int) -> float:
    """The deviation of Xavier's normal initialisation (Glorot and Bengio 2010, equation 12)."""
    return math.sqrt(2 / (fan_in + fan_out))


def glm_beta(config: ModelConfig) -> float:
    """What DeepNorm multiplies initial weights by, as GLM-130B trains with it (arXiv 2210.02414, section 2.1): (2 x layers)^(-1/2)."""
    return (2 * config.layers) ** -0.5


def specs(config: ModelConfig, F: int) -> P.Tree:
    """The parameters of one feed-forward of width F."""
    D = config.width
    tree: dict[str, Any] = {}
    for name in inner_names(config):
        tree[name] = P.Param((D, F), ("embed", "mlp"), inner_init(config, D, F), inputs=1)
        if f"mlp-{name}" in config.bias:
            tree[f"{name}_bias"] = P.Param((F,), ("mlp",), P.ZEROS)
    tree["out"] = P.Param((F, D), ("mlp", "embed"), outer_init(config, F, D), inputs=1)
    if "mlp-out" in config.bias:
        tree["out_bias"] = P.Param((D,), ("embed",), P.ZEROS)
    return tree


def inner_names(config: ModelConfig) -> tuple[str, ...]:
    """The projections that read the input, of a dense feed-forward and of an expert."""
    return ("in", "gate") if config.activation in GATED else ("in",)


def apply(p: P.Tree, x_BTD: jax.Array, config: ModelConfig) -> jax.Array:
    """(B, T, D) to (B, T, D)."""
    h_BTF, *gate = (checkpoint_name(h_BTF, "products") for h_BTF in project(x_BTD, p, inner_names(config)))
    gate_BTF = gate[0] if gate else None
    h_BTF = sharding.constrain(activate(h_BTF, gate_BTF, config.activation), "batch", "sequence", "mlp")
    return project(h_BTF, p, ("out",))[0]
