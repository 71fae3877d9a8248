"""Launching, against a `gcloud` that writes down what it is told and plays a slice."""

import json
import os
import shlex
import stat
import subprocess
import sys

import pytest

from research.core.errors import UserError
from research.scale import launch, machines
from research.scale.topology import topology

ZONE = ["--zone", "us-west4-a", "--project", "mine"]
FAKE = """#!{python}
import json, os, sys
home = os.path.dirname(os.path.abspath(__file__))
told = sys.argv[1:]
play = json.load(open(home + "/play.json"))
with open(home + "/told.jsonl", "a") as out:
    out.write(json.dumps(told) + "\\n")
kind = next((word for word in told if word in ("create", "delete", "describe", "ssh", "scp")), None)
assert any(word.startswith("--zone=") for word in told), "no zone"
if kind == "create":
    assert play["state"] in ("", "DELETED"), "it is there already"
    play["state"] = play["ready"]
elif kind == "delete":
    play["state"] = "DELETED"
elif kind == "describe":
    if play["state"] in ("", "DELETED"):
        sys.exit("NOT_FOUND")
    print(play["state"])
elif any("tail -n +1 -F" in word for word in told):
    code, after = play["ends"].pop(0)
    play["state"] = after
    json.dump(play, open(home + "/play.json", "w"))
    sys.exit(code)
json.dump(play, open(home + "/play.json", "w"))
"""


@pytest.fixture
def gcloud(tmp_path, monkeypatch):
    """`gcloud(ends)`: a slice whose command ends with these (code, state of the slice afterwards), one after the other; returns what it was told."""

    def make(ends, ready="READY"):
        folder = tmp_path / "bin"
        folder.mkdir()
        fake = folder / "gcloud"
        fake.write_text(FAKE.replace("{python}", sys.executable))
        fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
        (folder / "play.json").write_text(json.dumps({"state": "", "ends": ends, "ready": ready}))
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return lambda: [json.loads(line) for line in (folder / "told.jsonl").read_text().splitlines()]

    return make


@pytest.fixture
def tree(tmp_path):
    """A working tree with one commit."""
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "a.py").write_text("print(1)\n")
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


def kinds(told):
    found = []
    for words in told:
        kind = next(word for word in words if word in ("create", "delete", "describe", "ssh", "scp"))
        found.append("follow" if any("tail -n +1 -F" in word for word in words) else kind)
    return [kind for kind in found if kind != "describe"]


def test_without_run_the_commands_are_printed_and_nothing_is_done(call_verb, gcloud):
    told = gcloud([])
    code, out, _ = call_verb(
        "launch", "tpu", "mine", "--topology", "v5p-32", *ZONE, "--command", "research train quickstart"
    )
    assert code == 0
    lines = [shlex.split(line) for line in out.splitlines() if not line.startswith("#")]
    assert lines[0] == ["gcloud", "compute", "tpus", "tpu-vm", "create", "mine", "--accelerator-type=v5p-32", "--version=v2-alpha-tpuv5", "--spot",
                        "--zone=us-west4-a", "--project=mine"]  # fmt: skip
    assert [line[1:].count("--distributed") or "quickstart --distributed" in " ".join(line) for line in lines].count(
        True
    ) == 1
    assert "# delete" in out
    with pytest.raises(FileNotFoundError):
        told()


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("on-demand", ["compute", "tpus", "tpu-vm", "create", "a", "--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite"]),
        ("queued", ["compute", "tpus", "queued-resources", "create", "a", "--node-id=a", "--accelerator-type=v5litepod-16",
                    "--runtime-version=v2-alpha-tpuv5-lite"]),
        ("flex-start", ["alpha", "compute", "tpus", "queued-resources", "create", "a", "--node-id=a", "--accelerator-type=v5litepod-16",
                        "--runtime-version=v2-alpha-tpuv5-lite", "--provisioning-model=flex-start", "--max-run-duration=24h"]),
    ],
)  # fmt: skip
def test_every_way_to_ask_for_a_slice(how, expected):
    one = machines.Slice("a", launch.Arguments(how=how, zone="z"), topology("v5e-16"))
    assert one.create() == ["gcloud", *expected, "--zone=z"]
    assert ("queued-resources" in one.delete()) == (how in ("queued", "flex-start"))


def test_what_trains_among_several_commands_is_told_of_the_others():
    found = machines.distributed("mkdir -p a && research train 'a b.py' --steps 3 && echo done")
    assert found == "mkdir -p a && research train 'a b.py' --steps 3 --distributed && echo done"
    assert machines.distributed("mkdir a; research train b") == "mkdir a; research train b --distributed"
    assert machines.distributed("a --distributed && b") == "a --distributed && b"


def test_several_slices_are_one_queued_resource():
    words = launch.Arguments(how="spot", zone="z")
    one = machines.machine("a", words, topology("v5e-16x2"))
    assert one.create() == ["gcloud", "compute", "tpus", "queued-resources", "create", "a", "--node-count=2", "--node-prefix=a",
                            "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot", "--zone=z"]  # fmt: skip
    assert one.ssh("ls")[3:8] == ["queued-resources", "ssh", "a", "--node=all", "--worker=all"]
    assert one.follow()[6:8] == ["--node=0", "--worker=0"] and one.scp("b", "c")[4:6] == ["scp", "b"]


