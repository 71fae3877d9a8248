"""Sides of a benchmark that need nothing but the standard library, and answer what a test wants."""

import sys
from pathlib import Path

from research.bench.process import Side

SCRIPT = """
import json, os, sys, time

NAME, FACTS, BUILD, STEP, LOG = {name!r}, {facts!r}, {build!r}, {step!r}, {log!r}


def note(what):
    with open(LOG, "a") as file:
        file.write(json.dumps([NAME, what]) + chr(10))


def about():
    print("a library that talks on standard output")
    {about}
    return FACTS


def build(request):
    note({{"build": request}})
    exec(BUILD)

    def run(steps):
        began = time.perf_counter()
        note({{"steps": steps}})
        loss = 1.5
        exec(STEP)
        time.sleep(max(0, 0.02 * steps - (time.perf_counter() - began)))
        return loss if "nan" not in STEP else float("nan")

    return FACTS, run
"""

ABOUT = {"versions": {"fake": "1"}, "platform": "cpu", "device": "cpu", "kind": "a fake", "dtype": "float32"}
FACTS = {"params": 10, "flops_per_token": 60.0, "peak_flops": 6000.0, "peak_source": "nowhere"}


def side(folder: Path, name: str, *, about: str = "", build: str = "", step: str = "", **facts) -> Side:
    """A side whose step takes 20 ms. `about`, `build` and `step` are statements to run there."""
    path = folder / f"{name}.py"
    log = str(folder / "log.jsonl")
    text = SCRIPT.format(
        name=name, facts={**ABOUT, **FACTS, **facts}, build=build, step=step, log=log, about=about or "pass"
    )
    path.write_text(text, encoding="utf-8")
    return Side(name, sys.executable, path)
