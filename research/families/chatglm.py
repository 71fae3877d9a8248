"""ChatGLM2-6B and ChatGLM3-6B as THUDM publishes them: config.json with keys of its own, one fused projection for queries, keys and values.

Llama's shape with two key/value heads, biases on q, k and v, and rotary positions on half of each head, pairs interleaved. The context was
stretched in two ways: ChatGLM3's `rope_ratio` multiplies the rotary base, ChatGLM2-32k's divides the positions.
"""

from collections.abc import Mapping
from typing import Any

from research.families import llama
from research.families.family import Family
from research.families.fields import Fields
from research.families.weights import Row
from research.model.config import ModelConfig, Projection, RopeConfig

BASE = 10_000.0
BIAS: tuple[Projection, ...] = ("query", "key", "value")
NAMES = "THUDM/chatglm2-6b"
CODE = "modeling_chatglm.ChatGLMForConditionalGeneration"


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """From THUDM's ChatGLMConfig."""
    f = Fields(values, "chatglm")
    f.only(
        rmsnorm=True, apply_residual_connection_post_layernorm=False, post_layer_norm=True, add_bias_linear=False, original_rope=True,
        quantization_bit=0, pre_seq_len=0,
    )  # fmt: skip
    heads, groups = f.int("num_attention_heads", 32), f.bool("multi_query_attention", False)
    ratio, linear = f.float("rope_ratio", 1.0), "chatglm2" in str(values.get("_name_or_path", ""))
    rope = RopeConfig(fraction=0.5, layout="interleaved", base=BASE if linear else BASE * ratio)
    if linear and ratio != 1:
        rope = RopeConfig(fraction=0.5, layout="interleaved", base=BASE, scaling="linear", factor=ratio)
    return ModelConfig(
        vocab_size=f.int("padded_vocab_size", 65024), context=f.int("seq_length", 2048), width=f.int("hidden_size", 4096),
        layers=f.int("num_layers", 28),
        heads=heads, kv_heads=f.divisor("multi_query_group_num", "num_attention_heads", heads, 1) if groups else heads,
        head_size=f.int("kv_channels", 128),
        mlp_width=f.int("ffn_hidden_size", 13696), positions="rotary", rope=rope, norm="rms", norm_eps=f.float("layernorm_epsilon", 1e-5),
        activation="swiglu", bias=BIAS if f.bool("add_qkv_bias", False) else (), tied=f.bool("tie_word_embeddings", False), init="gpt2",
    )  # fmt: skip


def config_to_hf(c: ModelConfig) -> dict[str, Any]:
    """To THUDM's ChatGLMConfig."""
    linear = c.rope.scaling == "linear"
    return {
        "_name_or_path": NAMES if linear else "THUDM/chatglm3-6b",
        "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig", "AutoModel": CODE, "AutoModelForCausalLM": CODE},
        "vocab_size": c.V, "padded_vocab_size": c.V, "seq_length": c.context, "hidden_size": c.width, "num_layers": c.layers,
        "num_attention_heads": c.heads, "multi_query_attention": c.heads != c.K, "multi_query_group_num": c.K, "kv_channels": c.H,
        "ffn_hidden_size": c.F, "layernorm_epsilon": c.norm_eps, "rope_ratio": c.rope.factor if linear else c.rope.base / BASE, "rmsnorm": True,
        "add_bias_linear": False, "add_qkv_bias": "query" in c.bias, "apply_residual_connection_post_layernorm": False, "post_layer_norm": True,
        "original_rope": True, "tie_word_embeddings": False, "hidden_dropout": 0.0, "attention_dropout": 0.0, "attention_softmax_in_fp32": True,
        "apply_query_key_layer_scaling": True, "fp32_residual_connection": False, "bias_dropout_fusion": True,
    }  # fmt: skip


ATTENTION = ("attention/query", "attention/key", "attention/value")
LAYER = "transformer.encoder.layers.{layer}"
WEIGHTS = (
    Row("transformer.embedding.word_embeddings.weight", "V D", "embed/tokens"),
    Row(f"{LAYER}.input_layernorm.weight", "D", "attention_norm/scale"),
    Row(f"{LAYER}.self_attention.query_key_value.weight", "[NH|KH|KH] D", *ATTENTION),
    Row(f"{LAYER}.self_attention.query_key_value.bias", "[NH|KH|KH]", *(f"{name}_bias" for name in ATTENTION)),
    Row(f"{LAYER}.self_attention.dense.weight", "D NH", "attention/output"),
    Row(f"{LAYER}.post_attention_layernorm.weight", "D", "mlp_norm/scale"),
    Row(f"{LAYER}.mlp.dense_h_to_4h.weight", "[F|F] D", "mlp/gate", "mlp/in"),
    Row(f"{LAYER}.mlp.dense_4h_to_h.weight", "D F", "mlp/out"),
    Row("transformer.encoder.final_layernorm.weight", "D", "final_norm/scale"),
    Row("transformer.output_layer.weight", "V D", "unembed/kernel"),
)


def _preset(context: int, base: float = BASE) -> ModelConfig:
    rope = RopeConfig(fraction=0.5, layout="interleaved", base=base)
    return llama.config(28, 4096, 32, 13696, 2, 65024, context=context, rope=rope, bias=BIAS, family="chatglm")


PRESETS = {"chatglm2-6b": _preset(32768), "chatglm3-6b": _preset(8192), "chatglm3-6b-32k": _preset(32768, 50 * BASE)}
FAMILY = Family(
    "chatglm", "ChatGLM2, ChatGLM3", "multi-query, half rotary, interleaved", PRESETS, dict.fromkeys(PRESETS, 6_243_584_000),
    ("chatglm",), "ChatGLMModel", WEIGHTS, config_from_hf, config_to_hf, "transformer.", (r".*rotary_pos_emb\.inv_freq",),
)  # fmt: skip
