"""Floor 3: text from a model: logits filters, prefill and decode, and what `research sample` does."""
