"""Optimisers: worked examples, Optax's own as the reference, layers apart, members apart, masks, donation, shardings."""

import dataclasses
import functools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.core import hypers as H
from research.core import params as P
from research.core.errors import UserError
from research.train import optim

KINDS = get_args(optim.OptimizerConfig.__dataclass_fields__["kind"].type)
NORMAL = P.normal(0.5)


def matrix(shape, axes, inputs):
    return P.Param(shape, axes, NORMAL, inputs)


def vector(size, init=NORMAL):
    return P.Param((size,), ("embed",), init)


# A network with all that an optimiser tells apart: a table, projections with one and two inputs over stacked layers, vectors.
SPECS = {
    "embedding": P.Param((5, 4), ("vocab", "embed"), NORMAL),
    "layers": {
        "in": matrix((4, 2, 3), ("embed", "heads", "head"), 1).stack(2),
        "out": matrix((2, 3, 4), ("heads", "head", "embed"), 2).stack(2),
        "scale": vector(4).stack(2),
    },
    "bias": vector(4),
}
TOKENS = jnp.arange(5)


def loss(params, target=0.7):
    x = params["embedding"][TOKENS]
    for layer in range(2):
        p = jax.tree.map(lambda leaf: leaf[layer], params["layers"])  # noqa: B023
        x = x * p["scale"][None] + jnp.einsum("bnh,nhd->bd", jnp.tanh(jnp.einsum("bd,dnh->bnh", x, p["in"])), p["out"])
    return jnp.mean(jnp.square(x + params["bias"][None] - target * jnp.cos(jnp.arange(20.0).reshape(5, 4))))


def hypers(**changes) -> H.Hypers:
    values = dict.fromkeys(H.Hypers.__dataclass_fields__, 0.0)
    values.update(
        learning_rate=0.02,
        warmup_steps=5,
        horizon=40,
        floor=0.1,
        weight_decay=0.1,
        momentum=0.9,
        beta1=0.9,
        beta2=0.95,
        eps=1e-8,
    )
    return H.make(**{**values, "adam_ratio": 1.0, **changes})


def config(kind, schedule="cosine", **changes) -> optim.OptimizerConfig:
    return optim.OptimizerConfig(kind=kind, schedule=optim.ScheduleConfig(kind=schedule), **changes)


def constant(**changes) -> H.Hypers:
    return hypers(**{"learning_rate": 0.1, "warmup_steps": 0, "weight_decay": 0.0, **changes})


def drawn(specs, seed=0, dtype=jnp.float32):
    """Initial values from NumPy, which compiles nothing."""
    generator = np.random.default_rng(seed)
    return P.tree_map(lambda p: jnp.asarray(generator.normal(size=p.shape) * 0.5, dtype), specs)


def start(dtype=jnp.float32, seed=0):
    return drawn(SPECS, seed, dtype)


def train(c, specs, h, params, function, steps):
    """`(params, state, losses)` after `steps` updates, as one scan."""

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(function)(params)
        params, state, _ = optim.apply(c, specs, h, grads, state, params)
        return (params, state), value

    (params, state), values = jax.lax.scan(step, (params, optim.init(c, specs, h, params)), length=steps)
    return params, state, values


@functools.cache
def compiled(kind):
    """One donating step of the network, jitted."""

    def step(params, state, h):
        value, grads = jax.value_and_grad(loss)(params)
        return *optim.apply(config(kind), SPECS, h, grads, state, params), value

    return jax.jit(step, donate_argnums=(0, 1))


# Worked examples: parameters [1, 2], gradient [-0.5, -1], rate 0.1.
WEIGHTS, GRADIENT = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([-0.5, -1.0])}


def first_step(kind, **changes):
    c, specs, h = config(kind, "constant"), {"w": vector(2)}, constant(**changes)
    return optim.apply(c, specs, h, GRADIENT, optim.init(c, specs, h, WEIGHTS), WEIGHTS)[0]["w"]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradient_descent_example(momentum):
    """A published text prints [0.5, 1.1] here."""
    np.testing.assert_allclose(first_step("sgd", momentum=momentum), [1.05, 2.1], rtol=1e-6)


def test_plain_adam_formula_example():
    """Adam without bias correction, given its moments. A published text prints [0.75, 1.5] for it; Optax always corrects the bias."""
    m, v = np.array([-0.5, -1.0]), np.array([0.25, 0.1])
    np.testing.assert_allclose(np.array([1.0, 2.0]) - 0.1 * m / (np.sqrt(v) + 1e-4), [1.09998, 2.31613], atol=5e-6)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_first_step_of_adam_example(kind):
    np.testing.assert_allclose(first_step(kind, beta2=0.999), [1.1, 2.1], rtol=1e-6)


