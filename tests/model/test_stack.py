"""The stack of layers: a scan equals its unrolled form, and remat changes what is computed twice but nothing else."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.errors import UserError
from research.model import transformer

LAYERS = 2


@pytest.fixture(scope="module")
def compiled(tiny):
    """`compiled(**changes) -> (loss and gradients, text of the optimised program)`, each program once."""
    made = {}

    def get(**changes):
        name = tuple(sorted(changes.items()))
        if name not in made:
            config = tiny.config(**{"layers": LAYERS, **changes})
            params, tokens = tiny.params(config), tiny.tokens(config, 2, 6)
            loss = lambda params: jnp.var(transformer.forward(params, tokens, config))  # noqa: E731
            program = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
            made[name] = program(params), program.as_text()
        return made[name]

    return get


def count(text, operation):
    return len(re.findall(rf" {operation}\(", text))


def agree(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, other)


def test_a_scan_equals_its_unrolled_form(compiled):
    (scanned, loop), (unrolled, line) = compiled(), compiled(unroll=LAYERS)
    assert count(loop, "while") == 2 and count(line, "while") == 0, "one loop forward, one back; none"
    agree(scanned, unrolled)


@pytest.mark.parametrize("unroll", [1, LAYERS])
def test_remat_recomputes_and_changes_nothing(unroll, compiled):
    plain, base = compiled(unroll=unroll)
    products = {"none": count(base, "dot")}
    for remat in ("matmuls", "attention", "full"):
        result, text = compiled(unroll=unroll, remat=remat)
        agree(plain, result)
        assert count(text, "exponential") == 2 * count(base, "exponential"), "softmax and silu run twice"
        products[remat] = count(text, "dot")
    assert products["none"] < products["matmuls"] < products["attention"] < products["full"], products


def test_a_segment_of_one_repeat_is_recomputed_too(compiled):
    """No loop is left there between what is computed and what is recomputed."""
    (_, base), (_, text) = compiled(layers=1), compiled(layers=1, remat="matmuls")
    assert count(base, "while") == 0 and count(text, "exponential") == 2 * count(base, "exponential")


@pytest.mark.parametrize(
    ("layers", "patterns", "segments"),
    [
        (7, ("sliding",) * 5 + ("full",), [(6, 1), (1, 1)]),
        (6, ("sliding", "full"), [(2, 3)]),
        (5, ("sliding", "full"), [(2, 2), (1, 1)]),
        (1, ("sliding", "full"), [(1, 1)]),
        (4, ("full",), [(1, 4)]),
    ],
)
def test_segments_cover_the_layers_in_order(layers, patterns, segments, tiny):
    config = tiny.config(layers=layers, patterns=patterns)
    assert [(len(slots), repeats) for slots, repeats in config.segments] == segments
    order = [slot.pattern for slots, repeats in config.segments for slot in slots * repeats]
    assert order == [patterns[i % len(patterns)] for i in range(layers)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 15}, "model.heads is 4; expected a divisor of width 15"),
        ({"width": 16.5}, "model.width is 16.5; expected a whole number"),
        ({"layers": 0}, "model.layers is 0"),
        ({"kv_heads": 3}, "model.kv_heads is 3; expected a divisor of heads 4"),
        ({"kv_heads": 8}, "model.kv_heads is 8"),
        ({"patterns": ()}, "model.patterns is ()"),
        ({"patterns": ("ful",)}, "model.patterns is 'ful'; expected one of full, sliding, strided"),
        ({"patterns": "full"}, "model.patterns is 'full'; expected a tuple"),
        ({"patterns": ["full"]}, "model.patterns is ['full']; expected a tuple"),
        ({"bias": ("queries",)}, "model.bias is 'queries'"),
        ({"norm": "batch"}, "model.norm is 'batch'; expected one of layer, rms"),
        ({"dropout": 1.0}, "model.dropout is 1.0"),
        ({"dropout": float("nan")}, "model.dropout is nan"),
        ({"norm_eps": -1.0}, "model.norm_eps is -1.0"),
        ({"logit_soft_cap": 0.0}, "model.logit_soft_cap is 0.0"),
        ({"window": 0}, "model.window is 0"),
        ({"vocab_size": 0}, "model.vocab_size is 0"),
        ({"head_size": 5}, "model.rope.fraction is 1.0; expected an even part of head size 5"),
    ],
)
def test_impossible_models_are_refused(changes, words, tiny):
    with pytest.raises(UserError) as error:
        tiny.config(**changes)
    assert words in str(error.value)


def test_an_unknown_vocabulary_is_an_error_where_it_is_needed(tiny):
    with pytest.raises(UserError, match="model.vocab_size is not set"):
        transformer.specs(tiny.config(vocab_size=None))
    assert tiny.config(head_size=6, positions="none", heads=3).H == 6


def test_branches_into_the_stream_start_small_or_at_nothing(tiny):
    for init, expected in (("gpt2", 0.02 / 2), ("fan-in", 24**-0.5 / 2), ("fan-in-zero", 0.0)):
        out = transformer.specs(tiny.config(init=init))["decoder"]["0"]["0"]["mlp"]["out"].init
        assert out.scale == pytest.approx(expected)
