"""The arithmetic of a model, exactly from its config: what a token costs, and so what fraction of the peak a run reaches."""

from research.core import params as P
from research.model import transformer
from research.model.config import ModelConfig, Slot


def keys_per_query(slot: Slot, config: ModelConfig, T: int) -> float:
    """How many keys a query of a length-T sequence is charged for: T for full attention, as published figures count it (no credit for
    causality), at most the window for sliding, the window and every stride-th key before it for strided."""
    if slot.pattern == "full":
        return T
    near = min(T, config.window)
    return near if slot.pattern == "sliding" else near + (T - near) / config.stride


def forward_flops_per_token(config: ModelConfig, T: int) -> float:
    """2 x the weights of every matrix product (the unembedding too, lookups not) + 4 x heads x head size x keys per query and layer."""
    specs = transformer.specs(config)
    matrices = sum(p.size for path, p in P.flatten(specs).items() if p.inputs)
    if config.tied:
        matrices += config.V * config.width
    slots = [slot for slots, repeats in config.segments for slot in slots * repeats]
    attention = sum(4 * config.heads * config.H * keys_per_query(slot, config, T) for slot in slots)
    return 2 * matrices + attention


def train_flops_per_token(config: ModelConfig, T: int) -> float:
    """Forward and backward: the backward pass has two products for each of the forward's (PaLM, arXiv 2204.02311, appendix B).
    Recomputation under remat is not counted: it is not work the model asks for."""
    return 3 * forward_flops_per_token(config, T)
