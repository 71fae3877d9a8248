"""SentencePiece `tokenizer.model` files, run by the `sentencepiece` library (extra `sentencepiece`).

Kudo and Richardson 2018, "SentencePiece: A simple and language independent subword tokenizer and detokenizer for Neural Text
Processing". The text is normalised, a space is put before it where the model says so, and spaces are part of the pieces; what has no
piece becomes bytes, or the unknown piece. Special tokens beyond the model's own come from the settings, or by the class of the
tokeniser:

ChatGLM2 and ChatGLM3 (Zeng et al. 2022, "GLM-130B: An Open Bilingual Pre-trained Model"; Team GLM 2024, "ChatGLM: A Family of Large
Language Models from GLM-130B to GLM-4 All Tools") number `[MASK]`, `[gMASK]`, `[sMASK]`, `sop` and `eop` after the pieces, ChatGLM3
its four roles after those, and a prompt begins with `[gMASK]`, `sop`. In a text `sop` is that token only right after `[gMASK]`, as the
chat template writes it: elsewhere it is part of a word, such as philosophy.
"""

import base64
import binascii
import codecs
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.data.bpe import LONG_PIECE, cut_at_lines
from research.data.encoding import StreamDecoder, Tokenizer, to_utf8
from research.data.pretrained import Settings, Spelled, minimal_config

KIND = "sentencepiece"

_SPACE = "\u2581"
_UNKNOWN = " \u2047 "  # what the library writes for the unknown piece
_FILE_NAME = re.compile(r"[\w-][\w.-]*\.model")

# A protocol buffer's later value of a field wins: normalizer_spec (3) { add_dummy_prefix (3): false }
_NO_PREFIX = b"\x1a\x02\x18\x00"

_CHATGLM = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
_CHATGLM_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_CHATGLM_PREFIX = ("[gMASK]", "sop")
_BOS_FIRST = (
    "LlamaTokenizer",
    "CodeLlamaTokenizer",
    "GemmaTokenizer",
)  # their `add_bos_token` is true unless said otherwise


def content(model: bytes, name: str, settings: Settings) -> str:
    """Returns the tokenizer.json text that holds a model file. Raises UserError if it is none, or if the extra is missing."""
    processor = _processor(model, name)
    eot = processor.eos_id() if processor.eos_id() >= 0 else None
    if eot is None:
        eot = _added(processor, settings).get(settings.special_tokens.get("eos_token", ""))
    text = base64.b64encode(model).decode("ascii")
    return json.dumps({"model": {"type": KIND, "file": name, "eot": eot, "base64": text}})