def test_adam_after_several_steps_is_its_formula():
    with jax.enable_x64(True):
        c, specs, h = config("adam", "constant"), {"w": vector(2)}, constant(eps=1e-4)
        params = {"w": jnp.array([1.0, 2.0])}
        state, w, m, v = optim.init(c, specs, h, params), np.array([1.0, 2.0]), np.zeros(2), np.zeros(2)
        for t in range(1, 5):
            g = np.array([-0.5, -1.0]) * t + w
            m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
            w = w - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-4)
            params, state, _ = optim.apply(c, specs, h, {"w": jnp.asarray(g)}, state, params)
            np.testing.assert_allclose(params["w"], w, rtol=1e-12)


OPTAX = {
    "sgd": lambda: optax.chain(
        optax.trace(0.9), optax.add_decayed_weights(0.1, P.decay_mask(SPECS)), optax.scale(-0.1)
    ),
    "adam": lambda: optax.adam(0.1, 0.9, 0.95, 1e-8),
    "adamw": lambda: optax.adamw(0.1, 0.9, 0.95, 1e-8, weight_decay=0.1, mask=P.decay_mask(SPECS)),
    "lion": lambda: optax.lion(0.1, 0.9, 0.95, weight_decay=0.1, mask=P.decay_mask(SPECS)),
    "adafactor": lambda: optax.adafactor(0.1, weight_decay_rate=0.1 * 0.1, weight_decay_mask=P.decay_mask(SPECS)),
}


@pytest.mark.parametrize("kind", OPTAX)
def test_equal_to_the_plain_optimiser_of_optax(kind):
    """Unstacked, since Optax's Adafactor takes its means over all layers of a stacked leaf together."""
    specs = {
        **SPECS,
        "layers": P.tree_map(lambda p: dataclasses.replace(p, shape=p.shape[1:], axes=p.axes[1:]), SPECS["layers"]),
    }
    params = jax.tree.map(lambda p: p + 0.3, drawn(specs, 1))
    c, h, theirs = config(kind, "constant"), constant(weight_decay=0.1), OPTAX[kind]()

    def both(ours, reference, scale):
        grads = jax.tree.map(lambda p: jnp.sin(p * scale), params)
        updates, state = theirs.update(grads, reference[1], reference[0])
        return optim.apply(c, specs, h, grads, ours[1], ours[0])[:2], (
            optax.apply_updates(reference[0], updates),
            state,
        )

    both, ours, reference = jax.jit(both), (params, optim.init(c, specs, h, params)), (params, theirs.init(params))
    for scale in (1.0, 5.0, 9.0):
        ours, reference = both(ours, reference, scale)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours[0], reference[0])


@pytest.mark.parametrize("kind", KINDS)
def test_lowers_a_quadratic(kind):
    specs = {"w": matrix((6, 4), ("embed", "mlp"), 1), "b": vector(4)}
    params = drawn(specs)
    c = config(kind, "constant" if kind == "schedule-free-adamw" else "cosine")
    h = hypers(
        learning_rate={"adafactor": 0.3, "muon": 0.2}.get(kind, 0.05),
        warmup_steps=3,
        horizon=60,
        floor=0.0,
        weight_decay=0.0,
    )
    quadratic = lambda p: jnp.sum(jnp.square(p["w"] - 0.5)) + jnp.sum(jnp.square(p["b"] + 0.5))  # noqa: E731
    params, state, values = jax.jit(lambda p: train(c, specs, h, p, quadratic, 60))(params)
    assert quadratic(optim.eval_params(c, specs, h, params, state)) < 0.1 * values[0]


def test_first_gradients_of_members_agree_in_float32():
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[start(seed=seed) for seed in range(4)])
    together, alone = jax.jit(jax.vmap(jax.grad(loss)))(stacked), jax.jit(jax.grad(loss))
    for seed in range(4):
        expected = alone(start(seed=seed))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[seed], b, rtol=1e-5, atol=1e-6), together, expected)  # noqa: B023


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_layers_equal_separate_layers(kind):
    """Wide enough for Adafactor to factor and for Muon to take its Gram rounds; a layer's update must not see the other layer."""
    one = {
        "tall": matrix((130, 2, 4), ("embed", "heads", "head"), 1),
        "square": matrix((128, 130), ("embed", "mlp"), 1),
        "scale": vector(130),
    }
    stacked = P.tree_map(lambda p: p.stack(2), one)
    layers = [drawn(one, seed) for seed in range(2)]
    layers[1] = jax.tree.map(lambda p: p * 30, layers[1])
    c, h = config(kind), hypers()

    def run(specs, params):
        state = optim.init(c, specs, h, params)
        for scale in (1.0, 40.0):
            grads = jax.tree.map(lambda p: jnp.sin(scale * p) + 0.1 * p, params)  # noqa: B023
            params, state, updates = optim.apply(c, specs, h, grads, state, params)
        return updates

    together = jax.jit(functools.partial(run, stacked))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers))
    alone = jax.jit(functools.partial(run, one))
    for i in range(2):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[i], b, rtol=3e-4, atol=1e-6), together, alone(layers[i]))  # noqa: B023


