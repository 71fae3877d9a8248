"""The shapes that are measured: GPT-2's architecture at a size, a context, a batch and a vocabulary."""

import dataclasses
import difflib
import re

from research.core.errors import UserError

FORM = "LAYERSxWIDTHxHEADSxCONTEXTxBATCHxVOCABULARY"


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes in elements, `context` in tokens, `batch_size` in rows; a batch of 0 is the largest that every side can hold."""

    layers: int
    width: int
    heads: int
    context: int
    batch_size: int
    vocabulary: int

    @property
    def tokens(self) -> int:
        """Tokens in one step."""
        return self.batch_size * self.context

    def __str__(self) -> str:
        """`4 layers x 128 wide x 64 context x batch 12, vocabulary 65`, or `GPT-2 124M x ...` for the size of that name."""
        size = SIZES.get((self.layers, self.width, self.heads), f"{self.layers} layers x {self.width} wide")
        batch = f"batch {self.batch_size}" if self.batch_size else "the largest batch"
        return f"{size} x {self.context} context x {batch}, vocabulary {self.vocabulary}"


SIZES = {(12, 768, 12): "GPT-2 124M", (24, 1024, 16): "GPT-2 350M", (48, 1600, 25): "GPT-2 1.5B"}
NAMED = {
    "small": Shape(4, 128, 4, 64, 12, 65),
    "medium": Shape(6, 384, 6, 256, 8, 65),
    "gpt2": Shape(12, 768, 12, 256, 2, 50304),
    "gpt2-largest-batch": Shape(12, 768, 12, 1024, 0, 50304),
    "gpt2-medium": Shape(24, 1024, 16, 1024, 8, 50304),  # 350M
    "gpt2-xl": Shape(48, 1600, 25, 1024, 4, 50304),  # 1.5B
}
ON_CPU = ("small", "medium", "gpt2")
ON_ACCELERATOR = ("gpt2-largest-batch", "gpt2-medium", "gpt2-xl")


def parse(text: str, option: str = "--shapes") -> Shape:
    """The shape of a name, or of six numbers `4x128x4x64x12x65`. Raises UserError for anything else."""
    if text in NAMED:
        return NAMED[text]
    if not re.fullmatch(r"\d+(x\d+){5}", text):
        near = difflib.get_close_matches(text, NAMED, 1, 0.5)
        hint = (
            f"; did you mean {near[0]}?"
            if near
            else f"; expected one of {', '.join(NAMED)}, or {FORM} as in 4x128x4x64x12x65"
        )
        raise UserError(f"{option}: there is no shape {text!r}{hint}")
    shape = Shape(*map(int, text.split("x")))
    if min(shape.layers, shape.width, shape.heads, shape.context) < 1 or shape.vocabulary < 2:
        raise UserError(f"{option}: {text} has a size of 0, or a vocabulary below 2; expected {FORM}")
    if shape.width % shape.heads:
        raise UserError(f"{option}: {text} has {shape.heads} heads, which do not divide its width {shape.width}")
    return shape
