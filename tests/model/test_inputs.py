"""Front ends, attention in both directions, pooling and linear heads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core import params as P
from research.core import rng
from research.core.errors import UserError
from research.model import attention, flops, head, transformer
from research.model import cache as kv
from research.model import inputs as front
from research.model.config import ModelConfig
from research.model.input_config import FeatureConfig, ImageConfig

SMALL = ModelConfig(
    width=16,
    layers=2,
    heads=2,
    context=8,
    patterns=("bidirectional",),
    head="linear",
    outputs=3,
    pool="mean",
    vocab_size=11,
)


def params_of(config: ModelConfig):
    return P.init(transformer.specs(config), rng.key(0, "params"))


def outputs(config: ModelConfig, inputs, params=None):
    return transformer.apply(params_of(config) if params is None else params, inputs, config).outputs


def image_model(**changes) -> ModelConfig:
    image = ImageConfig(height=4, width=6, channels=2, patch=2)
    return dataclasses.replace(SMALL, inputs="image", image=image, positions="learned", **changes)


def test_patches_are_those_of_the_picture():
    film = np.arange(2 * 4 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 4, 6, 3)
    config = ImageConfig(height=4, width=6, channels=3, patch=2, frames=4, tubelet=2)
    cut = np.asarray(front.patches(jnp.asarray(film), config))
    assert cut.shape == (2, config.patches, config.patch_values) == (2, 12, 24)
    expected = [film[1, f : f + 2, y : y + 2, x : x + 2].reshape(-1) for f in (0, 2) for y in (0, 2) for x in (0, 2, 4)]
    np.testing.assert_array_equal(cut[1], expected)
    picture = film[:, 0]
    np.testing.assert_array_equal(
        front.patches(jnp.asarray(picture), ImageConfig(height=4, width=6, channels=3, patch=2))[0, 5],
        picture[0, 2:, 4:].reshape(-1),
    )


@pytest.mark.parametrize("pool", ["cls", "mean", "attention", "last", "none"])
def test_a_linear_head_reads_what_is_pooled(pool):
    config = image_model(pool=pool)
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 2))
    out = outputs(config, {"image": x})
    assert out.shape == ((2, 6, 3) if pool == "none" else (2, 3)) and out.dtype == jnp.float32
    assert config.length == 6 + (pool == "cls")
    assert P.flatten(transformer.specs(config))["embed/positions"].shape == (config.length, 16)
    assert np.abs(out[0] - out[1]).max() > 1e-6


def test_every_position_sees_every_other():
    config = dataclasses.replace(SMALL, pool="none")
    tokens, params = jnp.array([[1, 2, 3, 4]]), params_of(config)
    first = outputs(config, {"tokens": tokens}, params)[0, 0]
    assert np.abs(first - outputs(config, {"tokens": tokens.at[0, 3].set(9)}, params)[0, 0]).max() > 1e-6
    causal = dataclasses.replace(config, patterns=("full",))
    one = outputs(causal, {"tokens": tokens}, params)[0, 0]
    np.testing.assert_array_equal(one, outputs(causal, {"tokens": tokens.at[0, 3].set(9)}, params)[0, 0])


@pytest.mark.parametrize("pool", ["cls", "mean", "attention", "last"])
@pytest.mark.parametrize("positions", ["rotary", "alibi"])
def test_what_is_behind_the_length_does_not_count(pool, positions):
    config = dataclasses.replace(SMALL, pool=pool, positions=positions)
    params, tokens = params_of(config), jnp.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]])
    padded = outputs(config, {"tokens": tokens, "lengths": jnp.array([3, 5])}, params)
    alone = outputs(config, {"tokens": tokens[:1, :3]}, params)
    np.testing.assert_allclose(padded[0], alone[0], atol=1e-6)
    other = outputs(config, {"tokens": tokens.at[0, 4].set(9), "lengths": jnp.array([3, 5])}, params)
    np.testing.assert_array_equal(padded, other)


def test_the_columns_of_a_table_are_tokens():
    columns = FeatureConfig(numbers=2, categories=(3, 4))
    config = dataclasses.replace(SMALL, inputs="features", features=columns, positions="none")
    params = params_of(config)
    numbers, kinds = jnp.array([[0.5, -1.0]]), jnp.array([[2, 3]])
    stream = front.embed(params["embed"], {"numbers": numbers, "categories": kinds}, config, jnp.float32)
    p = params["embed"]
    expected = [
        0.5 * p["numbers"][0] + p["numbers_bias"][0], -p["numbers"][1] + p["numbers_bias"][1], p["categories"][2], p["categories"][6],
    ]  # fmt: skip
    np.testing.assert_allclose(stream[0], np.stack(expected), rtol=1e-6)
    assert outputs(config, {"numbers": numbers, "categories": kinds}, params).shape == (1, 3)


def test_vectors_are_projected():
    config = dataclasses.replace(SMALL, inputs="vectors", vector_size=5, pool="none", patterns=("full",))
    assert outputs(config, {"vectors": jnp.ones((2, 7, 5))}).shape == (2, 7, 3)


@pytest.mark.parametrize("implementation", ["plain", "blocked"])
def test_both_implementations_agree_in_both_directions(implementation):
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 6, 2, 8)) for i in range(3))
    mask = attention.Mask(pattern="bidirectional")
    out = attention.attend(q, k, v, mask, scale=0.3, implementation=implementation)
    p = jax.nn.softmax(0.3 * jnp.einsum("BTNH,BSNH->BNTS", q, k), axis=-1)
    np.testing.assert_allclose(out, jnp.einsum("BNTS,BSNH->BTNH", p, v), atol=1e-5)


def test_flops_count_the_head_and_all_keys():
    config = image_model()
    matrices = sum(p.size for p in P.flatten(transformer.specs(config)).values() if p.inputs)
    assert flops.forward_flops_per_token(config, 6) == 2 * matrices + 2 * 4 * 2 * 8 * 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": {"height": 5, "patch": 2}}, "patch"),
        ({"image": {"height": 4, "patch": 2, "frames": 3, "tubelet": 2}}, "tubelet"),
        ({"features": {"numbers": -1}}, "numbers"),
        ({"features": {"categories": (3, 0)}}, "categories"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, words):
    (name, values), kinds = next(iter(changes.items())), {"image": ImageConfig, "features": FeatureConfig}
    with pytest.raises(UserError, match=words):
        kinds[name](**values)


def test_configs_that_say_nothing_whole_are_refused():
    with pytest.raises(UserError, match="model.pool"):
        ModelConfig(pool="cls")
    with pytest.raises(UserError, match="model.features"):
        ModelConfig(inputs="features")
    with pytest.raises(UserError, match="model.outputs"):
        transformer.specs(dataclasses.replace(SMALL, outputs=None))
    with pytest.raises(ValueError, match="continues nothing"):
        cache = kv.init(SMALL, 1, 4, jnp.float32)
        transformer.hidden(params_of(SMALL), jnp.array([[1]]), SMALL, cache=cache)
    with pytest.raises(ValueError, match="expected"):
        outputs(image_model(), {"image": jnp.ones((1, 4, 4, 2))})


def test_attention_pooling_weighs_positions():
    p = {"query": jnp.array([10.0, 0.0])}
    x = jnp.array([[[1.0, 5.0], [0.0, 7.0], [9.0, 1.0]]])
    config = dataclasses.replace(SMALL, pool="attention")
    np.testing.assert_allclose(head.pool(p, x, config, jnp.array([2])), x[:, 0], atol=1e-3)
