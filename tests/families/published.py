"""What the published config.json of real models says (of each: the fields that decide the architecture), and which preset it is.

From the models' repositories on the Hugging Face hub, under the names given.
"""
# ruff: noqa: E501 (a table)

LLAMA3_SCALING = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def llama_like(
    kind: str, layers: int, width: int, heads: int, kv_heads: int, inner: int, vocab: int, context: int, **more
) -> dict:
    """Fields that most of them have, under Llama's names."""
    return {
        "model_type": kind, "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "intermediate_size": inner, "vocab_size": vocab, "max_position_embeddings": context, **more,
    }  # fmt: skip


def qwen3(layers: int, width: int, heads: int, inner: int, tied: bool) -> dict:
    return llama_like(
        "qwen3", layers, width, heads, 8, inner, 151936, 40960, head_dim=128, rope_theta=1000000, rms_norm_eps=1e-06, tie_word_embeddings=tied,
        hidden_act="silu", attention_bias=False, use_sliding_window=False, sliding_window=None, max_window_layers=layers, rope_scaling=None,
    )  # fmt: skip


SILU = {"hidden_act": "silu", "tie_word_embeddings": False}
PUBLISHED = {
    "gpt2": {"model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05, "n_ctx": 1024, "n_embd": 768, "n_head": 12,
             "n_layer": 12, "n_positions": 1024, "vocab_size": 50257},  # openai-community/gpt2
    "gpt2-xl": {"model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05, "n_ctx": 1024, "n_embd": 1600, "n_head": 25,
                "n_layer": 48, "n_positions": 1024, "vocab_size": 50257},  # openai-community/gpt2-xl
    "pythia-160m": {"model_type": "gpt_neox", "hidden_act": "gelu", "hidden_size": 768, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
                    "max_position_embeddings": 2048, "num_attention_heads": 12, "num_hidden_layers": 12, "rotary_emb_base": 10000, "rotary_pct": 0.25,
                    "tie_word_embeddings": False, "use_parallel_residual": True, "vocab_size": 50304},  # EleutherAI/pythia-160m
    "llama2-7b": llama_like("llama", 32, 4096, 32, 32, 11008, 32000, 4096, rms_norm_eps=1e-05, rope_scaling=None, **SILU),  # meta-llama/Llama-2-7b-hf
    "llama2-70b": llama_like("llama", 80, 8192, 64, 8, 28672, 32000, 4096, rms_norm_eps=1e-05, rope_scaling=None, **SILU),
    "llama3-8b": llama_like("llama", 32, 4096, 32, 8, 14336, 128256, 8192, rms_norm_eps=1e-05, rope_theta=500000.0, attention_bias=False, **SILU),
    "llama3.1-8b": llama_like("llama", 32, 4096, 32, 8, 14336, 128256, 131072, rms_norm_eps=1e-05, rope_theta=500000.0, mlp_bias=False,
                              rope_scaling={"factor": 8.0, **LLAMA3_SCALING}, **SILU),  # meta-llama/Llama-3.1-8B
    "llama3.2-1b": llama_like("llama", 16, 2048, 32, 8, 8192, 128256, 131072, rms_norm_eps=1e-05, rope_theta=500000.0, head_dim=64,
                              rope_scaling={"factor": 32.0, **LLAMA3_SCALING}, hidden_act="silu", tie_word_embeddings=True),
    "mistral-7b-v0.1": llama_like("mistral", 32, 4096, 32, 8, 14336, 32000, 32768, rms_norm_eps=1e-05, rope_theta=10000.0, sliding_window=4096, **SILU),
    "mistral-7b-v0.3": llama_like("mistral", 32, 4096, 32, 8, 14336, 32768, 32768, rms_norm_eps=1e-05, rope_theta=1000000.0, sliding_window=None, **SILU),
    "mixtral-8x7b": llama_like("mixtral", 32, 4096, 32, 8, 14336, 32000, 32768, rms_norm_eps=1e-05, rope_theta=1000000.0, sliding_window=None,
                               num_local_experts=8, num_experts_per_tok=2, router_aux_loss_coef=0.02, **SILU),  # mistralai/Mixtral-8x7B-v0.1
    "qwen2-0.5b": llama_like("qwen2", 24, 896, 14, 2, 4864, 151936, 131072, rms_norm_eps=1e-06, rope_theta=1000000.0, hidden_act="silu",
                             tie_word_embeddings=True, use_sliding_window=False, sliding_window=131072, max_window_layers=24),  # Qwen/Qwen2-0.5B
    "qwen2-7b": llama_like("qwen2", 28, 3584, 28, 4, 18944, 152064, 131072, rms_norm_eps=1e-06, rope_theta=1000000.0, use_sliding_window=False,
                           sliding_window=131072, max_window_layers=28, **SILU),  # Qwen/Qwen2-7B
    "qwen3-0.6b": qwen3(28, 1024, 16, 3072, True),
    "qwen3-8b": qwen3(36, 4096, 32, 12288, False),
    "qwen3-30b-a3b": {**qwen3(48, 2048, 32, 6144, False), "model_type": "qwen3_moe", "num_key_value_heads": 4, "num_experts": 128,
                      "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True, "decoder_sparse_step": 1,
                      "mlp_only_layers": []},  # Qwen/Qwen3-30B-A3B
    "gemma-2b": llama_like("gemma", 18, 2048, 8, 1, 16384, 256000, 8192, head_dim=256, hidden_act="gelu", rms_norm_eps=1e-06, rope_theta=10000.0),
    "gemma-7b": llama_like("gemma", 28, 3072, 16, 16, 24576, 256000, 8192, head_dim=256, hidden_act="gelu", rms_norm_eps=1e-06, rope_theta=10000.0),
    "gemma2-2b": llama_like("gemma2", 26, 2304, 8, 4, 9216, 256000, 8192, head_dim=256, hidden_act="gelu_pytorch_tanh",
                            hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-06, rope_theta=10000.0, query_pre_attn_scalar=256,
                            sliding_window=4096, attn_logit_softcapping=50.0, final_logit_softcapping=30.0),  # google/gemma-2-2b
    "gemma2-27b": llama_like("gemma2", 46, 4608, 32, 16, 36864, 256000, 8192, head_dim=128, hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-06,
                             rope_theta=10000.0, query_pre_attn_scalar=144, sliding_window=4096, attn_logit_softcapping=50.0,
                             final_logit_softcapping=30.0),  # google/gemma-2-27b
    "gemma3-1b": llama_like("gemma3_text", 26, 1152, 4, 1, 6912, 262144, 32768, head_dim=256, hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-06,
                            rope_theta=1000000, rope_local_base_freq=10000, query_pre_attn_scalar=256, sliding_window=512, sliding_window_pattern=6,
                            attn_logit_softcapping=None, final_logit_softcapping=None, rope_scaling=None),  # google/gemma-3-1b-pt
    "chatglm2-6b": {"model_type": "chatglm", "_name_or_path": "THUDM/chatglm2-6b", "add_bias_linear": False, "add_qkv_bias": True,
                    "apply_query_key_layer_scaling": True, "apply_residual_connection_post_layernorm": False, "ffn_hidden_size": 13696,
                    "hidden_size": 4096, "kv_channels": 128, "layernorm_epsilon": 1e-05, "multi_query_attention": True, "multi_query_group_num": 2,
                    "num_attention_heads": 32, "num_layers": 28, "original_rope": True, "padded_vocab_size": 65024, "post_layer_norm": True,
                    "rmsnorm": True, "seq_length": 32768, "use_cache": True},  # THUDM/chatglm2-6b
    "chatglm3-6b": {"model_type": "chatglm", "_name_or_path": "THUDM/chatglm3-6b", "add_bias_linear": False, "add_qkv_bias": True,
                    "apply_residual_connection_post_layernorm": False, "ffn_hidden_size": 13696, "hidden_size": 4096, "kv_channels": 128,
                    "layernorm_epsilon": 1e-05, "multi_query_attention": True, "multi_query_group_num": 2, "num_attention_heads": 32, "num_layers": 28,
                    "original_rope": True, "padded_vocab_size": 65024, "post_layer_norm": True, "rmsnorm": True, "seq_length": 8192},
    "glm-4-9b": llama_like("glm", 40, 4096, 32, 2, 13696, 151552, 8192, head_dim=128, partial_rotary_factor=0.5, rms_norm_eps=1.5625e-07,
                           attention_bias=True, rope_theta=10000.0, **SILU),  # zai-org/glm-4-9b-hf
    "glm-4-9b-0414": llama_like("glm4", 40, 4096, 32, 2, 13696, 151552, 32768, head_dim=128, partial_rotary_factor=0.5, rms_norm_eps=1e-05,
                                attention_bias=True, rope_theta=10000.0, **SILU),  # zai-org/GLM-4-9B-0414
    "phi3-mini-4k": llama_like("phi3", 32, 3072, 32, 32, 8192, 32064, 4096, original_max_position_embeddings=4096, rms_norm_eps=1e-05,
                               rope_theta=10000.0, rope_scaling=None, sliding_window=2047, attention_bias=False, **SILU),
    "phi4": llama_like("phi3", 40, 5120, 40, 10, 17920, 100352, 16384, original_max_position_embeddings=16384, rms_norm_eps=1e-05, rope_theta=250000,
                       rope_scaling=None, sliding_window=None, attention_bias=False, partial_rotary_factor=1.0, **SILU),  # microsoft/phi-4
    "olmo2-7b": llama_like("olmo2", 32, 4096, 32, 32, 11008, 100352, 4096, rms_norm_eps=1e-06, rope_theta=500000, attention_bias=False, **SILU),
}  # fmt: skip
