"""The units of a corpus as they are made: a unit's texts are read, cleaned where that is asked for, and tokenised. What is left of a unit on disk is
said in `shards.py`.

A `Job` says it all in plain values, so any process that sees the same files can make any unit, and makes the same bytes of it:

    python -m research.data.units      a process that reads a job and then numbers of units, a line each, and makes them (`workers.py`)
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.core.errors import UserError
from research.data import cleaned, cleaning, shards, sources
from research.data import tokenizer as tokenizers
from research.data.cleaning import Counts
from research.data.sources import Row, Source, Unit
from research.data.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 21  # tokenised at a time: enough for every thread, and bounded memory
Seen = Callable[[int], None]
"""Called with the UTF-8 bytes of texts that have been read."""


@dataclass(frozen=True)
class Job:
    """The units of a corpus that is made in `folder`. `tokenizer`: the path of its tokenizer.json; `size`: of the source in bytes; the others as of
    `tokens.prepare`."""

    folder: str
    tokenizer: str
    units: tuple[Unit, ...]
    size: int
    data: str
    text_field: str | None
    learn: str | None
    clean: str | None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        values = json.loads(text)
        return cls(**{**values, "units": tuple(Unit(*unit) for unit in values["units"])})


def open_source(data: str, text_field: str | None, learn: str | None, clean: str | None) -> Source:
    """Returns a source of text, cleaned by a preset where one is named. Raises UserError for what cannot be opened and for
    `clean` beside `learn`."""
    source = sources.resolve(data, text_field, learn)
    if clean is None:
        return source
    if learn is not None:
        raise UserError(
            "--clean changes a text as a whole, so it cannot go with --learn. Clean the records beforehand."
        )
    return cleaned.cleaned_source(source, clean)


def make(job: Job, number: int, seen: Seen = lambda size: None) -> None:
    """Makes the unit of that number, if it is not there. Raises UserError for data that cannot be used, and OSError for a
    folder that cannot be written."""
    source, tokenizer = _opened(job)
    shards.unit(Path(job.folder), number, lambda _: pieces(source, job.units[number], tokenizer, seen))


def is_made(job: Job, number: int) -> bool:
    """Whether a unit is there, by its listing."""
    return shards.listing_of(Path(job.folder), number) is not None


@lru_cache(maxsize=1)
def _opened(job: Job) -> tuple[Source, Tokenizer]:
    return open_source(job.data, job.text_field, job.learn, job.clean), tokenizers.load(job.tokenizer)


def pieces(
    source: Source, unit: Unit, tokenizer: Tokenizer, seen: Seen
) -> tuple[dict[str, shards.Piece], dict[str, int]]:
    """Returns what a unit has of every split, and what cleaning counted."""
    if not isinstance(source, cleaned.CleanedSource):
        return tokenised(source.rows(unit), tokenizer, dtype_for(tokenizer.vocab_size), seen), {}
    counts = Counts()

    def see(text: str, result: cleaning.Cleaned) -> None:
        nonlocal counts
        counts += cleaning.tally([(text, result)])
        seen(len(text.encode("utf-8")))

    rows = cleaned.cleaned_rows(source.rows(unit), source.config, see)
    return tokenised(rows, tokenizer, dtype_for(tokenizer.vocab_size), lambda size: None), cleaned.to_numbers(counts)


def dtype_for(vocab_size: int) -> np.dtype:
    """Returns the smallest unsigned type that holds the ids below `vocab_size`. Raises UserError if int32, which the
    devices compute with, cannot hold them."""
    if not 0 < vocab_size <= 2**31:
        raise UserError(f"a vocabulary of {vocab_size} ids does not fit: token ids are int32, so at most {2**31} ids.")
    return np.dtype(np.uint8 if vocab_size <= 2**8 else np.uint16 if vocab_size <= 2**16 else np.uint32)


class _Fragment(NamedTuple):
    """A part of a row that is tokenised at a time. `begins`, `ends`, `learned`: as of a Row."""

    split: str
    text: str
    record: int
    begins: bool
    ends: bool
    learned: bool


def tokenised(
    rows: Iterable[Row], tokenizer: Tokenizer, dtype: np.dtype, seen: Callable[[int], None]
) -> dict[str, shards.Piece]:
    """Returns the ids of rows, by split; a separator is learned where the text before it is.

    `seen` is called with the UTF-8 bytes that have been tokenised. One thread reads ahead while the
    tokeniser works with as many as it has."""
    separator = np.array([] if tokenizer.eot is None else [tokenizer.eot], dtype)
    parts: dict[str, list[np.ndarray]] = {}
    begins: dict[str, list[tuple[int, int]]] = {}
    learned: dict[str, list[bool]] = {}
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
                learned.setdefault(one.split, []).append(one.learned)
                lengths[one.split] = lengths.get(one.split, 0) + len(whole)
                sizes[one.split] = sizes.get(one.split, 0) + len(one.text.encode("utf-8"))
            seen(sum(sizes.values()) - before)
    tables = {split: np.array(begins.get(split, []), np.int64).reshape(-1, 2) for split in parts}
    masks = {
        split: None if all(learned[split]) else np.repeat(np.array(learned[split], np.uint8), list(map(len, ids)))
        for split, ids in parts.items()
    }
    return {
        split: shards.Piece(np.concatenate(ids), tables[split][:, 0], tables[split][:, 1], sizes[split], masks[split])
        for split, ids in parts.items()
    }


def _batches(rows: Iterable[Row], tokenizer: Tokenizer) -> Iterator[list[_Fragment]]:
    """The fragments of rows, together about `BATCH_CHARACTERS` long."""
    batch: list[_Fragment] = []
    size = 0
    for row in rows:
        texts = list(tokenizer.pieces(row.text))
        for number, text in enumerate(texts):
            begins, ends = row.begins and number == 0, row.ends and number == len(texts) - 1
            batch.append(_Fragment(row.split, text, row.record, begins, ends, row.learned))
            size += len(text)
            if size >= BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def main() -> None:
    """Makes the units that standard input names until it ends. Answers are JSON lines: {"seen": bytes}, and at a unit's end {"made": number},
    {"wrong": what the data is} or {"unwritten": what the system said}."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks ends this by closing its input
    job = Job.from_json(sys.stdin.readline())

    def answer(**values: Any) -> None:
        print(json.dumps(values), flush=True)

    for line in sys.stdin:
        try:
            make(job, int(line), lambda size: answer(seen=size))
            answer(made=int(line))
        except UserError as error:
            answer(wrong=str(error))
        except OSError as error:
            answer(unwritten=os.strerror(error.errno) if error.errno else str(error))


if __name__ == "__main__":
    main()