@dataclass(frozen=True)
class SentencePieceTokenizer(Tokenizer):
    """The tokeniser of a SentencePiece model. `encode` gives the library's own ids."""

    file: str
    model: bytes = field(repr=False, compare=False)
    processor: Any = field(repr=False, compare=False)

    @classmethod
    def parse(cls, content: str, where: str, settings: Settings) -> "SentencePieceTokenizer":
        """Returns the tokeniser of what `content` wrote. Raises UserError if it is damaged, or if the extra is missing."""
        try:
            given = json.loads(content)["model"]
            name, eot, model = given["file"], given["eot"], base64.b64decode(given["base64"], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise UserError(f"{where} is a tokenizer.json with a damaged SentencePiece model: {error!r}") from error
        processor = _processor(model, where)
        size = processor.vocab_size()
        if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
            raise UserError(f"{where}: {name!r} is no name of a model file in a folder, such as tokenizer.model.")
        vocab_size = 1 + max([size - 1, *_added(processor, settings).values()])
        if eot is not None and not (type(eot) is int and 0 <= eot < vocab_size):
            raise UserError(f"{where}: the separator {eot!r} is not among its {vocab_size} ids.")
        result = cls(KIND, vocab_size, eot, content, name, model, processor, settings=settings)
        _ = result.frame
        return result

    def encode(self, text: str) -> np.ndarray:
        to_utf8(text)
        return np.array(self.processor.encode(text), np.uint32)

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text, uint32; the library's threads share the texts."""
        for text in texts:
            to_utf8(text)
        return [np.array(ids, np.uint32) for ids in self.processor.encode(list(texts), num_threads=-1)]

    def pieces(self, text: str):
        """Returns the text whole unless it is very long: a part of it would begin with a space of its own."""
        return cut_at_lines(text, LONG_PIECE)

    def encode_prompt(self, text: str) -> np.ndarray:
        """Returns the ids of a prompt. What follows a special token begins with a space of its own unless `legacy` is false
        in the settings, which is what transformers takes for a LlamaTokenizer."""
        to_utf8(text)
        legacy = self.settings.config.get("legacy", self.settings.tokenizer_class != "LlamaTokenizer")
        ids: list[int] = []
        at_start = True
        for part in self._spelled.split(text):
            encoder = self.processor if at_start or legacy else self._without_prefix
            ids += encoder.encode(part) if isinstance(part, str) else part
            at_start = False
        return self.framed(np.array(ids, np.uint32))

    def decode_bytes(self, ids: Any) -> bytes:
        """Returns the bytes of the ids, exact also where they end within a character; without the space before the text
        that `encode` put there."""
        return self.leading(self.raw_bytes(ids))

    def raw_bytes(self, ids: Any) -> bytes:
        """Returns the bytes of the ids within a text: with every space."""
        table = self._bytes_of
        return b"".join([table.get(token, b"") for token in self.checked(ids).tolist()])

    def leading(self, raw: bytes) -> bytes:
        """Returns the bytes of a text's beginning without the spaces that the model does not count."""
        if self.collapses:
            return raw.lstrip(b" ")
        return raw.removeprefix(b" ") if self._prefixes else raw

    def stream(self, context: Any = ()) -> StreamDecoder:
        return _Stream(self, context)

    def token_id(self, token: str) -> int | None:
        number = self.processor.piece_to_id(token)
        known = self.processor.id_to_piece(number) == token
        return _added(self.processor, self.settings).get(token, number if known else None)

    def token_text(self, number: int) -> str:
        return self.processor.id_to_piece(number)

    @property
    def default_frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if _is_chatglm(self.settings):
            added = _added(self.processor, self.settings)
            return tuple(added[token] for token in _CHATGLM_PREFIX), ()
        if self.settings.tokenizer_class in _BOS_FIRST and self.processor.bos_id() >= 0:
            return (self.processor.bos_id(),), ()
        return (), ()

    def model_file(self) -> tuple[str, bytes]:
        return self.file, self.model

    def minimal_config(self) -> str:
        ids = {"bos": self.processor.bos_id(), "eos": self.processor.eos_id(), "unk": self.processor.unk_id()}
        named = {f"{name}_token": self.token_text(number) for name, number in ids.items() if number >= 0}
        return minimal_config(named)

    @cached_property
    def _without_prefix(self) -> Any:
        return _processor(self.model + _NO_PREFIX, self.file)

    @cached_property
    def _prefixes(self) -> bool:
        return self.processor.normalize("a").startswith(_SPACE)

    @cached_property
    def collapses(self) -> bool:
        """Whether the model drops spaces at the ends of a text and those that follow another."""
        return not self.processor.normalize(" a").endswith(_SPACE * (1 + self._prefixes) + "a")

    @cached_property
    def _spelled(self) -> Spelled:
        """What a prompt may spell: control pieces, the settings' tokens, those of ChatGLM."""
        processor = self.processor
        names = {processor.id_to_piece(i): i for i in range(processor.vocab_size()) if processor.is_control(i)}
        for token in self.settings.special_tokens.values():
            number = self.token_id(token)
            names |= {} if number is None else {token: number}
        names |= _added(processor, self.settings)
        tokens: dict[str, tuple[int, ...]] = {text: (number,) for text, number in names.items()}
        if _is_chatglm(self.settings):
            tokens["".join(_CHATGLM_PREFIX)] = self.default_frame[0]
            tokens = {text: ids for text, ids in tokens.items() if text not in ("sop", "eop")}
        return Spelled(tokens, {token.content: token for token in self.settings.added_tokens.values()})

    @cached_property
    def _bytes_of(self) -> dict[int, bytes]:
        """The bytes of every id within a text; none for special tokens."""
        processor = self.processor
        table = {}
        for number in range(processor.vocab_size()):
            piece = processor.id_to_piece(number)
            if processor.is_byte(number):
                table[number] = bytes([int(piece[3:5], 16)])  # <0xE4>
            elif processor.is_unknown(number):
                table[number] = _UNKNOWN.encode()
            elif not processor.is_control(number):
                table[number] = piece.replace(_SPACE, " ").encode()
        special = set(self.settings.special_tokens.values())
        for number, token in self.settings.added_tokens.items():
            is_special = token.special or token.content in special
            table[number] = b"" if is_special else token.content.encode()
        return table


class _Stream(StreamDecoder):
    """An incremental UTF-8 decoder; only what begins the text, context included, loses its first space."""

    def __init__(self, tokenizer: SentencePieceTokenizer, context: Any):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._begun = False
        self.push(context)

    def push(self, ids: Any) -> str:
        raw = self._tokenizer.raw_bytes(ids)
        if not self._begun and raw:
            raw = self._tokenizer.leading(raw)
            self._begun = bool(raw) or not self._tokenizer.collapses
        return self._decoder.decode(raw)

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


def _is_chatglm(settings: Settings) -> bool:
    return settings.tokenizer_class == "ChatGLMTokenizer"


def _added(processor: Any, settings: Settings) -> dict[str, int]:
    """The ids by text of the tokens beside the model's own."""
    added: dict[str, int] = {}
    if _is_chatglm(settings):
        roles = () if "chatglm2" in str(settings.config.get("name_or_path", "")).lower() else _CHATGLM_ROLES
        added = {token: processor.vocab_size() + number for number, token in enumerate((*_CHATGLM, *roles))}
    return added | settings.added_ids


def _processor(model: bytes, where: str) -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise UserError(
            f"{where} is a SentencePiece model: install the extra that reads it with pip install 'purestep[sentencepiece]'."
        ) from error
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model) if model else None
        size = processor.vocab_size() if processor else 0
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{where} is not a SentencePiece model: it is damaged or another format. Get it again."
        ) from error
    if not processor or not size:
        raise UserError(f"{where} is not a SentencePiece model: it has no pieces. Get it again.")
    return processor
