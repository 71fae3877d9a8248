"""Mistral 7B (Jiang et al. 2023, arXiv 2310.06825, table 1) and Nemo 12B (2024, its published config): Llama with a sliding window."""

from collections.abc import Mapping
from typing import Any

from research.families import llama
from research.families.family import Family
from research.families.fields import GATED, Fields, decoder, decoder_fields
from research.model.config import ModelConfig, RopeConfig


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """From transformers' MistralConfig. Every layer slides where `sliding_window` is set; it is 4096 where the field is absent."""
    f = Fields(values, "mistral")
    f.only(layer_types=None)
    window = values.get("sliding_window", 4096)
    sliding = {} if window is None else {"patterns": ("sliding",), "window": f.int("sliding_window", 4096)}
    return ModelConfig(
        **decoder(f, context=131_072, kv_heads=8), activation=f.choice("hidden_act", GATED, "silu"), **sliding
    )


def config_to_hf(c: ModelConfig) -> dict[str, Any]:
    """To transformers' MistralConfig."""
    return {**decoder_fields(c), "hidden_act": llama.gated_activation(c), "sliding_window": sliding_window(c)}


def sliding_window(c: ModelConfig) -> int | None:
    """The window of a model whose layers slide; None where none does."""
    return c.window if "sliding" in c.patterns else None


_7B = {"kv_heads": 8, "context": 32768, "family": "mistral"}
PRESETS = {
    "mistral-7b-v0.1": llama.config(32, 4096, 32, 14336, **_7B, patterns=("sliding",), window=4096),
    "mistral-7b-v0.3": llama.config(32, 4096, 32, 14336, **_7B, vocab_size=32768, rope=RopeConfig(base=1e6)),
    "mistral-nemo-12b": llama.config(
        40, 5120, 32, 14336, kv_heads=8, head_size=128, context=131_072, vocab_size=131_072, rope=RopeConfig(base=1e6), family="mistral"
    ),
}  # fmt: skip
PARAMETERS = {"mistral-7b-v0.1": 7_241_732_096, "mistral-7b-v0.3": 7_248_023_552, "mistral-nemo-12b": 12_247_782_400}
FAMILY = Family(
    "mistral", "Mistral", "sliding window", PRESETS, PARAMETERS, ("mistral",), "MistralForCausalLM", llama.WEIGHTS, config_from_hf, config_to_hf
)  # fmt: skip
