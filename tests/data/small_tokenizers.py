"""Small tokenisers in the layouts of published ones, made here: trained in milliseconds on a few sentences."""

import base64
import functools
import io
import itertools
import json
from pathlib import Path

import pytest
import tokenizers as library
from hypothesis import strategies as st

from research.data.tokenizer import Tokenizer

SENTENCES = [
    "Once upon a time there was a philosopher of great sophistication.",
    "你好，这是一个AI大模型生成的文本。世界，你好！",
    "Hello  hello world, 12345 and 678; they don't, we'll, I'LL",
    "def f(x):\n    return x + 1\r\n\n\tthe cat sat on the mat\n\n",
]
MIXED = "你好，世界！ Hello  world's 12345\n\n\t🙂👩‍👩‍👧 naïve e\u0301 <b>x</b>  philosophy\r\n    end "
TEXTS = st.text(max_size=40) | st.text(alphabet="你好世界 helo1's\n\t🙂é\u0301", max_size=60)


END = "<|endoftext|>"
CHAT = ("<|begin|>", "<|end_of_text|>", "<|turn|>")  # as in Llama 3: one for documents, another for turns
NAMES = {"bos_token": "<|begin|>", "eos_token": "<|turn|>"}


@functools.cache
def gpt2_style() -> library.Tokenizer:
    """A byte-level BPE with GPT-2's separator, id 0."""
    return byte_level(special=(END,))


@functools.cache
def llama3_style() -> library.Tokenizer:
    """A byte-level BPE with the special tokens `CHAT`, the first of which the post-processor puts before a text."""
    made = byte_level(r"\p{N}{1,3}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+")
    made.add_special_tokens([library.AddedToken(token, normalized=False) for token in CHAT])
    template = library.processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", made.token_to_id("<|begin|>"))]
    )
    made.post_processor = library.processors.Sequence([library.processors.ByteLevel(trim_offsets=False), template])
    return made


def byte_level(pattern: str | None = None, special: tuple[str, ...] = (), size: int = 400) -> library.Tokenizer:
    """A byte-level BPE; `pattern` None: GPT-2's."""
    made = library.Tokenizer(library.models.BPE())
    split = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern is not None:
        before = library.pre_tokenizers.Split(library.Regex(pattern), "isolated")
        split = library.pre_tokenizers.Sequence([before, split])
    made.pre_tokenizer = split
    made.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=list(special), show_progress=False
    )
    made.train_from_iterator(SENTENCES * 3, trainer)
    return made


def two_files(made: library.Tokenizer) -> tuple[str, str]:
    """GPT-2's two files: the ids by token, and the merges."""
    model = json.loads(made.to_str())["model"]
    merges = "".join(f"{' '.join(pair)}\n" for pair in model["merges"])
    return json.dumps(model["vocab"], ensure_ascii=False), "#version: 0.2\n" + merges


def sentencepiece_model(**options) -> bytes:
    """A SentencePiece model, by default as Llama's is: BPE with bytes, nothing normalised, a space before the text."""
    sentencepiece = pytest.importorskip("sentencepiece")
    llama = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "split_digits": True}
    llama |= {"remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True, "vocab_size": 360}
    ids = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3), model_writer=model, minloglevel=2, num_threads=1,
        character_coverage=0.98, hard_vocab_limit=False, **{**llama, **ids, **options},
    )  # fmt: skip
    return model.getvalue()


def ranks(tokens: int, gap: int | None = None) -> bytes:
    """A tiktoken file of as many tokens: bytes, parts of the sentences, then any three bytes; `gap`: a rank that none has."""
    found = dict.fromkeys(bytes([byte]) for byte in range(256))
    for size, sentence in itertools.product((2, 3, 4), [text.encode() for text in SENTENCES]):
        for at in range(len(sentence) - size + 1):
            if len(found) < tokens:
                found[sentence[at : at + size]] = None
    rest = (
        bytes([200 + high, middle, low]) for high, middle, low in itertools.product(range(9), range(256), range(256))
    )
    while len(found) < tokens:
        found[next(rest)] = None
    numbers = (number for number in itertools.count() if number != gap)
    return b"".join(b"%s %d\n" % (base64.b64encode(t), n) for t, n in zip(found, numbers, strict=False))


def added(content: str, special: bool = True, **flags) -> dict:
    """A token as `added_tokens_decoder` of a tokenizer_config.json declares it."""
    names = ("lstrip", "normalized", "rstrip", "single_word")
    return {"content": content, **dict.fromkeys(names, False), "special": special, **flags}


def folder(path: Path, **files) -> Path:
    """A folder with files, `tokenizer_json="..."` being tokenizer.json; what is no text and no bytes is written as JSON."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        content = content if isinstance(content, (str, bytes)) else json.dumps(content)
        stem, _, ending = name.rpartition("_")
        (path / f"{stem}.{ending}").write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def streamed(tokenizer: Tokenizer, ids, sizes: list[int], shown: int = 0) -> list[str]:
    """The pieces of text as ids arrive in groups of these sizes, after `shown` that were a prompt."""
    stream, at, pieces = tokenizer.stream(ids[:shown]), shown, []
    for size in itertools.cycle(sizes):
        if at >= len(ids):
            return [*pieces, stream.finish()]
        pieces.append(stream.push(ids[at : at + size]))
        at += size
    raise AssertionError("sizes are not empty")
