"""Rows whose documents are rearranged to fill in the middle: nothing of them is lost but at a row's end."""

from dataclasses import replace

import numpy as np
import pytest
import small_tokenizers as small
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data import tokenizer as tokenizers
from research.data.fim import NAMES, FilledIn, Sentinels, sentinels_of
from research.data.loader import Batches
from research.data.packed import PackedBatches
from research.data.streams import TokenStream

S = Sentinels(1000, 1001, 1002)
END = 999  # the separator
lengths = st.lists(st.integers(1, 20), min_size=2, max_size=20).filter(lambda drawn: max(drawn) > 1)
seeds, steps, kinds = st.integers(-(2**65), 2**65), st.integers(0, 300), st.sampled_from([Batches, PackedBatches])


def stream_of(lengths) -> TokenStream:
    """Documents of these lengths and a separator behind each; tokens of a document are different."""
    ids = np.concatenate([[*range(10, 10 + n), END] for n in lengths])
    return TokenStream(ids, 0, np.cumsum([0, *(n + 1 for n in lengths[:-1])]), np.arange(len(lengths)))


def put_back(ids: list[int]) -> list[int]:
    """A document, without its separator, as it was before it was rearranged."""
    if S.prefix not in ids:
        return ids
    suffix, middle = ids.index(S.suffix), ids.index(S.middle)
    if suffix == 1:
        return ids[middle + 1 :] + ids[2:middle]
    return ids[1:suffix] + ids[middle + 1 :] + ids[suffix + 1 : middle]


def documents_of(tokens: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(tokens, np.flatnonzero(tokens == END) + 1) if len(part)]


@given(kinds, lengths, st.integers(2, 12), seeds, steps)
def test_at_rate_0_rows_are_what_they_were(kind, lengths, context, seed, step):
    text = kind(stream_of(lengths * 3), 5, context, seed)
    made, before = FilledIn(text, S, 0, seed, END)(step), text(step)
    assert made.keys() == before.keys()
    assert all(made[name].dtype == before[name].dtype and (made[name] == before[name]).all() for name in made)


@given(lengths, st.integers(4, 30), seeds, st.integers(0, 4), st.sampled_from([S, Sentinels(1000, 1001, 1002, 1003)]))
def test_packed_rows_with_room_lose_nothing(lengths, context, seed, epoch, sentinels):
    text = PackedBatches(stream_of(lengths), 4, context + 1, seed, room=sentinels.count)
    records = np.arange(epoch * text.bins, (epoch + 1) * text.bins)
    made, before = FilledIn(text, sentinels, 1, seed, END).read(records), text.read(records)
    for row in range(text.bins):
        for n in range(1, before["segments"][row].max() + 1):
            had, has = (batch["tokens"][row][batch["segments"][row] == n].tolist() for batch in (before, made))
            here = made["segments"][row] == n
            targets, weights = made["targets"][row][here].tolist(), made["weights"][row][here].tolist()
            goes_on = before["weights"][row][before["segments"][row] == n][-1]
            assert targets[:-1] == has[1:] and weights == [1] * (len(has) - 1) + [goes_on]
            if goes_on:
                had.append(before["targets"][row][before["segments"][row] == n][-1])
                has.append(targets[-1])
            rest = [had.pop()] if had[-1] == END else []
            changed = len(had) >= 3
            rest = [sentinels.end, *rest] if changed and sentinels.end else rest
            assert has[len(has) - len(rest) :] == rest and (S.prefix in has) == changed
            assert put_back(has[: len(has) - len(rest)]) == had
        assert not made["weights"][row][made["segments"][row] == 0].any()


