"""Metrics of classes, scores, confidences and places, against scikit-learn, closed forms and simulated truths."""

import json
import math
from statistics import NormalDist

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from research.core.errors import UserError
from research.tasks import metrics
from research.tasks.metrics import Places, Resampling, wilson

QUICK = Resampling(resamples=60)
SIMULATIONS = 300


def held(truth, simulate):
    """Asserts that simulated 95% intervals hold the truth that often, within three standard deviations of a binomial share."""
    found = [simulate(np.random.default_rng([seed, 11]), seed) for seed in range(SIMULATIONS)]
    share = np.mean([e.low <= truth <= e.high for e in found])
    assert abs(share - 0.95) <= 3 * math.sqrt(0.95 * 0.05 / SIMULATIONS), share


@st.composite
def answers(draw, classes=None):
    """Predictions and labels of examples, where every class is a label."""
    classes = classes or draw(st.integers(2, 4))
    n = draw(st.integers(classes, 12))
    label = np.array([*range(classes), *draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n))])
    return draw(hnp.arrays(np.int64, len(label), elements=st.integers(0, classes - 1))), label, classes


@given(answers(), st.data())
def test_picked_classes_are_scikit_learns_in_any_order(given_answers, data):
    predicted, label, classes = given_answers
    order = np.array(data.draw(st.permutations(range(len(label)))))
    assert metrics.accuracy(predicted, label).value == pytest.approx(reference.accuracy_score(label, predicted))
    matrix = metrics.confusion_matrix(predicted, label, classes)
    np.testing.assert_array_equal(matrix, reference.confusion_matrix(label, predicted, labels=range(classes)))
    for average in ("macro", "micro"):
        found = metrics.f1(predicted, label, classes, average, QUICK)
        assert found.value == pytest.approx(reference.f1_score(label, predicted, average=average), rel=1e-12)
        assert 0 <= found.low <= found.value <= found.high <= 1 and found.count == len(label)
        assert found == metrics.f1(predicted[order], label[order], classes, average, QUICK)
    assert metrics.f1(predicted, label, classes, "micro", QUICK).value == metrics.accuracy(predicted, label).value


@given(answers(classes=2))
def test_binary_f1_is_of_class_1(given_answers):
    predicted, label, _ = given_answers
    found = metrics.f1(predicted, label, 2, "binary", QUICK)
    assert found.value == pytest.approx(reference.f1_score(label, predicted)) and found.low <= found.value <= found.high


def test_shards_add_up():
    predicted, label = np.random.default_rng(0).integers(0, 3, size=(2, 100))
    whole = metrics.confusion_matrix(predicted, label, 3)
    parts = sum(metrics.confusion_matrix(predicted[i::4], label[i::4], 3) for i in range(4))
    assert metrics.f1_of_confusion(parts) == metrics.f1(predicted, label, 3) == metrics.f1_of_confusion(whole * 1.0)
    right = [float((predicted[i::4] == label[i::4]).sum()) for i in range(4)]
    assert metrics.accuracy_of_sums(sum(right), 100.0) == metrics.accuracy(predicted, label)
    of_device = metrics.accuracy_of_sums(jnp.float32(1), jnp.float32(3))
    assert json.loads(json.dumps(of_device.numbers("a"))) == metrics.accuracy_of_sums(1, 3).numbers("a")


def test_perfect_and_worst_answers():
    label = np.arange(60) % 3
    for found in (metrics.f1(label, label, 3), metrics.accuracy(label, label)):
        assert found.value == 1 == found.high and found.low == pytest.approx(wilson(60, 60).low)
    worst = metrics.f1((label + 1) % 3, label, 3)
    assert (worst.value, worst.low) == (0, 0) and worst.high == pytest.approx(wilson(0, 60).high)
    names = np.array(["cat", "dog"])
    assert metrics.accuracy(names, names[::-1]).value == 0


