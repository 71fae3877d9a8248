"""GLM-4 as transformers has it: `glm` (GLM-4-9B, GLM Team 2024, arXiv 2406.12793) and `glm4` (GLM-4-0414), which norms around each branch."""

from collections.abc import Mapping
from typing import Any

from research.families import llama
from research.families.family import Family
from research.families.fields import GATED, Fields, decoder, decoder_fields, rope
from research.families.weights import Row
from research.model.config import ModelConfig, Projection, RopeConfig

BIAS: tuple[Projection, ...] = ("query", "key", "value")
ROPE = RopeConfig(fraction=0.5, layout="interleaved")


def _kwargs(f: Fields) -> dict[str, Any]:
    kwargs = decoder(f, context=131_072, kv_heads=2, head_size=128, eps=1.5625e-07)
    turned = RopeConfig(**{**rope(f, fraction=0.5).__dict__, "layout": "interleaved"})
    bias = BIAS if f.bool("attention_bias", True) else ()
    return {**kwargs, "rope": turned, "activation": f.choice("hidden_act", GATED, "silu"), "bias": bias}


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """From transformers' GlmConfig."""
    return ModelConfig(**_kwargs(Fields(values, "glm")))


def config_from_hf_0414(values: Mapping[str, Any]) -> ModelConfig:
    """From transformers' Glm4Config."""
    return ModelConfig(**_kwargs(Fields(values, "glm4")), norm_placement="sandwich")


def config_to_hf(c: ModelConfig) -> dict[str, Any]:
    """To transformers' GlmConfig and Glm4Config."""
    return {
        **decoder_fields(c),
        "partial_rotary_factor": c.rope.fraction,
        "hidden_act": llama.gated_activation(c),
        "attention_bias": "query" in c.bias,
    }


LAYER = "model.layers.{layer}"
FUSED = (
    Row(f"{LAYER}.mlp.gate_up_proj.weight", "[F|F] D", "mlp/gate", "mlp/in"),
    Row(f"{LAYER}.mlp.down_proj.weight", "D F", "mlp/out"),
)
NORMS_0414 = (
    Row(f"{LAYER}.input_layernorm.weight", "D", "attention_norm/scale"),
    Row(f"{LAYER}.post_self_attn_layernorm.weight", "D", "attention_post_norm/scale"),
    Row(f"{LAYER}.post_attention_layernorm.weight", "D", "mlp_norm/scale"),
    Row(f"{LAYER}.post_mlp_layernorm.weight", "D", "mlp_post_norm/scale"),
)
WEIGHTS = (*llama.EMBEDDING, *llama.ATTENTION, *FUSED, *llama.NORMS)
WEIGHTS_0414 = (*llama.EMBEDDING, *llama.ATTENTION, *FUSED, *NORMS_0414)


def _preset(eps: float, **changes) -> ModelConfig:
    return llama.config(
        40, 4096, 32, 13696, 2, 151_552, **{"head_size": 128, "rope": ROPE, "norm_eps": eps, "bias": BIAS, **changes}
    )


PRESETS = {"glm-4-9b": _preset(1.5625e-07, context=8192, family="glm")}
PRESETS_0414 = {"glm-4-9b-0414": _preset(1e-5, context=32768, norm_placement="sandwich", family="glm4")}
FAMILY = Family(
    "glm", "GLM-4", "half rotary, interleaved, fused gate", PRESETS, {"glm-4-9b": 9_399_951_360},
    ("glm",), "GlmForCausalLM", WEIGHTS, config_from_hf, config_to_hf,
)  # fmt: skip
FAMILY_0414 = Family(
    "glm4", "GLM-4-0414", "the same with sandwich norms", PRESETS_0414, {"glm-4-9b-0414": 9_400_279_040},
    ("glm4",), "Glm4ForCausalLM", WEIGHTS_0414, config_from_hf_0414, config_to_hf,
)  # fmt: skip
