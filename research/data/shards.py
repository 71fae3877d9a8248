"""Token shards: a prepared corpus on disk, made unit by unit, so that work which was cut off goes on where it stood.

A unit leaves, for every split of which it has tokens, `SPLIT-00003.bin` (ids in the smallest unsigned type that holds the vocabulary),
`SPLIT-00003.documents` (for every document where it begins in that file and the number of its record, uint64), where some ids are not learned
`SPLIT-00003.learned` (1 or 0 for each, uint8), and at last `unit-00003.json`, which lists them with a checksum of every `BLOCK` bytes. A unit that
is listed is not made again. When all are there, the folder takes its final name, so what has that name is whole. The bytes are the same
however often the work was cut off, and whoever does it.

Reading (`streams.py`) looks at a block's checksum when its bytes are first asked for.
"""

import contextlib
import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.data import streams
from research.data.files import write_atomically
from research.data.streams import Checks, Damaged, Ids, TokenStream
from research.data.tables.splits import PARTS as SPLITS

MANIFEST = "manifest.json"
UNFINISHED = ".part-"


@dataclass(frozen=True, eq=False)
class Piece:
    """What a unit has of one split. `ids` [n]; `begins` and `records`, int64 [documents]: where each document begins among them, and the number
    of its record; `size`: UTF-8 bytes of the text that the ids stand for; `learned`, uint8 [n]: 1 for ids that are learned, 0 for those that
    are only read; None: all are."""

    ids: np.ndarray
    begins: np.ndarray
    records: np.ndarray
    size: int
    learned: np.ndarray | None = None

    @property
    def tokens_learned(self) -> int:
        return len(self.ids) if self.learned is None else int(np.count_nonzero(self.learned))


Make = Callable[[int], tuple[Mapping[str, Piece], Mapping[str, int]]]
"""A unit's pieces by split, and numbers to be added up over all units, by name."""


class Unfinished(Exception):
    """Work that ended for no fault of the data: what was done stays for the next try."""


