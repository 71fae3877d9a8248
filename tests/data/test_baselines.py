"""The baselines against what they are defined as: gzip's own size, and a count by count reading of the order-2 model."""

import gzip
import math
import random
import zlib
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data import baselines

ENGLISH = b"the cat sat on the mat and the dog sat on the log; the rat ate the cat that sat on the mat. " * 20


def test_gzip_is_the_size_of_what_the_compressor_writes():
    body = zlib.compressobj(9, zlib.DEFLATED, -15)
    size = len(body.compress(ENGLISH) + body.flush()) + 18  # header of 10 bytes, checksum and length of 8
    assert (
        baselines.gzip_bits_per_byte(ENGLISH)
        == 8 * size / len(ENGLISH)
        == 8 * len(gzip.compress(ENGLISH, 9)) / len(ENGLISH)
    )
    assert (
        baselines.gzip_bits_per_byte(ENGLISH) < 1 < 8 < baselines.gzip_bits_per_byte(random.Random(0).randbytes(1000))
    )


def by_counting(train: bytes, text: bytes) -> float:
    """Witten and Bell's smoothing as it reads, one byte at a time."""
    counts = [defaultdict(Counter) for _ in range(3)]
    for order in range(3):
        for i in range(order, len(train)):
            counts[order][train[i - order : i]][train[i]] += 1

    def probability(order, context, byte):
        if order < 0:
            return 1 / 256
        seen, lower = counts[order][context], probability(order - 1, context[1:], byte)
        return (seen[byte] + len(seen) * lower) / (seen.total() + len(seen)) if seen else lower

    bits = [-math.log2(probability(2, text[i - 2 : i], text[i])) for i in range(2, len(text))]
    return sum(bits) / len(bits)


letters = st.binary(min_size=3, max_size=60) | st.text("ab", min_size=3, max_size=60).map(str.encode)


@given(letters, letters)
def test_order_2_is_its_definition(train, text):
    assert baselines.order2_bits_per_byte(train, text) == pytest.approx(by_counting(train, text), rel=1e-9)


def test_order_2_is_between_knowing_nothing_and_knowing_all():
    assert baselines.order2_bits_per_byte(b"", ENGLISH) == pytest.approx(8)
    assert baselines.order2_bits_per_byte(b"abc" * 1000, b"abc" * 100) < 0.02
    assert 0.2 < baselines.order2_bits_per_byte(ENGLISH, ENGLISH[:900]) < 2
    assert math.isfinite(baselines.order2_bits_per_byte(b"aaaa", bytes(range(256))))


def test_more_text_of_the_kind_makes_it_better():
    with_more = baselines.order2_bits_per_byte(ENGLISH, b"the dog ate the mat and the cat sat on the rat")
    assert with_more < baselines.order2_bits_per_byte(ENGLISH[:60], b"the dog ate the mat and the cat sat on the rat")
