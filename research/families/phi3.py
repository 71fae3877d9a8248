"""Phi-3 (Abdin et al. 2024, arXiv 2404.14219, section 2) and Phi-4 (arXiv 2412.08905): Llama with fused projections, a window, LongRoPE."""

from collections.abc import Mapping
from typing import Any

from research.families import llama
from research.families.family import Family
from research.families.fields import GATED, Fields, decoder, decoder_fields
from research.families.glm4 import FUSED
from research.families.mistral import sliding_window
from research.families.weights import Row
from research.model.config import ModelConfig, RopeConfig


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """From transformers' Phi3Config."""
    f = Fields(values, "phi3")
    sliding = {"patterns": ("sliding",), "window": f.int("sliding_window")} if f.has("sliding_window") else {}
    f.only(attention_bias=False)
    return ModelConfig(
        **{
            **decoder(f, context=4096, eps=1e-5, fraction=1.0),
            "activation": f.choice("hidden_act", GATED, "silu"),
            **sliding,
        }
    )


def config_to_hf(c: ModelConfig) -> dict[str, Any]:
    """To transformers' Phi3Config."""
    fields = decoder_fields(c)
    if c.H * c.heads == c.width:
        del fields["head_dim"]
    original = c.rope.original_context if c.rope.scaling == "longrope" else c.context
    return {
        **fields,
        "original_max_position_embeddings": original,
        "hidden_act": llama.gated_activation(c),
        "sliding_window": sliding_window(c),
    }


LAYER = "model.layers.{layer}.self_attn"
WEIGHTS = (
    *llama.EMBEDDING, *FUSED, *llama.NORMS,
    Row(f"{LAYER}.qkv_proj.weight", "[NH|KH|KH] D", "attention/query", "attention/key", "attention/value"),
    Row(f"{LAYER}.o_proj.weight", "D NH", "attention/output"),
)  # fmt: skip

PRESETS = {
    "phi3-mini-4k": llama.config(32, 3072, 32, 8192, 32, 32064, patterns=("sliding",), window=2047, family="phi3"),
    "phi3-medium-4k": llama.config(40, 5120, 40, 17920, 10, 32064, patterns=("sliding",), window=2047, family="phi3"),
    "phi4": llama.config(
        40, 5120, 40, 17920, 10, 100_352, context=16384, rope=RopeConfig(base=250_000.0), family="phi3"
    ),
}
PARAMETERS = {"phi3-mini-4k": 3_821_079_552, "phi3-medium-4k": 13_960_238_080, "phi4": 14_659_507_200}
FAMILY = Family(
    "phi3", "Phi-3, Phi-4", "fused projections, LongRoPE", PRESETS, PARAMETERS, ("phi3",), "Phi3ForCausalLM", WEIGHTS, config_from_hf, config_to_hf
)  # fmt: skip