def prepare(
    folder: Path,
    units: int,
    make: Make,
    about: Mapping[str, Any],
    check: Callable[[dict], None],
    ahead: Callable[[Path], None] | None = None,
) -> bool:
    """Makes sure that the corpus `folder` is there; returns whether it already was.

    `ahead` is called first, with the unfinished folder: it may make units there by `unit`, in other processes. Those that are not there then are
    made here.

    `about` stands in the manifest beside the totals, which `check` sees before the corpus takes its name. Processes may prepare the same corpus at
    once: all but one wait. What `make` and `check` raise passes through, and nothing is left. Raises UserError where the folder cannot be
    written or the disk is full; what was done by then stays for the next try.
    """
    if (folder / MANIFEST).is_file():
        return True
    unfinished = folder.with_name(f"{UNFINISHED}{folder.name}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.with_name(f"{UNFINISHED}{folder.name}.lock")):
            if (folder / MANIFEST).is_file():
                return True
            unfinished.mkdir(exist_ok=True)
            with _nothing_left(unfinished):
                if ahead is not None:
                    ahead(unfinished)
                totals = _summed([unit(unfinished, number, make) for number in range(units)])
                check(totals)
            _write(unfinished / MANIFEST, _sealed({**about, **totals}))
            _remove_strangers(unfinished)
            shutil.rmtree(folder, ignore_errors=True)  # without a manifest it is none
            os.replace(unfinished, folder)
    except OSError as error:
        raise UserError(
            f"cannot write the cache folder {folder.parent}: {error.strerror or error}. "
            "Free some space, or name a folder that can be written in the environment variable RESEARCH_CACHE."
        ) from error
    except Unfinished as error:
        raise UserError(str(error)) from error
    return False


@contextlib.contextmanager
def _nothing_left(folder: Path) -> Iterator[None]:
    """Removes the folder when the block raises what no other try would mend."""
    try:
        yield
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all. Raises OSError."""
    try:
        write_atomically(path, content)
    except UserError as error:
        raise error.__cause__ or error from None


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Waits until no other process is in this block."""
    with open(lock, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                lock.unlink()


def unit(folder: Path, number: int, make: Make) -> dict[str, Any]:
    """The listing of a unit, which is made if it is not there whole. Raises OSError where the folder cannot be written, and what `make` raises."""
    listing = listing_of(folder, number)
    if listing is not None and _agrees(folder, listing, thorough=True):
        return listing
    pieces, counts = make(number)
    files = []
    for split, piece in sorted(pieces.items()):
        table = np.stack([piece.begins, piece.records], axis=1).astype("<u8")
        arrays = {"bin": piece.ids, "documents": table} | ({} if piece.learned is None else {"learned": piece.learned})
        for suffix, content in ((suffix, array.tobytes()) for suffix, array in arrays.items()):
            name = f"{split}-{number:05d}.{suffix}"
            _write(folder / name, content)
            files.append({"file": name, "bytes": len(content), "sums": _sums(content)})
    splits = {
        split: {
            "tokens": len(piece.ids),
            "learned": piece.tokens_learned,
            "documents": len(piece.begins),
            "bytes": piece.size,
        }
        for split, piece in pieces.items()
    }
    listing = {"splits": splits, "counts": dict(counts), "files": files}
    _write(folder / f"unit-{number:05d}.json", _sealed(listing))
    return listing


def _sealed(value: Mapping[str, Any]) -> bytes:
    """JSON with a checksum of itself."""
    seal = zlib.crc32(json.dumps(value, sort_keys=True).encode("utf-8"))
    return json.dumps({**value, "seal": seal}, indent=1, sort_keys=True).encode("utf-8")


def _unsealed(path: Path) -> dict[str, Any] | None:
    """What `_sealed` wrote; None where it is not there or is not what was written."""
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(path.read_bytes())
        if isinstance(value, dict) and value.pop("seal", None) == zlib.crc32(
            json.dumps(value, sort_keys=True).encode("utf-8")
        ):
            return value
    return None


def listing_of(folder: Path, unit: int) -> dict[str, Any] | None:
    """A unit's listing; None where there is none or it is not what was written."""
    return _unsealed(folder / f"unit-{unit:05d}.json")


def _agrees(folder: Path, listing: Mapping[str, Any], thorough: bool) -> bool:
    """Whether the files of a listing have their sizes, and if `thorough` their checksums."""
    try:
        for one in listing["files"]:
            path = folder / one["file"]
            if path.stat().st_size != one["bytes"] or (thorough and _sums(path.read_bytes()) != one["sums"]):
                return False
    except OSError:
        return False
    return True


def _sums(content: bytes) -> list[int]:
    """CRC-32 of every block."""
    return [zlib.crc32(content[start : start + streams.BLOCK]) for start in range(0, len(content), streams.BLOCK)]


def _summed(listings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Totals of all units: `units`, `splits` and `counts`."""
    names = ("tokens", "learned", "documents", "bytes")
    splits = {
        split: {name: sum(one["splits"].get(split, {}).get(name, 0) for one in listings) for name in names}
        for split in SPLITS
    }
    counts: dict[str, int] = {}
    for listing in listings:
        for name, number in listing["counts"].items():
            counts[name] = counts.get(name, 0) + number
    return {"units": len(listings), "splits": splits, "counts": counts}


def _remove_strangers(folder: Path) -> None:
    """Deletes what killed processes left half-written."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            path.unlink()


def manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a corpus; None where there is none or it is not what was written."""
    return _unsealed(folder / MANIFEST)


def is_intact(folder: Path, thorough: bool) -> bool:
    """Whether every file of a corpus is there with its size, and if `thorough`, which reads all of it, as it was written."""
    found = manifest(folder)
    listings = [] if found is None else [listing_of(folder, unit) for unit in range(found["units"])]
    return found is not None and all(one is not None and _agrees(folder, one, thorough) for one in listings)


def discard(folder: Path) -> None:
    """Removes a corpus, its manifest first."""
    with contextlib.suppress(OSError):
        (folder / MANIFEST).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def read(folder: Path, split: str, dtype: np.dtype) -> TokenStream:
    """A split of a corpus that is intact, its ids memory-mapped; empty where it has none. Raises Damaged for a file that is not there."""
    ids, masks, begins, records, before, size = [], [], [], [], 0, 0
    for unit in range((manifest(folder) or {"units": 0})["units"]):
        listing = listing_of(folder, unit) or {"splits": {}}
        if split not in listing["splits"]:
            continue
        described, sums = listing["splits"][split], {one["file"]: one["sums"] for one in listing["files"]}
        path = folder / f"{split}-{unit:05d}.bin"
        table = _mapped(path.with_suffix(".documents")).view("<u8").reshape(-1, 2).astype(np.int64)
        ids.append(_checked(path, sums, dtype))
        mask = path.with_suffix(".learned")
        masks.append(_checked(mask, sums, np.dtype(np.uint8)) if mask.name in sums else Ids.ones(described["tokens"]))
        begins.append(table[:, 0] + before)
        records.append(table[:, 1])
        before += described["tokens"]
        size += described["bytes"]
    none = np.empty(0, np.int64)
    learned = Ids.joined(masks) if any(mask.checks != (None,) for mask in masks) else None
    whole = Ids.joined(ids) if ids else Ids.of(np.empty(0, dtype))
    return TokenStream(whole, size, np.concatenate([none, *begins]), np.concatenate([none, *records]), learned)


def _checked(path: Path, sums: Mapping[str, list[int]], dtype: np.dtype) -> Ids:
    content, own = _mapped(path), np.array(sums[path.name], np.uint32)
    return Ids((content.view(dtype),), (Checks(path, content, own, np.zeros(len(own), bool)),))


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.memmap(path, np.uint8, "r").view(np.ndarray) if path.stat().st_size else np.empty(0, np.uint8)
    except OSError as error:
        raise Damaged(
            f"cannot read {path}: {error.strerror or error}. Remove {path.parent}, and the data is prepared again."
        ) from error
