"""The settings beside a published tokeniser: kept, obeyed, written back, and refused where they are damaged."""

import base64
import json
import sys

import numpy as np
import pytest
import tokenizers as library
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import CHAT, END, MIXED, NAMES, added, byte_level, folder, gpt2_style, llama3_style, two_files

from research.core.errors import UserError
from research.data import pretrained
from research.data.pretrained import AddedToken, Settings, Spelled
from research.data.tokenizer import load, load_optional, parse


@pytest.fixture(scope="module")
def chat() -> library.Tokenizer:
    return llama3_style()


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory):
    vocab, merges = two_files(gpt2_style())
    return folder(tmp_path_factory.mktemp("gpt2"), vocab_json=vocab, merges_txt=merges)


def test_special_tokens_of_both_files():
    def named(config: dict, other: dict) -> dict:
        files = (("tokenizer_config.json", json.dumps(config)), ("special_tokens_map.json", json.dumps(other)))
        return Settings(files).special_tokens

    assert named({"eos_token": "a"}, {}) == named({}, {"eos_token": added("a")}) == {"eos_token": "a"}
    # as in transformers: the map holds, unless the config declares its tokens
    assert named({"eos_token": "a"}, {"eos_token": "b"}) == {"eos_token": "b"}
    assert named({"eos_token": "a", "added_tokens_decoder": {}}, {"eos_token": "b"}) == {"eos_token": "a"}
    assert named({"tokenizer_class": "LlamaTokenizer"}, {}) == {"bos_token": "<s>", "eos_token": "</s>"}
    assert named({"tokenizer_class": "LlamaTokenizer", "bos_token": None}, {}) == {"eos_token": "</s>"}
    assert named({"bos_token": "", "additional_special_tokens": ["x", added("y")]}, {}) == {
        "additional_0": "x",
        "additional_1": "y",
    }
    assert named({"extra_special_tokens": {"image_token": "<image>"}}, {}) == {"image_token": "<image>"}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config_json": {"chat_template": "{{ a }}"}},
        {"tokenizer_config_json": {"chat_template": "{{ b }}"}, "chat_template_jinja": "{{ a }}"},
        {
            "tokenizer_config_json": {
                "chat_template": [{"name": "tool", "template": "x"}, {"name": "default", "template": "{{ a }}"}]
            }
        },
    ],
)
def test_the_chat_template_is_kept(chat, tmp_path, files):
    tokenizer = load(folder(tmp_path / "from", tokenizer_json=chat.to_str(), **files))
    assert tokenizer.chat_template == "{{ a }}"
    tokenizer.save(tmp_path)
    assert load(tmp_path).chat_template == "{{ a }}"


def test_a_generation_ends_at_the_ids_given_or_at_the_eos_token_or_at_the_separator(chat, tmp_path):
    ids = [chat.token_to_id(token) for token in CHAT]
    assert parse(chat.to_str(), "here").stop_ids == (ids[1],)
    named = load(folder(tmp_path, tokenizer_json=chat.to_str(), tokenizer_config_json=NAMES))
    assert (named.eot, named.stop_ids) == (ids[1], (ids[2],))
    assert named.with_stop_ids(np.array([3, 4])).stop_ids == (3, 4)
    assert named.with_stop_ids([]).stop_ids == ()
    unknown = load(folder(tmp_path, tokenizer_config_json={"eos_token": "</s>"}))
    assert unknown.stop_ids == (ids[1],)
    with pytest.raises(UserError, match="token id 9999 is not in the vocabulary"):
        named.with_stop_ids([9999])


def test_a_run_directory_keeps_all_of_it_in_one_file_that_the_library_reads(chat, tmp_path):
    size = chat.get_vocab_size()
    config = {
        **NAMES,
        "add_eos_token": True,
        "chat_template": "{{ 你好 }}",
        "added_tokens_decoder": {str(size): added("<think>")},
    }
    source = folder(tmp_path / "source", tokenizer_json=chat.to_str(), tokenizer_config_json=config)
    folder(source, special_tokens_map_json={"additional_special_tokens": ["<think>"]})
    tokenizer = load(source).with_stop_ids([1, size])
    tokenizer.save(tmp_path)
    again = load(tmp_path)
    assert again == tokenizer
    assert again.fingerprint == tokenizer.fingerprint
    for name in ("special_tokens", "stop_ids", "chat_template", "frame", "vocab_size", "eot", "content", "settings"):
        assert getattr(again, name) == getattr(tokenizer, name), name
    assert again.encode_prompt(MIXED + "<think>").tolist() == tokenizer.encode_prompt(MIXED + "<think>").tolist()
    theirs = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode(MIXED).ids == chat.encode(MIXED).ids
    assert (
        load(folder(tmp_path, tokenizer_config_json={"eos_token": "<|turn|>"})).chat_template is None
    )  # the folder's own holds