@pytest.mark.parametrize(
    ("there", "how", "expected"),
    [
        ("v6e-8", "on-demand", ["--machine-type=ct6e-standard-8t"]),
        ("v5p-8", "spot", ["--machine-type=ct5p-hightpu-4t", "--provisioning-model=SPOT", "--instance-termination-action=DELETE"]),
        ("v6e-1", "flex-start", ["--machine-type=ct6e-standard-1t", "--provisioning-model=FLEX_START", "--max-run-duration=24h"]),
    ],
)  # fmt: skip
def test_a_host_of_compute_engine(there, how, expected):
    one = machines.machine("a", launch.Arguments(how=how, zone="z", through="compute-engine"), topology(there))
    told = one.create()
    assert told[:5] == ["gcloud", "compute", "instances", "create", "a"] and set(expected) < set(told)
    assert one.ssh("ls") == ["gcloud", "compute", "ssh", "a", "--command=ls", "--zone=z"]
    assert "--distributed" not in " ".join(one.start()), "it is one process"


@pytest.mark.parametrize(
    ("words", "ready"),
    [(["--topology", "v5e-16x2"], "ACTIVE"), (["--topology", "v6e-4", "--through", "compute-engine"], "RUNNING")],
)
def test_the_other_machines_live_as_a_slice_does(words, ready, gcloud, tree, call_verb):
    told = gcloud([(143, "SUSPENDED"), (0, ready)], ready)
    code, _, err = call_verb("launch", "tpu", "mine", *ZONE, *words, "--source", tree, "--run")
    assert code == 0, err
    first = ["create", "scp", "ssh", "ssh", "ssh", "follow", "delete"]
    assert kinds(told()) == first + first


def test_a_run_is_carried_out_from_its_creation_to_its_end(gcloud, tree, call_verb):
    told = gcloud([(0, "READY")])
    code, _, err = call_verb(
        "launch", "tpu", "mine", *ZONE, "--source", tree, "--command", "research train quickstart", "--run"
    )
    assert code == 0, err
    assert kinds(told()) == ["create", "scp", "ssh", "ssh", "ssh", "follow", "delete"]
    assert all("--zone=us-west4-a" in words and "--project=mine" in words for words in told())


def test_a_preempted_slice_is_made_anew_and_the_run_goes_on(gcloud, tree, call_verb):
    told = gcloud([(255, "PREEMPTED"), (143, "READY"), (0, "READY")])
    code, _, err = call_verb("launch", "tpu", "mine", *ZONE, "--source", tree, "--run")
    assert code == 0, err
    first = ["create", "scp", "ssh", "ssh", "ssh", "follow"]
    assert kinds(told()) == [
        *first,
        "delete",
        *first,
        "ssh",
        "follow",
        "delete",
    ]  # after 143 the slice is there: the command is started again
    assert "again from the last checkpoint (1 of" in err


def test_a_command_that_fails_leaves_the_slice_for_a_look(gcloud, tree, call_verb):
    told = gcloud([(2, "READY")])
    code, _, err = call_verb("launch", "tpu", "mine", *ZONE, "--source", tree, "--run")
    assert code == 2 and "--delete --run gives it back" in err and "delete" not in kinds(told())
    code, _, _ = call_verb("launch", "tpu", "mine", *ZONE, "--delete", "--run")
    assert code == 0 and kinds(told())[-1] == "delete"


def test_a_run_that_is_under_way_is_followed_and_not_begun_again(gcloud, tree, call_verb):
    told = gcloud([(2, "READY"), (0, "READY")])
    words = ["launch", "tpu", "mine", *ZONE, "--source", tree, "--run"]
    assert call_verb(*words)[0] == 2
    before = len(told())
    assert call_verb(*words)[0] == 0
    again = told()[before:]
    assert kinds(again) == [
        "ssh",
        "ssh",
        "follow",
        "delete",
    ]  # looks whether it is installed; starts, where nothing runs
    assert any("has-session" in word for words in again for word in words)


def test_a_run_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr(machines, "RESTARTS", 2)
    one = machines.Slice("a", launch.Arguments(zone="z"), topology("v5e-16"))

    def execute(command):
        return (143, "") if command == one.follow() else (0, "READY")

    with pytest.raises(UserError, match="started 3 times"):
        one.go(execute, lambda said: None)


