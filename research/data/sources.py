"""Text by name: one line of specification gives documents to learn from and documents held out.

| specification               | documents                                                 | held out               |
| --------------------------- | --------------------------------------------------------- | ---------------------- |
| `python_stdlib`             | the `*.py` files of the standard library of this Python   | by hash of the path    |
| `text:PATH` or a plain path | a file, every visible file below a folder, or a glob      | by hash of the path    |
| `jsonl:PATH`                | a field of every line of JSON (a file, a folder, a glob)  | by hash of the text    |
| `tfds:NAME[/CONFIG][:SPLIT]` | a feature of the records of a TensorFlow Datasets data set | its own, else by hash |

Held out by hash: a document whose identity hashes below `HELD_OUT_FRACTION`, so adding documents moves no other one,
and equal records land on the same side. Held out by position: all text in order, the first `int(0.9 * n)` of its n
characters to train on, the rest held out (the rule of nanoGPT's character-level recipes). A single file is split by
position, and so is any source whose hashes put every document on one side.
"""

import difflib
import glob
import hashlib
import itertools
import json
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from research.core.errors import UserError
from research.data.files import decode_utf8, read_utf8

HELD_OUT_FRACTION = 0.05
TRAIN_FRACTION_BY_POSITION = 0.9
_SPLIT_RULE = "1"  # part of every fingerprint: raise it when the rules above change

# Folders of the standard library that are not the same on every machine: what users install, caches, and the test
# suites, which many distributions and container images leave out. What remains is 11 to 12 MB, whatever the build of
# Python.
_STDLIB_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}

FORMS = "python_stdlib, text:PATH (a file, a folder or a glob), jsonl:PATH, tfds:NAME[/CONFIG][:SPLIT]"

Records = Callable[[], Iterator[tuple[str, str]]]  # (identity, text) of every document, in a fixed order


@dataclass(frozen=True)
class Source:
    """Documents of text, read when asked for. `digest` gives (SHA-256 of the content, its size in bytes)."""

    name: str
    records: Records
    digest: Callable[[], tuple[str, int]]
    eval_records: Records | None = None  # where the source comes with a held-out part of its own

    def documents(self, split: str) -> Iterator[str]:
        """Returns the documents of `split`, "train" or "eval", in a fixed order; none is empty.

        Raises UserError at the document that cannot be read, and where there is no text, or too little to hold any out.
        """
        if split not in ("train", "eval"):
            raise ValueError(f"split must be 'train' or 'eval', not {split!r}")
        if self.eval_records is not None:
            chosen = self.records if split == "train" else self.eval_records
            return (text for _, text in chosen() if text)
        if self._split_by_position:
            return self._by_position(split)
        return (text for identity, text in self.records() if text and _is_held_out(identity) == (split == "eval"))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the content and the rule that splits it: equal fingerprints give equal documents."""
        return hashlib.sha256(f"{_SPLIT_RULE} {self._digest[0]}".encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of the files behind the source: close to the UTF-8 bytes of its text, and cheap."""
        return self._digest[1]

    @cached_property
    def _digest(self) -> tuple[str, int]:
        return self.digest()

    @cached_property
    def _split_by_position(self) -> bool:
        sides = set()
        for identity, text in self.records():
            if text:
                sides.add(_is_held_out(identity))
            if len(sides) == 2:
                return False
        return True

    def _by_position(self, split: str) -> Iterator[str]:
        total = sum(len(text) for _, text in self.records())
        if total == 0:
            raise UserError(f"{self.name} holds no text. Give a source with at least a few thousand characters.")
        boundary = int(TRAIN_FRACTION_BY_POSITION * total)
        if boundary == 0:
            raise UserError(f"{self.name} holds {total} character(s): too few to hold some out for evaluation.")
        start = 0
        for _, text in self.records():
            cut = min(max(boundary - start, 0), len(text))
            part = text[:cut] if split == "train" else text[cut:]
            start += len(text)
            if part:
                yield part


