"""Estimates and their intervals: formulas, the bootstrap, how often intervals hold the truth; metrics of numbers against scikit-learn."""

import json
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import mean_squared_error, r2_score

from research.core.errors import UserError
from research.tasks import metrics
from research.tasks.metrics import Estimate, Resampling, bootstrap, wilson

QUICK = Resampling(resamples=100)
SIMULATIONS = 300


def coverage(truth, simulate):
    """The share of simulated intervals that hold the truth; `simulate(generator, seed)` gives one."""
    found = [simulate(np.random.default_rng([seed, 7]), seed) for seed in range(SIMULATIONS)]
    return np.mean([e.low <= truth <= e.high for e in found])


def check_coverage(share, level=0.95):
    """Within three standard deviations of a binomial share, which is how far a right interval strays once in 370 tests."""
    assert abs(share - level) <= 3 * math.sqrt(level * (1 - level) / SIMULATIONS), share


def test_an_estimate_reads_as_its_width_allows():
    assert str(Estimate(0.97812, 0.9691, 0.98538, 2000)) == "0.978 (0.969, 0.985)"
    assert str(Estimate(17.316, 16.91, 17.802, 100)) == "17.32 (16.91, 17.80)"
    assert str(Estimate(1234.5, 1100.0, 1400.0, 9)) == "1234 (1100, 1400)"
    assert str(Estimate(0.5, 0.5, 0.5, 3)) == "0.5 (0.5, 0.5)"
    assert Estimate(0.97812, 0.9691, 0.98538, 2000).percent() == "97.8% (96.9, 98.5)"
    assert Estimate(0.97812, 0.9691, 0.98538, 2000).percent(0) == "98% (97, 99)"


def test_an_estimate_becomes_flat_numbers():
    numbers = Estimate(0.5, 0.25, 0.75, 16).numbers("accuracy")
    assert json.loads(json.dumps(numbers, allow_nan=False)) == {
        "accuracy": 0.5,
        "accuracy_low": 0.25,
        "accuracy_high": 0.75,
        "accuracy_count": 16,
    }


@pytest.mark.parametrize(
    ("successes", "count", "level"), [(81, 263, 0.95), (15, 148, 0.95), (1, 29, 0.9), (7, 7, 0.99)]
)
def test_wilsons_ends_are_the_shares_that_the_score_test_just_accepts(successes, count, level):
    found, z = wilson(successes, count, level), NormalDist().inv_cdf((1 + level) / 2)
    for end in {found.low, found.high} - {1.0}:
        assert abs(found.value - end) == pytest.approx(z * math.sqrt(end * (1 - end) / count), rel=1e-9)


def test_wilsons_published_example():
    """Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 and 0 of 20."""
    found, none = wilson(81, 263), wilson(0, 20)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    assert none.low == 0 and round(none.high, 4) == 0.1611


def test_wilson_holds_the_truth_as_often_as_it_says():
    """By exact summation over all outcomes of 40 trials, averaged over shares, since it swings with each."""
    n, k = 40, np.arange(41)
    held = [wilson(int(i), n) for i in k]
    found = []
    for p in np.linspace(0.02, 0.98, 97):
        chance = np.array([math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in k.tolist()])
        found.append(sum(chance[i] for i in k if held[i].low <= p <= held[i].high))
    assert np.mean(found) == pytest.approx(0.95, abs=0.006) and min(found) > 0.9


def test_the_bootstrap_of_a_mean_is_students_interval():
    values = np.random.default_rng(0).normal(size=20)
    found = bootstrap(lambda i: values[i].mean(), 20, Resampling(resamples=20_000))
    half = 2.093 * values.std(ddof=1) / math.sqrt(20)  # Student's 97.5% point with 19 degrees of freedom
    assert found.value == values.mean() and found.count == 20
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.05 * half)


def test_the_bootstrap_is_its_seed_and_groups_are_drawn_apart():
    values = np.random.default_rng(1).normal(size=30)
    one, again, other = (
        bootstrap(lambda i: values[i].mean(), 30, Resampling(resamples=100, seed=seed)) for seed in (3, 3, 4)
    )
    assert one == again != other
    sizes = []
    found = bootstrap(lambda i, j: sizes.append((len(i), len(j), i.max(), j.max())) or 1.0, (3, 5), QUICK)
    assert {size[:2] for size in sizes} == {(3, 5)} and max(s[2] for s in sizes) == 2 and max(s[3] for s in sizes) == 4
    assert len(sizes) == 101 and found.count == 8


