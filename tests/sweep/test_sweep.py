"""Sweeps as they run: members equal runs alone, groups share what is compiled, what is done is kept, and what is wrong is said first."""

import csv
import dataclasses
import json
import math
import time

import numpy as np
import pytest

from research import train
from research.core import config as C
from research.core.errors import UserError
from research.sweep import results
from research.sweep.execute import Execution
from research.sweep.members import Member, Together, looped, on_threads, together
from research.sweep.plan import Trial, groups
from research.sweep.sweep import to_stderr
from research.train import config as T
from research.train import rundir
from research.train.optim import OptimizerConfig, ScheduleConfig

RATE, DECAY = "optimizer.learning_rate", "optimizer.weight_decay"
KINDS = [
    ("sgd", "constant"), ("adam", "cosine"), ("adamw", "linear"), ("lion", "wsd"), ("adafactor", "inverse-sqrt"),
    ("muon", "cosine"), ("schedule-free-adamw", "constant"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "schedule"), KINDS)
def test_members_have_bit_for_bit_the_losses_of_the_run_alone(sweep, tmp_path, kind, schedule):
    draw = np.random.default_rng(len(kind))
    optimizer = OptimizerConfig(kind, schedule=ScheduleConfig(schedule))
    space = {
        RATE: [float(x) for x in draw.uniform(1e-4, 1e-2, 2)], "optimizer.schedule.warmup_steps": [int(draw.integers(1, 9))],
        "optimizer.beta2": [float(draw.uniform(0.8, 0.99))], "model.dropout": [0.1, 0.3], "init_scale": [float(draw.uniform(0.5, 2))],
        "seed": [int(draw.integers(100))],
    }  # fmt: skip
    asked = sweep(space, {"optimizer": optimizer})
    found = asked.run()
    assert len(found.lines) == 4 and {line["group"] for line in found.lines} == {0}
    line = found.lines[-1]
    config = asked.planned()[-1].config
    run = train.fit(dataclasses.replace(config, run_dir=str(tmp_path / "alone")))
    records = rundir.read_metrics(tmp_path / "alone")
    for split in ("train", "eval"):
        assert line["curve"][split] == [[r["step"], r["loss"]] for r in records if r["split"] == split]
    assert line["metric"] == run.summary["eval_loss"] and line["bits_per_byte"] == run.summary["bits_per_byte"]
    assert (line["steps"], line["tokens"], line["params"]) == (12, run.summary["tokens"], run.summary["params"])


def members_of(asked):
    execution = Execution(asked, asked.planned(), to_stderr)
    execution.prepare()
    return execution, [execution._member(trial) for trial in execution.trials]


@pytest.mark.parametrize("own_order", [False, True])
def test_members_together_are_the_members_alone(sweep, own_order):
    asked = sweep({RATE: [1e-3, 3e-3], "seed": [3, 4], **({} if own_order else {"data_seed": [7]})})
    execution, one_by_one = members_of(asked)
    for member in one_by_one:
        looped([member], 12)
    _, on_few = members_of(asked)
    looped(on_few, 6)
    looped(on_few, 12)
    assert [(m.train, m.evals) for m in on_few] == [(m.train, m.evals) for m in one_by_one]
    _, at_once = members_of(asked)
    of = Together(
        execution.programs[execution.groups[0].program_key], 5, shared=not own_order
    )  # one place is left over
    together(at_once, 6, of)
    together(at_once, 12, of)
    for one, other in zip(one_by_one, at_once, strict=True):
        assert [step for step, _ in one.train] == [step for step, _ in other.train] == [2, 4, 6, 8, 10, 12]
        np.testing.assert_allclose([x for _, x in one.train], [x for _, x in other.train], rtol=2e-4)
        np.testing.assert_allclose([x for _, x in one.evals], [x for _, x in other.evals], rtol=2e-4)
    assert len({member.loss for member in one_by_one}) == 4


