"""The shapes of the benchmark and how they are written."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.bench import shapes
from research.core.errors import UserError
from research.families import gpt2

SIZES = st.integers(1, 4096)


@settings(deadline=None)
@given(SIZES, SIZES, SIZES, SIZES, st.integers(0, 4096), st.integers(2, 10**6))
def test_what_is_written_is_read(layers, head, heads, context, batch, vocabulary):
    shape = shapes.parse(f"{layers}x{head * heads}x{heads}x{context}x{batch}x{vocabulary}")
    assert dataclasses.astuple(shape) == (layers, head * heads, heads, context, batch, vocabulary)
    assert shape.tokens == batch * context


def test_the_named_shapes():
    assert str(shapes.parse("small")) == "4 layers x 128 wide x 64 context x batch 12, vocabulary 65"
    assert str(shapes.parse("gpt2")) == "GPT-2 124M x 256 context x batch 2, vocabulary 50304"
    assert "the largest batch" in str(shapes.parse("gpt2-largest-batch"))
    assert dataclasses.astuple(shapes.parse("gpt2"))[:3] == gpt2.SIZES["gpt2"][:3]
    assert set(shapes.ON_CPU + shapes.ON_ACCELERATOR) == set(shapes.NAMED)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("smal", "did you mean small"),
        ("4x128", "LAYERSxWIDTHxHEADSxCONTEXTxBATCHxVOCABULARY"),
        ("4x128x4x64x12x65x1", "there is no shape"),
        ("4x128x4x-64x12x65", "there is no shape"),
        ("4x128x4x0x12x65", "a size of 0"),
        ("4x128x4x64x12x1", "vocabulary below 2"),
        ("4x128x5x64x12x65", "5 heads, which do not divide its width 128"),
    ],
)
def test_a_shape_that_is_none(text, said):
    with pytest.raises(UserError, match=said):
        shapes.parse(text)
