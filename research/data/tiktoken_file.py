"""tiktoken files: one token a line, its bytes in base64 and its rank, run by the `tiktoken` library (extra `tiktoken`).

Llama 3 and GLM-4 publish theirs under the name `tokenizer.model`. The file is read here, line by line and within bounds; what it does
not say is in `tiktoken_vocabularies` or in the folder's tokenizer_config.json.
"""

import binascii
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.data.bpe import LONG_PIECE, cut_at_lines, separator, template
from research.data.encoding import FILE_NAME, Tokenizer, byte_level_alphabet, to_utf8
from research.data.files import decode_utf8
from research.data.pretrained import CONFIG, LARGEST_ID, MINIMAL, AddedToken, Settings, Spelled, to_json
from research.data.tiktoken_vocabularies import KNOWN
from research.data.vocab_merges import byte_level_bpe

KIND = "tiktoken"

_LINE = re.compile(r"(=|[A-Za-z0-9+/]+={0,2}) ([0-9]{1,8})\r?")


def is_tiktoken(file: bytes) -> bool:
    """Whether a file with this content is a tiktoken file whatever its name."""
    return _LINE.fullmatch(file.partition(b"\n")[0].decode("latin-1")) is not None


def content(file: bytes, where: str, settings: Settings) -> str:
    """Returns the tokenizer.json text that holds a tiktoken file with its pattern and special tokens. Raises UserError for a
    damaged file, and where the pattern is not known."""
    text = decode_utf8(file, where)
    tokens = len(text.split()) // 2  # two words a line; `parse` looks at each
    known = next((one for one in KNOWN if one.tokens == tokens), None)
    pattern = settings.config.get("pat_str") or (known.pattern if known else None)
    if not isinstance(pattern, str):
        table = ", ".join(f"{one.name} {one.tokens}" for one in KNOWN)
        raise UserError(
            f"{where} has {tokens} tokens, which is none of the known vocabularies ({table}): it is not whole, or the "
            f"pattern that splits a text is missing. Get the file again, or put a {CONFIG} beside it with "
            '"pat_str" and "added_tokens_decoder", or get its tokenizer.json.'
        )
    special = known.special if known else {}
    if settings.added_tokens:
        special = {token.content: number for number, token in settings.added_tokens.items() if token.special}
    before = [token for token in (known.before if known else ()) if token in special]
    form = known.normalizer if known else None
    given = {"type": KIND, "pattern": pattern, "normalizer": form, "special_tokens": special, "before": before}
    return json.dumps({"model": {**given, "ranks": text}})


