"""Prompts have the ids that transformers gives them, from the published files and from those written here."""

import json

import in_memory
import pytest
import tokenizers as library
from small_tokenizers import (
    CHAT,
    END,
    MIXED,
    NAMES,
    added,
    byte_level,
    folder,
    gpt2_style,
    llama3_style,
    ranks,
    sentencepiece_model,
    two_files,
)

from research.data.tiktoken_vocabularies import CL100K_PATTERN
from research.data.tokenizer import build, load
from research.data.vocab_merges import QWEN_PATTERN

transformers = pytest.importorskip("transformers")

# Not with a space first: for a LlamaTokenizer transformers 5 takes that one for the space that SentencePiece puts there.
PROMPTS = (MIXED, "", "Hello", "two  spaces ", "<|turn|>user\nhello<|turn|></s>x", f"a{END}b", "philosophy 12345")


def theirs(path):
    """What AutoTokenizer makes of a folder."""
    return transformers.AutoTokenizer.from_pretrained(str(path))


def same(path, tmp_path, theirs_reads=True):
    """Compares a folder's tokeniser with AutoTokenizer, which reads the folder and what is written from it."""
    ours = load(path)
    ours.save_pretrained(tmp_path / "written")
    readers = [theirs(tmp_path / "written"), *([theirs(path)] if theirs_reads else [])]
    again = load(tmp_path / "written")
    for prompt in PROMPTS:
        ids = ours.encode_prompt(prompt).tolist()
        assert again.encode_prompt(prompt).tolist() == ids
        for reader in readers:
            assert reader(prompt).input_ids == ids, (prompt, type(reader))
            assert reader.decode(ids, skip_special_tokens=True) == ours.decode(ids)
    for reader in readers:
        named = {name: token for name, token in reader.special_tokens_map.items() if name in ours.special_tokens}
        assert named == {name: ours.special_tokens[name] for name in named}
        assert reader.chat_template == ours.chat_template
    return ours


def gpt2_files(**config) -> dict:
    vocab, merges = two_files(gpt2_style())
    settings = {"tokenizer_config_json": config} if config else {}
    return {"vocab_json": vocab, "merges_txt": merges, "config_json": {"model_type": "gpt2"}, **settings}


def qwen2_files() -> dict:
    made = byte_level(QWEN_PATTERN)
    vocab, merges = two_files(made)
    tokens = [END, "<|turn|>", "<|end|>", "<tool>"]
    config = {
        "added_tokens_decoder": {
            str(made.get_vocab_size() + number): added(token, special=token != "<tool>")
            for number, token in enumerate(tokens)
        },
        "additional_special_tokens": ["<|turn|>", "<|end|>"],
        **{"add_bos_token": False, "add_prefix_space": False, "bos_token": None, "eos_token": "<|end|>"},
        **{"pad_token": END, "unk_token": None, "tokenizer_class": "Qwen2Tokenizer", "chat_template": "{{ messages }}"},
    }
    return {"vocab_json": vocab, "merges_txt": merges, "tokenizer_config_json": config}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tokenizer_class": "GPT2Tokenizer"},
        {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True},
        {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True, "bos_token": added(END, __type="AddedToken")},
        {"tokenizer_class": "GPTNeoXTokenizer", "bos_token": END, "eos_token": END},
    ],
)
def test_gpt2s_two_files(config, tmp_path):
    same(folder(tmp_path, **gpt2_files(**config)), tmp_path)


def test_qwen2s_two_files(tmp_path):
    tokenizer = same(folder(tmp_path, **qwen2_files()), tmp_path)
    assert tokenizer.stop_ids == (tokenizer.token_id("<|end|>"),)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {
            "tokenizer_config_json": {
                **NAMES,
                "tokenizer_class": "PreTrainedTokenizerFast",
                "chat_template": "{{ 世界 }}",
            }
        },
        {"special_tokens_map_json": {**NAMES, "eos_token": added("<|turn|>")}, "chat_template_jinja": "{{ x }}"},
    ],
)
def test_llama3s_tokenizer_json_puts_bos_first_by_its_post_processor(files, tmp_path):
    tokenizer = same(folder(tmp_path, tokenizer_json=llama3_style().to_str(), **files), tmp_path)
    assert tokenizer.encode_prompt("a")[0] == tokenizer.token_id(CHAT[0])


@pytest.mark.parametrize("flags", [{"add_bos_token": True}, {"add_bos_token": True, "add_eos_token": True}])
def test_flags_without_a_post_processor_hold_in_what_is_written(flags, tmp_path):
    """transformers 5 passes over them where there is a tokenizer.json."""
    made = byte_level(special=CHAT)
    config = {**NAMES, **flags, "tokenizer_class": "PreTrainedTokenizerFast"}
    path = folder(tmp_path, tokenizer_json=made.to_str(), tokenizer_config_json=config)
    assert same(path, tmp_path, theirs_reads=False).encode_prompt("a")[0] == made.token_to_id("<|begin|>")


LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
GEMMA = {"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
GEMMA_MODEL = {
    **{"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "bos_piece": "<bos>", "eos_piece": "<eos>"},
    "add_dummy_prefix": False,
    "user_defined_symbols": ["<|turn|>"],
}
UNIGRAM = {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}


@pytest.mark.parametrize(
    ("options", "config", "theirs_reads"),
    [
        ({}, {**LLAMA, "add_bos_token": True, "legacy": False}, True),
        ({}, {**LLAMA, "add_bos_token": True, "add_eos_token": True}, True),
        ({}, {**LLAMA, "add_bos_token": True, "legacy": True}, True),
        ({}, {**LLAMA, "add_bos_token": False}, True),
        ({}, LLAMA, False),  # transformers 4 and the documentation of 5 put bos first, its code does not
        ({}, None, True),
        (GEMMA_MODEL, {**GEMMA, "add_bos_token": True}, True),
        (GEMMA_MODEL, None, True),
        (UNIGRAM, None, True),
    ],
)
def test_sentencepiece_models(options, config, theirs_reads, tmp_path):
    pytest.importorskip("google.protobuf")
    settings = {} if config is None else {"tokenizer_config_json": config}
    same(folder(tmp_path, tokenizer_model=sentencepiece_model(**options), **settings), tmp_path, theirs_reads)


@pytest.mark.parametrize("name", ["tokenizer_model", "own_tiktoken"])
def test_tiktoken_files(name, tmp_path):
    pytest.importorskip("tiktoken")
    declared = {str(500 + number): added(token) for number, token in enumerate(CHAT)}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": declared, **NAMES}
    settings = {**config, "add_bos_token": True, "pat_str": CL100K_PATTERN}
    path = folder(tmp_path, **{name: ranks(500), "tokenizer_config_json": settings})
    same(path, tmp_path, theirs_reads=name == "tokenizer_model")


@pytest.mark.parametrize("spec", ["byte", "bpe:300"])
def test_tokenisers_made_here(spec, tmp_path):
    source = in_memory.source(MIXED * 20)
    made = build(spec, source, cache_dir=tmp_path / "cache")
    path = tmp_path / "made"
    made.save_pretrained(path)
    same(path, tmp_path)


def test_the_library_and_transformers_read_a_run_directorys_file(tmp_path):
    path = folder(tmp_path / "from", tokenizer_json=llama3_style().to_str(), tokenizer_config_json=NAMES)
    load(path).with_stop_ids([1]).save(tmp_path)
    ids = load(path).encode_prompt(MIXED).tolist()
    assert library.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(MIXED).ids == ids
    assert theirs(tmp_path)(MIXED).input_ids == ids
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["purestep"]["stop_ids"] == [1]
