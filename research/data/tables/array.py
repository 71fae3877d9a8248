"""Tables in files that hold one JSON list of objects, as many sets of instructions do: `json:PATH`.

Where each object begins is found in one pass, in which no more than one of them is held parsed. The text of a whole file is in memory for that
long, so a file above LARGEST is refused: JSONL has no such bound.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.data.files import read_utf8
from research.data.tables.index import IndexedFile, first_byte

LARGEST = 1 << 30  # bytes
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def index_array(path: Path) -> IndexedFile:
    """Returns the file with the bounds of its list's objects, each with what stands between it and the next.

    Raises UserError, naming the byte offset, for a file that is no list, ends within it, or goes on behind it.
    """
    begin = first_byte(path)
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path} is larger than {LARGEST} bytes: write it as JSONL, an object a line.")
    text = read_utf8(path).removeprefix("\ufeff")
    at, starts, seen = _skip(text, 0), [], (0, begin)

    def fail(place: int, fault: str) -> UserError:
        return UserError(f"{path}, byte offset {begin + len(text[:place].encode())}: {fault}")

    if text[at : at + 1] != "[":
        hint = " Name a file with an object a line as jsonl:." if text[at : at + 1] == "{" else ""
        raise fail(at, f"expected a JSON list of objects, '[...]'.{hint}")
    at = _skip(text, at + 1)
    while starts or text[at : at + 1] != "]":  # an empty list has no first object
        seen = (at, seen[1] + len(text[seen[0] : at].encode()))
        starts.append(seen[1])
        try:
            _, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise fail(at, f"what begins here is not JSON, or the file ends within it: {error}") from error
        at = _skip(text, at)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            raise fail(at, "expected a comma or the end of the list, ']'.")
        at = _skip(text, at + 1)
    end = at + 1
    if _skip(text, end) != len(text):
        raise fail(_skip(text, end), "the list has ended, and more follows.")
    last = seen[1] + len(text[seen[0] : end].encode())
    return IndexedFile(path, np.array([*starts, last], np.uint64))


def parse_element(text: str) -> Any:
    """Returns the value at the beginning of a text. Raises ValueError for none."""
    return _DECODER.raw_decode(text)[0]


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None  # it matches nothing at all
    return found.end()
