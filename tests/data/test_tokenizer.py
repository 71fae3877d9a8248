"""Tokenisers: exact both ways, equal to the library, readable from their one file, and clear about bad input."""

import itertools
import json

import in_memory
import numpy as np
import pytest
import tokenizers as library
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data import bpe
from research.data.sources import Source
from research.data.tokenizer import Tokenizer, build, load, parse

TEXT = "def naïve(x):\n    return x + 1  # ☃ 𝄞 e\u0301\r\n\n\tprint('Grüße, 世界!')\n" * 30
ALPHABET = st.text(alphabet=sorted(set(TEXT)), max_size=60)


def source_of(*texts: str, size: int | None = None) -> Source:
    return in_memory.source(*texts, identities=("",) * len(texts), size=size)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Tokenizer]:
    cache = tmp_path_factory.mktemp("cache")
    return {spec: build(spec, source_of(TEXT), cache_dir=cache) for spec in ("byte", "char", "bpe:300")}


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> dict[str, Tokenizer]:
    """Tokenisers such as those of published models: not byte-level, with normalisers, with other separators."""
    folder = tmp_path_factory.mktemp("others")
    words = library.Tokenizer(library.models.WordPiece(unk_token="[UNK]"))
    words.normalizer = library.normalizers.BertNormalizer()
    words.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    words.decoder = library.decoders.WordPiece()
    words.enable_padding(length=99)
    words.enable_truncation(3)
    special = ["[UNK]", "[SEP]"]
    words.train_from_iterator(
        [TEXT], library.trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    pieces = {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    pieces |= {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 259, "a": 260, "b": 261, "▁a": 262}
    llama = library.Tokenizer(
        library.models.BPE(vocab=pieces, merges=[("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    steps = library.decoders
    llama.normalizer = library.normalizers.Sequence(
        [library.normalizers.Prepend("▁"), library.normalizers.Replace(" ", "▁")]
    )
    llama.decoder = steps.Sequence(
        [steps.Replace("▁", " "), steps.ByteFallback(), steps.Fuse(), steps.Strip(" ", 1, 0)]
    )
    llama.add_special_tokens(["<unk>", "<s>", "</s>"])
    result = {}
    for name, tokenizer in {"wordpiece": words, "llama": llama}.items():
        (folder / name).mkdir()
        tokenizer.save(str(folder / name / "tokenizer.json"))
        result[name] = build(str(folder / name), source_of(TEXT))
    return result


@pytest.fixture(scope="module")
def blanks() -> Tokenizer:
    """A BPE with many tokens of white space alone."""
    return parse(bpe.train(source_of("a \n \n\n\n b\t\n\t \n  \n1 \n\n\t'\n \t\n" * 50), 300), "trained here")


@given(st.text())
def test_byte_is_utf8(text):
    byte = build("byte", source_of(TEXT))
    assert byte.encode(text).tolist() == list(text.encode())
    assert byte.decode(byte.encode(text)) == text
    assert byte.decode_bytes([*byte.encode(text), byte.eot]) == text.encode()


@given(st.text(max_size=80))
def test_bpe_is_lossless_on_any_text(made, text):
    ids = made["bpe:300"].encode(text)
    assert made["bpe:300"].decode(ids) == text
    assert made["bpe:300"].decode_bytes(ids) == text.encode()


@given(ALPHABET)
def test_char_is_lossless_and_one_id_a_character(made, text):
    ids = made["char"].encode(text)
    assert len(ids) == len(text)
    assert made["char"].decode(ids) == text
    assert made["char"].decode_bytes(ids) == text.encode()


@pytest.mark.parametrize("spec", ["byte", "char", "bpe:300"])
@given(text=ALPHABET)
def test_the_library_reads_our_files_to_the_same_ids(made, spec, text):
    theirs = library.Tokenizer.from_str(made[spec].content)
    ids = made[spec].encode(text)
    assert theirs.encode(text).ids == ids.tolist()
    assert theirs.decode(ids.tolist()) == made[spec].decode(ids)
    assert theirs.get_vocab_size() == made[spec].vocab_size


@given(st.lists(st.integers(0, 256), max_size=12))
def test_bytes_that_are_not_utf8_are_replaced_as_the_library_does(made, ids):
    theirs = library.Tokenizer.from_str(made["byte"].content)
    assert made["byte"].decode(ids) == theirs.decode(ids)


def test_vocabularies(made, others):
    assert (made["byte"].kind, made["byte"].vocab_size, made["byte"].eot) == ("byte", 257, 256)
    assert (made["char"].kind, made["char"].vocab_size, made["char"].eot) == ("char", len(set(TEXT)), None)
    assert made["char"].decode(range(made["char"].vocab_size)) == "".join(sorted(set(TEXT)))
    assert (made["bpe:300"].kind, made["bpe:300"].vocab_size) == ("bpe", 300)
    assert library.Tokenizer.from_str(made["bpe:300"].content).id_to_token(made["bpe:300"].eot) == "<|endoftext|>"
    assert others["wordpiece"].eot == 1
    assert others["llama"].eot == 2
    assert all(tokenizer.encode(TEXT).max() < tokenizer.vocab_size for tokenizer in (*made.values(), *others.values()))


def test_characters_are_those_of_both_parts(tmp_path):
    built = build("char", source_of("a" * 99 + "z"), cache_dir=tmp_path)
    assert built.decode(built.encode("az")) == "az"


def test_separator_in_a_text_is_text(made):
    text = "one<|endoftext|>two"
    ids = made["bpe:300"].encode(text)
    assert made["bpe:300"].eot not in ids.tolist()
    assert made["bpe:300"].decode(ids) == text
    assert made["bpe:300"].decode([*ids, made["bpe:300"].eot]) == text


@pytest.mark.parametrize("spec", ["byte", "char", "bpe:300"])
def test_saved_and_loaded_is_the_same(made, tmp_path, spec):
    made[spec].save(tmp_path)
    made[spec].save(tmp_path / "named.json")
    for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path / "named.json")):
        again = load(path)
        assert again == made[spec]
        assert (type(again), again.kind, again.eot) == (type(made[spec]), made[spec].kind, made[spec].eot)
        assert again.fingerprint == made[spec].fingerprint
        assert again.encode(TEXT).tolist() == made[spec].encode(TEXT).tolist()
    assert len({tokenizer.fingerprint for tokenizer in made.values()}) == 3


@pytest.mark.parametrize("name", ["wordpiece", "llama"])
def test_other_files_give_the_librarys_ids_and_text(others, tmp_path, name):
    theirs = library.Tokenizer.from_str(others[name].content)
    theirs.no_padding()
    theirs.no_truncation()
    ids = others[name].encode("a b naïve ab\n")
    assert ids.tolist() == theirs.encode("a b naïve ab\n", add_special_tokens=False).ids
    assert len(ids) > 3
    assert others[name].decode(ids) == theirs.decode(ids.tolist())
    assert others[name].decode_bytes(ids) == theirs.decode(ids.tolist()).encode()
    others[name].save(tmp_path)
    assert load(tmp_path) == others[name]


def test_a_byte_level_file_with_added_tokens_decodes_as_the_library_does(made, tmp_path):
    theirs = library.Tokenizer.from_str(made["bpe:300"].content)
    theirs.add_tokens(["    ", "return x", "世界"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = load(tmp_path)
    ids = ours.encode(TEXT)
    assert ids.tolist() == theirs.encode(TEXT).ids
    assert ids.max() >= 300
    assert ours.decode(ids) == theirs.decode(ids.tolist()) == TEXT


@given(st.text(max_size=40), st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(0, 8))
def test_streams_of_bytes_join_to_the_whole_and_hold_back_parts_of_characters(made, text, sizes, shown):
    for spec in ("byte", "bpe:300"):
        ids = made[spec].encode(text)
        stream = made[spec].stream(ids[:shown])
        before = made[spec].stream()
        joined = before.push(ids[:shown])
        at = shown
        for size in itertools.cycle(sizes):
            if at >= len(ids):
                break
            piece = stream.push(ids[at : at + size])
            assert "\ufffd" not in piece or "\ufffd" in text
            joined += piece
            at += size
        assert joined + stream.finish() == text


def test_streams_show_what_never_became_a_character(made):
    stream = made["byte"].stream()
    assert stream.push([0xC3]) == ""
    assert stream.push([0xA9]) == "é"
    assert stream.push([0xE4, 0xB8]) == ""
    assert stream.finish() == "\ufffd"


@given(st.text(alphabet="ab é世", max_size=15), st.lists(st.integers(1, 4), min_size=1, max_size=8))
def test_streams_of_pieces_keep_the_spaces_between(others, text, sizes):
    ids = others["llama"].encode("a" + text)
    stream, joined, at = others["llama"].stream(ids[:1]), others["llama"].decode(ids[:1]), 1
    for size in itertools.cycle(sizes):
        if at >= len(ids):
            break
        joined += stream.push(ids[at : at + size])
        at += size
    assert joined + stream.finish() == "a" + text


def test_streams_cost_the_same_however_long_the_text(others):
    stream = others["llama"].stream()
    ids = others["llama"].encode("a b" * 400)
    joined = "".join(stream.push(ids[at : at + 3]) for at in range(0, len(ids), 3)) + stream.finish()
    assert joined == "a b" * 400
    assert len(stream._ids) <= bpe.TextStream._CONTEXT


@given(st.text(alphabet="ab' 1\n\t☃", max_size=200), st.integers(1, 20))
def test_cuts_change_no_token(blanks, text, size):
    pieces = list(bpe.cut_at_lines(text, size))
    assert "".join(pieces) == text
    ids = [token for piece in pieces for token in blanks.encode(piece).tolist()]
    assert ids == blanks.encode(text).tolist()


def test_long_texts_are_cut_only_where_that_is_exact(made, others, monkeypatch):
    monkeypatch.setattr(bpe, "_PIECE", 50)
    assert len(list(made["bpe:300"].pieces(TEXT))) > 10
    assert len(list(others["llama"].pieces(TEXT))) == 1
    assert len(list(made["bpe:300"].pieces("no line end " * 100))) == 1


def test_training_is_deterministic_and_stops_where_no_pair_repeats(tmp_path):
    first = bpe.train(source_of(TEXT), 300)
    assert bpe.train(source_of(TEXT), 300) == first
    assert build("bpe:5000", source_of("abcab"), cache_dir=tmp_path).vocab_size < 300


def test_training_sees_only_the_part_to_train_on(tmp_path):
    source = source_of("abc " * 900 + "xyz " * 100)
    vocabulary = json.loads(build("bpe:280", source, cache_dir=tmp_path).content)["model"]["vocab"]
    assert any("abc" in token for token in vocabulary)
    assert not any("xy" in token for token in vocabulary)


def test_training_samples_a_large_source_evenly(monkeypatch):
    monkeypatch.setattr(bpe, "_PIECE", 10)
    text = "".join(f"line {number}\n" for number in range(4000))
    sample = list(bpe._sample(source_of(text), 5000))
    assert 3500 < sum(map(len, sample)) < 6500
    numbers = [int(part) for piece in sample for part in piece.split() if part.isdigit()]
    assert numbers == sorted(numbers)
    assert max(b - a for a, b in itertools.pairwise(numbers)) < 400
    assert list(bpe._sample(source_of(text), 10**6)) == list(bpe.cut_at_lines(text[: int(0.9 * len(text))], 10))


def test_trained_tokenisers_are_kept_by_content_and_made_again_if_damaged(tmp_path, monkeypatch):
    calls = []
    train = bpe.train
    monkeypatch.setattr(bpe, "train", lambda *arguments: calls.append(1) or train(*arguments))
    first = build("bpe:290", source_of(TEXT), cache_dir=tmp_path)
    assert build("bpe:0290", source_of(TEXT), cache_dir=tmp_path) == first
    assert len(calls) == 1
    build("bpe:290", source_of(TEXT + "more"), cache_dir=tmp_path)
    build("bpe:291", source_of(TEXT), cache_dir=tmp_path)
    assert len(calls) == 3
    for path in tmp_path.glob("tokenizers/*/tokenizer.json"):
        path.write_text(path.read_text(encoding="utf-8").replace('"a"', '"A"'), encoding="utf-8")
    assert build("bpe:290", source_of(TEXT), cache_dir=tmp_path) == first
    assert len(calls) == 4


@pytest.mark.parametrize(
    "spec",
    ["bpe", "bpe:", "bpe:x", "bpe:256", "bpe:-5", "bpe:1e3", "bpe:99999999999", "gpt2", "", "nowhere/tokenizer.json"],
)
def test_unknown_forms(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="bpe:N"):
        build(spec, source_of(TEXT), cache_dir=tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"model": 3}',
        b'{"model": {"vocab": {}}}',
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}',
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 4294967296}, "merges": []}}',
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}',
        b"\xff\xfe{",
        b"[" * 100_000,
    ],
)
def test_corrupt_files_are_named(content, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json is") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*tokenizer\.json"):
        load(tmp_path)


