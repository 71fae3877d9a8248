"""Sweeps as studies of Optuna: what stands for what, who is dead, what is proposed, and what is refused."""

import dataclasses
import json

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial
from study_workers import one_is_killed

from research.core.errors import UserError
from research.sweep import study as S
from research.sweep import worker
from research.sweep.execute import Execution
from research.sweep.space import space
from research.train.config import Config

RATE = "optimizer.learning_rate"


def made(*trials):
    """A study in memory of trials (state, attributes)."""
    found = optuna.create_study()
    for state, attributes in trials:
        values = {"value": 1.0} if state == "COMPLETE" else {}
        found.add_trial(create_trial(state=TrialState[state], user_attrs=attributes, **values))
    return found


def test_a_worker_that_is_killed_loses_nothing_but_its_batch(text_file, tmp_path):
    one_is_killed(text_file, f"journal:{tmp_path / 'study.journal'}", tmp_path)


def test_choices_are_counted_and_one_trial_stands_for_each():
    again = {S.CHOICE: 1}
    trials = [
        ("COMPLETE", {S.LINES: [1]}),
        ("FAIL", {}),
        ("RUNNING", {}),
        ("RUNNING", again),
        ("WAITING", again),
        ("RUNNING", {}),
    ]
    board = S.Board(made(*trials).trials, 3)
    assert board.choice_of == {0: 0, 1: 1, 2: 2, 3: 1, 4: 1, 5: 3}
    assert {n: trial.number for n, trial in board.standing.items()} == {0: 0, 1: 3, 2: 2, 3: 5}
    assert [board.is_spare(n) for n in range(6)] == [False, True, False, False, True, True]
    assert list(board.over) == [0] and board.abandoned == [] and board.lines == [1]
    assert S.Board(made(*trials[:3]).trials, 3).abandoned == [1]


def test_a_choice_that_makes_no_run_is_over_without_lines():
    board = S.Board(made(("FAIL", {S.LINES: []})).trials, 1)
    assert list(board.over) == [0] and board.lines == [] and board.abandoned == []


@given(
    st.lists(
        st.tuples(st.sampled_from(["COMPLETE", "FAIL", "RUNNING", "WAITING"]), st.none() | st.integers(0, 3)),
        max_size=8,
    )
)
def test_every_choice_has_at_most_one_trial_that_is_no_spare(drawn):
    trials = [
        (state, {**({} if n is None else {S.CHOICE: n}), **({S.LINES: []} if state == "COMPLETE" else {})})
        for state, n in drawn
    ]
    board = S.Board(made(*trials).trials, 3)
    kept = [board.choice_of[n] for n in range(len(drawn)) if not board.is_spare(n)]
    assert len(kept) == len(set(kept)) and all(choice < 3 for choice in kept)
    assert set(board.abandoned).isdisjoint(kept)
    assert set(board.over) <= set(kept)


def test_a_worker_whose_beats_stand_still_is_dead():
    watch, elsewhere = S.Watch(), "host/7/1.0/word"
    assert watch.dead({elsewhere: (3, 1.0)}, now=100.0) == set()
    assert watch.dead({elsewhere: (3, 1.0)}, now=104.0) == set()
    assert watch.dead({elsewhere: (4, 1.0)}, now=104.5) == set()
    assert watch.dead({elsewhere: (4, 1.0)}, now=108.6) == {elsewhere}
    assert watch.dead({elsewhere: (5, 1.0)}, now=109.0) == set()


def test_a_worker_of_this_machine_is_dead_with_its_process():
    me = S.worker_name()
    place, _, began, word = me.rsplit("/", 3)
    beats = dict.fromkeys((me, f"{place}/{2**22 + 1}/{began}/{word}"), (0, 1.0))
    assert S.Watch().dead(beats, now=0.0) == set(beats) - {me}


SPACE = {
    RATE: "log:1e-4:1e-1", "optimizer.weight_decay": "lin:0:1", "model.layers": "int:1:4", "model.width": [32, 64], "tokenizer": [None, "byte"],
    "model.patterns": [["full"], ["sliding", "full"]], "model.tied": [True, False], "seed": "int:0:9:4",
}  # fmt: skip


