"""`research data stats`: what a source holds, in one pass over it."""

import bisect
import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from research.core.errors import UserError
from research.data import command_line, duplicates, sources
from research.data import tokenizer as tokenizers
from research.data.language import language
from research.data.sources import Row, Source
from research.data.tables.decoding import decode_image, decode_wav
from research.data.tables.spec import MEDIA, open_tables
from research.data.tables.splits import PARTS, bucket
from research.data.tables.table import Record, Table, classes_of
from research.data.tokenizer import Tokenizer
from research.data.tokens import PREPARED

PROG = "research data stats SOURCE"
QUANTILES = {"min": 0.0, "5%": 0.05, "25%": 0.25, "50%": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}
SAMPLE = 1000  # texts of which the language is told, spread evenly over the source
LOOK = 10_000  # characters of each that are looked at
_BATCH = 1 << 20  # characters tokenised at a time


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Counts SOURCE: records, bytes, lengths, languages, duplicates, empty records; of images: and audio: classes and sizes. Reads it once and holds
    about 70 bytes a record at most."""

    tokenizer: str | None = None  # byte, char, bpe:N, or a tokenizer.json or its folder: lengths in its tokens, too
    # of records: the field that holds the text, or a text with fields in braces; None: text
    text_field: str | None = None
    json: bool = False  # the last line is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors


def main(argv: Sequence[str]) -> int:
    """`research data stats SOURCE [options]`."""
    source, arguments = command_line.parse(Arguments(), argv, PROG)
    if source.startswith(PREPARED):
        raise UserError(f"{source} holds tokens, not records; `research data prepare {source}` prints its numbers.")
    if source.partition(":")[0] in MEDIA:
        found = media(source)
        return command_line.show(media_lines(found), found, arguments.json)
    opened = sources.resolve(source, arguments.text_field)
    found = texts(opened, tokenizers.build(arguments.tokenizer, opened) if arguments.tokenizer else None)
    return command_line.show(text_lines(found), found, arguments.json)


@dataclasses.dataclass
class _Lengths:
    """How many texts have each length, by split."""

    characters: dict[str, Counter[int]] = dataclasses.field(default_factory=dict)
    tokens: dict[str, Counter[int]] = dataclasses.field(default_factory=dict)
    bytes: Counter[str] = dataclasses.field(default_factory=Counter)


def texts(source: Source, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """Returns the counts of a source of text as JSON values.

    `splits`: for each, texts, bytes of UTF-8, and quantiles of lengths in characters and, with a tokeniser, in tokens (nearest rank). `languages`:
    of about 1,000 texts spread evenly, `und` where nothing tells. `duplicates`: texts that are equal to an earlier one. `empty`: records
    without text. A file above 8 MB counts as its parts, and one that the split cuts in two as two. Raises UserError for what cannot be read.
    """
    lengths, languages, filled = _Lengths(), Counter[str](), 0
    records = sum(len(table) for table in source.tables.values())
    stride = -(-records // SAMPLE)

    def observed() -> Iterator[Row]:
        nonlocal filled
        before = None
        for unit in source.units:
            for row in source.rows(unit):
                filled += (unit.part, row.record) != before
                before = (unit.part, row.record)
                lengths.bytes[row.split] += len(row.text.encode("utf-8"))
                lengths.characters.setdefault(row.split, Counter())[len(row.text)] += 1
                if row.record % stride == 0:
                    languages[language(row.text[:LOOK])[0]] += 1
                yield row

    rows = observed() if tokenizer is None else _tokenised(observed(), tokenizer, lengths)
    repeated = duplicates.counts(duplicates.exact(row.text for row in rows)).dropped
    return {
        "source": source.name, "records": records, "empty": records - filled, "duplicates": repeated,
        "splits": {split: _split(split, lengths) for split in PARTS if split in lengths.characters},
        "languages": dict(sorted(languages.items(), key=lambda item: (-item[1], item[0]))),
    }  # fmt: skip


def _tokenised(rows: Iterable[Row], tokenizer: Tokenizer, lengths: _Lengths) -> Iterator[Row]:
    """The rows, their lengths in tokens counted some at a time."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row.text)
        if size >= _BATCH:
            _count_tokens(batch, tokenizer, lengths)
            batch, size = [], 0
        yield row
    _count_tokens(batch, tokenizer, lengths)


def _count_tokens(rows: Sequence[Row], tokenizer: Tokenizer, lengths: _Lengths) -> None:
    for row, ids in zip(rows, tokenizer.encode_many([row.text for row in rows]), strict=True):
        lengths.tokens.setdefault(row.split, Counter())[len(ids)] += 1


