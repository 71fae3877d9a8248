"""Mixtures: exact shares in every prefix, in records and in tokens, at any record in any order."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data.mixture import Schedule, TokenSchedule
from research.data.permutation import mix


@st.composite
def stages(draw, longest: int):
    """Up to 6 stages of up to 8 sources, many of them without weight."""
    sources = draw(st.integers(1, 8))
    starts = [0]
    for gap in draw(st.lists(st.integers(1, longest), max_size=5)):
        starts.append(starts[-1] + gap)
    weight = st.one_of(st.just(0), st.integers(0, 12), st.fractions(0, 2, max_denominator=6))
    weights = st.lists(weight, min_size=sources, max_size=sources).filter(any)
    return [(start, draw(weights)) for start in starts]


def in_force(stages, place):
    return [weights for start, weights in stages if start <= place][-1]


def check_records(schedule, stages, count):
    """Compares every prefix with the exact shares, one record at a time."""
    sources, indices = schedule(np.arange(count))
    counts, due = [0] * len(stages[0][1]), [Fraction(0)] * len(stages[0][1])
    for n, (source, index) in enumerate(zip(sources.tolist(), indices.tolist(), strict=True)):
        weights = [Fraction(weight) for weight in in_force(stages, n)]
        assert index == counts[source]
        counts[source] += 1
        due = [share + weight / sum(weights) for share, weight in zip(due, weights, strict=True)]
        assert due[source] > 0
        assert all(abs(have - share) < 1 for have, share in zip(counts, due, strict=True))


@settings(deadline=None, max_examples=50)
@given(stages(longest=60))
def test_every_prefix_is_within_one_record_of_the_exact_share(stages):
    check_records(Schedule(stages), stages, stages[-1][0] + 120)


def test_stages_of_many_periods_and_of_parts_of_them():
    odd = [(0, (3, 2, 2)), (1000, (1, 3, 1)), (1003, (5, 0, 1)), (2000, (0, 1, 1)), (2011, (1, 1, 5))]
    check_records(Schedule(odd), odd, 2500)


def test_what_later_stages_make_due_is_foreseen():
    turning = [(0, (3, 7, 1, 1, 2)), (2, (2, 1, 1, 0, 0)), (4, (0, 4, 1, 1, 1)), (5, (0, 0, 1, 9, 2))]
    check_records(Schedule(turning), turning, 60)


def test_of_two_due_at_once_the_one_with_weight_is_chosen():
    sources, _ = Schedule([(0, (1, 1)), (1, (0, 1)), (2, (1, 1))])(np.arange(3))
    assert sources.tolist() == [1, 1, 0]


def test_a_source_that_was_owed_a_record_is_chosen_at_most_once_without_weight():
    off = [(0, (1,) * 6), (3, (1, 1, 1, 0, 0, 0))]
    check_records(Schedule(off), off, 200)
    sources, _ = Schedule(off)(np.arange(3, 200))
    assert (np.bincount(sources, minlength=6)[3:] <= 1).all()


@settings(deadline=None, max_examples=25)
@given(stages(longest=60), st.lists(st.integers(0, 10**15), min_size=1, max_size=30))
def test_random_access_gives_what_reading_in_order_gives(stages, numbers):
    numbers = np.array([*numbers, *(number % 400 for number in numbers)])
    sources, indices = Schedule(stages)(numbers)
    whole_sources, whole_indices = Schedule(stages)(np.arange(400))
    half = len(numbers) // 2
    assert sources[half:].tolist() == whole_sources[numbers[half:]].tolist()
    assert indices[half:].tolist() == whole_indices[numbers[half:]].tolist()
    for number, source, index in zip(numbers, sources, indices, strict=True):
        again = Schedule(stages)(np.array([number]))
        assert (again[0][0], again[1][0]) == (source, index)


@settings(deadline=None, max_examples=50)
@given(stages(longest=60), st.integers(0, 10**15))
def test_far_records_keep_the_share_and_count_on(stages, first):
    sources, indices = Schedule(stages)(np.arange(first, first + 200))
    for source in np.unique(sources):
        own = indices[sources == source]
        assert (np.diff(own) == 1).all()
        reached = [start for start, _ in stages if start <= first] + [first]
        due = sum(
            Fraction(weights[source]) / sum(map(Fraction, weights)) * (end - start)
            for (start, weights), end in zip(stages, reached[1:], strict=False)
        )
        assert abs(own[0] - due) < 1


def test_floats_are_the_fractions_they_are_written_as():
    sources, _ = Schedule([(0, (0.7, 0.2, 0.1))])(np.arange(10))
    assert np.bincount(sources).tolist() == [7, 2, 1]
    tenths = [(0, (1 - 0.7, 0.1 * 3, 0.4))]  # 0.30000000000000004 both
    assert np.bincount(Schedule(tenths)(np.arange(10))[0]).tolist() == [3, 3, 4]
    assert np.bincount(Schedule([(0, (1 / 3, "2/3"))])(np.arange(3))[0]).tolist() == [1, 2]


def test_a_linear_curriculum_of_many_stages():
    curriculum = [(10 * i, (100 - i, i)) for i in range(101)]
    check_records(Schedule(curriculum), curriculum, 1100)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "no stages"),
        ([(1, (1, 1))], "begin at 0"),
        ([(0, (1, 1)), (5, (1, 2)), (5, (1, 1))], "ascend"),
        ([(0, (1, 1)), (2.5, (1, 2))], "whole number"),
        ([(0, (1, 1)), (3, (1, 1, 1))], "stage 1 .* are 3"),
        ([(0, ())], "at least one"),
        ([(0, (1, -1))], "negative"),
        ([(0, (0, 0.0))], "all 0"),
        ([(0, (1, float("nan")))], "finite"),
        ([(0, (1, float("inf")))], "finite"),
        ([(0, (1234567, 7654321))], r"such as \[1389, 8611\]"),
    ],
)
def test_bad_stages_say_what_is_wrong(stages, message):
    with pytest.raises(UserError, match=message):
        Schedule(stages)


def test_negative_records_are_refused():
    with pytest.raises(ValueError, match="negative"):
        Schedule([(0, (1,))])(np.array([3, -1]))


def lengths_up_to(longest: int, salt: int):
    """A pure function of indices to lengths of 1 .. longest."""
    return lambda indices: (mix(indices.astype(np.uint64) + np.uint64(salt)) % np.uint64(longest)).astype(np.int64) + 1


def share_of(stages, source: int, tokens: int) -> Fraction:
    ends = [start for start, _ in stages[1:]] + [tokens]
    return sum(
        (
            Fraction(weights[source]) / sum(map(Fraction, weights)) * max(0, min(end, tokens) - start)
            for (start, weights), end in zip(stages, ends, strict=True)
        ),
        Fraction(0),
    )


@settings(deadline=None, max_examples=30)
@given(stages(longest=200), st.lists(st.sampled_from([1, 2, 5, 30]), min_size=8, max_size=8))
def test_every_prefix_is_within_the_longest_record_in_tokens(stages, longest):
    lengths = [lengths_up_to(most, 1000 * i) for i, most in enumerate(longest[: len(stages[0][1])])]
    sources, indices = TokenSchedule(stages, lengths)(np.arange(80))
    records, tokens = [0] * len(lengths), [0] * len(lengths)
    most = max(longest[: len(lengths)])
    for source, index in zip(sources.tolist(), indices.tolist(), strict=True):
        assert index == records[source]
        records[source] += 1
        tokens[source] += int(lengths[source](np.array([index]))[0])
        shares = [share_of(stages, k, sum(tokens)) for k in range(len(lengths))]
        assert shares[source] > 0
        assert all(abs(have - share) <= most for have, share in zip(tokens, shares, strict=True))


def test_records_of_one_token_are_counted_as_records_are():
    one = [lengths_up_to(1, 0)] * 8
    sources, _ = TokenSchedule([(0, (1,) * 7 + (7,))], one)(np.arange(140))
    counts = np.cumsum(sources[:, None] == np.arange(8), axis=0)
    due = np.arange(1, 141)[:, None] * np.array([1] * 7 + [7])  # in 14ths
    assert (abs(14 * counts - due) <= 14).all()


def test_token_shares_hold_across_blocks_and_in_any_order():
    stages = [(0, (0.7, 0.2, 0.1)), (40_000, (0.2, 0.2, 0.6))]
    lengths = [lengths_up_to(9, 0), lengths_up_to(30, 5), lengths_up_to(2, 9)]
    sources, indices = TokenSchedule(stages, lengths)(np.arange(10_000))
    for source in range(3):
        assert indices[sources == source].tolist() == list(range((sources == source).sum()))
    sizes = np.choose(sources, [given(indices) for given in lengths])
    total = int(sizes.sum())
    for source in range(3):
        assert (
            abs(sizes[sources == source].sum() - share_of([(0, (7, 2, 1)), (40_000, (1, 1, 3))], source, total)) <= 30
        )
    numbers = np.array([9_999, 0, 4_096, 8_191, 17])
    again = TokenSchedule(stages, lengths)(numbers)
    assert again[0].tolist() == sources[numbers].tolist()
    assert again[1].tolist() == indices[numbers].tolist()


def test_a_source_without_weight_needs_no_lengths():
    def unread(_):
        raise AssertionError("read")

    sources, _ = TokenSchedule([(0, (1, 0))], [lengths_up_to(5, 0), unread])(np.arange(100))
    assert not sources.any()


@pytest.mark.parametrize("lengths", [lambda i: i, lambda i: i[:3] + 1, lambda i: i + 0.5])
def test_lengths_below_one_or_of_another_form_are_refused(lengths):
    with pytest.raises(UserError, match="source 0"):
        TokenSchedule([(0, (1,))], [lengths])(np.arange(3))


def test_one_function_of_lengths_a_source():
    with pytest.raises(UserError, match="1 functions of lengths for 2"):
        TokenSchedule([(0, (1, 1))], [lengths_up_to(5, 0)])