def test_draws_without_a_value_do_not_count():
    values = np.array([0.0, 1.0, 2.0, 4.0])
    found = bootstrap(lambda i: math.nan if (i == 3).any() and len(set(i)) < 3 else values[i].mean(), 4, QUICK)
    assert 0 <= found.low < found.value < found.high <= 4
    with pytest.raises(UserError, match=r"undefined for \d+ of 100 resamples of 4 units; score more"):
        bootstrap(lambda i: 1.0 if len(set(i)) == 4 else math.nan, 4, QUICK)
    with pytest.raises(UserError, match="statistic of all units is nan"):
        bootstrap(lambda i: math.nan, 4, QUICK)


def test_what_never_varied_still_has_a_width_where_it_is_a_share():
    found = bootstrap(lambda i: 0.0, 100, QUICK, whole=100.0)
    assert found.low == 0 and found.high == pytest.approx(100 * wilson(0, 100).high)
    assert bootstrap(lambda i: 0.0, 100, QUICK) == Estimate(0.0, 0.0, 0.0, 100)


def test_the_interval_holds_the_value_of_a_biased_statistic():
    """How many different units there are: fewer in every resample than in all."""
    most, least = (bootstrap(lambda i, sign=sign: sign * len(set(i)), 20, QUICK) for sign in (1.0, -1.0))
    assert most.low < most.value == most.high == 20 and least.low == least.value == -20 < least.high


def test_what_cannot_be_resampled_is_refused():
    for call, words in (
        (lambda: bootstrap(lambda i: 0.0, 1), "fewer than 2"),
        (lambda: bootstrap(lambda i, j: 0.0, (5, 0)), "0 independent"),
        (lambda: Resampling(level=95), "between 0 and 1"),
        (lambda: Resampling(resamples=39), "from 40 on"),
        (lambda: Resampling(seed=-1), "seed"),
        (lambda: wilson(3, 2), "3 of 2"),
        (lambda: wilson(math.nan, 2), "nan of 2"),
        (lambda: wilson(0, 0), "at least one"),
        (lambda: wilson(1, 2, 1.0), "level"),
    ):
        with pytest.raises(UserError, match=words):
            call()
    assert Resampling(resamples=40).resamples == 40


@pytest.mark.parametrize("n", [10, 60])
def test_intervals_of_ratios_hold_the_truth(n):
    """Nats per token of documents of different length, each with a level of its own: units depend on each other within a document."""

    def simulate(generator, seed):
        tokens = generator.integers(5, 50, size=n)
        levels = 2 + 0.3 * generator.normal(size=n)
        return metrics.nats_per(tokens * levels, tokens, Resampling(resamples=400, seed=seed))

    check_coverage(coverage(2.0, simulate))


def test_intervals_of_r2_hold_the_truth():
    def simulate(generator, seed):
        targets = generator.normal(size=60)
        return metrics.r2(
            targets + 0.5 * generator.normal(size=60), targets, Resampling(level=0.9, resamples=300, seed=seed)
        )

    check_coverage(coverage(0.75, simulate), level=0.9)


numbers = st.floats(-100, 100).map(lambda x: round(x, 3))


@given(
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=2, min_side=2, max_side=6), elements=numbers),
    st.data(),
)
def test_regression_is_scikit_learns_in_any_order(targets, data):
    predictions = data.draw(hnp.arrays(np.float64, targets.shape, elements=numbers))
    order = np.array(data.draw(st.permutations(range(len(targets)))))
    found = metrics.mse(predictions, targets, QUICK)
    assert found.value == pytest.approx(mean_squared_error(targets, predictions), rel=1e-12)
    assert 0 <= found.low <= found.value <= found.high and found == metrics.mse(
        predictions[order], targets[order], QUICK
    )


shapes = st.tuples(st.integers(4, 6), st.integers(1, 3))


