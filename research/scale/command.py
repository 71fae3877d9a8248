"""`research plan EXPERIMENT|PRESET --topology NAME`: what a run needs and should reach on hardware that is not there."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from research.core import config as core_config
from research.core.errors import UserError
from research.data import command_line
from research.train.command import take_option, to_stderr
from research.train.config import Config

PROG = "research plan EXPERIMENT|PRESET"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compiles the train step of an experiment, or of a preset of `research families`, for a topology, and tells what it takes. Every field of the
    config may be set as for `research train`."""

    experiment: Annotated[Config, tyro.conf.arg(name="")]
    # v5e-16, v5p-256, v6e-256, tpu7x-8, v5e-16x2 (two slices), h100x8, h200x64, cpu-8, ...
    topology: str = "cpu-8"
    batch: int | None = None  # rows in a step, as --batch-size
    fast: bool = False  # compile with fewer optimisations; the peak may come out lower than it is
    show_sharding: bool = False  # where every parameter lives
    json: bool = False  # the last line is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors

    flattened = ("experiment",)


def main(argv: Sequence[str]) -> int:
    """`research plan EXPERIMENT|PRESET --topology NAME [options]`."""
    from research.scale import aot, plan
    from research.scale.topology import topology

    os.environ.setdefault(
        "TF_CPP_MIN_LOG_LEVEL", "2"
    )  # what XLA thinks of a partition is in the report, as bytes that are sent
    if argv and argv[0] in ("-h", "--help"):
        core_config.parse(Arguments(Config()), argv[:1], PROG, Arguments.__doc__ or "")
    if not argv or argv[0].startswith("-"):
        raise UserError(f"usage: {PROG} --topology v5e-16|v5p-256|h100x8|cpu-8|... [--mesh fsdp=16,tensor=8] [options]")
    words, named = take_option(list(argv[1:]), "--topology")  # a preset's rows depend on its devices
    there = topology(Arguments.topology if named is None else named)
    target = aot.target(there)
    default = Arguments(plan.base(argv[0], there.devices), topology=there.name)
    asked: Arguments = core_config.parse(default, words, f"research plan {argv[0]}")
    given = frozenset(name.replace("-", "_") for name in core_config.options_given(words))
    if {"batch", "batch_size"} <= given:
        raise UserError("--batch and --batch-size are the same; give one")
    config = asked.experiment if asked.batch is None else dataclasses.replace(asked.experiment, batch_size=asked.batch)
    made, tried = plan.best(config, target, given, asked.fast, to_stderr)
    found = made.summary()
    if tried:
        found["tried"] = tried
    if not made.fits:
        found["change"] = plan.smallest_change(made, target, asked.fast, to_stderr)
    said = lines(made, found)
    if asked.show_sharding:
        said += ["", *command_line.table(("leaf", "shape", "axes", "spec", "bytes a device"), plan.table(made.program))]
    command_line.show(said, found, asked.json)
    return 0 if made.fits else 1


def lines(made: Any, found: dict[str, Any]) -> list[str]:
    """The plan for a person."""
    topology = made.target.topology
    mesh = ", ".join(f"{name} {size}" for name, size in found["mesh"].items() if size > 1) or "one device"
    out = [
        f"{topology.name}: {topology.said}"
        + (
            ""
            if made.target.real
            else "; its own compiler is not here, so the step is partitioned for fake CPU devices, which compute in float32: twice the bytes"
        ),
        f"{found['params']:,} parameters, {found['batch']} rows of {found['sequence']:,} tokens in {found['micro_batches']} pass(es), "
        f"mesh {mesh}, remat {found['remat']}",
        "",
    ]
    gib = 2**30
    limit = "" if found["limit_bytes_per_chip"] is None else f" of {found['limit_bytes_per_chip'] / gib:,.2f}"
    verdict = "fits" if made.fits else "DOES NOT FIT"
    out.append(f"{verdict}: {found['peak_bytes_per_chip'] / gib:,.2f}{limit} GiB a device at the peak")
    out += [f"  {name:<12} {size / gib:>9,.3f} GiB" for name, size in found["bytes"].items() if name != "peak"]
    if found["collectives"]:
        out += ["", *command_line.table(("messages of a step", "executed", "GiB a device"), [
            (kind, one["executed"], one["bytes"] / gib) for kind, one in sorted(found["collectives"].items())
        ])]  # fmt: skip
        head = ("sent along", "over", "executed", "GiB a device", "by theory")
        out += ["", *command_line.table(head, [
            ("+".join(one.axes), "network" if one.network else "links", one.executed, one.sent / gib, "" if one.theory is None else one.theory / gib)
            for one in made.traffic
        ])]  # fmt: skip
    if made.prediction is not None:
        parts = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in made.prediction.parts.items() if seconds)
        out += ["", f"{found['flops_per_step']:.4g} FLOPs a step; {parts}",
                f"predicted: {found['step_seconds']:.3g} s a step, {found['tokens_per_second']:,.0f} tokens/s, MFU {found['mfu']:.1%}, "
                f"bound by {found['bound_by']}"]  # fmt: skip
    if not made.fits:
        change = found["change"]
        if change:
            peak = change["peak_bytes_per_chip"] / gib
            out += ["", f"the smallest change that fits: {change['options']} ({peak:,.2f} GiB a device, compiled)"]
        else:
            out += [
                "",
                "no change of passes, recomputation, mesh or size of the topology was found to fit; give fewer rows or shorter ones",
            ]
    return [*out, f"compiled in {found['compile_seconds']:.0f} s"]
