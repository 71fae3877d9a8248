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
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.data.bpe import LONG_PIECE, cut_at_lines
from research.data.encoding import FILE_NAME, ByteStream, StreamDecoder, Tokenizer, to_utf8
from research.data.pretrained import CONFIG, Settings, Spelled, to_json

KIND = "sentencepiece"

_MODEL_FILE = "tokenizer.model"
_SPACE = "\u2581"
_UNKNOWN = b" \xe2\x81\x87 "  # what the library writes for the unknown piece

_TRAINER_SPEC, _NORMALIZER_SPEC = 2, 3  # the fields of a model's protocol buffer that follow the pieces

# A protocol buffer's later value of a field wins: normalizer_spec { add_dummy_prefix (3): false }
_NO_PREFIX = bytes([_NORMALIZER_SPEC << 3 | 2, 2, 3 << 3, 0])

_CHATGLM = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
_CHATGLM_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_CHATGLM_PREFIX = ("[gMASK]", "sop")
_BOS_FIRST = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")  # `add_bos_token` is true unless said otherwise


def content(model: bytes) -> str:
    """Returns the tokenizer.json text that holds the bytes of a model file; `parse` finds out whether it is one."""
    return json.dumps({"model": {"type": KIND, "base64": base64.b64encode(model).decode("ascii")}})