def test_a_published_tokeniser_is_written_back_byte_for_byte(chat, tmp_path):
    files = {"tokenizer_config_json": json.dumps(NAMES, indent=7), "chat_template_jinja": "{{ 世界 }}"}
    source = folder(tmp_path / "source", tokenizer_json=chat.to_str(pretty=True), **files)
    load(source).save_pretrained(tmp_path / "copy")
    assert {path.name: path.read_bytes() for path in source.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()
    }


@pytest.mark.parametrize("config", [{"add_bos_token": False, "add_eos_token": True}, {"add_bos_token": True}])
def test_a_written_post_processor_says_what_the_settings_say(config, tmp_path):
    made = llama3_style() if not config["add_bos_token"] else byte_level(special=CHAT)  # which has none
    source = folder(tmp_path / "source", tokenizer_json=made.to_str(), tokenizer_config_json={**NAMES, **config})
    tokenizer = load(source)
    tokenizer.save_pretrained(tmp_path / "copy")
    theirs = library.Tokenizer.from_file(str(tmp_path / "copy" / "tokenizer.json"))
    assert theirs.encode(MIXED).ids == tokenizer.encode_prompt(MIXED).tolist() != made.encode(MIXED).ids
    assert load(tmp_path / "copy").encode_prompt(MIXED).tolist() == tokenizer.encode_prompt(MIXED).tolist()


def test_without_settings_the_special_tokens_are_named_in_a_new_file(gpt2_folder, tmp_path):
    load(gpt2_folder).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["eos_token"] == END
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert load(tmp_path).encode(MIXED).tolist() == load(gpt2_folder).encode(MIXED).tolist()


def test_files_of_another_tokeniser_are_not_mixed_in(gpt2_folder, tmp_path):
    folder(tmp_path, added_tokens_json={"<x>": 1})
    with pytest.raises(UserError, match=r"holds added_tokens\.json of another tokeniser"):
        load(gpt2_folder).save_pretrained(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        load(gpt2_folder).save_pretrained(tmp_path / "file")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config_json": "{"}, r"tokenizer_config\.json is not JSON"),
        ({"tokenizer_config_json": "[" * 100_000}, r"tokenizer_config\.json is not JSON"),
        ({"tokenizer_config_json": "[]"}, r"tokenizer_config\.json is a JSON list"),
        ({"tokenizer_config_json": b"\xff\xfe{"}, r"tokenizer_config\.json is not UTF-8"),
        ({"tokenizer_config_json": {"eos_token": 3}}, "eos_token is 3, expected the text of a token"),
        ({"tokenizer_config_json": {"eos_token": {"content": None}}}, "eos_token is"),
        ({"tokenizer_config_json": {"additional_special_tokens": 3}}, "additional_special_tokens is 3, expected a list"),
        ({"tokenizer_config_json": {"chat_template": 3}}, "chat_template of .* is a int"),
        ({"tokenizer_config_json": {"added_tokens_decoder": []}}, "added_tokens_decoder of .* is no JSON object"),
        ({"tokenizer_config_json": {"added_tokens_decoder": {"x": added("<x>")}}}, "'<x>' has the id 'x'"),
        ({"tokenizer_config_json": {"added_tokens_decoder": {"-1": added("<x>")}}}, "'<x>' has the id '-1'"),
        ({"tokenizer_config_json": {"added_tokens_decoder": {"99999999": added("<x>")}}}, "has the id '99999999'"),
        ({"tokenizer_config_json": {"added_tokens_decoder": {"1": {}}}}, "a token of added_tokens_decoder is {}"),
        ({"special_tokens_map_json": '"x"'}, r"special_tokens_map\.json is a JSON str"),
        ({"added_tokens_json": {"<x>": 1.5}}, "'<x>' has the id 1.5"),
        ({"chat_template_jinja": b"\xe4\xb8"}, r"chat_template\.jinja is not UTF-8"),
    ],
)  # fmt: skip
def test_damaged_settings_are_named(chat, tmp_path, files, message):
    path = folder(tmp_path, tokenizer_json=chat.to_str(), **files)
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kept",
    [
        "[",
        "3",
        "{}",
        '{"files": {"tokenizer_config.json": "{"}, "stop_ids": null}',
        '{"files": {}, "stop_ids": ["x"]}',
        '{"files": {}, "stop_ids": [9999]}',
    ],
)
def test_damaged_settings_inside_one_file_are_named(chat, tmp_path, kept):
    content = chat.to_str().replace('"model":{', f'"model":{{"purestep": {kept}, ', 1)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load(tmp_path)


