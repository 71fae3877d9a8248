"""Llama 1, 2 and 3 (Touvron et al. 2023, arXiv 2302.13971, table 2; arXiv 2307.09288; Grattafiori et al. 2024, arXiv 2407.21783, table 3).

Sizes of the smaller Llama 3.2 models, vocabularies and rotary scalings as in the published configs.
"""

from collections.abc import Mapping
from typing import Any

from research.families.family import Family
from research.families.fields import GATED, Fields, decoder, decoder_fields
from research.families.weights import Row
from research.model.config import ModelConfig, Projection, RopeConfig

ATTENTION_BIAS: tuple[Projection, ...] = ("query", "key", "value", "attention-output")
MLP_BIAS: tuple[Projection, ...] = ("mlp-in", "mlp-gate", "mlp-out")
SCALED = RopeConfig(
    base=500_000.0,
    scaling="llama3",
    factor=8.0,
    original_context=8192,
    low_frequency_factor=1.0,
    high_frequency_factor=4.0,
)
SCALED_32 = RopeConfig(
    base=500_000.0,
    scaling="llama3",
    factor=32.0,
    original_context=8192,
    low_frequency_factor=1.0,
    high_frequency_factor=4.0,
)


def config(
    layers: int,
    width: int,
    heads: int,
    mlp_width: int,
    kv_heads: int | None = None,
    vocab_size: int | None = 32000,
    **changes,
) -> ModelConfig:
    """The architecture at any size: RMS norm before each branch, rotary positions, SwiGLU, no biases. Its relatives start from it too."""
    return ModelConfig(**{
        "vocab_size": vocab_size, "context": 4096, "width": width, "layers": layers, "heads": heads, "kv_heads": kv_heads, "mlp_width": mlp_width,
        "positions": "rotary", "norm": "rms", "norm_eps": 1e-5, "activation": "swiglu", "tied": False, "init": "gpt2", "family": "llama", **changes,
    })  # fmt: skip


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """From transformers' LlamaConfig."""
    f = Fields(values, "llama")
    bias: tuple[Projection, ...] = (ATTENTION_BIAS if f.bool("attention_bias", False) else ()) + (
        MLP_BIAS if f.bool("mlp_bias", False) else ()
    )
    return ModelConfig(**decoder(f), activation=f.choice("hidden_act", GATED, "silu"), bias=bias)


def gated_activation(c: ModelConfig) -> str:
    """What transformers calls the activation of a gate; one without a gate keeps our name, and is refused there."""
    return {"swiglu": "silu", "geglu": "gelu", "geglu-tanh": "gelu_pytorch_tanh"}.get(c.activation, c.activation)


def config_to_hf(c: ModelConfig) -> dict[str, Any]:
    """To transformers' LlamaConfig."""
    return {
        **decoder_fields(c), "hidden_act": gated_activation(c), "attention_bias": "query" in c.bias, "mlp_bias": "mlp-in" in c.bias,
    }  # fmt: skip


EMBEDDING = (
    Row("model.embed_tokens.weight", "V D", "embed/tokens"),
    Row("model.norm.weight", "D", "final_norm/scale"),
    Row("lm_head.weight", "V D", "unembed/kernel"),
)
ATTENTION = tuple(
    row
    for ours, theirs, axes in (
        ("query", "q_proj", "NH D"),
        ("key", "k_proj", "KH D"),
        ("value", "v_proj", "KH D"),
        ("output", "o_proj", "D NH"),
    )
    for row in (
        Row(f"model.layers.{{layer}}.self_attn.{theirs}.weight", axes, f"attention/{ours}"),
        Row(f"model.layers.{{layer}}.self_attn.{theirs}.bias", axes.split()[0], f"attention/{ours}_bias"),
    )
)
MLP = tuple(
    row
    for ours, theirs, axes in (("gate", "gate_proj", "F D"), ("in", "up_proj", "F D"), ("out", "down_proj", "D F"))
    for row in (
        Row(f"model.layers.{{layer}}.mlp.{theirs}.weight", axes, f"mlp/{ours}"),
        Row(f"model.layers.{{layer}}.mlp.{theirs}.bias", axes.split()[0], f"mlp/{ours}_bias"),
    )
)
NORMS = (
    Row("model.layers.{layer}.input_layernorm.weight", "D", "attention_norm/scale"),
    Row("model.layers.{layer}.post_attention_layernorm.weight", "D", "mlp_norm/scale"),
)
HEAD_NORMS = (  # Qwen3, Gemma 3
    Row("model.layers.{layer}.self_attn.q_norm.weight", "H", "attention/query_norm/scale"),
    Row("model.layers.{layer}.self_attn.k_norm.weight", "H", "attention/key_norm/scale"),
)
SANDWICH = (  # Gemma 2 and 3
    Row("model.layers.{layer}.input_layernorm.weight", "D", "attention_norm/scale"),
    Row("model.layers.{layer}.post_attention_layernorm.weight", "D", "attention_post_norm/scale"),
    Row("model.layers.{layer}.pre_feedforward_layernorm.weight", "D", "mlp_norm/scale"),
    Row("model.layers.{layer}.post_feedforward_layernorm.weight", "D", "mlp_post_norm/scale"),
)
WEIGHTS = (*EMBEDDING, *ATTENTION, *MLP, *NORMS)

_3 = {"kv_heads": 8, "vocab_size": 128_256, "context": 131_072, "rope": SCALED}
_3_0 = {**_3, "context": 8192, "rope": RopeConfig(base=500_000.0)}
PRESETS = {
    "llama-7b": config(32, 4096, 32, 11008, context=2048, norm_eps=1e-6),
    "llama-13b": config(40, 5120, 40, 13824, context=2048, norm_eps=1e-6),
    "llama-33b": config(60, 6656, 52, 17920, context=2048, norm_eps=1e-6),
    "llama-65b": config(80, 8192, 64, 22016, context=2048),
    "llama2-7b": config(32, 4096, 32, 11008),
    "llama2-13b": config(40, 5120, 40, 13824),
    "llama2-70b": config(80, 8192, 64, 28672, 8),
    "llama3-8b": config(32, 4096, 32, 14336, **_3_0),
    "llama3-70b": config(80, 8192, 64, 28672, **_3_0),
    "llama3.1-8b": config(32, 4096, 32, 14336, **_3),
    "llama3.1-70b": config(80, 8192, 64, 28672, **_3),
    "llama3.1-405b": config(126, 16384, 128, 53248, **_3),
    "llama3.2-1b": config(16, 2048, 32, 8192, **{**_3, "rope": SCALED_32, "tied": True}),
    "llama3.2-3b": config(28, 3072, 24, 8192, **{**_3, "rope": SCALED_32, "tied": True}),
}
PARAMETERS = {
    "llama-7b": 6_738_415_616, "llama-13b": 13_015_864_320, "llama-33b": 32_528_943_616, "llama-65b": 65_285_660_672,
    "llama2-7b": 6_738_415_616, "llama2-13b": 13_015_864_320, "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248, "llama3-70b": 70_553_706_496,
    "llama3.1-8b": 8_030_261_248, "llama3.1-70b": 70_553_706_496, "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400, "llama3.2-3b": 3_212_749_824,
}  # fmt: skip
FAMILY = Family(
    "llama", "Llama 1, 2, 3", "grouped queries, rotary (3.1 scaling), SwiGLU", PRESETS, PARAMETERS,
    ("llama",), "LlamaForCausalLM", WEIGHTS, config_from_hf, config_to_hf,
)  # fmt: skip
