"""Mixtral (Jiang et al. 2024, arXiv 2401.04088, table 1; 8x22B: its published config): Mistral with eight experts, two of them a token."""

from collections.abc import Mapping
from typing import Any

from research.families import llama
from research.families.family import Family
from research.families.fields import GATED, Fields, decoder, decoder_fields, experts
from research.families.mistral import sliding_window
from research.families.weights import Row
from research.model.config import ModelConfig, MoEConfig, RopeConfig


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """From transformers' MixtralConfig."""
    f = Fields(values, "mixtral")
    sliding = {"patterns": ("sliding",), "window": f.int("sliding_window")} if f.has("sliding_window") else {}
    moe = MoEConfig(**experts(f, count=8, top_k=2))
    kwargs = decoder(f, context=131_072, theta=1e6, kv_heads=8, eps=1e-5)
    return ModelConfig(
        **kwargs, activation=f.choice("hidden_act", GATED, "silu"), feed_forward=("moe",), moe=moe, **sliding
    )


def config_to_hf(c: ModelConfig) -> dict[str, Any]:
    """To transformers' MixtralConfig."""
    return {
        **decoder_fields(c), "intermediate_size": c.moe.width or c.F, "hidden_act": llama.gated_activation(c), "sliding_window": sliding_window(c),
        "num_local_experts": c.moe.experts, "num_experts_per_tok": c.moe.top_k,
    }  # fmt: skip


EXPERTS = "model.layers.{layer}.block_sparse_moe.experts.{expert}"
WEIGHTS = (
    *llama.EMBEDDING, *llama.ATTENTION, *llama.NORMS,
    Row("model.layers.{layer}.block_sparse_moe.gate.weight", "E D", "mlp/router"),
    Row(f"{EXPERTS}.w1.weight", "F D", "experts/gate"),
    Row(f"{EXPERTS}.w2.weight", "D F", "experts/out"),
    Row(f"{EXPERTS}.w3.weight", "F D", "experts/in"),
)  # fmt: skip

_MOE = {
    "kv_heads": 8,
    "rope": RopeConfig(base=1e6),
    "feed_forward": ("moe",),
    "moe": MoEConfig(experts=8, top_k=2),
    "family": "mixtral",
}
PRESETS = {
    "mixtral-8x7b": llama.config(32, 4096, 32, 14336, context=32768, **_MOE),
    "mixtral-8x22b": llama.config(56, 6144, 48, 16384, context=65536, **_MOE),
}
PARAMETERS = {"mixtral-8x7b": 46_702_792_704, "mixtral-8x22b": 140_620_634_112}
FAMILY = Family(
    "mixtral", "Mixtral", "8 experts, 2 a token", PRESETS, PARAMETERS, ("mixtral",), "MixtralForCausalLM", WEIGHTS, config_from_hf, config_to_hf
)  # fmt: skip
