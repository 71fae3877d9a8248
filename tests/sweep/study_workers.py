"""Two workers on one study, one of them killed: what must hold on every storage."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from optuna.trial import FrozenTrial

from research.sweep import study

FIELDS = (
    "model.layers=1", "model.width=16", "model.heads=2", "model.context=16", "batch_size=2", "steps=400", "eval_every=200", "eval_batches=1",
    "sample_every=None", "optimizer.learning_rate=log:1e-4:1e-1",
)  # fmt: skip
TRIALS, SEEDS = 6, 2


def command(data: Path, url: str, folder: Path, *more: str) -> list[str]:
    """A worker of the study at a storage."""
    options = [
        "--storage",
        url,
        "--study",
        "two workers",
        "--seeds",
        str(SEEDS),
        "--search",
        "tpe",
        "--trials",
        str(TRIALS),
    ]
    words = [
        "sweep",
        "lm_tiny_text",
        *FIELDS,
        f"data=text:{data}",
        *options,
        "--batch",
        "2",
        "--out",
        str(folder),
        "--json",
        *more,
    ]
    return [sys.executable, "-m", "research", *words]


def one_is_killed(data: Path, url: str, folder: Path) -> None:
    """Starts two workers, kills one in the middle of its batch, and checks what the other leaves."""
    first = subprocess.Popen(
        command(data, url, folder / "a"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    taken = _taken_by(first, url)
    second = subprocess.Popen(
        command(data, url, folder / "b"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    out, said = second.communicate(timeout=300)
    assert second.returncode == 0, said
    assert "is taken over" in said, said

    summary = json.loads(out.splitlines()[-1])
    assert summary["trials"] == TRIALS * SEEDS
    assert summary["complete"] == TRIALS * SEEDS
    lines = [json.loads(line) for line in (folder / "b" / "results.jsonl").read_text().splitlines()]
    assert sorted(line["trial"] for line in lines) == list(range(TRIALS * SEEDS))

    trials = _trials(url)
    states = [trial.state.name for trial in trials]
    assert states.count("COMPLETE") == TRIALS
    assert set(states) == {"COMPLETE", "FAIL"}
    assert {trials[number].state.name for number in taken} == {"FAIL"}
    board = study.Board(trials, TRIALS)
    assert sorted(board.over) == list(range(TRIALS))
    again = [board.standing[board.choice_of[number]] for number in taken]
    assert [one.params for one in again] == [trials[number].params for number in taken]


def _taken_by(process: subprocess.Popen, url: str) -> list[int]:
    """The numbers of the trials of the first batch, once it is taken."""
    for _ in range(600):
        time.sleep(0.1)
        assert process.poll() is None, process.communicate()
        running = [one for one in _trials(url) if study.WORKER in one.user_attrs]
        if len(running) == 2:
            return [one.number for one in running]
    raise AssertionError("the worker took no batch in a minute")


def _trials(url: str) -> list[FrozenTrial]:
    """The trials that a storage has, none before there is a study."""
    with study.storage_at(url) as storage:
        try:
            return study.optuna_module().load_study(study_name="two workers", storage=storage).get_trials()
        except KeyError:
            return []
