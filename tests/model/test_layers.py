"""The small pieces against their formulas in numpy."""

import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.leaves import rows_of
from research.model import layers
from research.model.config import GATED, Activation

draw = np.random.default_rng(0)


def array(*shape):
    return jnp.asarray(draw.normal(size=shape), jnp.float32)


@pytest.mark.parametrize(("inputs", "x", "w", "b", "formula"), [
    (1, (2, 3, 4), (4, 5), (5,), "abi,io->abo"),
    (1, (2, 3, 4), (4, 2, 3), (2, 3), "abi,ikh->abkh"),
    (2, (2, 3, 2, 5), (2, 5, 4), (4,), "abnh,nho->abo"),
])  # fmt: skip
def test_dot_contracts_what_it_says_forward_and_back(inputs, x, w, b, formula):
    x, w, b = array(*x), array(*w), array(*b)

    def reference(x, w, b):
        y = jnp.einsum(formula, x, w)
        return y + jnp.broadcast_to(b, y.shape)

    like = reference(x, w, b)
    weigh = array(*like.shape)
    both = jax.jit(
        lambda *a: [jax.vjp(f, *a)[1](weigh) for f in (reference, lambda x, w, b: layers.dot(x, w, b, inputs=inputs))]
    )
    np.testing.assert_allclose(layers.dot(x, w, b, inputs=inputs), like, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        layers.dot(x, w, inputs=inputs), reference(x, w, jnp.zeros_like(b)), rtol=1e-5, atol=1e-5
    )
    for expected, found in zip(*both(x, w, b), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_several_products_of_one_input_are_the_single_ones():
    x, ws, bs = array(2, 3, 4), [array(4, 2, 3), array(4, 1, 3), array(4, 5)], [array(2, 3), None, array(5)]

    def single(x, ws):
        return tuple(layers.dot(x, w, b) for w, b in zip(ws, bs, strict=True))

    weigh = tuple(array(*y.shape) for y in single(x, ws))
    one, many = jax.jit(
        lambda x, ws: [jax.vjp(f, x, ws)[1](weigh) for f in (single, lambda x, ws: layers.dots(x, ws, bs))]
    )(x, ws)
    for expected, found in zip(single(x, ws), layers.dots(x, ws, bs), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, many)


def test_products_are_in_the_dtype_of_the_activations():
    assert layers.dot(array(2, 3).astype(jnp.bfloat16), array(3, 4), array(4)).dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("scale", ["plain", "one-plus"])
@pytest.mark.parametrize("axes", [1, 2])
def test_norms_are_their_formulas(tiny, kind, scale, axes):
    config = tiny.config(norm=kind, norm_scale=scale, norm_eps=0.01)
    x, p = array(2, 3, 4, 5), {"scale": array(*(4, 5)[2 - axes :]), "bias": array(*(4, 5)[2 - axes :])}
    over = (-1,) if axes == 1 else (-2, -1)
    wide = np.asarray(x, np.float64)
    if kind == "layer":
        wide = wide - wide.mean(over, keepdims=True)
    wide = wide / np.sqrt((wide**2).mean(over, keepdims=True) + 0.01)
    w = np.asarray(p["scale"], np.float64) + (scale == "one-plus")
    np.testing.assert_allclose(layers.norm(x, {"scale": p["scale"]}, config), wide * w, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(layers.norm(x, p, config), wide * w + np.asarray(p["bias"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_norms_are_those_of_their_formulas(tiny, kind, bias):
    x, scale, p_bias, weigh = array(2, 3, 4, 5), array(4, 5), array(4, 5), array(2, 3, 4, 5)

    def formula(x, scale, p_bias):
        y = x - x.mean((-2, -1), keepdims=True) if kind == "layer" else x
        y = y / jnp.sqrt((y**2).mean((-2, -1), keepdims=True) + 0.01) * scale[None, None]
        return jnp.sum(weigh * (y + p_bias[None, None] if bias else y))

    def ours(x, scale, p_bias):
        p = {"scale": scale, "bias": p_bias} if bias else {"scale": scale}
        return jnp.sum(weigh * layers.norm(x, p, tiny.config(norm=kind, norm_eps=0.01)))

    expected, found = (jax.jit(jax.grad(f, (0, 1, 2)))(x, scale, p_bias) for f in (formula, ours))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_rows_that_all_share_get_the_sum_of_their_gradients():
    x, p, weigh = array(5, 3, 4), array(3, 4), array(5, 3, 4)
    np.testing.assert_allclose(layers.add_rows(x, p), x + p[None], rtol=1e-6)
    dx, dp = jax.jit(jax.grad(lambda x, p: jnp.sum(weigh * layers.add_rows(x, p)), (0, 1)))(x, p)
    np.testing.assert_allclose(dx, weigh)
    np.testing.assert_allclose(dp, weigh.sum(0), rtol=1e-5, atol=1e-6)
    assert layers.add_rows(x.astype(jnp.bfloat16), p).dtype == jnp.bfloat16
    half = jax.grad(lambda p: jnp.sum(layers.add_rows(x.astype(jnp.bfloat16), p).astype(jnp.float32)))(p)
    assert half.dtype == jnp.float32


@pytest.mark.parametrize("kind", get_args(Activation))
def test_activations_keep_nothing_but_their_inputs_on_accelerators(kind, monkeypatch):
    x, gate = array(6, 5), array(6, 5) if kind in GATED else None

    def value_and_grad(x):
        out, back = jax.vjp(lambda x: layers.activate(x, gate, kind), x)
        return out, back(jnp.ones_like(out))[0], [leaf.shape for leaf in jax.tree.leaves(back)]

    here = value_and_grad(x)
    monkeypatch.setattr(layers.sharding, "platform", lambda: "gpu")
    there = value_and_grad(x)
    np.testing.assert_allclose(there[0], here[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(there[1], here[1], rtol=1e-5, atol=1e-6)
    assert len([shape for shape in there[2] if shape == (6, 5)]) <= (2 if kind in GATED else 1)


def test_norms_of_half_precision_compute_in_float32(tiny):
    x = (1000 + jnp.arange(8.0)).astype(jnp.bfloat16)[None]  # the mean of squares would lose what the mean does not
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean()) / np.sqrt(wide.var() + 1e-5)
    found = layers.norm(x, {"scale": jnp.ones(8)}, tiny.config(norm="layer"))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=0.02)


def erf_gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def tanh_gelu(x):
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


@pytest.mark.parametrize("rows", [1, 2, layers.FEW_ROWS, layers.FEW_ROWS + 1])
def test_weights_by_rows_multiply_as_the_matrices_they_were_made_of(rows):
    rng = np.random.default_rng(0)
    p = {"q": rng.normal(size=(6, 2, 3)), "k": rng.normal(size=(6, 3)), "k_bias": rng.normal(size=3)}
    x = rng.normal(size=(rows, 1, 6))
    with jax.enable_x64(True):
        q, k, bias = (jnp.asarray(p[name]) for name in ("q", "k", "k_bias"))
        joined = rows_of([q, k], [None, bias], 1, jnp.float64)
        product = jax.jit(lambda x, joined: layers.project(x, {"q+k+": joined}, ("q", "k")))
        q, k = product(jnp.asarray(x), joined)
    np.testing.assert_allclose(q, np.tensordot(x, p["q"], 1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(k, x @ p["k"] + p["k_bias"], rtol=1e-12, atol=1e-12)


FORMULAS = {
    "relu": lambda x, g: np.maximum(x, 0),
    "relu2": lambda x, g: np.maximum(x, 0) ** 2,
    "sigmoid": lambda x, g: 1 / (1 + np.exp(-x)),
    "silu": lambda x, g: x / (1 + np.exp(-x)),
    "quick-gelu": lambda x, g: x / (1 + np.exp(-1.702 * x)),
    "gelu": lambda x, g: erf_gelu(x),
    "gelu-tanh": lambda x, g: tanh_gelu(x),
    "swiglu": lambda x, g: x * g / (1 + np.exp(-g)),
    "geglu": lambda x, g: x * erf_gelu(g),
    "geglu-tanh": lambda x, g: x * tanh_gelu(g),
}


@pytest.mark.parametrize("kind", FORMULAS)
def test_activations_and_their_gradients_are_their_formulas(kind):
    x, g = np.linspace(-6, 5.3, 23), np.linspace(4, -5.2, 23)

    def value_and_slopes(x, g):
        value, pull = jax.vjp(lambda x, g: layers.activate(x, g if kind in GATED else None, kind), x, g)
        return value, *pull(jnp.ones_like(value))

    with jax.enable_x64(True):
        value, by_x, by_g = jax.jit(value_and_slopes)(jnp.asarray(x), jnp.asarray(g))
    np.testing.assert_allclose(value, FORMULAS[kind](x, g), rtol=1e-6, atol=1e-9)
    h = 1e-5
    np.testing.assert_allclose(
        by_x, (FORMULAS[kind](x + h, g) - FORMULAS[kind](x - h, g)) / (2 * h), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        by_g, (FORMULAS[kind](x, g + h) - FORMULAS[kind](x, g - h)) / (2 * h), rtol=1e-5, atol=1e-6
    )


def test_every_declared_activation_is_tested():
    assert set(FORMULAS) == set(get_args(Activation))


@pytest.mark.parametrize(("vocab", "backend"), [(7, "cpu"), (2000, "cpu"), (2000, "gpu")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_lookups_own_gradient_is_that_of_a_plain_gather(vocab, backend, dtype, monkeypatch):
    table, tokens, g = array(vocab, 3), jnp.asarray([[3, 1, 3], [0, 3, vocab - 1]]), array(2, 3, 3).astype(dtype)

    def pulled(table, tokens, g, find):
        value, pull = jax.vjp(lambda table: find(table, tokens, dtype), table)
        return value, pull(g)[0]

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    ours = jax.jit(lambda *a: pulled(*a, layers.lookup))
    text = ours.lower(table, tokens, g).as_text()
    value, gradient = ours(table, tokens, g)
    expected, plain = jax.jit(lambda *a: pulled(*a, lambda table, tokens, dtype: table[tokens].astype(dtype)))(
        table, tokens, g
    )
    monkeypatch.undo()
    assert value.dtype == dtype and gradient.dtype == jnp.float32
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_allclose(gradient, plain, rtol=1e-5, atol=1e-6)
    assert ("dot_general" in text) == (vocab == 7) and ("stablehlo.sort" in text) == (backend == "gpu"), (
        "the path that was meant"
    )


def test_gradients_of_repeated_tokens_add_up_in_the_dtype_of_the_table():
    tokens, g = jnp.zeros((300,), jnp.int32), jnp.full((300, 1), 1.0, jnp.bfloat16)
    for vocab in (7, 2000):
        _, pull = jax.vjp(lambda table: layers.lookup(table, tokens, jnp.bfloat16), jnp.zeros((vocab, 1)))
        assert float(pull(g)[0][0, 0]) == 300, "bfloat16 sums stop growing at 256"


def test_soft_cap():
    x = jnp.asarray([-1e6, -1.0, 0.0, 2.0, 1e6])
    np.testing.assert_allclose(layers.soft_cap(x, 5.0), 5 * np.tanh(np.asarray(x) / 5), rtol=1e-6)
    assert layers.soft_cap(x, None) is x


def test_parameters_align_with_the_last_axes():
    y = layers.beside(jnp.ones((3, 4), jnp.float32), jnp.zeros((2, 5, 3, 4), jnp.bfloat16))
    assert y.shape == (1, 1, 3, 4) and y.dtype == jnp.bfloat16


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_expectation_and_the_share(rate):
    x = jnp.full((200, 100), 3.0)
    y = np.asarray(layers.dropout(x, rate, jax.random.key(0)))
    assert set(np.unique(y.round(4))) == {0, np.float32(3 / (1 - rate)).round(4)}
    assert abs((y == 0).mean() - rate) < 0.01 and abs(y.mean() - 3) < 0.05


def test_dropout_takes_a_traced_rate_and_follows_its_key():
    x = jnp.ones((50, 40))
    drop = jax.jit(layers.dropout)
    np.testing.assert_array_equal(drop(x, 0.0, jax.random.key(0)), x)
    a, b, c = drop(x, 0.5, jax.random.key(0)), drop(x, 0.5, jax.random.key(0)), drop(x, 0.5, jax.random.key(1))
    np.testing.assert_array_equal(a, b)
    assert 0.4 < (np.asarray(a) != np.asarray(c)).mean() < 0.6
    assert layers.dropout(x.astype(jnp.bfloat16), jnp.float32(0.3), jax.random.key(0)).dtype == jnp.bfloat16


def test_dropout_without_rate_or_key_is_the_input_itself():
    x = jnp.ones(3)
    assert layers.dropout(x, None, jax.random.key(0)) is x and layers.dropout(x, 0.5, None) is x
