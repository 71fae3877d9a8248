"""The protocol between a benchmark and its sides, against sides that misbehave."""

import dataclasses

import psutil
import pytest
from fake_sides import side

from research.bench import process, worker
from research.bench.process import Side, started, tokens_per_second
from research.core.errors import UserError


def test_a_side_is_built_and_timed(tmp_path):
    with started(side(tmp_path, "a")) as ask:
        assert ask("about")["versions"] == {"fake": "1"}  # what the library printed is no reply
        built = ask("build", context=8)
        assert built["params"] == 10 and built["compile_seconds"] >= 0
        assert 0.02 <= built["step_seconds"] < 1
        timed = ask("time", seconds=0.2)
    assert timed["loss"] == 1.5 and timed["steps"] >= 1
    assert timed["seconds"] / timed["steps"] >= 0.02


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("import torch_is_not_here", "missing"),
        ("raise MemoryError", "out_of_memory"),
        ("raise RuntimeError('RESOURCE_EXHAUSTED: 3 GiB')", "out_of_memory"),
        ("raise ValueError('one\\ntwo')", "failed"),
    ],
)
def test_a_failure_is_a_reply_and_the_process_goes_on(tmp_path, statement, kind):
    with started(side(tmp_path, "a", build=statement)) as ask:
        reply = ask("build")
        assert reply["error"] == kind
        assert "\n" not in reply["text"] and "two" not in reply["text"]
        assert "error" not in ask("about")


def test_a_process_that_dies_says_how(tmp_path):
    with started(side(tmp_path, "a", build="sys.stderr.write('no room'); os._exit(7)")) as ask:
        assert ask("build") == {"error": "died", "text": "its process ended with code 7: no room"}
        assert ask("about")["error"] == "died"
    with started(side(tmp_path, "b", build="os.kill(os.getpid(), 9)")) as ask:
        assert "SIGKILL" in ask("build")["text"]


def test_a_process_that_hangs_is_ended(tmp_path):
    with started(side(tmp_path, "a", build="time.sleep(60)"), answer_within=1.5) as ask:
        assert ask("build") == {"error": "died", "text": "no answer within 1.5 s"}


def test_the_process_ends_with_the_block(tmp_path):
    with started(side(tmp_path, "a", about="FACTS['pid'] = os.getpid()")) as ask:
        pid = ask("about")["pid"]
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)


def test_a_process_that_goes_on_without_its_input_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "ENDS_WITHIN", 0.3)
    lingers = "import threading; threading.Thread(target=time.sleep, args=(60,)).start(); FACTS['pid'] = os.getpid()"
    with started(side(tmp_path, "a", about=lingers)) as ask:
        pid = ask("about")["pid"]
    assert not psutil.pid_exists(pid)


def test_an_interpreter_that_is_none(tmp_path):
    for python in (str(tmp_path / "python"), str(tmp_path)):
        with pytest.raises(UserError, match="cannot be run as Python"), started(Side("a", python, tmp_path / "a.py")):
            pass


def test_the_request_of_a_side_travels_with_every_question(tmp_path):
    one = dataclasses.replace(side(tmp_path, "a"), request={"mode": "eager"}, environment={"FROM_THE_PARENT": "1"})
    with started(one) as ask:
        ask("build", heads=2)
    assert '"mode": "eager", "heads": 2' in (tmp_path / "log.jsonl").read_text()


class Clock:
    """A clock that a run moves on."""

    def __init__(self, monkeypatch, step_seconds: float):
        self.now, self.step_seconds, self.calls = 0.0, step_seconds, []
        monkeypatch.setattr(worker.time, "perf_counter", lambda: self.now)

    def run(self, steps: int) -> float:
        self.calls.append(steps)
        self.now += steps * self.step_seconds
        return 2.0


def test_a_round_lasts_as_long_as_asked(monkeypatch):
    clock = Clock(monkeypatch, 0.25)
    steps, seconds, loss = worker.timed_round(clock.run, 3.0, 0.25)
    assert (steps, seconds, loss) == (12, 3.0, 2.0)
    assert clock.calls == [1, 12]  # the first is not counted


def test_a_long_step_is_timed_alone(monkeypatch):
    clock = Clock(monkeypatch, 5.0)
    assert worker.timed_round(clock.run, 3.0, 5.0)[:2] == (1, 5.0)
    assert clock.calls == [1]


def test_warming_up_tells_compilation_from_the_step(monkeypatch):
    clock = Clock(monkeypatch, 0.1)

    def run(steps):
        clock.now += 0 if clock.calls else 7.0
        return clock.run(steps)

    compilation, step = worker.warm_up(run)
    assert compilation == pytest.approx(7.0) and step == pytest.approx(0.1)


def test_tokens_per_second():
    assert tokens_per_second({"steps": 3, "seconds": 1.5, "loss": 4.0}, 100) == 200
    with pytest.raises(RuntimeError, match="loss is nan"):
        tokens_per_second({"steps": 3, "seconds": 1.5, "loss": float("nan")}, 100)
