"""Where the records of a text file begin: byte offsets found in one pass, 8 bytes of memory a record.

Offsets are found anew by every process and not stored: the pass takes less time than a SHA-256 over the file (0.7 of it
for lines, 1.5 where every record has quotes), and nothing less says that stored offsets still belong to the file.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from research.core.errors import UserError
from research.data.files import decode_utf8

RECORD_LIMIT = 64 * 2**20
_BLOCK = 2**20
_NEWLINE, _QUOTE = ord("\n"), ord('"')
_BEFORE_QUOTE = np.frombuffer(b',\n"', np.uint8)  # RFC 4180, section 2, rules 5 to 7
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@dataclass(frozen=True)
class IndexedFile:
    """A text file and where its records are: record i has the bytes from bounds[i] up to bounds[i + 1]."""

    path: Path
    bounds: np.ndarray  # uint64, [records + 1]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def text(self, i: int) -> str:
        """Returns record `i` as text, its line ending included. Raises UserError where it cannot be read or is no
        UTF-8 text, naming the line and the byte offset in it."""
        start, end = int(self.bounds[i]), int(self.bounds[i + 1])
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(start)
                content = file.read(end - start)
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}") from error
        if len(content) != end - start:
            raise UserError(f"{self.path} has become shorter while it was in use: it ends before byte {end}.")
        with contextlib.suppress(UnicodeDecodeError):
            text = content.decode("utf-8")
            if "\0" not in text:
                return text
        return decode_utf8(content, self.where(i))  # raises, with the line

    def where(self, i: int) -> str:
        """Returns "PATH, line N" of the record's first line, for messages: counting lines takes a pass."""
        return f"{self.path}, line {line_number(self.path, int(self.bounds[i]))}"


def index_file(path: Path, *, blank: bytes | None, quoted: bool = False) -> IndexedFile:
    """Returns the file with the bounds of its records, which are lines; in a `quoted` file (CSV by RFC 4180) a newline
    between double quotes ends none. A line of nothing but the characters in `blank` is no record (None: every line is
    one). A UTF-8 byte order mark is skipped.

    Raises UserError for a file that cannot be read, UTF-16, a record longer than RECORD_LIMIT, and, naming the line and
    byte offset, a quote inside an unquoted value and one that is never closed.
    """
    pieces, inside, size = [], False, first_byte(path)
    for offset, block in _blocks(path, size):
        starts, inside = _starts(path, offset, block, inside, blank, quoted)
        pieces.append(starts.astype(np.uint64) + np.uint64(offset))
        size = offset + len(block)
    bounds = np.concatenate([*pieces, np.array([size], np.uint64)])
    lengths = np.diff(bounds)
    if inside:
        raise UserError(_at(path, int(bounds[-2])) + " a record begins whose last double quote is never closed.")
    if lengths.size and int(lengths.max()) > RECORD_LIMIT:
        raise UserError(_too_long(path, int(bounds[int(lengths.argmax())])))
    return IndexedFile(path, bounds)


def line_number(path: Path, offset: int) -> int:
    """Returns the number, from 1, of the line that the byte at `offset` belongs to."""
    count = 1
    with open(path, "rb") as file:
        while offset > 0 and (block := file.read(min(_BLOCK, offset))):
            count += block.count(b"\n")
            offset -= len(block)
    return count


def first_byte(path: Path) -> int:
    """Returns where the text begins: behind a UTF-8 byte order mark, else 0."""
    try:
        with open(path, "rb") as file:
            head = file.read(3)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if encoding := _MARKS.get(head[:2]):
        raise UserError(f"{path} is {encoding} (by its byte order mark), expected UTF-8: iconv -f {encoding} -t UTF-8.")
    return 3 if head == b"\xef\xbb\xbf" else 0


def _blocks(path: Path, start: int) -> Iterator[tuple[int, bytes]]:
    """Yields (byte offset, bytes) of pieces that end where a line does. Raises UserError for a line above the limit."""
    with open(path, "rb") as file:
        file.seek(start)
        rest = b""
        while chunk := file.read(_BLOCK):
            cut = chunk.rfind(b"\n") + 1
            if cut:
                yield start, rest + chunk[:cut]
                start += len(rest) + cut
                rest = chunk[cut:]
            else:
                rest += chunk
            if len(rest) > RECORD_LIMIT:
                raise UserError(_too_long(path, start))
    if rest:
        yield start, rest


def _starts(
    path: Path, offset: int, block: bytes, inside: bool, blank: bytes | None, quoted: bool
) -> tuple[np.ndarray, bool]:
    """Returns (where records begin in `block`, whether it ends between quotes); `inside` says whether it begins so."""
    data = np.frombuffer(block, np.uint8)
    starts = np.concatenate([[0], np.flatnonzero(data == _NEWLINE) + 1])
    quotes = np.flatnonzero(data == _QUOTE) if quoted else np.empty(0, np.int64)
    if quotes.size or inside:
        opening = quotes[int(inside) :: 2]
        wrong = opening[(opening > 0) & ~np.isin(data[opening - 1], _BEFORE_QUOTE)]
        if wrong.size:
            raise UserError(
                _at(path, offset + int(wrong[0])) + " a double quote stands inside an unquoted value. "
                "RFC 4180 puts the whole value between quotes, and doubles each quote in it."
            )
        starts = starts[(np.searchsorted(quotes, starts) + inside) % 2 == 0]
        inside = (quotes.size + inside) % 2 == 1
    starts = starts[starts < len(block)]
    if blank is not None:
        starts = _without_blank(block, data, starts, blank)
    return starts, inside


def _without_blank(block: bytes, data: np.ndarray, starts: np.ndarray, blank: bytes) -> np.ndarray:
    """Returns `starts` without those of blank lines. Only lines whose first character is blank are looked at."""
    keep = np.ones(len(starts), bool)
    for k in np.flatnonzero(np.isin(data[starts], np.frombuffer(blank, np.uint8))):
        end = block.find(b"\n", starts[k])
        keep[k] = bool(block[starts[k] : end if end >= 0 else None].strip(blank))
    return starts[keep]


def _at(path: Path, offset: int) -> str:
    return f"{path}, line {line_number(path, offset)}, byte offset {offset}:"


def _too_long(path: Path, offset: int) -> str:
    return (
        _at(path, offset) + f" a record of more than {RECORD_LIMIT} bytes begins. Is this the right format, "
        "and is every quote closed?"
    )
