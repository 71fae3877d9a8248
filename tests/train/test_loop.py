"""The loop in one process: what it writes, when it stops, and that no interruption changes what comes out."""

import dataclasses
import json
import math
import signal
import socket
import warnings

import jax
import numpy as np
import pytest
import tiny_runs
from tiny_runs import ADAMW, Killed, interrupted, story

from research import train
from research.core import params as P
from research.core.errors import UserError
from research.data.loader import Batches
from research.train import loop, program, rundir
from research.train.checkpoint import restore_subtree, steps_in
from research.train.optim import OptimizerConfig, ScheduleConfig

pytestmark = pytest.mark.usefixtures("quick")
TRAIN_FIELDS = {
    "step", "split", "time", "loss", "grad_norm", "learning_rate", "update_ratio", "skipped", "tokens", "tokens_per_second", "mfu",
    "data_stall",
}  # fmt: skip
SUMMARY = {
    "steps",
    "tokens",
    "wall_seconds",
    "train_loss",
    "eval_loss",
    "bits_per_byte",
    "params",
    "run_dir",
    "stopped_by",
}
KINDS = {
    "adamw, dropout": ADAMW,
    "muon, average": OptimizerConfig(
        kind="muon", learning_rate=1e-2, ema_decay=0.9, schedule=ScheduleConfig("linear", 2)
    ),
    "schedule-free": OptimizerConfig(
        kind="schedule-free-adamw", learning_rate=1e-2, schedule=ScheduleConfig("constant", 2)
    ),
}


@pytest.fixture
def config(text_file):
    return tiny_runs.config(text_file)


def fit(config, path, **changes):
    return train.fit(dataclasses.replace(config, run_dir=str(path), **changes))


@pytest.fixture(scope="module")
def whole(text_file, tmp_path_factory):
    """`whole(kind) -> (result, path)` of the run that nothing interrupted, made once for each kind of optimiser."""
    runs = {}

    def of(kind="adamw, dropout"):
        if kind not in runs:
            path = tmp_path_factory.mktemp("whole") / "run"
            with tiny_runs.sharing():
                runs[kind] = fit(tiny_runs.config(text_file, optimizer=KINDS[kind]), path), path
        return runs[kind]

    return of


def test_steps_that_are_read_together_are_logged_as_equally_fast(config, tmp_path):
    fit(config, tmp_path / "run", steps=8, log_every=1, checkpoint_every=2, eval_every=8)
    rates = {
        record["step"]: record["tokens_per_second"]
        for record in rundir.read_metrics(tmp_path / "run")
        if record["split"] == "train"
    }
    assert list(rates) == list(range(1, 9))
    for step in range(1, 8, 2):  # one step stays in flight, and a checkpoint waits for it
        assert rates[step] == rates[step + 1]


def test_metrics_hold_every_logged_step_and_evaluation(whole, config):
    result, path = whole()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (path / "metrics.jsonl").read_text().splitlines()]
    trained, evaluated = ([r for r in lines if r["split"] == split] for split in ("train", "eval"))
    assert len(trained) + len(evaluated) == len(lines)
    assert [r["step"] for r in trained] == [2, 4, 6, 8, 10, 12] and [r["step"] for r in evaluated] == [5, 10, 12]
    assert [r["step"] for r in lines] == sorted(r["step"] for r in lines)
    assert all(r.keys() == TRAIN_FIELDS for r in trained)
    assert all(r.keys() == {"step", "split", "time", "loss", "bits_per_byte"} for r in evaluated)
    assert all(isinstance(x, (int, float)) for r in lines for name, x in r.items() if name != "split")
    times = [r["time"] for r in lines]
    assert times == sorted(times) and times[0] > 0
    assert [r["tokens"] for r in trained] == [4 * 8 * r["step"] for r in trained]
    assert [r["learning_rate"] for r in trained] == pytest.approx([1e-2] * 6)
    assert all(0 < r["update_ratio"] < 1 and r["mfu"] > 0 for r in trained)
    assert evaluated[-1]["loss"] < evaluated[0]["loss"] < math.log(25)


