"""Tokenisers that the Hugging Face `tokenizers` library runs: byte-level BPE trained here, and any `tokenizer.json`.

BPE: Sennrich, Haddow and Birch 2016, "Neural Machine Translation of Rare Words with Subword Units"; on bytes, with the
pattern that keeps merges inside words: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners",
section 2.2.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.data.encoding import FILE_NAME, StreamDecoder, Tokenizer, byte_level_alphabet, to_utf8
from research.data.pretrained import END_OF_TEXT, AddedToken, Settings
from research.data.sources import Source

SMALLEST, LARGEST = 257, 1 << 20  # 256 bytes and the separator; far more than any text here can fill

# A BPE is trained on about this much of a larger source, spread evenly over it: training time grows with the text, and
# the merges found in more of it hardly differ.
TRAINING_BYTES = 4_000_000
TRAINING_BYTES_PER_ID = 1024

# What separates documents in a tokeniser from elsewhere: the first of these among its added tokens, unless its settings
# say that a text ends with another of them.
SEPARATORS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")

_PIECE = 1 << 16  # characters of one text that one thread encodes at a time
LONG_PIECE = 1 << 23  # the same where a cut may change the tokens next to it
_LINE_END = re.compile(r"[\w!-~]\n")


@dataclass(frozen=True)
class LibraryTokenizer(Tokenizer):
    """A tokenizer.json that is neither our byte nor our character one."""

    library: Any = field(repr=False, compare=False)

    @classmethod
    def parse(cls, content: str, where: str, settings: Settings = Settings()) -> "LibraryTokenizer":
        """Returns the tokeniser of a tokenizer.json's text, with the tokens that the settings add. Raises UserError if
        the library refuses it, or an added token's id."""
        library = _library(content, where)
        library.encode_special_tokens = True
        plain = library.get_added_tokens_decoder()
        _add_tokens(library, settings, where)
        added = library.get_added_tokens_decoder()
        vocabulary = library.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise UserError(f"{where} is a tokenizer.json without a vocabulary.")
        eot = separator({token.content: number for number, token in added.items()}, settings)
        new = [[number, token.content] for number, token in sorted(added.items()) if number not in plain]
        new = [[number, text] for number, text in new if not added[number].special]
        bare = separator({token.content: number for number, token in plain.items()}, Settings())
        return cls(
            type(library.model).__name__.lower(), max(vocabulary.values()) + 1, eot, content, library,
            settings=settings, beyond=json.dumps([new, eot]) if new or eot != bare else "",
        )  # fmt: skip

    @cached_property
    def _prompting(self) -> Any:
        """The library's tokeniser that takes special tokens from the text: another object, since the library keeps that
        choice as state."""
        library = _library(self.content, "the tokeniser")
        _add_tokens(library, self.settings, "the tokeniser")
        library.encode_special_tokens = bool(self.settings.config.get("split_special_tokens"))
        return library

    def encode_prompt(self, text: str) -> np.ndarray:
        to_utf8(text)
        try:
            ids = self._prompting.encode(text, add_special_tokens=False).ids
        except Exception as error:
            raise UserError(f"the tokeniser cannot express the text: {error}") from error
        return self.framed(np.array(ids, np.uint32))

    @property
    def default_frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the post-processor of the tokenizer.json puts around a text."""
        processor = self.library.post_processor
        return _around(json.loads(processor.__getstate__())) if processor else ((), ())

    def pretrained_files(self) -> dict[str, bytes]:
        files = super().pretrained_files()
        if self.frame != self.default_frame:  # transformers heeds the post-processor, not `add_bos_token`
            description = {**json.loads(self.content), "post_processor": template(self.frame, self.token_text)}
            files[FILE_NAME] = json.dumps(description, ensure_ascii=False).encode("utf-8")
        return files

    def token_id(self, token: str) -> int | None:
        return self.library.token_to_id(token)

    def token_text(self, number: int) -> str:
        return self.library.id_to_token(number)

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
        return cut_at_lines(text, _PIECE if self._has_gpt2_pattern else LONG_PIECE)

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
        added = self.library.get_added_tokens_decoder().values()
        lines = any("\n" in token.content or token.lstrip or token.rstrip for token in added if not token.special)
        return bool(plain and normalizer in (None, "NFC", "NFD", "NFKC", "NFKD") and not lines)


class TextStream(StreamDecoder):
    """For tokenisers whose tokens mean text only together: decodes the last ids together with the new ones and gives
    what those added. What never becomes a character may come out as another number of U+FFFD than `decode` of all ids
    gives."""

    _CONTEXT = 32  # ids kept, so that the cost of a push does not grow with the text
    _TRIES = 4  # a character has at most four bytes, so one of four neighbouring ids begins one

    def __init__(self, tokenizer: Tokenizer, context: Any):
        self._tokenizer = tokenizer
        self._ids: list[int] = tokenizer.checked(context).tolist()
        self._shown = len(tokenizer.decode(self._ids))

    def push(self, ids: Any) -> str:
        self._ids += self._tokenizer.checked(ids).tolist()
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\ufffd"):
            return ""
        new = text[self._shown :]
        self._forget(text)
        return new

    def finish(self) -> str:
        return self._tokenizer.decode(self._ids)[self._shown :]

    def _forget(self, text: str) -> None:
        """Keeps the last ids, from one on that alone gives the end of the text: not from within a character's bytes."""
        self._shown = len(text)
        first = max(len(self._ids) - self._CONTEXT, 0)
        for start in range(first, min(first + self._TRIES, len(self._ids)) if first else 0):
            end = self._tokenizer.decode(self._ids[start:])
            if text.endswith(end):
                self._ids, self._shown = self._ids[start:], len(end)
                return