@pytest.mark.parametrize("width", [1, 4])
def test_a_member_that_diverges_is_told_of_and_harms_no_neighbour(sweep, width):
    space = {RATE: [1e-3, 1e30, 2e-3], "data_seed": [0]}
    found = sweep(space, {"optimizer": OptimizerConfig("sgd", clip_norm=None), "max_skipped": 3}, width=width).run()
    by_rate = {line["fields"][RATE]: line for line in found.lines}
    assert by_rate[1e30]["status"] == "diverged" and by_rate[1e30]["metric"] is None and by_rate[1e30]["steps"] < 12
    assert all(
        by_rate[rate]["status"] == "complete" and math.isfinite(by_rate[rate]["metric"]) for rate in (1e-3, 2e-3)
    )
    summary = found.summary()
    assert (summary["trials"], summary["complete"], summary["diverged"]) == (3, 2, 1)
    without = sweep({**space, RATE: [1e-3, 2e-3]}, {"optimizer": OptimizerConfig("sgd", clip_norm=None), "max_skipped": 3},
                    width=width, out=str(found.path) + "-2").run()  # fmt: skip
    for line in without.lines:
        np.testing.assert_allclose(
            line["metric"], by_rate[line["fields"][RATE]]["metric"], rtol=0 if width == 1 else 2e-4
        )


def test_groups_are_of_static_fields_and_share_programs(sweep):
    asked = sweep({"optimizer.kind": "adamw,sgd", RATE: "1e-3,2e-3", "steps": "3,5", "optimizer.clip_norm": "1,2"})
    found = groups(asked.planned())
    assert (
        len(found) == 4 and len({group.program_key for group in found}) == 2 and all(len(g.trials) == 4 for g in found)
    )
    switched = sweep({"model.dropout": "None,0.1,0.2"})
    assert [len(group.trials) for group in groups(switched.planned())] == [1, 2]
    assert T.static(asked.base) == T.static(dataclasses.replace(asked.base, seed=9, data_seed=3))


def test_the_plan_is_printed_first_and_plan_only_trains_nothing(sweep):
    said = []
    asked = sweep({RATE: "1e-3,2e-3", "batch_size": "4,8"})
    found = asked.run(said.append, plan_only=True)
    assert not found.lines and not found.path.exists()
    assert said[0] == "4 trials in 2 group(s), 2 to compile"
    assert (
        "group 0: batch_size 4; 2 members by optimizer.learning_rate; 12 steps" in said[1]
        and "MiB a step, width 1" in said[1]
    )
    assert "to compile" in said[-1] and "measured" in said[-1]


def run_until(asked, results_written: int, monkeypatch) -> None:
    """Runs a sweep until it has so many results; then it is interrupted."""
    add, left = results.Folder.add, [results_written]

    def dying(self, line):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        add(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(results.Folder, "add", dying)
        with pytest.raises(KeyboardInterrupt):
            asked.run()


def test_what_is_done_is_kept_and_not_run_again(sweep, monkeypatch):
    asked = sweep({RATE: "1e-3,2e-3,4e-3"}, seeds=2)
    whole = asked.run()
    other = dataclasses.replace(asked, out=f"{asked.out}-cut")
    run_until(other, 4, monkeypatch)
    with open(other.folder / "results.jsonl", "ab") as file:
        file.write(b'{"trial": 4, "fie')  # as a killed process leaves it
    said = []
    found = other.run(said.append)
    assert said[0].startswith("4 of 6 trials are done") and sum(" complete " in one for one in said) == 2

    def plain(lines):
        return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]

    assert plain(found.lines) == plain(whole.lines) == plain(results.read(other.folder))
    assert other.run(said.append).lines == found.lines