def test_the_summary_is_the_contract_for_scripts(whole, config):
    result, path = whole()
    summary, text = result.summary, result.program.held_out_text[0]
    assert summary.keys() >= SUMMARY
    assert (summary["steps"], summary["tokens"], summary["stopped_by"], summary["run_dir"]) == (
        12,
        12 * 4 * 8,
        "steps",
        str(path),
    )
    assert (
        summary["params"] == P.count(result.program.specs) == sum(x.size for x in jax.tree.leaves(result.state.params))
    )
    last = {r["split"]: r for r in rundir.read_metrics(path)}
    assert (summary["train_loss"], summary["eval_loss"]) == (last["train"]["loss"], last["eval"]["loss"])
    scored = len(result.program.corpus.eval) - 1
    assert summary["bits_per_byte"] == pytest.approx(summary["eval_loss"] * scored / len(text) / math.log(2))
    assert summary["wall_seconds"] >= summary["train_seconds"] > 0
    assert json.loads((path / "status.json").read_text())["result"] == summary


def test_samples_come_with_their_prompt_at_their_cadence(whole):
    samples = rundir.read_samples(whole()[1])
    assert [step for step, _ in samples] == [0, 6, 12]
    assert all(text.startswith("alpha ") and len(text) == len("alpha ") + 4 for _, text in samples)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"keep_last": 1, "eval_every": 100}, [12]),
        ({"keep_last": 2, "eval_every": 100}, [8, 12]),
        ({"keep_last": 1, "keep_every": 8, "eval_every": 100}, [8, 12]),
        ({"keep_last": 1, "checkpoint_every": 100, "steps": 12, "eval_every": 5}, [12]),  # the best is the last
    ],
)
def test_checkpoints_stay_by_the_policy(config, tmp_path, changes, kept):
    fit(config, tmp_path, **changes)
    assert steps_in(tmp_path / "checkpoints") == kept


def test_checkpoints_are_also_made_by_the_clock_and_change_nothing(config, whole, tmp_path):
    fit(config, tmp_path, checkpoint_minutes=1e-9, checkpoint_every=100, eval_every=100, keep_last=100)
    assert steps_in(tmp_path / "checkpoints") == list(range(1, config.steps + 1))


