"""The head: whole or tiled, padded or not, tied or not."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.model import head
from research.tasks.losses import softmax_cross_entropy

CONFIGS = {
    "tied": {"tied": True},
    "separate": {"tied": False, "bias": ("unembed",), "logit_soft_cap": 3.0},
    "tied with bias": {"tied": True, "bias": ("unembed",)},
}


@pytest.fixture(scope="module", params=CONFIGS)
def case(request, tiny):
    config = tiny.config(**CONFIGS[request.param])
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(2, 5, config.width)), jnp.float32)
    return config, tiny.params(config), x, tiny.tokens(config, 2, 5)


def test_logits_are_their_formula(case, monkeypatch):
    config, params, x, _ = case
    w = np.asarray(params["embed"]["tokens"]).T if config.tied else np.asarray(params["unembed"]["kernel"])
    expected = np.asarray(x) @ w + (np.asarray(params["unembed"]["bias"]) if "unembed" in config.bias else 0)
    if config.logit_soft_cap:
        expected = 3 * np.tanh(expected / 3)
    np.testing.assert_allclose(head.logits(params, x, config), expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # pads the vocabulary inside
    padded = jax.jit(lambda params, x: head.logits(params, x, config))
    assert f"x{head.PAD_TO}xf32" in padded.lower(params, x).as_text()
    np.testing.assert_allclose(padded(params, x), expected, rtol=1e-4, atol=1e-5)


def test_logits_of_half_precision_are_float32(case):
    config, params, x, _ = case
    assert head.logits(params, x.astype(jnp.bfloat16), config).dtype == jnp.float32


@pytest.mark.parametrize("tile", [1, 5])
def test_tiles_give_the_losses_and_gradients_of_the_whole(case, tile):
    config, params, x, targets = case
    weigh = jnp.asarray(np.random.default_rng(1).normal(size=targets.shape), jnp.float32)

    def value_and_gradients(tile):
        value, pull = jax.vjp(
            lambda params, x: head.losses(params, x, targets, config, softmax_cross_entropy, tile), params, x
        )
        return value, pull(weigh)

    whole, tiled = jax.jit(lambda: (value_and_gradients(None), value_and_gradients(tile)))()
    assert whole[0].shape == targets.shape
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, tiled)


def test_tiles_hold_one_tile_of_logits(tiny):
    config = tiny.config(tied=False)
    params, x, targets = tiny.params(config), jnp.ones((2, 5, config.width)), tiny.tokens(config, 2, 5)

    def rows(tile):
        losses = lambda x: head.losses(params, x, targets, config, softmax_cross_entropy, tile).sum()  # noqa: E731
        shapes = {a.shape for a in arrays(jax.make_jaxpr(jax.grad(losses))(x).jaxpr) if a.shape[-1:] == (config.V,)}
        return max(math.prod(shape[:-1]) for shape in shapes - {(config.width, config.V)})  # logits, not their weights

    assert [rows(tile) for tile in (None, 1, 3, 4, 9, 10, 50)] == [10, 2, 2, 4, 8, 10, 10]


def arrays(jaxpr):
    """Every array of a program, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (v.aval for v in equation.outvars if hasattr(v.aval, "shape"))
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from arrays(getattr(inner, "jaxpr", inner))
