"""Positions against the published formulas, written out independently in numpy."""

import cmath
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.model import positions
from research.model.config import RopeConfig

H = 8
SCALINGS = {
    "none": {},
    "linear": {"factor": 4.0},
    "ntk": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "base": 500000.0,
        "original_context": 64,
        "low_frequency_factor": 1.0,
        "high_frequency_factor": 4.0,
    },
    "yarn": {"factor": 4.0, "original_context": 64, "beta_fast": 32.0, "beta_slow": 1.0},
}
heads = np.random.default_rng(0).normal(size=(2, 5, 3, H)).astype(np.float32)


def turned(x, config: RopeConfig, where):
    """The rotation as multiplication by exp(i m theta) of one complex number a pair, for one head at one position."""
    rotated = int(len(x) * config.fraction)
    out = np.array(x, np.float64)
    for i in range(rotated // 2):
        a, b = (2 * i, 2 * i + 1) if config.layout == "interleaved" else (i, i + rotated // 2)
        z = complex(x[a], x[b]) * cmath.exp(1j * where * config.base ** (-2 * i / rotated))
        out[a], out[b] = z.real, z.imag
    return out


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25])
def test_rotation_is_complex_multiplication_and_the_rest_passes(layout, fraction):
    config = RopeConfig(base=100.0, layout=layout, fraction=fraction)
    where = np.array([[0, 1, 2, 3, 4], [7, 0, 100, 3, 3]])
    found = jax.jit(lambda x, w: positions.rotate(x, positions.rope_table(config, H, w, jnp.float32), layout))(
        heads, where
    )
    expected = [[[turned(heads[b, t, n], config, where[b, t]) for n in range(3)] for t in range(5)] for b in range(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[..., int(H * fraction) :], heads[..., int(H * fraction) :])


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_products_depend_on_the_distance_alone(layout, scaling):
    config = RopeConfig(layout=layout, scaling=scaling, **{**SCALINGS[scaling], "base": 100.0})
    q, k = heads[:1, :1, :1], heads[1:, 1:2, 1:2]

    @jax.jit
    def products(m):
        table = positions.rope_table(config, H, m, jnp.float32)
        rotated = [positions.rotate(jnp.broadcast_to(x, (1, 8, 1, H)), table, layout)[0, :, 0] for x in (q, k)]
        return rotated[0] @ rotated[1].T

    p = np.asarray(products(jnp.arange(8)[None] + 5))
    for distance in range(-7, 8):
        np.testing.assert_allclose(np.diagonal(p, distance), np.diagonal(p, distance)[0], rtol=1e-3, atol=1e-4)
    assert len(np.unique(p[0].round(3))) == 8


def test_linear_interpolation_is_division_of_positions():
    np.testing.assert_allclose(
        positions.rope_frequencies(RopeConfig(scaling="linear", factor=4.0), H)[0] * 12,
        positions.rope_frequencies(RopeConfig(), H)[0] * 3,
    )


def test_ntk_keeps_the_fastest_pair_and_slows_the_slowest_by_the_factor():
    plain, scaled = (
        positions.rope_frequencies(RopeConfig(scaling=s, factor=f), H)[0] for s, f in (("none", 1.0), ("ntk", 4.0))
    )
    ratio = plain / scaled
    assert ratio[0] == 1 and math.isclose(ratio[-1], 4.0) and (np.diff(ratio) > 0).all()


def test_llama3_bands():
    """Wavelengths up to a quarter of the context stay, those beyond the context are divided, those between interpolated."""
    config = RopeConfig(scaling="llama3", **SCALINGS["llama3"])
    for plain, scaled in zip(500000.0 ** -(np.arange(32) / 32), positions.rope_frequencies(config, 64)[0], strict=True):
        wavelength = 2 * math.pi / plain
        if wavelength < 64 / 4:
            expected = plain
        elif wavelength > 64 / 1:
            expected = plain / 8
        else:
            smooth = (64 / wavelength - 1) / (4 - 1)
            expected = (1 - smooth) * plain / 8 + smooth * plain
        assert math.isclose(scaled, expected, rel_tol=1e-12)


def test_yarn_blends_by_turns_within_the_original_context():
    """Pairs that turn more than beta_fast times stay, less than beta_slow times are divided; the ramp runs over whole pairs."""
    config = RopeConfig(scaling="yarn", factor=4.0, original_context=4096)
    scaled, factor = positions.rope_frequencies(config, 128)
    plain = 10000.0 ** -(np.arange(64) / 64)
    turns = 4096 * plain / (2 * math.pi)
    first = math.floor(np.interp(-math.log(32), -np.log(turns), np.arange(64)))
    last = math.ceil(np.interp(-math.log(1), -np.log(turns), np.arange(64)))
    for i in range(64):
        share = min(max((i - first) / (last - first), 0), 1)
        assert math.isclose(scaled[i], plain[i] * (1 - share) + plain[i] / 4 * share, rel_tol=1e-12), i
    assert math.isclose(factor, 0.1 * math.log(4) + 1)
    cos, _ = positions.rope_table(config, 128, jnp.zeros((1, 1), jnp.int32), jnp.float32)
    np.testing.assert_allclose(cos, factor, rtol=1e-6)


@pytest.mark.parametrize("scaling", [s for s in SCALINGS if s not in ("none", "ntk")])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_scalings_agree_with_transformers(scaling, fraction):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    ours = RopeConfig(scaling=scaling, fraction=fraction, **SCALINGS[scaling])
    parameters = {
        "rope_type": scaling, "rope_theta": ours.base, "factor": ours.factor, "partial_rotary_factor": fraction,
        "original_max_position_embeddings": ours.original_context, "low_freq_factor": ours.low_frequency_factor,
        "high_freq_factor": ours.high_frequency_factor, "beta_fast": ours.beta_fast, "beta_slow": ours.beta_slow,
    }  # fmt: skip
    theirs = transformers.LlamaConfig(
        hidden_size=512, num_attention_heads=8, max_position_embeddings=256, rope_parameters=parameters
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS[scaling](theirs, "cpu")
    found, ours_factor = positions.rope_frequencies(ours, int(64 * fraction))
    np.testing.assert_allclose(found, frequencies.numpy(), rtol=1e-5)
    assert math.isclose(ours_factor, factor, rel_tol=1e-9)


@pytest.mark.parametrize(
    "wrong",
    [{"fraction": 0.0}, {"fraction": 1.5}, {"factor": 0.5}, {"base": 1.0}, {"scaling": "dynamic"}, {"layout": "pairs"}, {"original_context": 0},
     {"low_frequency_factor": 4.0}, {"beta_slow": 32.0}, {"beta_slow": 0.0}, {"base": "10000"}],
)  # fmt: skip
def test_impossible_rotations_are_refused(wrong):
    with pytest.raises(UserError, match="model.rope"):
        RopeConfig(**wrong)


@pytest.mark.parametrize("width", [8, 7])
def test_sinusoids(width):
    where = np.array([[0, 1, 5], [2, 1000, 3]])
    found = positions.sinusoids(jnp.asarray(where), width, jnp.float32)
    half = -(-width // 2)
    for b in range(2):
        for t in range(3):
            for i in range(width):
                angle = where[b, t] / 10000 ** (2 * (i % half) / width)
                assert math.isclose(found[b, t, i], math.sin(angle) if i < half else math.cos(angle), abs_tol=2e-4)


@pytest.mark.parametrize(
    ("heads", "exponents"),
    [
        (1, [8]),
        (2, [4, 8]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
        (3, [4, 8, 2]),
    ],
)
def test_alibi_slopes(heads, exponents):
    np.testing.assert_allclose(positions.alibi_slopes(heads), [2.0**-e for e in exponents])


@given(st.lists(st.lists(st.integers(0, 2), min_size=6, max_size=6), min_size=2, max_size=2))
def test_documents_are_runs_of_one_id(rows):
    number, where = jax.jit(positions.documents)(jnp.asarray(rows))
    for row, numbers, positions_T in zip(rows, np.asarray(number), np.asarray(where), strict=True):
        for t in range(6):
            new = t == 0 or row[t] != row[t - 1]
            assert positions_T[t] == (0 if new else positions_T[t - 1] + 1)
            assert t == 0 or numbers[t] == numbers[t - 1] + new
