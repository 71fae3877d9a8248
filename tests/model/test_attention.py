"""The attention seam: masks against loops, implementations against each other and against JAX's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.model import attention
from research.model.attention import Bias, Mask
from research.model.positions import alibi_slopes

B, T, N, K, H = 2, 7, 4, 2, 8
draw = np.random.default_rng(0)
q, out = (jnp.asarray(draw.normal(size=(B, T, N, H)), jnp.float32) for _ in range(2))
k, v = (jnp.asarray(draw.normal(size=(B, T, K, H)), jnp.float32) for _ in range(2))
SEGMENTS = jnp.asarray([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 2, 2, 2, 2]])
PATTERNS = {"full": {}, "sliding": {"window": 3}, "strided": {"window": 2, "stride": 3}}


def seen(pattern, back, window, stride):
    """The definition, a pair at a time."""
    if back < 0:
        return False
    if pattern == "full":
        return True
    return back < window or (pattern == "strided" and back % stride == 0)


@given(st.sampled_from(list(PATTERNS)), st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(1, 6))
def test_masks_are_their_definition(pattern, T, S, window, stride):
    allowed = np.asarray(Mask(pattern, window, stride).allowed(T, S))
    assert allowed.shape == (1, T, S)
    for t in range(T):
        for s in range(S):
            assert allowed[0, t, s] == seen(pattern, t - s, window, stride)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_masks_of_given_positions_and_segments(pattern):
    queries, keys = np.array([[4, 9, -1], [0, 5, 6]]), np.array([[8, 9, 4, -1], [3, -1, 5, 6]])
    own, theirs = np.array([[1, 1, 1], [1, 1, 2]]), np.array([[1, 1, 1, 1], [1, 1, 2, 2]])
    mask = Mask(pattern, 3, 4, *(jnp.asarray(x) for x in (queries, keys, own, theirs)))
    allowed = np.asarray(mask.allowed(3, 4))
    for b in range(2):
        for t in range(3):
            for s in range(4):
                expected = (
                    keys[b, s] >= 0 and own[b, t] == theirs[b, s] and seen(pattern, queries[b, t] - keys[b, s], 3, 4)
                )
                assert allowed[b, t, s] == expected


CASES = {
    **{pattern: (Mask(pattern, **sizes), {}) for pattern, sizes in PATTERNS.items()},
    "segments": (Mask("sliding", 2, query_segments_BT=SEGMENTS, key_segments_BS=SEGMENTS), {}),
    "alibi": (Mask(), {"bias": Bias(alibi_slopes(N))}),
    "positions": (
        Mask(
            "sliding",
            3,
            query_positions_BT=jnp.arange(T)[None] + jnp.asarray([[0], [2]]),
            key_positions_BS=jnp.arange(T)[None] + jnp.zeros((B, 1), int),
        ),
        {},
    ),
}


def reference(mask, bias=None):
    """JAX's own attention, told everything as dense arrays."""
    dense = np.broadcast_to(np.asarray(mask.allowed(T, T)), (B, T, T))[:, None]
    back = np.subtract(*(np.asarray(x) for x in mask.positions(T, T)))
    extra = None if bias is None else jnp.asarray(-bias.slopes_N[None, :, None, None] * back[:, None], q.dtype)
    return lambda q, k, v: jax.nn.dot_product_attention(
        q, k, v, extra, jnp.asarray(dense), scale=0.3, implementation="xla"
    )


@pytest.mark.parametrize("case", CASES)
def test_implementations_agree_with_jax_in_values_and_gradients(case, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 3)  # 7 queries are two blocks and a part
    mask, options = CASES[case]

    def attend(name):
        return lambda q, k, v: attention.attend(q, k, v, mask, scale=0.3, implementation=name, **options)

    def value_and_gradients(function):
        value, pull = jax.vjp(function, q, k, v)
        return value, pull(out)

    functions = {"plain": attend("plain"), "blocked": attend("blocked"), "jax": reference(mask, **options)}
    found = jax.jit(lambda: {name: value_and_gradients(f) for name, f in functions.items()})()
    for name in ("plain", "blocked"):
        jax.tree.map(
            lambda a, b, name=name: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name),
            found[name],
            found["jax"],
        )


