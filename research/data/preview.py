"""`research data preview`: what training takes at a step. Text as tokens with where they come from; images and sounds as pictures."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.data import command_line, pictures
from research.data.batches import Rows, training
from research.data.loader import shuffled
from research.data.mixed import MixedCorpus, prepare
from research.data.streams import TokenStream
from research.data.tables.decoding import decode_image, decode_wav
from research.data.tables.spec import MEDIA, open_tables
from research.data.tables.splits import Part, split
from research.data.tables.table import Record, Table, classes_of
from research.data.tokenizer import Tokenizer
from research.data.tokens import Corpus

PROG = "research data preview SOURCE"
WIDTH, HEIGHT = 64, 16  # characters of a picture, lines of a spectrogram
SHOWN = ("tokens", "weights", "segments")
_COLOURS = ("36", "33")  # cyan, yellow: documents in turn
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Shows the batch of SOURCE, or of mix:FILE.json, that training takes at a step, with the same options. Documents differ in colour in turn;
    what is not learned is dim. Of images: and audio: the records that the step takes where records are shuffled by the seed."""

    step: int = 0  # counted from 0
    # byte, char, bpe:N, or a tokenizer.json or its folder; None: byte, or what the source was prepared with
    tokenizer: str | None = None
    # of records: the field that holds the text, or a text with fields in braces; None: text
    text_field: str | None = None
    learn: str | None = None  # of a --text-field with braces: the fields that are learned, with commas; None: all
    clean: str | None = None  # plain, gopher, c4 or fineweb
    rows: Rows = "windows"  # of all documents one after the other; packed: of whole documents
    fim_rate: float | None = None  # share of the documents that are rearranged to fill in the middle
    batch_size: int = 8  # rows of a step
    context: int = 128  # tokens of a row
    seed: int = 0  # of the run
    show: int = 4  # rows of the batch to show; --json has all of them
    json: bool = False  # the last line is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors

    def __post_init__(self):
        for name, least in (("step", 0), ("batch_size", 1), ("context", 1), ("show", 1)):
            if getattr(self, name) < least:
                option = name.replace("_", "-")
                raise UserError(f"--{option} is {getattr(self, name)}; expected a whole number of at least {least}")
        if self.fim_rate is not None and not 0 < self.fim_rate <= 1:
            raise UserError(f"--fim-rate is {self.fim_rate}; expected a share above 0 and at most 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed is {self.seed}; expected a whole number in [0, 2^32)")
        if self.step * self.batch_size >= 2**63:
            raise UserError(f"--step is {self.step}; expected one whose rows are numbered below 2^63")


def main(argv: Sequence[str]) -> int:
    """`research data preview SOURCE --step N [options]`."""
    source, arguments = command_line.parse(Arguments(), argv, PROG)
    colour = sys.stdout.isatty()
    if source.partition(":")[0] in MEDIA:
        found = media_batch(source, arguments)
        return command_line.show(media_lines(source, found["rows"][: arguments.show], colour), found, arguments.json)
    corpus = prepare(
        source, arguments.tokenizer, text_field=arguments.text_field, learn=arguments.learn, clean=arguments.clean
    )
    found, documents = text_batch(corpus, arguments)
    lines = text_lines(found["rows"][: arguments.show], documents, corpus.tokenizer, colour)
    return command_line.show(lines, found, arguments.json)


def text_batch(corpus: Corpus, arguments: Arguments) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Returns the step and its rows as JSON values: where the row begins in its stream and the numbers of the records that it is of; its tokens,
    and the weights of the losses of their successors. Packed rows have `segments`, 0 for what fills them up; rows of a mixture the name of
    their `source`. Beside them, for every row, what tells the documents of its tokens apart, int [T]. Raises UserError for a corpus that is too
    short."""
    batches = training(
        corpus, arguments.rows, arguments.batch_size, arguments.context, arguments.seed, fim_rate=arguments.fim_rate
    )
    batch, found = batches(arguments.step), batches.stretches(batches.records(arguments.step))
    rows, documents = [], []
    for number, row in enumerate(found):
        stream, name = _source(corpus, row[0].source)
        records = [record for _, start, stop in row for record in records_of(stream, start, stop)]
        about = {
            "start": row[0].start,
            "records": list(dict.fromkeys(records)),
            **({} if name is None else {"source": name}),
        }
        rows.append(about | {name: batch[name][number].tolist() for name in SHOWN if name in batch})
        if "segments" in batch:
            documents.append(batch["segments"][number])
        elif arguments.fim_rate is not None:  # rearranged, so by its separators
            documents.append(np.concatenate([[0], np.cumsum(batch["tokens"][number][:-1] == corpus.tokenizer.eot)]))
        else:
            documents.append(documents_at(stream, np.arange(row[0].start, row[0].stop)))
    return {"step": arguments.step, "rows": rows}, documents


def _source(corpus: Corpus, number: int) -> tuple[TokenStream, str | None]:
    """The stream to train on of a corpus's source and, in a mixture, its name."""
    return (
        (corpus.parts[number].train, corpus.names[number]) if isinstance(corpus, MixedCorpus) else (corpus.train, None)
    )


def documents_at(stream: TokenStream, positions: np.ndarray) -> np.ndarray:
    """Returns which document of the stream each position, whole numbers [n], belongs to, counted from 0: int64 [n]."""
    return np.maximum(np.searchsorted(stream.begins, positions, side="right") - 1, 0)


