"""TPUs by Google's `gcloud`: what a machine is asked for with, and its life from creation to deletion.

    Slice      one slice, by the Cloud TPU service
    Slices     several, by its queued resources
    Instance   the chips of one host, by Compute Engine

Options, machine types and images are those of Google's documents and of scripts that others have published, read 2026-11; none was tried on a cloud.
"""

import dataclasses
import re
import shlex
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from research.core.errors import UserError
from research.scale.topology import Topology

# What Cloud TPU calls a kind of slice, and the image of its virtual machines (`gcloud compute tpus tpu-vm versions list` has them all).
ACCELERATORS = {"v5e": "v5litepod-{}", "v5p": "v5p-{}", "v6e": "v6e-{}"}
RUNTIMES = {"v5e": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}
# What Compute Engine calls a host with so many chips, and the image that it boots.
HOSTS = {
    ("v5p", 4): "ct5p-hightpu-4t", ("v6e", 1): "ct6e-standard-1t", ("v6e", 4): "ct6e-standard-4t", ("v6e", 8): "ct6e-standard-8t",
}  # fmt: skip
IMAGE = ("ubuntu-os-accelerator-images", "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e")
# What mounts a bucket as a folder, as it is released for Ubuntu.
GCSFUSE = "3.11.1"
GCSFUSE_AT = f"https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v{GCSFUSE}/gcsfuse_{GCSFUSE}_amd64.deb"
PYTHON = "sudo apt-get -qq update && sudo apt-get -qq install -y python3.11-venv"  # which the images lack
# In a worker's home folder.
RUNS, HOME, ENVIRONMENT, READY, LOG, EXIT = (
    "runs",
    "purestep",
    "purestep-env",
    "purestep.ready",
    "purestep.log",
    "purestep.exit",
)
POLL = 60.0  # seconds between looks at a machine
RESTARTS = 20  # times that a run is started again before a person has to look
AGAIN = (75, 143, 255)  # codes of a command that is to be started again: stuck, after a signal, a connection that broke
Execute = Callable[[Sequence[str]], tuple[int, str]]


def distributed(command: str) -> str:
    """The command, told that it is one of several processes: what trains among several. Raises UserError where that cannot be told."""
    if "--distributed" in command.split():
        return command
    if not re.search(r"[&|;]", command):
        return f"{command} --distributed"
    if found := re.search(r"\bresearch train\b[^&|;]*", command):
        return f"{command[: found.start()]}{found[0].rstrip()} --distributed {command[found.end() :]}".rstrip()
    raise UserError(f"--command {command!r} has several commands; write --distributed behind the one that trains")


def accelerator(there: Topology) -> str:
    """What Cloud TPU calls a slice. Raises UserError for what it is not asked for here."""
    kind, _, size = there.name.partition("-")
    if kind not in ACCELERATORS:
        raise UserError(
            f"--topology {there.name}: slices are made of {', '.join(ACCELERATORS)}; GPUs by launch sky and launch slurm"
        )
    return ACCELERATORS[kind].format(size.partition("x")[0])


def machine(name: str, asked: Any, there: Topology) -> "Machine":
    """The machine of a topology that the arguments of `research launch tpu` ask for. Raises UserError for one that there is not."""
    accelerator(there)
    kind = there.name.partition("-")[0]
    if asked.zone is None:
        raise UserError("--zone is missing; give the zone that has the slice, as us-west4-a")
    if asked.through == "cloud-tpu":
        return (Slice if there.slices == 1 else Slices)(name, asked, there)
    if there.slices > 1 or (kind, there.chips) not in HOSTS:
        raise UserError(
            f"--topology {there.name}: Compute Engine is asked for one host, of {', '.join(f'{k} with {n} chip(s)' for k, n in HOSTS)}; "
            "--through cloud-tpu has larger slices"
        )
    if asked.how == "queued":
        raise UserError("--how queued is Cloud TPU's; Compute Engine waits for capacity with --how flex-start")
    return Instance(name, asked, there)


