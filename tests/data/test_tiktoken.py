"""tiktoken files: known by their number of tokens or described by the settings; the same ids in a tokenizer.json."""

import base64
import functools
import json

import pytest
import tokenizers as library
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import END, MIXED, TEXTS, added, folder, ranks, streamed

from research.core.errors import UserError
from research.data.encoding import Tokenizer
from research.data.tiktoken_vocabularies import CL100K_PATTERN, GPT2_PATTERN, KNOWN, O200K_PATTERN
from research.data.tokenizer import load, parse

tiktoken = pytest.importorskip("tiktoken")

SMALL = {
    "pat_str": CL100K_PATTERN,
    "added_tokens_decoder": {"500": added(END), "502": added("<|user|>"), "503": added("<tool>", special=False)},
    "eos_token": END,
    "chat_template": "{{ 你好 }}",
}


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("small"), tokenizer_model=ranks(500), tokenizer_config_json=SMALL)


@pytest.fixture(scope="module")
def small(small_folder) -> Tokenizer:
    return load(small_folder)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """`known(name)`: the tokeniser of a file with as many tokens as a published vocabulary has."""

    @functools.cache
    def make(name: str) -> Tokenizer:
        vocabulary = next(one for one in KNOWN if one.name == name)
        content = ranks(vocabulary.tokens, gap=50_256 if name == "p50k" else None)
        file = "tokenizer_model" if name in ("llama3", "glm4") else "vocabulary_tiktoken"
        return load(folder(tmp_path_factory.mktemp(name), **{file: content}))

    return make


@pytest.fixture(scope="module")
def written(known, tmp_path_factory):
    """`written(name)`: what the tokenizers library makes of that tokeniser once it has been written."""

    @functools.cache
    def make(name: str) -> library.Tokenizer:
        path = tmp_path_factory.mktemp(f"written-{name}")
        known(name).save_pretrained(path)
        return library.Tokenizer.from_file(str(path / "tokenizer.json"))

    return make


@given(text=TEXTS)
def test_ids_and_text_are_the_librarys(small, text):
    lines = [line.split() for line in ranks(500).splitlines()]
    table = {base64.b64decode(token): int(rank) for token, rank in lines}
    theirs = tiktoken.Encoding("theirs", pat_str=CL100K_PATTERN, mergeable_ranks=table, special_tokens={})
    ids = small.encode(text)
    assert ids.tolist() == theirs.encode(text) == small.encode_many(["x", text])[1].tolist()
    assert small.decode(ids) == text
    assert small.decode_bytes(ids) == text.encode()