def records_of(stream: TokenStream, start: int, stop: int) -> list[int]:
    """Returns the numbers of the records that the tokens from `start` to below `stop` come from, in order."""
    first, last = documents_at(stream, np.array([start, stop - 1])).tolist()
    return stream.records[first : last + 1].tolist()


def text_lines(
    rows: Sequence[dict[str, Any]], documents: Sequence[np.ndarray], tokenizer: Tokenizer, colour: bool
) -> Iterator[str]:
    """Returns two lines for every row: where it comes from, and its text."""
    for number, (row, parts) in enumerate(zip(rows, documents, strict=False)):
        learned = np.array([0, *row["weights"][:-1]]) > 0  # a token is learned where its predecessor's loss counts
        there = parts > 0 if "segments" in row else np.ones(len(parts), bool)  # what fills a row up is left out
        place = f"{parts.max()} segment(s)" if "segments" in row else f"from token {row['start']:,}"
        source = f"{row['source']}, " if "source" in row else ""
        yield f"row {number}: {source}{place}, {_named(row['records'])}"
        yield shown(np.array(row["tokens"])[there], parts[there], learned[there], tokenizer, colour)


def _named(records: Sequence[int]) -> str:
    if len(records) == 1:
        return f"record {records[0]}"
    listed = ", ".join(map(str, records)) if len(records) <= 8 else f"{records[0]} ... {records[-1]}"
    return f"{len(records)} records: {listed}"


def shown(ids: np.ndarray, segments: np.ndarray, learned: np.ndarray, tokenizer: Tokenizer, colour: bool) -> str:
    """Returns the text of ids, [T], on one line, control characters and bytes that are no text as escapes. With `colour`, neighbouring segments,
    [T], differ in colour, and what is not learned, bool [T], is dim."""
    separators = ids == tokenizer.eot if tokenizer.eot is not None else np.zeros(len(ids), bool)
    marks = np.stack([segments, learned, separators])
    cuts = np.flatnonzero((marks[:, 1:] != marks[:, :-1]).any(axis=0)) + 1
    out = []
    for run in np.split(np.arange(len(ids)), cuts):
        first = run[0]
        text = visible(tokenizer.decode_bytes(ids[run]))
        text = tokenizer.token_text(int(ids[first])) * len(run) if separators[first] else text
        codes = f"{'' if learned[first] else '2;'}{_COLOURS[int(segments[first]) % 2]}"
        out.append(f"\033[{codes}m{text}\033[0m" if colour else text)
    return "".join(out)


def visible(content: bytes) -> str:
    """Returns UTF-8 as text on one line: a backslash is doubled, line ends, control characters and bytes that are no text are escapes."""
    text = content.decode("utf-8", "surrogateescape")
    return "".join(
        character if character.isprintable() and character != "\\" else _escaped(character) for character in text
    )


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no text
        return f"\\x{code - 0xDC00:02x}"
    return _ESCAPES.get(character, f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}")


def media_batch(source: str, arguments: Arguments) -> dict[str, Any]:
    """Returns the step and its records as JSON values: number, path, and label with the name of its class where there are labels."""
    table = split(open_tables(source))["train"]
    if not len(table):
        raise UserError(f"{source} has no record to train on. Give more files.")
    records = np.arange(arguments.batch_size, dtype=np.uint64) + np.uint64(arguments.step * arguments.batch_size)
    chosen, _ = shuffled(records, len(table), arguments.seed)
    return {"step": arguments.step, "rows": [_described(table, i) for i in chosen.tolist()]}


def _described(table: Table, i: int) -> dict[str, Any]:
    record = table.record(i)
    out = {"record": int(table.indices[i]) if isinstance(table, Part) else i, "path": record["path"]}
    if "label" in record:
        out |= {"label": record["label"], "class": classes_of(table)["label"][record["label"]]}
    return out


def media_lines(source: str, rows: Sequence[dict[str, Any]], colour: bool) -> Iterator[str]:
    """Returns for every record a line about it and its picture or spectrogram. Raises UserError for a file that cannot be decoded."""
    tables = open_tables(source)
    table = tables.get("train", tables.get("all"))
    assert table is not None  # `split` has found it
    for number, row in enumerate(rows):
        about = f"row {number}: record {row['record']}, {visible(row['path'].encode('utf-8', 'surrogateescape'))}"
        about += f", {row['class']!r} ({row['label']})" if "class" in row else ""
        yield from _drawn(table.record(row["record"]), about, colour)


def _drawn(record: Record, about: str, colour: bool) -> Iterator[str]:
    if "image" in record:
        pixels = decode_image(record["image"], record["path"])
        yield f"{about}, {pixels.shape[1]} x {pixels.shape[0]} pixels, {pixels.shape[2]} channel(s)"
        yield from pictures.picture(pixels, WIDTH, colour)
        return
    samples, rate = decode_wav(record["audio"], record["path"])
    yield f"{about}, {len(samples) / rate:.2f} s at {rate:,} Hz, {samples.shape[1]} channel(s); 0 to {rate // 2:,} Hz"
    yield from pictures.spectrogram(samples.mean(axis=1), WIDTH, HEIGHT)
