"""Worked examples, defining formulas in float64 NumPy, gradients and extremes of the losses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.test_util import check_grads

from research.tasks import losses


def reference(logits, labels, smoothing=0.0, z_loss=0.0):
    """The defining formula, term by term, in float64."""
    logits = np.asarray(logits, np.float64)
    classes = logits.shape[-1]
    log_sum = np.log(np.sum(np.exp(logits), axis=-1))
    target = (1 - smoothing) * np.eye(classes)[labels] + smoothing / classes
    return -np.sum(target * (logits - log_sum[..., None]), axis=-1) + z_loss * log_sum**2


def data(shape=(3, 4, 11), seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=shape).astype(np.float32) * 3, generator.integers(0, shape[-1], shape[:-1])


def test_cross_entropy_of_a_one_hot_target_is_not_divided_by_the_classes():
    loss = losses.cross_entropy([0.8, 0.1, 0.1], [1, 0, 0])
    assert loss == pytest.approx(0.2231, abs=5e-5) and loss == pytest.approx(-math.log(0.8), rel=1e-6)
    # A published text divides this sum by the 3 classes, which would give 0.0744, and still prints 0.22.
    assert loss / 3 == pytest.approx(0.0744, abs=5e-5)


def test_softmax_cross_entropy_gives_the_same_example_from_logits():
    assert losses.softmax_cross_entropy(jnp.log(jnp.array([0.8, 0.1, 0.1])), 0) == pytest.approx(0.2231, abs=5e-5)


def test_mean_squared_error_example():
    assert losses.mean_squared_error([1.2, 2.1, 3.5], [1, 2, 3]) == pytest.approx(0.1, rel=1e-6)


def test_mean_squared_error_is_one_number_per_row():
    np.testing.assert_allclose(
        losses.mean_squared_error([[1.0, 2.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]), [2.5, 8.0]
    )


def test_sigmoid_cross_entropy_is_the_two_class_cross_entropy():
    for logit, label in ((0.3, 1.0), (-2.0, 1.0), (1.5, 0.0), (0.7, 0.25)):
        p = jax.nn.sigmoid(logit)
        expected = losses.cross_entropy([p, 1 - p], [label, 1 - label])
        assert losses.sigmoid_cross_entropy(logit, label) == pytest.approx(float(expected), rel=1e-5)


def test_sigmoid_cross_entropy_at_extremes():
    np.testing.assert_allclose(losses.sigmoid_cross_entropy([1e4, -1e4, 1e4, -1e4], [1, 0, 0, 1]), [0, 0, 1e4, 1e4])
    # The small loss of a confident right answer survives: 1 - sigmoid(30) is 0 in float32, but its loss is exp(-30).
    assert losses.sigmoid_cross_entropy(30.0, 1.0) == pytest.approx(math.exp(-30), rel=1e-5)
    gradient = jax.grad(lambda x: jnp.sum(losses.sigmoid_cross_entropy(x, jnp.array([1.0, 0.0, 1.0, 1.0]))))
    np.testing.assert_allclose(gradient(jnp.array([1e4, 1e4, -1e4, 0.0])), [0, 1, -1, -0.5])


@pytest.mark.parametrize(("smoothing", "z_loss"), [(None, None), (0.1, None), (None, 1e-2), (0.2, 1e-3), (0.0, 0.0)])
def test_softmax_cross_entropy_is_its_formula(smoothing, z_loss):
    logits, labels = data()
    got = jax.jit(lambda s, z: losses.softmax_cross_entropy(logits, labels, label_smoothing=s, z_loss=z))(
        smoothing, z_loss
    )
    assert got.shape == labels.shape and got.dtype == jnp.float32
    np.testing.assert_allclose(got, reference(logits, labels, smoothing or 0.0, z_loss or 0.0), rtol=2e-6, atol=1e-6)


def test_softmax_cross_entropy_gradient_is_softmax_minus_target():
    logits, labels = data((5, 7))
    smoothing, z_loss = 0.1, 0.01
    got = jax.grad(
        lambda x: jnp.sum(losses.softmax_cross_entropy(x, labels, label_smoothing=smoothing, z_loss=z_loss))
    )(logits)
    p = np.exp(np.float64(logits)) / np.exp(np.float64(logits)).sum(-1, keepdims=True)
    log_sum = np.log(np.exp(np.float64(logits)).sum(-1, keepdims=True))
    expected = p * (1 + 2 * z_loss * log_sum) - (1 - smoothing) * np.eye(7)[labels] - smoothing / 7
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


def test_softmax_cross_entropy_differentiates_every_way():
    """The label's logit has its own derivative rule, so forward mode, second order and vmap are checked against finite differences."""
    with jax.enable_x64(True):
        logits, labels = data((2, 5))
        logits = jnp.asarray(logits, jnp.float64)

        @jax.jit
        def loss(x, s, z):
            return jnp.sum(losses.softmax_cross_entropy(x, labels, label_smoothing=s, z_loss=z))

        check_grads(loss, (logits, 0.1, 0.01), order=2, modes=("fwd", "rev"))
        each = jax.vmap(jax.grad(lambda x, y: losses.softmax_cross_entropy(x, y)))(logits, jnp.asarray(labels))
        np.testing.assert_allclose(each, jax.grad(loss)(logits, 0.0, 0.0), rtol=1e-12)