@pytest.mark.parametrize("kind", KINDS)
def test_one_program_serves_every_hyperparameter_and_its_buffers_can_be_donated(kind):
    h = hypers()
    params = start()
    state = optim.init(config(kind), SPECS, h, params)
    before = compiled(kind)._cache_size()
    for changes in (
        {},
        {"learning_rate": 0.5, "warmup_steps": 0},
        {"horizon": 7, "beta1": 0.5, "momentum": 0.1, "weight_decay": 0.0},
    ):
        old = jax.tree.leaves((params, state))
        params, state, updates, value = compiled(kind)(params, state, hypers(**changes))
        assert np.isfinite(value) and all(np.all(np.isfinite(u)) for u in jax.tree.leaves(updates))
        assert all(leaf.is_deleted() for leaf in old if leaf.size >= 4)
    assert compiled(kind)._cache_size() == max(before, 1)
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(h)) and optim.updates_done(state) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_weight_decay_touches_matrices_and_tables_alone(kind):
    """With a gradient of zero the update is the decay: rate * weight_decay * parameter."""
    params, c, h = start(), config(kind, "constant"), hypers(warmup_steps=0, learning_rate=0.5, adam_ratio=0.5)
    zeros = jax.tree.map(jnp.zeros_like, params)
    after = optim.apply(c, SPECS, h, zeros, optim.init(c, SPECS, h, params), params)[0]
    for path, p in P.flatten(SPECS).items():
        rate = 0.5 * (0.5 if kind == "muon" and p.kind != "matrix" else 1)
        kept = 1 if p.kind == "vector" or kind == "adam" else 1 - rate * 0.1
        np.testing.assert_allclose(P.flatten(after)[path], kept * P.flatten(params)[path], rtol=1e-5, err_msg=path)


@pytest.mark.parametrize("kind", ["adamw", "muon", "schedule-free-adamw"])
def test_the_rate_follows_the_schedule_by_the_optimisers_own_count(kind):
    """Adam's first update is the rate times the gradient's sign, whatever the gradient: it tells the rate of a step."""
    params, c, h = start(), config(kind), hypers(weight_decay=0.0, warmup_steps=4, learning_rate=0.4)
    grads = jax.tree.map(jnp.ones_like, params)
    state = optim.init(c, SPECS, h, params)
    for count, rate in ((0, 0.1), (1, 0.2), (40, 0.04), (41, 0.04)):
        counted = state.replace(count=jnp.int32(count))
        _, new, updates = optim.apply(c, SPECS, h, grads, counted, params)
        np.testing.assert_allclose(updates["bias"], -rate, rtol=1e-4)
        assert optim.updates_done(new) == count + 1


def test_muon_orthogonalises_matrices_and_gives_the_rest_to_adam():
    params = start()
    c, h = config("muon", "constant"), constant(adam_ratio=0.25)
    grads = jax.grad(loss)(params)
    updates = optim.apply(c, SPECS, h, grads, optim.init(c, SPECS, h, params), params)[2]
    for name, shape in (("in", (4, 6)), ("out", (6, 4))):
        for layer in range(2):
            g = grads["layers"][name][layer].reshape(shape)
            u, s, vt = np.linalg.svd(np.asarray(updates["layers"][name][layer].reshape(shape)), full_matrices=False)
            rms = 0.2 * np.sqrt(6)
            strong = s > 0.5 * 0.1 * rms
            assert strong.sum() >= 2 and np.all(s < 0.1 * rms * 1.25)
            gu, gs, gvt = np.linalg.svd(np.asarray(g), full_matrices=False)
            np.testing.assert_allclose(u[:, 0] @ gu @ np.diag(gs) @ gvt @ vt[0], -abs(u[:, 0] @ g @ vt[0]), rtol=1e-4)
    np.testing.assert_allclose(updates["bias"], -0.1 * 0.25 * jnp.sign(grads["bias"]), rtol=1e-4)
    np.testing.assert_allclose(updates["embedding"], -0.1 * 0.25 * jnp.sign(grads["embedding"]), rtol=1e-3)


