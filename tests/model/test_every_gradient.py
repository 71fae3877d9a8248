"""Every parameter takes part: for each way to build a block, every leaf of every layer receives a gradient."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core import params as P
from research.model import config as choices
from research.model import transformer
from research.tasks.losses import softmax_cross_entropy

BIASES = ("query", "key", "value", "attention-output", "mlp-in", "mlp-gate", "mlp-out", "norm", "unembed")
LAYER = {"norm": "layer", "bias": BIASES}
CASES = [
    {"norm_placement": "pre", "residual": "serial", "activation": "swiglu"},
    {"norm_placement": "pre", "residual": "parallel", "activation": "gelu", "positions": "learned", **LAYER},
    {"norm_placement": "pre", "residual": "parallel-shared", "activation": "relu", "positions": "alibi", "tied": False, **LAYER},
    {"norm_placement": "post", "residual": "serial", "activation": "gelu-tanh", "positions": "sinusoidal", **LAYER},
    {"norm_placement": "post", "residual": "parallel", "activation": "relu2", "qk_norm": "head", "norm_scale": "one-plus"},
    {"norm_placement": "post", "residual": "parallel-shared", "activation": "sigmoid", "kv_heads": 1},
    {"norm_placement": "sandwich", "residual": "serial", "activation": "geglu", "qk_norm": "whole", "kv_heads": 2, "norm_scale": "one-plus", **LAYER},
    {"norm_placement": "sandwich", "residual": "parallel", "activation": "geglu-tanh", "positions": "none", "qk_norm": "head", "tied": False},
    {"norm_placement": "sandwich", "residual": "parallel-shared", "head_size": 6, "rope": {"fraction": 0.7, "layout": "interleaved"}},
    {"norm_placement": "branch-output", "residual": "serial", "activation": "relu2", "qk_norm": "whole", "embedding_scale": "sqrt-width"},
    {"norm_placement": "branch-output", "residual": "parallel", "activation": "swiglu", "attention_soft_cap": 5.0, "logit_soft_cap": 3.0, **LAYER},
    {"norm_placement": "branch-output", "residual": "parallel-shared", "activation": "gelu", "attention_scale": 0.2, "mlp_width": 7},
    {"layers": 7, "patterns": ("sliding", "full", "sliding", "strided", "sliding", "full"), "window": 3, "stride": 2, "activation": "relu2"},
    {"patterns": ("bidirectional",), "activation": "silu", "positions": "alibi"},
    {"patterns": ("bidirectional", "full"), "activation": "quick-gelu", **LAYER},
]  # fmt: skip


def built(tiny, case):
    case = {**case, "rope": choices.RopeConfig(**case["rope"])} if "rope" in case else case
    return tiny.config(**{"context": 6, "vocab_size": 7, **case})


@pytest.mark.parametrize(
    "case",
    CASES,
    ids=lambda c: "-".join(str(c.get(k, "")) for k in ("norm_placement", "residual", "activation", "layers")),
)
def test_every_parameter_receives_a_gradient(case, tiny):
    config = built(tiny, case)
    tokens = jnp.asarray([[0, 1, 2, 3, 4, 5], [6, 0, 6, 1, 1, 2]])

    def loss(params):
        return softmax_cross_entropy(transformer.forward(params, tokens, config), (tokens + 3) % 7).mean()

    gradients = P.flatten(jax.jit(jax.grad(loss))(tiny.params(config)))
    specs = P.flatten(transformer.specs(config))
    assert gradients.keys() == specs.keys()
    for path, gradient in gradients.items():
        assert np.isfinite(gradient).all(), path
        layers = np.abs(gradient).reshape(len(gradient) if specs[path].stacked else 1, -1).max(axis=1)
        if path.endswith("key_bias") and config.positions != "rotary" and config.qk_norm == "none":
            assert (layers < 1e-6).all(), "the same for every key: softmax does not see it"
        else:
            assert (layers > 1e-6).all(), (path, layers)


def test_the_cases_cover_every_choice(tiny):
    for field, kinds in (
        ("norm_placement", choices.NormPlacement), ("activation", choices.Activation), ("positions", choices.Positions), ("norm", choices.Norm),
    ):  # fmt: skip
        assert {getattr(built(tiny, case), field) for case in CASES} == set(get_args(kinds))
    residuals = {(built(tiny, case).norm_placement, built(tiny, case).residual) for case in CASES}
    assert len(residuals) == 12
    assert {built(tiny, case).qk_norm for case in CASES} == {"none", "head", "whole"}


@pytest.mark.parametrize("case", CASES[:4])
def test_specs_hold_what_the_config_asks_for_and_no_more(case, tiny):
    config = built(tiny, case)
    names = {path.rsplit("/", 1)[-1] for path in P.flatten(transformer.specs(config)) if path.startswith("decoder")}
    assert ("gate" in names) == (config.activation in choices.GATED)
    assert ("gate_bias" in names) == (config.activation in choices.GATED and "mlp-gate" in config.bias)
    assert ("query_bias" in names) == ("query" in config.bias)
    paths = P.flatten(transformer.specs(config))
    assert ("embed/positions" in paths) == (config.positions == "learned")
    assert ("unembed/kernel" in paths) == (not config.tied)
    assert ("final_norm/scale" in paths) == (config.norm_placement != "post")
