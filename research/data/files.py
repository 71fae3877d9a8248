"""Finding files, reading text files strictly, and writing files and folders whole or not at all."""

import contextlib
import glob
import hashlib
import itertools
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from research.core.errors import UserError

_BYTE_ORDER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip", b"PK": "zip", b"%P": "PDF"}


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """Returns the whole content of `path`. Raises UserError where it cannot be read or has more than `limit` bytes."""
    try:
        if limit is not None and (size := path.stat().st_size) > limit:
            raise UserError(f"{path} has {size} bytes, expected at most {limit}: it is not what its name says.")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def decode_utf8(content: bytes, what: str, start: int = 0) -> str:
    """Returns `content`, which begins at the byte offset `start` of `what`, as text, newlines as they are. Raises UserError, naming `what` and
    the byte offset (from 0), where it is not UTF-8 or holds a NUL byte, which no text does."""
    guess = _BYTE_ORDER_MARKS.get(content[:2])
    hint = f" It looks like {guess}." if guess else ""
    nul = content.find(b"\0")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        if not 0 <= nul < error.start:
            raise UserError(
                f"{what} is not UTF-8 text: byte 0x{content[error.start]:02x} at byte offset {start + error.start} "
                f"({error.reason}).{hint} Convert it to UTF-8, or leave it out."
            ) from error
        text = ""
    if nul >= 0:
        raise UserError(
            f"{what} is binary, not text: NUL byte at byte offset {start + nul}.{hint} Give UTF-8 text, or leave it out."
        )
    return text


def read_utf8(path: Path, limit: int | None = None) -> str:
    """Returns the text of `path`. Raises UserError where it cannot be read, has more than `limit` bytes or is not
    UTF-8 text (with the byte offset)."""
    return decode_utf8(read_bytes(path, limit), str(path))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Yields a file to write: a temporary one in the same folder that takes the name `path`, synced, once the block has ended well.

    Raises UserError where the folder cannot be written or the disk is full; what stood at `path` before is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` to `path` whole or not at all (`writing`)."""
    with writing(path) as file:
        file.write(content)


def check_new(folder: Path) -> None:
    """Raises UserError where something is there already, an empty folder aside."""
    if (folder.exists() or folder.is_symlink()) and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} already holds something; give a new folder")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields a fresh folder beside `folder` to fill; it takes the name once the block has ended well, and is removed otherwise.

    Raises UserError where something is there already (an empty folder is replaced), and where it cannot be written.
    """
    folder = folder.absolute()
    check_new(folder)
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}-{uuid.uuid4().hex}")
    try:
        try:
            fresh.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
        yield fresh
        try:
            os.replace(fresh, folder)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def digest_files(files: Iterable[tuple[str, Path]]) -> tuple[str, int]:
    """Returns (SHA-256 over the names and contents, bytes) of files given as (name, path). Raises UserError for an
    unreadable one."""
    total, size = hashlib.sha256(), 0
    for name, path in files:
        try:
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256")
                size += file.tell()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        total.update(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() + content.digest())
    return total.hexdigest(), size


def files_below(folder: Path, skipped: set[str]) -> list[tuple[str, Path]]:
    """Every visible regular file below `folder` as (path relative to it, path), sorted by the relative path."""
    found = []
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in skipped]
        found += [Path(here, name) for name in names if not name.startswith(".")]
    return sorted((path.relative_to(folder).as_posix(), path) for path in found if os.path.isfile(path))


def find_files(spec: str, pattern: str) -> list[tuple[str, Path]]:
    """The files that a path, a folder or a glob names, as (identity, path); identities do not depend on where the
    folder lies."""
    path = Path(pattern).expanduser()
    if os.path.isdir(path):
        files = files_below(path, {"__pycache__"})
    elif os.path.lexists(path):
        if not os.path.isfile(path):
            raise UserError(f"{pattern!r} is not a regular file that can be read (data source {spec!r}).")
        files = [("", path)]
    elif glob.has_magic(pattern):
        base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        matches = sorted(filter(os.path.isfile, glob.glob(str(path), recursive=True)))
        files = [(os.path.relpath(match, base), Path(match)) for match in matches]
    else:
        raise UserError(f"there is no file or folder {pattern!r} (data source {spec!r}).")
    if not files:
        raise UserError(f"{pattern!r} matches no file (data source {spec!r}).")
    return files
