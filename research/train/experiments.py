"""Experiments by name or path. They may live outside this repository; no verb imports one by an import statement."""

import difflib
import importlib.util
import sys
from pathlib import Path

from research.core.errors import UserError
from research.train.config import Experiment


def folder() -> Path:
    """The folder of the experiments that come with the project."""
    found = importlib.util.find_spec("experiments")
    if found is None or not found.submodule_search_locations:
        raise UserError("the `experiments` package is not installed; give the path of an experiment's file")
    return Path(next(iter(found.submodule_search_locations)))


def names() -> list[str]:
    """The names of the project's own experiments: the scripts that define an EXPERIMENT."""
    return sorted(file.stem for file in folder().glob("*.py") if "\nEXPERIMENT = " in file.read_text(encoding="utf-8"))


def load(name: str) -> Experiment:
    """The EXPERIMENT of a file, given by its path or, for the project's own, its name. Raises UserError when there is none."""
    path = Path(name) if name.endswith(".py") else folder() / f"{name}.py"
    if not path.is_file():
        near = difflib.get_close_matches(name, names(), 1, 0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f"there is no experiment {name!r} (there are {', '.join(names())}, or give the path of a .py file){hint}"
        )
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    if name.endswith(".py") and str(path.parent.resolve()) not in sys.path:
        sys.path.insert(0, str(path.parent.resolve()))  # as running the file itself would
    spec.loader.exec_module(module)
    experiment = getattr(module, "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise UserError(f"{path} defines no EXPERIMENT; see the project's own for the form")
    return experiment