def test_replicas_are_compared_at_their_cadence(config, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(program.Program, "check_replicas", lambda self, state: seen.append(int(state.step)))
    fit(config, tmp_path, check_replicas_every=5, steps=12)
    assert seen == [5, 10]


def test_the_best_checkpoint_stays(config, tmp_path, monkeypatch):
    losses = iter([3.0, 2.0, 2.5, 2.6])
    monkeypatch.setattr(program.Program, "evaluate", lambda *_, **__: {"loss": next(losses)})
    result = fit(config, tmp_path, eval_every=3, checkpoint_every=4, keep_last=1)
    assert steps_in(tmp_path / "checkpoints") == [6, 12]
    assert (result.summary["best_eval_loss"], result.summary["best_step"], result.summary["eval_loss"]) == (2.0, 6, 2.6)


# -- stopping


@pytest.mark.parametrize(
    ("changes", "stopped_by", "steps"),
    [
        ({"steps": 3}, "steps", 3),
        ({"max_tokens": 5 * 32 - 1}, "max_tokens", 5),
        ({"max_seconds": 7.0}, "max_seconds", 7),
        ({"max_seconds": 1e-9}, "max_seconds", 0),
        ({"target_loss": 100.0}, "target_loss", 5),
        ({"target_loss": 0.1}, "steps", 12),
        ({"patience": 2, "eval_every": 2, "optimizer": dataclasses.replace(ADAMW, learning_rate=0.0)}, "patience", 6),
    ],
)
def test_every_stop_condition(config, tmp_path, monkeypatch, changes, stopped_by, steps):
    monkeypatch.setattr(loop.Loop, "seconds", lambda self: float(self.step) + 1e-6)
    summary = fit(config, tmp_path, **changes).summary
    assert (summary["stopped_by"], summary["steps"], summary["tokens"]) == (stopped_by, steps, steps * 32)
    assert summary["eval_loss"] is not None and (summary["train_loss"] is not None) == (steps > 0)
    assert steps_in(tmp_path / "checkpoints")[-1] == steps
    assert [r["step"] for r in rundir.read_metrics(tmp_path) if r["split"] == "eval"][-1] == steps
    monkeypatch.setattr(program.Program, "step", None)  # over: started again it needs no step
    assert fit(config, tmp_path, **changes).summary == summary


def test_seconds_add_up_over_resumptions(config, tmp_path):
    with interrupted() as stop:
        stop.signal_at(4)
        before = fit(config, tmp_path).summary["train_seconds"]
    after = fit(config, tmp_path).summary["train_seconds"]
    times = [r["time"] for r in rundir.read_metrics(tmp_path)]
    assert after > before > 0 and times == sorted(times)


# -- what is not finite


def poison(monkeypatch, steps):
    """Batches of these steps (from 0) hold a weight that is not a number."""
    call = Batches.__call__

    def batch(self, step):
        made = call(self, step)
        if step in steps:
            made["weights"] = made["weights"].copy()
            made["weights"][0, 0] = np.nan
        return made

    monkeypatch.setattr(Batches, "__call__", batch)


def test_steps_that_are_not_finite_are_skipped_and_in_a_row_end_the_run(config, tmp_path, monkeypatch, capsys):
    fit(config, tmp_path / "good", steps=3)
    poison(monkeypatch, range(3, 100))
    bad = dataclasses.replace(config, max_skipped=4, run_dir=str(tmp_path / "bad"))
    code = train.command.run_experiment(train.Experiment("bad", bad), ["--json"], "bad")
    out, err = capsys.readouterr()
    summary = json.loads(out.splitlines()[-1], parse_constant=pytest.fail)
    assert (
        code == 2
        and summary["stopped_by"] == "non_finite"
        and summary["train_loss"] is None
        and summary["skipped"] >= 4
    )
    assert err.count("\n") == 1 and "4 steps in a row were not finite" in err and str(tmp_path / "bad") in err
    assert (
        "step 4: the gradient of decoder/0/0/attention" in out
        and f"(4 in a row); not finite: row(s) 0 of process 0 on {socket.gethostname()}" in out
    )
    good, last = (restore_subtree(tmp_path / name / "checkpoints", "params") for name in ("good", "bad"))
    assert P.digest(last.state) == P.digest(good.state) and last.step == summary["steps"]
    assert [r["loss"] for r in rundir.read_metrics(tmp_path / "bad") if r["split"] == "train"][1] is None
    assert not (tmp_path / "bad" / "status.json").exists()


def test_a_few_steps_that_are_not_finite_are_passed_over(config, tmp_path, monkeypatch):
    poison(monkeypatch, {1, 2, 6, 7, 8})
    result = fit(config, tmp_path, max_skipped=4)
    assert (result.summary["stopped_by"], result.summary["skipped"], result.summary["steps"]) == ("steps", 5, 12)
    assert result.state.opt.count == 7
    assert all(bool(np.isfinite(x).all()) for x in jax.tree.leaves(result.state.params))


# -- going on


def finish(config, path, limit=40):
    """Starts the run until it is over; returns how often."""
    for start in range(1, limit):
        if fit(config, path).summary["stopped_by"] == "steps":
            return start
    raise AssertionError("it never ends")


def test_a_signal_after_every_single_step_changes_nothing(config, whole, tmp_path):
    for step in range(1, 13):
        with interrupted() as stop:
            stop.signal_at(step, signal.SIGTERM if step % 2 else signal.SIGINT)
            summary = fit(config, tmp_path).summary
        assert (summary["stopped_by"], summary["steps"]) == ("SIGTERM" if step % 2 else "SIGINT", step)
        assert steps_in(tmp_path / "checkpoints")[-1] == step and summary["train_loss"] is not None
        assert not (tmp_path / "status.json").exists()
    assert fit(config, tmp_path).summary["eval_loss"] == whole()[0].summary["eval_loss"]
    assert story(tmp_path) == story(whole()[1])


@pytest.mark.parametrize("kind", list(KINDS))
def test_resumed_runs_equal_uninterrupted_ones(config, whole, tmp_path, kind):
    config = dataclasses.replace(config, optimizer=KINDS[kind])
    with interrupted() as stop:
        stop.signal_at(7)
        assert fit(config, tmp_path).summary["stopped_by"] == "SIGTERM"
    with interrupted() as stop:
        stop.kill_after_write(3)
        with pytest.raises(Killed):
            fit(config, tmp_path)
    resumed, (expected, path) = fit(config, tmp_path), whole(kind)
    assert story(tmp_path) == story(path)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, expected.state)
    for name in SUMMARY - {"run_dir", "wall_seconds"}:
        assert resumed.summary[name] == expected.summary[name], name