@given(text=TEXTS, sizes=st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_streams_never_break_a_character(small, text, sizes):
    pieces = streamed(small, small.encode_prompt(text), sizes)
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


def test_special_tokens_are_those_of_the_settings(small):
    assert (small.kind, small.vocab_size, small.eot, small.stop_ids) == ("tiktoken", 504, 500, (500,))
    assert small.special_tokens == {"eos_token": END}
    ids = small.encode_prompt(f"<|user|>hello<tool>{END}").tolist()
    assert (ids[0], ids[-2:]) == (502, [503, 500])
    assert small.decode(ids) == "hello<tool>"
    assert max(small.encode(f"<|user|>hello{END}")) < 500


@pytest.mark.parametrize(
    ("name", "size", "frame", "eot", "ids"),
    [
        ("gpt2", 50_257, (), 50_256, {}),
        ("p50k", 50_281, (), 50_256, {}),
        ("llama3", 128_256, (128_000,), 128_001, {"<|end_header_id|>": 128_007, "<|eot_id|>": 128_009, "<|reserved_special_token_247|>": 128_255}),
        ("glm4", 151_343, (151_331, 151_333), 151_329, {"<|user|>": 151_336, "<|end_of_video|>": 151_342}),
        ("qwen", 151_851, (), 151_643, {"<|im_start|>": 151_644, "<|im_end|>": 151_645, "<|extra_204|>": 151_850}),
        ("o200k", 200_019, (), 199_999, {"<|endofprompt|>": 200_018}),
        ("whisper", 51_865, (), 50_257, {"<|startoftranscript|>": 50_258, "<|en|>": 50_259, "<|notimestamps|>": 50_363, "<|30.00|>": 51_864}),
    ],
)  # fmt: skip
def test_published_vocabularies_are_known_by_their_size(known, name, size, frame, eot, ids):
    tokenizer = known(name)
    assert (tokenizer.vocab_size, tokenizer.frame, tokenizer.eot) == (size, (frame, ()), eot)
    assert {token: tokenizer.token_id(token) for token in ids} == ids
    text = f"hello{next(iter(ids), END)}"
    assert tokenizer.encode_prompt(text).tolist() == [*frame, *tokenizer.encode("hello"), next(iter(ids.values()), eot)]
    assert tokenizer.decode(tokenizer.encode(MIXED)) in (MIXED, MIXED.replace("e\u0301", "é"))


def test_qwen_reads_text_in_nfc(known):
    qwen, llama = known("qwen"), known("llama3")
    assert qwen.encode("e\u0301").tolist() == qwen.encode("é").tolist()
    assert llama.encode("e\u0301").tolist() != llama.encode("é").tolist()
    assert len(qwen.encode("678")) == 3  # single digits
    assert len(llama.encode("678")) == 1


@pytest.mark.parametrize("name", ["p50k", "glm4"])  # ids with a gap, and two tokens before a text
@given(text=TEXTS)
def test_the_written_tokenizer_json_has_the_same_ids(known, written, name, text):
    assert written(name).encode(text).ids == known(name).encode_prompt(text).tolist()


def test_the_written_tokenizer_json_normalises_as_the_vocabulary_does(small, tmp_path):
    given = json.loads(small.content)["model"]
    qwen = parse(json.dumps({"model": {**given, "normalizer": "NFC"}}), "here")
    qwen.save_pretrained(tmp_path)
    theirs = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode("e\u0301").ids == qwen.encode("e\u0301").tolist() == small.encode("é").tolist()


def test_what_is_written_is_read_as_the_same_tokeniser(small, tmp_path):
    config = {**SMALL, "auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}, "tokenizer_class": "OwnTokenizer"}
    source = folder(tmp_path / "source", vocabulary_tiktoken=ranks(500), tokenizer_config_json=config)
    load(source).save_pretrained(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written == {**SMALL, "tokenizer_class": "PreTrainedTokenizerFast"}  # no code of its own any more
    again = load(tmp_path / "out")
    assert again.kind == "bpe"
    for name in ("vocab_size", "eot", "stop_ids", "frame", "special_tokens", "chat_template"):
        assert getattr(again, name) == getattr(small, name), name
    text = MIXED + f"<|user|>{END}<tool>"
    assert again.encode_prompt(text).tolist() == small.encode_prompt(text).tolist()
    assert again.decode(again.encode_prompt(text)) == small.decode(small.encode_prompt(text))


def test_tokens_that_no_merge_leads_to_and_placeholders_are_written_too(tmp_path):
    """The first are taken where a word is just them; Whisper's multilingual file ends with one of the second."""
    config = {"pat_str": GPT2_PATTERN, "added_tokens_decoder": {"502": added(END)}}
    lines = ranks(500) + base64.b64encode(b"zzqq") + b" 500\n= 501\n"
    made = load(folder(tmp_path, multilingual_tiktoken=lines, tokenizer_config_json=config))
    assert (made.vocab_size, made.eot) == (503, 502)
    assert made.encode("zzqq").tolist() == [500]
    assert made.decode([*made.encode("hello"), 501]) == "hello"
    made.save_pretrained(tmp_path / "out")
    for text in ("zzqq", "zzqqz", MIXED + END):
        assert load(tmp_path / "out").encode_prompt(text).tolist() == made.encode_prompt(text).tolist()


def test_a_run_directory_keeps_all_of_it_in_one_file(small, tmp_path):
    tokenizer = small.with_stop_ids([500, 502])
    tokenizer.save(tmp_path)
    again = load(tmp_path)
    assert again == tokenizer
    assert again.fingerprint == tokenizer.fingerprint
    for what in ("special_tokens", "stop_ids", "chat_template", "frame", "vocab_size", "eot", "settings"):
        assert getattr(again, what) == getattr(tokenizer, what), what
    assert again.encode_prompt(MIXED + END).tolist() == tokenizer.encode_prompt(MIXED + END).tolist()


LINES = ranks(500)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "one of the 256 bytes has none"),
        (LINES[:-4], "line 500 is"),
        (LINES[:900].rpartition(b"\n")[0], "one of the 256 bytes has none"),
        (LINES + b"AAA 600\n", "line 501 is 'AAA 600', expected a new token in base64"),
        (LINES + b"AA== 600\n", "line 501 is 'AA== 600', expected a new token"),
        (LINES + b"AAAAAAAA 3\n", "two tokens share a rank"),
        (LINES + b"AAAAAAAA -1\n", "line 501"),
        (LINES + b"AAAAAAAA 99999999\n", "its rank below"),
        (LINES + b"AAAAAAAA\n", "line 501"),
        (LINES + "世界 600\n".encode(), "line 501"),
        (LINES + b"\xff\n", "is not UTF-8 text: byte 0xff"),
        (LINES + b"\0\n", "is binary, not text"),
        (LINES.replace(b"IA== 32\n", b""), "one of the 256 bytes has none"),
        (b'{"model": {}}', "line 1 is"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, message):
    path = folder(tmp_path, vocabulary_tiktoken=content, tokenizer_config_json={"pat_str": CL100K_PATTERN})
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_an_unknown_vocabulary_needs_its_pattern(tmp_path):
    with pytest.raises(UserError, match=r"has 500 tokens.*qwen 151643.*pat_str"):
        load(folder(tmp_path, vocabulary_tiktoken=LINES))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pat_str": "("}, "the tiktoken library refuses it"),
        ({"pat_str": 3}, "the pattern that splits a text is missing"),
        (
            {"pat_str": ".", "added_tokens_decoder": {"3": added("<x>")}},
            "gives a special token the id of another token",
        ),
        ({"pat_str": ".", "add_bos_token": True, "bos_token": "<s>"}, "puts '<s>' around a text"),
    ],
)
def test_settings_that_make_no_sense_are_named(tmp_path, config, message):
    with pytest.raises(UserError, match=message):
        load(folder(tmp_path, vocabulary_tiktoken=LINES, tokenizer_config_json=config))


def test_a_damaged_run_file_is_refused(small):
    given = json.loads(small.content)["model"]
    for wrong in (
        {"ranks": 3},
        {"normalizer": "NFX"},
        {"special_tokens": []},
        {"special_tokens": {END: "x"}},
        {"before": ["x"]},
    ):
        with pytest.raises(UserError, match="here is a tokenizer.json with a damaged tiktoken file"):
            parse(json.dumps({"model": given | wrong}), "here")


def test_white_space_without_end_is_an_error_and_not_a_panic(small, capfd):
    with pytest.raises(UserError, match="too much white space in a row"):
        small.encode(" " * 1_100_000)
    capfd.readouterr()  # what the library says of it


@pytest.mark.parametrize("pattern", [GPT2_PATTERN, CL100K_PATTERN, O200K_PATTERN])
def test_patterns_leave_nothing_of_a_text_out(tmp_path, pattern):
    tokenizer = load(folder(tmp_path, vocabulary_tiktoken=LINES, tokenizer_config_json={"pat_str": pattern}))
    for text in (MIXED, "".join(map(chr, range(1, 0x3000, 7)))):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_halves_of_surrogates_and_unknown_ids(small):
    for encode in (small.encode, small.encode_prompt):
        with pytest.raises(UserError, match="not Unicode at character 1"):
            encode("a\ud800")
    assert small.decode([501]) == ""  # a row that no token has
    with pytest.raises(UserError, match="token id 504 is not in the vocabulary"):
        small.decode([504])