value_and_grad = jax.jit(jax.value_and_grad(lambda x, y: jnp.sum(losses.softmax_cross_entropy(x, y))))


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.float32, (2, 5), elements=st.floats(-3e4, 3e4, width=32)),
    hnp.arrays(np.int32, 2, elements=st.integers(0, 4)),
)
def test_softmax_cross_entropy_is_finite_and_does_not_see_a_shift(logits, labels):
    value, gradient = value_and_grad(logits, labels)
    assert np.isfinite(value) and value >= 0 and np.all(np.isfinite(gradient))
    np.testing.assert_allclose(np.sum(gradient, axis=-1), 0, atol=1e-5)
    shifted, _ = value_and_grad(logits - np.max(logits, axis=-1, keepdims=True), labels)
    np.testing.assert_allclose(shifted, value, rtol=1e-5, atol=0.02)


def test_the_dtype_of_reductions():
    logits, labels = data((4, 9))
    assert losses.softmax_cross_entropy(jnp.asarray(logits, jnp.bfloat16), labels).dtype == jnp.float32
    half = jnp.asarray(logits, jnp.bfloat16)
    np.testing.assert_allclose(
        losses.softmax_cross_entropy(half, labels), reference(np.float64(half), labels), rtol=1e-5
    )
    assert jax.grad(lambda x: losses.softmax_cross_entropy(x, labels).sum())(half).dtype == jnp.bfloat16
    with jax.enable_x64(True):
        wide = jnp.asarray(np.float64(logits))
        got = losses.softmax_cross_entropy(wide, labels, label_smoothing=0.1)
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, reference(wide, labels, 0.1), rtol=1e-14)
        assert losses.weighted_sum(got, jnp.ones(4))[0].dtype == jnp.float64


def test_labels_outside_the_vocabulary_do_not_pass_unseen():
    assert np.isnan(losses.softmax_cross_entropy(jnp.zeros((2, 3)), jnp.array([3, -1]))).all()


def test_shapes_that_disagree_are_refused():
    for call in (
        lambda: losses.softmax_cross_entropy(jnp.zeros((2, 4, 3)), jnp.zeros((2, 1), int)),
        lambda: losses.mean_squared_error(jnp.zeros(3), jnp.zeros((3, 1))),
        lambda: losses.weighted_sum(jnp.zeros(3), jnp.zeros((2, 3))),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()


def test_weighted_sum():
    total, weight = losses.weighted_sum([1.0, 2.0, 4.0], [1.0, 0.0, 0.5])
    assert (float(total), float(weight)) == (3.0, 1.5)


def test_weight_zero_hides_what_is_not_finite():
    def mean(x):
        total, weight = losses.weighted_sum(losses.softmax_cross_entropy(x, jnp.array([0, 9])), jnp.array([1.0, 0.0]))
        return total / weight

    value, gradient = jax.value_and_grad(mean)(jnp.zeros((2, 3)))
    assert value == pytest.approx(math.log(3))
    np.testing.assert_allclose(gradient, [[-2 / 3, 1 / 3, 1 / 3], [0, 0, 0]], rtol=1e-6)


def test_zero_targets_take_no_logarithm():
    assert losses.cross_entropy([1.0, 0.0], [1.0, 0.0]) == 0
    np.testing.assert_allclose(
        losses.cross_entropy([[0.5, 0.5], [0.25, 0.75]], [[1, 0], [0, 1]]), [math.log(2), -math.log(0.75)], rtol=1e-6
    )


def test_the_gradient_of_the_picked_logit_is_no_scatter():
    logits, labels = data((6, 8))
    text = jax.jit(jax.grad(lambda x: losses.softmax_cross_entropy(x, labels).sum())).lower(logits).as_text()
    assert "scatter" not in text and "gather" not in text.replace("all_gather", "")
