"""`research sweep EXPERIMENT FIELD=SPEC ... [options]`: many runs of an experiment at once."""

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from research.core import config as C
from research.core.errors import UserError
from research.sweep.space import FORMS
from research.sweep.sweep import Options, Results, Sweep
from research.train.command import guarded

PROG = "research sweep EXPERIMENT FIELD=SPEC"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """Trains EXPERIMENT with every choice of its fields. SPEC is a,b,c, choice:a,b,c, log:LOW:HIGH:N, lin:LOW:HIGH:N or int:LOW:HIGH; one value sets
    a field for all. Fields that only change numbers of the compiled step share it. What is done is kept: the same command goes on."""

    plan: bool = False  # print the plan and stop
    json: bool = False  # the last line is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors


def main(argv: Sequence[str]) -> int:
    """`research sweep EXPERIMENT FIELD=SPEC ...`."""
    from research.train import experiments

    if argv and argv[0] in ("-h", "--help"):
        C.parse(Arguments(), argv[:1], PROG, Arguments.__doc__ or "")
    if not argv or argv[0].startswith("-"):
        raise UserError(f"usage: {PROG} ... [options]; there are {', '.join(experiments.names())}")
    experiment = experiments.load(argv[0])
    return run_sweep(Sweep(base=experiment.config, name=experiment.name), argv[1:], PROG)


After = Callable[[Results], dict[str, Any]]
"""May report on a finished sweep: what it returns joins the sweep's JSON, and strings of it are printed."""


def script(sweep: Sweep, argv: Sequence[str] | None = None, after: After | None = None) -> None:
    """Runs a sweep's script and exits: `sweep.main(SWEEP)` under `if __name__ == "__main__"`. It takes FIELD=SPEC and the options of
    `research sweep`."""
    words = sys.argv[1:] if argv is None else argv
    sys.exit(guarded(lambda: run_sweep(sweep, words, f"{sweep.name}.py", after), "--debug" in words))


def run_sweep(sweep: Sweep, argv: Sequence[str], prog: str, after: After | None = None) -> int:
    """A sweep under a command line, whose specs are added to its own; returns the exit code."""
    specs, words = specs_in(argv)
    own = {name: getattr(sweep, name) for name in _OWN}
    options: Arguments = C.parse(Arguments(**own), words, prog, Arguments.__doc__ or "")
    given = {name: getattr(options, name) for name in _OWN}
    sweep = dataclasses.replace(sweep, space={**sweep.space, **specs}, **given)
    if not sweep.space:
        raise UserError(f"the space is empty: give at least one FIELD=SPEC, with a SPEC like {FORMS}")
    sweep = _single_values(sweep)
    results = sweep.run(plan_only=options.plan)
    if options.plan:
        return 0
    summary = results.summary()
    _show(summary)
    if after is not None:
        told = after(results)
        print("\n".join(value for value in told.values() if isinstance(value, str)))
        summary |= told
    if options.json:
        print(json.dumps(summary), flush=True)
    return 0


_OWN = tuple(field.name for field in dataclasses.fields(Options))


def specs_in(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The words FIELD=SPEC as specs by field, and the other words. Raises UserError for two specs of one field."""
    specs: dict[str, str] = {}
    others = []
    for word in argv:
        # a word that starts as a field's name does: an option's value may have a = in it as well, as a URL
        found = re.fullmatch(r"([A-Za-z_][\w.-]*)=(.*)", word, re.DOTALL)
        if found is None:
            others.append(word)
            continue
        name = found[1].replace("-", "_")
        if name in specs:
            raise UserError(f"{name} is given two specs, {specs[name]!r} and {found[2]!r}; give one")
        specs[name] = found[2]
    return specs, others


def _single_values(sweep: Sweep) -> Sweep:
    """The sweep with fields of one value set in its base, as far as others are left to be swept."""
    single = {
        one.field: one.values[0]
        for one in sweep.dimensions().dimensions
        if one.values is not None and len(one.values) == 1
    }
    if len(single) == len(sweep.space) and sweep.seeds == 1:
        return sweep
    base = C.set_values(sweep.base, single, "the base")
    space = {name: spec for name, spec in sweep.space.items() if name.replace("-", "_") not in single}
    return dataclasses.replace(sweep, base=base, space=space)


def _show(summary: dict[str, Any]) -> None:
    counts = ", ".join(
        f"{summary[status]} {status}" for status in ("complete", "diverged", "stopped") if summary[status]
    )
    print(f"{summary['trials']} trials: {counts}; {summary['results']}")
    if summary["best"] is not None:
        fields = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in summary["best"]["fields"].items())
        print(f"best: trial {summary['best']['trial']}, loss {summary['best']['metric']:.4f}: {fields}")
