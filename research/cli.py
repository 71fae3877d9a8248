"""The verbs of the command line: `research VERB ...`, the same as `python -m research VERB ...`."""

import json
import sys
from collections.abc import Sequence
from functools import partial

from research.core import verbs
from research.core.errors import UserError


def train(argv: Sequence[str]) -> int:
    """NAME [overrides]: run an experiment, by name or by the path of its file"""
    from research.train import command, experiments

    usage = f"usage: research train NAME [overrides]; there are {', '.join(experiments.names())}"
    if argv and argv[0] in ("-h", "--help"):
        print(f"{usage}\nresearch train NAME --help lists an experiment's options.")
        return 0
    if not argv or argv[0].startswith("-"):
        raise UserError(usage)
    experiment = experiments.load(argv[0])
    return command.run_experiment(experiment, argv[1:], f"research train {argv[0]}")


def sample(argv: Sequence[str]) -> int:
    """MODEL --prompt TEXT: continue a text with a run's model, or one in Hugging Face's layout"""
    from research.sample.command import sample_command
    from research.train import compile_cache
    from research.train.run import open_model

    compile_cache.enable()
    return sample_command(open_model, argv)


def inspect(argv: Sequence[str]) -> int:
    """MODEL [--hash]: config and parameters of a run, a folder, a hub id or a preset, without loading weights unless hashing them"""
    from research.train import inspection

    return inspection.main(argv)


def convert(argv: Sequence[str]) -> int:
    """SRC DST [--to hf|run] [--dtype NAME]: a run as a folder in Hugging Face's layout, or the reverse"""
    from research.train import convert

    return convert.main(argv)


def families(argv: Sequence[str]) -> int:
    """[NAME]: the families of models, their presets and exact sizes"""
    from research.families import listing

    return listing.main(argv)


def data(argv: Sequence[str]) -> int:
    """prepare|preview|stats|mix|dedup: tokenise and clean a source, look at the batch of a step, count, mix, drop duplicates"""
    from research.data import command

    return command.main(argv)


def sweep(argv: Sequence[str]) -> int:
    """EXPERIMENT FIELD=SPEC ...: many runs of an experiment at once, in as few compiled programs as they need"""
    from research.sweep import command

    return command.main(argv)


def compare(argv: Sequence[str]) -> int:
    """RUN RUN ...: runs beside each other: where their configs differ, their losses and curves, as a report"""
    from research.sweep import compare

    return compare.main(argv)


def mup_check(argv: Sequence[str]) -> int:
    """EXPERIMENT [FIELD=VALUE ...]: whether muP keeps activations, and what training changes of them, at one size over widths"""
    from research.sweep import mup_command

    return mup_command.main(argv)


def plan(argv: Sequence[str]) -> int:
    """EXPERIMENT|PRESET --topology NAME: whether it fits hardware that is not there, how it is split, what it sends, how fast it should be"""
    from research.scale import command

    return command.main(argv)


def doctor(argv: Sequence[str]) -> int:
    """whether this machine is fit to train: versions, devices, memory, disks, clocks, three readings, and what to do"""
    from research.scale import doctor

    return doctor.main(argv)


def launch(argv: Sequence[str]) -> int:
    """tpu|sky|slurm NAME --topology T --command CMD: a command on rented machines; what would be done is printed"""
    from research.scale import launch

    return launch.main(argv)


def scaling(argv: Sequence[str]) -> int:
    """fit TABLE.csv: a scaling law of runs, with intervals, and the best size for a budget"""
    from research.sweep import scaling_command

    return scaling_command.main(argv)


def bench(argv: Sequence[str]) -> int:
    """train|data|sample|sweep|remat: measure a claim, beside a peer or a physical limit in the same run"""
    from research.bench import command

    return command.main(argv)


VERBS = {
    "train": train,
    "sample": sample,
    "inspect": inspect,
    "convert": convert,
    "families": families,
    "data": data,
    "sweep": sweep,
    "compare": compare,
    "mup-check": mup_check,
    "scaling": scaling,
    "plan": plan,
    "launch": launch,
    "doctor": doctor,
    "bench": bench,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit code: 0, 2 on bad input, 128 + n after signal n."""
    argv = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if argv[0] == "--version":
        from importlib.metadata import version

        print(json.dumps({"purestep": version("purestep")}) if "--json" in argv else f"purestep {version('purestep')}")
        return 0
    run = partial(verbs.run, "research VERB", VERBS, argv, "verb")
    if argv[0] in ("-h", "--help"):  # needs nothing of what follows
        return run()
    from research.train.command import guarded

    return guarded(run, "--debug" in argv)


def entry() -> None:
    """The console script."""
    sys.exit(main())
