"""`research launch tpu|sky|slurm`: a command on machines that are rented, from their creation to their end.

`tpu` shells out to `gcloud`, whose commands `--dry-run` prints: create, copy the working tree, install, start under tmux on every worker, follow
the log, make the slice anew and go on when it was preempted, delete. `sky` and `slurm` write a SkyPilot task and a Slurm script from the same
answers.
"""

import dataclasses
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from research.core import config as core_config
from research.core import verbs
from research.core.errors import UserError
from research.scale import machines
from research.scale.topology import Topology, topology
from research.train.command import to_stderr

PROG = "research launch"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Runs a command on every host of a topology: `research launch KIND NAME --topology v5e-16 --command "research train ..."`, to which
    --distributed is added."""

    topology: str = "v5e-16"  # tpu: the slice, as v5e-16; sky, slurm: also GPUs, as h100x16
    command: str = "research train quickstart"  # what every host runs
    zone: str | None = None  # tpu: the zone, as us-west4-a
    project: str | None = None  # tpu: the project; None: gcloud's own
    # tpu: how the slice is asked for; sky: whether spot
    how: Literal["on-demand", "spot", "queued", "flex-start"] = "spot"
    through: Literal["cloud-tpu", "compute-engine"] = "cloud-tpu"  # tpu: which of Google's services makes it
    hours: int = 24  # tpu, flex-start: the longest that it may run; slurm: the time limit
    bucket: str | None = None  # tpu: of Cloud Storage, mounted on every host as ~/runs, for run directories
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
            raise UserError("--command is empty; give what is to run, as 'research train quickstart'")
        if self.bucket is not None and not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", self.bucket):
            raise UserError(f"--bucket is {self.bucket!r}; expected the bucket's name alone, without gs:// or a path")
        if self.hours < 1:
            raise UserError(f"--hours is {self.hours}; expected a whole number of at least 1")


def main(argv: Sequence[str]) -> int:
    """`research launch tpu|sky|slurm NAME [options]`."""
    return verbs.run(f"{PROG} KIND NAME", {"tpu": tpu, "sky": sky, "slurm": slurm}, argv, "kind")


def tpu(argv: Sequence[str]) -> int:
    """NAME --topology v5e-16 --zone ZONE --command CMD: a Cloud TPU slice by gcloud; --run carries it out"""
    name, asked = _parsed(argv, "tpu")
    slice_ = machines.machine(name, asked, topology(asked.topology))
    if not asked.run:
        steps = {"delete": [slice_.delete()]} if asked.delete else slice_.steps(Path("purestep.tar.gz"))
        for step, commands in steps.items():
            print(f"# {step}")
            print("\n".join(shlex.join(command) for command in commands))
        return 0
    if shutil.which("gcloud") is None:
        raise UserError("gcloud is not installed: cloud.google.com/sdk; without --run the commands are printed")
    if asked.delete:
        machines.must(slice_.delete(), machines.execute, to_stderr)
        return 0
    return slice_.go(machines.execute, to_stderr)


def sky(argv: Sequence[str]) -> int:
    """NAME --topology v5e-16|h100x8 --command CMD: a task for SkyPilot"""
    name, asked = _written_only(argv, "sky")
    return _written(sky_task(name, asked, topology(asked.topology)), asked.out)


def slurm(argv: Sequence[str]) -> int:
    """NAME --topology h100x64 --command CMD: a script for sbatch"""
    name, asked = _written_only(argv, "slurm")
    return _written(slurm_script(name, asked, topology(asked.topology)), asked.out)


def _written_only(argv: Sequence[str], kind: str) -> tuple[str, Arguments]:
    name, asked = _parsed(argv, kind)
    if asked.run or asked.delete or asked.bucket:
        raise UserError(
            f"launch {kind} writes a file and starts nothing; --run, --delete and --bucket are launch tpu's"
        )
    return name, asked


def _parsed(argv: Sequence[str], kind: str) -> tuple[str, Arguments]:
    prog = f"{PROG} {kind} NAME"
    if argv and argv[0] in ("-h", "--help"):
        core_config.parse(Arguments(), argv[:1], prog, Arguments.__doc__ or "")
    if not argv or argv[0].startswith("-"):
        raise UserError(f"usage: {prog} --topology v5e-16 --command 'research train ...' [options]")
    if not argv[0].replace("-", "").isalnum() or not argv[0].islower():
        raise UserError(f"{argv[0]!r} is no name for a machine; use lower-case letters, digits and -")
    return argv[0], core_config.parse(Arguments(), argv[1:], prog, Arguments.__doc__ or "")


def sky_task(name: str, asked: Arguments, there: Topology) -> str:
    """A SkyPilot task, docs.skypilot.co: its hosts find each other by what SkyPilot tells them."""
    if there.platform == "tpu":
        if there.slices > 1:
            raise UserError(f"--topology {there.name}: SkyPilot is asked for one slice; launch tpu makes several")
        resources, nodes, extra = f"tpu-{machines.accelerator(there)}", 1, "tpu"
    elif there.platform == "gpu":
        assert there.chip is not None
        resources, nodes, extra = f"{there.chip.name}:{there.devices // there.slices}", there.slices, "cuda"
    else:
        raise UserError(f"--topology {there.name}: SkyPilot rents TPUs and GPUs")
    first = '$(echo "$SKYPILOT_NODE_IPS" | head -n1)'
    place = f"--coordinator {first}:12355 --num-processes $SKYPILOT_NUM_NODES --process-id $SKYPILOT_NODE_RANK"
    command = asked.command if nodes == 1 and there.platform == "gpu" else machines.distributed(asked.command)
    return f"""name: {name}
resources:
  accelerators: {resources}
  use_spot: {str(asked.how == "spot").lower()}
num_nodes: {nodes}
workdir: {asked.source}
setup: |
  command -v python3.11 > /dev/null || {{ {machines.PYTHON}; }}
  python3.11 -m venv ~/{machines.ENVIRONMENT}
  ~/{machines.ENVIRONMENT}/bin/pip install -q -e '.[{extra}]'
run: |
  . ~/{machines.ENVIRONMENT}/bin/activate
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
srun bash -c {shlex.quote(machines.distributed(asked.command))}
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
