"""What a tokeniser is, and the two that need no library: bytes and characters.

`byte`: ids 0 to 255 are the UTF-8 bytes, 256 separates documents. `char`: ids are the ranks of the source's characters
by code point, with no separator. Their files are written so that the `tokenizers` library reads them to the same ids,
but NumPy runs them, which is much faster. Text is always text: `<|endoftext|>` in a document is encoded as those
characters, never as the separator.
"""

import abc
import codecs
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from research.core.errors import UserError
from research.data.files import write_atomically
from research.data.pretrained import CONFIG, END_OF_TEXT, FILES, MINIMAL, NAMED, Settings, Spelled, enclose, to_json

FILE_NAME = "tokenizer.json"

_PIECE = 1 << 22  # characters: bounds the memory of tokenising one very long document
_EVERY_CHARACTER = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False}


@dataclass(frozen=True)
class Tokenizer(abc.ABC):
    """What every tokeniser offers. `vocab_size`: every id is below it; `eot`: the id between documents, or None: joined
    as they are; `content`: the text of its tokenizer.json, which is all there is to its ids; `settings`: what a
    published tokeniser's other files say; `beyond`: what of that changes the ids of a text, as text."""

    kind: str
    vocab_size: int
    eot: int | None
    content: str = field(repr=False)
    settings: Settings = field(default=Settings(), repr=False, kw_only=True)
    beyond: str = field(default="", repr=False, kw_only=True)

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of `text`, [T], of an integer type. Raises UserError for a character that has no id."""

    def encode_prompt(self, text: str) -> np.ndarray:
        """Returns the ids that a generation starts from, [T]: those of `text`, of the special tokens where it spells them, between the
        special tokens that stand around a text (`frame`). Raises UserError as `encode` does."""
        parts = [self.encode(part) if isinstance(part, str) else part for part in self.spelled.split(text)]
        return self.framed(np.concatenate(parts) if parts else self.encode(text))

    @cached_property
    def spelled(self) -> Spelled:
        """The special tokens that a prompt may spell."""
        ids = {token: self.token_id(token) for token in self.special_tokens.values()}
        return Spelled({token: (number,) for token, number in ids.items() if number is not None})

    @abc.abstractmethod
    def decode_bytes(self, ids: Any) -> bytes:
        """Returns the bytes that the ids stand for; separators and other special tokens stand for none.

        Exact for byte, character and byte-level tokenisers, the UTF-8 of `decode` for others. Raises UserError for an
        id that is not in the vocabulary.
        """

    def decode(self, ids: Any) -> str:
        """Returns the text of the ids; bytes that are not UTF-8 become U+FFFD. The inverse of `encode` where that is
        lossless."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns `encode` of each text, in parallel where that is faster."""
        return [self.encode(text) for text in texts]

    def pieces(self, text: str) -> Iterable[str]:
        """Returns the parts in which a long text is encoded; joined they are the text, and their ids the text's ids."""
        return (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))

    def stream(self, context: Any = ()) -> "StreamDecoder":
        """Returns a decoder for ids that arrive a few at a time, after the ids `context` whose text is already
        shown."""
        return ByteStream(self, context)

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """The texts of the special tokens by name, such as `bos_token`: the tokeniser's own, and what the settings give them or
        take from them."""
        own = {name: text for name, text in self.own_tokens.items() if self.settings.config.get(name, text)}
        return own | self.settings.special_tokens

    @property
    def own_tokens(self) -> dict[str, str]:
        """The special tokens that the kind of tokeniser has by itself, by name."""
        return {} if self.eot is None else {"eos_token": self.token_text(self.eot)}

    @property
    def chat_template(self) -> str | None:
        """The Jinja text that makes a prompt of a conversation."""
        return self.settings.chat_template

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a generation: what `with_stop_ids` was given, else the `eos_token`, else `eot`."""
        if self.settings.stop_ids is not None:
            return self.settings.stop_ids
        eos = self.special_tokens.get("eos_token")
        number = None if eos is None else self.token_id(eos)
        number = self.eot if number is None else number
        return () if number is None else (number,)

    def with_stop_ids(self, ids: Iterable[int]) -> Self:
        """Returns this tokeniser with other ids that end a generation, such as those of a generation_config.json. Raises
        UserError for one that is not in the vocabulary."""
        return replace(self, settings=replace(self.settings, stop_ids=tuple(self.checked(list(ids)).tolist())))

    def token_id(self, token: str) -> int | None:
        """Returns the id of a token by its text as the vocabulary writes it, None where there is none."""
        return self.eot if token == END_OF_TEXT else None

    def token_text(self, number: int) -> str:
        """Returns the text of a special token by its id."""
        return END_OF_TEXT

    @cached_property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids before and after a prompt: `bos_token` and `eos_token` where `add_bos_token` and `add_eos_token` are set, nothing
        where they are false, else those of `default_frame`. Raises UserError for a token that is not in the vocabulary."""
        before, after = self.default_frame
        return self._added_around("bos", before), self._added_around("eos", after)

    def _added_around(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        adds, token = self.settings.adds(name), self.special_tokens.get(f"{name}_token")
        if adds is None:
            return default
        if not adds or token is None:
            return ()
        number = self.token_id(token)
        if number is None:
            raise UserError(
                f"{CONFIG} puts {token!r} around a text, which is not in the vocabulary of {self.vocab_size} ids. "
                f"Set add_{name}_token to false, or get the tokeniser's files again."
            )
        return (number,)

    @property
    def default_frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids before and after a prompt that the kind of tokeniser has by itself."""
        return (), ()

    def framed(self, ids: np.ndarray) -> np.ndarray:
        """Returns the ids between those of `frame`."""
        before, after = self.frame
        return np.concatenate([before, ids, after]).astype(np.uint32) if before or after else ids

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the ids of a text and what stands between documents."""
        return hashlib.sha256((self.content + self.beyond).encode("utf-8")).hexdigest()

    def save(self, path: str | Path) -> None:
        """Writes one file with all there is to this tokeniser to `path`, or as tokenizer.json into it if it is a
        folder: whole or not at all (UserError where it cannot)."""
        path = Path(path)
        write_atomically(
            path / FILE_NAME if path.is_dir() else path, enclose(self.content, self.settings).encode("utf-8")
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes into `folder` what transformers' AutoTokenizer loads (`pretrained_files`). Ids given to `with_stop_ids`
        are a model's and not among them. Raises UserError where it cannot, and where the folder holds files of another
        tokeniser that would be read along."""
        folder, files = Path(folder), self.pretrained_files()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
        others = [name for name in (FILE_NAME, *FILES) if name not in files and (folder / name).exists()]
        if others:
            raise UserError(
                f"{folder} holds {', '.join(others)} of another tokeniser. Remove it, or give another folder."
            )
        for name, content in files.items():
            write_atomically(folder / name, content)

    def pretrained_files(self) -> dict[str, bytes]:
        """Returns the files of a published tokeniser by name: the vocabulary, and the settings as they were read or,
        where there were none, a tokenizer_config.json that names the special tokens."""
        settings = {name: text.encode("utf-8") for name, text in self.settings.files}
        named = {name: token for name, token in self.special_tokens.items() if name in NAMED}
        return {FILE_NAME: self.content.encode("utf-8"), CONFIG: to_json({**MINIMAL, **named}), **settings}

    def checked(self, ids: Any) -> np.ndarray:
        """Returns the ids as int64, [T]. Raises UserError for what is no whole number or not below `vocab_size`."""
        ids = np.asarray(ids).reshape(-1)
        if ids.size and not np.issubdtype(ids.dtype, np.integer):
            raise UserError(f"token ids are whole numbers from 0 to {self.vocab_size - 1}, not such as {ids[0]!r}.")
        wrong = ids[(ids < 0) | (ids >= self.vocab_size)]
        if wrong.size:
            raise UserError(f"the token id {wrong[0]} is not in the vocabulary: ids are 0 to {self.vocab_size - 1}.")
        return ids.astype(np.int64)


class StreamDecoder(abc.ABC):
    """Text as ids arrive. What `push` returned and `finish` returns join to the text of all the ids."""

    @abc.abstractmethod
    def push(self, ids: Any) -> str:
        """Returns the text that `ids` add; the beginning of a character that is not complete yet is held back."""

    @abc.abstractmethod
    def finish(self) -> str:
        """Returns what is still held back: U+FFFD for what never became a character."""


class ByteStream(StreamDecoder):
    """For tokenisers whose ids are bytes: an incremental UTF-8 decoder."""

    def __init__(self, tokenizer: Tokenizer, context: Any):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.push(context)

    def push(self, ids: Any) -> str:
        return self._decoder.decode(self._tokenizer.decode_bytes(ids))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


@dataclass(frozen=True)
class ByteTokenizer(Tokenizer):
    """256 bytes and a separator."""

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(to_utf8(text), np.uint8)

    def decode_bytes(self, ids: Any) -> bytes:
        ids = self.checked(ids)
        return ids[ids < 256].astype(np.uint8).tobytes()


@dataclass(frozen=True)
class CharTokenizer(Tokenizer):
    """One id for each of `characters`, which are in the order of their code points."""

    characters: str = field(repr=False)

    @cached_property
    def _code_points(self) -> np.ndarray:
        return np.frombuffer(self.characters.encode("utf-32-le"), np.uint32)

    @cached_property
    def _id_of(self) -> np.ndarray:
        """[largest code point + 2]: -1 where there is no id; the last entry stands for every larger code point."""
        table = np.full(int(self._code_points[-1]) + 2, -1, np.int32)
        table[self._code_points] = np.arange(len(self._code_points), dtype=np.int32)
        return table

    def encode(self, text: str) -> np.ndarray:
        to_utf8(text)
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        ids = self._id_of[np.minimum(points, len(self._id_of) - 1)]
        if ids.size and ids.min() < 0:
            where = int(np.argmin(ids))
            name = f"{text[where]!r} (U+{ord(text[where]):04X}, at character {where} of the text)"
            raise UserError(
                f"the character {name} is not among the {self.vocab_size} of this character tokeniser. "
                "Leave it out, or train with the tokeniser 'byte'."
            )
        return ids

    def decode(self, ids: Any) -> str:
        return self._code_points[self.checked(ids)].tobytes().decode("utf-32-le")

    def decode_bytes(self, ids: Any) -> bytes:
        return self.decode(ids).encode("utf-8")


def to_utf8(text: str) -> bytes:
    """Returns `text` in UTF-8. Raises UserError for half of a surrogate pair, which is what other encodings of
    arguments become."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text is not Unicode at character {error.start}: {text[error.start]!r}. Give UTF-8."
        ) from error


def byte_level_alphabet() -> str:
    """Returns the 256 characters that byte-level tokenizer.json files write bytes as, in the order of the bytes: a byte
    that is printable in Latin-1 is itself, the others are the code points from 256 on (as in GPT-2)."""
    others = iter(range(256, 512))
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


def byte_description() -> dict:
    """Returns the tokenizer.json of the byte tokeniser: a byte-level BPE without merges."""
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {
        "type": "BPE",
        "vocab": {character: byte for byte, character in enumerate(byte_level_alphabet())},
        "merges": [],
    }
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return _description(plain, plain, model, [{"id": 256, "content": END_OF_TEXT, **flags, "special": True}])


def char_description(characters: Iterable[str]) -> dict:
    """Returns the tokenizer.json of the character tokeniser: every character a word, numbered by code point."""
    vocabulary = {character: rank for rank, character in enumerate(sorted(characters))}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    return _description(_EVERY_CHARACTER, {"type": "Fuse"}, model, [])


def _description(pre_tokenizer: dict, decoder: dict, model: dict, added_tokens: list[dict]) -> dict:
    shared = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None}
    return {**shared, "added_tokens": added_tokens, "pre_tokenizer": pre_tokenizer, "decoder": decoder, "model": model}
