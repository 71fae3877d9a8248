"""The router's losses in training: coefficients traced, metrics reported, experts evened out."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs

from research.core.errors import UserError
from research.model import transformer
from research.model.config import MoEConfig
from research.tasks.lm import LMConfig, make_loss
from research.train import config as C
from research.train import step as S
from research.train.loop import Loop

TASK = LMConfig(balance_loss=0.01, router_z_loss=0.001)


@pytest.fixture(scope="module")
def model(tiny):
    """One sparse layer of four experts."""
    return tiny.config(context=8, layers=1, heads=2, feed_forward=("moe",), moe=MoEConfig(experts=4, top_k=1, width=8))


def batch_of(model, rows=8):
    draw = np.random.default_rng(0)
    ids = draw.integers(0, model.V, (rows, model.context + 1)).astype(np.int32)
    weights = draw.uniform(size=(rows, model.context)).astype(np.float32)
    return {"tokens": jnp.asarray(ids[:, :-1]), "targets": jnp.asarray(ids[:, 1:]), "weights": jnp.asarray(weights)}


def hypers_of(model, **values):
    hypers = C.hypers(C.Config(model=model, task=TASK, optimizer=tiny_runs.ADAMW, steps=50))
    return hypers.replace(**{name: jnp.float32(value) for name, value in values.items()})


def test_the_loss_counts_each_router_loss_by_its_coefficient(model, tiny):
    model = dataclasses.replace(model, layers=3, feed_forward=("dense", "moe", "moe"))
    params, batch = tiny.params(model), batch_of(model)
    aux = jax.jit(functools.partial(transformer.apply, config=model))(params, batch["tokens"]).aux
    loss = jax.jit(make_loss(model, TASK))
    plain, weight, metrics = loss(params, batch, None, hypers_of(model, balance_loss=0, router_z_loss=0))
    assert aux.keys() == metrics.keys() == {"balance", "router_z"}
    for name, value in aux.items():
        np.testing.assert_allclose(metrics[name] / weight, value, rtol=1e-5)
    for coefficients in ({"balance_loss": 0.5, "router_z_loss": 0.25}, {"balance_loss": 0.01, "router_z_loss": 0.001}):
        more = sum(c * aux[name.removesuffix("_loss")] for name, c in coefficients.items())
        total, *_ = loss(params, batch, None, hypers_of(model, **coefficients))
        np.testing.assert_allclose((total - plain) / weight, more, rtol=1e-3)
    np.testing.assert_allclose(loss(params, batch)[0], total, rtol=1e-6)  # without hypers, the config's own


def test_training_lowers_the_loss_and_the_balance_term_evens_out_the_experts(model, tiny):
    specs, batch, optimizer = transformer.specs(model), batch_of(model), tiny_runs.ADAMW
    step = jax.jit(S.make_step(make_loss(model, TASK), specs, optimizer, micro_batches=2))

    start = tiny.params(model)
    start["decoder"]["0"]["0"]["mlp"]["router"] *= 4  # far from even

    def trained(**coefficients):
        hypers = hypers_of(model, **coefficients)
        state = S.init_state(specs, optimizer, hypers, params=jax.tree.map(jnp.copy, start))
        seen = []
        for _ in range(40):
            state, metrics = step(state, batch, hypers)
            seen.append({name: float(metrics[name]) for name in ("loss", "balance", "router_z")})
        return seen[0], seen[-1]

    first, free = trained(balance_loss=0, router_z_loss=0)
    even, small = trained(balance_loss=1, router_z_loss=0)[1], trained(balance_loss=0, router_z_loss=0.1)[1]
    assert free["loss"] < 0.8 * first["loss"]
    assert 1 <= even["balance"] < 1.1 < free["balance"], "1 is an even load"
    assert small["router_z"] < 0.5 * free["router_z"]
    assert step._cache_size() == 1, "one program for all coefficients"


def test_what_the_task_reports_is_logged(text_file):
    records, nothing = [], lambda *_: None
    running = SimpleNamespace(
        config=tiny_runs.config(text_file), seconds=lambda: 1.0, console=SimpleNamespace(progress=nothing),
        program=SimpleNamespace(flops_per_token=1.0, peak_flops=1.0), run=SimpleNamespace(write_metrics=records.append),
    )  # fmt: skip
    Loop.log(running, 2, {**dict.fromkeys(S.METRICS, 0.5), "balance": 1.25, "router_z": 4.0}, a_step=0.5, stalled=0.1)
    assert records[0]["balance"] == 1.25 and records[0]["router_z"] == 4.0 and "bad_leaf" not in records[0]


def test_router_losses_without_a_router_are_refused(tiny):
    for name in ("balance_loss", "router_z_loss"):
        with pytest.raises(UserError, match=f"task.{name}.* a model with moe in feed_forward"):
            make_loss(tiny.config(), LMConfig(**{name: 0.1}))
        with pytest.raises(UserError, match=f"task.{name} is -1.0"):
            LMConfig(**{name: -1.0})