def test_intervals_of_f1_hold_the_truth():
    cells = np.array([[30, 5, 5], [4, 20, 6], [10, 10, 10]]) / 100
    truth = np.mean(2 * np.diag(cells) / (cells.sum(axis=0) + cells.sum(axis=1)))

    def simulate(generator, seed):
        matrix = generator.multinomial(150, cells.ravel()).reshape(3, 3)
        return metrics.f1_of_confusion(matrix, "macro", Resampling(resamples=200, seed=seed))

    held(truth, simulate)


def test_intervals_of_a_mean_over_many_small_classes_hold_the_truth():
    """F1 of 30 classes of 20 examples is too low, and lower still in resamples: percentiles alone hold the truth too rarely."""
    cells = np.full((30, 30), 0.4 / 900) + np.eye(30) * 0.6 / 30
    truth = np.mean(2 * np.diag(cells) / (cells.sum(axis=0) + cells.sum(axis=1)))

    def simulate(generator, seed):
        matrix = generator.multinomial(600, cells.ravel()).reshape(30, 30)
        return metrics.f1_of_confusion(matrix, "macro", Resampling(resamples=200, seed=seed))

    held(truth, simulate)


def test_classes_that_cannot_be_scored_are_refused():
    for call, words in (
        (
            lambda: metrics.f1([0, 1], [0, 0], ["cat", "dog"]),
            "the macro F1 is undefined: the class 'dog' has no example",
        ),
        (lambda: metrics.f1([0, 1], [0, 0], 2, "binary"), "the class 1 has no example"),
        (lambda: metrics.f1([0, 1, 2], [0, 1, 2], 3, "binary"), "choose macro or micro"),
        (lambda: metrics.f1([0, 1], [0, 1], 2, "weighted"), "'weighted' average"),
        (lambda: metrics.f1([0, 2], [0, 1], 2), "predictions: number 1 is 2; there are classes 0 to 1"),
        (lambda: metrics.f1([0, -1], [0, 1], 2), "predictions: number 1 is -1; there are classes 0 to 1"),
        (lambda: metrics.f1([0.0, 1.0], [0, 1], 2), "whole numbers"),
        (lambda: metrics.f1_of_confusion(np.ones((2, 3))), r"shape \(2, 3\)"),
        (lambda: metrics.f1_of_confusion(np.full((2, 2), 0.5)), "whole numbers"),
        (lambda: metrics.f1_of_confusion(np.eye(2), classes=["a"]), "1 classes for a confusion matrix of 2"),
        (lambda: metrics.confusion_matrix([0], [0, 1], 2), "1 predictions for 2 labels"),
        (lambda: metrics.accuracy([[0], [1]], [0, 1]), "expected one dimension"),
        (lambda: metrics.accuracy([], []), "at least one unit"),
        (lambda: metrics.accuracy_of_sums(1.0, 2.5), "whole number"),
        (lambda: metrics.accuracy_of_sums(1.0, math.nan), "whole number"),
    ):
        with pytest.raises(UserError, match=words):
            call()
    assert metrics.f1([0, 0], [0, 0], 2, "micro").value == 1  # no class is asked for by name


@st.composite
def scored(draw, columns):
    """Scores with ties, infinite ones among them, and labels of every class."""
    n = draw(st.integers(0, 10)) + columns
    label = np.array([*range(columns), *draw(st.lists(st.integers(0, columns - 1), min_size=n, max_size=n))])
    levels = st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0])
    return draw(hnp.arrays(np.float64, (len(label), columns), elements=levels)), label


