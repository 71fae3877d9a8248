"""Words and hashes of n-grams: what counts as a word, and the same hashes everywhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data.ngrams import ngram_hashes, words


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Don't  stop,\n“NOW” -- 3.5%!", ["dont", "stop", "now", "35"]),
        ("Straße ＡＢＣ e\u0301t\u00e9", ["strasse", "abc", "\u00e9t\u00e9"]),
        ("今天，天气 GPT很好。", ["今", "天", "天", "气", "gpt", "很", "好"]),
        ("ひらカナ 한국어 말", ["ひ", "ら", "カ", "ナ", "한국어", "말"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        ("1 + 1 = $2", ["1", "1", "2"]),
        ("?! \t", []),
        ("", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


def test_hashes_are_the_same_everywhere():
    expected = [0x7B15E2832C047FEF, 0x34A0D825F0DDB78E]
    assert ngram_hashes(["the", "same", "天", "\ud800"], 3).tolist() == expected
    assert ngram_hashes(["the"], 1).tolist() == [0x2E3A97906CABDA5E]  # BLAKE2b-64 of "the"


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 5))
def test_equal_hashes_mean_equal_ngrams_and_no_others(tokens, n):
    hashes = ngram_hashes(tokens, n)
    ngrams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    assert hashes.dtype == np.uint64 and len(hashes) == len(ngrams)
    for one, ngram in zip(hashes, ngrams, strict=True):
        assert [one == other for other in hashes] == [ngram == other for other in ngrams]


@given(st.text())
def test_words_hold_no_space_and_do_not_depend_on_what_comes_before(text):
    for word in words(text):
        assert not any(character.isspace() for character in word)
    assert words(text + " " + text) == words(text) * 2
