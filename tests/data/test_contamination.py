"""Decontamination: shared n-grams are found where they are, and nothing else is, even where hashes collide."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data import contamination
from research.data.contamination import Match, Report, contaminated, counts, find, index_benchmark, merge, scan
from research.data.ngrams import words

ITEM = " ".join(f"item{i}" for i in range(26))
LETTERS = st.lists(st.sampled_from("abc"), max_size=10).map(" ".join)


def model(items: list[str], documents: list[str], n: int) -> list[Match]:
    """All matches by comparing every n-gram with every other."""
    found = []
    for number, document in enumerate(documents):
        tokens = words(document)
        for item, text in enumerate(items):
            target = words(text)
            pairs = [
                (at, start)
                for at in range(len(tokens) - n + 1)
                for start in range(len(target) - n + 1)
                if tokens[at : at + n] == target[start : start + n]
            ]
            if pairs:
                covered = {start + k for _, start in pairs for k in range(n)}
                at = pairs[0][0]
                found.append(Match(number, item, " ".join(tokens[at : at + n]), at, len(covered) / len(target)))
    return found


def test_thirteen_shared_words_are_found_and_twelve_are_not():
    benchmark = index_benchmark(["something else that is long enough to have thirteen words of its own here", ITEM])
    shared = ITEM.split()[5:18]
    text = "Before it: " + ", ".join(shared).upper() + ". And after it"
    assert find(benchmark, 7, text) == (Match(7, 1, " ".join(shared), 2, 0.5),)
    assert find(benchmark, 7, "Before it " + " ".join(shared[1:]) + " after it") == ()


def test_chinese_is_compared_by_characters_inside_other_text():
    item = "下列各句中没有语病的一句是哪一个请选择"
    benchmark = index_benchmark([item])
    (match,) = find(benchmark, 0, f"An English page that quotes「{item[:14]}」and goes on in English.")
    assert match.position == 5 and match.overlap == pytest.approx(14 / 19)
    assert match.ngram == " ".join(item[:13])


@given(st.lists(LETTERS, min_size=1, max_size=4), st.lists(LETTERS, max_size=4), st.integers(1, 3), st.booleans())
def test_matches_are_those_of_comparing_everything(items, documents, n, collide):
    if not any(len(item.split()) >= n for item in items):
        with pytest.raises(UserError, match="smaller n"):
            index_benchmark(items, n)
        return
    with pytest.MonkeyPatch.context() as patch:
        if collide:
            hashes = contamination.ngram_hashes
            patch.setattr(contamination, "ngram_hashes", lambda tokens, n: hashes(tokens, n) % np.uint64(2))
        report = scan(index_benchmark(items, n), enumerate(documents))
    expected = model(items, documents, n)
    assert report.documents == len(documents)
    assert [(m.document, m.item, m.ngram, m.position) for m in report.matches] == [
        (m.document, m.item, m.ngram, m.position) for m in expected
    ]
    np.testing.assert_allclose([m.overlap for m in report.matches], [m.overlap for m in expected])


def test_reports_of_parts_add_up_and_counts_are_json():
    benchmark = index_benchmark([ITEM, "too short", ITEM + " and a longer end of it"])
    documents = [(0, "clean"), (1, ITEM), (2, " ".join(ITEM.split()[:13])), (3, "clean too")]
    whole = scan(benchmark, iter(documents))
    assert merge([scan(benchmark, documents[2:]), scan(benchmark, documents[:2])]) == whole
    assert contaminated(whole).tolist() == [1, 2]
    assert json.loads(json.dumps(counts(benchmark, whole))) == {
        "documents": 4,
        "contaminated": 2,
        "items": 3,
        "too_short": 1,
        "found": 2,
        "by_item": [
            {"item": 0, "documents": 2, "overlap": 1.0},
            {"item": 2, "documents": 2, "overlap": pytest.approx(26 / 32)},
        ],
    }
    assert merge([]) == Report(0, ()) and contaminated(merge([])).tolist() == []


def test_bad_n_is_refused():
    with pytest.raises(UserError, match="at least 1"):
        index_benchmark(["a"], 0)
    with pytest.raises(UserError, match="none of the 1 benchmark items has 13 words"):
        index_benchmark(["a b c"])
