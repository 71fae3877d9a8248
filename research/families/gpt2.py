"""GPT-2 ("Language Models are Unsupervised Multitask Learners", Radford et al. 2019, table 2; counts as released)."""

from collections.abc import Mapping
from typing import Any

from research.families.family import Family
from research.families.fields import PLAIN, Fields
from research.families.weights import Row
from research.model.config import ModelConfig, Projection

# name -> layers, width, heads, exact parameters
SIZES = {
    "gpt2": (12, 768, 12, 124_439_808),
    "gpt2-medium": (24, 1024, 16, 354_823_168),
    "gpt2-large": (36, 1280, 20, 774_030_080),
    "gpt2-xl": (48, 1600, 25, 1_557_611_200),
}
BIAS: tuple[Projection, ...] = ("query", "key", "value", "attention-output", "mlp-in", "mlp-out", "norm")


def config(
    layers: int, width: int, heads: int, vocab_size: int | None = 50257, context: int = 1024, **changes
) -> ModelConfig:
    """GPT-2's architecture at any size: learned positions, pre-norm layer norm, tanh gelu, biases everywhere but the tied head."""
    defaults = {
        "positions": "learned",
        "norm": "layer",
        "activation": "gelu-tanh",
        "bias": BIAS,
        "tied": True,
        "init": "gpt2",
    }
    sizes = {"vocab_size": vocab_size, "context": context, "width": width, "layers": layers, "heads": heads}
    return ModelConfig(**{**defaults, "family": "gpt2", **sizes, **changes})


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """From transformers' GPT2Config."""
    f = Fields(values, "gpt2")
    f.only(scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    width = f.int("n_embd", 768)
    return config(
        f.int("n_layer", 12), width, f.int("n_head", 12), f.int("vocab_size", 50257), f.int("n_positions", 1024),
        mlp_width=f.int("n_inner", 4 * width), activation=f.choice("activation_function", PLAIN, "gelu_new"),
        norm_eps=f.float("layer_norm_epsilon", 1e-5), tied=f.bool("tie_word_embeddings", True),
        attention_scale=None if f.bool("scale_attn_weights", True) else 1.0,
    )  # fmt: skip


def config_to_hf(c: ModelConfig) -> dict[str, Any]:
    """To transformers' GPT2Config."""
    return {
        "vocab_size": c.V, "n_positions": c.context, "n_ctx": c.context, "n_embd": c.width, "n_layer": c.layers, "n_head": c.heads,
        "n_inner": c.F, "activation_function": plain_activation(c), "layer_norm_epsilon": c.norm_eps,
        "tie_word_embeddings": c.tied, "scale_attn_weights": c.attention_scale is None,
    }  # fmt: skip


def plain_activation(c: ModelConfig) -> str:
    """What transformers calls an activation without a gate; one that it does not know goes back under our name, and is refused there."""
    return {"gelu-tanh": "gelu_new"}.get(c.activation, c.activation)


WEIGHTS = (
    Row("transformer.wte.weight", "V D", "embed/tokens"),
    Row("transformer.wpe.weight", "S D", "embed/positions"),
    Row("transformer.h.{layer}.ln_1.weight", "D", "attention_norm/scale"),
    Row("transformer.h.{layer}.ln_1.bias", "D", "attention_norm/bias"),
    Row("transformer.h.{layer}.attn.c_attn.weight", "D [NH|KH|KH]", "attention/query", "attention/key", "attention/value"),
    Row("transformer.h.{layer}.attn.c_attn.bias", "[NH|KH|KH]", "attention/query_bias", "attention/key_bias", "attention/value_bias"),
    Row("transformer.h.{layer}.attn.c_proj.weight", "NH D", "attention/output"),
    Row("transformer.h.{layer}.attn.c_proj.bias", "D", "attention/output_bias"),
    Row("transformer.h.{layer}.ln_2.weight", "D", "mlp_norm/scale"),
    Row("transformer.h.{layer}.ln_2.bias", "D", "mlp_norm/bias"),
    Row("transformer.h.{layer}.mlp.c_fc.weight", "D F", "mlp/in"),
    Row("transformer.h.{layer}.mlp.c_fc.bias", "F", "mlp/in_bias"),
    Row("transformer.h.{layer}.mlp.c_proj.weight", "F D", "mlp/out"),
    Row("transformer.h.{layer}.mlp.c_proj.bias", "D", "mlp/out_bias"),
    Row("transformer.ln_f.weight", "D", "final_norm/scale"),
    Row("transformer.ln_f.bias", "D", "final_norm/bias"),
    Row("lm_head.weight", "V D", "unembed/kernel"),
)  # fmt: skip

PRESETS = {name: config(layers, width, heads) for name, (layers, width, heads, _) in SIZES.items()}
FAMILY = Family(
    "gpt2", "GPT-2", "learned positions, layer norm, biases", PRESETS, {name: size[-1] for name, size in SIZES.items()},
    ("gpt2",), "GPT2LMHeadModel", WEIGHTS, config_from_hf, config_to_hf, "transformer.",
    (r".*\.attn\.(masked_)?bias",),
)  # fmt: skip
