"""Gemma 3, text (Gemma Team 2025, arXiv 2503.19786, table 1; 270M: its published config): five sliding layers to one full one, each kind with
its own rotary base, queries and keys normed, no soft caps. Of the larger, multimodal models the text part alone."""

from collections.abc import Mapping
from typing import Any

from research.core.errors import UserError
from research.families import gemma, gemma2, llama
from research.families.family import Family
from research.families.fields import Fields
from research.model.config import ModelConfig, RopeConfig

LOCAL_BASE, GLOBAL_BASE = 10_000.0, 1_000_000.0


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 nests `rope_parameters` by the kind of layer; 4 has `rope_theta`, `rope_local_base_freq` and a `rope_scaling` of full layers."""
    nested = values.get("rope_parameters")
    if not isinstance(nested, dict) or "full_attention" not in nested:
        return {**values, "rope_parameters": None}
    if any(not isinstance(one, dict) for one in nested.values() if one is not None):
        raise Fields(values, "gemma3_text").wrong("rope_parameters", "an object for each kind of layer")
    local = Fields(nested.get("sliding_attention") or {}, "gemma3_text")
    local.only(rope_type="default")
    inner = {
        "rope_local_base_freq": local.float("rope_theta", LOCAL_BASE),
        "rope_parameters": nested["full_attention"],
        "rope_scaling": None,
    }
    return {**values, **inner}


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """From transformers' Gemma3TextConfig."""
    f = Fields(_flat(values), "gemma3_text")
    kwargs = gemma2.kwargs_from_hf(
        f, f.int("sliding_window_pattern", 6), context=131_072, theta=GLOBAL_BASE, kv_heads=4
    )
    rope = RopeConfig(**{**kwargs["rope"].__dict__, "sliding_base": f.float("rope_local_base_freq", LOCAL_BASE)})
    return ModelConfig(**{**kwargs, "rope": rope, "qk_norm": "head"})


def config_to_hf(c: ModelConfig) -> dict[str, Any]:
    """To transformers' Gemma3TextConfig."""
    fields = gemma2.fields_to_hf(c)
    local = c.rope.sliding_base
    if local is None:
        raise UserError("model.rope.sliding_base is None; a Gemma 3 config needs a base for its sliding layers")
    rope = {
        "full_attention": fields.pop("rope_parameters"),
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }
    fields.pop("rope_scaling", None)
    return {**fields, "rope_parameters": rope, "rope_local_base_freq": local}


WEIGHTS = (*gemma2.WEIGHTS, *llama.HEAD_NORMS)


def _preset(layers, width, heads, kv_heads, mlp_width, window=1024, scalar=256.0, factor=1.0, **changes) -> ModelConfig:
    rope = RopeConfig(
        base=GLOBAL_BASE, sliding_base=LOCAL_BASE, scaling="linear" if factor > 1 else "none", factor=factor
    )
    return gemma.preset(
        layers, width, heads, kv_heads, mlp_width,
        **{"vocab_size": 262_208, "context": 131_072, "norm_placement": "sandwich", "patterns": ("sliding",) * 5 + ("full",), "window": window,
           "attention_scale": scalar**-0.5, "qk_norm": "head", "rope": rope, "family": "gemma3", **changes},
    )  # fmt: skip


_SMALL = {"window": 512, "vocab_size": 262_144, "context": 32768}
PRESETS = {
    "gemma3-270m": _preset(18, 640, 4, 1, 2048, **_SMALL),
    "gemma3-1b": _preset(26, 1152, 4, 1, 6912, **_SMALL),
    "gemma3-4b-text": _preset(34, 2560, 8, 4, 10240, factor=8.0),
    "gemma3-12b-text": _preset(48, 3840, 16, 8, 15360, factor=8.0),
    "gemma3-27b-text": _preset(62, 5376, 32, 16, 21504, factor=8.0, scalar=168.0, head_size=128),
}
PARAMETERS = {
    "gemma3-270m": 268_098_176, "gemma3-1b": 999_885_952, "gemma3-4b-text": 3_880_263_168, "gemma3-12b-text": 11_766_034_176,
    "gemma3-27b-text": 27_009_346_304,
}  # fmt: skip
FAMILY = Family(
    "gemma3", "Gemma 3 (text)", "5 local layers to 1 global, qk-norm", PRESETS, PARAMETERS,
    ("gemma3_text",), "Gemma3ForCausalLM", WEIGHTS, config_from_hf, config_to_hf,
)  # fmt: skip