def _split(split: str, lengths: _Lengths) -> dict[str, Any]:
    characters = lengths.characters[split]
    out = {"texts": characters.total(), "bytes": lengths.bytes[split], "characters": quantiles(characters)}
    return out | ({"tokens": quantiles(lengths.tokens[split])} if split in lengths.tokens else {})


def quantiles(lengths: Counter[int]) -> dict[str, int]:
    """Returns the quantiles named by `QUANTILES` of lengths, given as how many there are of each: the nearest rank, so each is a length that
    occurs."""
    values = sorted(lengths)
    ends = list(accumulate(lengths[value] for value in values))
    ranks = {name: max(1, math.ceil(share * ends[-1])) for name, share in QUANTILES.items()}
    return {name: values[bisect.bisect_left(ends, rank)] for name, rank in ranks.items()}


def text_lines(found: dict[str, Any]) -> list[str]:
    """Returns what `texts` found for a person."""
    splits = found["splits"]
    counts = (
        f"{found['records']:,} records, {found['empty']:,} empty, {found['duplicates']:,} texts that repeat another"
    )
    out = [f"{found['source']}: {counts}", ""]
    out += command_line.table(
        ["split", "texts", "bytes"], [[name, one["texts"], one["bytes"]] for name, one in splits.items()]
    )
    for unit in ("characters", "tokens"):
        rows = [[name, *one[unit].values()] for name, one in splits.items() if unit in one]
        out += ["", *command_line.table([f"length in {unit}", *QUANTILES], rows)] if rows else []
    sample = sum(found["languages"].values())
    listed = ", ".join(f"{code} {count / sample:.1%}" for code, count in found["languages"].items())
    return [*out, "", f"languages of {sample:,} texts: {listed}"]


def media(spec: str) -> dict[str, Any]:
    """Returns the counts of a source of images or sounds as JSON values: for each split the files, their bytes and the files of each class; `sizes`:
    files by width x height, or by sample rate, the most frequent first; of sounds also `seconds`. Every file is decoded: raises UserError,
    naming it, for one that cannot be."""
    splits: dict[str, dict[str, Any]] = {}
    sizes, seconds = Counter[str](), 0.0
    for split, table, i in _by_split(open_tables(spec)):
        record = table.record(i)
        one = splits.setdefault(split, {"files": 0, "bytes": 0, "classes": Counter()})
        one["files"] += 1
        one["bytes"] += len(record["image" if "image" in record else "audio"])
        if "label" in record:
            one["classes"][classes_of(table)["label"][record["label"]]] += 1
        size, duration = _measured(record)
        sizes[size] += 1
        seconds += duration
    ordered = {split: {**one, "classes": dict(sorted(one["classes"].items()))} for split, one in splits.items()}
    out = {"source": spec, "splits": {split: ordered[split] for split in PARTS if split in ordered}}
    return out | {"sizes": dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0])))} | ({"seconds": seconds} if seconds else {})  # fmt: skip


def _by_split(tables: Mapping[str, Table]) -> Iterator[tuple[str, Table, int]]:
    """(split, table, place) of every record: its part's, or what the hash of its identity says where the source comes without parts."""
    for part, table in tables.items():
        for i in range(len(table)):
            yield (bucket(table.identity(i)) if part == "all" else part), table, i


def _measured(record: Record) -> tuple[str, float]:
    """The size of an image in pixels, or the sample rate of a sound, and its seconds."""
    if "image" in record:
        pixels = decode_image(record["image"], record["path"])
        return f"{pixels.shape[1]} x {pixels.shape[0]} x {pixels.shape[2]}", 0.0
    samples, rate = decode_wav(record["audio"], record["path"])
    return f"{rate} Hz x {samples.shape[1]}", len(samples) / rate


def media_lines(found: dict[str, Any]) -> list[str]:
    """Returns what `media` found for a person."""
    splits = found["splits"]
    rows = [[name, one["files"], one["bytes"], len(one["classes"])] for name, one in splits.items()]
    out = [found["source"], "", *command_line.table(["split", "files", "bytes", "classes"], rows)]
    names = sorted({name for one in splits.values() for name in one["classes"]})
    classes = [[name, *(one["classes"].get(name, 0) for one in splits.values())] for name in names]
    out += ["", *command_line.table(["class", *splits], classes)] if classes else []
    out += ["", *command_line.table(["size", "files"], list(found["sizes"].items()))]
    return [*out, "", f"{found['seconds']:,.1f} seconds"] if "seconds" in found else out