def test_the_table_has_a_row_for_every_trial_with_its_fields(sweep):
    found = sweep({RATE: "1e-3,2e-3", "optimizer.clip_norm": "None,1"}, seeds=2).run()
    with open(found.path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == list(range(8))
    for row, line in zip(rows, sorted(found.lines, key=lambda one: one["trial"]), strict=True):
        assert float(row[RATE]) == line["fields"][RATE] and float(row["metric"]) == line["metric"]
        assert row["optimizer.clip_norm"] == ("" if line["fields"]["optimizer.clip_norm"] is None else "1.0")
        assert int(row["seed"]) == line["seed"] == line["fields"]["seed"]
    best = min(found.lines, key=lambda line: line["metric"])
    assert found.best == best and found.summary()["best"]["fields"] == best["fields"]


def test_halving_lets_the_best_go_on(sweep):
    found = sweep({RATE: "log:1e-5:1e-2:9"}, search="halving").run()
    by_steps = {}
    for line in found.lines:
        by_steps.setdefault(line["steps"], []).append(line)
    assert {steps: len(lines) for steps, lines in by_steps.items()} == {1: 6, 4: 2, 12: 1}
    assert all(
        line["status"] == ("complete" if steps == 12 else "stopped")
        for steps, lines in by_steps.items()
        for line in lines
    )
    [best] = by_steps[12]
    assert [step for step, _ in best["rungs"]] == [1, 4, 12]
    at_first = sorted(line["rungs"][0][1] for line in found.lines)
    assert sorted(line["rungs"][0][1] for line in found.lines if line["steps"] > 1) == at_first[:3]
    assert best["metric"] == found.best["metric"]


def test_halving_that_was_cut_off_ends_as_it_would_have(sweep, monkeypatch):
    asked = sweep({RATE: "log:1e-5:1e-2:9"}, search="halving")
    whole = asked.run()
    other = dataclasses.replace(asked, out=f"{asked.out}-cut")
    run_until(other, 3, monkeypatch)
    found = other.run()
    told = [
        {(line["trial"], line["status"], line["steps"], line["metric"]) for line in one.lines} for one in (whole, found)
    ]
    assert told[0] == told[1]


def test_a_population_takes_over_from_its_best(sweep):
    said = []
    found = sweep({RATE: "1e-6,1e-5,5e-3,1e-2"}, search="population", rungs=2, share=0.5).run(said.append)
    assert all(line["status"] == "complete" and line["steps"] == 12 for line in found.lines) and len(found.lines) == 4
    assert sum("goes on from a better one" in one for one in said) == 4
    rates = sorted(line["fields"][RATE] for line in found.lines)
    assert rates[0] > 1e-4 and rates[-1] <= 1e-2  # within the bounds of the space, and none is where the worst began


def test_another_sweep_and_another_process_are_kept_out_of_a_folder(sweep):
    asked = sweep({RATE: "1e-3"}, {"steps": 2})
    asked.run()
    for changes, said in (
        ({"space": {RATE: "2e-3"}}, "holds another sweep: its space"),
        ({"seeds": 2}, "its seeds is 1, and 2 is asked for"),
        ({"base": dataclasses.replace(asked.base, batch_size=8)}, "its base.batch_size is 4, and 8"),
    ):
        with pytest.raises(UserError, match=said):
            dataclasses.replace(asked, **changes).run()
    held = results.Folder(asked.folder, asked.described())
    with pytest.raises(UserError, match="another process runs the sweep"):
        asked.run()
    held.close()
    (asked.folder / "sweep.json").unlink()
    with pytest.raises(UserError, match="has a results.jsonl but no sweep.json"):
        asked.run()
    (asked.folder / "sweep.json").write_text(json.dumps(asked.described()))
    (asked.folder / "results.jsonl").write_text("no result\n")
    with pytest.raises(UserError, match=r"results.jsonl, line 1 is no result of a trial"):
        asked.run()


@pytest.mark.parametrize(
    ("space", "options", "said"),
    [
        ({RATE: "-1"}, {}, "trial 0|learning_rate"),
        ({"batch_size": "4,0"}, {}, "batch_size is 0"),
        ({"seed": "1,2"}, {"seeds": 2}, "seed is given two specs"),
        ({RATE: "log:1e-4:1e-2"}, {}, "a grid needs points"),
        ({RATE: "1"}, {"search": "random"}, "--trials N"),
        ({RATE: "1"}, {"trials": 3}, "goes with other searches than grid"),
        ({RATE: "1"}, {"search": "best"}, "--search is 'best'"),
        ({"model.context": "8,9000"}, {}, "the trials with model.context 9000: the text"),
        ({RATE: "1"}, {"seeds": 0}, "--seeds is 0"),
        ({"patience": "3"}, {}, "patience is 3; a sweep's trials end by their steps"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(sweep, space, options, said):
    if "patience" in space:
        with pytest.raises(UserError, match=said):
            sweep({RATE: "1"}, {"patience": 3}).run()
        return
    with pytest.raises(UserError, match=said):
        sweep(space, **options).run()


def test_what_fits_no_memory_even_alone_is_refused(sweep, monkeypatch):
    from research.sweep import width

    monkeypatch.setattr(width, "memory", lambda: 1000)
    with pytest.raises(UserError, match=r"1 member\(s\) at once take .* lower batch_size"):
        sweep({RATE: "1"}, width=None).run()


@pytest.mark.parametrize(
    ("vmapped", "tried", "best"),
    [
        ([0.6, 0.4, 0.39], ["vmap 1", "threads 2", "threads 4", "vmap 2", "vmap 4", "vmap 8"], "vmap 4"),
        ([0.79], ["vmap 1", "threads 2", "threads 4", "vmap 2"], "threads 2"),
    ],
)
def test_the_width_is_measured_and_remembered(sweep, monkeypatch, tmp_path, vmapped, tried, best):
    from research.sweep import width

    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(width.os, "cpu_count", lambda: 4)
    seconds = {"vmap 1": 1.0, "threads 2": 0.8, "threads 4": 0.78}
    seconds |= {f"vmap {2 << n}": took for n, took in enumerate(vmapped)}
    measured = []

    def measure(program, members, shared, how="vmap"):
        measured.append(f"{how} {members}")
        of = Together(program, members, shared) if how == "vmap" and members > 1 else program
        return width.Measured(of, members, seconds[measured[-1]], 1, 0.0)

    monkeypatch.setattr(width, "measure", measure)
    asked = sweep({RATE: [float(x) for x in range(1, 10)]}, width=None)
    for expected in (tried, [best]):
        execution = Execution(asked, asked.planned(), to_stderr)
        execution.prepare()
        found = execution.width_of(execution.groups[0])
        assert f"{found.how} {found.width}" == best and measured == expected
        measured.clear()


def test_an_error_on_one_thread_ends_all():
    ended = []

    def work(n, stopped):
        if n == 1:
            raise ValueError("the second")
        while not stopped():
            time.sleep(0.01)
        ended.append(n)

    with pytest.raises(ValueError, match="the second"):
        on_threads(work, range(3))
    assert sorted(ended) == [0, 2]


SPREAD = """
import dataclasses, json, sys
from research.sweep import Sweep
from research.sweep.execute import Execution
from research.core import config as C
from research.train.config import Config

base = C.set_values(Config(), json.loads(sys.argv[1]), "base")
rates = [float(x) / 1000 for x in range(1, 7)]
asked = Sweep(base=base, space={"optimizer.learning_rate": rates}, out=sys.argv[2])
found = asked.run(lambda line: None)
execution = Execution(asked, asked.planned(), print)
execution.prepare()
group = execution.groups[0]
width = execution.width_of(group).width
text = execution._together(group).compiled_step.as_text()
kinds = [k for k in ("all-reduce", "all-gather", "collective-permute", "all-to-all", "reduce-scatter") if f" {k}(" in text]
print(json.dumps({"width": width, "kinds": kinds, "metrics": [line["metric"] for line in found.lines]}))
"""


def test_spread_over_devices_members_do_not_talk(sweep, base, run_python, tmp_path):
    values = json.dumps(C.to_dict(base))
    told = json.loads(run_python(SPREAD, values, str(tmp_path / "spread"), devices=4).splitlines()[-1])
    assert told["width"] % 4 == 0 and told["kinds"] == []
    here = sweep({RATE: [float(x) / 1000 for x in range(1, 7)]}).run()
    np.testing.assert_allclose(told["metrics"], [line["metric"] for line in here.lines], rtol=2e-4)


WHOLE = """
import dataclasses, json, sys
from research.core import config as C
from research.core.errors import UserError
from research.sweep import Sweep
from research.train.config import Config

base = dataclasses.replace(C.set_values(Config(), json.loads(sys.argv[1]), "base"), mesh="fsdp=2,tensor=2")
asked = Sweep(base=base, space={"optimizer.learning_rate": [0.001, 0.002]}, out=sys.argv[2])
said = ""
try:
    dataclasses.replace(asked, width=4, out=sys.argv[2] + "-wide").run(lambda line: None)
except UserError as error:
    said = str(error)
print(json.dumps({"said": said, "metrics": [line["metric"] for line in asked.run(lambda line: None).lines]}))
"""


def test_on_a_mesh_of_other_axes_members_take_all_of_it_in_turn(sweep, base, run_python, tmp_path):
    told = json.loads(
        run_python(WHOLE, json.dumps(C.to_dict(base)), str(tmp_path / "whole"), devices=4).splitlines()[-1]
    )
    assert "takes the whole mesh fsdp=2,tensor=2" in told["said"]
    here = sweep({RATE: [0.001, 0.002]}).run()
    np.testing.assert_allclose(told["metrics"], [line["metric"] for line in here.lines], rtol=2e-4)


def test_a_member_tells_of_its_loss():
    trial = Trial(0, {}, T.Config())
    member = Member(trial, program=None, step=3)  # pyright: ignore[reportArgumentType]
    assert member.loss == math.inf
    member.evaluated({"loss": 2.0})
    assert member.loss == 2.0
    member.evaluated({"loss": math.nan})
    assert member.diverged and member.loss == math.inf
