"""What becomes of members at rungs, as functions of their losses."""

import math

from hypothesis import given
from hypothesis import strategies as st

from research.sweep import rungs

losses = st.lists(st.floats(0, 9) | st.just(math.inf) | st.just(math.nan), min_size=1, max_size=20)


@given(losses, st.integers(2, 4))
def test_the_best_go_on(values, eta):
    kept = rungs.kept(dict(enumerate(values)), eta)
    finite = [n for n, loss in enumerate(values) if math.isfinite(loss)]
    assert len(kept) == min(len(finite), max(1, len(values) // eta)) and kept <= set(finite)
    assert all((values[a], a) < (values[b], b) for a in kept for b in set(finite) - kept)


def test_rungs_are_eta_times_as_far_apart():
    assert (
        rungs.steps_of(90, 2, 3) == [10, 30, 90]
        and rungs.steps_of(90, 0, 3) == [90]
        and rungs.steps_of(5, 2, 3) == [1, 1, 5]
    )
    assert [rungs.most(n, 1000, 3) for n in (1, 2, 3, 8, 9, 27)] == [0, 0, 1, 1, 2, 3]
    assert rungs.most(1000, 4, 3) == 1


@given(losses, st.sampled_from([0.1, 0.25, 0.5]))
def test_the_worst_and_the_lost_go_on_from_the_best(values, share):
    parents = rungs.exploit(values, share)
    count, finite = int(share * len(values)), [n for n, loss in enumerate(values) if math.isfinite(loss)]
    if not finite:
        assert parents == list(range(len(values)))
        return
    replaced = {n for n, parent in enumerate(parents) if n != parent}
    assert {n for n in range(len(values)) if n not in finite} <= replaced
    best = sorted(finite, key=lambda n: (values[n], n))[: max(1, count)]
    assert all(parents[n] in best for n in replaced) and not set(best) & replaced
    assert len(replaced) <= max(count, len(values) - len(finite))


@given(st.floats(1e-3, 1.0), st.integers(0, 9))
def test_numbers_are_moved_by_one_of_two_factors_within_their_bounds(rate, seed):
    fields = {"a": rate, "kind": "x", "n": 10}
    out = rungs.explore(fields, {"a": (1e-3, 1.0), "n": (1, 11)}, [seed])
    assert out == rungs.explore(fields, {"a": (1e-3, 1.0), "n": (1, 11)}, [seed])
    assert out["kind"] == "x" and out["n"] in (8, 11) and isinstance(out["n"], int)
    assert any(math.isclose(out["a"], min(max(rate * f, 1e-3), 1.0)) for f in rungs.FACTORS)
