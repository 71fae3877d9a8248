"""Tokenisers by name. Every one can be kept in a single `tokenizer.json`: in the format of the Hugging Face `tokenizers` library, or
around a SentencePiece model or a tiktoken file.

| specification                    | tokeniser                                                                     |
| -------------------------------- | ----------------------------------------------------------------------------- |
| `byte`                           | the 256 bytes of UTF-8, and a separator of documents (257 ids)                |
| `char`                           | the characters of the source, no separator                                    |
| `bpe:N`                          | byte-level BPE of at most N ids, trained on the source's part to train on     |
| a tokenizer.json or its folder   | that one                                                                      |
| the folder of a published model  | its tokeniser with its special tokens and chat template (`load`)              |
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from research.core.errors import UserError
from research.core.paths import research_cache_dir
from research.data import bpe, cache, sentencepiece_model, tiktoken_file, vocab_merges
from research.data.encoding import (
    FILE_NAME,
    ByteTokenizer,
    CharTokenizer,
    StreamDecoder,
    Tokenizer,
    byte_description,
    char_description,
    to_utf8,
)
from research.data.files import read_bytes, read_utf8
from research.data.pretrained import LARGEST_FILE, Settings, disclose
from research.data.sources import SPLITS, Source

__all__ = ["FORMS", "StreamDecoder", "Tokenizer", "build", "load", "load_optional", "parse"]

FORMS = (
    "byte, char, bpe:N, or the path of a tokenizer.json or of a folder that holds one or another published tokeniser"
)
_TRAINING_VERSION = "1"  # part of the cache's keys: raise it when training here would give another tokeniser


def build(spec: str, source: Source, *, cache_dir: str | Path | None = None) -> Tokenizer:
    """Returns the tokeniser that `spec` names, trained on `source` where it has to be and then cached by the source's
    content.

    `char` sees all of the source, so that the held-out part can be expressed; `bpe:N` only the part to train on, and it
    stops below N ids where no pair occurs twice. Raises UserError for an unknown form and for a file that cannot be
    read.
    """
    kind, _, size = spec.partition(":")
    if spec == "byte":
        return parse(json.dumps(byte_description()), spec)
    if spec == "char":
        return _cached(source, spec, cache_dir, lambda: json.dumps(char_description(_characters(source))))
    if kind == "bpe" and not Path(spec).exists():
        if not (size.isascii() and size.isdigit() and bpe.SMALLEST <= int(size) <= bpe.LARGEST):
            raise UserError(
                f"the tokeniser {spec!r} is not bpe:N with N from {bpe.SMALLEST} to {bpe.LARGEST}, such as bpe:4096."
            )
        return _cached(source, f"bpe:{int(size)}", cache_dir, lambda: bpe.train(source, int(size)))
    if not spec or not Path(spec).expanduser().exists():
        raise UserError(f"unknown tokeniser {spec!r}: there is no such file and no such form. Known forms: {FORMS}")
    return load(spec)


def load(path: str | Path) -> Tokenizer:
    """Returns the tokeniser of a file, or of a folder as Hugging Face lays it out.

    In a folder the first of these is taken, with the settings beside it (`pretrained`): `tokenizer.json`; `vocab.json`
    and `merges.txt`, or `encoder.json` and `vocab.bpe`; `tokenizer.model`, or the only other `*.model`; the only
    `*.tiktoken`. A file given by itself is that file alone, without the settings of its folder; of GPT-2's two files
    either stands for both. Raises UserError where nothing is found, for a corrupt file, and for a missing extra.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return _of_file(path, Settings())
    found = load_optional(path)
    if found is None:
        raise UserError(
            f"cannot read {path / FILE_NAME}: there is none, and the folder holds no other tokeniser either "
            "(vocab.json and merges.txt, tokenizer.model, *.tiktoken)."
        )
    return found


def load_optional(folder: str | Path) -> Tokenizer | None:
    """Returns the tokeniser of a folder, as `load` finds it, or None where the folder holds none. Raises UserError for
    files that are there but cannot be read."""
    folder = Path(folder).expanduser()
    names = (FILE_NAME, *(name for pair in vocab_merges.PAIRS for name in pair), "tokenizer.model")
    found = [folder / name for name in names if (folder / name).exists()]
    for pattern in () if found else ("*.model", "*.tiktoken"):
        found = found or sorted(folder.glob(pattern))
        if len(found) > 1:
            several = ", ".join(file.name for file in found)
            raise UserError(f"{folder} holds several tokenisers: {several}. Give the path of one of them.")
    return _of_file(found[0], Settings.read(folder)) if found else None


def parse(content: str, where: str, settings: Settings | None = None) -> Tokenizer:
    """Returns the tokeniser whose tokenizer.json has the text `content`, with the settings given or, from a file that
    `Tokenizer.save` wrote, those inside. Raises UserError, naming `where`, if it is not one."""
    content, inside = disclose(content, where)
    tokenizer = _described(content, where, inside if settings is None or not settings.files else settings)
    try:
        _ = tokenizer.frame, tokenizer.checked(tokenizer.stop_ids)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return tokenizer


def _described(content: str, where: str, settings: Settings) -> Tokenizer:
    try:
        description = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not a tokenizer.json that can be read: {error}") from error
    if description == byte_description():
        return ByteTokenizer("byte", 257, 256, content, settings=settings)
    model = description.get("model") if isinstance(description, dict) else None
    kind = model.get("type") if isinstance(model, dict) else None
    if kind == sentencepiece_model.KIND:
        return sentencepiece_model.SentencePieceTokenizer.parse(content, where, settings)
    if kind == tiktoken_file.KIND:
        return tiktoken_file.TiktokenTokenizer.parse(content, where, settings)
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict) and vocabulary and description == char_description(vocabulary):
        characters = "".join(sorted(vocabulary))
        to_utf8(characters)
        if len(characters) == len(vocabulary):
            return CharTokenizer("char", len(characters), None, content, characters, settings=settings)
    return bpe.LibraryTokenizer.parse(content, where, settings)


def _of_file(path: Path, settings: Settings) -> Tokenizer:
    """The tokeniser of one file, or of the pair that it is one of."""
    pair = next((pair for pair in vocab_merges.PAIRS if path.name in pair), None)
    if pair and path.exists():
        vocab, merges = (path.with_name(name) for name in pair)
        content = vocab_merges.content(vocab, merges, settings)
    elif path.suffix in (".model", ".tiktoken"):
        file = read_bytes(path, LARGEST_FILE)
        # Llama 3 and GLM-4 call a tiktoken file tokenizer.model
        if path.suffix == ".tiktoken" or tiktoken_file.is_tiktoken(file):
            content = tiktoken_file.content(file, str(path), settings)
        else:
            content = sentencepiece_model.content(file)
    else:
        content = read_utf8(path, LARGEST_FILE)
    return parse(content, str(path), settings)


def _characters(source: Source) -> set[str]:
    characters = set[str]()
    for split in SPLITS:
        for text in source.documents(split):
            characters.update(text)
    return characters


def _cached(source: Source, spec: str, cache_dir: str | Path | None, make: Callable[[], str]) -> Tokenizer:
    key = hashlib.sha256(f"{_TRAINING_VERSION} {spec} {source.fingerprint}".encode()).hexdigest()
    folder = Path(cache_dir or research_cache_dir()).expanduser() / "tokenizers" / key

    def write(fresh: Path) -> None:
        (fresh / FILE_NAME).write_bytes(make().encode("utf-8"))

    cache.entry(folder, write)
    return load(folder)
