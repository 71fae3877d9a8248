"""Which files a specification names, and which part (train, validation, test) each of them belongs to."""

import re
from collections.abc import Iterable
from pathlib import Path

from research.core.errors import UserError
from research.data.files import find_files

ALIASES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
}
_NAMED_PART = re.compile(rf"({'|'.join(ALIASES)})([^a-z].*)?", re.ASCII)
_PACKED = (".gz", ".zst", ".xz", ".bz2", ".zip")

Files = list[tuple[str, Path]]  # (name relative to the folder or glob, path), in sorted order


def find_parts(spec: str, pattern: str, suffixes: tuple[str, ...]) -> dict[str, Files]:
    """Returns the files that a path, a folder or a glob names, by part: {"all": files}, or a folder's parts.

    Below a folder the files with one of `suffixes` count. A file belongs to a part where its name, or the first folder
    above it that does, is a part's name (see ALIASES), alone or before something that is no letter: `train.jsonl`,
    `validation-00000-of-00002.parquet`, `test/a.csv`.

    Raises UserError for nothing found, packed files, and a folder where only some files name a part.
    """
    if not Path(pattern).expanduser().is_dir():
        return {"all": refuse_packed(find_files(spec, pattern))}
    below = find_files(spec, pattern)
    files = [(name, path) for name, path in below if path.suffix.lower() in suffixes]
    refuse_packed([(name, path) for name, path in below if Path(path.stem).suffix.lower() in suffixes])
    if not files:
        found = sorted({path.suffix for _, path in below})
        raise UserError(f"{pattern!r} holds no file that ends in {' or '.join(suffixes)}, only {found} ({spec!r}).")
    return by_part(pattern, files)


def by_part(pattern: str, files: Files) -> dict[str, Files]:
    """Returns the files of a folder by part, {"all": files} where none is named after one. Raises UserError where only
    some are."""
    parts: dict[str, Files] = {}
    for name, path in files:
        parts.setdefault(part_of_path(name) or "all", []).append((name, path))
    if "all" in parts and len(parts) > 1:
        named = next(part for part in parts if part != "all")
        raise UserError(
            f"{pattern!r} mixes files of a part ({parts[named][0][0]}: {named}) with files of none "
            f"({parts['all'][0][0]}). Name every file after its part, or none."
        )
    return parts


def part_of_path(name: str) -> str | None:
    """Returns the part that a relative path belongs to, or None."""
    matches = (_NAMED_PART.fullmatch(piece.lower()) for piece in Path(name).parts)
    return next((ALIASES[match[1]] for match in matches if match), None)


def named_splits(names: Iterable[str]) -> dict[str, str]:
    """Returns {part: name} for splits with names of their own: of the names that ALIASES knows the first in its order
    takes the part, and every other split keeps its name."""
    names = list(names)
    parts: dict[str, str] = {}
    for alias, part in ALIASES.items():
        if alias in names:
            parts.setdefault(part, alias)
    return parts | {name: name for name in names if name not in parts.values()}


def refuse_packed(files: Files) -> Files:
    """Returns `files`. Raises UserError for a packed one: reaching a record in it means unpacking all that is before."""
    for _, path in files:
        if path.suffix.lower() in _PACKED:
            raise UserError(
                f"{path} is packed, and a packed file has no access by record. Unpack it and give the result"
                + (f": gunzip -k {path}" if path.suffix.lower() == ".gz" else ".")
            )
    return files
