"""An experiment as a process of its own: killed, signalled, refused, and what it leaves to scripts."""

import contextlib
import dataclasses
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_runs
from tiny_runs import story, until

from research import train
from research.core.errors import UserError
from research.model.config import ModelConfig
from research.train import command, console, experiments, inspection, program
from research.train.rundir import read_metrics

ROOT = Path(__file__).resolve().parents[2]
# An experiment outside of this repository. Its environment makes it slow, or kill itself while it saves.
EXPERIMENT = '''"""A run that can be told when to die.

    python outside.py
"""

import dataclasses
import os
import signal
import time

from research import train
from research.core import chips
from research.model.config import ModelConfig
from research.train.checkpoint import Checkpointer
from research.train.rundir import RunDir


@dataclasses.dataclass(frozen=True)
class Note:
    text: "str"


def after(result):
    return {"note": Note("after").text}


EXPERIMENT = train.Experiment(
    "outside",
    train.Config(
        data=os.environ["TEXT"], tokenizer="char", model=ModelConfig(context=8, width=16, layers=1, heads=2, dropout=0.1),
        optimizer=train.OptimizerConfig(learning_rate=1e-2, schedule=train.ScheduleConfig("constant", 2)),
        steps=40, batch_size=4, log_every=1, eval_every=8, checkpoint_every=5,
    ),
    after=after,
)

if __name__ == "__main__":
    pause, dies_naming, dies_writing = (os.environ.get(name, "0") for name in ("PAUSE", "DIES_NAMING", "DIES_WRITING"))
    write, publish, save = RunDir.write_metrics, Checkpointer._publish, Checkpointer.save

    def slowly(self, record):
        write(self, record)
        print("written", flush=True)
        time.sleep(float(pause))

    def publishing(self, staging, final):
        if int(final.name) == int(dies_naming):
            os.kill(os.getpid(), signal.SIGKILL)
        publish(self, staging, final)

    def saving(self, step, *arguments, **options):
        save(self, step, *arguments, **options)
        if step == int(dies_writing):
            os.kill(os.getpid(), signal.SIGKILL)

    RunDir.write_metrics, Checkpointer._publish, Checkpointer.save = slowly, publishing, saving
    chips.measured_matmul_flops = lambda: 1e11  # which takes a while
    train.main(EXPERIMENT)
'''


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("elsewhere") / "outside.py"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture
def start(script, text_file, tmp_path):
    """`start(*arguments, pause=..., ...)` begins a process whose run directory is `tmp_path / "run"`; none outlives the test."""
    begun = []

    def begin(*arguments, **environment):
        given = {name.upper(): str(value) for name, value in environment.items()}
        begun.append(
            subprocess.Popen(
                [sys.executable, str(script), "--run-dir", str(tmp_path / "run"), *arguments],
                env={**os.environ, "PYTHONPATH": str(ROOT), "TEXT": str(text_file), **given},
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )  # fmt: skip
        )
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


@pytest.fixture
def here(script, text_file, monkeypatch, quick):
    """`here(path, steps) -> (result, story)`: the same experiment, begun or gone on with in this process."""
    monkeypatch.setenv("TEXT", str(text_file))
    experiment = experiments.load(str(script))

    def run(path, steps):
        config = dataclasses.replace(experiment.config, steps=steps, run_dir=str(path))
        return train.fit(dataclasses.replace(experiment, config=config)), story(path)

    return run


