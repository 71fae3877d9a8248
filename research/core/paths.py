"""Where the project keeps what it can make again: one cache folder per user."""

import os
from pathlib import Path


def research_cache_dir() -> Path:
    """Returns the cache folder (not created): `$RESEARCH_CACHE`, else `$XDG_CACHE_HOME/purestep`, else
    `~/.cache/purestep`.

    An empty variable counts as unset, as the XDG base directory specification asks.
    """
    if chosen := os.environ.get("RESEARCH_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "purestep"
