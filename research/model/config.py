"""What a transformer is: every choice an enumerated field, named as the papers name it and checked where it enters."""

import dataclasses
import math
from typing import Literal

from research.core.config import check_choices, require
from research.core.dtypes import DTypeName
from research.core.errors import UserError
from research.model.input_config import FeatureConfig, ImageConfig

Pattern = Literal["full", "sliding", "strided", "prefix", "bidirectional"]
FeedForward = Literal["dense", "moe"]
Positions = Literal["learned", "sinusoidal", "rotary", "alibi", "none"]
Norm = Literal["layer", "rms"]
NormPlacement = Literal["pre", "post", "sandwich", "branch-output"]
Activation = Literal[
    "relu", "gelu", "gelu-tanh", "quick-gelu", "silu", "relu2", "sigmoid", "swiglu", "geglu", "geglu-tanh"
]
Projection = Literal["query", "key", "value", "attention-output", "mlp-in", "mlp-gate", "mlp-out", "norm", "unembed"]
GATED = ("swiglu", "geglu", "geglu-tanh")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary positions (RoFormer, arXiv 2104.09864) and the published ways to stretch them.

    `fraction` of each head rotates. `half` pairs element i with i + half (GPT-NeoX, Llama as Hugging Face stores it),
    `interleaved` pairs 2i with 2i + 1 (RoFormer, GPT-J, GLM). Scalings: `linear` (position interpolation, arXiv 2306.15595), `ntk`
    (a larger base), `llama3` (Llama 3.1's bands), `yarn` (arXiv 2309.00071) and `longrope` (arXiv 2402.13753: one factor a rotated pair, the
    short ones up to `original_context` tokens and the long ones beyond), which two also scale the logits.
    """

    base: float = 10000.0  # of the angles: the longest wavelength is about 2 pi times it, in tokens
    fraction: float = 1.0  # of each head that rotates
    layout: Literal["half", "interleaved"] = "half"  # which elements rotate together: i and i + half, or 2i and 2i + 1
    sliding_base: float | None = None  # sliding layers: a base of their own, not scaled (Gemma 3); None: as the others
    # how rotations are stretched to a longer context
    scaling: Literal["none", "linear", "ntk", "llama3", "yarn", "longrope"] = "none"
    factor: float = 1.0  # by which they are stretched
    original_context: int = 8192  # llama3, yarn, longrope: tokens that the model was trained on before
    # llama3: wavelengths above original_context over this are stretched by the whole factor
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0  # llama3: wavelengths below original_context over this stay as they are
    beta_fast: float = 32.0  # yarn: pairs that turn more often than this within original_context stay as they are
    beta_slow: float = 1.0  # yarn: pairs that turn less often than this are stretched by the whole factor
    attention_factor: float | None = None  # yarn, longrope: on cos and sin; None: the papers' function of `factor`
    short_factors: tuple[float, ...] = ()  # longrope: of each rotated pair, up to original_context
    long_factors: tuple[float, ...] = ()  # longrope: of each rotated pair, beyond original_context

    def __post_init__(self):
        check_choices(self, "model.rope")
        require(
            self.sliding_base is None or self.sliding_base > 1,
            "model.rope.sliding_base",
            self.sliding_base,
            "a number above 1",
        )
        require(self.base > 1, "model.rope.base", self.base, "a number above 1")
        require(0 < self.fraction <= 1, "model.rope.fraction", self.fraction, "a fraction in (0, 1]")
        require(self.factor >= 1, "model.rope.factor", self.factor, "at least 1")
        low, high = self.low_frequency_factor, self.high_frequency_factor
        require(0 < low < high, "model.rope.high_frequency_factor", high, f"a number above low_frequency_factor {low}")
        slow, fast = self.beta_slow, self.beta_fast
        require(0 < slow < fast, "model.rope.beta_fast", fast, f"a number above beta_slow {slow}")
        require(self.original_context >= 1, "model.rope.original_context", self.original_context, "a number of tokens")
        attention = self.attention_factor
        require(attention is None or attention > 0, "model.rope.attention_factor", attention, "a number above 0")
        for name in ("short_factors", "long_factors"):
            factors = getattr(self, name)
            require(all(f > 0 for f in factors), f"model.rope.{name}", factors, "numbers above 0")


@dataclasses.dataclass(frozen=True)
class MoEConfig:
    """A mixture of experts in place of a feed-forward (Shazeer et al., arXiv 1701.06538; Switch, arXiv 2101.03961; Mixtral, arXiv 2401.04088).

    A token's gates are the softmax over all experts' logits, of which the `top_k` largest are kept, made to sum to 1 where `normalise`. With a
    `capacity_factor` an expert takes at most `capacity_factor x T x top_k / experts` (rounded up) tokens of each sequence, the first ones, and
    drops the others; None drops nothing. Shared experts are one dense feed-forward of `shared_width` beside the routed ones (arXiv 2401.06066),
    behind a sigmoid gate of its own where `shared_gate` (Qwen2-MoE).
    """

    experts: int = 8  # to choose from
    top_k: int = 2  # experts that a token goes to
    width: int | None = None  # of one expert; None: mlp_width
    normalise: bool = True  # the gates of those that are kept sum to 1
    # an expert takes so many times its even share of a sequence and drops the rest; None: drops nothing
    capacity_factor: float | None = None
    shared_width: int | None = None  # of a dense feed-forward beside the experts; None: there is none
    shared_gate: bool = False  # a sigmoid gate of its own for that one
    # how experts are computed: each on its own tokens, or all on all
    implementation: Literal["auto", "ragged", "dense"] = "auto"

    def __post_init__(self):
        check_choices(self, "model.moe")
        require(self.experts >= 1, "model.moe.experts", self.experts, "a whole number of at least 1")
        require(
            1 <= self.top_k <= self.experts,
            "model.moe.top_k",
            self.top_k,
            f"a number of experts from 1 to {self.experts}",
        )
        for name in ("width", "shared_width", "capacity_factor"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, f"model.moe.{name}", value, "a number above 0")
        require(
            not self.shared_gate or self.shared_width is not None,
            "model.moe.shared_gate",
            self.shared_gate,
            "false, or a shared_width beside it",
        )


@dataclasses.dataclass(frozen=True)
class Slot:
    """One position in the repeating pattern of layers."""

    pattern: Pattern
    feed_forward: FeedForward = "dense"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A transformer of one stack: what it reads, its layers, and what it says at the end.

    Sizes in elements, `context` and windows in tokens; None takes the usual default.
    """

    # what is read; features: the columns of a table
    inputs: Literal["tokens", "image", "features", "vectors"] = "tokens"
    image: ImageConfig = ImageConfig()
    features: FeatureConfig = FeatureConfig()
    vector_size: int = 1  # numbers in one of `vectors`
    # what comes out: logits over the vocabulary at every position, or `outputs` numbers
    head: Literal["vocabulary", "linear"] = "vocabulary"
    outputs: int | None = None  # of a linear head; None: what the task's data ask for
    # a linear head reads: every position, one that learns to stand for all, their mean, their weighted mean, the last
    pool: Literal["none", "cls", "mean", "attention", "last"] = "none"
    vocab_size: int | None = None  # None: taken from the tokeniser when a run starts
    context: int = 256  # the longest sequence trained on, and the number of learned positions
    width: int = 128  # of the residual stream
    # maximal update parameterisation: the width that initial values and learning rates are meant for; None: standard (docs/mup.md)
    base_width: int | None = None
    layers: int = 4  # blocks of attention and feed-forward
    heads: int = 4  # of queries
    kv_heads: int | None = None  # None: as `heads` (multi-head); 1: multi-query; between: grouped-query
    head_size: int | None = None  # None: width / heads
    mlp_width: int | None = None  # None: 4 x width
    patterns: tuple[Pattern, ...] = ("full",)  # repeated over the layers: ("sliding", "full") alternates
    feed_forward: tuple[FeedForward, ...] = (  # likewise repeated: ("dense", "moe") makes every second layer sparse
        "dense",
    )  # likewise repeated: ("dense", "moe") makes every second layer sparse
    moe: MoEConfig = MoEConfig()
    window: int = 128  # sliding and strided: how many tokens back, itself included
    stride: int = 16  # strided: also every stride-th token further back
    positions: Positions = "rotary"  # how a token is told where it is
    rope: RopeConfig = RopeConfig()
    norm: Norm = "rms"  # the kind of norm
    norm_scale: Literal["plain", "one-plus"] = "plain"  # one-plus multiplies by (1 + w), w starting at 0
    # before a branch; after it has joined the stream; before it and on what it adds; on what it adds
    norm_placement: NormPlacement = "pre"
    norm_eps: float = 1e-5  # added to the variance, or to the mean of squares
    embedding_norm: bool = False  # a norm between the embedding and the first layer
    # the stream is multiplied by it where a branch joins it: DeepNorm's alpha (arXiv 2203.00555)
    residual_scale: float = 1.0
    # a norm on queries and keys: on each head, or on all heads together
    qk_norm: Literal["none", "head", "whole"] = "none"
    residual: Literal["serial", "parallel", "parallel-shared"] = "serial"  # shared: one norm feeds both branches
    activation: Activation = "swiglu"  # the feed-forward's non-linearity; glu kinds have a gate
    bias: tuple[Projection, ...] = ()  # projections that have one
    tied: bool = True  # one table embeds and unembeds
    embedding_scale: Literal["none", "sqrt-width"] = "none"  # what embeddings are multiplied by
    attention_scale: float | None = None  # None: 1 / sqrt(head size)
    attention_soft_cap: float | None = None  # attention logits x become cap tanh(x / cap)
    logit_soft_cap: float | None = None  # likewise, of the logits over the vocabulary
    dropout: float | None = None  # None: absent from the program; a number is the default of the traced rate
    # how weights are drawn; zero: projections into the residual stream start at 0
    init: Literal["gpt2", "fan-in", "fan-in-zero", "deepnorm"] = "gpt2"
    dtype: DTypeName = "auto"  # of activations; auto: bfloat16 on accelerators, that of the parameters on a CPU
    # the implementation; auto: the fastest of this device that has the case
    attention: Literal["auto", "plain", "blocked", "cudnn", "splash"] = "auto"
    # a label: in whose published format the weights go out; None: the first that can hold them
    family: str | None = None
    unroll: int = 1  # how many repeats of the pattern each turn of the scan holds; at least `layers` leaves no loop
    # what the backward pass recomputes: nothing, all, all but products, all but attention
    remat: Literal["none", "full", "matmuls", "attention"] = "none"
    pipeline_rounds: int = 1  # over `stage`: how often rows pass through all stages; 1: GPipe, more: circular
    pipeline_microbatches: int | None = None  # over `stage`: parts of a pass; None: up to four for each stage

    def __post_init__(self):
        check_choices(self, "model")
        for name in ("context", "width", "layers", "heads", "window", "stride", "unroll", "pipeline_rounds"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "a whole number of at least 1")
        for name in (
            "vocab_size",
            "outputs",
            "vector_size",
            "base_width",
            "kv_heads",
            "head_size",
            "mlp_width",
            "attention_soft_cap",
            "logit_soft_cap",
            "pipeline_microbatches",
        ):
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
        require(
            bool(self.patterns),
            "model.patterns",
            self.patterns,
            "at least one of full, sliding, strided, prefix, bidirectional",
        )
        require(bool(self.feed_forward), "model.feed_forward", self.feed_forward, "at least one of dense, moe")
        require(self.residual_scale > 0, "model.residual_scale", self.residual_scale, "a number above 0")
        if self.head_size is None:
            require(
                self.width % self.heads == 0,
                "model.heads",
                self.heads,
                f"a divisor of width {self.width}, or set head_size",
            )
        require(self.heads % self.K == 0, "model.kv_heads", self.K, f"a divisor of heads {self.heads}")
        require(self.dropout is None or 0 <= self.dropout < 1, "model.dropout", self.dropout, "a rate in [0, 1)")
        self._check_ends()
        _ = self.base
        self._check_rotated()

    def _check_rotated(self) -> None:
        """Raises UserError where the part of a head that rotates does not go with its size."""
        if self.positions == "rotary":
            rotated = int(self.H * self.rope.fraction)
            require(
                rotated >= 2 and rotated % 2 == 0,
                "model.rope.fraction",
                self.rope.fraction,
                f"an even part of head size {self.H}",
            )
            for name in ("short_factors", "long_factors") if self.rope.scaling == "longrope" else ():
                factors = getattr(self.rope, name)
                require(
                    len(factors) == rotated // 2,
                    f"model.rope.{name}",
                    factors,
                    f"{rotated // 2} numbers, one a rotated pair",
                )

    def _check_ends(self) -> None:
        """Raises UserError where what is read or said at the end is not whole."""
        pooled = self.pool == "none" or self.head == "linear"
        require(pooled, "model.pool", self.pool, "none, or a linear head to read it")
        columns = self.features.numbers + len(self.features.categories)
        require(self.inputs != "features" or columns > 0, "model.features", self.features, "at least one column")

    @property
    def V(self) -> int:
        """The vocabulary, once known. Raises UserError before."""
        if self.vocab_size is None:
            raise UserError("model.vocab_size is not set; give it, or let the run take it from its tokeniser")
        return self.vocab_size

    @property
    def is_bidirectional(self) -> bool:
        """Whether positions see what comes after them: such a model continues nothing."""
        return "bidirectional" in self.patterns

    @property
    def length(self) -> int:
        """Positions of the stack: those of a picture's patches or a table's columns, else `context`; and one for a class token."""
        columns = self.features.numbers + len(self.features.categories)
        return {"image": self.image.patches, "features": columns}.get(self.inputs, self.context) + (self.pool == "cls")

    @property
    def fills_blanks(self) -> bool:
        """Whether the model reads a context in both directions and writes what is missing there (model/blanks.py)."""
        return "prefix" in self.patterns

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
    def base(self) -> "ModelConfig":
        """The model of `base_width` whose hyperparameters this one is trained with, in its proportions: itself without one."""
        if self.base_width in (None, self.width):
            return self
        try:
            return dataclasses.replace(self, base_width=None).in_proportion(self.base_width)
        except UserError as error:
            raise UserError(
                f"model.base_width {self.base_width} does not go with width {self.width}: {error}"
            ) from error

    def in_proportion(self, width: int) -> "ModelConfig":
        """This model at another width, with every size that is given beside the width. With a `head_size` the heads grow, else their size does;
        key and value heads that are given grow where that leaves a whole number, and stay as many otherwise. Raises UserError for a size that
        is not whole then."""
        sizes, widths = (
            {"mlp_width": self.mlp_width},
            {name: getattr(self.moe, name) for name in ("width", "shared_width")},
        )
        if self.head_size is not None:
            sizes |= {"heads": self.heads, "kv_heads": self.kv_heads}
            if self.kv_heads is not None and self.kv_heads * width % self.width:
                del sizes["kv_heads"]

        def scaled(where: str, size: int) -> int:
            whole = size * width % self.width == 0
            require(whole, where, size, f"a size that is whole at {width} of {self.width}")
            return size * width // self.width

        given = {name: scaled(f"model.{name}", size) for name, size in sizes.items() if size is not None}
        moe = {name: scaled(f"model.moe.{name}", size) for name, size in widths.items() if size is not None}
        return dataclasses.replace(self, width=width, moe=dataclasses.replace(self.moe, **moe), **given)

    @property
    def logit_scale(self) -> float:
        """What logits are multiplied by: base_width / width (arXiv 2203.03466, table 8, which lets tied embeddings be)."""
        return 1.0 if self.base_width is None else self.base_width / self.width

    @property
    def query_scale(self) -> float:
        """What attention's logits are multiplied by: what is given, or the base's 1 / sqrt(head size), falling as 1 / head size from there."""
        if self.attention_scale is not None:
            return self.attention_scale
        return self.H**-0.5 * (self.base.H / self.H) ** 0.5

    @property
    def segments(self) -> tuple[tuple[tuple[Slot, ...], int], ...]:
        """The layers as (slots, repeats): whole repeats of the pattern, then what remains as a segment of one repeat.

        7 layers of a 6-pattern are one repeat of 6 slots and one repeat of 1 slot.
        """
        period = min(math.lcm(len(self.patterns), len(self.feed_forward)), self.layers)
        slots = tuple(
            Slot(self.patterns[i % len(self.patterns)], self.feed_forward[i % len(self.feed_forward)])
            for i in range(period)
        )
        repeats, rest = divmod(self.layers, period)
        parts = ((slots, repeats), (slots[:rest], 1))
        return tuple((part, n) for part, n in parts if n and part)
