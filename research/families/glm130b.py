"""GLM-130B (Zeng et al. 2023, arXiv 2210.02414, section 2 and table 11; the sizes also in the authors' configs/model_glm_130b.sh).

70 layers of width 12288 with 96 heads, rotary positions, GeGLU of width 32768 and 150,528 tokens. DeepNorm: after every branch
`LayerNorm(alpha x + branch(x))` with alpha = (2 x layers)^(1/2), on a stream that starts from normed embeddings. It reads a context in both
directions and generates from left to right (pattern `prefix`), and learns by filling blanks: see tasks/infill.py. Its weights were
published on request alone and in no format that transformers reads, so there is a preset and no way in.
"""

from research.families.family import Family
from research.model.config import ModelConfig, Projection

BIAS: tuple[Projection, ...] = ("query", "key", "value", "attention-output", "mlp-in", "mlp-gate", "mlp-out", "norm")


def config(
    layers: int,
    width: int,
    heads: int,
    mlp_width: int,
    vocab_size: int | None = 150_528,
    context: int = 2048,
    **changes,
) -> ModelConfig:
    """GLM-130B's architecture at any size."""
    return ModelConfig(**{
        "vocab_size": vocab_size, "context": context, "width": width, "layers": layers, "heads": heads, "mlp_width": mlp_width,
        "patterns": ("prefix",), "positions": "rotary", "norm": "layer", "norm_placement": "post", "residual_scale": (2 * layers) ** 0.5,
        "embedding_norm": True, "activation": "geglu", "bias": BIAS, "tied": True, "init": "deepnorm", "family": "glm-130b", **changes,
    })  # fmt: skip


PRESETS = {"glm-130b": config(70, 12288, 96, 32768)}
FAMILY = Family("glm-130b", "GLM-130B", "DeepNorm, GeGLU, prefix mask", PRESETS, {"glm-130b": 128_697_794_560})
