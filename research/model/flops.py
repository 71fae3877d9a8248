"""The arithmetic of a model, exactly from its config: what a token costs, and so what fraction of the peak a run reaches."""

from research.core import params as P
from research.model import transformer
from research.model.config import ModelConfig, Slot


def keys_per_query(slot: Slot, config: ModelConfig, T: int) -> float:
    """How many keys a query of a length-T sequence is charged for: T for full, bidirectional and prefix attention, as published figures count it (no
    credit for causality), at most the window for sliding, the window and every stride-th key before it for strided."""
    if slot.pattern in ("full", "prefix", "bidirectional"):
        return T
    near = min(T, config.window)
    return near if slot.pattern == "sliding" else near + (T - near) / config.stride


def active_params(config: ModelConfig) -> int:
    """The parameters that one token meets: of a mixture's experts `top_k`, everything else whole (router and shared experts too)."""
    return sum(_active(p, config) for p in P.flatten(transformer.specs(config)).values())


def _active(p: P.Param, config: ModelConfig) -> int:
    experts = "experts" in p.axes[: p.stacked]
    return p.size // config.moe.experts * config.moe.top_k if experts else p.size


def forward_flops_per_token(config: ModelConfig, T: int) -> float:
    """2 x the weights of every matrix product that a token meets (the unembedding too, lookups not; of a mixture's experts `top_k`)
    + 4 x heads x head size x keys per query and layer."""
    matrices = sum(_active(p, config) for p in P.flatten(transformer.specs(config)).values() if p.inputs)
    if config.tied and config.head == "vocabulary":
        matrices += config.V * config.width
    slots = [slot for slots, repeats in config.segments for slot in slots * repeats]
    attention = sum(4 * config.heads * config.H * keys_per_query(slot, config, T) for slot in slots)
    return 2 * matrices + attention


def train_flops_per_token(config: ModelConfig, T: int) -> float:
    """Forward and backward: the backward pass has two products for each of the forward's (PaLM, arXiv 2204.02311, appendix B).
    Recomputation under remat is not counted: it is not work the model asks for."""
    return 3 * forward_flops_per_token(config, T)
