"""Qwen3, dense (Yang et al. 2025, arXiv 2505.09388, table 1): no biases, queries and keys normed in each head."""

from collections.abc import Mapping
from typing import Any

from research.families import llama
from research.families.family import Family
from research.families.fields import GATED, Fields, decoder, decoder_fields
from research.families.qwen2 import sliding, sliding_fields
from research.model.config import ModelConfig, RopeConfig


def kwargs_from_hf(f: Fields, **defaults: Any) -> dict[str, Any]:
    """What the dense and the sparse models have in common."""
    kwargs = decoder(f, context=32768, **defaults)
    bias = llama.ATTENTION_BIAS if f.bool("attention_bias", False) else ()
    return {
        **kwargs,
        "activation": f.choice("hidden_act", GATED, "silu"),
        "bias": bias,
        "qk_norm": "head",
    }


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """From transformers' Qwen3Config."""
    f = Fields(values, "qwen3")
    kwargs = kwargs_from_hf(f, kv_heads=32, head_size=128)
    return ModelConfig(**kwargs, **sliding(f, kwargs["layers"]))


def config_to_hf(c: ModelConfig) -> dict[str, Any]:
    """To transformers' Qwen3Config."""
    return {
        **decoder_fields(c),
        "hidden_act": llama.gated_activation(c),
        "attention_bias": "query" in c.bias,
        **sliding_fields(c),
    }


WEIGHTS = (*llama.WEIGHTS, *llama.HEAD_NORMS)


def preset(
    layers: int, width: int, heads: int, kv_heads: int, mlp_width: int, tied: bool = False, **changes
) -> ModelConfig:
    """One of the published sizes: heads of 128, 151,936 tokens."""
    return llama.config(
        layers, width, heads, mlp_width, kv_heads, 151_936,
        **{"head_size": 128, "context": 40960, "rope": RopeConfig(base=1e6), "norm_eps": 1e-6, "qk_norm": "head", "tied": tied, "family": "qwen3",
           **changes},
    )  # fmt: skip


PRESETS = {
    "qwen3-0.6b": preset(28, 1024, 16, 8, 3072, tied=True),
    "qwen3-1.7b": preset(28, 2048, 16, 8, 6144, tied=True),
    "qwen3-4b": preset(36, 2560, 32, 8, 9728, tied=True),
    "qwen3-8b": preset(36, 4096, 32, 8, 12288),
    "qwen3-14b": preset(40, 5120, 40, 8, 17408),
    "qwen3-32b": preset(64, 5120, 64, 8, 25600),
}
PARAMETERS = {
    "qwen3-0.6b": 596_049_920, "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096, "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200, "qwen3-32b": 32_762_123_264,
}  # fmt: skip
FAMILY = Family(
    "qwen3", "Qwen3", "qk-norm", PRESETS, PARAMETERS, ("qwen3",), "Qwen3ForCausalLM", WEIGHTS, config_from_hf, config_to_hf
)  # fmt: skip
