"""A run directory belongs to one process and one config, and what it holds is whole whatever instant the process died at."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.core.errors import UserError
from research.train import rundir
from research.train.rundir import RunDir, read_config, read_metrics, read_samples

ROOT = Path(__file__).parents[2]
CONFIG = {"steps": 100, "optimizer": {"learning_rate": 1e-3, "betas": (0.9, 0.95)}}
IDENTITY = {"optimizer.learning_rate": 1e-3, "data": "ab12", "shape": (1, 2)}


def start(path, config=CONFIG, identity=IDENTITY, **kwargs):
    return RunDir.open(path, config, identity, **kwargs)


def tree(path):
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_config_json_names_what_repeats_the_run(tmp_path):
    with start(tmp_path / "runs" / "a") as run:
        stored = read_config(run.path)
    assert stored["schema"] == 1 and stored["config"]["optimizer"]["betas"] == [0.9, 0.95]
    assert stored["identity"]["data"] == "ab12"
    assert stored["versions"].keys() >= {"python", "jax", "flax", "optax", "orbax-checkpoint"}
    assert stored["device"]["count"] >= 1 and stored["device"]["kind"]
    assert stored["git"] is None or len(stored["git"].rstrip("+")) == 40


def test_resuming_keeps_the_run_and_remembers_what_changed(tmp_path):
    with start(tmp_path) as run:
        run.write_metrics({"step": 1, "loss": 2.0})
    with start(tmp_path):
        assert "was" not in str(read_config(tmp_path).get("history"))
    with start(tmp_path, {**CONFIG, "steps": 200}):
        pass
    with start(tmp_path, {**CONFIG, "steps": 200}):
        stored = read_config(tmp_path)
    assert stored["config"]["steps"] == 200
    assert [entry["was"] for entry in stored["history"]] == [{"config.steps": 100}]
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_another_config_is_refused_and_every_difference_named(tmp_path):
    with start(tmp_path):
        pass
    before = tree(tmp_path)
    other = {"optimizer.learning_rate": 2e-3, "shape": (1, 2), "new": True}
    with pytest.raises(UserError) as error:
        start(tmp_path, identity=other)
    message = str(error.value)
    assert "optimizer.learning_rate: 0.001 there, 0.002 now" in message
    assert "data: 'ab12' there, '(absent)' now" in message and "new: '(absent)' there, True now" in message
    assert "shape" not in message and "--fresh" in message
    assert tree(tmp_path) == before
    start(tmp_path).close()  # the refusal left no lock behind


def test_without_resume_a_run_that_exists_is_refused(tmp_path):
    start(tmp_path, resume=False).close()
    with pytest.raises(UserError, match="already holds a run"):
        start(tmp_path, resume=False)


def test_fresh_deletes_what_a_run_holds_and_nothing_else(tmp_path):
    with start(tmp_path) as run:
        run.write_metrics({"step": 1})
        run.write_sample(1, "x")
        run.finish({"steps": 1}, {})
        (tmp_path / "checkpoints" / "00000001").mkdir(parents=True)
        (tmp_path / "notes.md").write_text("mine")
    with start(tmp_path, identity={"other": 1}, fresh=True) as run:
        assert run.finished({}) is None
        assert tree(tmp_path).keys() == {"config.json", ".lock", "notes.md"} and not (tmp_path / "checkpoints").exists()
        assert read_config(tmp_path)["identity"] == {"other": 1} and "history" not in read_config(tmp_path)


def test_killed_in_the_middle_of_fresh_the_rest_is_a_run_or_nothing(tmp_path, monkeypatch):
    for instant in range(len(rundir.HELD)):
        path = tmp_path / str(instant)
        with start(path) as run:
            run.write_metrics({"step": 1})
            run.finish({}, {})
            (path / "checkpoints").mkdir()
        with monkeypatch.context() as patch:
            killed_at = path / rundir.HELD[instant]
            patch.setattr(rundir.shutil, "rmtree", lambda p, at=killed_at: stop_at(p, at, os.rmdir))
            patch.setattr(Path, "unlink", lambda p, missing_ok, at=killed_at: stop_at(p, at, unlink))
            with pytest.raises(KeyboardInterrupt):
                start(path, fresh=True)
        with start(path) as run:
            assert run.finished({}) is None or instant == 0
        start(path, fresh=True).close()
        assert tree(path).keys() == {"config.json", ".lock"}


def stop_at(path, at, delete):
    if path == at:
        raise KeyboardInterrupt
    delete(path)


def unlink(path):
    if path.exists():
        os.unlink(path)


@pytest.mark.parametrize("name", ["thesis.tex", "checkpoints", "report.html"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_something_else_is_refused_and_untouched(tmp_path, name, fresh):
    (tmp_path / name).write_text("years of work")
    with pytest.raises(UserError, match=f"not a run directory: it holds {name}"):
        start(tmp_path, fresh=fresh)
    assert tree(tmp_path) == {name: b"years of work", ".lock": tree(tmp_path)[".lock"]}


def test_paths_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(UserError, match="cannot be written"):
            start(path)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"config": 3}', '{"config": {}, "identity": 3}', '{"config": {}, "history": {}}', "\udcff"]
)
def test_a_damaged_config_is_one_clear_line_and_fresh_gets_rid_of_it(tmp_path, content):
    start(tmp_path).close()
    (tmp_path / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"config\.json"):
        start(tmp_path)
    start(tmp_path, fresh=True).close()


HOLDER = """
    import sys, time
    from research.train.rundir import RunDir
    run = RunDir.open(sys.argv[1], {"steps": 100, "optimizer": {}}, {})
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_by_pid_until_the_first_dies(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path / "run")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout and holder.stdout.readline() == "held\n"
            for fresh in (False, True):
                with pytest.raises(UserError, match=f"is being trained by process {holder.pid}"):
                    start(tmp_path / "run", identity={}, fresh=fresh)
        finally:
            holder.kill()
    start(tmp_path / "run", identity={}).close()