def resolve(spec: str, text_field: str = "text") -> Source:
    """Returns the source that `spec` names (see the table above). `text_field` names the field or feature that holds
    the text.

    Raises UserError for an unknown form, a missing file or data set, and a pattern that matches nothing.
    """
    kind, colon, rest = spec.partition(":")
    if spec == "python_stdlib":
        return _python_stdlib()
    if colon and kind in ("text", "jsonl", "tfds"):
        if not rest:
            raise UserError(f"the data source {spec!r} names nothing after the colon. Known forms: {FORMS}")
        if kind == "tfds":
            from research.data.tfds_text import tfds_source  # here: tensorflow_datasets takes a second to import

            return tfds_source(rest, text_field)
        return _text(spec, rest) if kind == "text" else _jsonl(spec, rest, text_field)
    if spec and (
        os.path.lexists(os.path.expanduser(spec)) or (glob.has_magic(spec) and glob.glob(spec, recursive=True))
    ):
        return _text(spec, spec)
    near = difflib.get_close_matches(spec, ["python_stdlib", "text:", "jsonl:", "tfds:"], n=1)
    advice = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"unknown data source {spec!r}: there is no such file and no such form.{advice} Known forms: {FORMS}"
    )


def _is_held_out(identity: str) -> bool:
    first = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).digest()[:8]
    return int.from_bytes(first, "big") < HELD_OUT_FRACTION * 2**64


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


def _files_below(folder: Path, skipped: set[str]) -> list[tuple[str, Path]]:
    """Every visible regular file below `folder` as (path relative to it, path), sorted by the relative path."""
    found = []
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in skipped]
        found += [Path(here, name) for name in names if not name.startswith(".")]
    return sorted((path.relative_to(folder).as_posix(), path) for path in found if os.path.isfile(path))


def _find_files(spec: str, pattern: str) -> list[tuple[str, Path]]:
    """The files that a path, a folder or a glob names, as (identity, path); identities do not depend on where the
    folder lies."""
    path = Path(pattern).expanduser()
    if os.path.isdir(path):
        files = _files_below(path, {"__pycache__"})
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


def _text(spec: str, pattern: str) -> Source:
    files = _find_files(spec, pattern)
    if not any(os.path.getsize(path) for _, path in files):
        raise UserError(f"{pattern!r} is empty: {len(files)} file(s), 0 bytes (data source {spec!r}).")

    def records() -> Iterator[tuple[str, str]]:
        for identity, path in files:
            yield identity, read_utf8(path)

    return Source(spec, records, partial(digest_files, files))


def _python_stdlib() -> Source:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [(name, path) for name, path in _files_below(root, _STDLIB_SKIPPED) if name.endswith(".py")]
    if not files:
        raise UserError(f"this Python has no readable standard library in {root}: give your own text with text:PATH.")

    def records() -> Iterator[tuple[str, str]]:
        for identity, path in files:
            try:
                yield identity, read_utf8(path)
            except UserError:  # a few builds ship sources in other encodings
                continue

    return Source("python_stdlib", records, partial(digest_files, files))


def _jsonl(spec: str, pattern: str, text_field: str) -> Source:
    files = _find_files(spec, pattern)

    def records() -> Iterator[tuple[str, str]]:
        for _, path in files:
            for number, line in enumerate(_lines(path), start=1):
                if line.strip():
                    text = _field_of_line(line, text_field, f"{path}, line {number}")
                    yield text, text

    def digest() -> tuple[str, int]:
        content, size = digest_files(files)
        return hashlib.sha256(f"jsonl {text_field} {content}".encode()).hexdigest(), size

    return Source(spec, records, digest)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            yield from file
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _field_of_line(line: bytes, field: str, where: str) -> str:
    try:
        record = json.loads(decode_utf8(line, where))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise UserError(f"{where} is not a JSON object with a field {field!r} but a {type(record).__name__}.")
    if field not in record:
        raise UserError(
            f"{where} has no field {field!r}; it has {sorted(record)}. Name the field of the text by --text-field."
        )
    text = record[field]
    if not isinstance(text, str):
        raise UserError(f"{where}: field {field!r} is not text but {type(text).__name__}.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: field {field!r} holds half of a surrogate pair at character {error.start}."
        ) from error
    return text
