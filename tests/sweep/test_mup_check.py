"""The coordinate check: muP passes it with every optimiser it has rules for, the standard parameterisation does not."""

import json

import numpy as np
import pytest

from research.sweep import mup

FIELDS = (
    "model.layers=1",
    "model.heads=2",
    "model.context=16",
    "model.init=fan-in",
    "model.tied=false",
    "batch_size=4",
)
WIDTHS = ("--widths", "32", "128", "--seeds", "1", "--steps", "3")


@pytest.fixture
def check(call_verb, text_file, tmp_path):
    """`check(*words)` -> (exit code, JSON)."""

    def run(*words):
        plot = ("--plot", str(tmp_path / "check.png"), "--json")
        code, out, err = call_verb("mup-check", "lm_tiny_text", f"data=text:{text_file}", *FIELDS, *words, *plot)
        assert (tmp_path / "check.png").read_bytes()[1:4] == b"PNG", err
        return code, json.loads(out.splitlines()[-1])

    return run


@pytest.mark.parametrize(
    "optimizer",
    [
        ("optimizer.kind=adamw", "optimizer.learning_rate=0.01"),
        ("optimizer.kind=sgd", "optimizer.learning_rate=0.3", "optimizer.clip_norm=None"),
        ("optimizer.kind=muon", "optimizer.learning_rate=0.02"),
    ],
)
def test_mup_keeps_activations_at_one_size(check, optimizer):
    code, found = check(*optimizer, *WIDTHS)
    assert code == 0 and found["passed"] and found["base_width"] == 32 and found["widths"] == [32, 128]
    assert {"block_input/0", "mlp_output/0", "final", "logits"} == set(found["coordinates"])
    assert np.shape(found["coordinates"]["logits"]["sizes"]) == (4, 2)


def test_the_standard_parameterisation_fails(check):
    code, found = check("optimizer.learning_rate=0.01", *WIDTHS, "--standard")
    assert code == 1 and not found["passed"] and found["base_width"] is None
    assert not found["coordinates"]["logits"]["passed"] and found["coordinates"]["logits"]["change"] > 0.5


def test_exponents():
    assert mup.exponent([64, 128, 256], [1, 2, 4]) == pytest.approx(1)
    assert mup.exponent([64, 256], [3, 3]) == pytest.approx(0)
    assert mup.exponent([64, 256], [0, 0]) == 0
    assert mup.exponent([64, 256], [1, float("nan")]) == float("inf")


def test_what_grows_or_vanishes_fails():
    def passes(sizes, changes):
        return mup.Check((64, 256), {"x": np.array(sizes)}, {"x": np.array(changes)}, 0.2).passed

    still = [[0, 0], [1, 1]]
    assert passes([[4, 2], [4, 4]], still)  # may fall at the start
    assert not passes([[1, 2], [1, 1]], still)
    assert not passes([[1, 1], [1, 2]], still)
    assert not passes([[1, 1], [1, 1]], [[0, 0], [1, 2]])
    assert not passes([[1, 1], [1, 1]], [[0, 0], [2, 1]])


def test_the_best_rate_lies_between_points():
    rates = [1e-3, 2e-3, 4e-3, 8e-3]
    losses = [(np.log(rate) - np.log(3e-3)) ** 2 for rate in rates]
    assert mup.optimum(rates, losses) == pytest.approx(3e-3)
    assert mup.optimum(rates[::-1], losses[::-1]) == pytest.approx(3e-3)
    assert mup.optimum(rates, [1, 2, 3, 4]) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--widths", "64"), "at least two different widths"),
        (("--steps", "0"), "--steps is 0"),
        (("--tolerance", "0"), "--tolerance is 0"),
        (("--standard", "--base-width", "64"), "exclude each other"),
        (("model.layers=1,2",), "several values"),
        (("model.lears=1",), "did you mean 'model.layers'"),
        (("--widths", "64", "100", "model.heads=8"), "model.heads is 8"),
        (("init_from=somewhere",), "init_from is 'somewhere'"),
        (("optimizer.kind=adafactor",), "adafactor"),
    ],
)
def test_bad_input(call_verb, words, said):
    code, _, err = call_verb("mup-check", "lm_tiny_text", *words)
    assert code == 2 and said in err and len(err.splitlines()) == 1