def test_files_far_too_large_are_not_read(tmp_path):
    for name in ("tokenizer.json", "tokenizer.model", "vocab.tiktoken", "tokenizer_config.json"):
        (tmp_path / name).mkdir()
        file = folder(tmp_path / name, tokenizer_json="{}") / name
        with open(file, "wb") as stream:
            stream.truncate(pretrained.LARGEST_FILE + 1)  # takes no room on the disk
        with pytest.raises(UserError, match=rf"{name} has \d+ bytes, expected at most"):
            load(file if name.endswith(("model", "tiktoken")) else tmp_path / name)


@pytest.mark.parametrize("wrong", [[-1], [400_000], [1 << 63], [1 << 70], [1.0], ["a"], [None], [True], [[1], [2.5]]])
def test_ids_that_are_none_are_refused(gpt2_folder, wrong):
    tokenizer = load(gpt2_folder)
    for use in (tokenizer.decode, tokenizer.decode_bytes, tokenizer.stream, tokenizer.stream().push):
        with pytest.raises(UserError, match="token id"):
            use(wrong)


def test_a_folder_without_a_tokeniser_has_none(tmp_path):
    folder(tmp_path, tokenizer_config_json={"eos_token": "x"})
    assert load_optional(tmp_path) is None
    with pytest.raises(UserError, match=r"there is none.*vocab\.json and merges\.txt, tokenizer\.model"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"cannot read .*tokenizer\.model"):
        load(tmp_path / "tokenizer.model")


def test_several_tokenisers_in_a_folder_are_named(tmp_path):
    folder(tmp_path, a_model=b"", b_model=b"")
    with pytest.raises(UserError, match=r"several tokenisers: a\.model, b\.model"):
        load(tmp_path)


@pytest.mark.parametrize(("name", "extra"), [("tokenizer.model", "sentencepiece"), ("a.tiktoken", "tiktoken")])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, name, extra):
    monkeypatch.setitem(sys.modules, extra, None)
    lines = "".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    path = folder(tmp_path, tokenizer_config_json={"pat_str": "."})
    (path / name).write_text(lines if extra == "tiktoken" else "\n")
    with pytest.raises(UserError, match=rf"{name} is .*pip install 'purestep\[{extra}\]'"):
        load(path)


def test_spelled_tokens_take_white_space_and_whole_words_as_they_say():
    tokens = {"<a>": (1,), "<a><b>": (2,), "<l>": (3,), "<r>": (4,), "word": (5,)}
    flags = {"<l>": AddedToken("<l>", lstrip=True), "<r>": AddedToken("<r>", rstrip=True)}
    spelled = Spelled(tokens, flags | {"word": AddedToken("word", single_word=True)})
    assert list(spelled.split("x<a><b><a> y")) == ["x", (2,), (1,), " y"]  # the longest that begins at a place
    assert list(spelled.split("x \n<l> y <r>\t z")) == ["x", (3,), " y ", (4,), "z"]
    assert list(spelled.split("words word sword, 世word")) == ["words ", (5,), " sword, 世word"]
    assert list(spelled.split("")) == list(Spelled({}).split("")) == []
    assert list(Spelled({}).split("<a>")) == ["<a>"]


@given(st.text(alphabet="<a>[]^-b\\ ", max_size=30))
def test_what_spells_no_token_is_kept_as_it_is(text):
    tokens = {"<a>": (1,), "[b]": (2,), "^-": (3,), "]": (4,), "\\": (5,)}
    names = {ids: token for token, ids in tokens.items()}
    parts = list(Spelled(tokens).split(text))
    assert "".join(part if isinstance(part, str) else names[part] for part in parts) == text
    assert not any(token in part for token in tokens for part in parts if isinstance(part, str))
