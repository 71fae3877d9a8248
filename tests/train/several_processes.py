"""Starts a run as several processes of this machine, over Gloo, as a cluster would."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN = [
    "train", "lm_tiny_text", "--model.layers", "1", "--model.width", "16", "--model.heads", "4", "--model.context", "16", "--batch-size", "8",
    "--steps", "8", "--eval-every", "4", "--eval-batches", "1", "--log-every", "1", "--sample-every", "None", "--checkpoint-every", "4",
    "--optimizer.schedule.kind", "constant", "--heartbeat", "10", "--json",
]  # fmt: skip
TIMEOUT = 240


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(
    count: int, devices: int, words: list, program: tuple = ("-m", "research"), each=lambda index: ()
) -> list[subprocess.Popen]:
    """Starts `count` processes of so many devices each; `each(index)` adds words of one's own."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {
        **os.environ,
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'train'}",
    }
    port, out = free_port(), []
    for index in range(count):
        place = (
            ["--distributed", "--coordinator", f"127.0.0.1:{port}", "--num-processes", count, "--process-id", index]
            if count > 1
            else []
        )
        command = [sys.executable, *program, *words, *place, *each(index)]
        out.append(
            subprocess.Popen(
                list(map(str, command)),
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return out


def ended(processes: list[subprocess.Popen], within: float = TIMEOUT) -> list[tuple[int, str, str]]:
    """(exit code, output, errors) of every process. Those that are still there after `within` seconds are killed, and it is an error."""
    until, out = time.monotonic() + within, []
    try:
        for one in processes:
            told, errors = one.communicate(timeout=max(0.1, until - time.monotonic()))
            out.append((one.returncode, told, errors))
    finally:
        for one in processes:
            if one.poll() is None:
                one.kill()
                one.wait()
    return out


def train(count: int, devices: int, run_dir: Path, mesh: str, *more) -> list[tuple[int, str, str]]:
    return ended(start(count, devices, [*RUN, "--run-dir", run_dir, "--mesh", mesh, *more]))
