"""The cache: decoding token by token equals the whole sequence at once, for every pattern and kind of positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.model import cache as kv
from research.model import transformer
from research.model.config import Slot

TOTAL = 18
SIZES = {
    "context": TOTAL,
    "layers": 3,
    "patterns": ("sliding", "full", "strided"),
    "window": 4,
    "stride": 3,
    "kv_heads": 2,
    "activation": "relu",
}


class Pair:
    """A model, two sequences, their logits without a cache, and a step with one."""

    def __init__(self, tiny, **changes):
        self.config = tiny.config(**{**SIZES, **changes})
        self.params, self.tokens = tiny.params(self.config), np.asarray(tiny.tokens(self.config, 2, TOTAL))
        self.expected = jax.jit(lambda tokens: transformer.forward(self.params, tokens, self.config))(self.tokens)
        self.step = jax.jit(lambda inputs, cache: transformer.apply(self.params, inputs, self.config, cache=cache))
        self.cache = kv.init(self.config, 2, TOTAL, jnp.float32)

    def append(self, lengths, width):
        """Feeds the next `lengths[b]` tokens of each row, padded to `width` with junk, and compares their logits."""
        done = np.asarray(self.cache.lengths_B)
        chunk = np.full((2, width), 12)
        for b, n in enumerate(lengths):
            chunk[b, :n] = self.tokens[b, done[b] : done[b] + n]
        inputs = {"tokens": jnp.asarray(chunk)} | (
            {} if list(lengths) == [width] * 2 else {"lengths": jnp.asarray(lengths)}
        )
        out = self.step(inputs, self.cache)
        for b, n in enumerate(lengths):
            np.testing.assert_allclose(
                out.outputs[b, :n], self.expected[b, done[b] : done[b] + n], rtol=1e-4, atol=1e-4
            )
        self.cache = out.cache
        np.testing.assert_array_equal(self.cache.lengths_B, done + lengths)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "alibi", "none"])
def test_prefill_of_unequal_lengths_and_decoding_equal_the_whole(positions, tiny):
    pair = Pair(tiny, positions=positions)
    pair.append([3, 8], 8)
    for _ in range(10):  # the ring of 4 + 1 goes round twice
        pair.append([1, 1], 1)
    pair.append([1, 0], 1) if positions == "rotary" else None


def test_chunks_of_any_length_equal_the_whole(tiny):
    """Chunks that fit beside their window in the ring, chunks that do not, and rows that add nothing."""
    pair = Pair(tiny, residual="parallel", norm_placement="sandwich", qk_norm="head")
    for lengths in ([3, 0], [3, 3], [1, 3], [0, 2], [3, 3]):
        pair.append(lengths, 3)
    for lengths in ([2, 2], [1, 2], [2, 0]):
        pair.append(lengths, 2)


def test_windowed_layers_keep_a_ring_and_the_others_everything(tiny):
    cache = kv.init(tiny.config(**SIZES), 2, TOTAL, jnp.bfloat16, draft=3)
    assert [layer.k_BKSH.shape for layer in cache.layers] == [(2, 2, 7, 4), (2, 2, TOTAL, 4), (2, 2, TOTAL, 4)]
    assert {layer.v_BKSH.dtype for layer in cache.layers} == {jnp.dtype("bfloat16")}
    assert all((np.asarray(layer.positions_BS) == -1).all() for layer in cache.layers)
    assert [layer.k_BKSH.shape[2] for layer in kv.init(tiny.config(**SIZES), 2, 3, jnp.float32).layers] == [3, 3, 3]


write = jax.jit(kv.write)
extend = jax.jit(kv.extend, static_argnames=("slot", "config"))


@settings(max_examples=40)
@given(data=st.data())
def test_a_ring_holds_the_newest_and_a_query_sees_its_whole_window(data, tiny):
    """Against a plain list of all that was written. Keys are their own positions."""
    config = tiny.config(window=3, heads=1, width=2)
    ring, T = 4, 3  # window and draft of 1: chunks of 2 fit, of 3 do not
    layer = kv.LayerCache(jnp.zeros((1, 1, ring, 2)), jnp.zeros((1, 1, ring, 2)), jnp.full((1, ring), -1))
    written = 0
    for _ in range(data.draw(st.integers(1, 5))):
        n = data.draw(st.integers(0, T))
        where = jnp.asarray([[written + i if i < n else -1 for i in range(T)]])
        keys = jnp.broadcast_to(where[..., None, None].astype(jnp.float32), (1, T, 1, 2))
        layer, k, v, positions = extend(layer, keys, -keys, where, slot=Slot("sliding"), config=config)
        written += n
        held = {
            int(p): (float(a), float(b))
            for p, a, b in zip(layer.positions_BS[0], layer.k_BKSH[0, 0, :, 0], layer.v_BKSH[0, 0, :, 0], strict=True)
            if p >= 0
        }
        assert held == {p: (p, -p) for p in range(max(0, written - ring), written)}
        offered = sorted(int(p) for p in positions[0] if p >= 0)
        assert len(offered) == len(set(offered)) and set(offered) >= set(range(max(0, written - n - 2), written))
        assert all(
            float(a) == int(p) == -float(b)
            for p, a, b in zip(positions[0], k[0, :, 0, 0], v[0, :, 0, 0], strict=True)
            if p >= 0
        )


def test_rows_write_at_their_own_positions():
    layer = kv.LayerCache(jnp.zeros((2, 1, 4, 1)), jnp.zeros((2, 1, 4, 1)), jnp.full((2, 4), -1))
    keys = jnp.arange(1.0, 7).reshape(2, 3, 1, 1)
    after = write(layer, keys, keys, jnp.asarray([[0, 1, 2], [3, 4, -1]]))
    np.testing.assert_array_equal(after.positions_BS, [[0, 1, 2, -1], [4, -1, -1, 3]])
    np.testing.assert_array_equal(after.k_BKSH[:, 0, :, 0], [[1, 2, 3, 0], [5, 0, 0, 4]])


def test_more_than_a_ring_at_once_keeps_the_newest_whatever_their_order():
    layer = kv.LayerCache(jnp.zeros((1, 1, 3, 1)), jnp.zeros((1, 1, 3, 1)), jnp.full((1, 3), -1))
    keys = jnp.arange(5.0, 0, -1).reshape(1, 5, 1, 1)
    after = write(layer, keys, keys, jnp.asarray([[5, 4, 3, 2, 1]]))
    np.testing.assert_array_equal(after.positions_BS, [[3, 4, 5]])
    np.testing.assert_array_equal(after.v_BKSH[:, 0, :, 0], [[3, 4, 5]])


def test_a_single_entry_is_written_like_many_or_dropped():
    rng = np.random.default_rng(0)
    layer = kv.LayerCache(
        jnp.asarray(rng.normal(size=(1, 2, 4, 3))),
        jnp.asarray(rng.normal(size=(1, 2, 4, 3))),
        jnp.asarray([[4, 1, 2, 3]]),
    )
    new = jnp.asarray(rng.normal(size=(1, 1, 2, 3)))
    after = write(layer, new, -new, jnp.asarray([[5]]))
    np.testing.assert_array_equal(after.positions_BS, [[4, 5, 2, 3]])
    np.testing.assert_array_equal(after.k_BKSH, np.where(np.arange(4)[:, None] == 1, new[0, 0][:, None], layer.k_BKSH))
    np.testing.assert_array_equal(after.v_BKSH[:, :, 1], -new[:, 0])
    kept = write(layer, new, new, jnp.asarray([[-1]]))
    assert all(
        (np.asarray(a) == np.asarray(b)).all()
        for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(layer), strict=True)
    )
