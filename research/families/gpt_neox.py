"""GPT-NeoX-20B (Black et al. 2022, arXiv 2204.06745) and Pythia (Biderman et al. 2023, arXiv 2304.01373, table 1; counts as released)."""

from collections.abc import Mapping
from typing import Any

from research.families.family import Family
from research.families.fields import PLAIN, Fields, rope, rope_fields
from research.families.weights import Row
from research.model.config import ModelConfig, Projection, RopeConfig

# name -> layers, width, heads, vocabulary, exact parameters
SIZES = {
    "pythia-70m": (6, 512, 8, 50304, 70_426_624),
    "pythia-160m": (12, 768, 12, 50304, 162_322_944),
    "pythia-410m": (24, 1024, 16, 50304, 405_334_016),
    "pythia-1b": (16, 2048, 8, 50304, 1_011_781_632),
    "pythia-1.4b": (24, 2048, 16, 50304, 1_414_647_808),
    "pythia-2.8b": (32, 2560, 32, 50304, 2_775_208_960),
    "pythia-6.9b": (32, 4096, 32, 50432, 6_857_302_016),
    "pythia-12b": (36, 5120, 40, 50688, 11_846_072_320),
    "gpt-neox-20b": (44, 6144, 64, 50432, 20_554_567_680),
}
ATTENTION_BIAS: tuple[Projection, ...] = ("query", "key", "value", "attention-output")
OTHER_BIAS: tuple[Projection, ...] = ("mlp-in", "mlp-out", "norm")


def config(
    layers: int, width: int, heads: int, vocab_size: int | None = 50432, context: int = 2048, **changes
) -> ModelConfig:
    """The architecture at any size: a quarter of each head rotates, attention and feed-forward read the stream side by side."""
    return ModelConfig(**{
        "vocab_size": vocab_size, "context": context, "width": width, "layers": layers, "heads": heads, "positions": "rotary",
        "rope": RopeConfig(fraction=0.25), "norm": "layer", "residual": "parallel", "activation": "gelu", "bias": ATTENTION_BIAS + OTHER_BIAS,
        "tied": False, "init": "gpt2", "family": "gpt-neox", **changes,
    })  # fmt: skip


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """From transformers' GPTNeoXConfig."""
    f = Fields(
        {"partial_rotary_factor": values.get("rotary_pct"), "rope_theta": values.get("rotary_emb_base"), **values},
        "gpt_neox",
    )
    return config(
        f.int("num_hidden_layers", 44), f.int("hidden_size", 6144), f.int("num_attention_heads", 64), f.int("vocab_size", 50432),
        f.int("max_position_embeddings", 2048), mlp_width=f.int("intermediate_size", 24576), norm_eps=f.float("layer_norm_eps", 1e-5),
        activation=f.choice("hidden_act", PLAIN, "gelu"), tied=f.bool("tie_word_embeddings", False), rope=rope(f, fraction=0.25),
        residual="parallel" if f.bool("use_parallel_residual", True) else "serial",
        bias=(*(ATTENTION_BIAS if f.bool("attention_bias", True) else ()), *OTHER_BIAS),
    )  # fmt: skip


def config_to_hf(c: ModelConfig) -> dict[str, Any]:
    """To transformers' GPTNeoXConfig."""
    return {
        "vocab_size": c.V, "max_position_embeddings": c.context, "hidden_size": c.width, "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads, "intermediate_size": c.F, "hidden_act": {"gelu-tanh": "gelu_new"}.get(c.activation, c.activation),
        "layer_norm_eps": c.norm_eps, "tie_word_embeddings": c.tied, "use_parallel_residual": c.residual == "parallel",
        "attention_bias": "query" in c.bias, **rope_fields(c.rope, c.context), "rotary_pct": c.rope.fraction, "rotary_emb_base": c.rope.base,
    }  # fmt: skip


ATTENTION = ("attention/query", "attention/key", "attention/value")
WEIGHTS = (
    Row("gpt_neox.embed_in.weight", "V D", "embed/tokens"),
    Row("gpt_neox.layers.{layer}.input_layernorm.weight", "D", "attention_norm/scale"),
    Row("gpt_neox.layers.{layer}.input_layernorm.bias", "D", "attention_norm/bias"),
    Row("gpt_neox.layers.{layer}.post_attention_layernorm.weight", "D", "mlp_norm/scale"),
    Row("gpt_neox.layers.{layer}.post_attention_layernorm.bias", "D", "mlp_norm/bias"),
    Row("gpt_neox.layers.{layer}.attention.query_key_value.weight", "N[H|H|H] D", *ATTENTION),
    Row("gpt_neox.layers.{layer}.attention.query_key_value.bias", "N[H|H|H]", *(f"{name}_bias" for name in ATTENTION)),
    Row("gpt_neox.layers.{layer}.attention.dense.weight", "D NH", "attention/output"),
    Row("gpt_neox.layers.{layer}.attention.dense.bias", "D", "attention/output_bias"),
    Row("gpt_neox.layers.{layer}.mlp.dense_h_to_4h.weight", "F D", "mlp/in"),
    Row("gpt_neox.layers.{layer}.mlp.dense_h_to_4h.bias", "F", "mlp/in_bias"),
    Row("gpt_neox.layers.{layer}.mlp.dense_4h_to_h.weight", "D F", "mlp/out"),
    Row("gpt_neox.layers.{layer}.mlp.dense_4h_to_h.bias", "D", "mlp/out_bias"),
    Row("gpt_neox.final_layer_norm.weight", "D", "final_norm/scale"),
    Row("gpt_neox.final_layer_norm.bias", "D", "final_norm/bias"),
    Row("embed_out.weight", "V D", "unembed/kernel"),
)

PRESETS = {name: config(*size[:4]) for name, size in SIZES.items()}
FAMILY = Family(
    "gpt-neox", "GPT-NeoX, Pythia", "parallel residual, partial rotary", PRESETS, {name: size[-1] for name, size in SIZES.items()},
    ("gpt_neox",), "GPTNeoXForCausalLM", WEIGHTS, config_from_hf, config_to_hf, "gpt_neox.",
    (r".*\.attention\.(masked_)?bias", r".*rotary_emb\.inv_freq"),
)  # fmt: skip
