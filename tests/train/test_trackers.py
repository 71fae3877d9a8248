"""Trackers get the records of metrics.jsonl, and one that is down is left out without stopping anything."""

import dataclasses
import importlib.machinery
import sys
import types

import pytest
import tiny_runs

from research import train
from research.core.errors import UserError
from research.train import rundir, trackers

RECORD = {"step": 3, "split": "train", "time": 1.5, "loss": 2.0, "tokens": 96, "note": "text"}


class Board:
    """Stands for a tracker's module: takes what it is given, and fails on request."""

    def __init__(self, name, fail_at=None, fail_to_open=False):
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)  # a module that was imported has one
        self.__name__, self.fail_at, self.fail_to_open = name, fail_at, fail_to_open
        self.opened, self.seen, self.flushed = None, [], 0

    def init(self, **given):
        if self.fail_to_open:
            raise ConnectionError("no route to host")
        self.opened = given

    def log(self, values, step):
        if step == self.fail_at:
            raise TimeoutError("the service is down")
        self.seen.append((step, values))

    def summary_writer(self, folder):  # tensorboardX
        self.opened = folder
        return types.SimpleNamespace(add_scalar=lambda *scalar: self.seen.append(scalar), flush=self.flush)

    def flush(self):
        self.flushed += 1


@pytest.fixture
def install(monkeypatch):
    def put(name, **how):
        board = Board(name, **how)
        board.SummaryWriter = board.summary_writer
        monkeypatch.setitem(sys.modules, name, board)
        return board

    return put


def start(names, folder, warnings=None):
    return trackers.start(names, folder, "run", {"steps": 4}, pytest.fail if warnings is None else warnings.append)


def test_tensorboard_gets_every_number_under_its_split(install, tmp_path):
    board = install("tensorboardX")
    start(("tensorboard",), tmp_path)(RECORD)
    assert board.opened == str(tmp_path / "tensorboard") and board.flushed == 1
    assert board.seen == [("train/loss", 2.0, 3), ("train/tokens", 96, 3)]


@pytest.mark.parametrize(("name", "folder"), [("wandb", True), ("trackio", False)])
def test_loggers_get_the_config_and_every_number(install, tmp_path, name, folder):
    board = install(name)
    start((name,), tmp_path)({**RECORD, "split": "eval"})
    given = {"project": "purestep", "name": "run", "config": {"steps": 4}}
    assert board.opened == {**given, "dir": str(tmp_path)} if folder else given
    assert board.seen == [(3, {"eval/loss": 2.0, "eval/tokens": 96})]


def test_one_that_is_not_installed_is_named_with_its_remedy(install, monkeypatch):
    install("trackio")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb is not installed; pip install 'purestep\[wandb\]'"):
        trackers.require(("trackio", "wandb"))


def test_one_that_cannot_be_opened_is_left_out(install, tmp_path):
    up, _ = install("trackio"), install("wandb", fail_to_open=True)
    warnings = []
    start(("wandb", "trackio"), tmp_path, warnings)(RECORD)
    assert warnings == ["tracker wandb is left out: no route to host"] and len(up.seen) == 1


def test_one_that_fails_is_named_once_and_left_out_from_then_on(install, tmp_path):
    down, up = install("wandb", fail_at=4), install("trackio")
    warnings = []
    write = start(("wandb", "trackio"), tmp_path, warnings)
    for step in (3, 4, 5):
        write({**RECORD, "step": step})
    assert warnings == ["tracker wandb is left out from step 4: the service is down"]
    assert [step for step, _ in down.seen] == [3] and [step for step, _ in up.seen] == [3, 4, 5]


def test_no_tracker_is_no_work(tmp_path):
    start((), tmp_path)(RECORD)


def test_a_run_feeds_its_trackers_and_outlives_them(install, quick, text_file, tmp_path, capsys):
    down, up = install("wandb", fail_at=5), install("trackio")
    config = tiny_runs.config(text_file, trackers=("wandb", "trackio"), run_dir=str(tmp_path / "run"), steps=6)
    result = train.fit(train.Experiment("named", config))
    written = rundir.read_metrics(tmp_path / "run")
    assert [step for step, _ in up.seen] == [r["step"] for r in written] == [2, 4, 5, 6, 6]
    assert [step for step, _ in down.seen] == [
        2,
        4,
    ] and "tracker wandb is left out from step 5" in capsys.readouterr().err
    assert up.opened["name"] == "named" and up.opened["config"]["steps"] == 6
    assert result.summary["stopped_by"] == "steps"


def test_a_tracker_that_is_missing_stops_a_run_before_it_trains(monkeypatch, quick, text_file, tmp_path):
    monkeypatch.setitem(sys.modules, "trackio", None)
    config = tiny_runs.config(text_file, trackers=("trackio",), run_dir=str(tmp_path / "run"))
    with pytest.raises(UserError, match="trackio is not installed"):
        train.fit(config)
    assert not (tmp_path / "run").exists()
    assert train.fit(dataclasses.replace(config, trackers=(), steps=2)).summary["steps"] == 2