def test_one_process_cannot_open_it_twice(tmp_path):
    with start(tmp_path):
        with pytest.raises(UserError, match=f"process {os.getpid()}"):
            start(tmp_path)
    start(tmp_path).close()


FORKED = """
    import os, sys, time
    from research.train.rundir import RunDir
    run = RunDir.open(sys.argv[1], {}, {})
    told, tells = os.pipe()
    if os.fork() == 0:
        os.write(tells, b"x")  # what runs after a fork has run
        time.sleep(60)
        os._exit(0)
    os.read(told, 1)
    os._exit(0)
"""


def test_a_worker_that_outlives_the_process_does_not_keep_the_lock(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(FORKED), str(tmp_path / "run")]
    worker = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        assert worker.wait() == 0
        start(tmp_path / "run", identity={}).close()
    finally:
        os.killpg(worker.pid, signal.SIGKILL)


def test_every_line_is_json_whatever_the_numbers(tmp_path):
    record = {
        "step": 3,
        "loss": float("nan"),
        "grad": np.float32("inf"),
        "n": np.int64(2),
        "x": jnp.float32(0.5),
        "ok": np.bool_(True),
    }
    with start(tmp_path) as run:
        run.write_metrics({**record, "deep": {"a": [1e-7, float("-inf")]}})
    expected = {"step": 3, "loss": None, "grad": None, "n": 2, "x": 0.5, "ok": True, "deep": {"a": [1e-7, None]}}
    assert read_metrics(tmp_path) == [expected]
    assert (
        "NaN" not in (tmp_path / "metrics.jsonl").read_text()
        and "Infinity" not in (tmp_path / "metrics.jsonl").read_text()
    )


def test_numbers_come_back_as_they_were(tmp_path):
    values = [0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0]
    with start(tmp_path) as run:
        for value in values:
            run.write_metrics({"step": 1, "v": value})
    assert [repr(r["v"]) for r in read_metrics(tmp_path)] == [repr(v) for v in values]


texts = st.text(st.sampled_from("ab \n\r\x0b\x0c\x1c\u2028é=0123456789, bytes"), max_size=40)
runs = st.lists(st.tuples(st.integers(0, 5), texts), max_size=6)


@settings(max_examples=60, deadline=None)
@given(runs, st.integers(-1, 5), st.data())
def test_cutting_back_keeps_whole_records_up_to_the_step_wherever_the_kill_tore_the_last(
    tmp_path_factory, records, step, data
):
    path = tmp_path_factory.mktemp("run")
    with start(path) as run:
        for at, text in records:
            run.write_metrics({"step": at, "text": text})
            run.write_sample(at, text)
        assert read_samples(path) == records
        whole = tree(path)
        torn = {}
        for name, read in (("metrics.jsonl", read_metrics), ("samples.txt", read_samples)):
            content = whole.get(name, b"")
            end = data.draw(st.integers(0, len(content)))
            torn[name] = content[:end]
            if content:
                (path / name).write_bytes(torn[name])
                assert read(path) == read_back(records)[name][: len(read(path))]
        n_metrics, n_samples = len(read_metrics(path)), len(read_samples(path))
        assert n_metrics == torn["metrics.jsonl"].count(b"\n")
        run.cut_back(step)
        assert read_metrics(path) == [r for r in read_back(records)["metrics.jsonl"][:n_metrics] if r["step"] <= step]
        assert read_samples(path) == [s for s in records[:n_samples] if s[0] <= step]
        after = tree(path)
        run.cut_back(step)
        assert tree(path) == after
        run.write_metrics({"step": step + 1, "text": "next"})
        assert read_metrics(path)[-1] == {"step": step + 1, "text": "next"}


