"""Tokenisers as models publish them: GPT-2's two files, and tokenizer.json with what the settings say of prompts."""

import json

import pytest
import tokenizers as library
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import (
    END,
    MIXED,
    NAMES,
    TEXTS,
    added,
    byte_level,
    folder,
    gpt2_style,
    llama3_style,
    streamed,
    two_files,
)

from research.core.errors import UserError
from research.data import vocab_merges
from research.data.tokenizer import load, parse


@pytest.fixture(scope="module")
def gpt2() -> library.Tokenizer:
    return gpt2_style()


@pytest.fixture(scope="module")
def chat() -> library.Tokenizer:
    return llama3_style()


@pytest.fixture(scope="module")
def gpt2_folder(gpt2, tmp_path_factory):
    vocab, merges = two_files(gpt2)
    return folder(tmp_path_factory.mktemp("gpt2"), vocab_json=vocab, merges_txt=merges)


@pytest.fixture(scope="module")
def gpt2_tokenizer(gpt2_folder):
    return load(gpt2_folder)


@pytest.mark.parametrize("names", vocab_merges.PAIRS)
def test_gpt2s_two_files_are_found_under_either_name_and_by_either_file(gpt2_folder, names, tmp_path):
    files = zip((name.replace(".", "_") for name in names), two_files(gpt2_style()), strict=True)
    folder(tmp_path, **dict(files))
    for place in (tmp_path, tmp_path / names[0], tmp_path / names[1]):
        assert load(place) == load(gpt2_folder)


@given(text=TEXTS)
def test_gpt2s_two_files_are_the_librarys_tokeniser(gpt2, gpt2_tokenizer, text):
    ids = gpt2_tokenizer.encode(text)
    assert ids.tolist() == gpt2.encode(text).ids == gpt2_tokenizer.encode_prompt(text).tolist()
    assert gpt2_tokenizer.decode(ids) == text == gpt2.decode(ids.tolist())


def test_gpt2s_separator_is_a_special_token(gpt2_folder):
    tokenizer = load(gpt2_folder)
    assert (tokenizer.kind, tokenizer.eot, tokenizer.stop_ids) == ("bpe", 0, (0,))
    assert tokenizer.special_tokens == {"eos_token": END}
    assert tokenizer.encode_prompt(f"a{END}b").tolist().count(0) == 1
    assert 0 not in tokenizer.encode(f"a{END}b").tolist()


@pytest.mark.parametrize(
    ("name", "pattern", "normalizer", "differs"),
    [
        ("Qwen2Tokenizer", vocab_merges.QWEN_PATTERN, "NFC", "f(x)"),
        ("GPTNeoXTokenizerFast", None, "NFC", "e\u0301"),
    ],
)
def test_the_class_says_how_a_text_is_split_and_normalised(tmp_path, name, pattern, normalizer, differs):
    theirs = byte_level(pattern)
    theirs.normalizer = getattr(library.normalizers, normalizer)()
    vocab, merges = two_files(theirs)
    ours = load(folder(tmp_path, vocab_json=vocab, merges_txt=merges, tokenizer_config_json={"tokenizer_class": name}))
    for text in (MIXED, differs):
        assert ours.encode(text).tolist() == theirs.encode(text).ids
    plain = load(folder(tmp_path / "plain", vocab_json=vocab, merges_txt=merges))
    assert plain.encode(differs).tolist() != ours.encode(differs).tolist()


def test_a_class_whose_split_is_not_known_is_refused(gpt2, tmp_path):
    vocab, merges = two_files(gpt2)
    config = {"tokenizer_class": "DebertaTokenizer"}
    path = folder(tmp_path, vocab_json=vocab, merges_txt=merges, tokenizer_config_json=config)
    with pytest.raises(UserError, match=r"how a DebertaTokenizer splits.*tokenizer\.json"):
        load(path)


