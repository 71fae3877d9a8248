"""GPT-2's two files: `vocab.json` (the id of every token) and `merges.txt` (which pairs join, first ones first), also under the names
of the original release, `encoder.json` and `vocab.bpe`.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2: BPE on bytes, split by a pattern before. Other
models publish the same two files with another pattern; their class in tokenizer_config.json says which, since the files do not.
"""

import json
from pathlib import Path
from typing import Any

from research.core.errors import UserError
from research.data.encoding import END_OF_TEXT, byte_level_alphabet
from research.data.files import read_utf8
from research.data.pretrained import Settings

PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))

# Bai et al. 2023, "Qwen Technical Report": cl100k's pattern with single digits
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CLASSES = {  # the pattern that splits a text before BPE, None for GPT-2's, and the normaliser, by the class of the tokeniser
    "": (None, None),
    "GPT2Tokenizer": (None, None),
    "CodeGenTokenizer": (None, None),
    "PreTrainedTokenizer": (None, None),
    "TokenizersBackend": (None, None),
    "GPTNeoXTokenizer": (None, "NFC"),
    "Qwen2Tokenizer": (QWEN_PATTERN, "NFC"),
}


def find(folder: Path) -> tuple[Path, Path] | None:
    """Returns the two files in a folder, None where there are none. Raises UserError for one without the other."""
    for names in PAIRS:
        if any((folder / name).is_file() for name in names):
            return pair(folder, names)
    return None


def pair(folder: Path, names: tuple[str, str]) -> tuple[Path, Path]:
    """Returns two files of a folder. Raises UserError where one of them is missing."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} has no {missing[0]}: of {' and '.join(names)}, one needs the other.")
    return folder / names[0], folder / names[1]


def content(vocab: Path, merges: Path, settings: Settings) -> str:
    """Returns the tokenizer.json text of the two files. Raises UserError for files that are not what they should be, and for a
    `tokenizer_class` whose pattern is not known."""
    if settings.tokenizer_class not in _CLASSES:
        known = ", ".join(filter(None, _CLASSES))
        raise UserError(
            f"{vocab.parent}: {vocab.name} and {merges.name} do not say how a {settings.tokenizer_class} splits a text "
            f"before merging; known are {known}. Get its tokenizer.json (save_pretrained of transformers writes one)."
        )
    pattern, normalizer = _CLASSES[settings.tokenizer_class]
    ids = _vocabulary(vocab)
    plain: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split = {**plain, "add_prefix_space": bool(settings.config.get("add_prefix_space")), "use_regex": pattern is None}
    if pattern is not None:
        before = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        split = {"type": "Sequence", "pretokenizers": [before, split]}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    ends = [{"id": ids[END_OF_TEXT], "content": END_OF_TEXT, **flags, "special": True}] if END_OF_TEXT in ids else []
    description = {
        **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": ends},
        **{"normalizer": {"type": normalizer} if normalizer else None, "pre_tokenizer": split},
        **{"post_processor": None, "decoder": {**plain, "use_regex": True}},
        "model": {"type": "BPE", "vocab": ids, "merges": _merges(merges, ids)},
    }
    return json.dumps(description, ensure_ascii=False)


def _vocabulary(path: Path) -> dict[str, int]:
    try:
        ids = json.loads(read_utf8(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}. Get the file again.") from error
    if not isinstance(ids, dict) or not all(type(number) is int for number in ids.values()):
        raise UserError(f"{path} is not a vocabulary: expected a JSON object of ids by token.")
    if len(set(ids.values())) < len(ids):
        raise UserError(f"{path} gives two tokens the same id. Get the file again.")
    missing = [character for character in byte_level_alphabet() if character not in ids]
    if missing:
        raise UserError(
            f"{path} is not the vocabulary of a byte-level BPE: {len(missing)} of the 256 bytes have no token. "
            "Get the tokenizer.json of this tokeniser."
        )
    return ids


def _merges(path: Path, ids: dict[str, int]) -> list[list[str]]:
    pairs = []
    for number, line in enumerate(read_utf8(path).split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(part in ids for part in (*pair, "".join(pair))):
            raise UserError(
                f"{path}, line {number}: {line[:80]!r} is not a pair of tokens of the vocabulary that join to one."
            )
        pairs.append(pair)
    return pairs