def test_a_queue_is_waited_for():
    one, states, slept = (
        machines.Slice("a", launch.Arguments(zone="z"), topology("v5e-16")),
        ["", "CREATING", "READY"],
        [],
    )
    one._wait(lambda command: (0, states.pop(0)), lambda said: None, slept.append)
    assert slept == [machines.POLL] * 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tpu"], "usage"),
        (["tpu", "Bad_Name", *ZONE], "no name for a machine"),
        (["tpu", "a"], "--zone is missing"),
        (["tpu", "a", *ZONE, "--topology", "h100x8"], "slices are made of v5e, v5p, v6e"),
        (["tpu", "a", *ZONE, "--through", "compute-engine"], "Compute Engine is asked for one host"),
        (
            ["tpu", "a", *ZONE, "--topology", "v6e-4", "--through", "compute-engine", "--how", "queued"],
            "is Cloud TPU's",
        ),
        (["tpu", "a", *ZONE, "--run", "--dry-run"], "exclude each other"),
        (["tpu", "a", *ZONE, "--command", " "], "--command is empty"),
        (["slurm", "a", "--topology", "v5e-16"], "is for GPUs"),
        (["sky", "a", "--topology", "cpu-8"], "rents TPUs and GPUs"),
        (["slurm", "a", "--topology", "h100x8", "--run"], "starts nothing"),
        (["sky", "a", "--delete"], "starts nothing"),
        (["tpu", "a", *ZONE, "--command", "python a.py && echo done"], "write --distributed behind"),
        (["tpu", "a", *ZONE, "--bucket", "gs://mine"], "the bucket's name alone"),
        (["tpu", "a", *ZONE, "--bucket", "a b"], "the bucket's name alone"),
        (["slurm", "a", "--topology", "h100x8", "--bucket", "mine"], "starts nothing"),
        (["sky", "a", "--topology", "v5e-16x2"], "SkyPilot is asked for one slice"),
        (["sky", "a", "--topology", "tpu7x-8"], "slices are made of"),
        (["moon", "a"], "tpu, sky, slurm"),
    ],
)
def test_bad_input_is_refused(words, said, call_verb):
    code, _, err = call_verb("launch", *words)
    assert code == 2 and said in err, err


def test_without_gcloud_a_run_says_where_it_comes_from(call_verb, monkeypatch):
    monkeypatch.setattr(launch.shutil, "which", lambda name: None)
    code, _, err = call_verb("launch", "tpu", "a", *ZONE, "--run")
    assert code == 2 and "gcloud is not installed" in err


def test_a_task_for_skypilot(call_verb, tmp_path):
    file = tmp_path / "task.yaml"
    code, out, _ = call_verb(
        "launch", "sky", "mine", "--topology", "h100x16", "--command", "research train quickstart", "--out", file
    )
    assert code == 0 and out.strip() == str(file)
    text = file.read_text()
    assert "accelerators: H100:8" in text and "num_nodes: 2" in text and "use_spot: true" in text
    assert "research train quickstart --distributed --coordinator $(echo" in text
    slice_ = launch.sky_task("a", launch.Arguments(), topology("v5e-16"))
    assert "accelerators: tpu-v5litepod-16" in slice_ and "num_nodes: 1" in slice_ and "'.[tpu]'" in slice_
    assert slice_.rstrip().endswith("research train quickstart --distributed")


def test_a_bucket_is_mounted_before_the_command_and_nowhere_without_one(call_verb):
    words = ["--command", "research train a.py --run-dir ~/runs/a"]
    code, out, _ = call_verb("launch", "tpu", "mine", *ZONE, "--bucket", "my-bucket", *words)
    assert code == 0
    install, start = (next(line for line in out.splitlines() if part in line) for part in ("venv tmux", "new-session"))
    assert "apt-get -qq install -y ./gcsfuse.deb" in install
    assert start.index("mountpoint -q ~/runs || gcsfuse my-bucket ~/runs") < start.index("research train a.py")
    assert "gcsfuse" not in call_verb("launch", "tpu", "mine", *ZONE, *words)[1]


def test_what_is_started_on_a_worker_leaves_its_exit_code(tmp_path, monkeypatch):
    """The command that `start` hands to a worker's shell, run here, with a `tmux` and a `gcsfuse` that do as they are told."""
    for name, does in (
        ("tmux", 'case $1 in has-session) exit 1;; *) eval "${!#}";; esac'),
        ("gcsfuse", 'touch "$2/mounted"'),
    ):
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / machines.HOME).mkdir()
    (tmp_path / machines.ENVIRONMENT / "bin").mkdir(parents=True)
    (tmp_path / machines.ENVIRONMENT / "bin" / "activate").write_text("")
    asked = launch.Arguments(zone="z", bucket="mine", command="echo --distributed ; ls ~/runs; false")
    (told,) = [word for word in machines.Slice("a", asked, topology("v5e-16")).start() if word.startswith("--command=")]
    assert subprocess.run(["bash", "-c", told.partition("=")[2]], cwd=tmp_path, check=False).returncode == 0
    assert (tmp_path / machines.EXIT).read_text() == "1\n"
    assert (tmp_path / machines.LOG).read_text() == "--distributed\nmounted\n"


def test_a_script_for_slurm(call_verb):
    code, out, _ = call_verb(
        "launch", "slurm", "mine", "--topology", "h200x64", "--hours", "3", "--command", "research train a.py"
    )
    assert code == 0 and "#SBATCH --nodes=8" in out and "--gpus-per-node=8" in out and "--time=3:00:00" in out
    assert "srun bash -c 'research train a.py --distributed'" in out and "requeue" in out
    assert subprocess.run(["bash", "-n"], input=out, text=True, check=False).returncode == 0
