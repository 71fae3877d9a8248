"""GPT-3 ("Language Models are Few-Shot Learners", Brown et al. 2020, arXiv 2005.14165, table 2.1), and GPT-Neo, its open likeness.

The eight sizes as the table prints them: layers, width, heads, head size. Two of its rows do not multiply out. The XL model has 24 heads of
128 at width 2048, which is built as printed, since heads x head size may differ from the width. 13B has width 5140 in print, which is not
40 x 128 and no multiple of anything useful; here it is 5120 = 40 x 128.

Section 2.1 alternates dense and locally banded sparse layers, after the Sparse Transformer, and does not give the band; 128 is the stride of
that paper's text model (arXiv 1904.10509, section 7.1). OpenAI published no weights. GPT-Neo (EleutherAI, 2021) alternates in the same way
with a band of 256 and has a published format, so that is what goes in and out; its queries, keys and values have no bias and its
logits no scale.
"""

from collections.abc import Mapping
from typing import Any

from research.families.family import Family
from research.families.fields import PLAIN, Fields, shortest
from research.families.gpt2 import plain_activation
from research.families.weights import Row
from research.model.config import ModelConfig, Pattern, Projection

BAND = 128
# name -> layers, width, heads, head size, batch in tokens, learning rate, exact parameters
SIZES = {
    "gpt3-125m": (12, 768, 12, 64, 0.5e6, 6.0e-4, 125_226_240),
    "gpt3-350m": (24, 1024, 16, 64, 0.5e6, 3.0e-4, 355_871_744),
    "gpt3-760m": (24, 1536, 16, 96, 0.5e6, 2.5e-4, 760_300_032),
    "gpt3-1.3b": (24, 2048, 24, 128, 1e6, 2.0e-4, 1_517_123_584),
    "gpt3-2.7b": (32, 2560, 32, 80, 1e6, 1.6e-4, 2_651_553_280),
    "gpt3-6.7b": (32, 4096, 32, 128, 2e6, 1.2e-4, 6_658_404_352),
    "gpt3-13b": (40, 5120, 40, 128, 2e6, 1.0e-4, 12_853_386_240),
    "gpt3-175b": (96, 12288, 96, 128, 3.2e6, 0.6e-4, 174_604_259_328),
}
BIAS: tuple[Projection, ...] = ("query", "key", "value", "attention-output", "mlp-in", "mlp-out", "norm")
NEO_BIAS = tuple(name for name in BIAS if name not in ("query", "key", "value"))
KINDS: dict[str, Pattern] = {"global": "full", "local": "sliding"}


def config(
    layers: int,
    width: int,
    heads: int,
    head_size: int | None = None,
    vocab_size: int | None = 50257,
    context: int = 2048,
    **changes,
) -> ModelConfig:
    """GPT-3's architecture at any size: GPT-2's with every second layer banded."""
    defaults = {"positions": "learned", "norm": "layer", "activation": "gelu-tanh", "bias": BIAS, "tied": True, "init": "gpt2",
                "patterns": ("full", "sliding"), "window": BAND, "family": "gpt3"}  # fmt: skip
    sizes = {
        "vocab_size": vocab_size,
        "context": context,
        "width": width,
        "layers": layers,
        "heads": heads,
        "head_size": head_size,
    }
    return ModelConfig(**{**defaults, **sizes, **changes})


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """From transformers' GPTNeoConfig."""
    f = Fields(values, "gpt_neo")
    layers, width = f.int("num_layers", 24), f.int("hidden_size", 2048)
    groups = values.get("attention_types") or [[["global", "local"], layers // 2]]
    try:
        kinds = tuple(KINDS[kind] for pattern, repeats in groups for kind in list(pattern) * repeats)
    except (KeyError, TypeError, ValueError):
        raise f.wrong("attention_types", "pairs of a list of global and local, and a number of repeats") from None
    if len(kinds) != layers:
        raise f.wrong("attention_types", f"as many layers as num_layers {layers}")
    return config(
        layers, width, f.int("num_heads", 16), None, f.int("vocab_size", 50257), f.int("max_position_embeddings", 2048),
        mlp_width=f.int("intermediate_size", 4 * width), activation=f.choice("activation_function", PLAIN, "gelu_new"),
        norm_eps=f.float("layer_norm_epsilon", 1e-5), tied=f.bool("tie_word_embeddings", True), patterns=shortest(kinds),
        window=f.int("window_size", 256), bias=NEO_BIAS, attention_scale=1.0,
    )  # fmt: skip


def config_to_hf(c: ModelConfig) -> dict[str, Any]:
    """To transformers' GPTNeoConfig."""
    words = {ours: theirs for theirs, ours in KINDS.items()}
    kinds = [words.get(slot.pattern, slot.pattern) for slots, n in c.segments for slot in slots * n]
    return {
        "vocab_size": c.V, "max_position_embeddings": c.context, "hidden_size": c.width, "num_layers": c.layers, "num_heads": c.heads,
        "attention_types": [[kinds, 1]], "attention_layers": kinds, "intermediate_size": c.F, "window_size": c.window,
        "activation_function": plain_activation(c), "layer_norm_epsilon": c.norm_eps, "tie_word_embeddings": c.tied,
    }  # fmt: skip


WEIGHTS = (
    Row("transformer.wte.weight", "V D", "embed/tokens"),
    Row("transformer.wpe.weight", "S D", "embed/positions"),
    Row("transformer.h.{layer}.ln_1.weight", "D", "attention_norm/scale"),
    Row("transformer.h.{layer}.ln_1.bias", "D", "attention_norm/bias"),
    Row("transformer.h.{layer}.attn.attention.q_proj.weight", "NH D", "attention/query"),
    Row("transformer.h.{layer}.attn.attention.k_proj.weight", "KH D", "attention/key"),
    Row("transformer.h.{layer}.attn.attention.v_proj.weight", "KH D", "attention/value"),
    Row("transformer.h.{layer}.attn.attention.out_proj.weight", "D NH", "attention/output"),
    Row("transformer.h.{layer}.attn.attention.out_proj.bias", "D", "attention/output_bias"),
    Row("transformer.h.{layer}.ln_2.weight", "D", "mlp_norm/scale"),
    Row("transformer.h.{layer}.ln_2.bias", "D", "mlp_norm/bias"),
    Row("transformer.h.{layer}.mlp.c_fc.weight", "F D", "mlp/in"),
    Row("transformer.h.{layer}.mlp.c_fc.bias", "F", "mlp/in_bias"),
    Row("transformer.h.{layer}.mlp.c_proj.weight", "D F", "mlp/out"),
    Row("transformer.h.{layer}.mlp.c_proj.bias", "D", "mlp/out_bias"),
    Row("transformer.ln_f.weight", "D", "final_norm/scale"),
    Row("transformer.ln_f.bias", "D", "final_norm/bias"),
    Row("lm_head.weight", "V D", "unembed/kernel"),
)

PRESETS = {name: config(*size[:4]) for name, size in SIZES.items()}
FAMILY = Family(
    "gpt3", "GPT-3, GPT-Neo", "dense and banded layers in turn", PRESETS, {name: size[-1] for name, size in SIZES.items()},
    ("gpt_neo",), "GPTNeoForCausalLM", WEIGHTS, config_from_hf, config_to_hf, "transformer.",
    (r".*\.attn\.attention\.(masked_)?bias",),
)  # fmt: skip
