"""The prefix mask: a context seen in both directions, and what follows it from the left alone; with a cache as without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.families import glm130b
from research.model import attention, flops, transformer
from research.model import cache as kv
from research.model.attention import Mask
from research.model.blanks import BlankIds, blank_ids, continued
from research.model.config import ModelConfig, Slot

T = 7
CONFIG = glm130b.config(2, 16, 2, 24, vocab_size=13, context=T)


@given(st.integers(1, 9), st.integers(1, 9), st.lists(st.integers(0, 9), min_size=2, max_size=2))
def test_a_query_sees_the_prefix_and_what_came_before(T, S, prefixes):
    allowed = np.asarray(Mask("prefix", prefix_B=jnp.asarray(prefixes)).allowed(T, S))
    for b, t, s in np.ndindex(2, T, S):
        assert allowed[b, t, s] == (s <= t or s < prefixes[b])


def test_empty_keys_are_never_part_of_a_prefix():
    keys = jnp.asarray([[0, -1, 2]])
    mask = Mask("prefix", query_positions_BT=jnp.asarray([[0]]), key_positions_BS=keys, prefix_B=jnp.asarray([3]))
    np.testing.assert_array_equal(mask.allowed(1, 3), [[[True, False, True]]])


def test_implementations_agree_in_values_and_gradients(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 3)
    draw = np.random.default_rng(0)
    q, k, v, weights = (jnp.asarray(draw.normal(size=(2, T, 2, 4)), jnp.float32) for _ in range(4))
    mask = Mask("prefix", prefix_B=jnp.asarray([4, 0]))

    def both(implementation):
        attend = lambda *qkv: attention.attend(*qkv, mask, scale=0.5, implementation=implementation)  # noqa: E731
        return jax.value_and_grad(lambda qkv: jnp.sum(attend(*qkv) * weights))((q, k, v))

    def dense(qkv):
        seen = np.tril(np.ones((T, T), bool))[None] | (np.arange(T) < np.array([4, 0])[:, None])[:, None]
        return jnp.sum(
            jax.nn.dot_product_attention(*qkv, mask=seen[:, None], scale=0.5, implementation="xla") * weights
        )

    found = jax.jit(
        lambda: {**{n: both(n) for n in ("plain", "blocked")}, "jax": jax.value_and_grad(dense)((q, k, v))}
    )()
    for name in ("plain", "blocked"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found[name], found["jax"])


def test_part_b_sees_all_of_part_a_and_part_a_nothing_of_part_b(tiny):
    """Every output of a model whose tokens are changed one at a time; the tokens of part B all have one position."""
    params, prefix = tiny.params(CONFIG), 4
    tokens = np.tile(np.arange(T), (T + 1, 1))
    tokens[np.arange(T), np.arange(T)] = 11
    inputs = {
        "tokens": jnp.asarray(tokens), "positions": jnp.tile(jnp.asarray([0, 1, 2, 3, 2, 2, 2]), (T + 1, 1)),
        "prefix": jnp.full(T + 1, prefix),
    }  # fmt: skip
    logits = np.asarray(jax.jit(lambda inputs: transformer.apply(params, inputs, CONFIG).outputs)(inputs))
    for changed in range(T):
        moved = np.abs(logits[changed] - logits[-1]).max(axis=-1) > 1e-6
        np.testing.assert_array_equal(moved, (np.arange(T) >= changed) | (changed < prefix), err_msg=str(changed))


def test_without_a_prefix_it_is_causal(tiny):
    params, tokens = tiny.params(CONFIG), tiny.tokens(CONFIG)
    causal = tiny.forward(params, tokens, glm130b.config(2, 16, 2, 24, vocab_size=13, context=T, patterns=("full",)))
    none = jax.jit(lambda tokens: transformer.apply(params, tokens, CONFIG).outputs)(
        {"tokens": tokens, "prefix": jnp.zeros(2, jnp.int32)}
    )
    np.testing.assert_allclose(none, causal, rtol=1e-5, atol=1e-5)


def test_a_cache_changes_nothing(tiny):
    """Two rows of other lengths, padded, then a token at a time; the second has no prefix."""
    params, tokens, lengths = tiny.params(CONFIG), tiny.tokens(CONFIG), np.array([4, 2])
    prefix = jnp.asarray([3, 0])
    whole = jax.jit(lambda inputs: transformer.apply(params, inputs, CONFIG).outputs)(
        {"tokens": tokens, "prefix": prefix}
    )
    step = jax.jit(lambda inputs, cache: transformer.apply(params, inputs, CONFIG, cache=cache))
    out = step({"tokens": tokens[:, :4], "lengths": lengths, "prefix": prefix}, kv.init(CONFIG, 2, 8, jnp.float32))
    for b, length in enumerate(lengths):
        np.testing.assert_allclose(out.outputs[b, :length], whole[b, :length], rtol=1e-4, atol=1e-5)
    for i in range(3):
        out = step({"tokens": np.take_along_axis(np.asarray(tokens), lengths[:, None] + i, 1)}, out.cache)
        for b, length in enumerate(lengths):
            np.testing.assert_allclose(out.outputs[b, 0], whole[b, length + i], rtol=1e-4, atol=1e-5)


def test_a_prefix_and_packed_documents_do_not_go_together(tiny):
    tokens = tiny.tokens(CONFIG)
    with pytest.raises(ValueError, match="give no segments with it"):
        transformer.apply(tiny.params(CONFIG), {"tokens": tokens, "segments": tokens, "prefix": jnp.zeros(2)}, CONFIG)


def test_arithmetic_counts_it_like_full_attention():
    assert flops.keys_per_query(Slot("prefix"), CONFIG, 8 * CONFIG.window) == 8 * CONFIG.window


def test_the_special_ids_are_the_last_four_and_differ():
    ids = blank_ids(CONFIG)
    assert ids == BlankIds(9) and sorted((ids.end, ids.start, ids.mask, ids.long_mask)) == [9, 10, 11, 12]
    assert ids.end == ids.text, "so that the ids that may be drawn are those up to it"
    assert blank_ids(ModelConfig(vocab_size=13)) is None


def test_a_text_to_be_continued_ends_in_its_mask_and_a_start():
    tokens, prefix = continued(np.array([5, 6, 7], np.int32), BlankIds(9))
    assert tokens.tolist() == [5, 6, 7, 12, 10] and prefix == 4 and tokens.dtype == np.int32
