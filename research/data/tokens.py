"""Token streams: a source's documents as one memory-mapped array of ids for each split, made once and kept in the
cache.

Documents follow each other with the tokeniser's separator between them (nothing where it has none). The ids are stored
in the smallest unsigned type that holds the vocabulary.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from research.core.errors import UserError
from research.core.paths import research_cache_dir
from research.data import cache, sources
from research.data import tokenizer as tokenizers
from research.data.progress import Report, reporting
from research.data.sources import Source
from research.data.tokenizer import Tokenizer

_FORMAT = "1"  # part of the cache's keys: raise it when the same source and tokeniser would give another stream
_BATCH_CHARACTERS = 1 << 21  # tokenised at a time: enough for every thread, and bounded memory
_META = "meta.json"


@dataclass(frozen=True, eq=False)
class TokenStream:
    """Ids of one split. `tokens`: [n], memory-mapped and read-only; `bytes`: the UTF-8 bytes of the text that they
    stand for."""

    tokens: np.ndarray = field(repr=False)
    bytes: int

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A tokenised source. `cached`: whether it was found ready."""

    train: TokenStream
    eval: TokenStream
    tokenizer: Tokenizer
    source_fingerprint: str
    tokenizer_fingerprint: str
    cached: bool


def prepare(
    data: str,
    tokenizer: str | Tokenizer,
    *,
    text_field: str = "text",
    cache_dir: str | Path | None = None,
    progress: Report | None = None,
) -> Corpus:
    """Returns the corpus of a source (`sources.resolve`) under a tokeniser, or one by its name (`tokenizer.build`), from
    the cache where it is there.

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

    def write(fresh: Path) -> None:
        with reporting(f"tokenising {data}", progress) as report:
            _write(fresh, source, built, dtype, report)

    cached = cache.entry(folder, write)
    train, held_out = _open(folder, dtype)
    return Corpus(train, held_out, built, source.fingerprint, built.fingerprint, cached)


def dtype_for(vocab_size: int) -> np.dtype:
    """Returns the smallest unsigned type that holds the ids below `vocab_size`. Raises UserError if int32, which the
    devices compute with, cannot hold them."""
    if not 0 < vocab_size <= 2**31:
        raise UserError(f"a vocabulary of {vocab_size} ids does not fit: token ids are int32, so at most {2**31} ids.")
    return np.dtype(np.uint8 if vocab_size <= 2**8 else np.uint16 if vocab_size <= 2**16 else np.uint32)


def _open(folder: Path, dtype: np.dtype) -> tuple[TokenStream, TokenStream]:
    meta = json.loads((folder / _META).read_bytes())
    train, held_out = (
        TokenStream(np.memmap(folder / f"{split}.bin", dtype, mode="r"), meta[split]["bytes"])
        for split in ("train", "eval")
    )
    return train, held_out


def _write(folder: Path, source: Source, tokenizer: Tokenizer, dtype: np.dtype, report: Report) -> None:
    meta, done = {}, 0
    for split in ("train", "eval"):
        size = 0
        with open(folder / f"{split}.bin", "wb") as file:
            for added in _tokenise(source.documents(split), tokenizer, dtype, file):
                size += added
                report(done + size, source.size)
        if size == 0:
            raise UserError(f"{source.name} leaves no text for the part {split!r}. Give more text.")
        done += size
        meta[split] = {"bytes": size}
    (folder / _META).write_text(json.dumps({**meta, "dtype": dtype.name}), encoding="utf-8")


def _tokenise(documents: Iterator[str], tokenizer: Tokenizer, dtype: np.dtype, file: BinaryIO) -> Iterator[int]:
    """Writes the ids of the documents; yields the UTF-8 bytes of text that each write stands for."""
    separator = np.array([] if tokenizer.eot is None else [tokenizer.eot], dtype).tobytes()
    first = True
    for batch in _batches(documents, tokenizer):
        encoded = tokenizer.encode_many([text for text, _ in batch])
        for ids, (_, begins) in zip(encoded, batch, strict=True):
            if begins and not first:
                file.write(separator)
            file.write(np.ascontiguousarray(ids, dtype).tobytes())
            first = False
        yield sum(len(text.encode("utf-8")) for text, _ in batch)


def _batches(documents: Iterator[str], tokenizer: Tokenizer) -> Iterator[list[tuple[str, bool]]]:
    """Pieces of documents as (text, whether it begins a document), together about `_BATCH_CHARACTERS` long."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for document in documents:
        for number, piece in enumerate(tokenizer.pieces(document)):
            batch.append((piece, number == 0))
            size += len(piece)
            if size >= _BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