def spoiled(vocab: dict, merges: str, what: str) -> dict:
    """The two files, spoiled in one way."""
    text = json.dumps(vocab)
    return {
        "no merges": {"vocab_json": text},
        "no vocabulary": {"merges_txt": merges},
        "cut vocabulary": {"vocab_json": text[:1000], "merges_txt": merges},
        "a list": {"vocab_json": "[1]", "merges_txt": merges},
        "nested deeply": {"vocab_json": "[" * 100_000, "merges_txt": merges},
        "ids as text": {"vocab_json": json.dumps(dict.fromkeys(vocab, "1")), "merges_txt": merges},
        "equal ids": {"vocab_json": json.dumps(vocab | {"new": 3}), "merges_txt": merges},
        "negative": {"vocab_json": json.dumps(vocab | {"new": -1}), "merges_txt": merges},
        "huge id": {"vocab_json": json.dumps(vocab | {"new": 1 << 31}), "merges_txt": merges},
        "no byte": {"vocab_json": json.dumps({k: v for k, v in vocab.items() if k != "a"}), "merges_txt": merges},
        "cut merges": {"vocab_json": text, "merges_txt": merges[: len(merges) // 2].rpartition("\n")[0]},
        "cut in a line": {"vocab_json": text, "merges_txt": merges[:40]},
        "other merges": {"vocab_json": text, "merges_txt": merges + "Q Q\n"},
        "not UTF-8": {"vocab_json": text, "merges_txt": merges.encode("utf-16")},
    }[what]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no merges", r"merges\.txt is missing: of vocab\.json and merges\.txt"),
        ("no vocabulary", r"vocab\.json is missing: of vocab\.json and merges\.txt"),
        ("cut vocabulary", r"vocab\.json is not JSON"),
        ("a list", r"vocab\.json is not a vocabulary"),
        ("nested deeply", r"vocab\.json is not JSON"),
        ("ids as text", r"vocab\.json is not a vocabulary"),
        ("equal ids", r"vocab\.json gives two tokens the same id"),
        ("negative", r"vocab\.json is not a vocabulary"),
        ("huge id", r"vocab\.json is not a vocabulary"),
        ("no byte", r"1 of the 256 bytes"),
        ("cut merges", r"merges\.txt makes \d+ tokens, but \d+ more"),
        ("cut in a line", r"merges\.txt, line \d+: .* is not a pair|merges\.txt makes"),
        ("other merges", r"merges\.txt, line \d+: 'Q Q' is not a pair"),
        ("not UTF-8", r"merges\.txt is not UTF-8 text"),
    ],
)
def test_damaged_files_of_gpt2s_are_named(gpt2, tmp_path, what, message):
    vocab, merges = two_files(gpt2)
    path = folder(tmp_path, **spoiled(json.loads(vocab), merges, what))
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("processor", "before", "after"),
    [
        (None, [], []),
        (library.processors.ByteLevel(), [], []),
        (library.processors.TemplateProcessing("b:0 c $A:0 d", special_tokens=[("b", 1), ("c", 2), ("d", 3)]), [1, 2], [3]),
        (library.processors.BertProcessing(("d", 3), ("b", 1)), [1], [3]),
        (library.processors.RobertaProcessing(("d", 3), ("b", 1)), [1], [3]),
    ],
)  # fmt: skip
def test_a_prompt_stands_between_the_post_processors_tokens(gpt2, processor, before, after):
    made = library.Tokenizer.from_str(gpt2.to_str())
    if processor is not None:
        made.post_processor = processor
    ours = parse(made.to_str(), "here")
    assert ours.frame == (tuple(before), tuple(after))
    assert ours.encode_prompt(MIXED).tolist() == made.encode(MIXED).ids == [*before, *gpt2.encode(MIXED).ids, *after]
    assert ours.encode(MIXED).tolist() == gpt2.encode(MIXED).ids


@pytest.mark.parametrize(
    ("config", "before", "after"),
    [
        ({}, ["<|begin|>"], []),
        (NAMES, ["<|begin|>"], []),
        ({**NAMES, "add_bos_token": True}, ["<|begin|>"], []),
        ({**NAMES, "add_bos_token": False}, [], []),
        ({**NAMES, "add_bos_token": None}, ["<|begin|>"], []),
        ({**NAMES, "add_eos_token": True}, ["<|begin|>"], ["<|turn|>"]),
        ({**NAMES, "add_bos_token": False, "add_eos_token": True}, [], ["<|turn|>"]),
        ({"bos_token": added("<|turn|>"), "add_bos_token": True}, ["<|turn|>"], []),
        ({"bos_token": None, "add_bos_token": True}, [], []),
    ],
)
def test_add_bos_and_add_eos_are_honoured_over_the_post_processor(chat, tmp_path, config, before, after):
    tokenizer = load(folder(tmp_path, tokenizer_json=chat.to_str(), tokenizer_config_json=config))
    around = [[chat.token_to_id(token) for token in side] for side in (before, after)]
    plain = chat.encode("Hello 12345", add_special_tokens=False).ids
    assert tokenizer.encode_prompt("Hello 12345").tolist() == [*around[0], *plain, *around[1]]
    assert tokenizer.encode("Hello 12345").tolist() == plain


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "GPTNeoXTokenizer"])
def test_what_a_class_calls_its_tokens_holds_where_the_files_are_silent(gpt2, tmp_path, name):
    vocab, merges = two_files(gpt2)
    config = {"tokenizer_class": name, "add_bos_token": True}
    tokenizer = load(folder(tmp_path, vocab_json=vocab, merges_txt=merges, tokenizer_config_json=config))
    assert tokenizer.special_tokens == {"bos_token": END, "eos_token": END}
    assert tokenizer.encode_prompt("a").tolist() == [0, *gpt2.encode("a").ids]


