"""Dropout in the model: absent it draws nothing; present, every place and layer has bits of its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core import hypers
from research.core import params as P
from research.model import attention, block, layers, transformer

HYPERS = hypers.make(**{f.name: 0.0 for f in dataclasses.fields(hypers.Hypers)})
KEY = jax.random.key(0)


def text(tiny, key, **changes):
    config = tiny.config(**changes)
    params = P.abstract(transformer.specs(config))
    return str(jax.make_jaxpr(lambda params: transformer.forward(params, jnp.zeros((2, 4), int), config) if key is None else transformer.apply(
        params, jnp.zeros((2, 4), int), config, key=key, hypers=HYPERS).outputs)(params))  # fmt: skip


@pytest.mark.parametrize(
    ("key", "dropout", "drawn"),
    [(None, 0.1, False), (KEY, None, False), (None, None, False), (KEY, 0.0, True), (KEY, 0.1, True)],
)
def test_absent_dropout_draws_no_bits(key, dropout, drawn, tiny):
    program = text(tiny, key, dropout=dropout)
    assert ("random_bits" in program) == drawn
    assert drawn or ("random" not in program and "threefry" not in program)


@pytest.fixture(scope="module")
def model(tiny):
    """Attention adds nothing and every feed-forward adds 1, so the stream shows each layer's mask."""
    config = tiny.config(
        layers=5, patterns=("full", "sliding", "full"), dropout=0.25, norm="layer", bias=("mlp-out",), positions="none"
    )
    params = {path: jnp.zeros_like(leaf) for path, leaf in P.flatten(tiny.params(config)).items()}
    params = {
        path: jnp.ones_like(leaf) if path.endswith(("out_bias", "scale", "tokens")) else leaf
        for path, leaf in params.items()
    }
    run = jax.jit(
        lambda key, values: transformer.hidden(
            P.unflatten(params), jnp.zeros((4, 12), int), config, key=key, hypers=values, taps=("block_input",)
        )
    )
    return config, lambda key, rate: run(key, HYPERS.replace(dropout=jnp.float32(rate)))


def test_every_layer_has_its_own_mask_at_the_traced_rate(model):
    taps = np.asarray(model[1](KEY, 0.5).taps["block_input"])
    masks = [taps[0], *(after - before for before, after in zip(taps[:-1], taps[1:], strict=True))]
    for i, mask in enumerate(masks):
        assert set(np.unique(mask.round(4))) == {0, 2} and abs(mask.mean() - 1) < 0.15
        for other in masks[:i]:
            assert 0.3 < (mask == other).mean() < 0.7


def test_keys_decide_and_rate_zero_is_nothing(model):
    run = model[1]
    a, b, c = (np.asarray(run(key, 0.5).outputs) for key in (KEY, KEY, jax.random.key(1)))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    np.testing.assert_array_equal(run(KEY, 0.0).taps["block_input"][:, 0, 0, 0], [1, 2, 3, 4, 5])


def test_the_configs_rate_holds_without_hypers(tiny):
    config = tiny.config(dropout=0.25, layers=1, positions="none")
    params = jax.tree.map(jnp.ones_like, tiny.params(config))
    taps = transformer.hidden(params, jnp.zeros((8, 12), int), config, key=KEY, taps=("block_input",)).taps[
        "block_input"
    ]
    assert abs((np.asarray(taps) == 0).mean() - 0.25) < 0.04


@pytest.mark.parametrize("residual", ["serial", "parallel"])
def test_no_two_places_of_a_block_share_a_key(residual, tiny, monkeypatch):
    seen = []

    def spy(x, rate, key):
        seen.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
        return layers.dropout(x, rate, key)

    monkeypatch.setattr(attention, "dropout", spy)
    monkeypatch.setattr(block, "dropout", spy)
    config = tiny.config(residual=residual, positions="none")
    slot = config.segments[0][0][0]
    one_layer = jax.tree.map(lambda leaf: leaf[0], tiny.params(config)["decoder"]["0"]["0"])
    block.apply(one_layer, jnp.ones((1, 3, config.width)), config, slot, block.Context(dropout=0.1), KEY)
    assert len(seen) == 3 and len(set(seen)) == 3, "attention weights, its branch, the feed-forward branch"
