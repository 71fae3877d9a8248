"""Stretched rotary positions: every scaling's table against its published formula, written out for one position and one pair."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.errors import UserError
from research.model import positions
from research.model.config import ModelConfig, RopeConfig

H, CONTEXT = 12, 32
SHORT, LONG = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5), (2.0, 4.0, 6.0, 8.0, 9.0, 10.0)
CONFIGS = {
    "none": RopeConfig(),
    "linear": RopeConfig(scaling="linear", factor=4.0),
    "ntk": RopeConfig(scaling="ntk", factor=4.0),
    "llama3": RopeConfig(scaling="llama3", factor=8.0, base=500.0, original_context=CONTEXT),
    "yarn": RopeConfig(scaling="yarn", factor=4.0, base=1e4, original_context=CONTEXT, beta_fast=4.0),
    "longrope": RopeConfig(scaling="longrope", factor=16.0, original_context=CONTEXT, short_factors=SHORT, long_factors=LONG),
}  # fmt: skip


def angle(config: RopeConfig, rotated: int, pair: int, position: int, last: int) -> float:
    """By how much pair number `pair` turns at a position of a row whose last one is `last`."""
    theta = config.base ** (-2 * pair / rotated)
    turns = config.original_context * theta / (2 * math.pi)  # within the original context
    if config.scaling == "linear":
        return position / config.factor * theta
    if config.scaling == "ntk":
        return position * (config.base * config.factor ** (rotated / (rotated - 2))) ** (-2 * pair / rotated)
    if config.scaling == "llama3":
        share = (turns - config.low_frequency_factor) / (config.high_frequency_factor - config.low_frequency_factor)
        share = min(max(share, 0), 1)
        return position * (share * theta + (1 - share) * theta / config.factor)
    if config.scaling == "yarn":

        def pair_of(turns):
            """The pair, between whole ones, that turns so often within the original context."""
            wavelength = config.original_context / turns
            return rotated * math.log(wavelength / (2 * math.pi)) / (2 * math.log(config.base))

        low, high = max(math.floor(pair_of(config.beta_fast)), 0), math.ceil(pair_of(config.beta_slow))
        share = min(max((pair - low) / (high - low), 0), 1)
        return position * ((1 - share) * theta + share * theta / config.factor)
    if config.scaling == "longrope":
        return position * theta / (LONG if last >= config.original_context else SHORT)[pair]
    return position * theta


def stretch(config: RopeConfig) -> float:
    """What cosines and sines are multiplied by."""
    if config.attention_factor is not None:
        return config.attention_factor
    published = {
        "yarn": 0.1 * math.log(config.factor) + 1,
        "longrope": math.sqrt(1 + math.log(config.factor) / math.log(config.original_context)),
    }
    return published.get(config.scaling, 1.0)


@pytest.mark.parametrize("given", [None, 1.25])
@pytest.mark.parametrize("scaling", CONFIGS)
def test_tables_are_the_published_formulas(scaling, given):
    takes = scaling in ("yarn", "longrope")  # the others have no such factor
    config = dataclasses.replace(CONFIGS[scaling], attention_factor=given if takes else None)
    where = np.array([[0, 1, 7, CONTEXT - 1], [3, 40, 100, 2]])  # the second row goes beyond the original context
    with jax.enable_x64(True):
        cos, sin = positions.rope_table(config, H, jnp.asarray(where), jnp.float64)
    assert cos.shape == sin.shape == (2, 4, 1, H // 2)
    for b, t, pair in np.ndindex(2, 4, H // 2):
        turned = angle(config, H, pair, where[b, t], where[b].max())
        assert cos[b, t, 0, pair] == pytest.approx(stretch(config) * math.cos(turned), abs=1e-12)
        assert sin[b, t, 0, pair] == pytest.approx(stretch(config) * math.sin(turned), abs=1e-12)


@pytest.mark.parametrize("scaling", CONFIGS)
def test_a_part_of_the_head_is_scaled_as_a_head_of_that_size(scaling):
    config = CONFIGS[scaling]
    half = dataclasses.replace(config, fraction=0.5)
    where = jnp.asarray([[0, 5, 50]])
    np.testing.assert_array_equal(
        positions.rope_table(half, 2 * H, where, jnp.float32), positions.rope_table(config, H, where, jnp.float32)
    )


def test_yarn_reaches_all_three_bands():
    plain, scaled = (positions.rope_frequencies(CONFIGS[name], H)[0] for name in ("none", "yarn"))
    ratio = plain / scaled
    assert ratio[0] == 1 and ratio[-1] == pytest.approx(4) and ((ratio > 1.01) & (ratio < 3.99)).any()


def test_longrope_chooses_by_the_last_token_that_is_no_padding():
    config, where = CONFIGS["longrope"], jnp.broadcast_to(jnp.arange(CONTEXT + 8), (3, CONTEXT + 8))
    cos, _ = positions.rope_table(config, H, where, jnp.float32, jnp.asarray([CONTEXT - 1, CONTEXT, -1]))
    short, _ = positions.rope_table(config, H, where[:1, :CONTEXT], jnp.float32)
    long, _ = positions.rope_table(config, H, where[:1], jnp.float32)
    np.testing.assert_array_equal(cos[0, :CONTEXT], short[0])
    np.testing.assert_array_equal(cos[1], long[0])
    assert np.isfinite(cos[2]).all() and (cos[0] != cos[1]).any()


def test_longrope_without_a_factor_only_divides():
    config = dataclasses.replace(CONFIGS["longrope"], factor=1.0)
    assert positions.rope_frequencies(config, H)[1] == 1.0


def test_longrope_agrees_with_transformers():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = CONFIGS["longrope"]
    parameters = {
        "rope_type": "longrope", "rope_theta": config.base, "factor": config.factor, "short_factor": list(SHORT),
        "long_factor": list(LONG), "original_max_position_embeddings": CONTEXT,
    }  # fmt: skip
    theirs = transformers.Phi3Config(
        hidden_size=4 * H, num_attention_heads=4, max_position_embeddings=16 * CONTEXT, rope_parameters=parameters,
        original_max_position_embeddings=CONTEXT, pad_token_id=0,
    )  # fmt: skip
    for length, long in ((CONTEXT, False), (CONTEXT + 1, True)):
        expected, factor = ROPE_INIT_FUNCTIONS["longrope"](theirs, "cpu", seq_len=length)
        found, ours = positions.rope_frequencies(config, H, long)
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)
        assert math.isclose(ours, factor, rel_tol=1e-9)


def test_sliding_layers_keep_a_base_of_their_own_that_is_not_scaled(tiny):
    both = RopeConfig(base=1e6, scaling="linear", factor=8.0, sliding_base=100.0)
    config = tiny.config(layers=1, patterns=("sliding",), window=4, rope=both)
    params, tokens = tiny.params(config), tiny.tokens(config)
    alone = dataclasses.replace(config, rope=RopeConfig(base=100.0))
    np.testing.assert_array_equal(tiny.forward(params, tokens, config), tiny.forward(params, tokens, alone))
    full = dataclasses.replace(config, patterns=("full",))
    without = dataclasses.replace(full, rope=dataclasses.replace(both, sliding_base=None))
    np.testing.assert_array_equal(tiny.forward(params, tokens, full), tiny.forward(params, tokens, without))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"short_factors": SHORT[:-1]}, "short_factors.*expected 6 numbers"),
        ({"long_factors": ()}, "long_factors"),
        ({"long_factors": (*LONG[:-1], 0.0)}, "long_factors"),
        ({"attention_factor": 0.0}, "attention_factor"),
        ({"sliding_base": 1.0}, "sliding_base"),
    ],
)
def test_factors_that_do_not_fit_are_refused(wrong, field):
    with pytest.raises(UserError, match=f"model.rope.{field}"):
        ModelConfig(width=4 * H, heads=4, rope=dataclasses.replace(CONFIGS["longrope"], **wrong))
