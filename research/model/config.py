"""What a transformer is: every choice an enumerated field, named as the papers name it and checked where it enters."""

import dataclasses
from typing import Literal, get_origin, get_type_hints

from research.core.config import convert
from research.core.dtypes import DTypeName
from research.core.errors import UserError

Pattern = Literal["full", "sliding", "strided"]
Positions = Literal["learned", "sinusoidal", "rotary", "alibi", "none"]
Norm = Literal["layer", "rms"]
NormPlacement = Literal["pre", "post", "sandwich", "branch-output"]
Activation = Literal["relu", "gelu", "gelu-tanh", "relu2", "sigmoid", "swiglu", "geglu", "geglu-tanh"]
Projection = Literal["query", "key", "value", "attention-output", "mlp-in", "mlp-gate", "mlp-out", "norm", "unembed"]
GATED = ("swiglu", "geglu", "geglu-tanh")


def check_choices(config, where: str) -> None:
    """Raises UserError when a field holds anything but what its annotation allows: an unknown choice, 1.5 for an int, a list for a tuple."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(hint) is tuple:
            require(isinstance(value, tuple), f"{where}.{name}", value, "a tuple")
        if not dataclasses.is_dataclass(hint):
            convert(value, hint, f"{where}.{name}")


def require(ok: bool, where: str, value, expected: str) -> None:
    """Raises UserError naming the field, what it holds and what it should."""
    if not ok:
        raise UserError(f"{where} is {value!r}; expected {expected}")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary positions (RoFormer, arXiv 2104.09864) and the published ways to stretch them.

    `fraction` of each head rotates. `half` pairs element i with i + half (GPT-NeoX, Llama as Hugging Face stores it),
    `interleaved` pairs 2i with 2i + 1 (RoFormer, GPT-J, GLM). Scalings: `linear` (position interpolation, arXiv 2306.15595), `ntk`
    (a larger base), `llama3` (Llama 3.1's bands), `yarn` (arXiv 2309.00071, which also scales the logits).
    """

    base: float = 10000.0
    fraction: float = 1.0
    layout: Literal["half", "interleaved"] = "half"
    scaling: Literal["none", "linear", "ntk", "llama3", "yarn"] = "none"
    factor: float = 1.0
    original_context: int = 8192
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def __post_init__(self):
        check_choices(self, "model.rope")
        require(self.base > 1, "model.rope.base", self.base, "a number above 1")
        require(0 < self.fraction <= 1, "model.rope.fraction", self.fraction, "a fraction in (0, 1]")
        require(self.factor >= 1, "model.rope.factor", self.factor, "at least 1")
        low, high = self.low_frequency_factor, self.high_frequency_factor
        require(0 < low < high, "model.rope.high_frequency_factor", high, f"a number above low_frequency_factor {low}")
        slow, fast = self.beta_slow, self.beta_fast
        require(0 < slow < fast, "model.rope.beta_fast", fast, f"a number above beta_slow {slow}")
        require(self.original_context >= 1, "model.rope.original_context", self.original_context, "a number of tokens")


@dataclasses.dataclass(frozen=True)
class Slot:
    """One position in the repeating pattern of layers."""

    pattern: Pattern


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. Sizes in elements, `context` and windows in tokens; None takes the usual default."""

    vocab_size: int | None = None  # None: taken from the tokeniser when a run starts
    context: int = 256  # the longest sequence trained on, and the number of learned positions
    width: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int | None = None  # None: as `heads` (multi-head); 1: multi-query; between: grouped-query
    head_size: int | None = None  # None: width / heads
    mlp_width: int | None = None  # None: 4 x width
    patterns: tuple[Pattern, ...] = ("full",)  # repeated over the layers: ("sliding", "full") alternates
    window: int = 128  # sliding and strided: how many tokens back, itself included
    stride: int = 16  # strided: also every stride-th token further back
    positions: Positions = "rotary"
    rope: RopeConfig = RopeConfig()
    norm: Norm = "rms"
    norm_scale: Literal["plain", "one-plus"] = "plain"  # one-plus multiplies by (1 + w), w starting at 0
    norm_placement: NormPlacement = "pre"
    norm_eps: float = 1e-5
    qk_norm: Literal["none", "head", "whole"] = "none"
    residual: Literal["serial", "parallel", "parallel-shared"] = "serial"  # shared: one norm feeds both branches
    activation: Activation = "swiglu"
    bias: tuple[Projection, ...] = ()
    tied: bool = True  # one table embeds and unembeds
    embedding_scale: Literal["none", "sqrt-width"] = "none"
    attention_scale: float | None = None  # None: 1 / sqrt(head size)
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    dropout: float | None = None  # None: absent from the program; a number is the default of the traced rate
    init: Literal["gpt2", "fan-in", "fan-in-zero"] = "gpt2"  # zero: projections into the residual stream start at 0
    dtype: DTypeName = "auto"
    attention: Literal["auto", "plain", "blocked", "cudnn"] = "auto"
    unroll: int = 1  # how many repeats of the pattern each turn of the scan holds; at least `layers` leaves no loop
    remat: Literal["none", "full", "matmuls", "attention"] = (
        "none"  # what the backward pass recomputes: nothing, all, ...
    )

    def __post_init__(self):
        check_choices(self, "model")
        for name in ("context", "width", "layers", "heads", "window", "stride", "unroll"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "a whole number of at least 1")
        for name in ("vocab_size", "kv_heads", "head_size", "mlp_width", "attention_soft_cap", "logit_soft_cap"):
            value = getattr(self, name)
            require(value is None or value > 0, f"model.{name}", value, "a number above 0")
        vocabulary = self.vocab_size
        require(
            vocabulary is None or vocabulary <= 2**31,
            "model.vocab_size",
            vocabulary,
            "at most 2^31: token ids are int32",
        )
        require(self.norm_eps >= 0, "model.norm_eps", self.norm_eps, "a number of at least 0")
        require(bool(self.patterns), "model.patterns", self.patterns, "at least one of full, sliding, strided")
        if self.head_size is None:
            require(
                self.width % self.heads == 0,
                "model.heads",
                self.heads,
                f"a divisor of width {self.width}, or set head_size",
            )
        require(self.heads % self.K == 0, "model.kv_heads", self.K, f"a divisor of heads {self.heads}")
        require(self.dropout is None or 0 <= self.dropout < 1, "model.dropout", self.dropout, "a rate in [0, 1)")
        if self.positions == "rotary":
            rotated = int(self.H * self.rope.fraction)
            require(
                rotated >= 2 and rotated % 2 == 0,
                "model.rope.fraction",
                self.rope.fraction,
                f"an even part of head size {self.H}",
            )

    @property
    def V(self) -> int:
        """The vocabulary, once known. Raises UserError before."""
        if self.vocab_size is None:
            raise UserError("model.vocab_size is not set; give it, or let the run take it from its tokeniser")
        return self.vocab_size

    @property
    def K(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def H(self) -> int:
        return self.width // self.heads if self.head_size is None else self.head_size

    @property
    def F(self) -> int:
        return 4 * self.width if self.mlp_width is None else self.mlp_width

    @property
    def segments(self) -> tuple[tuple[tuple[Slot, ...], int], ...]:
        """The layers as (slots, repeats): whole repeats of the pattern, then what remains as a segment of one repeat.

        7 layers of a 6-pattern are one repeat of 6 slots and one repeat of 1 slot.
        """
        slots = tuple(Slot(pattern) for pattern in self.patterns)
        repeats, rest = divmod(self.layers, len(slots))
        parts = ((slots, repeats), (slots[:rest], 1))
        return tuple((part, n) for part, n in parts if n and part)
