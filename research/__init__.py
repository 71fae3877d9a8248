"""Purestep: a run is a pure function, and everything else is a JAX transformation of it. See docs/design.md.

`research.load_run(directory)` opens a run in a notebook; `research.fit(config)` trains one.
"""

from typing import Any

_LATE = {"load_run": "research.train.run", "fit": "research.train"}


def __getattr__(name: str) -> Any:
    """What needs heavy imports is imported when first used."""
    if name not in _LATE:
        raise AttributeError(f"module 'research' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LATE[name]), name)