def fixed(**changes):
    base = dataclasses.replace(Config(), **changes)
    return space(
        base, {name: [tuple(one) for one in spec] if name == "model.patterns" else spec for name, spec in SPACE.items()}
    )


@given(st.integers(0, 1000))
def test_fields_are_the_same_after_a_storage(seed):
    spec = fixed()
    fields = next(spec.random(1, seed))
    kept = json.loads(json.dumps(S.params_of(spec, fields)))
    assert S.fields_of(spec, kept) == fields
    found = S.distributions(spec)
    for name, value in kept.items():
        assert found[name]._contains(found[name].to_internal_repr(value)), name


def test_ranges_are_numbers_to_a_sampler():
    found = S.distributions(fixed())
    assert found[RATE] == optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)
    assert found["optimizer.weight_decay"] == optuna.distributions.FloatDistribution(0, 1)
    assert found["model.layers"] == optuna.distributions.IntDistribution(1, 4)
    assert found["model.width"] == optuna.distributions.CategoricalDistribution((32, 64))


def test_a_search_goes_on_and_its_choices_are_those_of_one_that_was_not_cut_off(sweep, tmp_path, monkeypatch):
    options = {"search": "tpe", "trials": 5, "batch": 2, "seeds": 2}
    whole = sweep({RATE: "log:1e-4:1e-1"}, out=str(tmp_path / "whole"), **options).run()
    calls, train = [], Execution.train

    def second_fails(self, *arguments):
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        train(self, *arguments)

    cut = sweep({RATE: "log:1e-4:1e-1"}, out=str(tmp_path / "cut"), **options)
    monkeypatch.setattr(Execution, "train", second_fails)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    assert len(cut.run().lines) == 10
    assert len(whole.lines) == 10 and whole.summary()["complete"] == 10

    def of(found, number):
        return next({**line, "seconds": 0} for line in found.lines if line["trial"] == number)

    again = sweep({RATE: "log:1e-4:1e-1"}, out=str(tmp_path / "cut"), **options).run()
    assert [of(whole, n) for n in range(4)] == [of(again, n) for n in range(4)]
    assert len({line["fields"][RATE] for line in again.lines}) == 5
    assert [line["trial"] for line in sorted(again.lines, key=lambda one: one["trial"])] == list(range(10))


def test_a_sampler_whose_package_is_missing_is_refused_before_anything_trains(sweep, monkeypatch):
    monkeypatch.setitem(S.NEEDS, "nsgaii", ("no_such_package",))
    asked = sweep({RATE: "log:1e-4:1e-1"}, search="nsgaii", trials=2)
    with pytest.raises(UserError, match="--search nsgaii of Optuna needs another package: pip install no_such_package"):
        asked.run()
    assert not asked.folder.exists()


def test_a_grid_on_a_storage_has_the_results_of_a_grid_alone(sweep, tmp_path):
    space, url = {RATE: [1e-3, 3e-3, 1e-2]}, f"sqlite:///{tmp_path / 'study.db'}"
    alone = sweep(space, seeds=2).run()
    shared = sweep(
        space, seeds=2, out=str(tmp_path / "shared"), storage=url, study="grid", batch=2, heartbeat=0.05
    ).run()

    def told(found):
        lines = sorted(found.lines, key=lambda line: line["trial"])
        return [(line["trial"], line["fields"], line["curve"], line["metric"], line["status"]) for line in lines]

    assert told(shared) == told(alone)
    with S.storage_at(url) as storage:
        trials = optuna.load_study(study_name="grid", storage=storage).trials
    assert [sorted(one.intermediate_values) for one in trials] == [[6], [6], [6]]
    assert [one.value for one in trials] == pytest.approx(
        [sum(x["metric"] for x in alone.lines[n : n + 2]) / 2 for n in (0, 2, 4)]
    )


