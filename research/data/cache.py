"""Cache entries: folders that are either complete and verified, or not there.

An entry is a folder named by the hash of what it was made from. It is written under a temporary name, synced, and
renamed into place, so that a process killed at any moment, or two processes making the same entry, leave nothing
half-written. Its `manifest.json` holds the size and SHA-256 of every file; an entry that no longer agrees with it is
made again.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from research.core.errors import UserError

MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"
ABANDONED_AFTER_SECONDS = 24 * 3600.0


def entry(folder: Path, write: Callable[[Path], None]) -> bool:
    """Makes sure that `folder` is a complete entry; returns whether it already was. `write` fills a fresh empty folder.

    Raises UserError where the cache cannot be written (no permission, disk full); whatever `write` raises passes
    through.
    """
    if is_intact(folder):
        return True
    temporary = folder.with_name(f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        _remove_abandoned(folder.parent)
        write(temporary)
        _seal(temporary)
        _install(temporary, folder)
    except OSError as error:
        raise UserError(
            f"cannot write the cache folder {folder.parent}: {error.strerror or error}. "
            "Free some space, or name a folder that can be written in the environment variable RESEARCH_CACHE."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return False


def is_intact(folder: Path) -> bool:
    """Returns whether every file that the entry's manifest lists is there with the listed size and SHA-256."""
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        return bool(files) and all(_describe(folder / name) == described for name, described in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _describe(path: Path) -> dict[str, int | str]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _seal(folder: Path) -> None:
    """Writes the manifest and forces every file to the disk, the manifest last."""
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        _sync(folder / name)
    manifest = {"files": {name: _describe(folder / name) for name in names}}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _sync(folder / MANIFEST)


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _install(temporary: Path, folder: Path) -> None:
    """Renames into place. Where another process was first its entry stays; a damaged one is moved out of the way."""
    for attempt in range(10):
        try:
            os.rename(temporary, folder)
            return
        except OSError:
            if is_intact(folder):
                return
            if not folder.exists() or attempt == 9:
                raise
        _discard(folder)


def _discard(path: Path) -> None:
    """Removes a file or folder at once for everyone else: renamed first, then deleted."""
    doomed = path.with_name(f"{TEMPORARY}damaged-{uuid.uuid4().hex}")
    try:
        os.rename(path, doomed)
    except FileNotFoundError:  # another process discarded it first
        return
    if doomed.is_dir():
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        doomed.unlink(missing_ok=True)


def _remove_abandoned(parent: Path) -> None:
    """Deletes what killed processes left behind, once nothing in it has changed for a day."""
    for folder in parent.glob(f"{TEMPORARY}*"):
        try:
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
        except OSError:
            continue
        if time.time() - newest > ABANDONED_AFTER_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
