"""Tiny configs of every family with unusual sizes: grouped queries, odd vocabularies, tied and not, short windows, rotary scalings.

Each is what a published config.json says. Weights are drawn by name from a seed, so that they need not be stored: `weights(name, shape)`.
"""

import functools
import hashlib
import json
from pathlib import Path

import numpy as np

B, T = 2, 21  # rows and tokens of the prompt whose logits are compared
NEW = 64  # tokens that are then generated greedily

BASE = {
    "vocab_size": 67, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40,
    "max_position_embeddings": 128, "tie_word_embeddings": False,
}  # fmt: skip
GPT2 = {"vocab_size": 67, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 128}
NEOX = {**BASE, "vocab_size": 71, "hidden_act": "gelu"}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.25],
    "long_factor": [1.5, 2.5, 4.0],
}


def theta(base: float, **more) -> dict:
    """`rope_parameters` of the default type."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": base, **more}}


CASES: dict[str, dict] = {
    "gpt2": {"model_type": "gpt2", **GPT2},
    "gpt2-untied-relu-unscaled": {
        "model_type": "gpt2", **GPT2, "n_inner": 52, "activation_function": "relu", "tie_word_embeddings": False, "scale_attn_weights": False,
    },
    "gpt-neo": {
        "model_type": "gpt_neo", "vocab_size": 67, "hidden_size": 24, "num_layers": 4, "num_heads": 3, "attention_types": [[["global", "local"], 2]],
        "window_size": 5, "max_position_embeddings": 128,
    },
    "gpt-neo-uneven": {
        "model_type": "gpt_neo", "vocab_size": 61, "hidden_size": 24, "num_layers": 3, "num_heads": 2, "intermediate_size": 36,
        "attention_types": [[["local"], 2], [["global"], 1]], "window_size": 7, "max_position_embeddings": 128,
    },
    "gpt-neox": {"model_type": "gpt_neox", **NEOX, "hidden_size": 32, **theta(10000.0, partial_rotary_factor=0.25)},
    "gpt-neox-serial": {
        "model_type": "gpt_neox", **NEOX, "use_parallel_residual": False, "attention_bias": False, **theta(1000.0, partial_rotary_factor=1.0),
    },
    "llama": {"model_type": "llama", **BASE, "num_key_value_heads": 2},
    "llama-3.1": {"model_type": "llama", **BASE, "num_key_value_heads": 1, "tie_word_embeddings": True, "rope_parameters": LLAMA3},
    "llama-biased-wide-heads": {"model_type": "llama", **BASE, "attention_bias": True, "mlp_bias": True, "head_dim": 10, **theta(50.0)},
    "llama-linear": {"model_type": "llama", **BASE, "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}},
    "llama-yarn": {"model_type": "llama", **BASE, "rope_parameters": YARN},
    "llama-version-4": {
        "model_type": "llama", **BASE, "num_key_value_heads": 2, "rope_theta": 500.0,
        "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"},
    },
    "mistral": {"model_type": "mistral", **BASE, "num_key_value_heads": 2, "sliding_window": 6, "head_dim": 8, **theta(10000.0)},
    "mistral-full": {"model_type": "mistral", **BASE, "num_key_value_heads": 4, "sliding_window": None, **theta(1e6)},
    "mixtral": {"model_type": "mixtral", **BASE, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, **theta(1e6)},
    "mixtral-sliding": {
        "model_type": "mixtral", **BASE, "num_key_value_heads": 1, "num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 5,
        **theta(1e4),
    },
    "qwen2": {"model_type": "qwen2", **BASE, "num_key_value_heads": 2, **theta(1e6)},
    "qwen2-tied-windows": {
        "model_type": "qwen2", **BASE, "num_key_value_heads": 1, "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 6,
        "max_window_layers": 1, **theta(1e4),
    },
    "qwen3": {"model_type": "qwen3", **BASE, "num_key_value_heads": 2, "head_dim": 10, **theta(1e6)},
    "qwen3-tied-biased": {
        "model_type": "qwen3", **BASE, "num_key_value_heads": 1, "head_dim": 6, "tie_word_embeddings": True, "attention_bias": True, **theta(1e4),
    },
    "qwen3-moe": {
        "model_type": "qwen3_moe", **BASE, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 6, "num_experts_per_tok": 3,
        "moe_intermediate_size": 14, "norm_topk_prob": True, **theta(1e6),
    },
    "qwen3-moe-mixed": {
        "model_type": "qwen3_moe", **BASE, "num_hidden_layers": 5, "num_key_value_heads": 1, "head_dim": 6,
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 18, "norm_topk_prob": False,
        "decoder_sparse_step": 2, "mlp_only_layers": [3], **theta(1e4),
    },
    "gemma": {"model_type": "gemma", **BASE, "num_key_value_heads": 1, "head_dim": 10, "tie_word_embeddings": True},
    "gemma2": {
        "model_type": "gemma2", **BASE, "num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True,
        "query_pre_attn_scalar": 144, "sliding_window": 6, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
    },
    "gemma3": {
        "model_type": "gemma3_text", **BASE, "num_hidden_layers": 7, "num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True,
        "query_pre_attn_scalar": 100, "sliding_window": 5,
    },
    "gemma3-scaled": {
        "model_type": "gemma3_text", **BASE, "num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True,
        "query_pre_attn_scalar": 8, "sliding_window": 7, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    },
    "chatglm2": {
        "model_type": "chatglm", "_name_or_path": "THUDM/chatglm2-6b", "num_layers": 3, "padded_vocab_size": 67, "hidden_size": 24,
        "ffn_hidden_size": 36, "kv_channels": 8, "num_attention_heads": 4, "seq_length": 128, "layernorm_epsilon": 1e-5, "rmsnorm": True,
        "multi_query_attention": True, "multi_query_group_num": 2, "add_bias_linear": False, "add_qkv_bias": True, "original_rope": True,
    },
    "chatglm3-32k": {
        "model_type": "chatglm", "_name_or_path": "THUDM/chatglm3-6b-32k", "num_layers": 2, "padded_vocab_size": 71, "hidden_size": 32,
        "ffn_hidden_size": 44, "kv_channels": 16, "num_attention_heads": 2, "seq_length": 128, "layernorm_epsilon": 1e-5, "rmsnorm": True,
        "multi_query_attention": True, "multi_query_group_num": 1, "add_bias_linear": False, "add_qkv_bias": True, "rope_ratio": 50,
        "original_rope": True,
    },
    "glm": {
        "model_type": "glm", **BASE, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "eos_token_id": 2,
        **theta(10000.0, partial_rotary_factor=0.5),
    },
    "glm-unbiased": {
        "model_type": "glm", **BASE, "num_key_value_heads": 1, "head_dim": 12, "attention_bias": False, "tie_word_embeddings": True,
        "pad_token_id": 0, "eos_token_id": 2, **theta(500.0, partial_rotary_factor=0.5),
    },
    "glm4": {
        "model_type": "glm4", **BASE, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "eos_token_id": 2,
        **theta(10000.0, partial_rotary_factor=0.5),
    },
    "phi3": {
        "model_type": "phi3", **BASE, "num_key_value_heads": 2, "sliding_window": 6, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        **theta(10000.0),
    },
    "phi3-longrope": {
        "model_type": "phi3", **BASE, "num_key_value_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "original_max_position_embeddings": 16, "rope_parameters": {**LONGROPE, "original_max_position_embeddings": 16},
    },
    "phi3-longrope-short": {
        "model_type": "phi3", **BASE, "hidden_size": 32, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "original_max_position_embeddings": 100, "tie_word_embeddings": True,
        "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 100},
    },
    "olmo2": {"model_type": "olmo2", **BASE, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 2, **theta(500.0)},
    "olmo2-biased-tied": {
        "model_type": "olmo2", **BASE, "attention_bias": True, "tie_word_embeddings": True, "pad_token_id": 0, "eos_token_id": 2, **theta(1e4),
    },
}  # fmt: skip


@functools.cache
def expected() -> dict[str, dict]:
    """By case: `config` as transformers writes it, `shapes` of the stored tensors, `greedy` tokens."""
    return json.loads((Path(__file__).parent / "expectations.json").read_text())


def tokens(vocab: int) -> np.ndarray:
    """The prompt, (B, T)."""
    return np.random.default_rng(7).integers(3, vocab, (B, T)).astype(np.int32)


def weights(name: str, shape: tuple[int, ...], centre: float = 1.0) -> np.ndarray:
    """A stored tensor's values: norms around `centre` (0 for those that multiply by 1 + w), matrices large enough that logits and attention
    are far from uniform."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    x = rng.standard_normal(shape)
    if "norm" in name or ".ln_" in name:
        x = centre + 0.2 * x if name.endswith("weight") else 0.1 * x
    elif len(shape) == 1:
        x = 0.2 * x
    else:
        x = x * (1.4 / np.sqrt(min(shape)))
    return x.astype(np.float32)


def tensors(case: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """All stored tensors of a case."""
    centre = 0.0 if "gemma" in CASES[case]["model_type"] else 1.0
    return {name: weights(name, tuple(shape), centre) for name, shape in shapes.items()}