def read_back(records):
    return {"metrics.jsonl": [{"step": at, "text": text} for at, text in records], "samples.txt": records}


def test_a_line_torn_just_before_its_end_is_not_a_line(tmp_path):
    with start(tmp_path) as run:
        for step in (1, 2):
            run.write_metrics({"step": step})
            run.write_sample(step, "x")
        for name in ("metrics.jsonl", "samples.txt"):
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
        run.cut_back(2)
        run.write_metrics({"step": 2, "again": True})
        run.write_sample(2, "again")
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2, "again": True}]
    assert read_samples(tmp_path) == [(1, "x"), (2, "again")]


def test_damaged_lines_of_metrics_are_left_out_and_a_copy_is_kept(tmp_path, capsys):
    content = b'{"step": 1}\n\xff\n[2]\n{"step": "3"}\n{"step": 4}\n{"st'
    with start(tmp_path) as run:
        (tmp_path / "metrics.jsonl").write_bytes(content)
        assert read_metrics(tmp_path) == [{"step": 1}, {"step": 4}]
        run.cut_back(4)
        assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n{"step": 4}\n'
        assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == content
        assert "metrics.jsonl is damaged" in capsys.readouterr().err
        run.cut_back(4)
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"conditions": {}}', '{"conditions": {}, "result": [1]}'])
def test_a_damaged_status_is_a_run_that_goes_on(tmp_path, content):
    with start(tmp_path) as run:
        (tmp_path / "status.json").write_text(content)
        assert run.finished({}) is None


def test_a_sample_that_looks_like_a_heading_stays_a_sample(tmp_path):
    with start(tmp_path) as run:
        run.write_sample(1, "a\n===== step 9, 1 bytes =====\nb\n")
        run.write_sample(2, "\ud800 lone surrogate")
        run.cut_back(1)
        assert read_samples(tmp_path) == [(1, "a\n===== step 9, 1 bytes =====\nb\n")]


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path):
    with start(tmp_path) as run:
        run.write_metrics({"step": 1})
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written: File too large; make room"):
                run.write_metrics({"step": 2, "text": "x" * 2000})
            with pytest.raises(UserError, match=r"status\.json"):
                run.finish({"text": "x" * 2000}, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
        assert run.finished({}) is None
    assert tree(tmp_path).keys() == {".lock", "config.json", "metrics.jsonl"}


def test_a_finished_run_says_so_under_the_same_conditions_only(tmp_path):
    conditions = {"steps": 10, "target_loss": None, "shape": (1, 2)}
    with start(tmp_path) as run:
        assert run.finished(conditions) is None
        run.finish({"steps": 10, "loss": np.float32(0.5)}, conditions)
    with start(tmp_path) as run:
        assert run.finished(conditions) == {"steps": 10, "loss": 0.5}
        assert run.finished({**conditions, "steps": 20}) is None
        (tmp_path / "status.json").write_text("{")
        assert run.finished(conditions) is None
        run.finish({}, conditions)
        run.cut_back(5)
        assert run.finished(conditions) is None


def test_a_tracker_gets_every_record(tmp_path):
    seen = []
    with start(tmp_path) as run:
        run.track(seen.append)
        run.write_metrics({"step": 1, "loss": 2.0})
    assert seen == [{"step": 1, "loss": 2.0}]


def test_the_log_has_a_time_on_every_line(tmp_path):
    with start(tmp_path) as run:
        run.write_log("step 1 é")
    assert (tmp_path / "train.log").read_text(encoding="utf-8").endswith(" step 1 é\n")


def test_config_json_is_plain_json(tmp_path):
    with start(tmp_path, {"path": Path("/x"), "rate": float("inf")}, {}):
        assert json.loads((tmp_path / "config.json").read_text(), parse_constant=pytest.fail)["config"] == {
            "path": "/x",
            "rate": None,
        }