def test_muon_follows_nesterov_momentum():
    """The second update orthogonalises g2 + mu (g2 + mu g1)."""
    specs, c, h = {"w": matrix((4, 6), ("embed", "mlp"), 1)}, config("muon", "constant"), constant(momentum=0.8)
    params, (first, second) = drawn(specs), (drawn(specs, 1), drawn(specs, 2))
    state = optim.apply(c, specs, h, first, optim.init(c, specs, h, params), params)[1]
    updates = optim.apply(c, specs, h, second, state, params)[2]
    expected = optim.orthogonalize(second["w"] + 0.8 * (second["w"] + 0.8 * first["w"])) * -0.1 * 0.2 * np.sqrt(6)
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-4, atol=1e-7)


def test_muon_per_head_orthogonalises_every_head_by_itself():
    """Of (layers, embed, heads, head) and (layers, heads, head, embed) every head's matrix; without heads nothing changes."""
    specs = {
        "query": P.Param((2, 6, 3, 2), ("layers", "embed", "heads", "head"), P.ONES, inputs=1),
        "output": P.Param((2, 3, 2, 6), ("layers", "heads", "head", "embed"), P.ONES, inputs=2),
        "in": matrix((4, 6), ("embed", "mlp"), 1),
    }
    h, grads = constant(), drawn(specs, 1)

    def updates(per_head):
        c = dataclasses.replace(config("muon", "constant"), muon_per_head=per_head)
        params = drawn(specs)
        return optim.apply(c, specs, h, grads, optim.init(c, specs, h, params), params)[2]

    joined, split = updates(False), updates(True)
    np.testing.assert_array_equal(joined["in"], split["in"])
    for head in range(3):
        whole = -0.1 * 0.2 * np.sqrt(6)
        np.testing.assert_allclose(
            split["query"][1, :, head], optim.orthogonalize(grads["query"][1, :, head]) * whole, rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(
            split["output"][1, head], optim.orthogonalize(grads["output"][1, head]) * whole, rtol=1e-4, atol=1e-6
        )
    assert np.abs(joined["query"] - split["query"]).max() > 1e-3


@pytest.mark.parametrize("shape", [(2, 8, 8), (8, 12), (3, 24, 8), (2, 8, 40)])
def test_orthogonalize_equals_optax(shape):
    x = jnp.asarray(np.random.default_rng(3).normal(size=shape) * 1e-3, jnp.float32)
    plain = optax.contrib.scale_by_muon(
        optim.NEWTON_SCHULZ,
        beta=0.0,
        nesterov=False,
        weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(-2, -1),
    )
    expected, _ = jax.jit(lambda x: plain.update(x, plain.init(x)))(x)
    np.testing.assert_allclose(jax.jit(optim.orthogonalize)(x), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((16, 16), None), ((16, 64), None), ((64, 16), None), ((16, 64), jnp.bfloat16)]
)
def test_orthogonalize_gives_singular_values_about_one(shape, dtype):
    """From a spectrum over two decades; the singular vectors stay, so X^T Y is symmetric and positive."""
    u, _, vt = np.linalg.svd(np.random.default_rng(0).normal(size=shape), full_matrices=False)
    x = jnp.asarray(u * np.geomspace(1, 0.01, 16) @ vt, jnp.float32)
    y = optim.orthogonalize(x, dtype)
    assert y.shape == shape and y.dtype == jnp.float32
    response = np.diag(u.T @ np.asarray(y) @ vt.T)
    assert np.all(response > 0.65) and np.all(response < 1.25)


def test_orthogonalize_of_low_rank_and_zero_is_finite():
    one = jnp.outer(jnp.arange(1.0, 9.0), jnp.ones(32))
    y = optim.orthogonalize(jnp.stack([one, 1e-20 * one, jnp.zeros((8, 32))]))
    assert np.all(np.isfinite(y)) and np.all(y[2] == 0)
    np.testing.assert_allclose(np.linalg.norm(y[0], 2), 0.7, atol=0.05)


