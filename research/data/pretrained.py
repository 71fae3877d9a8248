"""What a published tokeniser's folder says beside the ids: which tokens are special, what stands around a prompt, the chat template.

The files are kept as text exactly as they were read, so that they can be written back unchanged; everything else is read out of them.
Names and meaning are those of Hugging Face transformers:

| file                     | what is read from it                                                                                   |
| ------------------------ | ------------------------------------------------------------------------------------------------------ |
| tokenizer_config.json    | `bos_token` and the like, `add_bos_token`, `add_eos_token`, `added_tokens_decoder`, `tokenizer_class`, |
|                          | `chat_template`, `legacy`, `split_special_tokens`, `add_prefix_space`, `pat_str`                       |
| special_tokens_map.json  | special tokens, before the former's unless that has an `added_tokens_decoder`                          |
| added_tokens.json        | ids of added tokens where the former has no `added_tokens_decoder`                                     |
| chat_template.jinja      | the chat template, before the one in tokenizer_config.json                                             |

`add_bos_token` and `add_eos_token` hold over the post-processor of a tokenizer.json, as the word of whoever set them. transformers 5
heeds the post-processor alone, so that `save_pretrained` writes one that says the same.

A run directory has one file for all of it: `enclose` puts the texts into the `model` object of a tokenizer.json, where the
`tokenizers` library passes over a key that it does not know; `disclose` takes them out again and gives the text as it was.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from research.core.errors import UserError
from research.data.files import read_utf8

CONFIG, MAP, ADDED, TEMPLATE = FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
END_OF_TEXT = "<|endoftext|>"
NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
LISTED = ("additional_special_tokens", "extra_special_tokens")
LARGEST_ID = 1 << 24  # far above every vocabulary; keeps a damaged file from asking for a table of that many rows
LARGEST_FILE = 1 << 28  # bytes; the largest tokenizer.json that is published has a tenth of them

_OWN_TOKENS = {  # what a class calls its tokens where the files do not say: bos_token, eos_token
    "GPT2Tokenizer": (END_OF_TEXT, END_OF_TEXT),
    "CodeGenTokenizer": (END_OF_TEXT, END_OF_TEXT),
    "GPTNeoXTokenizer": (END_OF_TEXT, END_OF_TEXT),
    "Qwen2Tokenizer": (None, END_OF_TEXT),
    "LlamaTokenizer": ("<s>", "</s>"),
    "CodeLlamaTokenizer": ("<s>", "</s>"),
    "GemmaTokenizer": ("<bos>", "<eos>"),
}

# The tokenizer_config.json of a tokeniser that has none: with it, transformers takes the vocabulary's file as it is.
MINIMAL = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}

_MODEL = re.compile(r'"model"\s*:\s*\{')
_KEY = '"purestep": '


@dataclass(frozen=True)
class AddedToken:
    """A token beside the model's own: matched whole in a text, with the white space on its left or right if it says so."""

    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class Settings:
    """The settings of one tokeniser. `files`: (name, text) of those of `FILES` that there are, in that order; `stop_ids`: the ids
    that end a generation where something else than the files decides that, such as a model's generation_config.json."""

    files: tuple[tuple[str, str], ...] = ()
    stop_ids: tuple[int, ...] | None = None

    @classmethod
    def read(cls, folder: Path) -> "Settings":
        """Returns the settings in a model's folder, empty where it has none. Raises UserError for a file that is not what its name
        says."""
        found = [name for name in FILES if (folder / name).is_file()]
        return cls(tuple((name, read_utf8(folder / name, LARGEST_FILE)) for name in found)).checked(str(folder))

    def checked(self, where: str) -> "Settings":
        """Returns these settings once all of them have been read. Raises UserError, naming `where`, if they make no sense."""
        try:
            _ = self.special_tokens, self.chat_template, self.added_tokens
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        return self

    @cached_property
    def config(self) -> dict[str, Any]:
        """tokenizer_config.json, {} without one."""
        return self._object(CONFIG)

    @property
    def tokenizer_class(self) -> str:
        """The class that transformers would use, without its "Fast"; "" where none is named."""
        return str(self.config.get("tokenizer_class") or "").removesuffix("Fast")

    def adds(self, name: str) -> bool | None:
        """Whether `add_bos_token` or `add_eos_token` is set for `bos` or `eos`; None where the model file or the class decides."""
        flag = self.config.get(f"add_{name}_token")
        return None if flag is None else bool(flag)

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """Special tokens by name: `bos_token`, `eos_token`, ...; the unnamed ones as `additional_0`, `additional_1`, ..."""
        own = zip(("bos_token", "eos_token"), _OWN_TOKENS.get(self.tokenizer_class, ()), strict=False)
        named, other = {name: token for name, token in own if token}, {}
        sources = (self._object(MAP), self.config)  # what is said later is what holds
        for source in sources if "added_tokens_decoder" in self.config else reversed(sources):
            for name in (name for name in NAMED if name in source):
                named.pop(name, None)
                named |= {name: _content(source[name], name)} if source[name] else {}
            for name in LISTED:
                values = source.get(name) or []
                if isinstance(values, dict):
                    named |= {key: _content(value, name) for key, value in values.items()}
                elif isinstance(values, list):
                    other |= {_content(value, name): None for value in values}
                else:
                    raise UserError(f"{name} is {values!r}, expected a list of tokens.")
        return named | {f"additional_{number}": token for number, token in enumerate(other)}

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja text that makes a prompt of a conversation: of several named ones that which is called `default`."""
        template: Any = dict(self.files).get(TEMPLATE, self.config.get("chat_template"))
        if isinstance(template, list):
            template = {t["name"]: t.get("template") for t in template if isinstance(t, dict) and "name" in t}
        if isinstance(template, dict):
            template = template.get("default", next(iter(template.values()), None))
        if template is not None and not isinstance(template, str):
            raise UserError(f"the chat_template of {CONFIG} is a {type(template).__name__}, expected a text.")
        return template

    @cached_property
    def added_tokens(self) -> dict[int, AddedToken]:
        """The tokens that the files add, by id."""
        declared = self.config.get("added_tokens_decoder")
        if declared is None:
            special = set(self.special_tokens.values())
            tokens = self._object(ADDED)
            pairs = [(number, AddedToken(token, special=token in special)) for token, number in tokens.items()]
        elif isinstance(declared, dict):
            pairs = [(number, _added(value)) for number, value in declared.items()]
        else:
            raise UserError(f"added_tokens_decoder of {CONFIG} is no JSON object of tokens by id.")
        return dict(sorted((_number(number, token.content), token) for number, token in pairs))

    @property
    def added_ids(self) -> dict[str, int]:
        """The ids of `added_tokens` by text."""
        return {token.content: number for number, token in self.added_tokens.items()}

    def _object(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads(dict(self.files).get(name, "{}"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name} is not JSON: {error}. Get the file again, or remove it.") from error
        if not isinstance(value, dict):
            raise UserError(f"{name} is a JSON {type(value).__name__}, expected an object.")
        return value


def _content(token: Any, name: str) -> str:
    """The text of a token that a file writes as a string or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str) or not text:
        raise UserError(f"{name} is {token!r}, expected the text of a token.")
    return text