@dataclass(frozen=True)
class SentencePieceTokenizer(Tokenizer):
    """The tokeniser of a SentencePiece model. `encode` gives the library's own ids; `texts`: the pieces by id; `added`: the ids of
    tokens beside them, by text."""

    model: bytes = field(repr=False, compare=False)
    processor: Any = field(repr=False, compare=False)
    texts: list[str] = field(repr=False, compare=False)
    added: dict[str, int] = field(repr=False, compare=False)

    @classmethod
    def parse(cls, content: str, where: str, settings: Settings) -> "SentencePieceTokenizer":
        """Returns the tokeniser of what `content` wrote. Raises UserError if it is damaged, or if the extra is missing."""
        try:
            model = base64.b64decode(json.loads(content)["model"]["base64"], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise UserError(f"{where} is a tokenizer.json with a damaged SentencePiece model: {error!r}") from error
        processor, texts = _opened(model, where)
        added = _chatglm(settings, len(texts)) | settings.added_ids
        vocab_size = 1 + max([len(texts) - 1, *added.values()])
        eot, beyond = processor.eos_id(), ""
        if eot < 0:
            eot = added.get(settings.special_tokens.get("eos_token", ""))
            beyond = json.dumps(eot)
        return cls(KIND, vocab_size, eot, content, model, processor, texts, added, settings=settings, beyond=beyond)

    def encode(self, text: str) -> np.ndarray:
        to_utf8(text)
        return np.array(self.processor.encode(text), np.uint32)

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text, uint32; the library's threads share the texts."""
        for text in texts:
            to_utf8(text)
        return [np.array(ids, np.uint32) for ids in self.processor.encode(list(texts), num_threads=-1)]

    def pieces(self, text: str) -> Iterator[str]:
        """Returns the text whole unless it is very long: a part of it would begin with a space of its own."""
        return cut_at_lines(text, LONG_PIECE)

    def encode_prompt(self, text: str) -> np.ndarray:
        """Returns the ids of a prompt. What follows a special token begins with a space of its own unless `legacy` is false
        in the settings, which is what transformers takes for a LlamaTokenizer."""
        to_utf8(text)
        legacy = self.settings.config.get("legacy", self.settings.tokenizer_class != "LlamaTokenizer")
        ids: list[int] = []
        at_start = True
        for part in self.spelled.split(text):
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
        """Returns the bytes of a text's beginning without the spaces that the model does not count; where the library writes the
        unknown piece there, it leaves one."""
        if self.collapses:
            return raw.lstrip(b" ")
        return raw.removeprefix(b" ") if self._prefixes else raw

    def stream(self, context: Any = ()) -> StreamDecoder:
        return _Stream(self, context)

    @property
    def own_tokens(self) -> dict[str, str]:
        ids = {name: getattr(self.processor, f"{name}_id")() for name in ("bos", "eos", "unk", "pad")}
        return {f"{name}_token": self.texts[number] for name, number in ids.items() if number >= 0}

    def token_id(self, token: str) -> int | None:
        return self.added.get(token, self._id_of.get(token))

    def token_text(self, number: int) -> str:
        return next(text for text, known in (self._id_of | self.added).items() if known == number)

    @property
    def default_frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if _is_chatglm(self.settings):
            return tuple(self.added[token] for token in _CHATGLM_PREFIX), ()
        return ((self.processor.bos_id(),) if self._bos_first else ()), ()

    @property
    def _bos_first(self) -> bool:
        return self.settings.tokenizer_class in _BOS_FIRST and self.processor.bos_id() >= 0

    def pretrained_files(self) -> dict[str, bytes]:
        """Returns the files of a published tokeniser by name: the model as it was read, and the settings, in which
        `add_bos_token` is said where the class alone decided it."""
        files = super().pretrained_files()
        del files[FILE_NAME]
        if self._bos_first and self.settings.adds("bos") is None:
            files[CONFIG] = to_json({**self.settings.config, "add_bos_token": True})
        return {_MODEL_FILE: self.model, **files}

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {text: number for number, text in enumerate(self.texts)}

    @cached_property
    def _without_prefix(self) -> Any:
        return _opened(self.model + _NO_PREFIX, self.kind)[0]

    @cached_property
    def _prefixes(self) -> bool:
        return self.processor.normalize("a").startswith(_SPACE)

    @cached_property
    def collapses(self) -> bool:
        """Whether the model drops spaces at the ends of a text and those that follow another."""
        return self.processor.normalize("  a").count(_SPACE) < 2

    @cached_property
    def spelled(self) -> Spelled:
        """What a prompt may spell: control pieces, the settings' tokens, those of ChatGLM."""
        ids = {text: i for text, i in self._id_of.items() if self.processor.is_control(i)}
        known = ((token, self.token_id(token)) for token in self.special_tokens.values())
        ids |= {token: number for token, number in known if number is not None} | self.added
        tokens: dict[str, tuple[int, ...]] = {text: (number,) for text, number in ids.items()}
        if _is_chatglm(self.settings):
            tokens["".join(_CHATGLM_PREFIX)] = self.default_frame[0]
            tokens = {text: ids for text, ids in tokens.items() if text not in ("sop", "eop")}
        return Spelled(tokens, {token.content: token for token in self.settings.added_tokens.values()})

    @cached_property
    def _bytes_of(self) -> dict[int, bytes]:
        """The bytes of every id within a text; none for special tokens."""
        processor = self.processor
        table = {}
        for number, piece in enumerate(self.texts):
            if processor.is_byte(number):
                table[number] = bytes([int(piece[3:5], 16)])  # <0xE4>
            elif processor.is_unknown(number):
                table[number] = _UNKNOWN
            elif not processor.is_control(number):
                table[number] = piece.replace(_SPACE, " ").encode("utf-8")
        special = set(self.special_tokens.values()) - {self.special_tokens.get("unk_token")}
        added = self.settings.added_tokens.items()
        table |= {number: token.content.encode("utf-8") for number, token in added if not token.special}
        hidden = {number for number, token in added if token.special} | {self.token_id(token) for token in special}
        return {number: word for number, word in table.items() if number not in hidden}


class _Stream(ByteStream):
    """Only what begins the text, context included, loses its first space."""

    def __init__(self, tokenizer: SentencePieceTokenizer, context: Any):
        self._pieces = tokenizer
        self._begun = False
        super().__init__(tokenizer, context)

    def push(self, ids: Any) -> str:
        raw = self._pieces.raw_bytes(ids)
        if not self._begun and raw:
            raw = self._pieces.leading(raw)
            self._begun = bool(raw) or not self._pieces.collapses
        return self._decoder.decode(raw)


def _is_chatglm(settings: Settings) -> bool:
    return settings.tokenizer_class == "ChatGLMTokenizer"


def _chatglm(settings: Settings, size: int) -> dict[str, int]:
    """The ids by text of ChatGLM's special tokens, which follow the `size` pieces."""
    if not _is_chatglm(settings):
        return {}
    roles = () if "chatglm2" in str(settings.config.get("name_or_path", "")).lower() else _CHATGLM_ROLES
    return {token: size + number for number, token in enumerate((*_CHATGLM, *roles))}


def _opened(model: bytes, where: str) -> tuple[Any, list[str]]:
    """The library's processor of a model and the texts of its pieces."""
    try:
        import sentencepiece
    except ImportError as error:
        raise UserError(
            f"{where} is a SentencePiece model: install the extra that reads it with "
            "pip install 'purestep[sentencepiece]'."
        ) from error
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model) if model else None
        texts = [processor.id_to_piece(number) for number in range(processor.vocab_size())] if processor else []
    except (RuntimeError, ValueError) as error:  # a piece that is not UTF-8 is a ValueError
        raise UserError(
            f"{where} is not a SentencePiece model: it is damaged or another format. Get it again."
        ) from error
    if not processor or not texts:
        raise UserError(f"{where} is not a SentencePiece model: it has no pieces. Get it again.")
    if not _fields(model) >= {_TRAINER_SPEC, _NORMALIZER_SPEC}:  # the library takes pieces alone for another model
        raise UserError(f"{where} is not a whole SentencePiece model: its end is missing. Get it again.")
    return processor, texts


def _fields(message: bytes) -> set[int]:
    """The numbers of the fields of a protocol buffer that has only strings and messages."""
    found, at = set(), 0
    while at < len(message):
        tag, at = _varint(message, at)
        length, at = _varint(message, at)
        found.add(tag >> 3)
        at += length
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The whole number that begins at a place of a protocol buffer, and the place after it."""
    value = shift = 0
    while at < len(message) and message[at] >= 0x80:
        value |= (message[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
    return value | int.from_bytes(message[at : at + 1], "little") << shift, at + 1
