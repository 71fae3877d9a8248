"""Tokenisers that the Hugging Face `tokenizers` library runs: byte-level BPE trained here, and any `tokenizer.json`.

BPE: Sennrich, Haddow and Birch 2016, "Neural Machine Translation of Rare Words with Subword Units"; on bytes, with the
pattern that keeps merges inside words: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners",
section 2.2.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.data.encoding import END_OF_TEXT, StreamDecoder, Tokenizer, byte_level_alphabet, to_utf8
from research.data.sources import Source

SMALLEST, LARGEST = 257, 1 << 20  # 256 bytes and the separator; far more than any text here can fill

# A BPE is trained on about this much of a larger source, spread evenly over it: training time grows with the text, and
# the merges found in more of it hardly differ.
TRAINING_BYTES = 4_000_000
TRAINING_BYTES_PER_ID = 1024

# What separates documents in a tokenizer.json from elsewhere: the first of these among its added tokens.
SEPARATORS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")

_PIECE = 1 << 16  # characters of one text that one thread encodes at a time
_LONG_PIECE = 1 << 23  # the same where a cut may change the tokens next to it
_LINE_END = re.compile(r"[\w!-~]\n")


@dataclass(frozen=True)
class LibraryTokenizer(Tokenizer):
    """A tokenizer.json that is neither our byte nor our character one."""

    library: Any = field(repr=False, compare=False)

    @classmethod
    def parse(cls, content: str, where: str) -> "LibraryTokenizer":
        """Returns the tokeniser of a tokenizer.json's text. Raises UserError if the library refuses it."""
        import tokenizers

        try:
            library = tokenizers.Tokenizer.from_str(content)
            library.no_truncation()
            library.no_padding()
            library.encode_special_tokens = True
            vocabulary = library.get_vocab(with_added_tokens=True)
        except BaseException as error:  # the library's own panics are not Exceptions
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise UserError(f"{where} is not a tokenizer.json that can be read: {error}") from error
        if not vocabulary:
            raise UserError(f"{where} is a tokenizer.json without a vocabulary.")
        added = {token.content: number for number, token in library.get_added_tokens_decoder().items()}
        eot = next((added[name] for name in SEPARATORS if name in added), None)
        return cls(type(library.model).__name__.lower(), max(vocabulary.values()) + 1, eot, content, library)

    def encode(self, text: str) -> np.ndarray:
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text, uint32; the library's threads share the texts. Raises UserError where one has
        no ids."""
        for text in texts:
            to_utf8(text)
        try:
            encoded = self.library.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:
            raise UserError(f"the tokeniser cannot express the text: {error}") from error
        return [np.array(one.ids, np.uint32) for one in encoded]

    def pieces(self, text: str) -> Iterator[str]:
        """Returns parts of the text, cut before a line end that follows a visible character. With GPT-2's pattern no
        token crosses such a place; with others a token next to a cut may differ, so there only very long texts are
        cut."""
        return cut_at_lines(text, _PIECE if self._has_gpt2_pattern else _LONG_PIECE)

    def decode(self, ids: Any) -> str:
        if self._bytes_of is not None:
            return super().decode(ids)
        return self.library.decode(self.checked(ids).tolist(), skip_special_tokens=True)

    def decode_bytes(self, ids: Any) -> bytes:
        table = self._bytes_of
        if table is None:
            return self.decode(ids).encode("utf-8")
        return b"".join([table.get(token, b"") for token in self.checked(ids).tolist()])

    def stream(self, context: Any = ()) -> StreamDecoder:
        return super().stream(context) if self._bytes_of is not None else TextStream(self, context)

    @cached_property
    def _bytes_of(self) -> dict[int, bytes] | None:
        """The bytes of every id, special tokens left out; None where the tokens are not byte-level."""
        if (json.loads(self.content).get("decoder") or {}).get("type") != "ByteLevel":
            return None
        added = self.library.get_added_tokens_decoder()
        byte_of = {character: byte for byte, character in enumerate(byte_level_alphabet())}
        table = {}
        for token, number in self.library.get_vocab(with_added_tokens=True).items():
            if number not in added:
                table[number] = (
                    bytes(byte_of[c] for c in token) if set(token) <= byte_of.keys() else token.encode("utf-8")
                )
            elif not added[number].special:
                table[number] = token.encode("utf-8")
        return table

    @cached_property
    def _has_gpt2_pattern(self) -> bool:
        description = json.loads(self.content)
        pattern = description.get("pre_tokenizer") or {}
        plain = (
            pattern.get("type") == "ByteLevel"
            and pattern.get("use_regex", True)
            and not pattern.get("add_prefix_space")
        )
        normalizer = (description.get("normalizer") or {}).get("type")
        lines = any("\n" in token["content"] for token in description.get("added_tokens") or ())
        return bool(plain and normalizer in (None, "NFC", "NFD", "NFKC", "NFKD") and not lines)


class TextStream(StreamDecoder):
    """For tokenisers whose tokens mean text only together: decodes the last ids together with the new ones and gives
    what those added. What never becomes a character may come out as another number of U+FFFD than `decode` of all ids
    gives."""

    _CONTEXT = 32  # ids kept, so that the cost of a push does not grow with the text

    def __init__(self, tokenizer: Tokenizer, context: Any):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0
        self._keep(tokenizer.checked(context).tolist())

    def push(self, ids: Any) -> str:
        self._ids += self._tokenizer.checked(ids).tolist()
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\ufffd"):
            return ""
        new = text[self._shown :]
        self._keep(self._ids[-self._CONTEXT :])
        return new

    def finish(self) -> str:
        return self._tokenizer.decode(self._ids)[self._shown :]

    def _keep(self, ids: list[int]) -> None:
        self._ids = ids
        self._shown = len(self._tokenizer.decode(ids))


def cut_at_lines(text: str, size: int) -> Iterator[str]:
    """Returns parts of `text` of at least `size` characters, each but the first beginning with a line end after a
    visible one."""
    start = 0
    while len(text) - start > size and (end := _LINE_END.search(text, start + size - 1)):
        yield text[start : end.start() + 1]
        start = end.start() + 1
    if start < len(text):
        yield text[start:]


def train(source: Source, size: int) -> str:
    """Returns the tokenizer.json text of a byte-level BPE with at most `size` ids, trained on the source's documents to
    train on."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=list(byte_level_alphabet()),
        show_progress=False,
    )
    library.train_from_iterator(_sample(source, max(TRAINING_BYTES, TRAINING_BYTES_PER_ID * size)), trainer)
    return library.to_str()


def _sample(source: Source, limit: int) -> Iterator[str]:
    """The first piece of the source, and of the others as many as make about `limit` bytes, chosen by the hash of their
    number."""
    share = limit / max(source.size, 1)
    pieces = (piece for text in source.documents("train") for piece in cut_at_lines(text, _PIECE))
    for number, piece in enumerate(pieces):
        chosen = hashlib.sha256(str(number).encode()).digest()[:8]
        if number == 0 or int.from_bytes(chosen, "big") < share * 2**64:
            yield piece