@given(lengths, st.integers(3, 40), seeds, steps)
def test_windows_keep_their_length_and_lose_their_end_alone(lengths, context, seed, step):
    text = Batches(stream_of(lengths * 4 + [40]), 3, context, seed)
    made, before = FilledIn(text, S, 1, seed, END)(step), text(step)
    assert made["weights"].all() and (made["tokens"][:, 1:] == made["targets"][:, :-1]).all()
    for row in range(3):
        had = documents_of(np.append(before["tokens"][row], before["targets"][row, -1]))
        has = documents_of(np.append(made["tokens"][row], made["targets"][row, -1]))
        for a, b in list(zip(had, has, strict=False))[: len(has) - 1]:
            assert [*put_back(b[:-1]), END] == a
            assert (S.prefix in b) == (len(a) > 3)


def test_the_share_of_documents_is_the_rate_and_each_draws_for_itself():
    text = PackedBatches(stream_of([5] * 300), 100, 40, 0)
    filled = FilledIn(text, S, 0.3, 7, END)
    rows = np.concatenate([filled(step)["tokens"] for step in range(3)])
    documents = [one for row in rows for one in documents_of(row[row > 0])[:4]]
    changed = np.array([S.prefix in one for one in documents])
    assert abs(changed.mean() - 0.3) < 4 * (0.3 * 0.7 / len(changed)) ** 0.5
    counts = np.bincount(changed.reshape(-1, 4).sum(1), minlength=5) / (len(changed) / 4)
    assert (counts[:4] > 0.04).all()  # of a binomial distribution, the least of them is 0.0756
    other = FilledIn(text, S, 0.3, 8, END)(0)["tokens"]
    assert (other != filled(0)["tokens"]).any()


def test_what_is_not_learned_as_a_whole_stays():
    learned = np.array([1] * 7 + [0, 0, 1, 1, 1, 1, 1])
    text = PackedBatches(replace(stream_of([6, 6]), learned=learned), 1, 20, 0)
    made = FilledIn(text, S, 1, 3, END)(0)
    first, second = (made["segments"][0] == n for n in (1, 2))
    assert first.sum() == 10 and made["weights"][0][first].tolist() == [1] * 9 + [0]
    assert made["tokens"][0][second].tolist() == [10, 11, 12, 13, 14, 15, END]
    assert made["weights"][0][second].tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_without_a_separator_a_row_is_one_document():
    made = FilledIn(Batches(np.arange(10, 90), 2, 20, 0), S, 1, 3, None)(0)
    for row in made["tokens"].tolist():
        assert row.count(S.prefix) == 1 and row[0] == S.prefix


def test_fixed_rows():
    """A run continued after an update of the project must see the same data: these numbers are part of the format."""
    made = FilledIn(PackedBatches(stream_of([6, 9]), 1, 24, 0), S, 1, 3, END)
    first = [1000, 1002, 14, 15, 1001, 10, 11, 12, 13, END], [1000, 10, 11, 12, 13, 14, 15, 1002, 17, 18, 1001, 16, END]
    assert made(0)["tokens"].tolist() == [[*first[0], *first[1], 0]]
    fifth = [1000, 10, 11, 1002, 13, 14, 15, 1001, 12, END], [1000, 1002, 14, 15, 16, 17, 18, 1001, 10, 11, 12, 13, END]
    assert made(5)["tokens"].tolist() == [[*fifth[0], *fifth[1], 0]]


@pytest.mark.parametrize("names", NAMES)
def test_sentinels_go_by_the_usual_names(names, tmp_path):
    made = small.byte_level(special=("<|endoftext|>", *names))
    made.save(str(tmp_path / "tokenizer.json"))
    found = sentinels_of(tokenizers.load(tmp_path / "tokenizer.json"))
    ids = [made.token_to_id(name) for name in names]
    assert [found.prefix, found.middle, found.suffix] == ids[:3] and found.end == (ids[3] if len(ids) > 3 else None)


def test_a_tokeniser_without_sentinels_is_refused():
    with pytest.raises(UserError, match=r"'byte' has no sentinels.*Leave fim_rate out.*<\|fim_prefix\|>"):
        sentinels_of(tokenizers.build("byte", None))  # pyright: ignore[reportArgumentType]