def test_a_token_to_add_that_has_no_id_is_named(chat, tmp_path):
    config = {"bos_token": "<s>", "add_bos_token": True}
    path = folder(tmp_path, tokenizer_json=chat.to_str(), tokenizer_config_json=config)
    with pytest.raises(UserError, match="puts '<s>' around a text, which is not in the vocabulary.*add_bos_token"):
        load(path)


def test_special_tokens_come_from_the_text_of_a_prompt_and_from_no_other(chat, tmp_path):
    tokenizer = load(folder(tmp_path, tokenizer_json=chat.to_str(), tokenizer_config_json=NAMES))
    text = "<|turn|>hello<|turn|>"
    turn = chat.token_to_id("<|turn|>")
    assert tokenizer.encode_prompt(text).tolist() == chat.encode(text).ids
    assert tokenizer.encode_prompt(text).tolist().count(turn) == 2
    assert turn not in tokenizer.encode(text).tolist()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode_prompt(text)) == "hello"
    split = load(folder(tmp_path, tokenizer_config_json={**NAMES, "split_special_tokens": True}))
    assert turn not in split.encode_prompt(text).tolist()


def test_tokens_that_the_settings_add_have_the_ids_that_they_say(chat, tmp_path):
    size = chat.get_vocab_size()
    declared = {str(size): added("<think>"), str(size + 1): added("<tool>", special=False)}
    config = {**NAMES, "added_tokens_decoder": declared}
    tokenizer = load(folder(tmp_path, tokenizer_json=chat.to_str(), tokenizer_config_json=config))
    ids = tokenizer.encode_prompt("<think>a<tool>").tolist()
    assert tokenizer.vocab_size == size + 2
    assert (ids[1], ids[-1]) == (size, size + 1)
    assert tokenizer.decode(ids) == "a<tool>"
    old = load(
        folder(tmp_path / "old", tokenizer_json=chat.to_str(), added_tokens_json={"<think>": size, "<tool>": size + 1})
    )
    assert old.encode_prompt("<think>a<tool>").tolist() == ids
    bare = parse(chat.to_str(), "here")
    assert len({tokenizer.fingerprint, bare.fingerprint}) == 2  # <tool> is one id in every text


@pytest.mark.parametrize("number", [5, 4000])
def test_added_tokens_of_another_vocabulary_are_refused(chat, tmp_path, number):
    config = {"added_tokens_decoder": {str(number): added("<new>")}}
    path = folder(tmp_path, tokenizer_json=chat.to_str(), tokenizer_config_json=config)
    with pytest.raises(UserError, match=rf"'<new>' the id {number}, but"):
        load(path)


def other_kinds() -> dict[str, library.Tokenizer]:
    """Tokenisers that are not byte-level, as tokenizer.json files have them: Gemma's, Llama's without merges, and T5's."""
    steps, models = library.decoders, library.models
    pieces = {f"<0x{byte:02X}>": byte + 1 for byte in range(256)} | {"<unk>": 0}
    pieces |= {token: 257 + number for number, token in enumerate(["▁", "a", "▁a", "世", "▁世界", "é"])}
    gemma = library.Tokenizer(models.BPE(vocab=pieces, merges=[("▁", "a")], unk_token="<unk>", byte_fallback=True))
    gemma.normalizer = library.normalizers.Replace(" ", "▁")
    gemma.decoder = steps.Sequence([steps.Replace("▁", " "), steps.ByteFallback(), steps.Fuse()])
    llama = library.Tokenizer(models.BPE(vocab=pieces, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    llama.pre_tokenizer = library.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    llama.decoder = steps.Sequence(
        [*(steps.Replace("▁", " "), steps.ByteFallback(), steps.Fuse()), steps.Strip(" ", 1, 0)]
    )
    scored = [(token, -float(number)) for token, number in pieces.items()]
    unigram = library.Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=True))
    unigram.pre_tokenizer = library.pre_tokenizers.Metaspace()
    unigram.decoder = steps.Sequence([steps.ByteFallback(), steps.Metaspace()])
    return {"gemma": gemma, "llama": llama, "unigram": unigram}


@pytest.fixture(scope="module")
def streaming(gpt2, chat):
    return {name: parse(made.to_str(), name) for name, made in {"gpt2": gpt2, "chat": chat, **other_kinds()}.items()}


@pytest.mark.parametrize("name", ["gpt2", "chat", "gemma", "llama", "unigram"])
@given(
    text=st.text(alphabet="a 世界é🙂\u0301\n", max_size=60) | st.text(max_size=30),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    shown=st.integers(0, 9),
)
def test_streams_never_break_a_character(streaming, name, text, sizes, shown):
    tokenizer = streaming[name]
    ids = tokenizer.encode(text)
    whole = tokenizer.decode(ids)
    pieces = streamed(tokenizer, ids, sizes)
    assert "".join(pieces) == whole
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text
    before = tokenizer.stream()
    start = before.push(ids[:shown])
    if "\ufffd" not in start + before.finish():  # a prompt ends with a character
        assert start + "".join(streamed(tokenizer, ids, sizes, shown)) == whole
