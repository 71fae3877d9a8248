"""Floor 2: the families, data and not code. One file each: presets, the published config both ways, one table of weight names."""

import difflib
from collections.abc import Mapping
from typing import Any

from research.core.errors import UserError
from research.families import (
    chatglm,
    gemma,
    gemma2,
    gemma3,
    glm4,
    glm130b,
    gpt2,
    gpt3,
    gpt_neox,
    llama,
    mistral,
    mixtral,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
)  # fmt: skip
from research.families.family import Family
from research.model.config import ModelConfig

_ALL = (
    gpt2.FAMILY, gpt3.FAMILY, glm130b.FAMILY, gpt_neox.FAMILY, llama.FAMILY, mistral.FAMILY, mixtral.FAMILY, qwen2.FAMILY, qwen3.FAMILY,
    qwen3_moe.FAMILY, gemma.FAMILY, gemma2.FAMILY, gemma3.FAMILY, glm4.FAMILY, glm4.FAMILY_0414, chatglm.FAMILY, phi3.FAMILY, olmo2.FAMILY,
)  # fmt: skip
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}
PRESETS: dict[str, ModelConfig] = {name: config for family in _ALL for name, config in family.presets.items()}
MODEL_TYPES: dict[str, Family] = {kind: family for family in _ALL for kind in family.model_types}


def preset(name: str) -> ModelConfig:
    """A published size by its name. Raises UserError, with the nearest name, where there is none."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 3, 0.3)
        hint = f"did you mean {', '.join(near)}?" if near else "`research families` lists them"
        raise UserError(f"there is no preset {name!r}; {hint}")
    return PRESETS[name]


def of_hf(values: Mapping[str, Any]) -> Family:
    """The family that a published config belongs to. Raises UserError for one that is not here, with those that are."""
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        raise UserError(
            f"config.json: model_type is {kind!r} (architectures {values.get('architectures')!r}), which no family here knows; there are "
            f"{', '.join(MODEL_TYPES)}. A decoder of another type needs a file in research/families/"
        )
    return MODEL_TYPES[kind]


def of_config(config: ModelConfig) -> Family:
    """The family whose published format can hold a model: that of its label, or the first that can. Raises UserError where none does."""
    if config.family is not None:
        if config.family not in FAMILIES:
            raise UserError(f"model.family is {config.family!r}; there are {', '.join(FAMILIES)}")
        FAMILIES[config.family].config_to_hf(config)
        return FAMILIES[config.family]
    refusals = []
    for family in _ALL:
        try:
            family.config_to_hf(config)
            return family
        except UserError as error:
            refusals.append(str(error))
    nearest = min(refusals, key=lambda refusal: ("cannot say" not in refusal, refusal.count("model.")))
    raise UserError(f"no family's config.json can hold this model; the nearest: {nearest}")
