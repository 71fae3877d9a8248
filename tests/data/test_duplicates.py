"""Deduplication: what is planted is found, what is dropped repeats something kept, and nothing depends on the machine."""

import dataclasses
import itertools
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data import duplicates
from research.data.duplicates import Bands, Counts, candidate_probability, cluster, exact, jaccard, near

TEXTS = st.lists(st.text("aB \n", max_size=3), max_size=12)


@pytest.fixture(scope="module")
def datasketch():
    return pytest.importorskip("datasketch")


def edited(tokens: list[str], rate: float, rng: np.random.Generator) -> list[str]:
    """`tokens` with each replaced by a new one with probability `rate`."""
    return [f"new{rng.integers(1 << 40)}" if rng.random() < rate else token for token in tokens]


def planted(documents: int, rates: list[float], separator: str = " ") -> tuple[list[str], list[int]]:
    """Random documents of 200 words, and a copy of each with edits at a rate; and the source of every one."""
    rng = np.random.default_rng(0)
    originals = [[f"w{i}" for i in rng.integers(0, 2000, 200)] for _ in range(documents)]
    copies = [edited(tokens, rates[i % len(rates)], rng) for i, tokens in enumerate(originals)]
    order = rng.permutation(2 * documents)
    texts = [separator.join(tokens) for tokens in originals + copies]
    return [texts[i] for i in order], [int(i) % documents for i in order]


def check_sound(result, n: int) -> None:
    """Everything is kept or dropped, and what is dropped repeats an earlier record that is kept."""
    assert result.kept.dtype == bool and result.repeats.dtype == np.int64
    assert len(result.kept) == len(result.repeats) == n
    np.testing.assert_array_equal(result.kept, result.repeats == np.arange(n))
    assert result.kept[result.repeats].all()
    assert (result.repeats <= np.arange(n)).all()


@given(TEXTS, st.sampled_from(["none", "folded"]))
def test_exact_keeps_the_first_of_equal_texts(texts, form):
    result = exact(iter(texts), form)
    check_sound(result, len(texts))
    same = texts if form == "none" else [" ".join(text.casefold().split()) for text in texts]
    assert result.repeats.tolist() == [same.index(text) for text in same]
    assert exact([text for text, keep in zip(texts, result.kept, strict=True) if keep], form).kept.all()


def test_exact_finds_every_planted_copy():
    texts, sources = planted(300, [0.0])
    result = exact(texts)
    assert result.repeats.tolist() == [sources.index(source) for source in sources]


def test_digests_are_the_same_everywhere_and_those_of_parts_add_up():
    texts = ["Some  text", "天\n", "\ud800", ""]
    table = duplicates.digests(texts, "folded")
    assert table[0].tolist() == [16532154006803973620, 5286144270691107879]  # BLAKE2b-128 of "some text"
    np.testing.assert_array_equal(
        np.concatenate([duplicates.digests(texts[:1]), duplicates.digests(texts[1:])]), duplicates.digests(texts)
    )
    assert duplicates.digests([]).shape == (0, 2)


def test_what_is_not_text_is_refused():
    with pytest.raises(UserError, match="record 1 is bytes"):
        exact(["a", b"b"])
    with pytest.raises(UserError, match="one string"):
        exact("abc")
    with pytest.raises(UserError, match="'lower'"):
        exact(["a"], "lower")


def test_near_finds_what_is_planted_and_nothing_else(datasketch):
    texts, sources = planted(300, [0.0, 0.005, 0.01, 0.015, 0.02, 0.03])
    firsts = [sources.index(source) for source in sources]
    similarities = np.array([jaccard(texts[i], texts[first]) for i, first in enumerate(firsts)])
    later = np.arange(len(texts)) != firsts
    result = near(texts, threshold=0.75)
    check_sound(result, len(texts))
    wanted = later & (similarities >= 0.85)
    assert wanted.sum() > 150
    assert (~result.kept)[wanted].mean() >= 0.95
    assert (result.repeats == firsts)[~result.kept].all()
    assert (similarities[~result.kept] >= 0.75).all()
    assert (later & (similarities < 0.75)).sum() > 10


def test_candidates_come_as_often_as_the_curve_says(datasketch):
    bands = Bands(bands=10, rows=5)
    texts, sources = planted(400, [0.02, 0.04, 0.06, 0.08, 0.1])
    firsts = [sources.index(source) for source in sources]
    pairs = [(first, i) for i, first in enumerate(firsts) if first != i]
    expected = candidate_probability([jaccard(texts[a], texts[b]) for a, b in pairs], 10, 5)
    dropped = (~near(texts, bands).kept).sum()
    deviation = np.sqrt((expected * (1 - expected)).sum())
    assert 5 < deviation < len(pairs) / 10
    assert abs(dropped - expected.sum()) < 4 * deviation


