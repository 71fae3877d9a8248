"""Tables of images and sounds in files: a folder for each class, or a manifest.

| form         | records                                                                            |
| ------------ | ---------------------------------------------------------------------------------- |
| `images:DIR` | DIR/CLASS/NAME.png, or DIR/train/CLASS/NAME.png beside DIR/validation and DIR/test  |
| `images:DIR` with manifests | DIR/*.tsv, *.csv or *.jsonl, of one kind, which may be named after parts  |
| `images:MANIFEST.tsv` (or .csv, .jsonl) | a line each: the columns `path` (relative to the manifest) and `label` |
| `audio:...`  | the same with .wav                                                                  |

A record has `image` or `audio` (the bytes of the file, still encoded), `label` (a number; `classes_of(table)["label"]`
gives its name) and `path`. Further columns of a manifest are fields too; without a column `label` there is no label.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from research.core.errors import UserError
from research.data.files import digest_files, files_below, read_bytes
from research.data.tables.finding import ALIASES, by_part, part_of_path
from research.data.tables.lines import SUFFIXES as MANIFESTS
from research.data.tables.lines import open_line_files
from research.data.tables.table import Record, Table, check_index, options_digest, require_field

SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"),
    "audio": (".wav",),
}


@dataclass(frozen=True)
class MediaTable:
    """Files with labels. `root` is what paths are relative to; `extra` are further fields of every record."""

    name: str
    kind: str  # "image" or "audio": the field of the bytes
    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray | None  # int64, [files]
    classes: Mapping[str, tuple[str, ...]]  # see `classes_of`
    manifest: Table | None

    @property
    def fields(self) -> tuple[str, ...]:
        own = (self.kind, "path", *(["label"] if self.labels is not None else []))
        further = self.manifest.fields if self.manifest is not None else ()
        return (*own, *(name for name in further if name not in own))

    def __len__(self) -> int:
        return len(self.paths)

    def record(self, i: int) -> Record:
        check_index(i, len(self), self.name)
        path = self.root / self.paths[i]
        content = read_bytes(path)
        if not content:
            raise UserError(f"{path} is empty: 0 bytes, expected an {self.kind} file.")
        record = dict(self.manifest.record(i)) if self.manifest is not None else {}
        record |= {self.kind: content, "path": self.paths[i]}
        return record if self.labels is None else record | {"label": int(self.labels[i])}

    def identity(self, i: int) -> str:
        check_index(i, len(self), self.name)
        return self.paths[i]

    def digest(self) -> tuple[str, int]:
        files = [(path, self.root / path) for path in self.paths]
        further = "" if self.manifest is None else self.manifest.digest()[0]
        return options_digest(f"{self.kind} {self.classes} {further}", digest_files(files))


def open_media(spec: str, kind: str, pattern: str) -> dict[str, Table]:
    """Returns the tables of images (`kind` "image") or sounds ("audio") below a folder or in a manifest, by part. The
    numbers of classes are the same in all parts.

    Raises UserError for a folder without such files, files outside the folders of classes, and a manifest that lacks
    the column `path` or names a file that is not there.
    """
    root = Path(pattern).expanduser()
    manifest = _manifest_kind(spec, root)
    if manifest is not None:
        return _from_manifests(spec, kind, manifest, root)
    if not root.is_dir():
        raise UserError(f"{spec}: {pattern!r} is neither a folder nor a manifest (.tsv, .csv or .jsonl).")
    return _from_folders(spec, kind, root)


def _manifest_kind(spec: str, root: Path) -> str | None:
    """Returns which format of manifest `root` is or holds, or None."""
    files = [root] if root.is_file() else sorted(root.glob("*"))
    kinds = {kind for kind, ends in MANIFESTS.items() for path in files if path.suffix.lower() in ends}
    if len(kinds) > 1:
        raise UserError(f"{spec}: {root} holds manifests as {' and '.join(sorted(kinds))}; name the one to read.")
    return next(iter(kinds), None)


def _from_manifests(spec: str, kind: str, manifest: str, root: Path) -> dict[str, Table]:
    tops = [root] if root.is_file() else sorted(root.iterdir())
    files = [(path.name, path) for path in tops if path.suffix.lower() in MANIFESTS[manifest] and path.is_file()]
    parts = {"all": files} if root.is_file() else by_part(str(root), files)
    tables = {part: open_line_files(spec, manifest, files) for part, files in parts.items()}
    for table in tables.values():
        require_field(table, "path", "the manifest's column `path`")
    columns = {part: [table.record(i) for i in range(len(table))] for part, table in tables.items()}
    base = root.parent if root.is_file() else root
    labelled = all("label" in table.fields for table in tables.values())
    names = {str(row["label"]) for rows in columns.values() for row in rows} if labelled else None
    return {
        part: _media_table(spec, kind, base, [(str(r["path"]), str(r.get("label"))) for r in rows], names, tables[part])
        for part, rows in columns.items()
    }


def _from_folders(spec: str, kind: str, root: Path) -> dict[str, Table]:
    below = [name for name, _ in files_below(root, set())]
    found = [name for name in below if Path(name).suffix.lower() in SUFFIXES[kind]]
    if not found:
        others = sorted({Path(name).suffix for name in below})
        raise UserError(f"{spec}: no file below {root} ends in {', '.join(SUFFIXES[kind])}; there are {others}.")
    tops = {name.partition("/")[0] for name in found}
    in_parts = all(top.lower() in ALIASES for top in tops)
    parts: dict[str, list[tuple[str, str]]] = {}
    for name in found:
        folders = Path(name).parts[1:-1] if in_parts else Path(name).parts[:-1]
        if not folders:
            raise UserError(
                f"{spec}: {name} is in no folder of a class. Put every file in a folder named after its class, "
                "or give a manifest with the columns path and label."
            )
        part = part_of_path(name.partition("/")[0]) if in_parts else None
        parts.setdefault(part or "all", []).append((name, folders[0]))
    names = {label for rows in parts.values() for _, label in rows}
    return {part: _media_table(spec, kind, root, rows, names, None) for part, rows in parts.items()}


def _media_table(
    spec: str, kind: str, root: Path, rows: list[tuple[str, str]], names: set[str] | None, manifest: Table | None
) -> MediaTable:
    paths = tuple(path for path, _ in rows)
    missing = next((path for path in paths if not (root / path).is_file()), None)
    if missing is not None:
        raise UserError(f"{spec}: the manifest names {missing!r}, and there is no such file below {root}.")
    if names is None:
        return MediaTable(spec, kind, root, paths, None, {}, manifest)
    classes = order_names(names)
    number = {name: k for k, name in enumerate(classes)}
    labels = np.array([number[label] for _, label in rows], np.int64)
    return MediaTable(spec, kind, root, paths, labels, {"label": classes}, manifest)


def order_names(names: set[str]) -> tuple[str, ...]:
    """Returns names of classes in order: 0, 1, 2, 10 where all are decimal numbers, else by their characters."""
    if all(name.isascii() and name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))
