"""Token streams: a source's documents as a sequence of ids for each split, made once and kept in the cache (`shards.py`), or in a folder of
one's own, which `prepared:FOLDER` then names as a source.

A document that others follow ends with the tokeniser's separator (nothing where it has none). The ids are stored in the smallest unsigned type
that holds the vocabulary.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from research.core.errors import UserError
from research.core.paths import research_cache_dir
from research.data import cleaned, cleaning, shards, units
from research.data import tokenizer as tokenizers
from research.data import workers as workers_of
from research.data.cleaning import Counts
from research.data.progress import Report, reporting
from research.data.sources import Source
from research.data.streams import TokenStream
from research.data.tokenizer import Tokenizer

Engine = Callable[[units.Job, units.Seen], None]
"""Makes all units of a job, wherever, and tells of the bytes that were read."""

_FORMAT = "3"  # part of the cache's keys: raise it when the same source and tokeniser would give another stream
_TOKENIZER = ".tokenizer.json"  # in a corpus that is being made, for those who help
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

    @property
    def described(self) -> str:
        """How much there is to train on, in words."""
        return f"{len(self.train):,} training tokens of {self.tokenizer.vocab_size} kinds"


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
    workers: int | None = None,
    engine: Engine | None = None,
) -> Corpus:
    """Returns the corpus of a source (`sources.resolve`) under a tokeniser, or one by its name (`tokenizer.build`; None: `byte`), from
    the cache where it is there. Work that was cut off goes on where it stood.

    `text_field` and `learn` say what of a record is text, and what of that is learned (`sources.resolve`). `clean` names a preset of
    `cleaning.PRESETS`: texts are cleaned before the tokeniser sees them. With `out` the corpus is made in that folder, which is new or holds this
    corpus, its tokenizer.json beside it. `prepared:FOLDER` opens what was made so, with its own tokeniser. `progress` is called with (bytes done,
    bytes in all); without it a bar is shown on a terminal.

    So many `workers` make units at once; None: as many as there are processors where texts are cleaned, else this process with its threads. An
    `engine` makes them instead, anywhere (`beam.py`). The bytes are the same, whoever makes them. Processes may prepare the same corpus at
    once. Raises UserError for a source or tokeniser that cannot be used, where cleaning leaves nothing, and for a folder that cannot be written.
    """
    if data.startswith(PREPARED):
        options = {"text-field": text_field, "learn": learn, "clean": clean, "out": out}
        if given := [f"--{name}" for name, value in options.items() if value]:
            raise UserError(f"{data} is prepared already; leave out {' and '.join(given)}.")
        return _opened(data, tokenizer)
    root = Path(cache_dir or research_cache_dir()).expanduser()
    source = units.open_source(data, text_field, learn, clean)
    asked = TOKENIZER if tokenizer is None else tokenizer
    built = tokenizers.build(asked, source, cache_dir=root) if isinstance(asked, str) else asked
    about = {
        "data": data, "source": source.fingerprint, "tokenizer": built.fingerprint, "dtype": units.dtype_for(built.vocab_size).name,
        "tokenizer_name": asked if isinstance(asked, str) else asked.kind, **({} if clean is None else {"clean": clean}),
    }  # fmt: skip
    key = hashlib.sha256(f"{_FORMAT} {source.fingerprint} {built.fingerprint}".encode()).hexdigest()
    folder = root / "tokens" / key if out is None else _own_folder(Path(out).expanduser(), about)
    if engine is None and (count := workers_of.count(workers, source, slow=clean is not None)) > 1:
        engine = partial(workers_of.run, count=count)
    if not _usable(folder):
        shards.discard(folder)
    with reporting(f"tokenising {data}", progress) as report:
        seen = _adding(report, source.size)
        job = units.Job("", "", tuple(source.units), source.size, data, text_field, learn, clean)
        ahead = None if engine is None else partial(_elsewhere, job, built, engine, seen)
        make = partial(_unit, source, built, seen)
        with _naming(folder if out is not None else None):
            cached = shards.prepare(folder, len(source.units), make, about, partial(_check, source.name), ahead)
    if out is not None:
        _put_tokenizer(folder, built)
    return _corpus(folder, built, cached)


@contextlib.contextmanager
def _naming(folder: Path | None) -> Iterator[None]:
    """Lets an error of the disk name a folder of one's own."""
    try:
        yield
    except UserError as error:
        if folder is None or not isinstance(error.__cause__, OSError):
            raise
        why = error.__cause__.strerror or error.__cause__
        raise UserError(f"cannot write {folder}: {why}. Free some space, or give another folder by --out.") from error


def _unit(source: Source, tokenizer: Tokenizer, seen: units.Seen, number: int) -> Any:
    return units.pieces(source, source.units[number], tokenizer, seen)


def _elsewhere(job: units.Job, tokenizer: Tokenizer, engine: Engine, seen: units.Seen, unfinished: Path) -> None:
    """Lets an engine make the units of a job in an unfinished folder."""
    where = unfinished.resolve()
    tokenizer.save(where / _TOKENIZER)
    engine(replace(job, folder=str(where), tokenizer=str(where / _TOKENIZER)), seen)


def _adding(report: Report, total: int) -> units.Seen:
    """Tells `report` of all bytes that were read so far."""
    done = 0

    def seen(size: int) -> None:
        nonlocal done
        done += size
        report(done, total)

    return seen


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
    found, dtype = shards.manifest(folder) or {}, units.dtype_for(tokenizer.vocab_size)
    train, validation, test = (shards.read(folder, split, dtype) for split in shards.SPLITS)
    counts = cleaned.from_numbers(found["counts"])
    return Corpus(train, validation, tokenizer, found["source"], found["tokenizer"], cached, test, folder, counts)


def _usable(folder: Path) -> bool:
    found = shards.manifest(folder)
    small = found is not None and sum(split["tokens"] for split in found["splits"].values()) <= _SMALL
    return shards.is_intact(folder, thorough=small)