def test_chinese_is_compared_by_characters(datasketch):
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(0x4E00, 0x9FFF, 300))) for _ in range(20)]
    copies = [text[:150] + "新" + text[151:] + "。" for text in texts]
    result = near(texts + copies, threshold=0.9)
    assert result.repeats.tolist() == [*range(20), *range(20)]


@settings(max_examples=30)
@given(st.lists(st.lists(st.sampled_from("ab"), max_size=4).map(" ".join), max_size=8), st.sampled_from([None, 0.8]))
def test_near_is_sound_and_idempotent(datasketch, texts, threshold):
    result = near(texts, threshold=threshold)
    check_sound(result, len(texts))
    left = [text for text, keep in zip(texts, result.kept, strict=True) if keep]
    assert near(left, threshold=threshold).kept.all()
    assert all(keep for text, keep in zip(texts, result.kept, strict=True) if not text)
    assert len({text for text in left if text}) == len([text for text in left if text])


@given(st.data())
def test_clusters_are_the_components_of_similar_candidates(data):
    bands = Bands(bands=data.draw(st.integers(1, 3)), rows=data.draw(st.integers(1, 2)))
    n = data.draw(st.integers(0, 9))
    places = st.lists(st.integers(0, 1), min_size=bands.bands * bands.rows, max_size=bands.bands * bands.rows)
    rows = data.draw(st.lists(places, min_size=n, max_size=n))
    pairs = list(itertools.combinations(range(n), 2))
    alike = data.draw(st.none() | st.sets(st.sampled_from(pairs)) if pairs else st.none())
    labels = list(range(n))
    for a, b in pairs * n:
        shared = any(
            rows[a][i : i + bands.rows] == rows[b][i : i + bands.rows] for i in range(0, len(rows[a]), bands.rows)
        )
        if shared and (alike is None or (a, b) in alike):
            labels[a] = labels[b] = min(labels[a], labels[b])
    table = np.array(rows, np.uint32).reshape(n, bands.bands * bands.rows)
    result = cluster(table, bands, None if alike is None else lambda a, b: (min(a, b), max(a, b)) in alike)
    assert result.repeats.tolist() == labels


@pytest.mark.parametrize("edges", [{(0, 1), (1, 2)}, {(0, 2), (1, 2)}, {(0, 1), (0, 2)}])
def test_a_third_record_links_two_that_are_not_similar(edges):
    table = np.zeros((3, 112), np.uint32)
    assert cluster(table, similar=lambda a, b: (a, b) in edges).repeats.tolist() == [0, 0, 0]
    assert cluster(table, similar=lambda a, b: (a, b) == (1, 2)).repeats.tolist() == [0, 1, 1]


def test_signatures_are_the_same_everywhere_and_those_of_parts_add_up(datasketch):
    texts = ["One two three four five six", "天地玄黄宇宙洪荒", "short", ""]
    table = duplicates.signatures(texts)
    assert table.shape == (4, 112) and table.dtype == np.uint32
    assert table[:, 0].tolist() == [1169849658, 178818801, 2270622318, 2**32 - 1]
    assert (table[3] == 2**32 - 1).all()
    parts = [duplicates.signatures(texts[:2]), duplicates.signatures(texts[2:])]
    np.testing.assert_array_equal(np.concatenate(parts), table)
    assert duplicates.signatures([]).shape == (0, 112)


def test_the_curve_has_the_published_values():
    # The announcement of FineWeb gives these for 14 bands of 8.
    assert candidate_probability([0.7, 0.75, 0.8, 0.85], 14, 8).round(3).tolist() == [0.565, 0.772, 0.924, 0.988]


def test_a_threshold_out_of_reach_is_refused():
    with pytest.raises(UserError, match=r"find only 5\.3% .* at least 0\.685"):
        near(["a"], threshold=0.5)
    assert 0.49 < candidate_probability(0.685, 14, 8) < 0.51
    with pytest.raises(UserError, match="above 0"):
        near(["a"], threshold=1.5)
    with pytest.raises(UserError, match="twice"):
        near(iter(["a"]), threshold=0.8)
    with pytest.raises(UserError, match="rows of the bands is 0"):
        Bands(rows=0)


def test_missing_library_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UserError, match=r"pip install 'purestep\[dedup\]'"):
        near(["a"])


def test_counts():
    one = duplicates.counts(exact(["a", "b", "a", "a", "c", "b"]))
    assert one == Counts(records=6, kept=3, dropped=3, clusters=2, largest=3)
    none = duplicates.counts(exact([]))
    assert none == Counts(0, 0, 0, 0, 0) == duplicates.merge_counts([])
    both = duplicates.merge_counts([one, none, one])
    assert both == Counts(records=12, kept=6, dropped=6, clusters=4, largest=3)
    assert json.loads(json.dumps(dataclasses.asdict(both)))["clusters"] == 4
