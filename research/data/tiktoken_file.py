"""tiktoken files: one token a line, its bytes in base64 and its rank, run by the `tiktoken` library (extra `tiktoken`).

Llama 3 and GLM-4 publish theirs under the name `tokenizer.model`. The file is read here, line by line and within bounds; what it does
not say is in `tiktoken_vocabularies` or in the folder's tokenizer_config.json.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.data.bpe import LONG_PIECE, cut_at_lines, separator
from research.data.encoding import Tokenizer, to_utf8
from research.data.files import decode_utf8
from research.data.pretrained import CONFIG, LARGEST_ID, AddedToken, Settings, Spelled, minimal_config
from research.data.tiktoken_vocabularies import KNOWN

KIND = "tiktoken"

_LARGEST_FILE = 1 << 27  # bytes; the largest that is published has 4 million
_FILE_NAME = re.compile(r"[\w-][\w.-]*\.(?:model|tiktoken)")
_FIRST_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d{1,8}\r?\n")


def is_tiktoken(start: bytes) -> bool:
    """Whether a file that begins with these bytes is a tiktoken file whatever its name."""
    return _FIRST_LINE.match(start) is not None


def content(file: bytes, name: str, settings: Settings) -> str:
    """Returns the tokenizer.json text that holds a tiktoken file with its pattern and special tokens. Raises UserError for a
    damaged file, and where the pattern is not known."""
    if len(file) > _LARGEST_FILE:
        raise UserError(f"{name} has {len(file)} bytes, more than any tiktoken file: at most {_LARGEST_FILE}.")
    text = decode_utf8(file, name)
    ranks = _ranks(text, name)
    known = next((one for one in KNOWN if one.tokens == len(ranks)), None)
    pattern = settings.config.get("pat_str") or (known.pattern if known else None)
    if not isinstance(pattern, str):
        table = ", ".join(f"{one.name} {one.tokens}" for one in KNOWN)
        raise UserError(
            f"{name} has {len(ranks)} tokens, which is none of the known vocabularies ({table}), so the pattern that splits a text "
            f'is missing. Put a {CONFIG} beside it with "pat_str" and "added_tokens_decoder", or get its tokenizer.json.'
        )
    special = known.special if known else {}
    if settings.added_tokens:
        special = {token.content: number for number, token in settings.added_tokens.items() if token.special}
    before = [token for token in (known.before if known else ()) if token in special]
    given = {"type": KIND, "file": name, "pattern": pattern, "special_tokens": special, "before": before, "ranks": text}
    return json.dumps({"model": given})


@dataclass(frozen=True)
class TiktokenTokenizer(Tokenizer):
    """The tokeniser of a tiktoken file. `special`: the ids of special tokens by text."""

    file: str
    special: Mapping[str, int] = field(repr=False, compare=False)
    before: tuple[int, ...] = field(repr=False, compare=False)
    ranks: Mapping[bytes, int] = field(repr=False, compare=False)
    encoding: Any = field(repr=False, compare=False)

    @classmethod
    def parse(cls, content: str, where: str, settings: Settings) -> "TiktokenTokenizer":
        """Returns the tokeniser of what `content` wrote. Raises UserError if it is damaged, or if the extra is missing."""
        try:
            given = json.loads(content)["model"]
            name, pattern, text = given["file"], given["pattern"], given["ranks"]
            special = {str(token): int(number) for token, number in given["special_tokens"].items()}
            before = tuple(special[token] for token in given["before"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{where} is a tokenizer.json with a damaged tiktoken file: {error!r}") from error
        if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
            raise UserError(f"{where}: {name!r} is no name of a tiktoken file in a folder, such as tokenizer.model.")
        ranks = _ranks(text, where)
        added = {token.content: number for number, token in settings.added_tokens.items()}
        numbers = [*ranks.values(), *special.values(), *added.values()]
        if set(special.values()) & set(ranks.values()) or not all(0 <= number < LARGEST_ID for number in numbers):
            raise UserError(f"{where} gives a special token the id of another token, or one out of range.")
        result = cls(
            KIND, 1 + max(numbers), separator(special, settings), content, name, special, before, ranks,
            _encoding(pattern, ranks, where), settings=settings,
        )  # fmt: skip
        _ = result.frame
        return result

    def encode(self, text: str) -> np.ndarray:
        to_utf8(text)
        return np.array(self.encoding.encode_ordinary(text), np.uint32)

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text, uint32; the library's threads share the texts."""
        for text in texts:
            to_utf8(text)
        return [np.array(ids, np.uint32) for ids in self.encoding.encode_ordinary_batch(list(texts))]

    def pieces(self, text: str):
        """Returns the text whole unless it is very long: a token next to a cut may differ."""
        return cut_at_lines(text, LONG_PIECE)

    def encode_prompt(self, text: str) -> np.ndarray:
        to_utf8(text)
        ids: list[int] = []
        for part in self._spelled.split(text):
            ids += self.encoding.encode_ordinary(part) if isinstance(part, str) else part
        return self.framed(np.array(ids, np.uint32))

    def decode_bytes(self, ids: Any) -> bytes:
        table = self._bytes_of
        return b"".join([table.get(token, b"") for token in self.checked(ids).tolist()])

    def token_id(self, token: str) -> int | None:
        return self.special.get(token, self._added.get(token))

    def token_text(self, number: int) -> str:
        return next(token for token, special in self.special.items() if special == number)

    @property
    def default_frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.before, ()

    def model_file(self) -> tuple[str, bytes]:
        return self.file, json.loads(self.content)["model"]["ranks"].encode("utf-8")

    def minimal_config(self) -> str:
        names = {"eos_token": self.eot, "bos_token": self.before[0] if len(self.before) == 1 else None}
        named = {name: self.token_text(number) for name, number in names.items() if number is not None}
        return minimal_config(named, {number: AddedToken(token) for token, number in self.special.items()})

    @property
    def _added(self) -> dict[str, int]:
        """The tokens that are not special."""
        return {text: number for text, number in self.settings.added_ids.items() if text not in self.special}

    @cached_property
    def _spelled(self) -> Spelled:
        tokens = {text: (number,) for text, number in (self._added | dict(self.special)).items()}
        return Spelled(tokens, {token.content: token for token in self.settings.added_tokens.values()})

    @cached_property
    def _bytes_of(self) -> dict[int, bytes]:
        """The bytes of every id; special tokens left out."""
        added = {number: text.encode() for text, number in self._added.items()}
        return {rank: token for token, rank in self.ranks.items()} | added


