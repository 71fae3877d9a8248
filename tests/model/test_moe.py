"""The mixture of experts against a loop over tokens in plain NumPy, float64, its gradients against central differences."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core import params as P
from research.core.errors import UserError
from research.model import flops, moe, transformer
from research.model.config import GATED, ModelConfig, MoEConfig

B, T, D, E, F = 2, 5, 3, 4, 2
ACTIVATIONS = {
    "relu": lambda x: max(x, 0.0),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "swiglu": lambda x: x / (1 + math.exp(-x)),
}
CASES = {
    "plain": ({}, "gelu"),
    "gated": ({}, "swiglu"),
    "capacity": ({"capacity_factor": 0.5, "normalise": False}, "relu"),
    "switch": ({"top_k": 1, "normalise": False, "capacity_factor": 0.8}, "gelu"),
    "shared": ({"top_k": 3, "shared_width": 3}, "swiglu"),
    "gated shared": ({"shared_width": 3, "shared_gate": True, "capacity_factor": 0.7}, "swiglu"),
}


def config_of(implementation="auto", activation="swiglu", **options) -> ModelConfig:
    experts = MoEConfig(**{"experts": E, "top_k": 2, "width": F, "implementation": implementation, **options})
    return ModelConfig(width=D, heads=1, positions="none", activation=activation, moe=experts)


def params_of(config: ModelConfig, seed: int = 0):
    draw = np.random.default_rng(seed)
    return P.tree_map(lambda p: draw.normal(size=p.shape), moe.specs(config))


def feed_forward(p, x_D, activation: str):
    """One expert on one token."""
    inner = x_D @ p["in"]
    gate = x_D @ p["gate"] if activation in GATED else inner
    h = np.array([ACTIVATIONS[activation](g) for g in gate])
    return (h * inner if activation in GATED else h) @ p["out"]


def chosen_by(x_D, router_DE, top_k: int):
    """`(experts, the best first; probabilities; log of the sum of exp)` of one token."""
    logits = x_D @ router_DE
    total = sum(math.exp(logit) for logit in logits)
    p = [math.exp(logit) / total for logit in logits]
    return sorted(range(len(p)), key=lambda e: (-p[e], e))[:top_k], p, math.log(total)


def by_hand(p, x_BTD, config: ModelConfig, real_BT=None):
    """`(y_BTD, balance, router_z, choices kept)`: a token at a time, a choice at a time."""
    options, y_BTD = config.moe, np.zeros(x_BTD.shape)
    tokens = [(b, t) for b, t in np.ndindex(x_BTD.shape[:2]) if real_BT is None or real_BT[b, t]]
    routes = {at: chosen_by(x_BTD[at], p["router"], options.top_k) for at in tokens}
    places = math.inf
    if options.capacity_factor is not None:
        places = math.ceil(options.capacity_factor * x_BTD.shape[1] * options.top_k / options.experts)
    queues, kept = np.zeros((len(x_BTD), options.experts), int), []
    for rank in range(options.top_k):  # all first choices of a sequence come before its second ones
        for b, t in tokens:
            expert = routes[b, t][0][rank]
            if queues[b, expert] < places:
                kept.append((b, t, rank))
                queues[b, expert] += 1
    for b, t, rank in kept:
        experts, probabilities, _ = routes[b, t]
        gate = probabilities[experts[rank]]
        if options.normalise:
            gate /= sum(probabilities[e] for e in experts)
        one = {name: p[name][experts[rank]] for name in ("in", "gate", "out") if name in p}
        y_BTD[b, t] += gate * feed_forward(one, x_BTD[b, t], config.activation)
    for at in np.ndindex(x_BTD.shape[:2]) if "shared" in p else ():
        gate = 1 / (1 + math.exp(-(x_BTD[at] @ p["shared_gate"])[0])) if "shared_gate" in p else 1
        y_BTD[at] += gate * feed_forward(p["shared"], x_BTD[at], config.activation)
    count = max(1, len(tokens))
    balance = options.experts * sum(
        sum(e in experts for experts, _, _ in routes.values())
        / count
        * sum(p[e] for _, p, _ in routes.values())
        / count
        for e in range(options.experts)
    )
    return y_BTD, balance, sum(z**2 for _, _, z in routes.values()) / count, kept


def differences(f, tree, step=1e-6):
    """The gradient of `f(tree)` by central differences, an entry at a time."""

    def one(leaf):
        out = np.zeros(leaf.shape)
        for at in np.ndindex(leaf.shape):
            value = leaf[at]
            leaf[at] = value + step
            above = f(tree)
            leaf[at] = value - step
            out[at], leaf[at] = (above - f(tree)) / (2 * step), value
        return out

    return jax.tree.map(one, tree)


def inputs(seed: int = 1):
    draw = np.random.default_rng(seed)
    return draw.normal(size=(B, T, D)), draw.normal(size=(B, T, D))


@pytest.fixture(scope="module")
def expected():
    """`case -> (y, balance, router_z, gradients by parameter and input)`, made once for both implementations."""
    made = {}

    def of(case: str):
        if case not in made:
            config = config_of(activation=CASES[case][1], **CASES[case][0])
            x, weights = inputs()

            def scalar(tree):
                y, balance, router_z, _ = by_hand(*tree, config)
                return (y * weights).sum() + 0.3 * balance + 0.2 * router_z

            made[case] = (*by_hand(params_of(config), x, config), differences(scalar, (params_of(config), x)))
        return made[case]

    return of


@pytest.mark.parametrize("implementation", ["ragged", "dense"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_a_loop_over_tokens(case, implementation, expected, monkeypatch):
    monkeypatch.setattr(moe, "BLOCK", 3)  # a busy expert has several blocks, the last one not full
    config = config_of(implementation, CASES[case][1], **CASES[case][0])
    (x, weights), (y, balance, router_z, kept, gradients) = inputs(), expected(case)
    assert (len(kept) < B * T * config.moe.top_k) == (config.moe.capacity_factor is not None), "drops where it can"

    def scalar(params, x):
        out, aux = applied(params, x, config)
        return jnp.sum(out * weights) + 0.3 * aux["balance"] + 0.2 * aux["router_z"], (out, aux)

    with jax.enable_x64(True):
        given = jax.tree.map(jnp.asarray, (params_of(config), x))
        found, (out, aux) = jax.jit(jax.grad(scalar, (0, 1), has_aux=True))(*given)
        assert out.dtype == jnp.float64 and out.shape == (B, T, D)
        np.testing.assert_allclose(out, y, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose((aux["balance"], aux["router_z"]), (balance, router_z), rtol=1e-10)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, gradients)


def applied(*given):
    """`(y_BTD, the router's losses)`."""
    out, load = moe.apply(*given)
    return out, moe.losses(load)


BOTH = pytest.mark.parametrize("implementation", ["ragged", "dense"])
CAPACITY = {"capacity_factor": 0.7, "shared_width": 3}


@BOTH
def test_padding_takes_no_place_and_changes_no_other_token(implementation):
    config, without = (config_of(implementation, **{**CAPACITY, "capacity_factor": f}) for f in (0.7, None))
    real = np.arange(T)[None] < np.array([[2], [T]])
    written = jnp.asarray(np.where(real, np.arange(T)[None] + 7, -1))
    with jax.enable_x64(True):
        apply = jax.jit(lambda params, x: applied(params, x, config, written))
        for seed in range(5):  # padding would take the place of another token in some
            params, (x, _) = params_of(config, seed), inputs(seed)
            out, aux = apply(params, x)
            np.testing.assert_allclose(out[0, :2], by_hand(params, x[:1, :2], config)[0][0], rtol=1e-9)
            np.testing.assert_allclose(out[1], by_hand(params, x[1:], config)[0][0], rtol=1e-9)
            losses = by_hand(params, x, without, real)[1:3]
            np.testing.assert_allclose((aux["balance"], aux["router_z"]), losses, rtol=1e-9)


@BOTH
def test_nothing_but_padding_is_no_nan(implementation):
    config = config_of(implementation)
    params, (x, _) = params_of(config), inputs()
    out, aux = jax.jit(lambda x: applied(params, x, config, jnp.full((B, T), -1)))(x.astype(np.float32))
    assert not np.any(out) and aux == {"balance": 0, "router_z": 0}


@pytest.mark.parametrize(
    ("implementation", "options"), [("ragged", CAPACITY), ("dense", CAPACITY), ("dense", {})], ids=str
)
def test_members_under_vmap_are_as_alone(implementation, options):
    config = config_of(implementation, **options)
    members = [(params_of(config, seed), inputs(seed)[0]) for seed in range(3)]

    def gradient(params, x):
        return jax.grad(lambda params, x: jnp.sum(jnp.sin(moe.apply(params, x, config)[0])), (0, 1))(params, x)

    with jax.enable_x64(True):
        together = jax.jit(jax.vmap(gradient))(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *members))
        alone = jax.jit(gradient)
        for i, member in enumerate(members):
            one = jax.tree.map(lambda x, i=i: x[i], together)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), one, alone(*member))


def test_equal_logits_take_the_lower_experts_and_an_even_load_gives_top_k():
    zeros = jnp.zeros((D, E), jnp.float32)
    route = jax.jit(moe.route, static_argnames="moe")
    routing, load = route(zeros, jnp.ones((B, T, D)), MoEConfig(experts=E, top_k=2))
    aux = moe.losses(load)
    np.testing.assert_array_equal(routing.experts_BTJ, np.broadcast_to([0, 1], (B, T, 2)))
    np.testing.assert_allclose(routing.gates_BTJ, 0.5)
    np.testing.assert_allclose((aux["balance"], aux["router_z"]), (2, math.log(E) ** 2), rtol=1e-6)
    uneven = zeros.at[:, 0].set(20.0)
    load = route(uneven, jnp.ones((B, T, D)), MoEConfig(experts=E, top_k=1))[1]
    assert moe.losses(load)["balance"] == pytest.approx(E)


def test_the_router_computes_in_float32_where_the_model_does_not():
    config = config_of(shared_width=3)
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), (params_of(config), inputs()[0]))
    routing, load = jax.eval_shape(lambda params, x: moe.route(params["router"], x, config.moe), *half)
    assert routing.gates_BTJ.dtype == jnp.float32 and {a.dtype for a in load.values()} == {jnp.dtype("float32")}
    assert jax.eval_shape(lambda params, x: moe.apply(params, x, config)[0], *half).dtype == jnp.bfloat16


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 40), st.integers(1, 300))
def test_capacities_are_rounded_up_from_the_factor_as_written(experts, top_k, T, hundredths):
    options = MoEConfig(experts=experts, top_k=min(top_k, experts), capacity_factor=hundredths / 100)
    found = moe.capacities(options, T)
    assert found == [min(t, -(-hundredths * t * options.top_k // (100 * experts))) for t in range(T + 1)]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"experts": 0}, "experts"),
        ({"top_k": 5}, "top_k"),
        ({"top_k": 0}, "top_k"),
        ({"width": 0}, "width"),
        ({"shared_width": -1}, "shared_width"),
        ({"capacity_factor": 0.0}, "capacity_factor"),
        ({"capacity_factor": math.inf}, "capacity_factor"),
        ({"capacity_factor": math.nan}, "capacity_factor"),
        ({"shared_gate": True}, "shared_gate"),
        ({"implementation": "sparse"}, "implementation"),
    ],
)
def test_impossible_mixtures_are_refused(options, field):
    with pytest.raises(UserError, match=f"model.moe.{field}"):
        MoEConfig(**{"experts": 4, **options})


def test_parameters_and_arithmetic_count_the_experts_that_a_token_meets():
    sparse = ModelConfig(
        vocab_size=11, context=6, width=8, layers=4, heads=2, mlp_width=24, feed_forward=("dense", "moe"), tied=False,
        moe=MoEConfig(experts=6, top_k=2, width=5, shared_width=7, shared_gate=True),
    )  # fmt: skip
    dense = dataclasses.replace(sparse, feed_forward=("dense",))
    expert, shared, router = 3 * 8 * 5, 3 * 8 * 7, 8 * 6 + 8
    feed_forwards = 3 * 8 * 24
    more = {n: 2 * (n * expert + shared + router - feed_forwards) for n in (2, 6)}  # in two of the four layers
    count = P.count(transformer.specs(dense))
    assert P.count(transformer.specs(sparse)) == count + more[6]
    assert flops.active_params(sparse) == count + more[2]
    for of, times in ((flops.forward_flops_per_token, 2), (flops.train_flops_per_token, 6)):
        assert of(sparse, 6) == of(dense, 6) + times * more[2]
