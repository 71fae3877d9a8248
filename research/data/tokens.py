"""Token streams: a source's documents as a sequence of ids for each split, made once and kept in the cache (`shards.py`).

A document that others follow ends with the tokeniser's separator (nothing where it has none). The ids are stored in the smallest unsigned type
that holds the vocabulary.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.core.errors import UserError
from research.core.paths import research_cache_dir
from research.data import shards, sources
from research.data import tokenizer as tokenizers
from research.data.progress import Report, reporting
from research.data.sources import Row
from research.data.tokenizer import Tokenizer

_FORMAT = "2"  # part of the cache's keys: raise it when the same source and tokeniser would give another stream
_BATCH_CHARACTERS = 1 << 21  # tokenised at a time: enough for every thread, and bounded memory
_SMALL = 1 << 28  # tokens of a corpus up to which all of it is checked before it is used, not only what is read


@dataclass(frozen=True, eq=False)
class TokenStream:
    """Ids of one split. `tokens`: an array [n], or `shards.Ids`; `bytes`: the UTF-8 bytes of the text that they stand for; `begins` and
    `records`: where each document begins among them and the number of its record, int64 [documents]."""

    tokens: Any = field(repr=False)
    bytes: int
    begins: np.ndarray = field(repr=False, default_factory=lambda: np.zeros(1, np.int64))
    records: np.ndarray = field(repr=False, default_factory=lambda: np.zeros(1, np.int64))

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A tokenised source. `cached`: whether it was found ready; `test` may be empty; `folder`: where it lies, None for one in memory."""

    train: TokenStream
    eval: TokenStream
    tokenizer: Tokenizer
    source_fingerprint: str
    tokenizer_fingerprint: str
    cached: bool
    test: TokenStream | None = None
    folder: Path | None = None


def prepare(
    data: str,
    tokenizer: str | Tokenizer,
    *,
    text_field: str | None = None,
    cache_dir: str | Path | None = None,
    progress: Report | None = None,
) -> Corpus:
    """Returns the corpus of a source (`sources.resolve`) under a tokeniser, or one by its name (`tokenizer.build`), from
    the cache where it is there. Work that was cut off goes on where it stood.

    `progress` is called with (bytes done, bytes in all); without it a bar is shown on a terminal. Processes may prepare
    the same corpus at once. Raises UserError for a source or tokeniser that cannot be used and for a cache that cannot
    be written.
    """
    root = Path(cache_dir or research_cache_dir()).expanduser()
    source = sources.resolve(data, text_field)
    built = tokenizers.build(tokenizer, source, cache_dir=root) if isinstance(tokenizer, str) else tokenizer
    dtype = dtype_for(built.vocab_size)
    key = hashlib.sha256(f"{_FORMAT} {source.fingerprint} {built.fingerprint}".encode()).hexdigest()
    folder = root / "tokens" / key
    about = {"data": data, "source": source.fingerprint, "tokenizer": built.fingerprint, "dtype": dtype.name}

    def check(totals: dict[str, Any]) -> None:
        for split in ("train", "validation"):
            if totals["splits"][split]["tokens"] == 0:
                raise UserError(f"{source.name} leaves no text for the part {split!r}. Give more text.")

    if not _usable(folder):
        shards.discard(folder)
    with reporting(f"tokenising {data}", progress) as report:
        done = 0

        def make(unit: int):
            nonlocal done

            def seen(size: int) -> None:
                nonlocal done
                done += size
                report(done, source.size)

            return tokenised(source.rows(source.units[unit]), built, dtype, seen), {}

        cached = shards.prepare(folder, len(source.units), make, about, check)
    streams = {split: _stream(folder, split, dtype) for split in shards.SPLITS}
    return Corpus(
        streams["train"], streams["validation"], built, source.fingerprint, built.fingerprint, cached, streams["test"], folder
    )  # fmt: skip


def _usable(folder: Path) -> bool:
    found = shards.manifest(folder)
    small = found is not None and sum(split["tokens"] for split in found["splits"].values()) <= _SMALL
    return shards.is_intact(folder, thorough=small)


def _stream(folder: Path, split: str, dtype: np.dtype) -> TokenStream:
    found = shards.read(folder, split, dtype)
    return TokenStream(found.ids, found.size, found.begins, found.records)


def dtype_for(vocab_size: int) -> np.dtype:
    """Returns the smallest unsigned type that holds the ids below `vocab_size`. Raises UserError if int32, which the
    devices compute with, cannot hold them."""
    if not 0 < vocab_size <= 2**31:
        raise UserError(f"a vocabulary of {vocab_size} ids does not fit: token ids are int32, so at most {2**31} ids.")
    return np.dtype(np.uint8 if vocab_size <= 2**8 else np.uint16 if vocab_size <= 2**16 else np.uint32)


class _Fragment(NamedTuple):
    """A part of a row that is tokenised at a time. `begins`, `ends`: a document does so with it."""

    split: str
    text: str
    record: int
    begins: bool
    ends: bool


def tokenised(
    rows: Iterable[Row], tokenizer: Tokenizer, dtype: np.dtype, seen: Callable[[int], None]
) -> dict[str, shards.Piece]:
    """Returns the ids of rows, by split. `seen` is called with the UTF-8 bytes that have been tokenised. One thread reads ahead while the
    tokeniser works with as many as it has."""
    separator = np.array([] if tokenizer.eot is None else [tokenizer.eot], dtype)
    parts: dict[str, list[np.ndarray]] = {}
    begins: dict[str, list[tuple[int, int]]] = {}
    lengths: dict[str, int] = {}
    sizes: dict[str, int] = {}
    with ThreadPoolExecutor(1) as reader:
        batches = _batches(rows, tokenizer)
        ahead = reader.submit(next, batches, None)
        while (batch := ahead.result()) is not None:
            ahead = reader.submit(next, batches, None)
            before = sum(sizes.values())
            for one, ids in zip(batch, tokenizer.encode_many([one.text for one in batch]), strict=True):
                if one.begins:
                    begins.setdefault(one.split, []).append((lengths.get(one.split, 0), one.record))
                whole = np.concatenate([ids.astype(dtype), separator]) if one.ends else ids.astype(dtype)
                parts.setdefault(one.split, []).append(whole)
                lengths[one.split] = lengths.get(one.split, 0) + len(whole)
                sizes[one.split] = sizes.get(one.split, 0) + len(one.text.encode("utf-8"))
            seen(sum(sizes.values()) - before)
    tables = {split: np.array(begins.get(split, []), np.int64).reshape(-1, 2) for split in parts}
    return {
        split: shards.Piece(np.concatenate(ids), tables[split][:, 0], tables[split][:, 1], sizes[split])
        for split, ids in parts.items()
    }


def _batches(rows: Iterable[Row], tokenizer: Tokenizer) -> Iterator[list[_Fragment]]:
    """The fragments of rows, together about `_BATCH_CHARACTERS` long."""
    batch: list[_Fragment] = []
    size = 0
    for row in rows:
        texts = list(tokenizer.pieces(row.text))
        for number, text in enumerate(texts):
            begins, ends = row.begins and number == 0, row.ends and number == len(texts) - 1
            batch.append(_Fragment(row.split, text, row.record, begins, ends))
            size += len(text)
            if size >= _BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
