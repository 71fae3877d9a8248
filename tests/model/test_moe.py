"""The mixture of experts against a loop over tokens in plain NumPy, float64, its gradients against central differences."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core import params as P
from research.core.errors import UserError
from research.model import moe
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
    "capacity": ({"capacity_factor": 0.7}, "swiglu"),
    "not normalised": ({"normalise": False, "capacity_factor": 0.5}, "relu"),
    "switch": ({"top_k": 1, "normalise": False, "capacity_factor": 0.8}, "gelu"),
    "three of four": ({"top_k": 3}, "swiglu"),
    "shared": ({"shared_width": 3, "normalise": False}, "swiglu"),
    "gated shared": ({"shared_width": 3, "shared_gate": True, "capacity_factor": 0.7}, "gelu"),
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
        sum(e in experts for experts, _, _ in routes.values()) / count * sum(p[e] for _, p, _ in routes.values()) / count
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


@pytest.mark.parametrize("block", [3, 64])
@pytest.mark.parametrize("implementation", ["ragged", "dense"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_a_loop_over_tokens(case, implementation, block, expected, monkeypatch):
    if implementation == "dense" and block == 3:
        pytest.skip("blocks are ragged's")
    monkeypatch.setattr(moe, "BLOCK", block)
    config = config_of(implementation, CASES[case][1], **CASES[case][0])
    (x, weights), (y, balance, router_z, kept, gradients) = inputs(), expected(case)
    assert (len(kept) < B * T * config.moe.top_k) == (config.moe.capacity_factor is not None), "drops where it can"

    def scalar(params, x):
        out, aux = moe.apply(params, x, config)
        return jnp.sum(out * weights) + 0.3 * aux["balance"] + 0.2 * aux["router_z"], (out, aux)

    with jax.enable_x64(True):
        given = jax.tree.map(jnp.asarray, (params_of(config), x))
        found, (out, aux) = jax.jit(jax.grad(scalar, (0, 1), has_aux=True))(*given)
        assert out.dtype == jnp.float64 and out.shape == (B, T, D)
        np.testing.assert_allclose(out, y, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose((aux["balance"], aux["router_z"]), (balance, router_z), rtol=1e-10)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, gradients)
