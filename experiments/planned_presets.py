"""The tables of docs/scale.md: presets planned on slices and GPUs that are not here, and published runs beside what the plan predicts of them.

    python experiments/planned_presets.py [--only published]

Every row compiles the real train step; with libtpu and JAX's CUDA plugin (extras `plan-tpu`, `plan-gpu`) for the chip itself. The published runs are
MaxText's, by its configs for TPUs: sequences of 2,048 tokens, heads of 128, SwiGLU, untied, FLOPs counted with full attention.
"""

import dataclasses
import sys
from typing import Literal

from research.core import config as core_config
from research.core.errors import UserError
from research.families import llama
from research.scale import aot, plan
from research.scale.topology import topology
from research.train import Config
from research.train.command import guarded

# preset, topology, mesh
PRESETS = (
    ("gpt2-xl", "v5e-16", "fsdp=16"), ("llama3-8b", "v5p-32", "fsdp=16"), ("llama3-8b", "v6e-16", "fsdp=16"), ("llama3-8b", "h200x8", "fsdp=8"),
    ("llama3-70b", "v5p-256", "fsdp=16,tensor=8"), ("llama3-70b", "v6e-256", "fsdp=32,tensor=8"), ("llama3-70b", "h200x128", "fsdp=16,tensor=8"),
    ("mixtral-8x7b", "v5p-128", "fsdp=16,tensor=4"), ("gpt3-175b", "v5p-1024", "fsdp=64,tensor=8"),
)  # fmt: skip


# name, width, remat, topology, mesh, sequences a chip, published TFLOP/s a chip
PUBLISHED = (
    ("16B", 4096, "full", "v5e-256", "fsdp=256", 6, 120), ("32B", 8192, "full", "v5e-256", "fsdp=256", 4, 132),
    ("32B", 8192, "matmuls", "v5p-128", "fsdp=16,tensor=4", 6, 328),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is planned."""

    only: Literal["presets", "published"] | None = None
    fast: bool = False  # compile with fewer optimisations
    debug: bool = False


def planned(config: Config, name: str, fast: bool) -> dict:
    """The plan of a config on a topology."""
    target = aot.target(topology(name))
    found = plan.make(plan.program_for(config, target.devices), target, fast).summary()
    if found["compiled_for"] == "cpu":
        raise UserError(f"{name}: its compiler is not here; pip install 'purestep[plan-tpu,plan-gpu]'")
    return found


def row(*cells) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def presets(fast: bool) -> None:
    """Prints the table of presets."""
    print(
        "| preset | topology | chips | mesh | rows x tokens | GiB at the peak | of | s a step | tokens/s | MFU | s to compile |"
    )
    row(*["---"] * 11)
    for name, there, mesh in PRESETS:
        config = dataclasses.replace(plan.base(name, topology(there).devices), mesh=mesh)
        one = planned(config, there, fast)
        peak, limit = (one[key] / 2**30 for key in ("peak_bytes_per_chip", "limit_bytes_per_chip"))
        row(name, there, one["chips"], mesh, f"{one['batch']} x {one['sequence']:,}", f"{peak:.2f}", f"{limit:.2f}",
            f"{one['step_seconds']:.3g}", f"{one['tokens_per_second']:,.0f}", f"{one['mfu']:.0%}", f"{one['compile_seconds']:.0f}")  # fmt: skip


def published(fast: bool) -> None:
    """Prints the table of published runs."""
    print(
        "| model | topology | mesh | rows a chip | remat | published, s a step | predicted | off by | GiB at the peak |"
    )
    row(*["---"] * 9)
    for name, width, remat, there, mesh, rows, teraflops in PUBLISHED:
        chips = topology(there).chips
        model = llama.config(32, width, 64, 28672, context=2048, head_size=128, remat=remat)
        one = planned(Config(model=model, batch_size=rows * chips, mesh=mesh), there, fast)
        seconds = one["flops_per_step"] / chips / teraflops / 1e12
        peak = one["peak_bytes_per_chip"] / 2**30
        row(name, there, mesh, rows, model.remat, f"{seconds:.2f}", f"{one['step_seconds']:.2f}", f"{one['step_seconds'] / seconds - 1:+.1%}",
            f"{peak:.2f}")  # fmt: skip


def main(argv: list[str]) -> int:
    """Prints the tables asked for."""
    asked: Arguments = core_config.parse(Arguments(), argv, "planned_presets.py", __doc__ or "")
    for table in (presets, published):
        if asked.only in (None, table.__name__):
            table(asked.fast)
    return 0


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(guarded(lambda: main(words), "--debug" in words))
