"""`research data NAME ...`: one verb for what can be done with a source, and `prepare`, which makes tokens of it."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.core import verbs
from research.core.errors import UserError
from research.data import command_line
from research.data.progress import reporting

PROG = "research data prepare SOURCE"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Makes the tokens of SOURCE (docs/data.md lists the forms), in the cache or in a folder. Work that was cut off goes on where it stood."""

    # byte, char, bpe:N, or a tokenizer.json or its folder; None: byte, or what the source was prepared with
    tokenizer: str | None = None
    # of records: the field that holds the text, or a text with fields in braces; None: text
    text_field: str | None = None
    # of a --text-field with braces: the fields that are learned, with commas; the rest is only read; None: all
    learn: str | None = None
    clean: str | None = None  # plain, gopher, c4 or fineweb: clean the texts before they are tokenised
    workers: int | None = None  # processes that make it; None: as many as processors where texts are cleaned
    # make it with Apache Beam under these pipeline options, as in "runner=FlinkRunner flink_master=host:8081"
    beam: str | None = None
    # tfds: a folder with the files that the data set is made of, by their names: prepare it from them
    downloads: str | None = None
    download: bool = False  # tfds: fetch those files from the network
    out: str | None = None  # a new folder to make it in, with the tokeniser; prepared:FOLDER then names it
    json: bool = False  # the last line is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors


def prepare(argv: Sequence[str]) -> int:
    """SOURCE: make its tokens, once, cleaned if asked for"""
    source, arguments = command_line.parse(Arguments(), argv, PROG)
    if arguments.downloads is not None or arguments.download:
        found = data_set(source, arguments)
        if found is not None:
            return command_line.show([f"{found['folder']}: {found['splits']}"], found, arguments.json)
    found = prepared(source, arguments)
    return command_line.show(prepared_lines(found), found, arguments.json)


def data_set(source: str, arguments: Arguments) -> dict[str, Any] | None:
    """Prepares a data set of TensorFlow Datasets; returns where it lies and how many records its splits have, or None where it has the text that
    tokens are to be made of. Raises UserError for another source, and as `tfds.prepare_tfds` does."""
    from research.data.tables.spec import open_tables
    from research.data.tables.tfds import prepare_tfds

    if not source.startswith("tfds:"):
        raise UserError(f"--downloads and --download are of tfds:NAME, and the source is {source!r}; leave them out")
    folder = prepare_tfds(
        source, None if arguments.downloads is None else Path(arguments.downloads).expanduser(), arguments.download
    )
    tables = open_tables(source)
    if arguments.text_field is not None or any("text" in table.fields for table in tables.values()):
        return None
    return {"source": source, "folder": str(folder), "splits": {part: len(table) for part, table in tables.items()}}


def prepared(source: str, arguments: Arguments) -> dict[str, Any]:
    """Makes sure that a source is prepared; returns where it lies and what there is by split, as JSON values. `mb_per_second` is of the text that
    was read, with all that it takes to make the tokeniser; None where the corpus was found ready. Raises UserError as `tokens.prepare` does."""
    from research.data import shards, tokens

    start, read, engine = time.perf_counter(), 0, None
    if arguments.beam is not None:
        from research.data import beam

        if arguments.workers is not None:
            raise UserError("--workers and --beam each say who makes the corpus; give one")
        engine = beam.engine(arguments.beam)
    with reporting(f"tokenising {source}") as report:

        def progress(done: int, total: int) -> None:
            nonlocal read
            read = done
            report(done, total)

        corpus = tokens.prepare(
            source, arguments.tokenizer, text_field=arguments.text_field, learn=arguments.learn, clean=arguments.clean, out=arguments.out,
            progress=progress, workers=arguments.workers, engine=engine,
        )  # fmt: skip
    seconds = time.perf_counter() - start
    assert corpus.folder is not None  # it was prepared on disk
    splits = (shards.manifest(corpus.folder) or {})["splits"]
    size, count = (sum(split[unit] for split in splits.values()) for unit in ("bytes", "tokens"))
    return {
        "source": source, "folder": str(corpus.folder), "found_ready": corpus.cached, "tokenizer": corpus.tokenizer.kind,
        "vocabulary": corpus.tokenizer.vocab_size, "splits": splits, "bytes_per_token": size / count,
        "cleaning": None if corpus.cleaning is None else corpus.cleaning.to_json(),
        "seconds": seconds, "mb_per_second": None if corpus.cached else read / 1e6 / seconds,
    }  # fmt: skip


def prepared_lines(found: dict[str, Any]) -> list[str]:
    """Returns what `prepared` found for a person."""
    how = "found ready" if found["found_ready"] else f"made at {found['mb_per_second']:.3g} MB/s"
    names = ("documents", "tokens", "learned", "bytes")
    out = [f"{found['folder']}: {how}, {found['seconds']:.1f} s", ""]
    out += command_line.table(
        ["split", *names], [[split, *(one[name] for name in names)] for split, one in found["splits"].items()]
    )
    out += ["", f"{found['bytes_per_token']:.3f} bytes a token, {found['vocabulary']:,} ids ({found['tokenizer']})"]
    return out if found["cleaning"] is None else [*out, "", *cleaning_lines(found["cleaning"])]


def cleaning_lines(counts: dict[str, Any]) -> list[str]:
    """Returns what cleaning did (`cleaning.Counts.to_json`) for a person, the largest numbers first."""
    kept = f"cleaning kept {counts['kept']:,} of {counts['records']:,} texts"
    out = [f"{kept}, {counts['characters_out']:,} of {counts['characters_in']:,} characters"]
    for verb in ("dropped", "changed"):
        ranked = sorted(counts[verb].items(), key=lambda item: (-item[1], item[0]))
        out += [f"  {verb} {count:>12,}  {name}" for name, count in ranked]
    return out


def preview(argv: Sequence[str]) -> int:
    """SOURCE --step N: the batch that training takes at a step; pictures and spectrograms of media"""
    from research.data import preview

    return preview.main(argv)


def stats(argv: Sequence[str]) -> int:
    """SOURCE: records, lengths, languages, duplicates; classes and sizes of media"""
    from research.data import stats

    return stats.main(argv)


def mix(argv: Sequence[str]) -> int:
    """FILE.json: check a mixture; shares and epochs of its sources"""
    from research.data import mix

    return mix.main(argv)


def dedup(argv: Sequence[str]) -> int:
    """SOURCE --out FILE.jsonl: write the records without duplicates and without parts of a benchmark"""
    from research.data import dedup

    return dedup.main(argv)


COMMANDS = {"prepare": prepare, "preview": preview, "stats": stats, "mix": mix, "dedup": dedup}


def main(argv: Sequence[str]) -> int:
    """Runs one command; returns 0. Raises UserError for one that there is not and for input that cannot be used."""
    return verbs.run("research data NAME", COMMANDS, argv, "command")
