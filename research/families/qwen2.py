"""Qwen2 (Yang et al. 2024, arXiv 2407.10671, table 1) and Qwen2.5 (arXiv 2412.15115, table 1): Llama with biases on queries, keys and values."""

from collections.abc import Mapping
from typing import Any

from research.families import llama
from research.families.family import Family
from research.families.fields import GATED, Fields, decoder, decoder_fields, layer_types, patterns
from research.model.config import ModelConfig, Projection, RopeConfig

BIAS: tuple[Projection, ...] = ("query", "key", "value")


def sliding(f: Fields, layers: int) -> dict[str, Any]:
    """Which layers slide: none unless `use_sliding_window`; then those from `max_window_layers` on, or as `layer_types` says."""
    if not f.bool("use_sliding_window", False):
        f.only(layer_types=["full_attention"] * layers)
        return {}
    first = f.int("max_window_layers", 28, least=0)
    kinds = patterns(f, layers, [i >= first for i in range(layers)])
    return {"patterns": kinds, "window": f.int("sliding_window", 4096)} if "sliding" in kinds else {}


def sliding_fields(c: ModelConfig) -> dict[str, Any]:
    """The way back."""
    types = layer_types(c)
    if "sliding_attention" not in types:
        return {"use_sliding_window": False, "sliding_window": None, "layer_types": types}
    return {
        "use_sliding_window": True, "sliding_window": c.window, "layer_types": types,
        "max_window_layers": types.index("sliding_attention"),
    }  # fmt: skip


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """From transformers' Qwen2Config."""
    f = Fields(values, "qwen2")
    kwargs = decoder(f, context=32768, kv_heads=32)
    return ModelConfig(
        **kwargs, activation=f.choice("hidden_act", GATED, "silu"), bias=BIAS, **sliding(f, kwargs["layers"])
    )


def config_to_hf(c: ModelConfig) -> dict[str, Any]:
    """To transformers' Qwen2Config."""
    return {**decoder_fields(c), "hidden_act": llama.gated_activation(c), **sliding_fields(c)}


def _preset(
    layers: int, width: int, heads: int, kv_heads: int, mlp_width: int, tied: bool = False, **changes
) -> ModelConfig:
    vocabulary = 151_936 if width <= 2048 else 152_064
    return llama.config(
        layers, width, heads, mlp_width, kv_heads, vocabulary,
        **{"context": 131_072, "rope": RopeConfig(base=1e6), "norm_eps": 1e-6, "bias": BIAS, "tied": tied, "family": "qwen2", **changes},
    )  # fmt: skip


PRESETS = {
    "qwen2-0.5b": _preset(24, 896, 14, 2, 4864, tied=True),
    "qwen2-1.5b": _preset(28, 1536, 12, 2, 8960, tied=True),
    "qwen2-7b": _preset(28, 3584, 28, 4, 18944),
    "qwen2-72b": _preset(80, 8192, 64, 8, 29568, norm_eps=1e-5),
    "qwen2.5-3b": _preset(36, 2048, 16, 2, 11008, tied=True, context=32768),
    "qwen2.5-14b": _preset(48, 5120, 40, 8, 13824, norm_eps=1e-5),
    "qwen2.5-32b": _preset(64, 5120, 40, 8, 27648, norm_eps=1e-5),
}
PARAMETERS = {
    "qwen2-0.5b": 494_032_768, "qwen2-1.5b": 1_543_714_304, "qwen2-7b": 7_615_616_512, "qwen2-72b": 72_706_203_648,
    "qwen2.5-3b": 3_085_938_688, "qwen2.5-14b": 14_770_033_664, "qwen2.5-32b": 32_763_876_352,
}  # fmt: skip
FAMILY = Family(
    "qwen2", "Qwen2, Qwen2.5", "biases on q, k, v", PRESETS, PARAMETERS, ("qwen2",), "Qwen2ForCausalLM", llama.WEIGHTS, config_from_hf, config_to_hf
)  # fmt: skip
