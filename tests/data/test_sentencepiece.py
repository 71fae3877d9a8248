"""SentencePiece models: the library's ids and text, the special tokens of Llama, Gemma and ChatGLM, damaged files."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import MIXED, TEXTS, added, folder, sentencepiece_model, streamed

from research.core.errors import UserError
from research.data.encoding import Tokenizer
from research.data.tokenizer import load, parse

sentencepiece = pytest.importorskip("sentencepiece")

LLAMA = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False}
GEMMA = {"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "add_bos_token": True}
GLM = {"tokenizer_class": "ChatGLMTokenizer", "name_or_path": "THUDM/chatglm3-6b", "remove_space": False}
GEMMA_IDS = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "bos_piece": "<bos>", "eos_piece": "<eos>"}
UNIGRAM = {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}


@pytest.fixture(scope="module")
def models() -> dict[str, bytes]:
    turns = ["<start_of_turn>", "<end_of_turn>", "\n\n"]
    return {
        "llama": sentencepiece_model(),
        "gemma": sentencepiece_model(add_dummy_prefix=False, user_defined_symbols=turns, **GEMMA_IDS),
        "glm": sentencepiece_model(**UNIGRAM),
        "unigram": sentencepiece_model(**UNIGRAM, byte_fallback=False),
    }


@pytest.fixture(scope="module")
def made(models, tmp_path_factory) -> dict[str, Tokenizer]:
    configs = {"llama": LLAMA, "gemma": GEMMA, "glm": GLM, "unigram": {}}
    place = tmp_path_factory.mktemp("made")
    return {
        name: load(folder(place / name, tokenizer_model=models[name], tokenizer_config_json=config))
        for name, config in configs.items()
    }


@pytest.fixture(scope="module")
def theirs(models):
    return {name: sentencepiece.SentencePieceProcessor(model_proto=model) for name, model in models.items()}


KINDS = ["llama", "gemma", "glm", "unigram"]


def same_text(ours: str, said: str) -> bool:
    """Whether two texts are one, apart from a space before an unknown piece that begins them."""
    return ours.lstrip() == said.lstrip() if said.startswith(" \u2047 ") else ours == said


@pytest.mark.parametrize("name", KINDS)
@given(text=TEXTS)
def test_ids_and_text_are_the_librarys(made, theirs, name, text):
    ids = made[name].encode(text)
    assert ids.tolist() == theirs[name].encode(text) == made[name].encode_many([text, ""])[0].tolist()
    assert same_text(made[name].decode(ids), theirs[name].decode(ids.tolist()))
    assert made[name].decode_bytes(ids) == made[name].decode(ids).encode()


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
def test_any_ids_that_are_no_bytes_have_the_librarys_text(made, theirs, name, data):
    known = [number for number in range(theirs[name].vocab_size()) if not theirs[name].is_byte(number)]
    ids = data.draw(st.lists(st.sampled_from(known), max_size=12))
    assert same_text(made[name].decode(ids), theirs[name].decode(ids))


@pytest.mark.parametrize("name", ["llama", "gemma"])
@given(text=TEXTS)
def test_bytes_make_any_text_lossless(made, name, text):
    assert made[name].decode(made[name].encode(text)) == text


@pytest.mark.parametrize("name", KINDS)
@given(text=TEXTS, sizes=st.lists(st.integers(1, 5), min_size=1, max_size=8), shown=st.integers(0, 9))
def test_streams_never_break_a_character(made, name, text, sizes, shown):
    tokenizer = made[name]
    ids = tokenizer.encode_prompt(text)
    whole = tokenizer.decode(ids)
    pieces = streamed(tokenizer, ids, sizes)
    assert "".join(pieces) == whole
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text
    before = tokenizer.stream()
    start = before.push(ids[:shown])
    if "\ufffd" not in before.finish():  # a prompt ends with a character
        assert start + "".join(streamed(tokenizer, ids, sizes, shown)) == whole


def test_a_byte_that_never_becomes_a_character_is_shown_at_the_end(made):
    first = made["llama"].encode("☃")[1:2]
    stream = made["llama"].stream()
    assert stream.push(first) == ""
    assert stream.finish() == "\ufffd" == made["llama"].decode(first)
    assert made["llama"].decode_bytes(first) == "☃".encode()[:1]


def test_llamas_prompt_begins_with_bos_and_has_one_space_of_its_own(made, theirs):
    llama = made["llama"]
    plain = theirs["llama"].encode("Hello world")
    assert llama.encode_prompt("Hello world").tolist() == [1, *plain]
    assert (llama.eot, llama.stop_ids, llama.frame) == (2, (2,), ((1,), ()))
    assert llama.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    ids = llama.encode_prompt("Hello</s>Hello").tolist()
    words = [theirs["llama"].id_to_piece(number) for number in ids]
    assert "".join(words) == "<s>▁Hello</s>Hello"  # what goes on within a text has none
    assert llama.decode(ids) == "HelloHello"
    assert 2 not in llama.encode("Hello</s>Hello").tolist()


def test_with_legacy_every_part_between_special_tokens_has_a_space(models, theirs, tmp_path):
    path = folder(tmp_path, tokenizer_model=models["llama"], tokenizer_config_json={**LLAMA, "legacy": True})
    word = theirs["llama"].encode("Hello")
    assert load(path).encode_prompt("Hello</s>Hello").tolist() == [1, *word, 2, *word]


@pytest.mark.parametrize(
    ("config", "frame"),
    [
        (None, ((), ())),
        ({"tokenizer_class": "LlamaTokenizer"}, ((1,), ())),
        ({"tokenizer_class": "LlamaTokenizerFast", "add_eos_token": True}, ((1,), (2,))),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}, ((), ())),
        ({"add_bos_token": True}, ((1,), ())),
        ({"add_bos_token": True, "bos_token": None}, ((), ())),
        ({"add_bos_token": True, "bos_token": "</s>"}, ((2,), ())),
    ],
)
def test_what_stands_around_a_prompt(models, tmp_path, config, frame):
    settings = {} if config is None else {"tokenizer_config_json": config}
    tokenizer = load(folder(tmp_path / "from", tokenizer_model=models["llama"], **settings))
    assert tokenizer.frame == frame
    tokenizer.save_pretrained(tmp_path / "to")
    assert load(tmp_path / "to").frame == frame
    written = json.loads((tmp_path / "to" / "tokenizer_config.json").read_text())
    assert frame[0] == () or written["add_bos_token"]  # said, also where the class alone decided it


def test_gemma_has_turns_and_no_space_before(made):
    ids = made["gemma"].encode_prompt("<start_of_turn>user\nhello<end_of_turn>\n").tolist()
    assert (ids[:2], made["gemma"].stop_ids) == ([2, 4], (1,))
    assert ids.count(5) == 1
    assert made["gemma"].decode(ids) == "<start_of_turn>user\nhello<end_of_turn>\n"
    assert made["gemma"].special_tokens["pad_token"] == "<pad>"


def test_special_tokens_of_the_settings_stand_for_no_text(models, tmp_path):
    config = {**GEMMA, "added_tokens_decoder": {"4": added("<start_of_turn>"), "6": added("<tool>", special=False)}}
    gemma = load(folder(tmp_path, tokenizer_model=models["gemma"], tokenizer_config_json=config))
    assert gemma.decode(gemma.encode_prompt("<start_of_turn>hello<tool>")) == "hello<tool>"
    assert gemma.token_id("<tool>") == 6  # the settings may rename a piece


def test_chatglm_numbers_its_tokens_after_the_pieces(made, theirs):
    glm, size = made["glm"], theirs["glm"].vocab_size()
    names = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
    assert [glm.token_id(name) for name in names] == list(range(size, size + 9))
    assert (glm.vocab_size, glm.eot, glm.stop_ids) == (size + 9, 2, (2,))
    assert glm.encode_prompt("hello 世界").tolist() == [size + 1, size + 3, *theirs["glm"].encode("hello 世界")]
    assert glm.decode(glm.encode_prompt("hello 世界")) == "hello 世界"
    stream = glm.stream(glm.encode_prompt("hello"))
    assert stream.push(theirs["glm"].encode("world")) == " world"


def test_chatglms_sop_is_a_token_only_after_gmask(made, theirs):
    glm, size = made["glm"], theirs["glm"].vocab_size()
    assert glm.encode_prompt("philosophy").tolist()[2:] == theirs["glm"].encode("philosophy")
    ids = glm.encode_prompt("[gMASK]sop<|user|>\nhello<|assistant|>").tolist()
    assert ids == [size + 1, size + 3, size + 1, size + 3, size + 6, *theirs["glm"].encode("\nhello"), size + 7]


def test_chatglm2_has_no_roles(models, tmp_path):
    config = {**GLM, "name_or_path": "THUDM/chatglm2-6b"}
    glm = load(folder(tmp_path, tokenizer_model=models["glm"], tokenizer_config_json=config))
    assert glm.token_id("<|user|>") is None
    assert glm.token_id("eop") == glm.vocab_size - 1


def test_the_eos_token_of_the_settings_separates_where_the_model_has_none(tmp_path):
    model = sentencepiece_model(eos_id=-1)
    bare = load(folder(tmp_path / "bare", tokenizer_model=model))
    config = {"eos_token": "<end>", "added_tokens_decoder": {"900": added("<end>")}}
    named = load(folder(tmp_path / "named", tokenizer_model=model, tokenizer_config_json=config))
    assert (bare.eot, named.eot, named.vocab_size) == (None, 900, 901)
    assert bare.fingerprint != named.fingerprint  # other ids between documents


@pytest.mark.parametrize("name", KINDS)
def test_a_run_directory_keeps_all_of_it_in_one_file(made, tmp_path, name):
    tokenizer = made[name].with_stop_ids([2, 5])
    tokenizer.save(tmp_path)
    again = load(tmp_path)
    assert again == tokenizer
    assert again.fingerprint == tokenizer.fingerprint
    for what in ("special_tokens", "stop_ids", "chat_template", "frame", "vocab_size", "eot", "settings"):
        assert getattr(again, what) == getattr(tokenizer, what), what
    assert again.encode_prompt(MIXED).tolist() == tokenizer.encode_prompt(MIXED).tolist()


def test_a_model_is_written_back_byte_for_byte(models, made, tmp_path):
    for name, config in {"llama": LLAMA, "glm": GLM}.items():
        made[name].save_pretrained(tmp_path / name)
        assert {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} == {
            "tokenizer.model": models[name],
            "tokenizer_config.json": json.dumps(config).encode(),
        }


def test_a_model_under_any_name_is_written_under_the_usual_one(models, tmp_path):
    folder(tmp_path, **{"中文 sp_model": models["unigram"]}, README_md="x")
    load(tmp_path).save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == models["unigram"]


def test_damaged_models_are_refused_wherever_they_are_cut(models, tmp_path):
    """The pieces alone would be read as another model, by the library's defaults."""
    model = models["unigram"]
    ends = [at for at in range(1, 1500) if model[at : at + 1] == b"\x0a"]  # where a piece may begin
    for end in [0, *ends[:40], *range(len(model) - 60, len(model))]:
        (tmp_path / "tokenizer.model").write_bytes(model[:end])
        with pytest.raises(UserError, match=r"tokenizer\.model is not a (whole )?SentencePiece model"):
            load(tmp_path)


@pytest.mark.parametrize(
    "content", [b"nothing", b"\0" * 100, b"PK\x03\x04", "世界".encode("utf-16"), b"\x80\x04\x95", b"{}"]
)
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.model is not a SentencePiece model.*Get it again"):
        load(tmp_path)


def test_a_piece_that_is_not_utf8_is_refused(models, tmp_path):
    model = models["llama"].replace("世".encode(), b"\xe4\xb8\x28")
    (tmp_path / "tokenizer.model").write_bytes(model)
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        load(tmp_path)


def test_a_damaged_run_file_is_refused():
    for model in ({}, {"base64": "?"}, {"base64": 3}, {"base64": ""}):
        with pytest.raises(UserError, match="here is "):
            parse(json.dumps({"model": {"type": "sentencepiece", **model}}), "here")


@pytest.mark.parametrize("name", KINDS)
def test_halves_of_surrogates_and_unknown_ids(made, name):
    for encode in (made[name].encode, made[name].encode_prompt):
        with pytest.raises(UserError, match="not Unicode at character 1"):
            encode("a\ud800")
    with pytest.raises(UserError, match="not in the vocabulary"):
        made[name].decode([made[name].vocab_size])