@given(scored(2), st.data())
def test_auroc_of_two_kinds_is_scikit_learns_in_any_order(given_scores, data):
    scores, label = given_scores[0][:, 0], given_scores[1]
    order = np.array(data.draw(st.permutations(range(len(label)))))
    found = metrics.auroc(scores, label)
    assert found.value == pytest.approx(reference.roc_auc_score(label, scores), rel=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1 and found.low < found.high
    assert found == metrics.auroc(scores[order], label[order])
    rising = metrics.auroc(np.exp(scores), label)
    assert found == rising, "only the order of scores counts"
    turned = metrics.auroc(-scores, label)
    assert (1 - turned.value, 1 - turned.high, 1 - turned.low) == pytest.approx((found.value, found.low, found.high))


@given(scored(3))
def test_auroc_of_classes_is_the_mean_against_the_rest(given_scores):
    scores, label = given_scores
    parts = [reference.roc_auc_score(label == k, scores[:, k]) for k in range(3)]
    found = metrics.auroc(scores, label)
    assert found.value == pytest.approx(np.mean(parts), rel=1e-12) and found.low <= found.value <= found.high
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert metrics.auroc(shares, label).value == pytest.approx(
        reference.roc_auc_score(label, shares, multi_class="ovr", average="macro"), rel=1e-12
    )


def test_auroc_has_delongs_variance():
    """The defining covariance of placements, pair by pair, on the logit scale."""
    generator = np.random.default_rng(2)
    label = np.arange(40) % 3 == 0
    scores = np.round(generator.normal(size=40) + label, 1)
    ours, others = scores[label], scores[~label]
    wins = (ours[:, None] > others) + 0.5 * (ours[:, None] == others)
    area = wins.mean()
    deviation = math.sqrt(wins.mean(axis=1).var(ddof=1) / len(ours) + wins.mean(axis=0).var(ddof=1) / len(others))
    reach = NormalDist().inv_cdf(0.95) * deviation / (area * (1 - area))
    found = metrics.auroc(scores, label, level=0.9)
    logits = [math.log(end / (1 - end)) for end in (found.low, found.value, found.high)]
    assert logits == pytest.approx([logits[1] - reach, math.log(area / (1 - area)), logits[1] + reach])


def test_two_columns_are_one():
    generator = np.random.default_rng(4)
    label, p = generator.integers(0, 2, 50), generator.random(50)
    one, two = metrics.auroc(p, label), metrics.auroc(np.stack([1 - p, p], axis=1), label)
    assert (two.value, two.low, two.high) == pytest.approx((one.value, one.low, one.high))


def test_a_single_example_of_a_kind_has_no_variance_to_speak_of():
    found = metrics.auroc([0.1, 0.5, 0.3, 0.9], [0, 0, 1, 0])
    assert found.value == pytest.approx(1 / 3) and (found.low, found.high) == pytest.approx(
        (wilson(1 / 3, 1).low, wilson(1 / 3, 1).high)
    )


def test_auroc_of_separated_kinds_has_a_width():
    label = np.arange(50) % 5 == 0
    best = metrics.auroc(label * 1.0, label)
    assert best.value == 1 == best.high and best.low == pytest.approx(wilson(10, 10).low)
    worst = metrics.auroc(label * -1.0, label)
    assert worst.value == 0 == worst.low and worst.high == pytest.approx(wilson(0, 10).high)
    flat = metrics.auroc(np.zeros(50), label)
    assert flat.value == 0.5 and (flat.low, flat.high) == pytest.approx((wilson(5, 10).low, wilson(5, 10).high))


@pytest.mark.parametrize(("n", "apart"), [(60, 1.0), (200, 3.0)])
def test_intervals_of_auroc_hold_the_truth(n, apart):
    """Two normal distributions so many deviations apart: the area is the chance that a difference of deviation sqrt 2 is positive."""
    label = np.arange(n) % 2
    held(
        NormalDist().cdf(apart / math.sqrt(2)),
        lambda generator, seed: metrics.auroc(generator.normal(size=n) + apart * label, label),
    )


def test_intervals_of_the_mean_over_classes_hold_the_truth():
    def draw(generator, n):
        label = generator.choice(3, size=n, p=[0.5, 0.3, 0.2])
        return generator.normal(size=(n, 3)) + 1.5 * np.eye(3)[label], label

    truth = NormalDist().cdf(1.5 / math.sqrt(2))  # against the rest, each class alike: its own column is 1.5 higher
    assert metrics.auroc(*draw(np.random.default_rng(0), 50_000)).value == pytest.approx(truth, abs=0.004)
    held(truth, lambda generator, seed: metrics.auroc(*draw(generator, 90)))


def test_scores_that_cannot_be_ranked_are_refused():
    for call, words in (
        (lambda: metrics.auroc([0.1, 0.2], [1, 1]), "the class 0 has no example"),
        (lambda: metrics.auroc([0.1, 0.2], [0, 0], ["ham", "spam"]), "the class 'spam' has no example"),
        (lambda: metrics.auroc(np.eye(3)[:2], [0, 1]), "the class 2 has no example"),
        (lambda: metrics.auroc([0.1, math.nan, math.nan], [0, 1, 1]), "scores: number 1 is nan, as 2 are"),
        (lambda: metrics.auroc([[0.1, 0.2], [0.3, math.nan]], [0, 1]), r"scores: number \(1, 1\) is nan"),
        (lambda: metrics.auroc([0.1, 0.2], [0, 1], ["a", "b", "c"]), "for 3 classes"),
        (lambda: metrics.auroc([[0.1], [0.2]], [0, 0]), "two or more"),
        (lambda: metrics.auroc([0.1, 0.2], [0, 1, 1]), "2 rows of scores for 3 labels"),
        (lambda: metrics.auroc([0.1, 0.2], [0, 1], level=0), "level"),
        (lambda: metrics.equal_error_rate([0.1, math.nan], [0.0, 0.1]), "genuine scores: number 1 is nan"),
        (lambda: metrics.equal_error_rate([0.1, 0.2], [0.0]), "fewer than 2"),
    ):
        with pytest.raises(UserError, match=words):
            call()


levels = st.sampled_from([-1.0, 0.0, 0.5, 2.0, 4.0])


@given(st.lists(levels, min_size=2, max_size=12), st.lists(levels, min_size=2, max_size=12), st.randoms())
def test_the_equal_error_rate_lies_on_the_roc_curve(genuine, impostor, shuffler):
    found = metrics.equal_error_rate(genuine, impostor, QUICK)
    label = np.repeat([1, 0], [len(genuine), len(impostor)])
    accepted, right, _ = reference.roc_curve(label, np.array([*genuine, *impostor]), drop_intermediate=False)
    assert np.interp(found.value, accepted, right) == pytest.approx(1 - found.value) or np.any(
        np.isclose(accepted, found.value)  # on an upright stretch, where a rate has several
    )
    assert 0 <= found.low <= found.value <= found.high <= 1 and found.count == len(label)
    swapped = metrics.equal_error_rate([-x for x in impostor], [-x for x in genuine], QUICK)
    assert swapped.value == pytest.approx(found.value)
    mixed = list(genuine), list(impostor)
    for one in mixed:
        shuffler.shuffle(one)
    assert metrics.equal_error_rate(*mixed, QUICK) == found


def test_equal_error_rates_in_closed_form():
    assert metrics.equal_error_rate([3.0, 4.0], [1.0, 2.0]).value == 0
    assert metrics.equal_error_rate([1.0, 2.0], [3.0, 4.0]).value == 1
    assert metrics.equal_error_rate([1.0, 1.0, 1.0], [1.0, 1.0]).value == 0.5
    # one of four genuine is rejected below 2, where one of four impostors is not
    assert metrics.equal_error_rate([1.0, 3.0, 4.0, 5.0], [0.0, 0.5, 0.7, 2.0]).value == 0.25
    assert metrics.equal_error_rate(np.arange(50) + 50.0, np.arange(50.0)).high == pytest.approx(wilson(0, 50).high)


def test_intervals_of_the_equal_error_rate_hold_the_truth():
    held(
        NormalDist().cdf(-1.0),
        lambda generator, seed: metrics.equal_error_rate(
            generator.normal(size=200) + 2, generator.normal(size=400), Resampling(resamples=150, seed=seed)
        ),
    )


@given(
    hnp.arrays(
        np.float64, st.shared(st.integers(2, 20), key="n"), elements=st.sampled_from([0, 0.1, 0.2, 0.55, 0.9, 1])
    ),
    hnp.arrays(np.int64, st.shared(st.integers(2, 20), key="n"), elements=st.integers(0, 1)),
    st.integers(1, 12),
    st.data(),
)
def test_calibration_has_scikit_learns_bins(confidences, outcomes, bins, data):
    found = metrics.calibration(confidences, outcomes, bins, QUICK)
    share, mean = calibration_curve(outcomes, confidences, n_bins=bins)
    np.testing.assert_allclose([b.right.value for b in found.bins], share)
    np.testing.assert_allclose([b.confidence for b in found.bins], mean)
    sizes = np.array([b.right.count for b in found.bins])
    assert sizes.sum() == len(outcomes)
    assert found.error.value == pytest.approx((sizes * np.abs(share - mean)).sum() / sizes.sum(), abs=1e-12)
    assert 0 <= found.error.low <= found.error.value <= found.error.high <= 1
    order = np.array(data.draw(st.permutations(range(len(outcomes)))))
    assert metrics.calibration(confidences[order], outcomes[order], bins, QUICK) == found


def test_bins_hold_their_upper_edge():
    found = metrics.calibration([0.0, 0.1, 0.2, 0.2000001, 1.0], [0, 1, 1, 0, 1], 5)
    assert [(round(b.low, 9), round(b.high, 9), b.right.count) for b in found.bins] == [
        (0, 0.2, 3),
        (0.2, 0.4, 1),
        (0.8, 1, 1),
    ]


def overconfident(generator, n, excess):
    confidences = generator.beta(4, 1.5, size=n)
    return confidences, generator.random(n) < np.clip(confidences - excess, 0, 1)


def test_right_confidences_are_within_chance_and_wrong_ones_are_not():
    right, wrong = (metrics.calibration(*overconfident(np.random.default_rng(0), 400, e)) for e in (0.0, 0.3))
    assert right.error.low == 0 < right.error.value < right.by_chance
    assert wrong.error.low > wrong.by_chance and wrong.error.value == pytest.approx(0.3, abs=0.06)
    sure = metrics.calibration(np.ones(50), np.ones(50, int))
    assert sure.error.value == sure.error.low == 0 and sure.error.high == pytest.approx(wilson(0, 50).high)
    assert metrics.calibration(np.ones(50), np.zeros(50, int)).error.value == 1


@pytest.mark.parametrize("excess", [0.0, 0.05, 0.2])
def test_intervals_of_the_calibration_error_hold_the_truth(excess):
    """The upper end is rather too high, so it is held at least as often as it says."""
    confidences, _ = overconfident(np.random.default_rng(1), 200_000, 0)
    place = np.minimum((confidences * 10).astype(int), 9)
    truth = np.abs(np.bincount(place, confidences - np.clip(confidences - excess, 0, 1))).sum() / len(place)
    found = [
        metrics.calibration(
            *overconfident(np.random.default_rng([seed, 5]), 200, excess), 10, Resampling(resamples=100, seed=seed)
        ).error
        for seed in range(SIMULATIONS)
    ]
    share = np.mean([e.low <= truth <= e.high for e in found])
    assert share >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / SIMULATIONS), share


