"""Maximal update parameterisation: what it leaves alone, what it scales, and that activations keep their size over widths."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core import params as P
from research.core.errors import UserError
from research.model import transformer
from research.model.config import ModelConfig, MoEConfig
from research.model.standard import standard
from research.train import Config
from research.train.optim import OptimizerConfig, width_factor

NARROW = ModelConfig(
    vocab_size=64, width=32, base_width=32, layers=2, heads=2, tied=False, init="fan-in", bias=("query", "unembed")
)
WIDE = dataclasses.replace(NARROW, width=128)
MIXTURE = dataclasses.replace(WIDE, feed_forward=("moe",), moe=MoEConfig(experts=4, shared_width=256, shared_gate=True))


def leaves(config):
    return P.flatten(transformer.specs(config))


@pytest.mark.parametrize("init", ["gpt2", "fan-in", "fan-in-zero", "deepnorm"])
def test_at_its_base_width_a_model_is_the_standard_one(init):
    based = dataclasses.replace(NARROW, init=init)
    plain = dataclasses.replace(based, base_width=None)
    tokens = jnp.arange(16)[None]
    one, other = (P.init(transformer.specs(config), jax.random.key(0)) for config in (plain, based))
    assert P.digest(one) == P.digest(other)
    np.testing.assert_array_equal(transformer.forward(one, tokens, plain), transformer.forward(other, tokens, based))
    assert all(
        width_factor(OptimizerConfig(kind), p) == 1
        for kind in ("sgd", "adamw", "muon", "adafactor")
        for p in leaves(based).values()
    )


# Of a model four times as wide: what multiplies the deviation of initial values and the rates of SGD and Adam (arXiv 2203.03466, table 8; the
# router and the gate, whose outputs do not grow and are not multiplied, by table 3) and of Muon.
LAYER = "decoder/0/0/"
TABLE = {
    "embed/tokens": (1, 4, 1, 1), "unembed/kernel": (1, 4, 1, 1), "unembed/bias": (1, 1, 1, 1), "final_norm/scale": (1, 4, 1, 1),
    f"{LAYER}attention/query": (1 / 2, 1, 1 / 4, 1 / 2), f"{LAYER}attention/output": (1 / 2, 1, 1 / 4, 1 / 2),
    f"{LAYER}attention/query_bias": (1, 4, 1, 1), f"{LAYER}mlp/in": (1 / 2, 1, 1 / 4, 1 / 2), f"{LAYER}mlp/out": (1 / 2, 1, 1 / 4, 1 / 2),
    f"{LAYER}mlp/router": (1 / 4, 1 / 4, 1 / 4, 1 / 4), f"{LAYER}mlp/shared_gate": (1 / 4, 1 / 4, 1 / 4, 1 / 4),
    f"{LAYER}mlp/shared/out": (1 / 2, 1, 1 / 4, 1 / 2),
}  # fmt: skip


@pytest.mark.parametrize("config", [WIDE, MIXTURE])
def test_leaves_are_scaled_as_published(config):
    ours, base = leaves(config), leaves(config.base)
    assert config.base.width == 32 and config.logit_scale == 1 / 4
    for path, (scale, *rates) in TABLE.items():
        if path not in ours:
            continue
        assert ours[path].init.scale == pytest.approx(scale * base[path].init.scale), path
        found = [width_factor(OptimizerConfig(kind), ours[path]) for kind in ("sgd", "adamw", "muon")]
        assert found == pytest.approx(rates), path


def test_heads_grow_in_size_or_in_number():
    grown = dataclasses.replace(WIDE, heads=8, head_size=16)
    assert (WIDE.base.heads, WIDE.base.H, WIDE.query_scale) == (2, 16, pytest.approx(16**0.5 / 64))
    assert (grown.base.heads, grown.base.H, grown.query_scale) == (2, 16, 16**-0.5)
    assert dataclasses.replace(grown, kv_heads=4).base.K == 1
    assert dataclasses.replace(grown, kv_heads=1).base.K == 1
    key = leaves(dataclasses.replace(grown, kv_heads=1))[f"{LAYER}attention/key"]
    assert key.growth == (4, 1)


def test_muon_of_heads_adds_up_what_heads_give():
    grown = leaves(dataclasses.replace(WIDE, heads=8, head_size=16))
    one = {
        name: width_factor(OptimizerConfig("muon", muon_per_head=True), grown[LAYER + name])
        for name in ("attention/query", "attention/output", "mlp/in")
    }
    # A head's query is (128, 16) beside (32, 16): i = 4, o = 1, and its norm 2 times. An output is (16, 128): o = 4, norm 2, of 4 times the heads.
    assert one == pytest.approx({"attention/query": 1 / 4, "attention/output": 2 / 2 / 4, "mlp/in": 1 / 2})


@given(st.integers(1, 8), st.sampled_from([None, 16]), st.sampled_from([None, 2, 4]))
def test_proportions_are_kept_both_ways(times, head_size, kv_heads):
    config = ModelConfig(width=64, heads=4, head_size=head_size, kv_heads=kv_heads, mlp_width=192)
    grown = config.in_proportion(64 * times)
    assert grown.in_proportion(64) == config
    assert (grown.width, grown.F, grown.heads * grown.H) == (64 * times, 192 * times, 64 * times)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_width": 0}, "model.base_width is 0"),
        ({"base_width": 3}, "base_width 3 does not go with width 128: model.heads is 2"),
        ({"mlp_width": 6}, "model.mlp_width is 6; expected a size that is whole at 32 of 128"),
        ({"head_size": 16, "heads": 6}, "model.heads is 6; expected a size that is whole"),
    ],
)
def test_a_base_that_is_no_model_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        dataclasses.replace(WIDE, **changes)


def test_adafactor_is_refused():
    with pytest.raises(UserError, match="adafactor's rates are relative to the weights"):
        Config(model=WIDE, optimizer=OptimizerConfig("adafactor"))
    with pytest.raises(UserError, match="adafactor"):
        width_factor(OptimizerConfig("adafactor"), leaves(WIDE)["embed/tokens"])


def test_logits_are_divided_by_the_width_and_embeddings_are_those_of_the_base():
    scaled = dataclasses.replace(WIDE, embedding_scale="sqrt-width")
    params = P.init(transformer.specs(scaled), jax.random.key(1))
    params["unembed"]["bias"] = jnp.ones(64)
    plain = dataclasses.replace(scaled, base_width=None, attention_scale=scaled.query_scale, embedding_scale="none")
    tokens = jnp.arange(8)[None]
    twin = {**params, "embed": {"tokens": params["embed"]["tokens"] * 32**0.5}}
    twin["unembed"] = {**params["unembed"], "kernel": params["unembed"]["kernel"] / 4}
    np.testing.assert_allclose(
        transformer.forward(params, tokens, scaled), transformer.forward(twin, tokens, plain), rtol=2e-5, atol=2e-6
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "tied": True,
            "norm": "layer",
            "norm_scale": "one-plus",
            "embedding_scale": "sqrt-width",
            "bias": ("norm", "query"),
        },
        {"qk_norm": "head", "embedding_scale": "sqrt-width"},
        {"qk_norm": "whole", "norm_scale": "one-plus", "attention_soft_cap": 5.0, "logit_soft_cap": 9.0},
        {"norm_placement": "post", "positions": "learned"},
        {"heads": 8, "head_size": 16},
        {"base_width": 128},
    ],
)
def test_the_standard_model_computes_the_same(tiny, changes):
    config = dataclasses.replace(WIDE, **changes)
    params = tiny.params(config)
    plain, standard_config = standard(params, config)
    assert standard_config == dataclasses.replace(config, base_width=None)
    tokens = tiny.tokens(config, length=12)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (params, plain))
        one, other = transformer.forward(wide[0], tokens, config), transformer.forward(wide[1], tokens, standard_config)
    np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-6)


def test_tied_embeddings_without_a_last_norm_have_no_standard_model():
    config = dataclasses.replace(WIDE, tied=True, norm_placement="post", bias=())
    with pytest.raises(UserError, match="fits into no weight"):
        standard({}, config)
