"""The traps of other libraries that the code works around. A test here that fails says that its workaround can go."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import AxisType

from research.core import host


def optimized(function, *arguments, donate=(), options=None) -> str:
    """The program that XLA makes of a function for a CPU."""
    options = {"xla_backend_optimization_level": 3, **(options or {})}
    jitted = jax.jit(function, donate_argnums=donate, compiler_options=options)
    return jitted.lower(*arguments).compile().as_text()


def test_optax_schedules_want_python_lengths():
    """Why `train/schedules.py` has formulas of its own."""
    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.jit(lambda steps: optax.cosine_decay_schedule(1.0, steps)(0))(10)


def test_optax_muon_takes_stacked_matrices_for_vectors():
    """Why `train/optim.py` has a Muon of its own: Optax's gives layers stacked in one leaf to Adam, whose first update is a sign."""
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)}
    rule = optax.contrib.muon(0.1)
    updates, _ = jax.jit(lambda g: rule.update(g, rule.init(params), params))(params)
    assert np.ptp(np.abs(updates["w"])) < 1e-3


def test_optax_adafactor_factors_the_layers():
    """Why Adafactor runs under `vmap` over stacked layers: its two largest dimensions may be layers and features."""
    shapes = jax.eval_shape(lambda: optax.scale_by_factored_rms().init(jnp.zeros((160, 2, 150))))
    assert {shapes.v_row.shape, shapes.v_col.shape} == {(160, 2), (2, 150)}


def test_meshes_are_explicit_unless_told_otherwise():
    """Why `core/sharding.py` names the axis types."""
    assert jax.make_mesh((1,), ("data",)).axis_types == (AxisType.Explicit,)


def test_a_donated_state_is_copied_on_a_cpu():
    """Why `host.runs_often` asks for the analysis of regions: an update that reads its state twice copies it first."""

    def step(state, gradient):
        momentum = 0.9 * state["momentum"] + gradient
        change = momentum / (1 + jnp.sum(jnp.square(momentum)))
        return {"momentum": momentum, "params": state["params"] - change}, jnp.sum(jnp.square(state["params"]))

    state = {name: jnp.zeros((64, 64)) for name in ("momentum", "params")}
    copied = [
        len(re.findall(r"copy\(%state", optimized(step, state, jnp.zeros((64, 64)), donate=0, options=options)))
        for options in ({}, host.runs_often("cpu"))
    ]
    assert copied[0] > 0
    assert copied[1] == 0


def test_a_transposed_product_is_turned_around():
    """Why `dot` holds the gradient of a high weight behind a barrier: XLA would compute it in the slow orientation again."""
    x, g = jnp.zeros((64, 48)), jnp.zeros((64, 8))
    assert "f32[8,48]" not in optimized(lambda x, g: (g.T @ x).T, x, g)
    assert "f32[8,48]" in optimized(lambda x, g: jax.lax.optimization_barrier(g.T @ x).T, x, g)