def test_top_labels():
    confidence, right = metrics.top_label([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]], [1, 1, 0])
    assert confidence.tolist() == [0.8, 0.6, 0.5] and right.tolist() == [True, False, True]


def test_confidences_that_cannot_be_scored_are_refused():
    for call, words in (
        (lambda: metrics.calibration([0.5, 1.5], [0, 1]), "confidences: number 1 is 1.5"),
        (lambda: metrics.calibration([0.5, math.nan], [0, 1]), "confidences: number 1 is nan"),
        (lambda: metrics.calibration([0.5, 0.5], [0, 2]), "outcomes: number 1 is 2"),
        (lambda: metrics.calibration([0.5, 0.5], [0, 1], 0), "0 bins"),
        (lambda: metrics.top_label([[0.5, 0.5]], [0, 1]), "1 rows of probabilities for 2 labels"),
    ):
        with pytest.raises(UserError, match=words):
            call()


@given(st.integers(1, 7), st.data())
def test_places_are_scikit_learns(k, data):
    n, items = data.draw(st.integers(2, 6)), data.draw(st.integers(2, 6))
    scores = data.draw(hnp.arrays(np.float64, (n, items), elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0])))
    targets = data.draw(hnp.arrays(np.int64, n, elements=st.integers(0, items - 1)))
    found = metrics.ndcg_at(metrics.places(scores, targets), k, QUICK)
    assert found.value == pytest.approx(reference.ndcg_score(np.eye(items)[targets], scores, k=k), abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1 + 1e-12
    untied = scores + 1e-3 * np.arange(items)  # scikit-learn breaks ties by order
    share = np.mean([targets[i] in np.argsort(-untied[i])[:k] for i in range(n)])
    assert metrics.recall_at(metrics.places(untied, targets), k).value == pytest.approx(share)
    assert metrics.top_k_accuracy(scores, targets, k).value >= found.value - 1e-12
    order = np.array(data.draw(st.permutations(range(n))))
    shuffled = metrics.places(scores[order], targets[order])
    assert metrics.ndcg_at(shuffled, k, QUICK) == found
    assert metrics.recall_at(metrics.places(scores, targets), items).value == 1


def test_top_k_accuracy_is_scikit_learns_without_ties_and_a_chance_with_them():
    generator = np.random.default_rng(6)
    scores, label = generator.normal(size=(40, 5)), generator.integers(0, 5, 40)
    for k in (1, 2, 4):
        found = metrics.top_k_accuracy(scores, label, k)
        assert found.value == pytest.approx(reference.top_k_accuracy_score(label, scores, k=k, labels=range(5)))
    assert metrics.top_k_accuracy(scores, label, 1) == metrics.accuracy(scores.argmax(axis=1), label)
    assert metrics.top_k_accuracy(np.zeros((10, 5)), label[:10], 2).value == pytest.approx(0.4)


def test_recommendations_in_closed_form():
    scores = np.array([[9.0, 3.0, 1.0, -math.inf], [3.0, 9.0, 4.0, 5.0]])
    places = metrics.places(scores, [1, 0])
    assert places.above.tolist() == [1, 3] and places.tied.tolist() == [1, 1]
    assert metrics.recall_at(places, 2).value == 0.5
    assert metrics.ndcg_at(places, 2).value == pytest.approx(1 / math.log2(3) / 2)
    assert metrics.ndcg_at(places, 9).value == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / 2)
    best = metrics.ndcg_at(Places(np.zeros(30, int), np.ones(30, int)), 1)
    assert best.value == 1 == best.high and best.low == pytest.approx(wilson(30, 30).low)


def test_intervals_of_ndcg_hold_the_truth():
    """Places drawn evenly from ten: the mean of their discounts."""
    held(
        np.mean([1 / math.log2(2 + place) if place < 5 else 0 for place in range(10)]),
        lambda generator, seed: metrics.ndcg_at(
            Places(generator.integers(0, 10, 80), np.ones(80, int)), 5, Resampling(resamples=300, seed=seed)
        ),
    )


def test_places_that_cannot_be_are_refused():
    for call, words in (
        (lambda: metrics.places([[1.0, math.nan]], [0]), r"scores: number \(0, 1\) is nan"),
        (lambda: metrics.places([[1.0, 2.0]], [2]), "targets: number 0 is 2"),
        (lambda: metrics.places([[1.0, 2.0]], [0, 1]), "1 rows of scores for 2 targets"),
        (lambda: metrics.recall_at(Places(np.array([1]), np.array([1])), 0), "k of at least 1"),
        (lambda: Places(np.array([1]), np.array([0])), "example 0 has 1 above and 0 tied"),
        (lambda: Places(np.array([1]), np.array([1, 1])), "expected two alike"),
    ):
        with pytest.raises(UserError, match=words):
            call()
