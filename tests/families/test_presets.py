"""Presets: exact counts from the declared tree, and the architecture that the published config.json describes."""

import pytest
from published import PUBLISHED

from research import families
from research.core import params as P
from research.core.errors import UserError
from research.families import FAMILIES, PRESETS, gpt3
from research.families.family import differences
from research.model import transformer

COUNTS = {name: n for family in FAMILIES.values() for name, n in family.parameters.items()}


def test_every_preset_says_its_exact_number_of_parameters():
    counted = {name: P.count(transformer.specs(config)) for name, config in PRESETS.items()}
    assert counted == COUNTS and len(counted) == sum(len(family.presets) for family in FAMILIES.values())


def test_names_are_unique_and_every_preset_bears_its_family():
    for family in FAMILIES.values():
        assert set(family.presets) == set(family.parameters)
        assert all(config.family == family.name for config in family.presets.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_config_is_the_preset(name):
    values = PUBLISHED[name]
    found = families.of_hf(values).config_from_hf(values)
    assert differences(found, PRESETS[name]) == [] and found.context == PRESETS[name].context
    assert found.family == PRESETS[name].family


def test_every_family_with_a_format_has_a_published_config_here():
    assert {values["model_type"] for values in PUBLISHED.values()} | {"gpt_neo"} == set(families.MODEL_TYPES)


@pytest.mark.parametrize(
    "name", [name for name, config in PRESETS.items() if config.family not in ("glm-130b", "gpt3")]
)
def test_a_preset_goes_to_its_published_config_and_back(name):
    family = families.of_config(PRESETS[name])
    assert family.name == PRESETS[name].family
    assert differences(family.config_from_hf(family.config_to_hf(PRESETS[name])), PRESETS[name]) == []


def test_gpt3_is_as_its_table_prints_it():
    printed = {
        "gpt3-125m": (12, 768, 12, 64), "gpt3-350m": (24, 1024, 16, 64), "gpt3-760m": (24, 1536, 16, 96), "gpt3-1.3b": (24, 2048, 24, 128),
        "gpt3-2.7b": (32, 2560, 32, 80), "gpt3-6.7b": (32, 4096, 32, 128), "gpt3-13b": (40, 5120, 40, 128), "gpt3-175b": (96, 12288, 96, 128),
    }  # fmt: skip
    assert {name: (c.layers, c.width, c.heads, c.H) for name, c in FAMILIES["gpt3"].presets.items()} == printed
    for config in FAMILIES["gpt3"].presets.values():
        kinds = [slot.pattern for slots, n in config.segments for slot in slots * n]
        assert kinds == ["full", "sliding"] * (config.layers // 2) and config.context == 2048
    assert "5140" in (gpt3.__doc__ or "")


def test_gpt3_has_no_published_format_but_gpt_neo_s():
    with pytest.raises(UserError, match="cannot say model.bias"):
        FAMILIES["gpt3"].config_to_hf(PRESETS["gpt3-125m"])


def test_an_unknown_preset_names_its_neighbours():
    with pytest.raises(UserError, match=r"no preset 'llama3-9b'; did you mean llama3-8b"):
        families.preset("llama3-9b")
    with pytest.raises(UserError, match="`research families` lists them"):
        families.preset("%%%%")