@dataclass(frozen=True)
class TiktokenTokenizer(Tokenizer):
    """The tokeniser of a tiktoken file. `normalizer`: the Unicode form that a text is brought to first, None: it is left as it is;
    `special`: the ids of special tokens by text; `before`: those that a prompt begins with; `ranks`: ids by the bytes of a token."""

    pattern: str = field(repr=False, compare=False)
    normalizer: Any = field(repr=False, compare=False)
    special: Mapping[str, int] = field(repr=False, compare=False)
    before: tuple[int, ...] = field(repr=False, compare=False)
    ranks: Mapping[bytes, int] = field(repr=False, compare=False)
    encoding: Any = field(repr=False, compare=False)

    @classmethod
    def parse(cls, content: str, where: str, settings: Settings) -> "TiktokenTokenizer":
        """Returns the tokeniser of what `content` wrote. Raises UserError if it is damaged, or if the extra is missing."""
        try:
            given = json.loads(content)["model"]
            pattern, form, text = given["pattern"], given["normalizer"], given["ranks"]
            special = {str(token): int(number) for token, number in given["special_tokens"].items()}
            before = tuple(special[token] for token in given["before"])
            lines = text.split("\n")
            if form not in (None, "NFC", "NFD", "NFKC", "NFKD"):
                raise ValueError(f"{form!r} is no Unicode form")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{where} is a tokenizer.json with a damaged tiktoken file: {error!r}") from error
        ranks = _ranks(lines, where)
        numbers = [*ranks.values(), *special.values(), *settings.added_ids.values()]
        if set(special.values()) & set(ranks.values()) or not all(0 <= number < LARGEST_ID for number in numbers):
            raise UserError(f"{where} gives a special token the id of another token, or one out of range.")
        return cls(
            KIND, 1 + max(numbers), separator(special, settings), content, pattern, form, special, before, ranks,
            _encoding(pattern, ranks, where), settings=settings,
        )  # fmt: skip

    def encode(self, text: str) -> np.ndarray:
        to_utf8(text)
        if self.normalizer is not None:
            text = unicodedata.normalize(self.normalizer, text)
        try:
            return np.array(self.encoding.encode_ordinary(text), np.uint32)
        except BaseException as error:  # the library's own panics are not Exceptions
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise UserError(
                "the tokeniser cannot split the text: it has too much white space in a row. Shorten that."
            ) from error

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns `encode` of each text; threads share the texts, and the library lets go of Python's lock."""
        with ThreadPoolExecutor() as pool:
            return list(pool.map(self.encode, texts))

    def pieces(self, text: str) -> Iterator[str]:
        """Returns the text whole unless it is very long: a token next to a cut may differ."""
        return cut_at_lines(text, LONG_PIECE)

    def decode_bytes(self, ids: Any) -> bytes:
        table = self._bytes_of
        return b"".join([table.get(token, b"") for token in self.checked(ids).tolist()])

    def token_id(self, token: str) -> int | None:
        return self.special.get(token, self._added.get(token))

    def token_text(self, number: int) -> str:
        return next(token for token, known in (self._added | dict(self.special)).items() if known == number)

    @property
    def own_tokens(self) -> dict[str, str]:
        bos = {"bos_token": self.token_text(self.before[0])} if len(self.before) == 1 else {}
        return bos | super().own_tokens

    @property
    def default_frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.before, ()

    def pretrained_files(self) -> dict[str, bytes]:
        """Returns the files of a published tokeniser by name. The vocabulary is a byte-level tokenizer.json of the same ids: of tiktoken
        files transformers takes the pattern and the special tokens for Llama 3's, whatever they are."""
        files = super().pretrained_files()
        config = self.settings.config or json.loads(files[CONFIG])
        # the class that the files name may read a tiktoken file, by code that they bring along
        config = {name: value for name, value in config.items() if name not in ("auto_map", "tokenizer_class")}
        files[CONFIG] = to_json({**config, "tokenizer_class": MINIMAL["tokenizer_class"]})
        files[FILE_NAME] = json.dumps(self._description(), ensure_ascii=False).encode("utf-8")
        return files

    def _description(self) -> dict[str, Any]:
        """The tokenizer.json of the same ids."""
        letters = byte_level_alphabet()
        word_of = {token: "".join(letters[byte] for byte in token) for token in self.ranks}
        ids = {word_of[token]: rank for token, rank in self.ranks.items()}
        merges = [
            [word_of[token[:at]], word_of[token[at:]]]
            for token in sorted(self.ranks, key=self.ranks.__getitem__)
            for at in range(1, len(token))
            if token[:at] in self.ranks and token[at:] in self.ranks
        ]
        tokens = {number: AddedToken(text) for text, number in self.special.items()} | self.settings.added_tokens
        # among the vocabulary too, so that their ids may have gaps between them
        ids |= {token.content: number for number, token in tokens.items()}
        description = byte_level_bpe(ids, merges, self.pattern, self.normalizer)
        description["model"]["ignore_merges"] = True  # a token is taken whole also where merges would not lead to it
        description["added_tokens"] = [{"id": number, **vars(token)} for number, token in tokens.items()]
        description["post_processor"] = template(self.frame, self.token_text) if any(self.frame) else None
        return description

    @property
    def _added(self) -> dict[str, int]:
        """The tokens that are not special."""
        return {text: number for text, number in self.settings.added_ids.items() if text not in self.special}

    @cached_property
    def spelled(self) -> Spelled:
        tokens = {text: (number,) for text, number in (self._added | dict(self.special)).items()}
        return Spelled(tokens, {token.content: token for token in self.settings.added_tokens.values()})

    @cached_property
    def _bytes_of(self) -> dict[int, bytes]:
        """The bytes of every id; special tokens left out."""
        added = {number: text.encode() for text, number in self._added.items()}
        return {rank: token for token, rank in self.ranks.items()} | added


def _ranks(lines: Sequence[str], where: str) -> dict[bytes, int]:
    """The tokens of a file by their bytes. A line of `=` for the bytes is a token of none: a placeholder."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        found = _LINE.fullmatch(line)
        try:
            key = binascii.a2b_base64(found[1].removeprefix("=")) if found else None
        except binascii.Error:
            key = None
        if found is None or key is None or key in ranks or int(found[2]) >= LARGEST_ID:
            raise UserError(
                f"{where} is not a tiktoken file: line {number} is {line[:60]!r}, expected a new token in base64, a space and its "
                f"rank below {LARGEST_ID}. Get the file again."
            )
        ranks[key] = int(found[2])
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
