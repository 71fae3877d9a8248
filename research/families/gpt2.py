"""GPT-2 ("Language Models are Unsupervised Multitask Learners", Radford et al. 2019, table 2; counts as released)."""

from research.model.config import ModelConfig

# name -> layers, width, heads, exact parameters
SIZES = {
    "gpt2": (12, 768, 12, 124_439_808),
    "gpt2-medium": (24, 1024, 16, 354_823_168),
    "gpt2-large": (36, 1280, 20, 774_030_080),
    "gpt2-xl": (48, 1600, 25, 1_557_611_200),
}


def config(
    layers: int, width: int, heads: int, vocab_size: int | None = 50257, context: int = 1024, **changes
) -> ModelConfig:
    """GPT-2's architecture at any size: learned positions, pre-norm layer norm, tanh gelu, biases everywhere but the tied head."""
    bias = ("query", "key", "value", "attention-output", "mlp-in", "mlp-out", "norm")
    return ModelConfig(
        vocab_size=vocab_size, context=context, width=width, layers=layers, heads=heads, positions="learned", norm="layer",
        activation="gelu-tanh", bias=bias, tied=True, init="gpt2", **changes,
    )  # fmt: skip


PRESETS = {name: config(layers, width, heads) for name, (layers, width, heads, _) in SIZES.items()}