@dataclasses.dataclass(frozen=True)
class Machine(ABC):
    """A machine by its name, and the gcloud commands of its life. `READY_STATE` is its state when it is there, `GONE` are those in which it has to be
    made anew, "" among them: it is not known."""

    name: str
    asked: Any  # launch.Arguments
    there: Topology

    READY_STATE: ClassVar[str]
    GONE: ClassVar[tuple[str, ...]]

    @property
    def kind(self) -> str:
        return self.there.name.partition("-")[0]

    @property
    def command(self) -> str:
        return distributed(self.asked.command)

    def gcloud(self, *words: str, alpha: bool = False) -> list[str]:
        """A gcloud command in the zone and project."""
        place = [f"--zone={self.asked.zone}", *([f"--project={self.asked.project}"] if self.asked.project else [])]
        return ["gcloud", *(["alpha"] if alpha else []), "compute", *words, *place]

    @abstractmethod
    def create(self) -> list[str]:
        """Asks for it."""

    @abstractmethod
    def ssh(self, command: str, first: bool = False) -> list[str]:
        """Runs a command on all its workers, or on the first."""

    @abstractmethod
    def scp(self, file: Path, to: str) -> list[str]:
        """Copies a file to all its workers."""

    @abstractmethod
    def state(self) -> list[str]:
        """Asks what state it is in."""

    @abstractmethod
    def delete(self) -> list[str]:
        """Gives it back."""

    def seen(self, execute: Execute) -> str:
        """The state that it is in; empty where there is none."""
        code, out = execute(self.state())
        return "" if code else out.strip()

    def steps(self, archive: Path) -> dict[str, list[list[str]]]:
        """The commands of a life without a preemption, by what they do."""
        return {
            "create": [self.create()], "copy": self.copy(archive), "install": [self.install()], "start": [self.start()],
            "follow": [self.follow()], "delete": [self.delete()],
        }  # fmt: skip

    def copy(self, archive: Path) -> list[list[str]]:
        """The committed working tree as one archive, on every worker."""
        unpack = f"rm -rf {HOME} && mkdir {HOME} && tar xzf {HOME}.tar.gz -C {HOME}"
        return [
            ["git", "-C", self.asked.source, "archive", "--format=tar.gz", "-o", str(archive), "HEAD"],
            self.scp(archive, f"{HOME}.tar.gz"), self.ssh(unpack),
        ]  # fmt: skip

    def install(self) -> list[str]:
        """Python 3.11, the project with JAX for TPUs, and what mounts a bucket where there is one."""
        fuse = f"curl -sSfL -o gcsfuse.deb {GCSFUSE_AT} && sudo apt-get -qq install -y ./gcsfuse.deb && "
        return self.ssh(
            f"{PYTHON} tmux && {fuse if self.asked.bucket else ''}"
            f"python3.11 -m venv {ENVIRONMENT} && {ENVIRONMENT}/bin/pip install -q -e './{HOME}[tpu]' && touch {READY}"
        )

    def start(self) -> list[str]:
        """The command under tmux on every worker, unless it runs there already: it outlives the connection, and leaves its exit code behind."""
        mount = f"mkdir -p ~/{RUNS} && {{ mountpoint -q ~/{RUNS} || gcsfuse {self.asked.bucket} ~/{RUNS}; }} >> ~/{LOG} 2>&1 && "
        inner = f"cd ~/{HOME} && . ~/{ENVIRONMENT}/bin/activate && {{ {self.command}; }} >> ~/{LOG} 2>&1; echo $? > ~/{EXIT}"
        inner = mount + inner if self.asked.bucket else inner
        begin = f"rm -f {EXIT}; tmux new-session -d -s purestep {shlex.quote(inner)}"
        return self.ssh(f"tmux has-session -t purestep 2>/dev/null || {{ {begin}; }}")

    def follow(self) -> list[str]:
        """The first worker's log as it is written, until the command has ended there."""
        return self.ssh(
            f"touch {LOG}; tail -n +1 -F {LOG} & while [ ! -f {EXIT} ]; do sleep 5; done; sleep 2; kill $!; exit $(cat {EXIT})",
            first=True,
        )

    def go(self, execute: Execute, say: Callable[[str], None], sleep: Callable[[float], None] = time.sleep) -> int:
        """Carries all of it out and returns the command's exit code. After a preemption, or a code of AGAIN, it begins
        again: the run goes on from its last checkpoint. It is deleted when the command has ended well."""
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / f"{HOME}.tar.gz"
            for attempt in range(RESTARTS + 1):
                state = self.seen(execute)
                if state in self.GONE:
                    if state:
                        must(self.delete(), execute, say)
                    must(self.create(), execute, say)
                    self._wait(execute, say, sleep)
                if state in self.GONE or (attempt == 0 and execute(self.ssh(f"test -f {READY}"))[0]):
                    for command in [*self.copy(archive), self.install()]:
                        must(command, execute, say)
                must(self.start(), execute, say)
                code = execute(self.follow())[0]
                state = self.seen(execute)
                if code == 0:
                    must(self.delete(), execute, say)
                    return 0
                if state not in self.GONE and code not in AGAIN:
                    say(
                        f"the command ended with {code}; {self.name} is still there: research launch tpu {self.name} --delete --run gives it back"
                    )
                    return code
                say(
                    f"{self.name} is {state or 'gone'}, the command ended with {code}: again from the last checkpoint ({attempt + 1} of {RESTARTS})"
                )
        raise UserError(f"{self.name} was started {RESTARTS + 1} times and never came to its end; look at its log")

    def _wait(self, execute: Execute, say: Callable[[str], None], sleep: Callable[[float], None]) -> None:
        """Until the slice is there: a queue may take hours."""
        while (state := self.seen(execute)) != self.READY_STATE:
            say(f"{self.name} is {state or 'waiting'}")
            sleep(POLL)


