"""Gradients that a CPU computes in a way of its own: of a weight with more rows than columns, and of GELU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.model import layers


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 6)])
def test_gradients_of_dot_are_those_of_the_plain_product(shape):
    draw = np.random.default_rng(0)
    x, w, g = (jnp.asarray(draw.normal(size=size), jnp.float32) for size in ((2, 3, shape[0]), shape, (2, 3, shape[1])))
    ours = jax.grad(lambda x, w: jnp.sum(layers.dot(x, w) * g), (0, 1))(x, w)
    plain = jax.grad(lambda x, w: jnp.sum(jnp.einsum("bti,io->bto", x, w) * g), (0, 1))(x, w)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, plain)


@pytest.mark.parametrize("kind", ["gelu", "gelu-tanh"])
def test_first_and_second_derivatives_of_gelu_are_those_of_jax(kind):
    x = jnp.linspace(-6.0, 6.0, 101)

    def sums(gelu):
        def first(x):
            return jax.grad(lambda x: jnp.sum(gelu(x)))(x)

        return gelu(x), first(x), jax.grad(lambda x: jnp.sum(first(x) ** 2))(x)

    ours = sums(lambda x: layers.activate(x, None, kind))
    theirs = sums(lambda x: jax.nn.gelu(x, approximate=kind == "gelu-tanh"))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