def hash_of(run: Path) -> str:
    """The last line of `research inspect RUN --hash`."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert inspection.main([str(run), "--hash"]) == 0
    return out.getvalue().splitlines()[-1]


def test_killed_at_any_moment_and_started_again_it_is_the_run_that_was_never_killed(start, here, tmp_path):
    run, draw = tmp_path / "run", random.Random()
    assert start(dies_naming=10).wait(600) == -signal.SIGKILL  # with all of a checkpoint written but its name
    assert sorted(p.name for p in (run / "checkpoints").glob("0*")) == ["00000005", "00000008"]
    assert any((run / "checkpoints").glob(".saving-*"))
    assert start(dies_writing=20).wait(600) == -signal.SIGKILL  # while one is being written
    process = start(pause=0.02)
    wait_for_a_record(process)
    time.sleep(draw.uniform(0, 0.4))
    process.kill()
    process.wait(600)
    end_by_a_second_interrupt(start(pause=1000))
    result, ours = here(run, 40)
    assert (result.summary["steps"], result.summary["stopped_by"], result.summary["note"]) == (40, "steps", "after")
    assert ours == here(tmp_path / "whole", 40)[1] and hash_of(run) == ours["hash"]


def wait_for_a_record(process):
    assert any(line == "written\n" for line in process.stdout), process.stderr.read()


def end_by_a_second_interrupt(stuck):
    """The first waits for a step that never ends, the second does not."""
    wait_for_a_record(stuck)
    stuck.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert stuck.poll() is None
    began = time.monotonic()
    stuck.send_signal(signal.SIGINT)
    _, err = stuck.communicate(timeout=600)
    assert stuck.returncode == 130 and "ended at once" in err and time.monotonic() - began < 10


def test_signals_save_and_end_it_and_a_second_process_is_refused(start, here, tmp_path):
    run = tmp_path / "run"
    first = start("--json", "--steps", "100000", pause=0.5)
    wait_for_a_record(first)
    second = start("--json", "--steps", "100000")
    out, err = second.communicate(timeout=600)
    assert second.returncode == 2 and out == "" and err.count("\n") == 1
    assert f"is being trained by process {first.pid}" in err
    assert first.poll() is None
    steps = 0
    for process, number, code in ((first, signal.SIGTERM, 143), (None, signal.SIGINT, 130)):
        process = process or start("--json", "--steps", "100000", pause=0.05)
        before = steps
        until(lambda before=before: max([r["step"] for r in read_metrics(run)], default=0) > before + 3)
        process.send_signal(number)
        out, err = process.communicate(timeout=600)
        assert process.returncode == code and "Traceback" not in err, err
        summary = json.loads(out.splitlines()[-1])
        assert summary["stopped_by"] == number.name and summary["steps"] > before + 3 and "note" not in summary
        steps = summary["steps"]
        assert (run / "checkpoints" / f"{steps:08d}" / "manifest.json").exists() and not (run / "status.json").exists()
    assert here(run, steps + 2)[1] == here(tmp_path / "whole", steps + 2)[1]


# -- in this process


@pytest.fixture
def experiment(text_file, tmp_path, quick):
    return train.Experiment("tiny", tiny_runs.config(text_file, run_dir=str(tmp_path / "run"), steps=4))


def run(experiment, *argv):
    return command.run_experiment(experiment, argv, "tiny")


def test_the_last_line_is_the_json_object_and_again_when_it_was_finished(experiment, capsys):
    assert run(experiment, "--json") == 0
    first = capsys.readouterr().out.splitlines()
    summary = json.loads(first[-1])
    names = {
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
    assert summary.keys() >= names and None not in [summary[name] for name in names]
    assert run(experiment, "--json") == 0
    again = capsys.readouterr().out.splitlines()
    assert json.loads(again[-1]) == summary and len(again) == 2 and "nothing to train" in again[0]
    assert run(experiment) == 0
    assert "{" not in capsys.readouterr().out


def test_overrides_reach_the_run(experiment, tmp_path, capsys):
    argv = [
        "--steps",
        "2",
        "--seed",
        "3",
        "--eval-every",
        "1",
        "--checkpoint-every",
        "1",
        "--batch-size",
        "8",
        "--target-loss",
        "0.5",
    ]
    argv += [
        "--run-dir",
        str(tmp_path / "other"),
        "--log-every=1",
        "--sample-every",
        "None",
        "--optimizer.learning-rate",
        "0.5",
    ]
    assert run(experiment, *argv) == 0
    stored = json.loads((tmp_path / "other" / "config.json").read_text())["config"]
    assert (stored["steps"], stored["seed"], stored["eval_every"], stored["checkpoint_every"]) == (2, 3, 1, 1)
    assert (stored["batch_size"], stored["target_loss"], stored["optimizer"]["learning_rate"]) == (8, 0.5, 0.5)
    assert [(r["step"], r["split"]) for r in read_metrics(tmp_path / "other")] == [
        (1, "train"),
        (1, "eval"),
        (2, "train"),
        (2, "eval"),
    ]
    assert read_metrics(tmp_path / "other")[0]["tokens"] == 64 and "sample" not in capsys.readouterr().out


def test_what_comes_after_joins_the_summary_and_the_status(experiment, tmp_path, capsys):
    experiment = dataclasses.replace(experiment, after=lambda result: {"seen": result.summary["steps"] * 10})
    assert run(experiment, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["seen"] == 40
    assert json.loads((tmp_path / "run" / "status.json").read_text())["result"]["seen"] == 40


def test_a_config_prints_and_reads_back(experiment, tmp_path, capsys):
    def printed(*argv):
        assert run(experiment, "--print-config", *argv) == 0
        return capsys.readouterr().out

    changed = [
        "--optimizer.kind",
        "lion",
        "--model.patterns",
        "sliding",
        "full",
        "--max-tokens",
        "99",
        "--optimizer.clip-norm",
        "None",
    ]
    text = printed(*changed)
    config = json.loads(text)
    assert (config["optimizer"]["kind"], config["model"]["patterns"], config["max_tokens"]) == (
        "lion",
        ["sliding", "full"],
        99,
    )
    (tmp_path / "config.json").write_text(text)
    assert printed("--config", str(tmp_path / "config.json")) == text == printed(f"--config={tmp_path / 'config.json'}")
    assert json.loads(printed("--seed", "5", "--config", str(tmp_path / "config.json")))["seed"] == 5
    assert json.loads(printed("--json", *changed)) == config and printed("--json").count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_s_own_config_repeats_it(experiment, tmp_path, capsys):
    assert run(experiment, "--optimizer.learning-rate", "0.03", "--seed", "7") == 0
    plain = train.Experiment("plain", train.Config())
    argv = ["--config", str(tmp_path / "run" / "config.json"), "--run-dir", str(tmp_path / "again")]
    assert run(plain, *argv) == 0
    assert story(tmp_path / "again") == story(tmp_path / "run")
    (tmp_path / "part.json").write_text('{"optimizer": {"schedule.warmup_steps": 3}, "steps": 3}')
    capsys.readouterr()
    assert run(experiment, "--config", str(tmp_path / "part.json"), "--print-config") == 0
    config = json.loads(capsys.readouterr().out)
    assert (config["optimizer"]["schedule"]["warmup_steps"], config["steps"], config["batch_size"]) == (3, 3, 4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("{", "is not JSON"),
        ("[1]", "holds list"),
        (b"\xff{}", "is not JSON"),
        ('{"stepz": 3}', "there is no field 'stepz'; did you mean 'steps'?"),
        ('{"config": {"optimizer": {"kind": "adamw2"}}}', "optimizer.kind is 'adamw2'; expected one of sgd"),
        ('{"steps": "3"}', "steps is '3'; expected a whole number"),
        ('{"steps": 0}', "steps is 0; expected a whole number of at least 1"),
        ('{"batch_size": 6, "micro_batches": 4}', "micro_batches is 4; expected a divisor of batch size 6"),
    ],
)
def test_a_config_file_that_cannot_be_used_is_one_line(experiment, tmp_path, content, words):
    file = tmp_path / "given.json"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        run(experiment, "--config", str(file), "--print-config")
    assert words in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="--config is given no value"):
        run(experiment, "--config")


def test_signals_outside_of_training_are_exit_codes():
    def interrupt():
        signal.raise_signal(signal.SIGINT)
        return 0

    def terminate():
        signal.raise_signal(signal.SIGTERM)
        return 0

    before, interrupts = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        # Ignored is how a script's shell starts a background job.
        for handler in (signal.default_int_handler, signal.SIG_IGN):
            signal.signal(signal.SIGINT, handler)
            assert command.guarded(interrupt, False) == 130
            assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, interrupts)
    with pytest.raises(SystemExit) as ended:
        command.guarded(terminate, False)
    assert ended.value.code == 143 and signal.getsignal(signal.SIGTERM) is before


def test_one_line_or_with_debug_a_traceback(capsys):
    def fail():
        raise UserError("first line\n  second line")

    assert command.guarded(fail, False) == 2
    assert capsys.readouterr().err == "error: first line second line\n"
    assert command.guarded(fail, True) == 2
    assert "Traceback" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):  # our own mistakes are not the user's
        command.guarded(lambda: 1 // 0, False)


@pytest.mark.parametrize("profile", ["3", "a:b", "3:3", "5:2", "-1:3", ":", "1:2:3"])
def test_a_profile_is_two_steps(experiment, profile):
    with pytest.raises(UserError, match="expected FIRST:LAST"):
        run(experiment, f"--profile={profile}", "--print-config")


# -- what a person sees


def test_lines_without_a_terminal_and_a_bar_on_one(capsys, monkeypatch):
    record = {"loss": 2.5, "tokens_per_second": 12345.0, "mfu": 0.125}
    for terminal in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal, raising=False)
        logged = []
        with contextlib.closing(console.Console(100, 0, logged.append)) as shown:
            shown.say("a [line]")
            shown.progress(10, record, 75.0)
        out = capsys.readouterr().out
        assert logged == ["a [line]", "step 10  loss 2.5000  12.3k tokens/s  mfu 12.5%  1m15s left"]
        assert "a [line]" in out and ("step 10/100" in out) == (not terminal) or "10/100" in out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0s"), (4.23, "4.2s"), (59.94, "59.9s"), (75, "1m15s"), (3599.7, "1h00m"), (7384, "2h03m")],
)
def test_durations(seconds, text):
    assert console.duration(seconds) == text


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0"), (999, "999"), (1234, "1.23k"), (1_234_567, "1.23M"), (2e9, "2B"), (3.5e12, "3.5T")]
)
def test_counts(n, text):
    assert console.count(n) == text


@pytest.mark.parametrize(
    ("options", "sizes", "message"),
    [
        ({"width": 60}, {"fsdp": 8}, "fsdp=8 does not divide the model's width .60."),
        ({"heads": 4}, {"tensor": 8}, "tensor=8 does not divide the model's heads .4."),
        ({"mlp_width": 100}, {"tensor": 8, "data": 2}, "channels of a dense feed-forward"),
        ({}, {"expert": 2}, "the model's experts .none."),
        ({"feed_forward": ("moe",)}, {"expert": 3}, "expert=3 does not divide the model's experts .8."),
    ],
)
def test_a_mesh_that_does_not_divide_the_model_is_refused(options, sizes, message):
    with pytest.raises(UserError, match=message):
        program.check_axes(
            ModelConfig(**{"width": 64, "heads": 8 if "heads" not in options else 4, "head_size": 8, **options}), sizes
        )


@pytest.mark.parametrize(
    ("options", "said"), [({"mesh": "member=1"}, "members of a sweep"), ({"run_dir": "gs://a/b"}, "give a folder")]
)
def test_what_no_run_alone_can_have_is_refused(options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        train.fit(train.Config(**options))
    assert not list(tmp_path.iterdir())