def test_a_character_file_of_another_order_is_the_librarys(made, tmp_path):
    description = json.loads(made["char"].content)
    vocabulary = description["model"]["vocab"]
    description["model"]["vocab"] = {
        character: len(vocabulary) - 1 - number for character, number in vocabulary.items()
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    ours = load(tmp_path)
    assert type(ours) is bpe.LibraryTokenizer
    assert ours.decode(ours.encode("naïve")) == "naïve"
    assert np.array_equal(ours.encode("naïve"), len(vocabulary) - 1 - made["char"].encode("naïve").astype(np.int64))
    with pytest.raises(UserError, match="cannot express"):
        ours.encode("Ω")


def test_unknown_characters_are_named(made):
    for text, message in [("naïve Ω", r"'Ω' \(U\+03A9, at character 6"), ("\U0010ffff", r"U\+10FFFF, at character 0")]:
        with pytest.raises(UserError, match=message):
            made["char"].encode(text)


@pytest.mark.parametrize("spec", ["byte", "char", "bpe:300"])
def test_halves_of_surrogates_and_unknown_ids(made, spec):
    with pytest.raises(UserError, match="not Unicode at character 1"):
        made[spec].encode("a\ud800")
    for wrong in (-1, made[spec].vocab_size):
        with pytest.raises(UserError, match=f"token id {wrong} is not in the vocabulary"):
            made[spec].decode([0, wrong])


@pytest.mark.parametrize("spec", ["byte", "char", "bpe:300"])
def test_empty_text(made, spec):
    assert made[spec].encode("").tolist() == []
    assert made[spec].decode([]) == made[spec].decode_bytes(np.array([], np.int32)).decode() == ""
    assert list(made[spec].pieces("")) == []


def test_saving_where_it_cannot_be(made, tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        made["byte"].save(tmp_path / "missing" / "tokenizer.json")
