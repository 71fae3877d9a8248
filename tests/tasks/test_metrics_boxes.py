"""Average precision of boxes: worked examples, a plain reading of the definition, scikit-learn's curve."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve

from research.core.errors import UserError
from research.tasks import metrics
from research.tasks.metrics import Boxes, Resampling, average_precisions, mean_average_precision, wilson

QUICK = Resampling(resamples=60)


def boxes(*corners, labels=None, scores=None):
    labels = np.zeros(len(corners), int) if labels is None else np.array(labels, int)
    return Boxes(np.array(corners, float), labels, None if scores is None else np.array(scores, float))


def square(x, y=0.0, side=10.0):
    return [x, y, x + side, y + side]


def test_overlaps_in_closed_form():
    one = np.array([[0, 0, 10, 10], [0, 0, 4, 5], [3, 3, 3, 3]], float)
    other = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [3, 3, 3, 3]], float)
    expected = [[1, 1 / 3, 0, 0], [0.2, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(metrics.intersection_over_union(one, other), expected)


def test_average_precision_worked_by_hand():
    """Three truths; found, by falling score: right, wrong, right, a second box of the first truth, which is wrong."""
    truths = [boxes(square(0), square(20)), boxes(square(0))]
    found = [
        boxes(square(0), square(100), square(1), scores=[0.9, 0.8, 0.3]),
        boxes(square(0.5), scores=[0.7]),
    ]
    # precision 1, 1/2, 2/3, 2/4 at recall 1/3, 1/3, 2/3, 2/3; the highest from there on: 1 up to 1/3, 2/3 up to 2/3
    assert average_precisions(found, truths) == {0: pytest.approx((1 + 2 / 3) / 3)}
    assert mean_average_precision(found, truths, how=QUICK).value == pytest.approx(5 / 9)


def test_classes_count_alike_and_are_matched_apart():
    truths = [boxes(square(0), square(50), square(70), labels=[2, 5, 5])]
    found = [boxes(square(0), square(50), square(0), labels=[2, 5, 5], scores=[0.5, 0.6, 0.7])]
    assert average_precisions(found, truths) == {2: 1.0, 5: pytest.approx(0.25)}
    found_more = [boxes(square(0), square(50), square(0), square(9), labels=[2, 5, 5, 8], scores=[0.5, 0.6, 0.7, 1])]
    assert average_precisions(found_more, truths) == average_precisions(found, truths), "no truth is of class 8"
    value = mean_average_precision(found * 3, truths * 3, how=QUICK).value
    assert value == pytest.approx(0.625)


def test_overlap_is_reached_at_its_bound_and_the_best_truth_is_taken():
    truths = [boxes(square(0), square(4))]
    half = [boxes([0, 0, 5, 10], scores=[1.0])]  # half of the first truth, a tenth of what it and the second cover
    assert average_precisions(half, truths) == {0: 0.5} and average_precisions(half, truths, 0.51) == {0: 0.0}
    # both overlap the second truth most, so one of the two is wrong, although the first truth lies within reach of it
    both = [boxes(square(4), square(2.1), scores=[0.9, 0.8])]
    assert metrics.intersection_over_union(both[0].corners, truths[0].corners)[1, 0] > 0.5
    assert average_precisions(both, truths) == {0: 0.5}


def test_scores_decide_who_takes_a_truth_and_places_which_truth_is_taken():
    lower_first = boxes(square(0), square(1), scores=[0.3, 0.9])
    assert average_precisions([lower_first], [boxes(square(0))]) == {0: 1.0}
    between = [boxes(square(0), square(2), scores=[0.9, 0.8])]  # the second overlaps both truths alike
    for truths in (boxes(square(0), square(4)), boxes(square(4), square(0))):
        assert average_precisions(between, [truths]) == {0: 0.5}


def test_equal_scores_enter_together():
    truths = [boxes(square(0))]
    for found in (boxes(square(0), square(90), scores=[1, 1]), boxes(square(90), square(0), scores=[1, 1])):
        assert average_precisions([found], truths) == {0: 0.5}


def test_it_is_the_envelope_of_scikit_learns_curve():
    """One box in each picture: whether it is right is a label, and its average precision without the envelope is no larger."""
    generator = np.random.default_rng(0)
    right = generator.random(80) < 0.5
    scores = np.round(generator.normal(size=80) + right, 1)
    truths = [boxes(square(0)) if r else boxes() for r in right]
    found = [boxes(square(0), scores=[s]) for s in scores]
    precision, recall, _ = precision_recall_curve(right, scores)
    best = np.maximum.accumulate(precision)  # from high recall to low
    expected = -np.sum(np.diff(recall) * best[:-1])
    assert average_precisions(found, truths)[0] == pytest.approx(expected)
    assert average_precision_score(right, scores) < expected
    falling = np.arange(80)[::-1] * 1.0  # right before wrong: precision falls, and the two agree
    order = np.argsort(~right, kind="stable")
    found = [boxes(square(0), scores=[s]) for s in falling]
    assert (
        average_precisions(found, [truths[i] for i in order])[0] == 1 == average_precision_score(right[order], falling)
    )


def plainly(found, truths, overlap, label):
    """The definition, box by box."""
    listed = sorted(
        ((s, p, i) for p, f in enumerate(found) for i, s in enumerate(f.scores) if f.labels[i] == label), reverse=True
    )
    total, taken, points = sum(int((t.labels == label).sum()) for t in truths), set(), []
    right = wrong = 0
    for rank, (score, p, i) in enumerate(listed):
        mine = np.flatnonzero(truths[p].labels == label)
        shared = metrics.intersection_over_union(found[p].corners[i : i + 1], truths[p].corners[mine])[0]
        best = int(np.argmax(shared)) if len(mine) else -1
        if best >= 0 and shared[best] >= overlap and (p, best) not in taken:
            taken.add((p, best))
            right += 1
        else:
            wrong += 1
        if rank + 1 == len(listed) or listed[rank + 1][0] != score:
            points.append((right / total, right / (right + wrong)))
    area, before = 0.0, 0.0
    for i, (recall, _) in enumerate(points):
        area += (recall - before) * max(p for _, p in points[i:])
        before = recall
    return area


@st.composite
def pictures(draw):
    """Pictures with boxes of whole coordinates, which often overlap alike, of two classes, and a few scores."""

    def some(scored, most):
        n = draw(st.integers(0, most))
        low = np.array(draw(st.lists(st.tuples(*[st.integers(0, 2)] * 2), min_size=n, max_size=n))).reshape(n, 2)
        size = np.array(draw(st.lists(st.tuples(*[st.integers(2, 4)] * 2), min_size=n, max_size=n))).reshape(n, 2)
        chosen = draw(st.lists(st.sampled_from([0, 0, 0, 1]), min_size=n, max_size=n))
        scores = draw(st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=n, max_size=n)) if scored else None
        return boxes(*np.concatenate([low, low + size], axis=1).tolist(), labels=chosen, scores=scores)

    n = draw(st.integers(2, 4))
    truths = [some(False, 3) for _ in range(n)]
    truths[0] = boxes(square(0, side=3.0), *truths[0].corners.tolist(), labels=[0, *truths[0].labels])
    return [some(True, 4) for _ in range(n)], truths


@given(pictures(), st.sampled_from([0.3, 0.5, 0.75]), st.randoms())
@settings(max_examples=60)
def test_average_precision_is_its_definition_in_any_order(sets, overlap, shuffler):
    found, truths = sets
    values = average_precisions(found, truths, overlap)
    ordered = [Boxes(t.corners[o], t.labels[o]) for t in truths for o in [np.lexsort(t.corners.T)]]
    assert values == {label: pytest.approx(plainly(found, ordered, overlap, label)) for label in values}
    estimate = mean_average_precision(found, truths, overlap, QUICK)
    assert estimate.value == pytest.approx(np.mean(list(values.values()))) and estimate.count == len(truths)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1

    def mixed(b):
        order = list(range(len(b.labels)))
        shuffler.shuffle(order)
        return Boxes(b.corners[order], b.labels[order], None if b.scores is None else b.scores[order])

    pairs = [(mixed(f), mixed(t)) for f, t in zip(found, truths, strict=True)]
    shuffler.shuffle(pairs)
    again = average_precisions(*map(list, zip(*pairs, strict=True)), overlap)
    assert again == {label: pytest.approx(value) for label, value in values.items()}


def test_perfect_and_worst_boxes():
    truths = [boxes(square(0), square(30)) for _ in range(20)]
    best = mean_average_precision([boxes(*t.corners, scores=[0.5, 0.9]) for t in truths], truths)
    assert best.value == 1 == best.high and best.low == pytest.approx(wilson(20, 20).low)
    for found in (boxes(), boxes(square(60), scores=[1.0])):
        empty = Boxes(found.corners, found.labels, np.zeros(len(found.labels)))
        worst = mean_average_precision([empty] * 20, truths)
        assert worst.value == 0 == worst.low and worst.high == pytest.approx(wilson(0, 20).high)


def test_intervals_hold_the_truth():
    """One truth a picture, found with chance 0.8 and no box that is wrong: the average precision is that chance."""
    found_truth = boxes(square(0), scores=[1.0])
    missed, truth = Boxes(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0)), boxes(square(0))
    found = []
    for seed in range(300):
        hit = np.random.default_rng([seed, 13]).random(60) < 0.8
        pictures = [found_truth if h else missed for h in hit]
        found.append(mean_average_precision(pictures, [truth] * 60, how=Resampling(resamples=200, seed=seed)))
    share = np.mean([e.low <= 0.8 <= e.high for e in found])
    assert abs(share - 0.95) <= 3 * math.sqrt(0.95 * 0.05 / 300), share


def test_boxes_that_cannot_be_scored_are_refused():
    scored, truth = boxes(square(0), scores=[1.0]), boxes(square(0))
    for call, words in (
        (lambda: boxes([0, 0, 1, 1, 2]), r"shape \(1, 5\)"),
        (lambda: boxes(square(0), labels=[0, 1]), r"labels of shape \(2,\) for 1 boxes"),
        (lambda: boxes(square(0), scores=[1, 2]), r"scores of shape \(2,\) for 1 boxes"),
        (lambda: boxes(square(0), square(1), scores=[1, math.nan]), "the score of box 1 is NaN"),
        (lambda: boxes([5, 0, 1, 1]), "x0 <= x1"),
        (lambda: boxes([0, 0, math.nan, 1]), "finite"),
        (lambda: boxes(square(0), labels=[-1]), "whole numbers from 0 on"),
        (lambda: average_precisions([truth], [truth]), "picture 0: found boxes have no scores"),
        (lambda: average_precisions([scored], [boxes([1, 1, 1, 5])]), "truth 0 has no area"),
        (lambda: average_precisions([scored], [boxes()]), "no truth in 1 pictures"),
        (lambda: average_precisions([scored], [truth, truth]), "1 pictures with found boxes for 2"),
        (lambda: average_precisions([], []), "no pictures"),
        (lambda: average_precisions([scored], [truth], 50), "an overlap of 50"),
        (lambda: mean_average_precision([scored], [truth]), "fewer than 2"),
    ):
        with pytest.raises(UserError, match=words):
            call()
