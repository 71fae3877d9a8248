"""The seal on a checkpoint folder: which files it holds, how long they are and what they hash to.

`manifest.json` describes the checkpoint and lists the SHA-256 of every file; `manifest.sha256` holds the SHA-256 of
`manifest.json` in the format of the `sha256sum` tool. Both are written after everything else, so a folder whose seal is
whole is a checkpoint whose every byte is as it was written.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
SEAL = "manifest.sha256"


class Damaged(Exception):
    """A checkpoint folder is not as it was written. The message names the file and what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says. `leaves` are (path, dtype, shape); `files` are name: (bytes, SHA-256)."""

    step: int
    best: bool
    meta: dict[str, Any]
    leaves: tuple[tuple[tuple[str, ...], str, tuple[int, ...]], ...]
    files: Mapping[str, tuple[int, str]]


def write(folder: Path, step: int, best: bool, meta: dict[str, Any], leaves) -> None:
    """Seals `folder`: hashes every file in it and flushes it to disk, then writes the manifest. Raises OSError."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p not in (folder / MANIFEST, folder / SEAL)):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = [path.stat().st_size, digest]
    body = {"step": step, "best": best, "meta": meta, "leaves": leaves, "files": files}
    text = json.dumps(body, indent=1).encode()
    _write_flushed(folder / MANIFEST, text)
    _write_flushed(folder / SEAL, _seal_of(text))


def read(folder: Path) -> Manifest:
    """The manifest of `folder`, its own seal checked but not the files. Raises Damaged, or FileNotFoundError."""
    text, seal = _bytes_of(folder, MANIFEST), _bytes_of(folder, SEAL)
    if seal != _seal_of(text):
        raise Damaged(f"{MANIFEST} does not agree with {SEAL}")
    body = json.loads(text)
    leaves = tuple((tuple(path), dtype, tuple(shape)) for path, dtype, shape in body["leaves"])
    files = {name: (size, digest) for name, (size, digest) in body["files"].items()}
    return Manifest(body["step"], body["best"], body["meta"], leaves, files)


def verify(folder: Path) -> Manifest:
    """The manifest of `folder`, every file compared with it. Raises Damaged naming the first that differs."""
    manifest = read(folder)
    for name, (size, digest) in manifest.files.items():
        path = folder / name
        try:
            found = path.stat().st_size
            if found != size:
                raise Damaged(f"{name} has {found:,} bytes where {size:,} were written")
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise Damaged(f"{name} does not have the bytes that were written")
        except FileNotFoundError:
            raise Damaged(f"{name} is missing") from None
        except OSError as error:
            raise Damaged(f"{name} cannot be read ({error.strerror})") from error
    return manifest


def _bytes_of(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        if not folder.is_dir():
            raise
        raise Damaged(f"{name} is missing") from None
    except OSError as error:
        raise Damaged(f"{name} cannot be read ({error.strerror})") from error


def _seal_of(text: bytes) -> bytes:
    return f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n".encode()


def _write_flushed(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
