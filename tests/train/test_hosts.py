"""Several processes that train one run, for real: over Gloo, on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import several_processes as several

from research.core import params as P
from research.core.errors import UserError
from research.train import hosts
from research.train.checkpoint import restore_subtree
from research.train.rundir import read_metrics


def losses(run_dir):
    return [(record["step"], record.get("split"), record["loss"]) for record in read_metrics(run_dir)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run by one process with four devices, by two, and by four: (folder, what the processes ended with)."""
    folder, out = tmp_path_factory.mktemp("processes"), {}
    for count in (1, 2, 4):
        out[count] = folder / str(count), several.train(count, 4 // count, folder / str(count), "fsdp=2,tensor=2")
    return out


@pytest.mark.parametrize("count", [1, 2, 4])
def test_all_processes_end_well_and_the_first_tells_the_result(count, runs):
    folder, ended = runs[count]
    assert [code for code, _, _ in ended] == [0] * count, ended[0][2][-2000:]
    assert json.loads(ended[0][1].splitlines()[-1])["steps"] == 8
    assert all('"steps"' not in told and "held-out" not in told for _, told, _ in ended[1:])
    assert [(folder / f"train.{index}.log").exists() for index in range(1, count)] == [True] * (count - 1)


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_are_one(count, runs):
    alone, together = losses(runs[1][0]), losses(runs[count][0])
    assert [record[:2] for record in together] == [record[:2] for record in alone]
    assert [record[2] for record in together] == pytest.approx([record[2] for record in alone], rel=1e-5)


@pytest.mark.parametrize(("count", "devices", "mesh"), [(1, 1, "fsdp=1"), (2, 2, "fsdp=4"), (2, 1, "tensor=2")])
def test_what_four_saved_is_restored_bit_for_bit_by_others(count, devices, mesh, runs):
    words = ["lm_tiny_text", runs[4][0], *several.RUN[2:], "--mesh", mesh]
    script = (str(Path(several.__file__).with_name("restored_on.py")),)
    ended = several.ended(several.start(count, devices, words, script))
    assert [code for code, _, _ in ended] == [0] * count, ended[0][2][-2000:]
    sealed = restore_subtree(runs[4][0] / "checkpoints")
    assert [json.loads(told.splitlines()[-1]) for _, told, _ in ended] == [
        [sealed.step, P.digest(sealed.state)]
    ] * count


def test_four_go_on_where_two_stopped(runs, tmp_path):
    first = several.train(2, 2, tmp_path / "run", "fsdp=2,tensor=2", "--steps", "4")
    then = several.train(4, 1, tmp_path / "run", "fsdp=4")
    assert [code for code, _, _ in [*first, *then]] == [0] * 6, then[0][2][-2000:]
    assert "resumed from step 4" in then[0][1]
    assert [x[2] for x in losses(tmp_path / "run")] == pytest.approx([x[2] for x in losses(runs[1][0])], rel=1e-5)


POISONED = """
import sys, jax, numpy as np
from research import cli
from research.data.loader import Batches
call = Batches.__call__
def batch(self, step):
    made = call(self, step)
    if step == 2 and jax.process_index() == 1:
        made["weights"] = made["weights"].copy()
        made["weights"][2, 0] = np.nan
    return made
Batches.__call__ = batch
sys.exit(cli.main(sys.argv[1:]))
"""


def test_rows_that_are_not_finite_are_named_with_their_process_and_host(tmp_path):
    words = [*several.RUN, "--run-dir", tmp_path / "run", "--mesh", "fsdp=2", "--micro-batches", "2", "--steps", "4"]
    (code, told, errors), (other, _, _) = several.ended(several.start(2, 1, words, ("-c", POISONED)))
    assert code == other == 0, errors
    assert "step 3: the gradient of" in told and f"not finite: row(s) 6 of process 1 on {socket.gethostname()}" in told


def endless(folder, mesh):
    """A run that something else has to end."""
    return [*several.RUN, "--run-dir", folder / "run", "--mesh", mesh, "--steps", "100000", "--eval-every", "100000"]


def wait_for_step(run_dir, step):
    for _ in range(1200):
        if run_dir.exists() and any(record["step"] >= step for record in read_metrics(run_dir)):
            return
        time.sleep(0.1)
    raise AssertionError(f"no step {step} in two minutes")


def test_a_signal_to_one_stops_all_at_one_step_and_the_run_goes_on_from_it(tmp_path):
    processes = several.start(2, 1, endless(tmp_path, "fsdp=2"))
    wait_for_step(tmp_path / "run", 6)
    os.kill(processes[1].pid, signal.SIGTERM)
    ended = several.ended(processes)
    assert [code for code, _, _ in ended] == [128 + signal.SIGTERM] * 2, ended[0][2][-2000:]
    result = json.loads(ended[0][1].splitlines()[-1])
    logs = [(tmp_path / "run" / name).read_text() for name in ("train.log", "train.1.log")]
    assert all(f"stopped by SIGTERM at step {result['steps']} " in log for log in logs)
    more = result["steps"] + 2
    again = several.train(2, 1, tmp_path / "run", "fsdp=2", "--steps", str(more), "--eval-every", "100000")
    assert f"resumed from step {result['steps']} " in again[0][1] and [code for code, _, _ in again] == [0, 0]


def test_when_one_of_four_is_killed_the_others_end_and_a_restart_goes_on(tmp_path):
    processes = several.start(4, 1, endless(tmp_path, "fsdp=4"))
    wait_for_step(tmp_path / "run", 10)
    processes[2].kill()
    ended = several.ended(processes, within=60)
    assert all(code != 0 for code, _, _ in ended)
    saved = max(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdecimal())
    again = several.train(4, 1, tmp_path / "run", "fsdp=4", "--steps", str(saved + 2), "--eval-every", "100000")
    assert [code for code, _, _ in again] == [0] * 4, again[0][2][-2000:]
    assert f"resumed from step {saved} " in again[0][1]


@pytest.mark.parametrize(
    ("option", "values"), [("--optimizer.learning-rate", ("2e-3", "1e-3")), ("--model.remat", ("none", "full"))]
)
def test_processes_that_disagree_end_with_who_does(option, values, tmp_path):
    """In what makes a run another one, and in what merely makes another program of it."""
    words = [*several.RUN, "--run-dir", tmp_path / "run", "--mesh", "fsdp=2"]
    ended = several.ended(several.start(2, 1, words, each=lambda index: (option, values[index])))
    assert [code for code, _, _ in ended] == [2, 2]
    assert all(
        "the processes disagree: process 1 on " in errors and "has config" in errors for _, _, errors in ended
    ), ended[1][2][-500:]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"coordinator": "host:1"}, "together"),
        ({"count": 2, "index": 0}, "together"),
        ({"coordinator": "host:1", "count": 2, "index": 2}, "expected a whole number from 0 to 1"),
        ({"coordinator": "host", "count": 2, "index": 0}, "expected HOST:PORT"),
        ({"heartbeat": 0}, "--heartbeat is 0"),
    ],
)
def test_bad_places_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        hosts.Processes(**given)


def test_what_places_a_process_needs_distributed(call_verb):
    code, _, err = call_verb("train", "lm_tiny_text", "--num-processes", "2")
    assert code == 2 and "without --distributed" in err


def test_a_watchdog_ends_a_process_whose_steps_do_not():
    code = "import time; from research.train.hosts import Watchdog\nwith Watchdog(0.4) as dog:\n    time.sleep(30)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=several.ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == hosts.STUCK
    assert "no step has ended" in done.stderr and "most recent call first" in done.stderr


def test_a_watchdog_that_is_told_lets_be():
    with hosts.Watchdog(0.3) as dog:
        for _ in range(8):
            time.sleep(0.1)
            dog.alive()
    with hosts.Watchdog(None):
        pass