def test_schedule_free_evaluates_the_average():
    """y is what training holds, x what evaluation uses: with constant rates x is the mean of all z."""
    c, specs = config("schedule-free-adamw", "constant"), {"w": vector(2)}
    h, params = constant(beta1=0.8), {"w": jnp.array([1.0, 2.0])}
    state, iterates = optim.init(c, specs, h, params), []
    for _ in range(5):
        params, state, _ = optim.apply(c, specs, h, {"w": 2 * params["w"]}, state, params)
        iterates.append(state.inner.z["w"])
    x = optim.eval_params(c, specs, h, params, state)["w"]
    np.testing.assert_allclose(x, np.mean(iterates, axis=0), rtol=1e-5)
    np.testing.assert_allclose(params["w"], 0.8 * x + 0.2 * iterates[-1], rtol=1e-5)
    assert optim.eval_params(config("adamw"), specs, h, params, state) is params


def test_ema():
    average, params = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 2.0])}
    np.testing.assert_allclose(optim.ema(average, params, jnp.float32(0.75))["w"], [1.5, 2.0])
    np.testing.assert_allclose(optim.ema(average, params, 0.0)["w"], params["w"])


def test_float64_hypers_do_not_promote_the_state_of_float32_weights():
    with jax.enable_x64(True):
        params = start(jnp.float32)
        for kind in KINDS:
            state = optim.init(config(kind), SPECS, hypers(), params)
            after = jax.eval_shape(lambda p, s, c=config(kind): optim.apply(c, SPECS, hypers(), p, s, p), params, state)
            types = lambda tree: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]  # noqa: E731
            assert types(after[:2]) == types((params, state)), kind


@pytest.mark.parametrize("kind", KINDS)
def test_state_shardings_follow_the_parameters(kind):
    """Every moment lies as its parameter does; everything else is whole. Strings stand for shardings."""
    names = P.unflatten({path: path for path in P.flatten(SPECS)})
    abstract = jax.eval_shape(lambda p: optim.init(config(kind), SPECS, hypers(), p), P.abstract(SPECS))
    got = optim.state_shardings(abstract, SPECS, names, "everywhere")
    assert jax.tree.structure(got) == jax.tree.structure(abstract)
    placed = list(zip(jax.tree.leaves(got), jax.tree.leaves(abstract), strict=True))
    assert all(leaf.shape == P.flatten(SPECS)[name].shape for name, leaf in placed if name != "everywhere")
    counts = {name: sum(n == name for n, _ in placed) for name in P.flatten(SPECS)}
    members = jax.eval_shape(
        jax.vmap(lambda p: optim.init(config(kind), SPECS, hypers(), p)),
        P.abstract(P.tree_map(lambda p: p.stack(3), SPECS)),
    )
    assert set(jax.tree.leaves(optim.state_shardings(members, SPECS, names, "everywhere"))) == {"everywhere"}, (
        "another shape is no moment"
    )
    moments = {"sgd": 1, "adam": 2, "adamw": 2, "lion": 1, "adafactor": 0, "schedule-free-adamw": 2}
    assert counts == {
        p: moments[kind] if kind != "muon" else 1 if P.flatten(SPECS)[p].kind == "matrix" else 2 for p in counts
    }


def test_adafactor_keeps_rows_and_columns_of_one_layer():
    specs = {
        "w": matrix((129, 2, 65), ("embed", "heads", "head"), 1).stack(3),
        "table": P.Param((200, 140), ("vocab", "embed"), NORMAL),
    }
    state = jax.eval_shape(lambda p: optim.init(config("adafactor"), specs, hypers(), p), P.abstract(specs))
    shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
    assert {(3, 129), (3, 130), (200,), (140,)} <= shapes and not shapes & {(3, 129, 130), (200, 140)}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", -1.0),
        ("learning_rate", float("nan")),
        ("weight_decay", -0.1),
        ("momentum", 1.0),
        ("beta1", -0.1),
        ("beta2", 1.0),
    ]
    + [("eps", 0.0), ("clip_norm", 0.0), ("ema_decay", 1.0), ("adam_ratio", float("inf")), ("kind", "adma")],
)
def test_a_bad_field_is_named_with_its_value_and_range(field, value):
    with pytest.raises(UserError, match=f"optimizer.{field} is {value!r}; expected "):
        optim.OptimizerConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("kind", "step"), ("warmup_steps", -1), ("horizon", 0), ("floor", 1.5), ("cooldown", -0.5)]
)
def test_a_bad_schedule_field_is_named(field, value):
    with pytest.raises(UserError, match=f"optimizer.schedule.{field} is {value!r}; expected "):
        optim.ScheduleConfig(**{field: value})


def test_schedule_free_needs_an_interpolation():
    with pytest.raises(UserError, match="optimizer.beta1 is 0.0"):
        optim.OptimizerConfig(kind="schedule-free-adamw", beta1=0.0)
    assert optim.OptimizerConfig(kind="adamw", beta1=0.0).beta1 == 0
