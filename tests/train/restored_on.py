"""Run by test_hosts.py in each of several processes: restores a run's checkpoint on a mesh and prints the digest of its parameters."""

import json
import sys

import jax
from jax.experimental import multihost_utils

from research.core import config as core_config
from research.core import params as P
from research.train import hosts, start
from research.train.checkpoint import Checkpointer
from research.train.config import Arguments
from research.train.experiments import load


def main(argv: list[str]) -> None:
    name, run_dir, *words = argv
    asked: Arguments = core_config.parse(Arguments(load(name).config), words, "restored_on")
    if asked.distributed:
        hosts.join(hosts.Processes(asked.coordinator, asked.num_processes, asked.process_id, asked.heartbeat))
    program = start.program_of(asked.experiment)
    restored = Checkpointer(f"{run_dir}/checkpoints").restore(program.abstract_state())
    assert restored is not None
    params = restored.state.params
    whole = multihost_utils.process_allgather(params, tiled=True) if jax.process_count() > 1 else jax.device_get(params)
    print(json.dumps([restored.step, P.digest(whole)]))


main(sys.argv[1:])
