"""`research launch tpu|sky|slurm`: a command on machines that are rented, from their creation to their end.

`tpu` shells out to `gcloud`, whose commands `--dry-run` prints: create, copy the working tree, install, start under tmux on every worker, follow
the log, make the slice anew and go on when it was preempted, delete. `sky` and `slurm` write a SkyPilot task and a Slurm script from the same
answers.
"""

import dataclasses
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from research.core import config as core_config
from research.core import verbs
from research.core.errors import UserError
from research.scale.topology import Topology, topology
from research.train.command import to_stderr

PROG = "research launch"
# What Cloud TPU calls a kind of slice, and the image of its virtual machines (`gcloud compute tpus tpu-vm versions list` has them all).
ACCELERATORS = {"v5e": "v5litepod-{}", "v5p": "v5p-{}", "v6e": "v6e-{}"}
RUNTIMES = {"v5e": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}
GONE = ("PREEMPTED", "TERMINATED", "STOPPED", "DELETING", "")  # states of a slice that has to be made anew
# In a worker's home folder.
HOME, ENVIRONMENT, READY, LOG, EXIT = "purestep", "purestep-env", "purestep.ready", "purestep.log", "purestep.exit"
POLL = 60.0  # seconds between looks at a slice
RESTARTS = 20  # times that a run is started again before a person has to look
Execute = Callable[[Sequence[str]], tuple[int, str]]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Runs a command on every host of a topology: `research launch KIND NAME --topology v5e-16 --command "research train ..."`, to which
    --distributed is added."""

    topology: str = "v5e-16"
    command: str = "research train quickstart"
    zone: str | None = None  # tpu: the zone, as us-west4-a
    project: str | None = None  # tpu: the project; None: gcloud's own
    how: Literal["on-demand", "spot", "queued", "flex-start"] = "spot"  # tpu: how the slice is asked for
    hours: int = 24  # tpu, flex-start: the longest that it may run; slurm: the time limit
    source: str = "."  # the working tree that is copied
    run: bool = False  # tpu: carry the commands out, and go on until the command has ended
    delete: bool = False  # tpu: delete the slice, and nothing else
    dry_run: bool = False  # tpu: print the commands; so does leaving --run out
    out: str | None = None  # sky, slurm: the file to write; None: print it
    debug: bool = False  # tracebacks instead of one-line errors

    def __post_init__(self):
        if self.run and self.dry_run:
            raise UserError("--run and --dry-run exclude each other; give one")
        if not self.command.strip():
            raise UserError(
                "--command is empty; give what is to run, as 'research train quickstart --run-dir gs://...'"
            )
        if self.hours < 1:
            raise UserError(f"--hours is {self.hours}; expected a whole number of at least 1")


def main(argv: Sequence[str]) -> int:
    """`research launch tpu|sky|slurm NAME [options]`."""
    return verbs.run(f"{PROG} KIND NAME", {"tpu": tpu, "sky": sky, "slurm": slurm}, argv, "kind")


def tpu(argv: Sequence[str]) -> int:
    """NAME --topology v5e-16 --zone ZONE --command CMD: a Cloud TPU slice by gcloud; --run carries it out"""
    name, asked = _parsed(argv, "tpu")
    slice_ = Slice(name, asked, topology(asked.topology))
    if not asked.run:
        steps = {"delete": [slice_.delete()]} if asked.delete else slice_.steps(Path("purestep.tar.gz"))
        for step, commands in steps.items():
            print(f"# {step}")
            print("\n".join(shlex.join(command) for command in commands))
        return 0
    if shutil.which("gcloud") is None:
        raise UserError("gcloud is not installed: cloud.google.com/sdk; without --run the commands are printed")
    if asked.delete:
        return _done(slice_.delete(), execute)
    return slice_.go(execute, to_stderr)


def sky(argv: Sequence[str]) -> int:
    """NAME --topology v5e-16|h100x8 --command CMD: a task for SkyPilot"""
    name, asked = _parsed(argv, "sky")
    return _written(sky_task(name, asked, topology(asked.topology)), asked.out)


def slurm(argv: Sequence[str]) -> int:
    """NAME --topology h100x64 --command CMD: a script for sbatch"""
    name, asked = _parsed(argv, "slurm")
    return _written(slurm_script(name, asked, topology(asked.topology)), asked.out)


def _parsed(argv: Sequence[str], kind: str) -> tuple[str, Arguments]:
    prog = f"{PROG} {kind} NAME"
    if argv and argv[0] in ("-h", "--help"):
        core_config.parse(Arguments(), argv[:1], prog, Arguments.__doc__ or "")
    if not argv or argv[0].startswith("-"):
        raise UserError(f"usage: {prog} --topology v5e-16 --command 'research train ...' [options]")
    if not argv[0].replace("-", "").isalnum() or not argv[0].islower():
        raise UserError(f"{argv[0]!r} is no name for a machine; use lower-case letters, digits and -")
    return argv[0], core_config.parse(Arguments(), argv[1:], prog, Arguments.__doc__ or "")


def distributed(command: str) -> str:
    """The command, told that it is one of several processes."""
    return command if "--distributed" in command.split() else f"{command} --distributed"


@dataclasses.dataclass(frozen=True)
class Slice:
    """A Cloud TPU slice by its name, and the gcloud commands of its life."""

    name: str
    asked: Arguments
    there: Topology

    def __post_init__(self):
        kind = self.there.name.partition("-")[0]
        if kind not in ACCELERATORS or self.there.slices > 1:
            raise UserError(
                f"--topology {self.there.name}: launch tpu makes one slice of {', '.join(ACCELERATORS)}; see launch sky and launch slurm"
            )
        if self.asked.zone is None:
            raise UserError("--zone is missing; give the zone that has the slice, as us-west4-a")

    @property
    def accelerator(self) -> str:
        kind, _, size = self.there.name.partition("-")
        return ACCELERATORS[kind].format(size)

    def gcloud(self, *words: str, alpha: bool = False) -> list[str]:
        """A gcloud command about TPUs, in the zone and project."""
        place = [f"--zone={self.asked.zone}", *([f"--project={self.asked.project}"] if self.asked.project else [])]
        return ["gcloud", *(["alpha"] if alpha else []), "compute", "tpus", *words, *place]

    def create(self) -> list[str]:
        """Asks for the slice."""
        runtime, how = RUNTIMES[self.there.name.partition("-")[0]], self.asked.how
        if how in ("on-demand", "spot"):
            spot = ["--spot"] if how == "spot" else []
            return self.gcloud(
                "tpu-vm", "create", self.name, f"--accelerator-type={self.accelerator}", f"--version={runtime}", *spot
            )
        words = [
            "queued-resources",
            "create",
            self.name,
            f"--node-id={self.name}",
            f"--accelerator-type={self.accelerator}",
            f"--runtime-version={runtime}",
        ]
        flex = (
            ["--provisioning-model=flex-start", f"--max-run-duration={self.asked.hours}h"]
            if how == "flex-start"
            else []
        )
        return self.gcloud(*words, *flex, alpha=how == "flex-start")

    def ssh(self, command: str, worker: str = "all") -> list[str]:
        """Runs a command on workers."""
        return self.gcloud("tpu-vm", "ssh", self.name, f"--worker={worker}", f"--command={command}")

    def state(self) -> list[str]:
        """Asks what state the slice is in."""
        return self.gcloud("tpu-vm", "describe", self.name, "--format=value(state)")

    def seen(self, execute: Execute) -> str:
        """The state that the slice is in; empty where there is none."""
        code, out = execute(self.state())
        return "" if code else out.strip()

    def delete(self) -> list[str]:
        """Gives the slice back."""
        if self.asked.how in ("queued", "flex-start"):
            return self.gcloud("queued-resources", "delete", self.name, "--force", "--quiet")
        return self.gcloud("tpu-vm", "delete", self.name, "--quiet")

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
            self.gcloud("tpu-vm", "scp", str(archive), f"{self.name}:{HOME}.tar.gz", "--worker=all"), self.ssh(unpack),
        ]  # fmt: skip

    def install(self) -> list[str]:
        """Python 3.11, which the image lacks, and the project with JAX for TPUs."""
        return self.ssh(
            "sudo apt-get -qq update && sudo apt-get -qq install -y python3.11-venv tmux && "
            f"python3.11 -m venv {ENVIRONMENT} && {ENVIRONMENT}/bin/pip install -q -e './{HOME}[tpu]' && touch {READY}"
        )

    def start(self) -> list[str]:
        """The command under tmux on every worker, unless it runs there already: it outlives the connection, and leaves its exit code behind."""
        inner = f"cd ~/{HOME} && . ~/{ENVIRONMENT}/bin/activate && {distributed(self.asked.command)} >> ~/{LOG} 2>&1; echo $? > ~/{EXIT}"
        begin = f"rm -f {EXIT}; tmux new-session -d -s purestep {shlex.quote(inner)}"
        return self.ssh(f"tmux has-session -t purestep 2>/dev/null || {{ {begin}; }}")

    def follow(self) -> list[str]:
        """The first worker's log as it is written, until the command has ended there."""
        return self.ssh(
            f"touch {LOG}; tail -n +1 -F {LOG} & while [ ! -f {EXIT} ]; do sleep 5; done; sleep 2; kill $!; exit $(cat {EXIT})",
            worker="0",
        )

    def go(self, execute: Execute, say: Callable[[str], None], sleep: Callable[[float], None] = time.sleep) -> int:
        """Carries all of it out and returns the command's exit code. A slice that was preempted, or a command that ends with a code that asks for it
        (75; 143, after a signal), begins again: the run goes on from its last checkpoint. The slice is deleted when the command has ended well."""
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / f"{HOME}.tar.gz"
            for attempt in range(RESTARTS + 1):
                state = self.seen(execute)
                if state in GONE:
                    if state:
                        _must(self.delete(), execute, say)
                    _must(self.create(), execute, say)
                    self._wait(execute, say, sleep)
                if state in GONE or (attempt == 0 and execute(self.ssh(f"test -f {READY}"))[0]):
                    for command in [*self.copy(archive), self.install()]:
                        _must(command, execute, say)
                _must(self.start(), execute, say)
                code = execute(self.follow())[0]
                state = self.seen(execute)
                if code == 0:
                    _must(self.delete(), execute, say)
                    return 0
                if state not in GONE and code not in (75, 143, 255):
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
        while (state := self.seen(execute)) != "READY":
            say(f"{self.name} is {state or 'waiting'}")
            sleep(POLL)


