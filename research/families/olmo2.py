"""OLMo 2 (OLMo Team 2025, arXiv 2501.00656, table 1; sizes also in the published configs): norms on each branch's output, and on whole queries
and keys."""

from collections.abc import Mapping
from typing import Any

from research.families import llama
from research.families.family import Family
from research.families.fields import GATED, Fields, decoder, decoder_fields
from research.families.weights import Row
from research.model.config import ModelConfig, RopeConfig

CHOICES = {"norm_placement": "branch-output", "qk_norm": "whole"}


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """From transformers' Olmo2Config."""
    f = Fields(values, "olmo2")
    bias = llama.ATTENTION_BIAS if f.bool("attention_bias", False) else ()
    kwargs = {**decoder(f, eps=1e-5), **CHOICES}
    return ModelConfig(**kwargs, activation=f.choice("hidden_act", GATED, "silu"), bias=bias)


def config_to_hf(c: ModelConfig) -> dict[str, Any]:
    """To transformers' Olmo2Config, which has no head size of its own."""
    fields = decoder_fields(c)
    del fields["head_dim"]
    return {**fields, "hidden_act": llama.gated_activation(c), "attention_bias": "query" in c.bias}


LAYER = "model.layers.{layer}"
WEIGHTS = (
    *llama.EMBEDDING, *llama.ATTENTION, *llama.MLP,
    Row(f"{LAYER}.self_attn.q_norm.weight", "NH", "attention/query_norm/scale"),
    Row(f"{LAYER}.self_attn.k_norm.weight", "KH", "attention/key_norm/scale"),
    Row(f"{LAYER}.post_attention_layernorm.weight", "D", "attention_post_norm/scale"),
    Row(f"{LAYER}.post_feedforward_layernorm.weight", "D", "mlp_post_norm/scale"),
)  # fmt: skip


def _preset(layers: int, width: int, heads: int, mlp_width: int, kv_heads: int | None = None) -> ModelConfig:
    choices = {**CHOICES, "rope": RopeConfig(base=500_000.0), "norm_eps": 1e-6, "family": "olmo2"}
    return llama.config(layers, width, heads, mlp_width, kv_heads, 100_352, **choices)


PRESETS = {
    "olmo2-1b": _preset(16, 2048, 16, 8192),
    "olmo2-7b": _preset(32, 4096, 32, 11008),
    "olmo2-13b": _preset(40, 5120, 40, 13824),
    "olmo2-32b": _preset(64, 5120, 40, 27648, 8),
}
PARAMETERS = {
    "olmo2-1b": 1_484_916_736,
    "olmo2-7b": 7_298_617_344,
    "olmo2-13b": 13_716_198_400,
    "olmo2-32b": 32_234_279_936,
}
FAMILY = Family(
    "olmo2", "OLMo 2", "norms on branch outputs, whole qk-norm", PRESETS, PARAMETERS,
    ("olmo2",), "Olmo2ForCausalLM", WEIGHTS, config_from_hf, config_to_hf,
)  # fmt: skip
