"""Qwen3, mixture of experts (Yang et al. 2025, arXiv 2505.09388, table 2): 128 experts, 8 of them a token, none shared."""

from collections.abc import Mapping
from typing import Any

from research.families import llama
from research.families.family import Family
from research.families.fields import Fields, decoder_fields, experts, shortest
from research.families.qwen2 import sliding_fields
from research.families.qwen3 import kwargs_from_hf, preset
from research.families.weights import Row
from research.model.config import FeedForward, ModelConfig, MoEConfig


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """From transformers' Qwen3MoeConfig, as 4 and 5 write it."""
    f = Fields(values, "qwen3_moe")
    kwargs = kwargs_from_hf(f, kv_heads=4, head_size=None)
    if f.bool("use_sliding_window", False):  # here every layer slides, whatever max_window_layers says
        kwargs |= {"patterns": ("sliding",), "window": f.int("sliding_window", 4096)}
    moe = MoEConfig(
        **experts(f, count=128, top_k=8), width=f.int("moe_intermediate_size", 768), normalise=f.bool("norm_topk_prob", False)
    )  # fmt: skip
    dense, every = f.wholes("mlp_only_layers"), f.int("decoder_sparse_step", 1)
    kinds: tuple[FeedForward, ...] = tuple(
        "moe" if i not in dense and (i + 1) % every == 0 else "dense" for i in range(kwargs["layers"])
    )
    return ModelConfig(**kwargs, feed_forward=shortest(kinds), moe=moe)


def config_to_hf(c: ModelConfig) -> dict[str, Any]:
    """To transformers' Qwen3MoeConfig."""
    kinds = [slot.feed_forward for slots, n in c.segments for slot in slots * n]
    return {
        **decoder_fields(c), "hidden_act": llama.gated_activation(c), "attention_bias": "query" in c.bias, **sliding_fields(c),
        "num_experts": c.moe.experts, "num_experts_per_tok": c.moe.top_k, "moe_intermediate_size": c.moe.width or c.F,
        "norm_topk_prob": c.moe.normalise, "decoder_sparse_step": 1, "mlp_only_layers": [i for i, kind in enumerate(kinds) if kind == "dense"],
    }  # fmt: skip


EXPERTS = "model.layers.{layer}.mlp.experts.{expert}"
WEIGHTS = (
    *llama.WEIGHTS, *llama.HEAD_NORMS,
    Row("model.layers.{layer}.mlp.gate.weight", "E D", "mlp/router"),
    Row(f"{EXPERTS}.gate_proj.weight", "F D", "experts/gate"),
    Row(f"{EXPERTS}.up_proj.weight", "F D", "experts/in"),
    Row(f"{EXPERTS}.down_proj.weight", "D F", "experts/out"),
)  # fmt: skip


def _sparse(width: int) -> dict[str, Any]:
    return {"feed_forward": ("moe",), "moe": MoEConfig(experts=128, top_k=8, width=width), "family": "qwen3-moe"}


PRESETS = {
    "qwen3-30b-a3b": preset(48, 2048, 32, 4, 6144, **_sparse(768)),
    "qwen3-235b-a22b": preset(94, 4096, 64, 4, 12288, **_sparse(1536)),
}
PARAMETERS = {"qwen3-30b-a3b": 30_532_122_624, "qwen3-235b-a22b": 235_093_634_560}
FAMILY = Family(
    "qwen3-moe", "Qwen3-MoE", "128 experts, 8 a token", PRESETS, PARAMETERS,
    ("qwen3_moe",), "Qwen3MoeForCausalLM", WEIGHTS, config_from_hf, config_to_hf,
)  # fmt: skip