class Slice(Machine):
    """One slice of Cloud TPU."""

    READY_STATE = "READY"
    GONE = ("PREEMPTED", "TERMINATED", "STOPPED", "DELETING", "")

    def create(self) -> list[str]:
        how = self.asked.how
        if how in ("queued", "flex-start"):
            return self._queued(f"--node-id={self.name}")
        spot = ["--spot"] if how == "spot" else []
        words = (f"--accelerator-type={accelerator(self.there)}", f"--version={RUNTIMES[self.kind]}", *spot)
        return self.gcloud("tpus", "tpu-vm", "create", self.name, *words)

    def _queued(self, *nodes: str) -> list[str]:
        how = self.asked.how
        words = [*nodes, f"--accelerator-type={accelerator(self.there)}", f"--runtime-version={RUNTIMES[self.kind]}"]
        words += {
            "spot": ["--spot"],
            "flex-start": ["--provisioning-model=flex-start", f"--max-run-duration={self.asked.hours}h"],
        }.get(how, [])
        return self.gcloud("tpus", "queued-resources", "create", self.name, *words, alpha=how == "flex-start")

    def ssh(self, command: str, first: bool = False) -> list[str]:
        worker = f"--worker={0 if first else 'all'}"
        return self.gcloud("tpus", "tpu-vm", "ssh", self.name, worker, f"--command={command}")

    def scp(self, file: Path, to: str) -> list[str]:
        return self.gcloud("tpus", "tpu-vm", "scp", str(file), f"{self.name}:{to}", "--worker=all")

    def state(self) -> list[str]:
        return self.gcloud("tpus", "tpu-vm", "describe", self.name, "--format=value(state)")

    def delete(self) -> list[str]:
        if self.asked.how in ("queued", "flex-start"):
            return self.gcloud("tpus", "queued-resources", "delete", self.name, "--force", "--quiet")
        return self.gcloud("tpus", "tpu-vm", "delete", self.name, "--quiet")


class Slices(Slice):
    """Several slices of Cloud TPU, asked for together: their queue makes all of them or none, and JAX is told of the others by their metadata."""

    READY_STATE = "ACTIVE"
    GONE = ("SUSPENDING", "SUSPENDED", "FAILED", "DELETING", "")

    def create(self) -> list[str]:
        return self._queued(f"--node-count={self.there.slices}", f"--node-prefix={self.name}")

    def ssh(self, command: str, first: bool = False) -> list[str]:
        which = 0 if first else "all"
        place = (f"--node={which}", f"--worker={which}")
        return self.gcloud("tpus", "queued-resources", "ssh", self.name, *place, f"--command={command}")

    def scp(self, file: Path, to: str) -> list[str]:
        return self.gcloud(
            "tpus", "queued-resources", "scp", str(file), f"{self.name}:{to}", "--node=all", "--worker=all"
        )

    def state(self) -> list[str]:
        return self.gcloud("tpus", "queued-resources", "describe", self.name, "--format=value(state.state)")

    def delete(self) -> list[str]:
        return self.gcloud("tpus", "queued-resources", "delete", self.name, "--force", "--quiet")


class Instance(Machine):
    """One host with its chips, as an instance of Compute Engine."""

    READY_STATE = "RUNNING"
    GONE = ("STOPPING", "STOPPED", "TERMINATED", "SUSPENDING", "SUSPENDED", "")

    @property
    def command(self) -> str:
        return self.asked.command  # which is the only process

    def create(self) -> list[str]:
        project, family = IMAGE
        how = {
            "on-demand": [],
            "spot": ["--provisioning-model=SPOT", "--instance-termination-action=DELETE"],
            "flex-start": ["--provisioning-model=FLEX_START", "--request-valid-for-duration=2h", f"--max-run-duration={self.asked.hours}h",
                           "--instance-termination-action=DELETE"],
        }[self.asked.how]  # fmt: skip
        return self.gcloud(
            "instances", "create", self.name, f"--machine-type={HOSTS[self.kind, self.there.chips]}", f"--image-project={project}",
            f"--image-family={family}", "--maintenance-policy=TERMINATE", "--boot-disk-size=200GB", "--scopes=cloud-platform", *how,
        )  # fmt: skip

    def ssh(self, command: str, first: bool = False) -> list[str]:
        return self.gcloud("ssh", self.name, f"--command={command}")

    def scp(self, file: Path, to: str) -> list[str]:
        return self.gcloud("scp", str(file), f"{self.name}:{to}")

    def state(self) -> list[str]:
        return self.gcloud("instances", "describe", self.name, "--format=value(status)")

    def delete(self) -> list[str]:
        return self.gcloud("instances", "delete", self.name, "--quiet")


def must(command: Sequence[str], execute: Execute, say: Callable[[str], None]) -> None:
    """Says a command and carries it out. Raises UserError with what it said where it fails."""
    say(shlex.join(command))
    code, out = execute(command)
    if code:
        raise UserError(f"{shlex.join(command)} ended with {code}: {' '.join(out.split())}")


def execute(command: Sequence[str]) -> tuple[int, str]:
    """(exit code, what it said). What `gcloud ... ssh` of a log says is passed on as it comes."""
    if any(EXIT in word and "tail" in word for word in command):
        return subprocess.run(list(command), check=False).returncode, ""
    done = subprocess.run(list(command), capture_output=True, text=True, check=False)
    return done.returncode, done.stdout if done.returncode == 0 else done.stderr or done.stdout
