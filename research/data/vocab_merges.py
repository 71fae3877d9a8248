"""GPT-2's two files: `vocab.json` (the id of every token) and `merges.txt` (which pairs join, first ones first), also under the names
of the original release, `encoder.json` and `vocab.bpe`.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2: BPE on bytes, split by a pattern before. Other
models publish the same two files with another pattern; their class in tokenizer_config.json says which, since the files do not.
"""

import json
from pathlib import Path
from typing import Any

from research.core.errors import UserError
from research.data.encoding import byte_level_alphabet
from research.data.files import read_utf8
from research.data.pretrained import END_OF_TEXT, LARGEST_FILE, LARGEST_ID, AddedToken, Settings

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


def content(vocab: Path, merges: Path, settings: Settings) -> str:
    """Returns the tokenizer.json text of the two files. Raises UserError where one is missing or is not what it should be, and for a
    `tokenizer_class` whose pattern is not known."""
    for path in (vocab, merges):
        if not path.is_file():
            raise UserError(f"{path} is missing: of {vocab.name} and {merges.name}, one needs the other.")
    if settings.tokenizer_class not in _CLASSES:
        known = ", ".join(filter(None, _CLASSES))
        raise UserError(
            f"{vocab.parent}: {vocab.name} and {merges.name} do not say how a {settings.tokenizer_class} splits a text "
            f"before merging; known are {known}. Get its tokenizer.json (save_pretrained of transformers writes one)."
        )
    pattern, normalizer = _CLASSES[settings.tokenizer_class]
    ids = _vocabulary(vocab)
    prefix = bool(settings.config.get("add_prefix_space"))
    description = byte_level_bpe(ids, _merges(merges, ids), pattern, normalizer, add_prefix_space=prefix)
    if END_OF_TEXT in ids:
        description["added_tokens"] = [{"id": ids[END_OF_TEXT], **vars(AddedToken(END_OF_TEXT))}]
    return json.dumps(description, ensure_ascii=False)


def byte_level_bpe(
    ids: dict[str, int], merges: list[list[str]], pattern: str | None, normalizer: str | None, *, add_prefix_space: bool = False
) -> dict[str, Any]:  # fmt: skip
    """Returns the tokenizer.json of a byte-level BPE without added tokens. `pattern` splits a text before the merges (None: GPT-2's),
    `normalizer` is a Unicode form."""
    plain: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split = {**plain, "add_prefix_space": add_prefix_space, "use_regex": pattern is None}
    if pattern is not None:
        before = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        split = {"type": "Sequence", "pretokenizers": [before, split]}
    return {
        **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": []},
        **{"normalizer": {"type": normalizer} if normalizer else None, "pre_tokenizer": split},
        **{"post_processor": None, "decoder": {**plain, "use_regex": True}},
        "model": {"type": "BPE", "vocab": ids, "merges": merges},
    }


def _vocabulary(path: Path) -> dict[str, int]:
    try:
        ids = json.loads(read_utf8(path, LARGEST_FILE))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}. Get the file again.") from error
    if not isinstance(ids, dict) or not all(type(i) is int and 0 <= i < LARGEST_ID for i in ids.values()):
        raise UserError(f"{path} is not a vocabulary: expected a JSON object of ids (0 to {LARGEST_ID - 1}) by token.")
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
    for number, line in enumerate(read_utf8(path, LARGEST_FILE).split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(part in ids for part in (*pair, "".join(pair))):
            raise UserError(
                f"{path}, line {number}: {line[:80]!r} is not a pair of tokens of the vocabulary that join to one. "
                "Get the file again."
            )
        pairs.append(pair)
    # special tokens are in the vocabulary without a merge, but they are few
    unmade = sum(len(token) > 1 for token in ids) - len({"".join(pair) for pair in pairs})
    if unmade > 16 + len(ids) // 100:
        raise UserError(
            f"{path} makes {len(pairs)} tokens, but {unmade} more of the vocabulary have no merge: it is not whole, or "
            "of another vocabulary. Get the file again."
        )
    return pairs
