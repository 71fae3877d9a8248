"""Loss masks of documents: of a text made of fields, those are learned that `learn` names."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_commands import write_lines
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data import mixed, sources, streams
from research.data.loader import Batches, EvalBatches
from research.data.packed import PackedBatches, PackedEvalBatches
from research.data.sources import Source
from research.data.streams import Damaged, TokenStream
from research.data.tokens import prepare

TEXT, END = "Q: {question}\nA: {answer}", 256
rows_of = st.lists(st.tuples(st.text("ab{}é ", max_size=5), st.text("xyz", max_size=5)), min_size=3, max_size=12)


class InMemory:
    """A table of records."""

    fields = ("question", "answer")

    def __init__(self, records):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def record(self, i: int) -> dict[str, str]:
        return dict(zip(self.fields, self.records[i], strict=True))

    def identity(self, i: int) -> str:
        return str(self.records[i])

    def digest(self) -> tuple[str, int]:
        return str(self.records), 100


def questions(path: Path, count: int = 300) -> str:
    return write_lines(path, ({"question": f"{n} + 1?", "answer": f"{n + 1}." * (n % 3)} for n in range(count)))


@given(rows_of, st.sampled_from([TEXT, "{answer}{question}", "{question}{answer}{question}"]), st.booleans())
def test_the_parts_of_a_text_are_the_text_and_the_learned_ones_what_is_named(records, template, by_position):
    tables = (
        {"all": InMemory(records)} if by_position else {"train": InMemory(records), "validation": InMemory(records)}
    )
    source = Source("memory", tables, template, ("answer",))
    made = [template.replace("{question}", "\0").replace("{answer}", x).replace("\0", q) for q, x in records]
    if len("".join(made)) < 2:  # too few characters to hold any out
        return
    rows = [row for unit in source.units for row in source.rows(unit)]
    assert "".join(row.text for row in rows) == "".join(made) * (1 if by_position else 2)
    assert all(row.text for row in rows)
    told = "".join(row.text for row in rows if row.learned and row.split == "validation" or by_position and row.learned)
    assert told == "".join(answer for _, answer in records)
    for split in ("train", "validation"):
        own = [row for row in rows if row.split == split]
        firsts = [a.record != b.record for a, b in zip(own, own[1:], strict=False)]
        assert [row.begins for row in own[1:]] == firsts and (not own or own[0].begins)
        assert [row.ends for row in own[:-1]] == firsts


def learned_text(stream: TokenStream) -> list[str]:
    """What is learned of each document, under the byte tokeniser; the separator as a bar."""
    ids, mask = np.asarray(stream.tokens), np.asarray(stream.learned)
    bounds = [*stream.begins.tolist(), len(ids)]
    kept = [ids[a:b][mask[a:b] == 1] for a, b in zip(bounds, bounds[1:], strict=False)]
    return ["".join("|" if i == END else chr(i) for i in one) for one in kept]


def test_an_answer_and_the_separator_behind_it_are_learned(tmp_path):
    corpus = prepare(questions(tmp_path / "q.jsonl"), "byte", text_field=TEXT, learn="answer", cache_dir=tmp_path / "c")
    assert len(list(corpus.folder.glob("*.learned"))) == 3  # of every split
    for stream in (corpus.train, corpus.eval, corpus.test):
        records = stream.records.tolist()
        ends = ["|" if n % 3 and n != 299 else "" for n in records]
        assert learned_text(stream) == [f"{n + 1}." * (n % 3) + end for n, end in zip(records, ends, strict=True)]
    whole = prepare(questions(tmp_path / "q.jsonl"), "byte", text_field=TEXT, cache_dir=tmp_path / "c")
    assert whole.train.learned is None and not list(whole.folder.glob("*.learned"))
    assert whole.source_fingerprint != corpus.source_fingerprint
    np.testing.assert_array_equal(whole.train.tokens, corpus.train.tokens)
    all_named = prepare(questions(tmp_path / "q.jsonl"), "byte", text_field="{question}{answer}",
                        learn="question, answer", cache_dir=tmp_path / "c")  # fmt: skip
    assert all_named.train.learned is None


@pytest.fixture
def stream() -> TokenStream:
    """Three shards of documents of 7 tokens, of which the middle shard is learned as a whole and of the others every third token."""

    def part(first: int, masked: bool) -> TokenStream:
        ids = np.arange(first, first + 35, dtype=np.uint16)
        return TokenStream(
            ids, 35, np.arange(0, 35, 7), np.arange(5), (ids % 3 == 0).astype(np.uint8) if masked else None
        )

    return streams.join([part(0, True), part(35, False), part(70, True)])


def expected(targets: np.ndarray) -> np.ndarray:
    return ((targets % 3 == 0) | ((targets >= 35) & (targets < 70))).astype(np.float32)


def test_a_window_weighs_its_targets(stream):
    seen = set()
    for step in range(30):
        batch = Batches(stream, 4, 8, 0)(step)
        np.testing.assert_array_equal(batch["weights"], expected(batch["targets"]))
        seen |= set(batch["targets"].ravel().tolist())
    assert len(seen) > 95
    held_out = list(EvalBatches(stream, 4, 8))
    targets, weights = (np.concatenate([one[name].ravel() for one in held_out]) for name in ("targets", "weights"))
    np.testing.assert_array_equal(targets[:104], np.arange(1, 105))
    np.testing.assert_array_equal(weights, np.where(targets > 0, expected(targets), 0))


def test_packed_documents_weigh_their_targets(stream):
    for one in (PackedBatches(stream, 2, 16, 0)(0), *PackedEvalBatches(stream, 3, 10)):
        has_target = one["targets"] > 0
        np.testing.assert_array_equal(one["weights"], np.where(has_target, expected(one["targets"]), 0))


def test_what_is_damaged_is_named_or_skipped(tmp_path):
    spec = questions(tmp_path / "q.jsonl")
    stream = prepare(spec, "byte", text_field=TEXT, learn="answer", cache_dir=tmp_path / "c").train
    (path,) = (tmp_path / "c" / "tokens").glob("*/train-00000.learned")
    path.write_bytes(bytes([1 - path.read_bytes()[0]]) + path.read_bytes()[1:])
    with pytest.raises(Damaged, match=r"train-00000.learned is damaged between the byte offsets 0"):
        Batches(stream, 2, 16, 0)(0)
    with pytest.raises(Damaged, match="train-00000.learned"):
        PackedBatches(stream, 2, 32, 0)(0)
    assert not Batches(stream, 2, 16, 0, damaged="skip")(0)["weights"].any()
    assert not PackedBatches(stream, 2, 32, 0, damaged="skip")(0)["weights"].any()
    again = prepare(
        spec, "byte", text_field=TEXT, learn="answer", cache_dir=tmp_path / "c"
    ).train  # found out, made anew
    assert Batches(again, 2, 16, 0)(0)["weights"].any()


def test_of_a_mixture_each_source_has_its_own(tmp_path):
    asked = questions(tmp_path / "q.jsonl")
    (tmp_path / "plain.txt").write_text("0123456789" * 50)
    described = {"sources": [{"data": asked, "weight": 1, "text_field": TEXT, "learn": "answer"},
                             {"data": f"text:{tmp_path}/plain.txt", "weight": 1}, {"data": asked, "weight": 1}]}  # fmt: skip
    (tmp_path / "mix.json").write_text(json.dumps(described))
    corpus = mixed.prepare(f"mix:{tmp_path}/mix.json", "byte", text_field="answer", cache_dir=tmp_path / "c")
    assert [part.train.learned is None for part in corpus.parts] == [False, True, True]
    first = len(corpus.parts[0].train)
    np.testing.assert_array_equal(corpus.train.learned[:first], corpus.parts[0].train.learned)
    assert np.asarray(corpus.train.learned[first:]).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learn": "answer"}, "--learn names 'answer', but --text-field names one field, 'text'"),
        ({"text_field": "question", "learn": "question"}, "names one field, 'question'"),
        ({"text_field": TEXT, "learn": "answers"}, "--learn names 'answers', but --text-field makes the text of question, answer"),
        ({"text_field": TEXT, "learn": "answer,"}, "--learn names ''"),
        ({"text_field": TEXT, "learn": "answer", "clean": "plain"}, "--clean changes a text as a whole"),
    ],
)  # fmt: skip
def test_refuses(tmp_path, options, said):
    spec = write_lines(tmp_path / "q.jsonl", ({"text": "t", "question": f"{n}", "answer": "a"} for n in range(40)))
    with pytest.raises(UserError, match=said):
        prepare(spec, "byte", cache_dir=tmp_path / "c", **options)
    assert not (tmp_path / "c" / "tokens").exists()


def test_a_part_in_which_nothing_is_learned_is_refused(tmp_path):
    spec = write_lines(tmp_path / "q.jsonl", ({"question": f"{n}", "answer": ""} for n in range(200)))
    with pytest.raises(
        UserError, match="nothing is learned in the part 'train': the fields that --learn names are empty"
    ):
        prepare(spec, "byte", text_field=TEXT, learn="answer", cache_dir=tmp_path / "c")
    assert not list((tmp_path / "c" / "tokens").iterdir())


def test_without_fields_in_braces_nothing_is_asked():
    with pytest.raises(UserError, match="Give both, as in"):
        sources.resolve("python_stdlib", learn="text")


def test_a_stream_whose_mask_is_all_ones_gives_the_batches_of_one_without(stream):
    ones = replace(stream, learned=np.ones(len(stream), np.uint8))
    plain = replace(stream, learned=None)
    for kind in (Batches, PackedBatches):
        for name, array in kind(ones, 2, 9, 1)(5).items():
            np.testing.assert_array_equal(array, kind(plain, 2, 9, 1)(5)[name])
