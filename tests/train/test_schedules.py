"""Every schedule: its end points, its bounds, its continuity, and Optax's own where the two mean the same."""

import itertools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.core import hypers as H
from research.train import schedules

KINDS = get_args(schedules.Schedule)
TO_FLOOR = ("cosine", "linear", "wsd")


def hypers(**changes) -> H.Hypers:
    values = dict.fromkeys(H.Hypers.__dataclass_fields__, 0.0)
    return H.make(
        **{**values, "learning_rate": 0.3, "warmup_steps": 10, "horizon": 100, "floor": 0.1, "cooldown": 0.2, **changes}
    )


compiled = {
    kind: jax.jit(jax.vmap(lambda count, h, kind=kind: schedules.rate(kind, count, h), (0, None))) for kind in KINDS
}


def rates(kind, steps=128, **changes) -> np.ndarray:
    """The first `steps` rates; one compiled function serves every hyperparameter."""
    return np.asarray(compiled[kind](jnp.arange(steps), hypers(**changes)))


@pytest.mark.parametrize("kind", KINDS)
def test_warm_up_is_linear_from_above_zero_to_the_peak(kind):
    np.testing.assert_allclose(rates(kind, 10), 0.3 * np.arange(1, 11) / 10, rtol=1e-6)


@pytest.mark.parametrize("kind", TO_FLOOR)
def test_floor_at_the_horizon_and_after(kind):
    got = rates(kind)
    assert got[99] > 0.03 * 1.0001
    np.testing.assert_allclose(got[100:], 0.03, rtol=1e-6)


def test_decays_are_their_formulas():
    t = (np.arange(10, 100) - 10) / 90
    np.testing.assert_allclose(rates("cosine", 100)[10:], 0.3 * (0.1 + 0.9 * (1 + np.cos(np.pi * t)) / 2), rtol=1e-5)
    np.testing.assert_allclose(rates("linear", 100)[10:], 0.3 * (1 - 0.9 * t), rtol=1e-5)
    np.testing.assert_allclose(rates("inverse-sqrt", 100)[10:], 0.3 * np.sqrt(10 / np.arange(10, 100)), rtol=1e-5)
    np.testing.assert_allclose(rates("constant")[9:], 0.3, rtol=1e-6)


def test_wsd_is_stable_and_then_falls_over_its_last_part():
    got = rates("wsd")
    np.testing.assert_allclose(got[9:81], 0.3, rtol=1e-6)
    np.testing.assert_allclose(got[80:101], 0.3 * (1 - 0.9 * np.arange(21) / 20), rtol=1e-5)


def test_inverse_sqrt_keeps_its_floor():
    got = rates("inverse-sqrt", floor=0.5)
    np.testing.assert_allclose(got[[39, 40, 50, 127]], [0.3 * np.sqrt(10 / 39), 0.15, 0.15, 0.15], rtol=1e-6)


def test_equal_to_optax_where_comparable():
    steps = np.arange(10, 128)
    cosine = optax.warmup_cosine_decay_schedule(0.0, 0.3, warmup_steps=10, decay_steps=100, end_value=0.03)
    np.testing.assert_allclose(rates("cosine")[10:], [cosine(s) for s in steps], rtol=1e-5)
    linear = optax.linear_schedule(0.3, 0.03, transition_steps=90, transition_begin=10)
    np.testing.assert_allclose(rates("linear")[10:], [linear(s) for s in steps], rtol=1e-5)
    ramp = optax.linear_schedule(0.03, 0.3, transition_steps=9)
    np.testing.assert_allclose(rates("constant"), [ramp(s) for s in range(128)], rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 40),
    st.integers(0, 100),
    st.floats(0, 1, width=32),
    st.floats(0, 1, width=32),
    st.floats(0, 10, width=32),
)
def test_bounds_and_continuity(kind, warmup, horizon, floor, cooldown, peak):
    got = rates(kind, warmup_steps=warmup, horizon=horizon, floor=floor, cooldown=cooldown, learning_rate=peak)
    assert np.all(np.isfinite(got)) and np.all(got >= 0) and np.all(got <= peak * (1 + 1e-6))
    after = got[max(warmup, 1) - 1 :]
    assert np.all(after >= peak * floor * (1 - 1e-5) - 1e-30), "never below the floor once warm"
    assert np.all(np.diff(got[max(warmup, 1) :]) <= peak * 1e-6), "never rises after the warm-up"
    if kind in TO_FLOOR:
        np.testing.assert_allclose(got[horizon:], peak * floor, rtol=1e-5, atol=1e-9)
    steepest = {
        "cosine": np.pi / 2 / max(horizon - warmup, 1),
        "linear": 1 / max(horizon - warmup, 1),
        "wsd": 1 / max(cooldown * horizon, 1),
    }
    if kind in TO_FLOOR and horizon > warmup and (kind != "wsd" or horizon * (1 - cooldown) >= warmup):
        jump = max(steepest[kind], 1 / max(warmup, 1) if warmup else 0)
        assert np.all(np.abs(np.diff(got)) <= peak * jump * 1.0001 + 1e-6)


@pytest.mark.parametrize(("kind", "warmup", "horizon"), list(itertools.product(KINDS, (0, 7, 300), (0, 5))))
def test_degenerate_lengths_are_finite(kind, warmup, horizon):
    got = rates(kind, warmup_steps=warmup, horizon=horizon, floor=0.25, cooldown=0.0)
    assert np.all(np.isfinite(got)) and got[0] > 0 and np.all(got <= 0.3 * 1.0001)


def test_a_warm_up_cut_short_by_the_horizon_keeps_its_slope():
    np.testing.assert_allclose(
        rates("cosine", 8, warmup_steps=100, horizon=5),
        [0.003, 0.006, 0.009, 0.012, 0.015, 0.03, 0.03, 0.03],
        rtol=1e-5,
    )


def test_scalar_of_the_hypers_dtype():
    value = schedules.rate("cosine", 3, hypers())
    assert value.shape == () and value.dtype == jnp.float32
    with jax.enable_x64(True):
        assert schedules.rate("cosine", jnp.int32(3), hypers()).dtype == jnp.float64


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'step'; expected one of constant, cosine"):
        schedules.rate("step", 0, hypers())  # pyright: ignore[reportArgumentType]