def _added(value: Any) -> AddedToken:
    flags = {name: bool(value[name]) for name in AddedToken.__dataclass_fields__ if name in value and name != "content"}
    return AddedToken(_content(value, "a token of added_tokens_decoder"), **{"special": False, **flags})


def _number(number: Any, token: str) -> int:
    text = str(number)
    if not (text.isascii() and text.isdigit() and len(text) < 9 and int(text) < LARGEST_ID):
        raise UserError(f"the added token {token!r} has the id {number!r}, expected a whole number below {LARGEST_ID}.")
    return int(text)


def to_json(config: Mapping[str, Any]) -> bytes:
    """Returns the content of a tokenizer_config.json."""
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def enclose(content: str, settings: Settings) -> str:
    """Returns the tokenizer.json text `content` with the settings inside: the text itself where there are none."""
    if settings == Settings():
        return content
    found = _MODEL.search(content)
    assert found, "a tokenizer.json has a model"
    kept = json.dumps({"files": dict(settings.files), "stop_ids": settings.stop_ids})
    return f"{content[: found.end()]}{_KEY}{kept}, {content[found.end() :]}"


def disclose(content: str, where: str) -> tuple[str, Settings]:
    """Returns what `enclose` was given. Raises UserError, naming `where`, if the settings cannot be read."""
    found = _MODEL.search(content)
    if not found or not content.startswith(_KEY, found.end()):
        return content, Settings()
    try:
        kept, end = json.JSONDecoder().raw_decode(content, found.end() + len(_KEY))
        files, stops = kept["files"], kept["stop_ids"]
        settings = Settings(
            tuple((name, files[name]) for name in FILES if isinstance(files.get(name), str)),
            None if stops is None else tuple(int(number) for number in stops),
        )
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where} is a tokenizer.json whose settings cannot be read: {error!r}") from error
    return content[: found.end()] + content[end:].removeprefix(", "), settings.checked(where)


class Spelled:
    """Special tokens as a prompt spells them: `<|im_start|>` in the text is that token."""

    def __init__(self, tokens: Mapping[str, tuple[int, ...]], flags: Mapping[str, AddedToken] | None = None):
        flags = flags or {}

        def pattern(text: str) -> str:
            token = flags.get(text, AddedToken(text))
            word = f"(?<!\\w)({re.escape(text)})(?!\\w)" if token.single_word else f"({re.escape(text)})"
            return (r"\s*" if token.lstrip else "") + word + (r"\s*" if token.rstrip else "")

        # the longest of those that begin at a place is the one that is meant
        texts = sorted(tokens, key=len, reverse=True)
        self._ids = [tokens[text] for text in texts]
        # a look at the first character saves trying hundreds of tokens at every place
        first = "".join(sorted({re.escape(text[0]) for text in texts}))
        space = r"\s" if any(token.lstrip for token in flags.values()) else ""
        self._pattern = re.compile(f"(?=[{first}{space}])(?:{'|'.join(map(pattern, texts))})") if texts else None

    def split(self, text: str) -> Iterator[str | tuple[int, ...]]:
        """Returns the parts of a text in order: texts that are not empty, and the ids of the special tokens between."""
        start = 0
        for found in self._pattern.finditer(text) if self._pattern else ():
            if found.start() > start:
                yield text[start : found.start()]
            yield self._ids[(found.lastindex or 1) - 1]
            start = found.end()
        if start < len(text):
            yield text[start:]