def test_a_pruner_ends_choices_at_an_evaluation(sweep, monkeypatch):
    monkeypatch.setattr(S, "pruner_of", lambda name: optuna.pruners.ThresholdPruner(upper=2.8))
    found = sweep({RATE: [1e-2, 1e-7]}, {"steps": 18}, pruner="median", seeds=2).run()
    told = [(line["trial"], line["status"], line["steps"]) for line in found.lines]
    assert sorted(told) == [(0, "complete", 18), (1, "complete", 18), (2, "stopped", 6), (3, "stopped", 6)]


@pytest.mark.parametrize("name", ["none", *S.PRUNERS])
def test_pruners_are_optunas(name):
    assert isinstance(S.pruner_of(name), optuna.pruners.BasePruner)


@pytest.mark.parametrize("when", ["at an evaluation", "at its end"])
def test_a_worker_that_was_taken_for_dead_drops_what_was_taken_over(sweep, monkeypatch, capsys, when):
    """Another worker fails its first trial in the meantime; the choice is trained again and counts once."""
    name = {"at an evaluation": "_told", "at its end": "_end"}[when]
    own, failed = getattr(worker.Worker, name), []

    def taken_over(self, *arguments):
        if not failed:
            failed.append(0)
            self.study.tell(0, state=TrialState.FAIL)
        return own(self, *arguments)

    monkeypatch.setattr(worker.Worker, name, taken_over)
    found = sweep(
        {RATE: [1e-3, 1e-2]}, search="random", trials=2, storage="journal:" + str(sweep({}).folder) + ".log"
    ).run()
    assert sorted(line["trial"] for line in found.lines) == [0, 1] and found.summary()["complete"] == 2
    assert "trial 0 was taken over" in capsys.readouterr().err


def test_a_diverged_choice_is_over(sweep):
    found = sweep({RATE: [1e-3, 1e30]}, {"max_skipped": 2}, pruner="median").run()
    assert sorted(line["status"] for line in found.lines) == ["complete", "diverged"]


def test_a_choice_of_a_sampler_that_makes_no_config_is_passed_over(sweep, capsys):
    space = {"model.heads": [2, 1], "model.kv_heads": [1, 2]}  # one of the four is none
    found = sweep(space, {"steps": 2}, search="qmc", trials=8).run()
    assert "makes no run" in capsys.readouterr().err
    assert found.lines and all(line["status"] == "complete" for line in found.lines)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://nobody:secret@127.0.0.1:9/none", "cannot open the storage"),
        ("sqlite:////nowhere/at/all.db", "cannot open the storage"),
        ("journal:/nowhere/at/all.journal", "cannot open the storage"),
        ("what is this", "cannot open the storage what is this"),
    ],
)
def test_a_storage_that_cannot_be_reached_is_named_without_its_password(sweep, url, said):
    with pytest.raises(UserError, match=said) as caught:
        sweep({RATE: [1e-3, 1e-2]}, storage=url).run()
    assert "secret" not in str(caught.value)


def test_a_study_of_another_sweep_is_refused(sweep, tmp_path):
    url = f"journal:{tmp_path / 'study.journal'}"
    sweep({RATE: [1e-3]}, storage=url, study="one").run()
    with pytest.raises(UserError, match=r"another sweep's: its space.optimizer.learning_rate is \[0.001\]"):
        sweep({RATE: [1e-2]}, storage=url, study="one", out=str(tmp_path / "other")).run()
    with S.storage_at(url) as storage:
        optuna.create_study(study_name="theirs", storage=storage).ask()
    with pytest.raises(UserError, match="was not made by a sweep"):
        sweep({RATE: [1e-2]}, storage=url, study="theirs", out=str(tmp_path / "other")).run()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"search": "tpe"}, "needs a number of choices"),
        ({"search": "halving", "storage": "journal:x"}, "ranks the members of one process"),
        ({"study": "name"}, "--storage"),
        ({"batch": 0}, "--batch is 0"),
        ({"heartbeat": 0.0}, "--heartbeat is 0.0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(sweep, options, said):
    with pytest.raises(UserError, match=said):
        sweep({RATE: [1e-3]}, **options)
