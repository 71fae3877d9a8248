"""Taps: right values in order of layers, and free when nobody asks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core import params as P
from research.model import cache, transformer

SIZES = {
    "layers": 5,
    "patterns": ("full", "sliding"),
    "window": 3,
    "positions": "alibi",
    "norm": "layer",
    "bias": ("mlp-out",),
}


def silent_attention(params):
    """The same parameters with attention adding nothing: the stream then grows by the feed-forward outputs alone."""
    return P.unflatten(
        {path: leaf * (0 if path.endswith("attention/output") else 1) for path, leaf in P.flatten(params).items()}
    )


@pytest.fixture(scope="module")
def tapped(tiny):
    config = tiny.config(**SIZES)
    params, tokens = silent_attention(tiny.params(config)), tiny.tokens(config, 2, 7)
    return config, params, tokens, jax.jit(lambda: transformer.hidden(params, tokens, config, taps=transformer.TAPS))()


def test_inputs_and_outputs_of_blocks_add_up_layer_by_layer(tapped):
    config, params, tokens, out = tapped
    inputs, added = out.taps["block_input"], out.taps["mlp_output"]
    assert inputs.shape == added.shape == (5, 2, 7, config.width)
    np.testing.assert_allclose(inputs[0], params["embed"]["tokens"][tokens], rtol=1e-5)
    np.testing.assert_allclose(inputs[1:], (inputs + added)[:-1], rtol=1e-4, atol=1e-5)
    last = np.asarray(inputs[-1] + added[-1], np.float64)
    normed = (last - last.mean(-1, keepdims=True)) / np.sqrt(last.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(out.outputs, normed * np.asarray(params["final_norm"]["scale"]), rtol=1e-3, atol=1e-4)
    assert len({float(jnp.sum(layer)) for layer in added}) == 5, "no layer twice"


def test_attention_patterns_are_distributions_over_what_each_layer_sees(tapped):
    p = np.asarray(tapped[-1].taps["attention_pattern"])
    assert p.shape == (5, 2, 4, 7, 7)
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
    causal = np.tril(np.ones((7, 7), bool))
    for layer in range(5):
        allowed = causal & ~np.tril(causal, -3) if layer % 2 else causal
        np.testing.assert_array_equal(p[layer] > 0, np.broadcast_to(allowed, p[layer].shape))


def test_taps_are_the_same_from_a_cache_and_change_no_output(tapped):
    config, params, tokens, out = tapped
    plain = jax.jit(lambda: transformer.hidden(params, tokens, config))()
    np.testing.assert_allclose(plain.outputs, out.outputs, rtol=1e-5, atol=1e-6)
    assert plain.taps == {}
    names = ("block_input", "mlp_output")
    decoded = jax.jit(
        lambda: transformer.hidden(params, tokens, config, taps=names, cache=cache.init(config, 2, 7, jnp.float32))
    )()
    for name in names:
        np.testing.assert_allclose(decoded.taps[name], out.taps[name], rtol=1e-4, atol=1e-5)


def test_absent_taps_leave_nothing_in_the_program(tapped):
    config, params, tokens, _ = tapped

    def scans(taps):
        traced = jax.make_jaxpr(lambda: transformer.hidden(params, tokens, config, taps=taps).outputs)()
        return [len(e.outvars) for e in traced.eqns if e.primitive.name == "scan"]

    assert scans(()) == [1, 1], "the scan returns the stream and nothing else"
    assert scans(("block_input",)) == [2, 2]


def test_taps_that_nobody_reads_are_dropped_by_the_compiler(tapped):
    config, params, tokens, _ = tapped

    def products(taps):
        return (
            jax.jit(lambda: transformer.hidden(params, tokens, config, taps=taps).outputs)
            .lower()
            .compile()
            .as_text()
            .count(" dot(")
        )

    assert products(transformer.TAPS) == products(())


def test_unknown_taps_are_refused(tapped):
    config, params, tokens, _ = tapped
    with pytest.raises(ValueError, match="unknown taps .*mlp.*; there are block_input, attention_pattern, mlp_output"):
        transformer.hidden(params, tokens, config, taps=("mlp",))