def separator(added: Mapping[str, int], settings: Settings) -> int | None:
    """Returns the id that separates documents among a tokeniser's added tokens; without one of `SEPARATORS`, the id of the
    settings' `eos_token`."""
    eos = settings.special_tokens.get("eos_token", "")
    names = [name for name in (eos, *SEPARATORS) if name in added and name in SEPARATORS]
    return added[names[0]] if names else added.get(eos)


def _around(processor: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a post-processor puts before and after a text."""
    before, after = [], []
    if processor["type"] == "Sequence":  # the library lets one of them at most put anything
        for part in map(_around, processor["processors"]):
            before, after = [*before, *part[0]], [*after, *part[1]]
    elif processor["type"] == "TemplateProcessing":
        side = before
        for piece in processor["single"]:
            if "Sequence" in piece:
                side = after
            else:
                side += processor["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    elif processor["type"] in ("BertProcessing", "RobertaProcessing"):
        before, after = [processor["cls"][1]], [processor["sep"][1]]
    return tuple(before), tuple(after)


def template(frame: tuple[tuple[int, ...], tuple[int, ...]], text_of: Callable[[int], str]) -> dict[str, Any]:
    """Returns the post-processor of a tokenizer.json that puts the special tokens of `frame` around a text."""
    before, after = ([{"SpecialToken": {"id": text_of(number), "type_id": 0}} for number in side] for side in frame)
    single = [*before, {"Sequence": {"id": "A", "type_id": 0}}, *after]
    special = {text_of(number): number for side in frame for number in side}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {text: {"id": text, "ids": [number], "tokens": [text]} for text, number in special.items()},
    }


def _library(content: str, where: str) -> Any:
    import tokenizers

    try:
        library = tokenizers.Tokenizer.from_str(content)
        library.no_truncation()
        library.no_padding()
    except BaseException as error:  # the library's own panics are not Exceptions
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise UserError(f"{where} is not a tokenizer.json that can be read: {error}") from error
    return library


def _add_tokens(library: Any, settings: Settings, where: str) -> None:
    """Adds the tokens of `added_tokens_decoder` that the tokenizer.json lacks, and makes tokens of the vocabulary special
    that the settings name. Named tokens that have no id get none: a model has no row for them."""
    import tokenizers

    def token(given: AddedToken):
        return tokenizers.AddedToken(given.content, **{k: v for k, v in vars(given).items() if k != "content"})

    known = {one.content for one in library.get_added_tokens_decoder().values()}
    for number, given in settings.added_tokens.items():
        if given.content not in known:
            library.add_tokens([token(given)])
            if library.token_to_id(given.content) != number:
                raise UserError(
                    f"{where}: the settings give the added token {given.content!r} the id {number}, but with this "
                    f"vocabulary it has {library.token_to_id(given.content)}. Get the tokeniser's files again."
                )
    named = [text for text in settings.special_tokens.values() if library.token_to_id(text) is not None]
    library.add_special_tokens([token(AddedToken(text)) for text in named])


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
