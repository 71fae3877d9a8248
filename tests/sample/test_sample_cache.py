"""The cache of generation: what is kept and in which type, how near 8 bits come, and how it lies on several devices."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from research.model import cache as kv
from research.model.config import ModelConfig
from research.sample import decode as D

CONFIG = ModelConfig(
    vocab_size=19, context=64, width=32, layers=3, heads=4, kv_heads=2, mlp_width=48, tied=False, patterns=("sliding", "full", "strided"),
    window=6, stride=3,
)  # fmt: skip
B, T, LENGTH = 2, 16, 32


@pytest.fixture(scope="module")
def model(tiny) -> D.Model:
    return D.prepare(tiny.params(CONFIG), CONFIG)


def prompts(tokens) -> D.Prompts:
    numbers = np.arange(B)
    return D.Prompts(np.asarray(tokens), np.array([T, 9]), numbers.astype(np.uint32), numbers * 0)


@pytest.fixture(scope="module")
def states(model, tiny) -> dict[str, D.Decoding]:
    """The state after two prompts, with a cache of either kind."""
    given = prompts(tiny.tokens(CONFIG, B, T))
    how = {"num": 1, "length": LENGTH, "vocab": 19, "drawn": False, "remember": False}
    return {stored: D.prefill(model, given, np.uint32(0), stored=stored, **how) for stored in ("auto", "int8")}


@pytest.mark.parametrize(("stored", "dtype"), [("auto", "float32"), ("int8", "int8")])
def test_a_layer_holds_its_window_or_everything_in_the_type_asked_for(stored, dtype, states):
    layers = states[stored].cache.layers
    lengths = [CONFIG.window + 1, LENGTH, LENGTH]
    assert [layer.k_BKSH.shape for layer in layers] == [(B, 2, S, 8) for S in lengths]
    assert {x.dtype.name for layer in layers for x in (layer.k_BKSH, layer.v_BKSH)} == {dtype}
    for layer, S in zip(layers, lengths, strict=True):
        scales = [layer.k_scale_BKS, layer.v_scale_BKS]
        expected = [((B, 2, S), "float32")] * 2
        assert scales == [None, None] if stored == "auto" else [(x.shape, x.dtype.name) for x in scales] == expected


def test_a_cache_of_8_bits_is_close_to_full_precision(model, states, tiny):
    """Twelve more tokens, the same for both: each entry is off by up to 1/254 of its head's largest, so logits by a few hundredths."""
    step = jax.jit(D.feed)
    tokens = np.asarray(tiny.tokens(CONFIG, 12, B, seed=1))
    exact, rough, far = states["auto"], states["int8"], []
    for token_B in tokens:
        exact, rough = step(model, exact, token_B), step(model, rough, token_B)
        spread = exact.logits_BV.std()
        far.append(float(jnp.abs(exact.logits_BV - rough.logits_BV).max() / spread))
    assert {layer.k_BKSH.dtype.name for layer in rough.cache.layers} == {"int8"}
    assert 1e-5 < max(far) < 0.05


write = jax.jit(kv.write)
KEYS = hnp.arrays(np.float32, (1, 2, 2, 4), elements=st.floats(-1e4, 1e4, width=16))


@given(keys=KEYS)
def test_8_bits_are_off_by_at_most_half_a_step_of_their_head(keys):
    layer = kv.init(dataclasses.replace(CONFIG, heads=2, width=8, layers=1, patterns=("full",)), 1, 3, jnp.int8).layers[
        0
    ]
    after = write(layer, keys, -2 * keys, jnp.array([[0, 2]]))
    k, v = (np.asarray(x)[:, [0, 2]] for x in kv.read(after, jnp.float32))
    most = np.abs(keys).max(axis=-1, keepdims=True)
    assert (np.abs(k - keys) <= most * (0.5 / 127 + 1e-6)).all()
    assert (np.abs(v + 2 * keys) <= 2 * most * (0.5 / 127 + 1e-6)).all()


def test_decoding_takes_over_the_memory_of_the_cache(model, tiny):
    given = prompts(tiny.tokens(CONFIG, B, T, seed=3))
    state = D.prefill(model, given, np.uint32(0), num=1, length=LENGTH, vocab=19, drawn=False, remember=False)
    before = [layer.k_BKSH.unsafe_buffer_pointer() for layer in state.cache.layers]
    after, _ = D.decoder()(model, state, D.F.make(), np.int32(3))
    assert [layer.k_BKSH.unsafe_buffer_pointer() for layer in after.cache.layers] == before
    assert all(layer.k_BKSH.is_deleted() for layer in state.cache.layers)


def test_eight_devices_share_the_cache_and_draw_what_one_draws(run_python):
    """8 rows over 4, 2 heads over 2."""
    code = Path(__file__).with_name("eight_devices_sampling.py").read_text()
    found = json.loads(run_python(code, "data=2,fsdp=2,tensor=2", devices=8).splitlines()[-1])
    assert found["same"] == {"beams": True, "speculative": True, "drawn": True}
    assert found["shards"] == [[[2, 1, S, 4], [2, 1, S]] for S in (7,)]
    assert found["dtypes"] == ["int8"] and found["donated"]
