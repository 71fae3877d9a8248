"""The experiments that are sweeps, or many runs: documents that plan what they say, and what they make of results."""

import ast
import importlib
import types

import numpy as np
import pytest

from research.core.errors import UserError
from research.train import experiments

SWEEPS = ("sweep_learning_rate", "mup_transfer", "scaling_laws")
OTHERS = ("critical_batch_size", "learning_rate_range", "gpt2_generate", "planned_presets")


def module(name):
    return importlib.import_module(f"experiments.{name}")


def test_every_file_is_an_experiment_a_sweep_or_named_here():
    there = {file.stem for file in experiments.folder().glob("*.py")} - {"__init__"}
    assert there == {*experiments.names(), *SWEEPS, *OTHERS}


@pytest.mark.parametrize("name", SWEEPS + OTHERS)
def test_the_file_is_a_document(name):
    source = (experiments.folder() / f"{name}.py").read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source))
    assert docstring and f"python experiments/{name}.py" in docstring
    assert len(source.splitlines()) <= 100 and "/work" not in source and "/home" not in source


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_can_be_planned(name):
    sweep = module(name).SWEEP
    assert sweep.name == name and sweep.out is None and len(sweep.planned()) > 10


def test_transfer_tells_how_far_the_best_rate_moves(tmp_path):
    rates = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]

    def line(trial, base, width, rate):
        best = 8e-3 * (64 / width if base is None else 1)
        fields = {"model.base_width": base, "model.width": width, "optimizer.learning_rate": rate}
        return {"trial": trial, "fields": fields, "metric": 2 + np.log(rate / best) ** 2}

    asked = [(base, width, rate) for base in (None, 256) for width in (64, 128, 256) for rate in rates]
    results = types.SimpleNamespace(complete=[line(n, *one) for n, one in enumerate(asked)], path=tmp_path)
    found = module("mup_transfer").transfer(results)
    assert found["moves"] == pytest.approx({"standard": 4, "muP": 1})
    assert found["best_rates"]["standard"] == pytest.approx({64: 8e-3, 128: 4e-3, 256: 2e-3})
    assert (tmp_path / "mup_transfer.png").exists() and "muP: width 64 8.00e-03" in found["said"]


def test_a_law_is_fitted_and_held_against_a_larger_run(sweep, monkeypatch):
    space = {"model.width": [4, 8, 12], "steps": [2, 4, 6], "model.base_width": [8]}
    asked = sweep(space)
    monkeypatch.setattr(module("scaling_laws"), "BOOTSTRAP", 5)
    found = module("scaling_laws").law(asked.run())
    assert found["law"]["runs"] == 9 and found["error"] == pytest.approx(found["predicted"] / found["measured"] - 1)
    held_out = asked.folder / "held_out" / "results.csv"
    assert "24,12" in held_out.read_text() and (asked.folder / "scaling_laws.png").exists()
    assert "held out:" in found["said"] and "largest relative error" in found["said"]


def test_the_trade_of_steps_and_rows_is_found():
    found = module("critical_batch_size")
    sizes = np.array([4.0, 16.0, 64.0, 256.0])
    steps = 100 + 3200 / sizes
    assert found.hyperbola(steps, steps * sizes) == pytest.approx((100, 3200))
    assert found.steps_to([[10, 4.0], [20, 3.0], [30, 2.0]], 2.5) == pytest.approx(25)
    assert found.steps_to([[10, 2.0]], 2.5) == 10 and found.steps_to([[10, 4.0], [20, None]], 2.5) is None


def test_a_critical_batch_size_comes_out_of_sweeps(tmp_path, monkeypatch, capsys, text_file):
    found = module("critical_batch_size")
    base = found.base
    monkeypatch.setattr(
        found,
        "base",
        lambda *a: found.dataclasses.replace(base(*a), data=f"text:{text_file}", eval_batches=1, eval_every=2),
    )
    words = ["--batch-sizes", "2", "8", "--rates", "1e-2", "--steps", "1", "--out", str(tmp_path)]
    assert found.main([*words, "--target-loss", "5.3"]) == 0
    assert "critical batch size" in capsys.readouterr().out and (tmp_path / "critical_batch_size.png").exists()
    with pytest.raises(UserError, match="no rate at batch size 2 reaches 0.1"):
        found.main([*words, "--target-loss", "0.1"])


def test_a_range_test_ends_where_the_loss_diverges(tmp_path, monkeypatch, capsys, base):
    found = module("learning_rate_range")
    monkeypatch.setattr(found.experiments, "load", lambda name: types.SimpleNamespace(config=base))
    assert (
        found.main(["tiny", "--low", "1e-4", "--high", "1e4", "--steps", "60", "--plot", str(tmp_path / "range.png")])
        == 0
    )
    told = capsys.readouterr().out
    assert "the loss falls fastest at" in told and not told.startswith("60 steps") and (tmp_path / "range.png").exists()
    with pytest.raises(UserError, match="expected 0 < low < high"):
        found.main(["tiny", "--low", "1", "--high", "0.1"])
