"""Scaling laws: the coefficients of a known law come back, outliers do no harm, and tables of anyone are read."""

import csv
import functools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.core.errors import UserError
from research.sweep import laws
from research.sweep.laws import Fit

LAW = Fit(1.7, 400.0, 1500.0, 0.34, 0.3, 0, 0.0)


def runs(law: Fit = LAW, count: int = 60, noise: float = 0.0, seed: int = 0):
    draw = np.random.default_rng(seed)
    params, tokens = 10 ** draw.uniform(7, 10, count), 10 ** draw.uniform(8.5, 11.5, count)
    return params, tokens, law.loss(params, tokens) * np.exp(noise * draw.normal(size=count))


@settings(max_examples=4)
@given(st.floats(1.2, 2.5), st.floats(100, 1000), st.floats(300, 3000), st.floats(0.25, 0.45), st.floats(0.25, 0.45))
def test_the_law_that_made_the_runs_comes_back(E, A, B, alpha, beta):
    law = Fit(E, A, B, alpha, beta, 0, 0.0)
    found = laws.fit(*runs(law))
    np.testing.assert_allclose([found.E, found.alpha, found.beta], [E, alpha, beta], rtol=0.02)
    assert found.error < 2e-3 and found.runs == 60 and not found.dropped


def test_intervals_hold_the_law_and_outliers_are_left_out():
    params, tokens, losses = runs(count=120, noise=0.003)
    losses[[3, 77]] *= (1.4, 0.7)
    found = laws.fit(params, tokens, losses, bootstrap=40)
    assert found.dropped == (3, 77) and found.runs == 118
    for name in laws.NAMES:
        low, high = found.intervals[name]
        assert low < getattr(LAW, name) < high and low < getattr(found, name) < high
    assert (
        found
        == laws.fit(params, tokens, losses, bootstrap=40)
        != laws.fit(params, tokens, losses, bootstrap=40, seed=1)
    )
    assert laws.fit(params, tokens, losses, outliers=None).runs == 120


def test_the_gradient_is_that_of_the_objective():
    logs, x = np.log(np.array(runs(count=20, noise=0.1))), np.array([0.5, 6.0, 7.0, 0.3, 0.33])
    _, grad = laws._objective(x, logs)
    for i, step in enumerate(1e-6 * np.eye(5)):
        assert grad[i] == pytest.approx(
            (laws._objective(x + step, logs)[0] - laws._objective(x - step, logs)[0]) / 2e-6, rel=1e-5
        )


@given(st.floats(1e17, 1e25))
def test_the_optimum_is_the_least_loss_of_its_budget(flops):
    params, tokens = LAW.optimal(flops)
    assert 6 * params * tokens == pytest.approx(flops)
    sizes, losses = LAW.isoflop(flops)
    assert LAW.loss(params, tokens) <= losses.min() * (1 + 1e-12)
    assert losses.argmin() in (24, 25) and sizes[0] == pytest.approx(params / 10)


@pytest.mark.parametrize(
    ("params", "tokens", "losses", "said"),
    [
        ([1] * 7, [1] * 7, [1] * 7, "7 runs are too few"),
        ([1, 2, 3, 4, 5, 6, 7, 0], range(1, 9), [1] * 8, "run 7 has"),
        (range(1, 9), range(1, 9), [1] * 7 + [float("nan")], "run 7 has"),
        ([1] * 8, range(1, 9), [1] * 8, "1 different numbers of parameters"),
        (range(1, 9), [1, 2] * 4, [1] * 8, "2 different numbers of tokens"),
    ],
)
def test_what_is_no_table_for_a_law(params, tokens, losses, said):
    with pytest.raises(UserError, match=said):
        laws.fit(list(params), list(tokens), list(losses))


# -- the command


def table(path, names, columns, extra=()):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([names, *zip(*columns, strict=True), *extra])
    return path


@pytest.fixture
def call(call_verb):
    return functools.partial(call_verb, "scaling")


def test_a_table_of_anyone_or_of_a_sweep(tmp_path, call):
    params, tokens, losses = runs()
    flops = 6 * params * tokens
    anyone = table(tmp_path / "a.csv", ["Model Size", "Training FLOP", "loss"], (params, flops, losses))
    status = ["complete"] * 60
    ours = table(tmp_path / "b.csv", ["trial", "status", "tokens", "params", "flops", "metric"],
                 (range(60), status, tokens, params, flops, losses), [(60, "diverged", 1, 2, 3, "")])  # fmt: skip
    told = []
    for path, left in ((anyone, 0), (ours, 1)):
        code, out, err = call("fit", path, "--bootstrap", 5, "--budget", "1e21", "--plot", tmp_path / "p.svg", "--json")
        assert code == 0 and err == "" and (tmp_path / "p.svg").stat().st_size > 1000
        told.append(json.loads(out.splitlines()[-1]))
        assert told[-1]["left_out"] == left and told[-1]["runs"] == 60
        assert told[-1]["budget"]["params"] == pytest.approx(LAW.optimal(1e21)[0], rel=0.05)
        assert "for 1e+21 FLOPs" in out and "alpha" in out
    assert told[0]["alpha"] == pytest.approx(told[1]["alpha"], rel=1e-3)


def test_what_the_command_refuses(tmp_path, call):
    params, tokens, losses = runs()
    plain = table(tmp_path / "a.csv", ["params", "tokens", "loss"], (params, tokens, losses))
    words = table(tmp_path / "w.csv", ["params", "tokens", "loss"], (params, tokens, ["x"] * 60))
    short = table(tmp_path / "s.csv", ["params", "loss"], (params, losses))
    (tmp_path / "e.csv").write_text("")
    for argv, said in (
        (("fit", tmp_path / "none.csv"), "none.csv"),
        (("fit", tmp_path / "e.csv"), "holds no runs"),
        (("fit", short), "no column of the tokens, and none of the FLOPs"),
        (("fit", words), "'x' in the column 'loss' is no number"),
        (("fit", plain, "--loss", "los"), "no column 'los'"),
        (("fit", plain, "--budget", "-1"), "--budget is -1"),
        (("fit", plain, "--bootstrap", "0", "--plot", tmp_path / "x.xyz"), "--plot"),
        (("fti",), "did you mean fit?"),
    ):
        code, out, err = call(*argv)
        assert code == 2 and said in err and err.count("\n") == 1, err
