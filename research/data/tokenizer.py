"""Tokenisers by name. Every one is a single `tokenizer.json` in the format of the Hugging Face `tokenizers` library.

| specification                    | tokeniser                                                                     |
| -------------------------------- | ----------------------------------------------------------------------------- |
| `byte`                           | the 256 bytes of UTF-8, and a separator of documents (257 ids)                |
| `char`                           | the characters of the source, no separator                                    |
| `bpe:N`                          | byte-level BPE of at most N ids, trained on the source's part to train on     |
| a tokenizer.json or its folder   | that one                                                                      |
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from research.core.errors import UserError
from research.core.paths import research_cache_dir
from research.data import bpe, cache
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
from research.data.files import read_utf8
from research.data.sources import Source

__all__ = ["FORMS", "StreamDecoder", "Tokenizer", "build", "load", "parse"]

FORMS = "byte, char, bpe:N, or the path of a tokenizer.json or of a folder that holds one"
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
    """Returns the tokeniser of a `tokenizer.json`, or of the folder that holds one. Raises UserError where it is
    missing or corrupt."""
    path = Path(path).expanduser()
    file = path / FILE_NAME if path.is_dir() else path
    return parse(read_utf8(file), str(file))


def parse(content: str, where: str) -> Tokenizer:
    """Returns the tokeniser whose tokenizer.json has the text `content`. Raises UserError, naming `where`, if it is not
    one."""
    try:
        description = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not a tokenizer.json that can be read: {error}") from error
    if description == byte_description():
        return ByteTokenizer("byte", 257, 256, content)
    model = description.get("model") if isinstance(description, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict) and vocabulary and description == char_description(vocabulary):
        characters = "".join(sorted(vocabulary))
        to_utf8(characters)
        if len(characters) == len(vocabulary):
            return CharTokenizer("char", len(characters), None, content, characters)
    return bpe.LibraryTokenizer.parse(content, where)


def _characters(source: Source) -> set[str]:
    characters = set[str]()
    for split in ("train", "eval"):
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
