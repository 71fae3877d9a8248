"""`research compare`: runs by what differs in their configs."""

import dataclasses
import functools
import json

import pytest

from research import train


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """Three runs of two steps: of two rates, and of another tokeniser."""
    folder = tmp_path_factory.mktemp("runs")
    short = dataclasses.replace(base, steps=2, eval_every=1, log_every=1)
    for name, changes in (
        ("a", {}),
        ("b", {"optimizer": dataclasses.replace(base.optimizer, learning_rate=0.5)}),
        ("c", {"tokenizer": "byte"}),
    ):
        train.fit(dataclasses.replace(short, run_dir=str(folder / name), **changes))
    return folder


@pytest.fixture
def call(call_verb):
    return functools.partial(call_verb, "compare")


def test_runs_stand_beside_each_other_with_what_differs(runs, tmp_path, call):
    code, out, err = call(runs / "a", runs / "b", "--out", tmp_path / "cmp", "--json")
    assert code == 0 and err == ""
    told = json.loads(out.splitlines()[-1])
    assert [set(one["fields"]) for one in told["runs"]] == [{"optimizer.learning_rate"}] * 2 and told["unlike"] == []
    for name, one in zip("ab", told["runs"], strict=True):
        status = json.loads((runs / name / "status.json").read_text())["result"]
        assert (one["metric"], one["steps"], one["tokens"]) == (status["eval_loss"], 2, status["tokens"])
        assert len(one["curve"]["train"]) == len(one["curve"]["eval"]) == 2
    best = min(told["runs"], key=lambda one: one["metric"])
    assert out.splitlines()[1].startswith(best["run"])
    page = (tmp_path / "cmp" / "report.html").read_text()
    assert f"research inspect {best['run']}" in page and "2 runs: 2 complete" in page
    assert {path.name for path in (tmp_path / "cmp" / "figures").glob("*.svg")} == {
        "by-optimizer.learning_rate.svg",
        "curves.svg",
    }
    assert call(runs / "b", runs / "a", "--out", tmp_path / "cmp")[0] == 0  # the same folder again


def test_other_tokenisers_are_told_of_and_bits_per_byte_decide(runs, tmp_path, call):
    code, out, err = call(runs / "a", runs / "c", "--out", tmp_path / "cmp", "--json")
    told = json.loads(out.splitlines()[-1])
    assert code == 0 and "differ in their tokenizer" in err and told["unlike"] == ["tokenizer"]
    assert out.splitlines()[1].startswith(min(told["runs"], key=lambda one: one["bits_per_byte"])["run"])


def test_refuses(runs, tmp_path, call):
    for argv, said in (
        ((runs / "a",), "1 run(s) given"),
        ((), "0 run(s) given"),
        ((runs / "a", tmp_path), "not a run directory"),
        ((runs / "a", runs / "a"), "given twice"),
        ((runs / "a", runs / "b", "--out", runs), "is no sweep's folder"),
        ((runs / "a", runs / "b", "--outt", "x"), "no option --outt"),
    ):
        code, out, err = call(*argv)
        assert code == 2 and out == "" and said in err and err.count("\n") == 1, err
