"""Floor 3: text from a model: prefill and decode, logits filters, beams, speculation, constraints, and what `research sample` does.

`generate(model, prompt, max_tokens=50)` returns text, `continuations(model, prompts, Sampling(...))` all there is to know.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from research.sample.engine import Generation, continuations, generate
    from research.sample.options import Sampling

__all__ = ["Generation", "Sampling", "continuations", "generate"]


def __getattr__(name: str) -> Any:
    """What needs heavy imports is imported when first used."""
    if name not in __all__:
        raise AttributeError(f"module 'research.sample' has no attribute {name!r}")
    import importlib

    return getattr(
        importlib.import_module("research.sample.options" if name == "Sampling" else "research.sample.engine"), name
    )
