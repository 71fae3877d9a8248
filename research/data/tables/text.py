"""Text files as a table: a record is a file, or a part of one that is too long to be held at once."""

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from research.core.errors import UserError
from research.data.files import decode_utf8
from research.data.tables.table import Record, check_index, locate

PART = 8 << 20  # bytes of a part of a longer file
LOOK = 1 << 20  # bytes among which a place to cut is looked for
SPACES = b" \n"


class TextFiles:
    """Files given as (identity, path). Fields: `text` and `path` (the identity); `piece(i)` says which part of its file a record is.

    A file above `part` bytes is cut before a space or line end that follows a visible character, or where there is none for long between two
    characters. With `lenient` a file that is not UTF-8 is an empty text instead of a UserError.
    """

    fields = ("text", "path")

    def __init__(
        self, name: str, files: Sequence[tuple[str, Path]], digest: Callable[[], tuple[str, int]],
        lenient: bool = False, part: int = PART,
    ):  # fmt: skip
        self.name, self.files, self.digest, self.lenient, self.part = name, files, digest, lenient, part

    @cached_property
    def _cuts(self) -> list[np.ndarray]:
        """For every file where its parts begin, and its size."""
        return [_cuts_of(path, self.part) for _, path in self.files]

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(cuts) - 1 for cuts in self._cuts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def identity(self, i: int) -> str:
        return self.files[self._find(i)[0]][0]

    def record(self, i: int) -> Record:
        file, part = self._find(i)
        identity, path = self.files[file]
        cuts = self._cuts[file]
        content = _bytes(path, int(cuts[part]), int(cuts[part + 1]))
        try:
            text = decode_utf8(content, str(path), int(cuts[part]))
        except UserError:
            if not self.lenient:
                raise
            text = ""
        return {"text": text, "path": identity}

    def piece(self, i: int) -> tuple[int, int]:
        """(which part of its file record i is, of how many): see `piece_of`."""
        file, part = self._find(i)
        return part, len(self._cuts[file]) - 1

    def _find(self, i: int) -> tuple[int, int]:
        check_index(i, len(self), self.name)
        return locate(self._ends, i)


def _cuts_of(path: Path, part: int) -> np.ndarray:
    size = os.path.getsize(path)
    cuts = [0]
    while size - cuts[-1] > part:
        at = cuts[-1] + part
        cut = at + _safe(_bytes(path, at - 1, min(at + LOOK, size)))
        if cut >= size:
            break
        cuts.append(cut)
    return np.array([*cuts, size], np.int64)


def _safe(window: bytes) -> int:
    """How many bytes after the first to cut: before the first space or line end behind a visible character, else before the last character's first
    byte."""
    seen = np.frombuffer(window, np.uint8)
    space = np.isin(seen, np.frombuffer(SPACES, np.uint8))
    places = np.flatnonzero(space[1:] & (seen[:-1] > 32))
    if len(places):
        return int(places[0])
    starts = np.flatnonzero((seen[1:] & 0xC0) != 0x80)
    return int(starts[-1]) if len(starts) else len(window) - 1


def _bytes(path: Path, start: int, stop: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(stop - start)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
