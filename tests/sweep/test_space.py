"""Specs of search spaces: what they select, what they refuse, and what random search draws of them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.sweep.space import space
from research.train.config import Config

RATE, DECAY, STEPS, CLIP, KIND = (
    "optimizer.learning_rate", "optimizer.weight_decay", "steps", "optimizer.clip_norm", "optimizer.kind",
)  # fmt: skip


def values(field, spec):
    [one] = space(Config(), {field: spec}).dimensions
    return one.values


@pytest.mark.parametrize(
    ("field", "spec", "expected"),
    [
        (RATE, "1e-3,2e-3, 3e-3", (1e-3, 2e-3, 3e-3)),
        (RATE, "1", (1.0,)),
        (RATE, [1e-3, 1], (1e-3, 1.0)),
        (RATE, np.array([0.5, 0.25]), (0.5, 0.25)),
        (RATE, 0.1, (0.1,)),
        (RATE, "log:1e-4:1e-1:4", (1e-4, 1e-3, 1e-2, 1e-1)),
        (RATE, "lin:0:1:5", (0.0, 0.25, 0.5, 0.75, 1.0)),
        (STEPS, "int:3:6", (3, 4, 5, 6)),
        (STEPS, "int:10:30:3", (10, 20, 30)),
        (STEPS, "log:1:100:3", (1, 10, 100)),
        (CLIP, "None,1", (None, 1.0)),
        (CLIP, [None, 2], (None, 2.0)),
        (KIND, "choice:adamw,muon", ("adamw", "muon")),
        (KIND, "lion", ("lion",)),
        ("model.tied", "true,false", (True, False)),
        ("optimizer.learning-rate", "0.5", (0.5,)),
        ("model.patterns", "full,sliding+full", (("full",), ("sliding", "full"))),
        ("model.patterns", [["full"], ("sliding", "full")], (("full",), ("sliding", "full"))),
        ("model.patterns", ("sliding", "full"), (("sliding", "full"),)),
    ],
)
def test_what_a_spec_selects(field, spec, expected):
    found = values(field, spec)
    assert found == expected and [type(x) for x in found] == [type(x) for x in expected]


@pytest.mark.parametrize(
    ("field", "spec", "said"),
    [
        ("optimizer.lerning_rate", "1", "no field 'optimizer.lerning_rate'; did you mean 'optimizer.learning_rate'"),
        (RATE, "fast", "optimizer.learning_rate is 'fast'; expected a number"),
        (RATE, "", "selects nothing"),
        (RATE, [], "selects nothing"),
        (RATE, "choice:", "selects nothing"),
        (RATE, "1,1.0", "the value 1.0 more than once"),
        (RATE, "log:1:2:3:4", "is not log:LOW:HIGH:N"),
        (RATE, "log:a:2", "is not log:LOW:HIGH:N"),
        (RATE, "log:0:1:3", "begins above 0"),
        (RATE, "lin:2:1:3", "selects nothing: LOW"),
        (RATE, "lin:1:2:0", "selects nothing: LOW"),
        (RATE, "lin:nan:2:3", "is not lin:LOW:HIGH:N"),
        (STEPS, "1.5", "steps is '1.5'; expected a whole number"),
        (STEPS, "int:1.5:3", "whole numbers"),
        (STEPS, "lin:1:3", "give int:LOW:HIGH"),
        (STEPS, "int:1:99999999", "give int:LOW:HIGH:N"),
        (KIND, "lin:0:1:2", "a range of numbers, but the field is one of"),
        (KIND, "adamv", "expected one of sgd"),
        (RATE, "None", "expected a number"),
        ("model.patterns", "full,slidin", "model.patterns is 'slidin'; expected one of full"),
    ],
)
def test_what_a_spec_cannot_be(field, spec, said):
    with pytest.raises(UserError, match=said):
        values(field, spec)


def test_two_specs_for_one_field_are_refused():
    with pytest.raises(UserError, match="given two specs"):
        space(Config(), {RATE: "1", "optimizer.learning-rate": "2"})


def test_a_grid_is_every_combination_the_last_field_fastest():
    grid = list(space(Config(), {RATE: "1,2", DECAY: "0,0.1,0.2"}).grid())
    assert [tuple(one.values()) for one in grid] == [(a, b) for a in (1.0, 2.0) for b in (0.0, 0.1, 0.2)]
    with pytest.raises(UserError, match=r"is a range; a grid needs points: log:0.1:1:N"):
        list(space(Config(), {RATE: "log:0.1:1"}).grid())
    with pytest.raises(UserError, match="at most 1,000,000"):
        list(space(Config(), {RATE: "lin:0:1:2000", DECAY: "lin:0:1:2000"}).grid())


@given(st.integers(0, 2**32), st.integers(1, 30))
def test_random_draws_depend_on_the_seed_alone_and_lie_within(seed, trials):
    found = space(Config(), {RATE: "log:1e-4:1e-2", DECAY: "lin:0:1", STEPS: "int:3:5", KIND: "adamw,lion"})
    draws = list(found.random(trials, seed))
    assert draws == list(found.random(trials + 3, seed))[:trials]
    for one in draws:
        assert (
            1e-4 <= one[RATE] <= 1e-2
            and 0 <= one[DECAY] <= 1
            and one[STEPS] in (3, 4, 5)
            and one[KIND] in ("adamw", "lion")
        )


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_random_draws_of_few_choices_are_all_different(seed, trials):
    found = space(Config(), {STEPS: "int:3:5", KIND: "adamw,lion", RATE: "log:0.1:0.1"})
    draws = [tuple(one.values()) for one in found.random(trials, seed)]
    assert len(set(draws)) == trials and draws == [tuple(one.values()) for one in found.random(6, seed)][:trials]
    with pytest.raises(UserError, match="--trials is 7, but the space has 6 choices"):
        found.random(7, seed)


def test_random_draws_are_uniform_on_their_scale():
    draws = list(space(Config(), {RATE: "log:1e-4:1e-2", DECAY: "lin:0:1", STEPS: "int:1:4"}).random(2000, 0))
    logs = [math.log10(one[RATE]) for one in draws]
    assert abs(np.mean(logs) + 3) < 0.05 and abs(np.mean([one[DECAY] for one in draws]) - 0.5) < 0.03
    assert all(abs(sum(one[STEPS] == n for one in draws) / 2000 - 0.25) < 0.04 for n in range(1, 5))