def test_soft_cap_and_scale_are_their_formula(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 3)
    wide_q, wide_k, wide_v = (np.asarray(x, np.float64) for x in (q, k, v))
    expected = np.zeros((B, T, N, H))
    for b in range(B):
        for n in range(N):
            logits = wide_q[b, :, n] @ wide_k[b, :, n // (N // K)].T * 0.7
            logits = np.where(np.tril(np.ones((T, T))) > 0, 2 * np.tanh(logits / 2), -np.inf)
            p = np.exp(logits - logits.max(-1, keepdims=True))
            expected[b, :, n] = p / p.sum(-1, keepdims=True) @ wide_v[b, :, n // (N // K)]
    for name in ("plain", "blocked"):
        found = jax.jit(lambda name=name: attention.attend(q, k, v, Mask(), scale=0.7, cap=2.0, implementation=name))()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_query_that_sees_nothing_gives_no_nan():
    empty = Mask(key_positions_BS=jnp.full((B, T), -1), query_positions_BT=jnp.zeros((B, T), int))

    @jax.jit
    def value_and_gradient(q):
        value, pull = jax.vjp(lambda q: attention.attend(q, k, v, empty, scale=0.3), q)
        return value, pull(out)[0]

    value, gradient = value_and_gradient(q)
    np.testing.assert_allclose(
        value, np.broadcast_to(np.repeat(v.mean(1, keepdims=True), N // K, 2), value.shape), rtol=1e-4, atol=1e-5
    )
    assert np.isfinite(gradient).all()


def test_probabilities_are_at_least_float32_and_sum_to_one():
    half = q.astype(jnp.bfloat16), k.astype(jnp.bfloat16)
    p = attention.probabilities(*half, Mask("sliding", 3), scale=0.3)
    assert p.dtype == jnp.float32 and p.shape == (B, N, T, T)
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(p, attention.probabilities(q, k, Mask("sliding", 3), scale=0.3), atol=0.02)


@pytest.mark.parametrize("name", ["plain", "blocked"])
def test_dropped_attention_weights_keep_their_expectation(name, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 3)
    ones = jnp.ones_like(v)

    @jax.jit
    def shares(key, rate):
        return jax.vmap(
            lambda key: attention.attend(q, k, ones, Mask(), scale=0.1, rate=rate, key=key, implementation=name)
        )(jax.random.split(key, 400))

    found = np.asarray(shares(jax.random.key(0), 0.5))
    assert found.std() > 0.2 and (np.abs(found.mean((0, 1, 3, 4)) - 1) < 0.05).all()
    assert abs((found[:, :, 0] == 0).mean() - 0.5) < 0.03, "the first query has one key"
    np.testing.assert_allclose(shares(jax.random.key(0), 0.0), 1, rtol=1e-5)


def test_blocks_drop_weights_of_their_own(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 3)
    each = jnp.broadcast_to(jnp.eye(T, H)[None, :, None], v.shape)  # the output is the weights
    options = {"scale": 0.1, "rate": 0.5, "key": jax.random.key(0), "implementation": "blocked"}
    dropped = np.asarray(jax.jit(lambda: attention.attend(q, k, each, Mask(), **options))()) == 0
    assert (dropped[:, 2, :, :3] != dropped[:, 5, :, :3]).any(), "the last queries of the first and the second block"


@pytest.mark.parametrize(
    ("backend", "dtype", "mask", "options", "lengths", "expected"),
    [
        ("gpu", "bfloat16", Mask(), {}, (64, 64), "cudnn"),
        ("gpu", "float16", Mask("sliding", 3), {}, (4096, 4096), "cudnn"),
        ("gpu", "float32", Mask(), {}, (64, 64), "plain"),
        ("gpu", "bfloat16", Mask("strided", 3, 2), {}, (64, 64), "plain"),
        ("gpu", "bfloat16", Mask(query_segments_BT=SEGMENTS, key_segments_BS=SEGMENTS), {}, (64, 64), "plain"),
        ("gpu", "bfloat16", Mask(query_positions_BT=SEGMENTS), {}, (64, 64), "plain"),
        ("gpu", "bfloat16", Mask(), {"cap": 30.0}, (64, 64), "plain"),
        ("gpu", "bfloat16", Mask(), {"rate": 0.1}, (64, 64), "plain"),
        ("gpu", "bfloat16", Mask(), {"bias": Bias(alibi_slopes(4))}, (64, 64), "plain"),
        ("gpu", "bfloat16", Mask(), {"cap": 30.0}, (4096, 4096), "blocked"),
        ("tpu", "bfloat16", Mask(), {}, (256, 256), "splash"),
        ("tpu", "float32", Mask("sliding", 3), {"cap": 30.0}, (128, 128), "splash"),
        ("tpu", "bfloat16", Mask(), {}, (64, 64), "plain"),
        ("tpu", "bfloat16", Mask(), {}, (128, 256), "plain"),
        ("tpu", "bfloat16", Mask("strided", 3, 2), {}, (256, 256), "plain"),
        ("tpu", "bfloat16", Mask(query_positions_BT=SEGMENTS), {}, (256, 256), "plain"),
        ("tpu", "bfloat16", Mask(), {"bias": Bias(alibi_slopes(4))}, (4096, 4096), "blocked"),
        ("cpu", "bfloat16", Mask(), {}, (64, 64), "plain"),
        ("cpu", "float32", Mask(), {}, (4096, 4096), "blocked"),
        ("cpu", "float32", Mask(), {}, (1, 4096), "plain"),
    ],
)
def test_the_implementation_for_a_device_and_case(backend, dtype, mask, options, lengths, expected, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(attention, "_cudnn_has", lambda size: True)
    shapes = [jax.ShapeDtypeStruct((1, length, 4, 64), jnp.dtype(dtype)) for length in lengths]
    assert attention.choose(*shapes, mask, **{"cap": None, "bias": None, "rate": None, **options}) == expected


@pytest.mark.parametrize(
    "options", [{"cap": 30.0}, {"rate": 0.1, "key": jax.random.key(0)}, {"bias": Bias(alibi_slopes(4))}]
)
def test_cudnn_asked_for_where_it_cannot_serve_is_an_error(options):
    half = jnp.zeros((1, 4, 4, 64), jnp.bfloat16)
    with pytest.raises(UserError, match="model.attention is cudnn, which needs"):
        attention.attend(half, half, half, Mask(), scale=0.3, implementation="cudnn", **options)
    with pytest.raises(UserError, match="use auto"):
        attention.attend(q, k, v, Mask(), scale=0.3, implementation="cudnn")


def test_a_rate_without_a_key_is_no_dropout():
    text = str(jax.make_jaxpr(lambda: attention.attend(q, k, v, Mask(), scale=0.3, rate=0.5))())
    assert "random" not in text and "threefry" not in text


def test_the_implementation_is_logged_once(caplog):
    attention._say.cache_clear()
    with caplog.at_level("INFO", logger="research.model.attention"):
        for _ in range(2):
            jax.eval_shape(lambda: attention.attend(q, k, v, Mask(), scale=0.3))
    assert [r.message for r in caplog.records] == ["attention: plain implementation"]


@pytest.mark.parametrize("options", [{}, {"cap": 5.0}], ids=["plain", "capped"])
@pytest.mark.parametrize("mask", [Mask(), Mask("sliding", 40)], ids=["full", "sliding"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_kernel_for_tpus_is_the_plain_one(mask, options, packed):
    """Interpreted, in float32: grouped queries, a head size that is padded, segments."""
    draw = np.random.default_rng(0)
    q, k, v = (jnp.asarray(draw.normal(size=(2, 128, heads, 24)), jnp.float32) for heads in (4, 2, 2))
    if packed:
        segments = jnp.asarray(np.arange(128)[None] > np.array([[50], [90]]), jnp.int32)
        mask = dataclasses.replace(mask, query_segments_BT=segments, key_segments_BS=segments)

    def total(name, q, k, v):
        return jnp.sum(jnp.sin(attention.attend(q, k, v, mask, scale=0.2, implementation=name, **options)))

    found, expected = (
        jax.jit(jax.value_and_grad(total, argnums=(1, 2, 3)), static_argnums=0)(name, q, k, v)
        for name in ("splash", "plain")
    )
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=2e-5)
