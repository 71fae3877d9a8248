"""What the tests of sampling share: tokenisers of every kind."""

import json
from collections.abc import Callable

import pytest

from research.data import tokenizer as T
from research.data.encoding import byte_description, char_description


@pytest.fixture(scope="session")
def tokenizer() -> T.Tokenizer:
    return T.parse(json.dumps(byte_description()), "test")


@pytest.fixture(scope="session")
def characters() -> Callable[[str], T.Tokenizer]:
    """`characters(alphabet)`: the tokeniser whose ids are those characters, sorted. It has no separator."""
    return lambda alphabet: T.parse(json.dumps(char_description(alphabet)), "test")


@pytest.fixture(scope="session")
def chinese() -> str:
    """A text of characters of one, three and four bytes."""
    return "床前明月光，疑是地上霜。举头望明月，低头思故乡。😀😃 moonlight, frost 3.14\n"


@pytest.fixture(scope="session")
def trained(chinese) -> T.Tokenizer:
    """A byte-level BPE whose tokens end within characters, and hold several."""
    import tokenizers as library

    model = library.Tokenizer(library.models.BPE())
    model.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = library.decoders.ByteLevel()
    alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    options = {"special_tokens": ["<|endoftext|>"], "initial_alphabet": alphabet, "show_progress": False}
    model.train_from_iterator([chinese], library.trainers.BpeTrainer(vocab_size=300, **options))
    return T.parse(model.to_str(), "test")


@pytest.fixture(scope="session")
def metaspace() -> T.Tokenizer:
    """Words with a mark for the space before them; characters without a token spelled in bytes, as Llama's tokenizer.json has it."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "\u2581a", "月"]
    replace = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    description = {
        "version": "1.0", "added_tokens": [], "truncation": None, "padding": None, "pre_tokenizer": None, "post_processor": None,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        "decoder": {"type": "Sequence", "decoders": [
            replace, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
                  "vocab": {piece: i for i, piece in enumerate(pieces)}, "merges": [["\u2581", "a"]]},
    }  # fmt: skip
    return T.parse(json.dumps(description), "test")
