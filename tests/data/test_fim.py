"""Fill in the middle: nothing is lost, the key decides, and the rates hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data.fim import Sentinels, fill_in_middle

SENTINELS = Sentinels(prefix=1000, middle=1001, suffix=1002, end=1003)
keys = st.integers(0, 2**64 - 1)


def parts_of(made: list[int]) -> tuple[str, list[list[int]]]:
    """(form, what stands after each sentinel) of a rearranged document with an end."""
    assert made[0] == 1000 and made[-1] == 1003
    suffix, middle = made.index(1002), made.index(1001)
    return "spm" if suffix == 1 else "psm", [made[1:suffix], made[suffix + 1 : middle], made[middle + 1 : -1]]


@settings(deadline=None)
@given(st.lists(st.integers(0, 999), min_size=3, max_size=50), keys, st.sampled_from([np.uint16, np.int32]))
def test_the_inverse_gives_the_document_back(ids, key, dtype):
    made = fill_in_middle(np.array(ids, dtype), key, SENTINELS, rate=1)
    assert made.dtype == dtype
    form, (prefix, suffix, middle) = parts_of(made.tolist())
    assert prefix + middle + suffix == ids
    assert suffix and middle and (len(prefix) > 0) == (form == "psm")
    if form == "spm":
        assert len(middle) >= 2  # the prefix and the middle, neither empty


@settings(deadline=None)
@given(st.integers(0, 50), keys)
def test_it_depends_on_the_key_alone(n, key):
    ids = np.arange(n)
    assert fill_in_middle(ids, key, SENTINELS).tolist() == fill_in_middle(ids.copy(), key, SENTINELS).tolist()


def test_fixed_keys_give_fixed_documents():
    made = [fill_in_middle(np.arange(5), key, SENTINELS, rate=1).tolist() for key in (0, 5)]
    assert made == [[1000, 1002, 4, 1001, 0, 1, 2, 3, 1003], [1000, 0, 1002, 3, 4, 1001, 1, 2, 1003]]


@given(st.integers(0, 2), keys)
def test_short_documents_are_left_alone(n, key):
    assert fill_in_middle(np.arange(n), key, SENTINELS, rate=1).tolist() == list(range(n))


def test_without_an_end_nothing_stands_behind_the_middle():
    made = fill_in_middle(np.arange(9), 4, Sentinels(1000, 1001, 1002), rate=1)
    assert len(made) == 12 and made[-1] < 9


def test_rates_and_cuts_hold():
    n, draws = 5, 6000
    made = [fill_in_middle(np.arange(n), key, SENTINELS, rate=0.7, spm_rate=0.25).tolist() for key in range(draws)]
    changed = [parts_of(row) for row in made if len(row) > n]
    assert abs(len(changed) / draws - 0.7) < 4 * (0.7 * 0.3 / draws) ** 0.5
    psm = [parts for form, parts in changed if form == "psm"]
    assert abs(len(psm) / len(changed) - 0.75) < 4 * (0.25 * 0.75 / len(changed)) ** 0.5
    cuts, counts = np.unique([(len(prefix), len(middle)) for prefix, _, middle in psm], axis=0, return_counts=True)
    assert len(cuts) == 6  # pairs of 4 places
    assert ((counts - len(psm) / 6) ** 2 / (len(psm) / 6)).sum() < 20.5  # chi-squared, 5 degrees: 1 in 1000


@pytest.mark.parametrize(("rate", "changed"), [(0, False), (1, True)])
def test_rates_of_0_and_1_are_exact(rate, changed):
    assert all((len(fill_in_middle(np.arange(4), key, SENTINELS, rate)) > 4) == changed for key in range(200))


def test_bad_rates_and_sentinels_are_refused():
    with pytest.raises(UserError, match="rates"):
        fill_in_middle(np.arange(4), 0, SENTINELS, rate=1.5)
    with pytest.raises(UserError, match="three different"):
        Sentinels(1, 1, 2)