def _must(command: Sequence[str], execute: Execute, say: Callable[[str], None]) -> None:
    say(shlex.join(command))
    code, out = execute(command)
    if code:
        raise UserError(f"{shlex.join(command)} ended with {code}: {out.strip()[-300:]}")


def _done(command: Sequence[str], execute: Execute) -> int:
    _must(command, execute, to_stderr)
    return 0


def execute(command: Sequence[str]) -> tuple[int, str]:
    """(exit code, what it said). What `gcloud ... ssh` of a log says is passed on as it comes."""
    if "--worker=0" in command:
        return subprocess.run(list(command), check=False).returncode, ""
    done = subprocess.run(list(command), capture_output=True, text=True, check=False)
    return done.returncode, done.stdout or done.stderr


def sky_task(name: str, asked: Arguments, there: Topology) -> str:
    """A SkyPilot task, docs.skypilot.co: its hosts find each other by what SkyPilot tells them."""
    if there.platform == "tpu":
        resources, nodes, extra = f"tpu-{there.name.partition('x')[0]}", there.slices, "tpu"
    elif there.platform == "gpu":
        assert there.chip is not None
        resources, nodes, extra = f"{there.chip.name}:{there.devices // there.slices}", there.slices, "cuda"
    else:
        raise UserError(f"--topology {there.name}: SkyPilot rents TPUs and GPUs")
    first = '$(echo "$SKYPILOT_NODE_IPS" | head -n1)'
    place = f"--coordinator {first}:12355 --num-processes $SKYPILOT_NUM_NODES --process-id $SKYPILOT_NODE_RANK"
    command = asked.command if nodes == 1 and there.platform == "gpu" else distributed(asked.command)
    return f"""name: {name}
resources:
  accelerators: {resources}
  use_spot: {str(asked.how == "spot").lower()}
num_nodes: {nodes}
workdir: {asked.source}
setup: |
  pip install -q -e '.[{extra}]'
run: |
  {command}{f" {place}" if nodes > 1 and there.platform == "gpu" else ""}
"""


def slurm_script(name: str, asked: Arguments, there: Topology) -> str:
    """A script for sbatch: a process a node, which JAX finds by Slurm's own variables; requeued when it ends with a code that asks for it."""
    if there.platform != "gpu":
        raise UserError(f"--topology {there.name}: Slurm's script is for GPUs, as h100x64")
    return f"""#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --nodes={there.slices}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={there.devices // there.slices}
#SBATCH --time={asked.hours}:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output={name}-%j.log
cd {shlex.quote(asked.source)}
srun {distributed(asked.command)}
code=$?
if [ $code -eq 143 ] || [ $code -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $code
"""


def _written(text: str, out: str | None) -> int:
    if out is None:
        print(text, end="")
        return 0
    file = Path(out).expanduser()
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error
    print(file)
    return 0