@given(hnp.arrays(np.float64, shapes, elements=numbers, unique=True), st.data())
def test_r2_is_scikit_learns_in_any_order(targets, data):
    predictions = data.draw(hnp.arrays(np.float64, targets.shape, elements=numbers))
    order = np.array(data.draw(st.permutations(range(len(targets)))))
    found = metrics.r2(predictions, targets, QUICK)
    assert found.value == pytest.approx(r2_score(targets, predictions), rel=1e-9, abs=1e-9)
    assert found.low <= found.value <= found.high <= 1 and found.count == len(targets)
    assert found == metrics.r2(predictions[order], targets[order], QUICK)
    assert metrics.r2(targets, targets, QUICK) == Estimate(1.0, 1.0, 1.0, len(targets))
    assert metrics.r2(targets[:, 0], targets[:, 0], QUICK).value == 1
    mean = np.broadcast_to(targets.mean(axis=0), targets.shape)
    assert metrics.r2(mean, targets, QUICK).value == pytest.approx(0, abs=1e-9)


def test_the_interval_of_r2_is_that_of_resampled_rows():
    predictions = np.arange(12.0)
    targets = predictions + np.random.default_rng(8).normal(size=12) * 4
    expected = bootstrap(lambda i: r2_score(targets[i], predictions[i]), 12, QUICK)
    found = metrics.r2(predictions[::-1], targets[::-1], QUICK)
    assert (found.low, found.value, found.high) == pytest.approx((expected.low, expected.value, expected.high))


def test_regressions_that_cannot_be_scored_are_refused():
    with pytest.raises(UserError, match=r"all targets of column 1 are 3\.0"):
        metrics.r2(np.eye(2), [[1.0, 3.0], [2.0, 3.0]])
    with pytest.raises(UserError, match="expected equal shapes"):
        metrics.mse([1.0, 2.0], [[1.0], [2.0]])
    with pytest.raises(UserError, match=r"predictions: number \(1, 0\) is inf"):
        metrics.mse([[1.0], [math.inf]], [[1.0], [2.0]])


@given(st.lists(st.tuples(st.floats(0, 400), st.integers(1, 60)), min_size=2, max_size=8), st.data())
def test_perplexity_is_of_the_sums_in_any_order(rows, data):
    nats, tokens = (np.array(column, float) for column in zip(*rows, strict=True))
    order = np.array(data.draw(st.permutations(range(len(rows)))))
    per_token = nats.sum() / tokens.sum()
    found = metrics.perplexity(nats, tokens, QUICK)
    assert found.value == pytest.approx(math.exp(per_token)) and found == metrics.perplexity(
        nats[order], tokens[order], QUICK
    )
    assert math.exp((nats / tokens).min()) * (1 - 1e-9) <= found.low <= found.value <= found.high
    assert found.high <= math.exp((nats / tokens).max()) * (1 + 1e-9)
    assert metrics.bits_per_byte(nats, tokens, QUICK).value == pytest.approx(per_token / math.log(2))


def test_perplexity_of_a_guess_among_bytes():
    uniform = metrics.perplexity(np.full(5, 10 * math.log(256)), np.full(5, 10))
    assert (uniform.value, uniform.low, uniform.high) == pytest.approx((256, 256, 256))
    assert metrics.bits_per_byte(np.full(5, 10 * math.log(256)), np.full(5, 10)).value == pytest.approx(8)


def test_likelihoods_that_cannot_be_scored_are_refused():
    for call, words in (
        (lambda: metrics.perplexity([1.0, math.nan], [1, 1]), "nats: number 1 is nan"),
        (lambda: metrics.perplexity([1.0, 2.0], [1]), "2 sums of nats for 1 counts of tokens"),
        (lambda: metrics.perplexity([1.0, 2.0], [0, 0]), "not all 0"),
        (lambda: metrics.bits_per_byte([1.0, 2.0], [-1, 3]), "bytes: the least is -1"),
        (lambda: metrics.perplexity([1e4, 1e4], [1, 1]), "report nats"),
        (lambda: metrics.perplexity([], []), "none of them empty"),
        (lambda: metrics.perplexity([1.0], [1]), "fewer than 2"),
    ):
        with pytest.raises(UserError, match=words):
            call()
