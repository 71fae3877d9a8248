"""Gemma 1 (Gemma Team 2024, arXiv 2403.08295, table 1): norms that multiply by 1 + w, scaled embeddings, GeGLU, wide heads."""

from collections.abc import Mapping
from typing import Any

from research.families import llama
from research.families.family import Family
from research.families.fields import GATED, Fields, decoder, decoder_fields
from research.model.config import Activation, ModelConfig

CHOICES = {"norm_scale": "one-plus", "embedding_scale": "sqrt-width"}


def kwargs_from_hf(f: Fields, **defaults: Any) -> dict[str, Any]:
    """What the three generations have in common."""
    f.only(use_bidirectional_attention=False)
    bias = llama.ATTENTION_BIAS if f.bool("attention_bias", False) else ()
    return {**decoder(f, head_size=256, tied=True, **{"context": 8192, **defaults}), **CHOICES, "bias": bias}


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """From transformers' GemmaConfig. The first releases say `gelu` and mean its tanh form, as transformers takes it too."""
    f = Fields(values, "gemma")
    kwargs = kwargs_from_hf(f)
    words: dict[str, Activation] = {**GATED, "gelu": "geglu-tanh"}
    activation = f.choice("hidden_act", words, "gelu_pytorch_tanh")
    return ModelConfig(**kwargs, activation=activation)


def config_to_hf(c: ModelConfig) -> dict[str, Any]:
    """To transformers' GemmaConfig."""
    return {**decoder_fields(c), "hidden_act": llama.gated_activation(c), "attention_bias": "query" in c.bias}


def preset(
    layers: int, width: int, heads: int, kv_heads: int, mlp_width: int, vocab_size: int = 256_000, **changes
) -> ModelConfig:
    """One of the published sizes of any generation."""
    return llama.config(
        layers, width, heads, mlp_width, kv_heads, vocab_size,
        **{**CHOICES, "head_size": 256, "context": 8192, "norm_eps": 1e-6, "activation": "geglu-tanh", "tied": True, "family": "gemma", **changes},
    )  # fmt: skip


PRESETS = {"gemma-2b": preset(18, 2048, 8, 1, 16384), "gemma-7b": preset(28, 3072, 16, 16, 24576)}
PARAMETERS = {"gemma-2b": 2_506_172_416, "gemma-7b": 8_537_680_896}
FAMILY = Family(
    "gemma", "Gemma", "(1 + w) norms, scaled embeddings", PRESETS, PARAMETERS,
    ("gemma",), "GemmaForCausalLM", llama.WEIGHTS, config_from_hf, config_to_hf,
)  # fmt: skip
