"""Token streams: a source's documents as a sequence of ids for each split, made once and kept in the cache (`shards.py`), or in a folder of
one's own, which `prepared:FOLDER` then names as a source.

A document that others follow ends with the tokeniser's separator (nothing where it has none). The ids are stored in the smallest unsigned type
that holds the vocabulary.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.core.errors import UserError
from research.core.paths import research_cache_dir
from research.data import cleaned, cleaning, shards, sources
from research.data import tokenizer as tokenizers
from research.data.cleaning import Counts
from research.data.progress import Report, reporting
from research.data.sources import Row, Source, Unit
from research.data.streams import TokenStream
from research.data.tokenizer import Tokenizer

_FORMAT = "3"  # part of the cache's keys: raise it when the same source and tokeniser would give another stream
_BATCH_CHARACTERS = 1 << 21  # tokenised at a time: enough for every thread, and bounded memory
PREPARED = "prepared:"
TOKENIZER = "byte"  # where none is asked for
_SMALL = 1 << 28  # tokens of a corpus up to which all of it is checked before it is used, not only what is read


@dataclass(frozen=True, eq=False)
class Corpus:
    """A tokenised source. `cached`: whether it was found ready; `test` may be empty; `folder`: where it lies, None for one in memory; `cleaning`:
    what cleaning did, None where there was none."""

    train: TokenStream
    eval: TokenStream
    tokenizer: Tokenizer
    source_fingerprint: str
    tokenizer_fingerprint: str
    cached: bool
    test: TokenStream | None = None
    folder: Path | None = None
    cleaning: Counts | None = None


def prepare(
    data: str,
    tokenizer: str | Tokenizer | None,
    *,
    text_field: str | None = None,
    learn: str | None = None,
    cache_dir: str | Path | None = None,
    progress: Report | None = None,
    clean: str | None = None,
    out: str | Path | None = None,
) -> Corpus:
    """Returns the corpus of a source (`sources.resolve`) under a tokeniser, or one by its name (`tokenizer.build`; None: `byte`), from
    the cache where it is there. Work that was cut off goes on where it stood.

    `text_field` and `learn` say what of a record is text, and what of that is learned (`sources.resolve`). `clean` names a preset of
    `cleaning.PRESETS`: texts are cleaned before the tokeniser sees them. With `out` the corpus is made in that
    folder, which is new or holds this corpus, its tokenizer.json beside it. `prepared:FOLDER` opens what was made so, with its own tokeniser.
    `progress` is called with (bytes done, bytes in all); without it a bar is shown on a terminal. Processes may prepare
    the same corpus at once. Raises UserError for a source or tokeniser that cannot be used, where cleaning leaves nothing, and for a folder that
    cannot be written.
    """
    if data.startswith(PREPARED):
        options = {"text-field": text_field, "learn": learn, "clean": clean, "out": out}
        if given := [f"--{name}" for name, value in options.items() if value]:
            raise UserError(f"{data} is prepared already; leave out {' and '.join(given)}.")
        return _opened(data, tokenizer)
    root = Path(cache_dir or research_cache_dir()).expanduser()
    source = sources.resolve(data, text_field, learn)
    if clean is not None and learn is not None:
        raise UserError(
            "--clean changes a text as a whole, so it cannot go with --learn. Clean the records beforehand."
        )
    source = source if clean is None else cleaned.cleaned_source(source, clean)
    asked = TOKENIZER if tokenizer is None else tokenizer
    built = tokenizers.build(asked, source, cache_dir=root) if isinstance(asked, str) else asked
    about = {
        "data": data, "source": source.fingerprint, "tokenizer": built.fingerprint, "dtype": dtype_for(built.vocab_size).name,
        "tokenizer_name": asked if isinstance(asked, str) else asked.kind, **({} if clean is None else {"clean": clean}),
    }  # fmt: skip
    key = hashlib.sha256(f"{_FORMAT} {source.fingerprint} {built.fingerprint}".encode()).hexdigest()
    folder = root / "tokens" / key if out is None else _own_folder(Path(out).expanduser(), about)
    if not _usable(folder):
        shards.discard(folder)
    with reporting(f"tokenising {data}", progress) as report:
        make = _maker(source, built, report)
        try:
            cached = shards.prepare(folder, len(source.units), make, about, partial(_check, source.name))
        except UserError as error:
            if out is None or not isinstance(error.__cause__, OSError):
                raise
            why = error.__cause__.strerror or error.__cause__
            raise UserError(
                f"cannot write {folder}: {why}. Free some space, or give another folder by --out."
            ) from error
    if out is not None:
        _put_tokenizer(folder, built)
    return _corpus(folder, built, cached)


def _maker(source: Source, tokenizer: Tokenizer, report: Report) -> shards.Make:
    """What tokenises a unit, cleaned where the source is. `report` is told of all bytes that were read."""
    done, dtype = 0, dtype_for(tokenizer.vocab_size)

    def seen(size: int) -> None:
        nonlocal done
        done += size
        report(done, source.size)

    def make(number: int) -> tuple[dict[str, shards.Piece], dict[str, int]]:
        unit = source.units[number]
        if isinstance(source, cleaned.CleanedSource):
            return _cleaned_and_tokenised(source, unit, tokenizer, dtype, seen)
        return tokenised(source.rows(unit), tokenizer, dtype, seen), {}

    return make


def _cleaned_and_tokenised(
    source: cleaned.CleanedSource, unit: Unit, tokenizer: Tokenizer, dtype: np.dtype, seen: Callable[[int], None]
) -> tuple[dict[str, shards.Piece], dict[str, int]]:
    counts = Counts()

    def see(text: str, result: cleaning.Cleaned) -> None:
        nonlocal counts
        counts += cleaning.tally([(text, result)])
        seen(len(text.encode("utf-8")))

    rows = cleaned.cleaned_rows(source.rows(unit), source.config, see)
    pieces = tokenised(rows, tokenizer, dtype, lambda size: None)
    return pieces, cleaned.to_numbers(counts)


def _check(name: str, totals: dict[str, Any]) -> None:
    """Raises UserError for a corpus with nothing to train on or to validate with."""
    counts = cleaned.from_numbers(totals["counts"])
    if counts is not None:
        cleaning.require_kept(counts, name)
    dropped = {} if counts is None else counts.dropped
    why = (
        f" Cleaning dropped {', '.join(f'{n} by {rule!r}' for rule, n in sorted(dropped.items()))}." if dropped else ""
    )
    for split in ("train", "validation"):
        if totals["splits"][split]["tokens"] == 0:
            raise UserError(f"{name} leaves no text for the part {split!r}.{why} Give more text.")
        if totals["splits"][split]["learned"] == 0:
            raise UserError(
                f"{name}: nothing is learned in the part {split!r}: the fields that --learn names are empty."
            )


def _own_folder(folder: Path, about: dict[str, Any]) -> Path:
    """`folder`, which may be written: it is new, empty, or has this corpus. Raises UserError for any other."""
    found = shards.manifest(folder)
    same = ("source", "tokenizer")
    if found is not None and all(found.get(name) == about[name] for name in same):
        return folder
    try:
        if folder.exists() and (found is not None or not folder.is_dir() or any(folder.iterdir())):
            other = (
                f"the corpus of {found['data']}, prepared otherwise"
                if found
                else "something that is no prepared corpus"
            )
            raise UserError(f"{folder} already holds {other}. Give a new folder by --out, or remove it.")
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}. Give another folder by --out.") from error
    return folder


def _put_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    path = folder / tokenizers.FILE_NAME
    if not path.is_file() or tokenizers.load(path).fingerprint != tokenizer.fingerprint:
        tokenizer.save(path)


def _opened(data: str, asked: str | Tokenizer | None) -> Corpus:
    """The corpus of `prepared:FOLDER`. Raises UserError where there is none, where it is damaged, and where another tokeniser is asked for."""
    folder = Path(data.removeprefix(PREPARED)).expanduser()
    again = f"Make it with: research data prepare SOURCE --out {folder}"
    found = shards.manifest(folder)
    if found is None or not (folder / tokenizers.FILE_NAME).is_file():
        missing = shards.MANIFEST if found is None else tokenizers.FILE_NAME
        raise UserError(f"{data}: there is no {missing} as it was written in {str(folder)!r}. {again}")
    if not _usable(folder):
        raise UserError(f"{data} is damaged: its files are not as they were written. Remove {folder}. {again}")
    own = tokenizers.load(folder / tokenizers.FILE_NAME)
    if own.fingerprint != found["tokenizer"]:
        raise UserError(f"{folder / tokenizers.FILE_NAME} is not the tokeniser that {data} was made with. {again}")
    if asked is not None and asked != found["tokenizer_name"] and _fingerprint(asked) != own.fingerprint:
        named = asked if isinstance(asked, str) else asked.kind
        raise UserError(
            f"{data} was made with the tokeniser {found['tokenizer_name']!r}, and {named!r} is asked for. "
            f"Give --tokenizer {found['tokenizer_name']}, or prepare the source anew with {named!r}."
        )
    return _corpus(folder, own, True)


def _fingerprint(tokenizer: str | Tokenizer) -> str | None:
    """That of a tokeniser, or of one by its name; None of one that is trained on a source."""
    if not isinstance(tokenizer, str):
        return tokenizer.fingerprint
    return tokenizers.load(tokenizer).fingerprint if Path(tokenizer).expanduser().exists() else None


def _corpus(folder: Path, tokenizer: Tokenizer, cached: bool) -> Corpus:
    found, dtype = shards.manifest(folder) or {}, dtype_for(tokenizer.vocab_size)
    train, validation, test = (shards.read(folder, split, dtype) for split in shards.SPLITS)
    counts = cleaned.from_numbers(found["counts"])
    return Corpus(train, validation, tokenizer, found["source"], found["tokenizer"], cached, test, folder, counts)


def _usable(folder: Path) -> bool:
    found = shards.manifest(folder)
    small = found is not None and sum(split["tokens"] for split in found["splits"].values()) <= _SMALL
    return shards.is_intact(folder, thorough=small)


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
    """The fragments of rows, together about `_BATCH_CHARACTERS` long."""
    batch: list[_Fragment] = []
    size = 0
    for row in rows:
        texts = list(tokenizer.pieces(row.text))
        for number, text in enumerate(texts):
            begins, ends = row.begins and number == 0, row.ends and number == len(texts) - 1
            batch.append(_Fragment(row.split, text, row.record, begins, ends, row.learned))
            size += len(text)
            if size >= _BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
