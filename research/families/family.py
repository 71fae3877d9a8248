"""What a family is: presets, the way between its published config and ours, and its table of weight names."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from research.core.errors import UserError
from research.families.weights import Row
from research.model.config import ModelConfig

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# What a config says besides what the model computes: how it is trained, run or labelled.
NOT_ARCHITECTURE = (
    "dropout",
    "init",
    "dtype",
    "attention",
    "unroll",
    "remat",
    "pipeline_rounds",
    "pipeline_microbatches",
    "family",
)


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models.

    `parameters` holds each preset's exact number; tied weights count once. `model_types` and `architecture` are what config.json calls it; a
    family without has no published format. `prefix` begins the names of all but the head; files of a bare model lack it. `ignored`
    are patterns of stored names that hold nothing learned (masks, tables of frequencies).
    """

    name: str
    title: str
    features: str
    presets: Mapping[str, ModelConfig]
    parameters: Mapping[str, int]
    model_types: tuple[str, ...] = ()
    architecture: str = ""
    weights: tuple[Row, ...] = ()
    from_hf: Callable[[Mapping[str, Any]], ModelConfig] | None = None
    to_hf: Callable[[ModelConfig], dict[str, Any]] | None = None
    prefix: str = "model."
    ignored: tuple[str, ...] = (r".*rotary_emb\.inv_freq",)

    def config_from_hf(self, values: Mapping[str, Any]) -> ModelConfig:
        """The model of a published config. Raises UserError naming the field and value where we lack what it asks for."""
        if self.from_hf is None:
            raise UserError(f"{self.title} has no published config.json; use its preset, or a run directory")
        quantised = values.get("quantization_config")
        if quantised is not None:
            raise UserError(
                f"config.json: quantization_config is {quantised!r}; expected weights that are not quantised"
            )
        return dataclasses.replace(self.from_hf(values), family=self.name)

    def config_to_hf(self, config: ModelConfig) -> dict[str, Any]:
        """The config that transformers reads. Raises UserError naming the fields that this family's config cannot express."""
        if self.to_hf is None:
            raise UserError(f"{self.title} has no published format to save in; keep it as a run directory")
        ids = dict.fromkeys(SPECIAL_IDS)  # said to be none: transformers' defaults may lie beyond the vocabulary
        values = {"architectures": [self.architecture], "model_type": self.model_types[0], **ids, **self.to_hf(config)}
        if lost := differences(config, self.config_from_hf(values)):
            raise UserError(f"config.json of a {self.name} model cannot say {', '.join(lost)}")
        return values


def differences(config: ModelConfig, other: ModelConfig) -> list[str]:
    """The fields in which two configs compute different things, with the first one's values."""
    ours, theirs = _essence(config), _essence(other)
    return [f"model.{name} = {value!r}" for name, value in ours.items() if theirs[name] != value]


def _essence(config: ModelConfig) -> dict[str, Any]:
    """What the model computes: defaults resolved, what is not used left out."""
    slots = [slot for slots, n in config.segments for slot in slots * n]
    kinds = {slot.pattern for slot in slots}
    out = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in NOT_ARCHITECTURE}
    out |= {
        "kv_heads": config.K,
        "head_size": config.H,
        "mlp_width": config.F,
        "patterns": tuple(s.pattern for s in slots),
    }
    out["feed_forward"] = tuple(s.feed_forward for s in slots)
    out["attention_scale"] = config.attention_scale or config.H**-0.5
    out["bias"] = frozenset(config.bias)
    out["window"] = config.window if kinds & {"sliding", "strided"} else None
    out["stride"] = config.stride if "strided" in kinds else None
    out["image"] = config.image if config.inputs == "image" else None
    out["vector_size"] = config.vector_size if config.inputs == "vectors" else None
    out["features"] = config.features if config.inputs == "features" else None
    out["rope"] = config.rope if config.positions == "rotary" else None
    moe = dataclasses.replace(config.moe, implementation="auto", width=config.moe.width or config.F)
    sparse = "moe" in out["feed_forward"]
    out["moe"] = moe if sparse else None
    out["mlp_width"] = config.F if "dense" in out["feed_forward"] else None
    return out