def _ranks(text: str, where: str) -> dict[bytes, int]:
    """The tokens of a file by their bytes. A line of `=` for the bytes is a token of none: a placeholder."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line:
            continue
        token, _, rank = line.partition(" ")
        try:
            key = b"" if token == "=" else base64.b64decode(token, validate=True)
        except (binascii.Error, ValueError):
            key = None
        if (
            key is None
            or key in ranks
            or not (rank.isascii() and rank.isdigit() and len(rank) < 9 and int(rank) < LARGEST_ID)
        ):
            raise UserError(
                f"{where} is not a tiktoken file: line {number} is {line[:60]!r}, expected a new token in base64, a space and its "
                f"rank below {LARGEST_ID}. Get the file again."
            )
        ranks[key] = int(rank)
    if len(set(ranks.values())) < len(ranks) or any(bytes([byte]) not in ranks for byte in range(256)):
        raise UserError(
            f"{where} is not a whole tiktoken file: two tokens share a rank or one of the 256 bytes has none."
        )
    return ranks


def _encoding(pattern: str, ranks: dict[bytes, int], where: str) -> Any:
    try:
        import tiktoken
    except ImportError as error:
        raise UserError(
            f"{where} is a tiktoken file: install the extra that runs it with pip install 'purestep[tiktoken]'."
        ) from error
    try:
        return tiktoken.Encoding(KIND, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    except BaseException as error:  # the library's own panics are not Exceptions
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise UserError(f"{where}: the tiktoken library refuses it: {str(error)[:200]}") from error
