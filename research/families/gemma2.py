"""Gemma 2 (Gemma Team 2024, arXiv 2408.00118, table 1): norms around each branch, soft caps, sliding and full layers in turn."""

from collections.abc import Mapping
from typing import Any

from research.families import gemma, llama
from research.families.family import Family
from research.families.fields import GATED, Fields, decoder_fields, layer_types, patterns
from research.model.config import ModelConfig


def kwargs_from_hf(f: Fields, period: int, **defaults: Any) -> dict[str, Any]:
    """What Gemma 2 and 3 have in common: every `period`-th layer sees everything."""
    kwargs = gemma.kwargs_from_hf(f, **defaults)
    layers = kwargs["layers"]
    return {
        **kwargs, "norm_placement": "sandwich", "activation": f.choice("hidden_activation", GATED, "gelu_pytorch_tanh"),
        "patterns": patterns(f, layers, [(i + 1) % period != 0 for i in range(layers)]), "window": f.int("sliding_window", 4096),
        "attention_scale": f.positive("query_pre_attn_scalar", 256) ** -0.5,
        "logit_soft_cap": f.float("final_logit_softcapping") if f.has("final_logit_softcapping") else None,
        "attention_soft_cap": f.float("attn_logit_softcapping") if f.has("attn_logit_softcapping") else None,
    }  # fmt: skip


def fields_to_hf(c: ModelConfig) -> dict[str, Any]:
    """The way back. The published scalar is the inverse square of the scale on logits."""
    scale = c.attention_scale or c.H**-0.5
    return {
        **decoder_fields(c), "hidden_activation": llama.gated_activation(c), "attention_bias": "query" in c.bias, "layer_types": layer_types(c),
        "sliding_window": c.window, "query_pre_attn_scalar": _whole(scale**-2), "final_logit_softcapping": c.logit_soft_cap,
        "attn_logit_softcapping": c.attention_soft_cap,
    }  # fmt: skip


def _whole(x: float) -> int | float:
    """A number that is whole up to rounding, as an int: transformers declares the scalar as one."""
    return round(x) if round(x) ** -0.5 == x**-0.5 or abs(x - round(x)) < 1e-9 * x else x


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """From transformers' Gemma2Config, whose soft caps are 50 and 30 where the fields are absent."""
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    return ModelConfig(**kwargs_from_hf(Fields({**caps, **values}, "gemma2"), 2, kv_heads=4))


WEIGHTS = (*llama.EMBEDDING, *llama.ATTENTION, *llama.MLP, *llama.SANDWICH)


def _preset(layers, width, heads, kv_heads, mlp_width, scalar: float, **changes) -> ModelConfig:
    return gemma.preset(
        layers, width, heads, kv_heads, mlp_width, norm_placement="sandwich", patterns=("sliding", "full"), window=4096,
        attention_scale=scalar**-0.5, attention_soft_cap=50.0, logit_soft_cap=30.0, family="gemma2", **changes,
    )  # fmt: skip


PRESETS = {
    "gemma2-2b": _preset(26, 2304, 8, 4, 9216, 256),
    "gemma2-9b": _preset(42, 3584, 16, 8, 14336, 256),
    "gemma2-27b": _preset(46, 4608, 32, 16, 36864, 144, head_size=128),
}
PARAMETERS = {"gemma2-2b": 2_614_341_888, "gemma2-9b": 9_241_705_984, "gemma2-27b": 27_227_128_320}
FAMILY = Family(
    "gemma2", "Gemma 2", "sandwich norms, soft caps, local and global layers", PRESETS, PARAMETERS,
    ("gemma2",), "Gemma2ForCausalLM", WEIGHTS, config_from_hf, fields_to_hf,
)  # fmt: skip