def test_killed_after_every_write_in_turn_changes_nothing(config, whole, tmp_path):
    kills = 0
    for n in range(1, 30):
        with interrupted() as stop:
            stop.kill_after_write(n)
            try:
                fit(config, tmp_path)
                break
            except Killed:
                kills += 1
    assert kills >= 5 and story(tmp_path) == story(whole()[1])


def test_a_kill_while_what_a_signal_left_is_made_up_for_repeats_nothing(config, whole, tmp_path):
    with interrupted() as stop:
        stop.signal_at(5)  # before its evaluation
        fit(config, tmp_path)
    assert [r["split"] for r in rundir.read_metrics(tmp_path)] == ["train", "train"]
    with interrupted() as stop, pytest.raises(Killed):
        stop.kill_after_write(1)  # after it
        fit(config, tmp_path)
    assert rundir.read_metrics(tmp_path)[-1]["step"] == 5
    fit(config, tmp_path)
    assert story(tmp_path) == story(whole()[1])


def test_a_signal_cuts_an_evaluation_short(config, whole, tmp_path):
    with interrupted() as stop:
        stop.signal_in_evaluation()
        summary = fit(config, tmp_path).summary
    assert (summary["stopped_by"], summary["steps"], summary["eval_loss"]) == ("SIGTERM", 5, None)
    fit(config, tmp_path)
    assert story(tmp_path) == story(whole()[1])


def test_a_signal_in_the_last_evaluation_is_a_signal(config, tmp_path):
    with interrupted() as stop:
        stop.signal_in_evaluation(signal.SIGINT)
        assert fit(config, tmp_path, max_tokens=3 * 32).summary["stopped_by"] == "SIGINT"
    assert fit(config, tmp_path, max_tokens=3 * 32).summary["stopped_by"] == "max_tokens"
    assert [r["step"] for r in rundir.read_metrics(tmp_path) if r["split"] == "eval"] == [3]


def test_killed_while_saving_goes_on_from_the_checkpoint_before(config, whole, tmp_path):
    with interrupted() as stop, pytest.raises(Killed):
        stop.kill_in_save(8)
        fit(config, tmp_path)
    assert steps_in(tmp_path / "checkpoints") == [4, 5]  # the last two: the best is the one of step 5
    fit(config, tmp_path)
    assert story(tmp_path) == story(whole()[1])


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(config, whole, tmp_path, capsys):
    with interrupted() as stop:
        stop.signal_at(9)
        fit(config, tmp_path)
    newest = tmp_path / "checkpoints" / "00000009"
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1] + b"x")
    capsys.readouterr()
    fit(config, tmp_path)
    out, err = capsys.readouterr()
    assert "checkpoint 9 is damaged" in err and "using checkpoint 8" in err and "resumed from step 8" in out
    assert story(tmp_path) == story(whole()[1])


def test_a_finished_run_trains_nothing_until_it_is_given_more_steps(config, whole, tmp_path, monkeypatch):
    short = fit(config, tmp_path, steps=8)
    assert short.summary["stopped_by"] == "steps"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Loop", None)
        again = fit(config, tmp_path, steps=8)
    assert again.summary == short.summary and again.state is None
    fit(config, tmp_path)  # 12 steps, at a constant rate
    ours, expected = story(tmp_path), story(whole()[1])
    ours["metrics"] = [r for r in ours["metrics"] if (r["step"], r["split"]) != (8, "eval")]  # the end that it was
    assert ours == expected


def test_fewer_steps_than_done_end_at_once(config, tmp_path):
    fit(config, tmp_path)
    summary = fit(config, tmp_path, steps=5).summary
    assert (summary["steps"], summary["stopped_by"]) == (12, "steps")


def test_a_schedule_that_ends_refuses_more_steps_unless_its_end_was_named(config, tmp_path):
    linear = KINDS["muon, average"]
    fit(config, tmp_path / "a", optimizer=linear, steps=4)
    with pytest.raises(UserError, match=r"optimizer\.schedule\.horizon: 4 there, 8 now"):
        fit(config, tmp_path / "a", optimizer=linear, steps=8)
    named = dataclasses.replace(linear, schedule=ScheduleConfig("linear", 2, horizon=8))
    fit(config, tmp_path / "b", optimizer=named, steps=4)
    assert fit(config, tmp_path / "b", optimizer=named, steps=8).summary["steps"] == 8


