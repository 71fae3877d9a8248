"""What the doctor finds, on this machine and on ones that are made up."""

import json
import os
import time
from pathlib import Path

import pytest

from research.scale import doctor

HEALTHY = {"jax": "0.10.2", "jaxlib": "0.10.2", "flax": "0.12.8", "optax": "0.2.8", "orbax-checkpoint": "0.12.8"}


def test_this_machine_is_told_of_and_nothing_is_left_behind(tmp_path, call_verb):
    code, out, _ = call_verb("doctor", "--run-dir", tmp_path / "runs", "--no-readings", "--json")
    found = json.loads(out.splitlines()[-1])
    names = [one["name"] for one in found["findings"]]
    assert {"python", "jax", "jaxlib", "devices", "memory", "run folder", "cache folder", "clock"} <= set(
        names
    ) and "copy" not in names
    assert code == (0 if found["healthy"] else 1)
    assert list(tmp_path.iterdir()) == []


def test_readings_are_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "WRITE", 2**16)
    monkeypatch.setattr(doctor.chips, "measured_matmul_flops", lambda size, dtype: 2e12)
    monkeypatch.setattr(doctor.chips, "measured_copy_bandwidth", lambda size: 3e11)
    said = {one.name: one.said for one in (*doctor.readings(), doctor.writing(tmp_path))}
    assert "2 TFLOP/s" in said["matrix product"] and "0.3 TB/s" in said["copy"] and "MB/s" in said["writing"]


@pytest.mark.parametrize(
    ("changes", "name", "status", "do"),
    [
        ({}, "jax", "ok", ""),
        ({"jax": "0.9.1", "jaxlib": "0.9.1"}, "jax", "FAIL", "pip install 'jax>=0.10,<0.13'"),
        ({"flax": None}, "flax", "FAIL", "pip install 'flax"),
        ({"jaxlib": "0.11.0"}, "jaxlib", "FAIL", "pip install -U jax"),
        ({"jax": "0.11.0", "jaxlib": "0.11.0"}, "jax 0.11.0", "warn", "46231"),
        ({"jax-cuda12-plugin": "0.10.1"}, "jax-cuda12-plugin", "FAIL", "of one release"),
    ],
)
def test_versions_that_do_not_go_together_are_named(changes, name, status, do):
    found = {one.name: one for one in doctor.versions({**HEALTHY, **changes}.get)}
    assert found[name].status == status and do in found[name].do
    assert doctor.healthy(list(found.values())) == (status != "FAIL")


@pytest.mark.parametrize(
    ("version", "numbers"), [("0.10.2", (0, 10, 2)), ("0.12.0.1", (0, 12, 0, 1)), ("1.0rc1", (1, 0)), ("2.dev3", (2,))]
)
def test_versions_are_compared_by_number(version, numbers):
    assert doctor._numbers(version) == numbers


def test_an_old_driver_is_refused(monkeypatch):
    monkeypatch.setattr(doctor, "_version", {"jax-cuda12-plugin": "0.10.2", "nvidia-nccl-cu12": "2.27"}.get)
    assert doctor.driver(lambda: "515.65.01").status == "FAIL" and "525" in doctor.driver(lambda: "515.65.01").do
    assert doctor.driver(lambda: "550.54").status == "ok" and "NCCL 2.27" in doctor.driver(lambda: "550.54").said
    assert doctor.driver(lambda: None).said == "none"


def test_a_folder_that_cannot_be_written_and_a_full_one(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    found = list(doctor.examine(doctor.Arguments(run_dir=str(tmp_path / "file" / "runs"))))
    (place,) = [one for one in found if one.name == "run folder"]
    assert place.status == "FAIL" and "Not a directory" in place.said and "--run-dir" in place.do
    assert not {"clock", "writing"} & {one.name for one in found}
    monkeypatch.setattr(doctor, "ROOM", 1e30)
    assert doctor.disk("run folder", tmp_path / "new").status == "warn"


def test_a_disk_whose_clock_is_off(tmp_path, monkeypatch):
    now = time.time()
    monkeypatch.setattr(doctor.time, "time", lambda: now + 100)
    found = doctor.clock(tmp_path)
    assert found.status == "warn" and "-100" in found.said and "NTP" in found.do


def test_a_lock_of_a_tpu_that_nobody_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    assert doctor.tpu_lock(tmp_path / "none").status == "ok"
    (tmp_path / "lock").touch()
    assert f"delete {tmp_path / 'lock'}" in doctor.tpu_lock(tmp_path / "lock").do


def test_the_nearest_folder_that_exists(tmp_path):
    assert doctor._there(tmp_path / "a" / "b") == tmp_path and doctor._there(Path("/")) == Path(os.sep)
