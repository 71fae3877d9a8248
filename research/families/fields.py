"""Reading a published `config.json`: every field by its name and type, and an error that names the field where we lack what it asks for."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from research.core.errors import UserError
from research.model.config import Activation, ModelConfig, Pattern, RopeConfig

T = TypeVar("T")

GATED: dict[str, Activation] = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu-tanh",
    "gelu_new": "geglu-tanh",
}
PLAIN: dict[str, Activation] = {
    "gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh", "gelu_fast": "gelu-tanh", "gelu": "gelu", "gelu_python": "gelu", "relu": "relu",
    "relu2": "relu2", "sigmoid": "sigmoid",
}  # fmt: skip
MOST, MOST_LAYERS = 1 << 31, 10_000
PATTERNS: dict[str, Pattern] = {"full_attention": "full", "sliding_attention": "sliding"}


class Fields:
    """A config's fields, read by type. A field that is absent or null takes the default; one without a default must be there."""

    def __init__(self, values: Mapping[str, Any], family: str):
        self.values, self.family = values, family

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def wrong(self, name: str, expected: str) -> UserError:
        """The error of a field that cannot be used."""
        given = f"is {self.values[name]!r}" if name in self.values else "is missing"
        return UserError(f"config.json of a {self.family} model: {name} {given}; expected {expected}")

    def _get(self, name: str, default: Any, kinds: tuple[type, ...], words: str) -> Any:
        value = self.values.get(name)
        if value is None:
            if default is None:
                raise self.wrong(name, words)
            return default
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.wrong(name, words)
        return value

    def divisor(self, name: str, of: str, whole: int, default: int) -> int:
        """A whole number that divides that of the field `of`, which is `whole`."""
        value = self.int(name, default)
        if whole % value:
            raise self.wrong(name, f"a divisor of {of} {whole}")
        return value

    def int(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number; of layers at most MOST_LAYERS."""
        most = MOST_LAYERS if "layer" in name else MOST
        words = f"a whole number above {least - 1}"
        value = self._get(name, default, (int,), words)
        if not least <= value <= most:
            raise self.wrong(name, words if value < least else f"at most {most}")
        return value

    def wholes(self, name: str) -> list:
        """A list of whole numbers, empty where there is none."""
        value = self.values.get(name) or []
        if not isinstance(value, list) or any(type(one) is not int for one in value):
            raise self.wrong(name, "a list of whole numbers")
        return value

    def positive(self, name: str, default: float | None = None) -> float:
        value = self.float(name, default)
        if value <= 0:
            raise self.wrong(name, "a number above 0")
        return value

    def float(self, name: str, default: float | None = None) -> float:
        value = self._get(name, default, (int, float), "a number")
        if not -1e300 < value < 1e300:
            raise self.wrong(name, "a number within the range of floats")
        return float(value)

    def bool(self, name: str, default: bool) -> bool:
        return self._get(name, default, (bool,), "true or false")

    def choice(self, name: str, choices: Mapping[str, T], default: str) -> T:
        """What the field's text stands for here."""
        value = self._get(name, default, (str,), f"one of {', '.join(choices)}")
        if value not in choices:
            raise self.wrong(name, f"one of {', '.join(choices)}: this model has no other")
        return choices[value]

    def only(self, **expected: Any) -> None:
        """Raises UserError for a field that is there and is not what is expected: a feature that the transformer here lacks."""
        for name, value in expected.items():
            if self.has(name) and self.values[name] != value:
                raise self.wrong(name, f"{value!r}: this model has no other")


def decoder(
    f: Fields, *, context: int = 2048, theta: float = 10000.0, kv_heads: int | None = None, head_size: int | None = None,
    eps: float = 1e-6, tied: bool = False, fraction: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What Llama and those after it have in common, as keywords of a ModelConfig. Keywords are the family's own defaults, for fields that its
    config.json leaves out.

    `kv_heads` and `head_size` None: as many as heads, and width / heads. `fraction` None: heads rotate whole, and
    `partial_rotary_factor` is not read, as transformers does not.
    """
    heads = f.int("num_attention_heads")
    return {
        "vocab_size": f.int("vocab_size"), "context": f.int("max_position_embeddings", context), "width": f.int("hidden_size"),
        "layers": f.int("num_hidden_layers"), "heads": heads,
        "kv_heads": f.divisor("num_key_value_heads", "num_attention_heads", heads, kv_heads or heads),
        "head_size": f.int("head_dim", head_size or _head_size(f, heads)), "mlp_width": f.int("intermediate_size"),
        "norm_eps": f.float("rms_norm_eps", eps), "tied": f.bool("tie_word_embeddings", tied), "rope": rope(f, theta, context, fraction),
        "init": "gpt2", "positions": "rotary", "norm": "rms",
    }  # fmt: skip


def _head_size(f: Fields, heads: int) -> int:
    width = f.int("hidden_size")
    if width % heads:
        raise f.wrong("num_attention_heads", f"a divisor of hidden_size {width}, or a head_dim beside it")
    return width // heads


def experts(f: Fields, count: int, top_k: int) -> dict[str, Any]:
    """What the sparse ones have in common, as keywords of a MoEConfig, with the family's own defaults. Transformers 4 and 5 name the count
    differently."""
    name = "num_experts" if f.has("num_experts") else "num_local_experts"
    held, chosen = f.int(name, count), f.int("num_experts_per_tok", top_k)
    if chosen > held:
        raise f.wrong("num_experts_per_tok", f"at most {name} {held}")
    return {"experts": held, "top_k": chosen}


def decoder_fields(c: ModelConfig) -> dict[str, Any]:
    """The way back from `decoder`."""
    return {
        "vocab_size": c.V, "max_position_embeddings": c.context, "hidden_size": c.width, "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads, "num_key_value_heads": c.K, "head_dim": c.H, "intermediate_size": c.F, "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tied, **rope_fields(c.rope, c.context),
    }  # fmt: skip


def rope(f: Fields, theta: float = 10000.0, context: int = 2048, fraction: float | None = None) -> RopeConfig:
    """Rotary positions, from transformers 5's `rope_parameters` or the `rope_theta`, `rope_scaling`, `partial_rotary_factor` of 4."""
    scaling = f.values.get("rope_scaling") or f.values.get("rope_parameters") or {}
    if not isinstance(scaling, dict):
        raise f.wrong("rope_scaling" if f.has("rope_scaling") else "rope_parameters", "an object")
    inner = Fields({"rope_theta": f.values.get("rope_theta"), "partial_rotary_factor": f.values.get("partial_rotary_factor"),
                    "original_max_position_embeddings": f.values.get("original_max_position_embeddings"),
                    **{k: v for k, v in scaling.items() if v is not None}}, f.family)  # fmt: skip
    base: dict[str, Any] = {
        "base": inner.positive("rope_theta", theta),
        "fraction": 1.0 if fraction is None else inner.float("partial_rotary_factor", fraction),
    }
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return RopeConfig(**base)
    if kind in ("linear", "llama3"):
        base["factor"] = inner.positive("factor")
        if kind == "linear":
            return RopeConfig(**base, scaling="linear")
        return RopeConfig(
            **base, scaling="llama3", original_context=inner.int("original_max_position_embeddings"),
            low_frequency_factor=inner.positive("low_freq_factor"), high_frequency_factor=inner.positive("high_freq_factor"),
        )  # fmt: skip
    if kind in ("yarn", "longrope", "su"):
        return _extended(inner, base, kind, f.int("max_position_embeddings", context))
    raise Fields({"rope_type": kind}, f.family).wrong("rope_type", "one of default, linear, llama3, yarn, longrope")


def _extended(inner: Fields, base: dict[str, Any], kind: str, context: int) -> RopeConfig:
    """YaRN and LongRoPE, whose factor may follow from how much longer the context became."""
    original = inner.int("original_max_position_embeddings", context if kind == "yarn" else None)
    factor = inner.positive("factor", context / original)
    given = inner.float("attention_factor") if inner.has("attention_factor") else None
    if kind == "yarn":
        inner.only(truncate=True, mscale_all_dim=0, mscale=1)
        return RopeConfig(
            **base, scaling="yarn", factor=factor, original_context=original, attention_factor=given,
            beta_fast=inner.float("beta_fast", 32.0), beta_slow=inner.float("beta_slow", 1.0),
        )  # fmt: skip
    factors = {}
    for name in ("short", "long"):
        numbers = inner.values.get(f"{name}_factor")
        if not isinstance(numbers, list) or any(type(x) not in (int, float) for x in numbers):
            raise inner.wrong(f"{name}_factor", "a list of numbers")
        factors[f"{name}_factors"] = tuple(float(x) for x in numbers)
    return RopeConfig(
        **base,
        scaling="longrope",
        factor=max(factor, 1.0),
        original_context=original,
        attention_factor=given,
        **factors,
    )


def rope_fields(rope: RopeConfig, context: int) -> dict[str, Any]:
    """The way back, in the words of transformers 4 and 5 at once. Raises UserError for `ntk`, which they have no word for."""
    kind = {"none": "default"}.get(rope.scaling, rope.scaling)
    own: dict[str, Any] = {"rope_type": kind}
    if kind == "ntk":
        raise UserError("model.rope.scaling is ntk, which config.json has no word for; set an equal rope.base instead")
    if kind in ("linear", "llama3", "yarn", "longrope"):
        own["factor"] = rope.factor
    if kind == "llama3":
        own |= {"low_freq_factor": rope.low_frequency_factor, "high_freq_factor": rope.high_frequency_factor}
    if kind == "yarn":
        own |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
    if kind == "longrope":
        own |= {"short_factor": list(rope.short_factors), "long_factor": list(rope.long_factors)}
    if kind in ("llama3", "yarn", "longrope"):
        own["original_max_position_embeddings"] = rope.original_context
    if kind in ("yarn", "longrope") and rope.attention_factor is not None:
        own["attention_factor"] = rope.attention_factor
    partial = {} if rope.fraction == 1 else {"partial_rotary_factor": rope.fraction}
    out = {"rope_theta": rope.base, "rope_parameters": {**own, "rope_theta": rope.base, **partial}, **partial}
    return out if kind == "default" else {**out, "rope_scaling": own}


def patterns(f: Fields, layers: int, sliding: Sequence[bool]) -> tuple[Pattern, ...]:
    """The pattern of each layer: by the config's `layer_types`, or as `sliding` says for a config without."""
    types = f.values.get("layer_types")
    if types is None:
        return shortest(tuple("sliding" if s else "full" for s in sliding))
    if not isinstance(types, list) or len(types) != layers or any(t not in PATTERNS for t in types):
        raise f.wrong("layer_types", f"a list of {layers}, each full_attention or sliding_attention")
    return shortest(tuple(PATTERNS[t] for t in types))


def layer_types(c: ModelConfig) -> list[str]:
    """The way back. Raises UserError for a pattern that transformers has no word for."""
    words = {ours: theirs for theirs, ours in PATTERNS.items()}
    kinds = [slot.pattern for slots, n in c.segments for slot in slots * n]
    if set(kinds) - set(words):
        raise UserError(f"model.patterns is {c.patterns}; config.json knows full and sliding alone")
    return [words[kind] for kind in kinds]


def shortest(values: tuple[T, ...]) -> tuple[T, ...]:
    """The shortest pattern that repeats to these values, its last repeat cut where it must be."""
    n = len(values)
    return next(values[:p] for p in range(1, n + 1) if all(values[i] == values[i % p] for i in range(n)))