def test_another_config_is_refused_by_its_differing_fields(config, tmp_path, text_file):
    fit(config, tmp_path, steps=2)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"}
    other = text_file.with_name("other.txt")
    other.write_text(text_file.read_text() + "more")
    changes = {"seed": 1, "batch_size": 2, "model": dataclasses.replace(config.model, width=32), "data": str(other)}
    with pytest.raises(UserError) as error:
        fit(config, tmp_path, **changes)
    for name in ("seed: 0 there, 1 now", "batch_size: 4 there, 2 now", "model.width: 16 there, 32 now", "data: "):
        assert name in str(error.value)
    assert "learning_rate" not in str(error.value)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"} == before
    free = {"eval_every": 1, "log_every": 1, "checkpoint_every": 1, "prefetch": 1, "sample_every": None, "keep_last": 1}
    assert fit(config, tmp_path, steps=4, **free).summary["steps"] == 4


def test_resume_can_be_refused_and_a_run_begun_afresh(config, whole, tmp_path):
    with interrupted() as stop:
        stop.signal_at(3)
        fit(config, tmp_path)
    here = dataclasses.replace(config, run_dir=str(tmp_path))
    with pytest.raises(UserError, match="already holds a run"):
        train.fit(here, resume=False)
    assert train.fit(here, fresh=True).summary["steps"] == 12
    assert story(tmp_path) == story(whole()[1])


def test_a_moved_text_is_the_same_text(config, whole, tmp_path, text_file):
    fit(config, tmp_path / "run", steps=4)
    moved = tmp_path / "moved.txt"
    moved.write_bytes(text_file.read_bytes())
    fit(config, tmp_path / "run", data=f"text:{moved}")
    assert story(tmp_path / "run")["hash"] == story(whole()[1])["hash"]


def test_the_order_of_data_and_the_weights_follow_the_seed(config, whole, tmp_path):
    again, other = fit(config, tmp_path / "a"), fit(config, tmp_path / "b", seed=1)
    assert story(tmp_path / "a") == story(whole()[1])
    assert other.summary["train_loss"] != again.summary["train_loss"]


# -- what may go wrong, and what is looked at


def test_a_corpus_too_short_for_one_context_leaves_nothing_behind(config, tmp_path):
    with pytest.raises(UserError, match=r"fewer than one context"):
        fit(config, tmp_path / "run", model=dataclasses.replace(config.model, context=100_000))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error",
    [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nmore"), MemoryError()],
)
def test_out_of_memory_says_what_to_lower(config, tmp_path, monkeypatch, error):
    def step(*_):
        raise error

    monkeypatch.setattr(program.Program, "step", step)
    monkeypatch.setattr(tiny_runs, "_programs", {})
    with pytest.raises(UserError) as explained:
        fit(config, tmp_path)
    for word in (
        "out of memory",
        "--batch-size",
        "--micro-batches",
        "--sequence-length",
        "--model.remat",
        "--task.head-tile",
        "--mesh",
    ):
        assert word in str(explained.value)
    assert "\n" not in str(explained.value) and explained.value.__cause__ is error


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("INTERNAL: broken"), ValueError("RESOURCE_EXHAUSTED")])
def test_other_errors_are_themselves(error):
    assert loop.out_of_memory(error) is None


def test_a_profile_is_a_trace_of_its_steps(config, tmp_path, monkeypatch):
    window = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: window.append(("start", path)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: window.append(("stop", None)))
    steps = []
    with interrupted() as stop:
        stop.around(loop.Loop, "take", lambda running: steps.append((running.step, len(window))))
        train.fit(dataclasses.replace(config, run_dir=str(tmp_path), steps=6), profile=(1, 3))
    assert window == [("start", str(tmp_path / "profile")), ("stop", None)]
    assert [n for _, n in steps[:6]] == [0, 1, 1, 2, 2, 2]  # steps 1 and 2, counted from 0, lie within


def test_a_profile_lies_in_the_run_directory(config, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train.fit(dataclasses.replace(config, run_dir=str(tmp_path), steps=2, sample_every=None), profile=(1, 9))
    traces = list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert traces and traces[0].stat().st_size > 0


def test_what_is_printed_is_logged(config, tmp_path, capsys):
    fit(config, tmp_path, steps=4)
    out, log = capsys.readouterr().out, (tmp_path / "train.log").read_text()
    for line in out.splitlines():
        assert line.replace("/4  ", "  ") in log or line in log, line
    assert "parameters" in log and "held-out loss" in log and "tokens/s" in log and "stopped by steps" in log
