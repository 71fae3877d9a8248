"""Language modelling's loss against the cross-entropy of the model's own logits, position by position."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core import hypers as H
from research.core import params as P
from research.core.errors import UserError
from research.model import transformer
from research.tasks import lm
from research.tasks.lm import LMConfig


def batch_of(config, rows=3, seed=0):
    draw = np.random.default_rng(seed)
    ids = draw.integers(0, config.V, (rows, config.context + 1)).astype(np.int32)
    weights = draw.choice([0.0, 1.0, 0.5], (rows, config.context)).astype(np.float32)
    return {"tokens": jnp.asarray(ids[:, :-1]), "targets": jnp.asarray(ids[:, 1:]), "weights": jnp.asarray(weights)}


@pytest.fixture(scope="module")
def case(tiny):
    """`(config, params, batch, log-probabilities, logits)` of a model with random weights, the last two in float64."""
    config = tiny.config(dropout=0.3, layers=1)
    params, batch = tiny.params(config), batch_of(config)
    logits = np.asarray(
        jax.jit(functools.partial(transformer.forward, config=config))(params, batch["tokens"]), np.float64
    )
    return config, params, batch, logits - np.log(np.exp(logits).sum(-1, keepdims=True)), logits


@pytest.fixture(scope="module")
def loss(case):
    return jax.jit(lm.make_loss(case[0]))


def by_hand(case, smoothing=0.0, z_loss=0.0):
    """The loss as its definition reads, in NumPy."""
    config, _, batch, log_p, logits = case
    target = np.eye(config.V)[np.asarray(batch["targets"])] * (1 - smoothing) + smoothing / config.V
    losses = -(target * log_p).sum(-1) + z_loss * np.log(np.exp(logits).sum(-1)) ** 2
    weights = np.asarray(batch["weights"], np.float64)
    return (losses * weights).sum(), weights.sum()


def hypers(**values):
    names = [name for name in H.Hypers.__dataclass_fields__ if name not in values]
    return H.make(**dict.fromkeys(names, 0), **values)


def test_the_loss_is_the_weighted_cross_entropy_of_the_next_token(case, loss):
    _, params, batch, *_ = case
    total, weight, metrics = loss(params, batch)
    np.testing.assert_allclose((total, weight), by_hand(case), rtol=1e-5)
    assert metrics == {}


def test_tiles_of_the_head_change_nothing(case):
    config, params, batch, *_ = case

    def value_and_grad(tile):
        loss = lm.make_loss(config, LMConfig(head_tile=tile))
        return jax.jit(jax.value_and_grad(lambda p: loss(p, batch)[0]))(params)

    whole, grads = value_and_grad(None)
    for tile in (5, 16, 10_000):  # with a rest, without one, larger than the batch
        tiled, tiled_grads = value_and_grad(tile)
        np.testing.assert_allclose(tiled, whole, rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), tiled_grads, grads)


def test_smoothing_and_z_loss_are_the_config_s_or_the_traced_ones(case):
    config, params, batch, *_ = case
    loss = jax.jit(lm.make_loss(config, LMConfig(label_smoothing=0.1, z_loss=0.01)))
    np.testing.assert_allclose(loss(params, batch)[0], by_hand(case, 0.1, 0.01)[0], rtol=1e-5)
    traced = hypers(label_smoothing=0.3, z_loss=0.2, seed=0)
    np.testing.assert_allclose(loss(params, batch, None, traced)[0], by_hand(case, 0.3, 0.2)[0], rtol=1e-5)
    absent = jax.jit(lm.make_loss(config, LMConfig()))  # what the config leaves out, no hyperparameter brings back
    np.testing.assert_allclose(absent(params, batch, None, traced)[0], by_hand(case)[0], rtol=1e-5)


def test_a_key_turns_dropout_on_at_the_traced_rate(case, loss):
    _, params, batch, *_ = case
    plain, key = loss(params, batch)[0], jax.random.key(3)
    dropped = loss(params, batch, key, hypers(dropout=0.5, seed=0))[0]
    assert abs(dropped - plain) > 1e-2 and dropped == loss(params, batch, key, hypers(dropout=0.5, seed=0))[0]
    assert dropped != loss(params, batch, jax.random.key(4), hypers(dropout=0.5, seed=0))[0]
    np.testing.assert_allclose(loss(params, batch, key, hypers(dropout=0.0, seed=0))[0], plain, rtol=1e-5)
    assert loss(params, batch, None, hypers(dropout=0.5, seed=0))[0] == plain


def test_what_has_no_weight_does_not_count(case, loss):
    config, params, batch, *_ = case
    total, weight, _ = loss(params, batch)
    nowhere = batch["weights"] == 0
    moved = {**batch, "targets": jnp.where(nowhere, (batch["targets"] + 1) % config.V, batch["targets"])}
    assert nowhere.any() and loss(params, moved)[:2] == (total, weight)


def test_a_target_outside_the_vocabulary_is_not_silently_another_one(case, loss):
    config, params, batch, *_ = case
    wrong = {**batch, "targets": batch["targets"].at[0, 0].set(config.V), "weights": jnp.ones_like(batch["weights"])}
    assert np.isnan(loss(params, wrong)[0])


def test_a_new_model_is_as_good_as_a_guess(tiny):
    config = tiny.config(width=32, layers=1)
    params = P.init(transformer.specs(config), jax.random.key(0))
    total, weight, _ = jax.jit(lm.make_loss(config))(params, batch_of(config))
    assert total / weight == pytest.approx(math.log(config.V), rel=0.05)


def test_evaluation_adds_up_the_plain_loss(case):
    config, params, batch, *_ = case
    evaluate = jax.jit(lm.make_evaluation(config))
    sums = evaluate(params, batch)
    assert sums.keys() == {"nll", "weight"}
    np.testing.assert_allclose((sums["nll"], sums["weight"]), by_hand(case), rtol=1e-5)
    rows = [evaluate(params, jax.tree.map(lambda x, i=i: x[i : i + 1], batch)) for i in range(3)]
    for name, whole in sums.items():
        np.testing.assert_allclose(sum(row[name] for row in rows), whole, rtol=1e-5)


def test_bits_per_byte():
    assert lm.bits_per_byte(math.log(256), 1000, 1000) == pytest.approx(8)  # knowing nothing of bytes
    assert lm.bits_per_byte(math.log(2), 250, 1000) == pytest.approx(0.25)  # one bit for every token of four bytes


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"label_smoothing": 1.0}, "task.label_smoothing"),
        ({"label_smoothing": -0.1}, "task.label_smoothing"),
        ({"label_smoothing": math.nan}, "task.label_smoothing"),
        ({"z_loss": -1.0}, "task.z_loss"),
        ({"head_tile": 0}, "task.head_tile"),
    ],
)
def test_values_out_of_range_are_refused_by_name(values, field):
    with pytest.raises(UserError, match=field):
        LMConfig(**values)
