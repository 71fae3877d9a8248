"""What a token can see: by gradients, and by packed documents that equal separate ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.model import cache, transformer

T = 12
SIZES = {"window": 3, "stride": 4, "context": T, "vocab_size": T, "tied": False}


def dependence(tiny, segments=None, **changes):
    """(T, T): how much the logits at t depend on the token at s. Every position has a token of its own, so the gradient
    of its row of the table is that of its position."""
    config = tiny.config(**SIZES, **changes)
    params, weigh = tiny.params(config), np.random.default_rng(1).normal(size=T).astype(np.float32)
    inputs = {"tokens": jnp.arange(T)[None]} | ({} if segments is None else {"segments": jnp.asarray([segments])})

    def logits(table):
        return transformer.forward({**params, "embed": {**params["embed"], "tokens": table}}, inputs, config)[0] @ weigh

    return np.abs(jax.jit(jax.jacrev(logits))(params["embed"]["tokens"])).sum(-1)


@pytest.mark.parametrize(
    ("patterns", "sees"),
    [
        (("full",), lambda back: back >= 0),
        (("sliding",), lambda back: 0 <= back < 3),
        (("strided",), lambda back: back >= 0 and (back < 3 or back % 4 == 0)),
    ],
)
def test_one_layer_sees_exactly_its_pattern(patterns, sees, tiny):
    expected = np.array([[sees(t - s) for s in range(T)] for t in range(T)])
    np.testing.assert_array_equal(dependence(tiny, patterns=patterns, layers=1) > 0, expected)


@pytest.mark.parametrize(
    ("changes", "reach"),
    [
        ({"patterns": ("sliding",), "layers": 2, "positions": "alibi"}, 4),
        (
            {
                "patterns": ("sliding",) * 2 + ("strided", "full"),
                "layers": 5,
                "residual": "parallel",
                "norm_placement": "post",
            },
            T,
        ),
    ],
)
def test_many_layers_see_the_past_alone(changes, reach, tiny):
    expected = np.array([[0 <= t - s <= reach for s in range(T)] for t in range(T)])
    np.testing.assert_array_equal(dependence(tiny, **changes) > 0, expected)


@pytest.mark.parametrize("segments", [[0] * 5 + [1] * 7, [3, 3, 3, 0, 0, 0, 0, 3, 3, 3, 1, 1]])
def test_no_attention_across_documents_even_when_an_id_comes_back(segments, tiny):
    runs = np.cumsum([0, *(a != b for a, b in zip(segments[1:], segments[:-1], strict=True))])
    expected = np.tril(runs[:, None] == runs[None])
    np.testing.assert_array_equal(dependence(tiny, segments, patterns=("full", "full")) > 0, expected)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "alibi", "none"])
def test_packed_documents_equal_separate_ones(positions, tiny):
    config = tiny.config(**SIZES, positions=positions, layers=3, patterns=("full", "sliding", "strided"), kv_heads=2)
    params, tokens = tiny.params(config), tiny.tokens(config, 1)
    first, second = tokens[:, :7], tokens[:, 7:]
    alone = jnp.concatenate(
        [tokens, jnp.pad(second, ((0, 0), (0, 7)))]
    )  # what follows a document changes nothing in it
    plain = tiny.forward(params, alone, config)
    together = tiny.forward(params, {"tokens": tokens, "segments": jnp.asarray([[5] * 7 + [2] * 5])}, config)
    np.testing.assert_allclose(together[0, :7], plain[0, : first.shape[1]], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(together[0, 7:], plain[1, : second.shape[1]], rtol=1e-4, atol=1e-5)
    assert np.abs(together[0, 7:] - plain[0, 7:]).max() > 0.01, "the whole row as one document is another thing"


def test_given_positions_move_a_model_with_absolute_ones(tiny):
    config = tiny.config(positions="learned")
    params, tokens = tiny.params(config), tiny.tokens(config, 1, 4)
    shifted = {**params, "embed": {**params["embed"], "positions": jnp.roll(params["embed"]["positions"], -3, axis=0)}}
    found = tiny.forward(params, {"tokens": tokens, "positions": jnp.arange(3, 7)[None]}, config)
    np.testing.assert_allclose(found, tiny.forward(shifted, tokens, config), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("positions", "same"), [("rotary", True), ("alibi", True), ("sinusoidal", False)])
def test_relative_positions_see_distances_alone(positions, same, tiny):
    config = tiny.config(positions=positions, qk_norm="head")
    params, tokens = tiny.params(config), tiny.tokens(config, 1, 8)
    where = [{"tokens": tokens, "positions": jnp.arange(8)[None] + shift} for shift in (0, 5)]
    here, there = (np.asarray(tiny.forward(params, inputs, config)) for inputs in where)
    assert (np.abs(here - there).max() < 1e-4) == same
    plain = np.asarray(tiny.forward(params, tokens, config))
    np.testing.assert_allclose(here, plain, rtol=1e-4, atol=1e-5)
    turned = {**where[0], "positions": jnp.arange(8)[None] * 2}
    assert np.abs(tiny.forward(params, turned, config) - plain).max() > 0.01, "other distances are another thing"


def test_more_tokens_than_learned_positions_are_refused(tiny):
    config = tiny.config(positions="learned", context=4)
    with pytest.raises(ValueError, match="5 tokens, but there are learned positions for 4"):
        transformer.forward(tiny.params(config), jnp.zeros((1, 5), jnp.int32), config)


def test_segments_and_a_cache_exclude_each_other(tiny):
    config, tokens = tiny.config(), jnp.zeros((1, 3), jnp.int32)
    with pytest.raises(ValueError, match="no segments"):
        transformer.apply(
            tiny.params(config),
            {"tokens": tokens, "segments": tokens},
            config,
            cache=cache.init(config, 1, 8, jnp.float32),
        )
