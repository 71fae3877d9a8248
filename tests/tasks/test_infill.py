"""Blank filling: what is hidden comes back once and in full, from a text that stays readable around it."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data.loader import Batches, EvalBatches
from research.model.blanks import BlankIds
from research.tasks import infill
from research.tasks.infill import Blanked, InfillConfig

IDS = BlankIds(1000)
SHORT, LONG = InfillConfig(short=1.0), InfillConfig(short=0.0)


def text_of(n: int) -> np.ndarray:
    """n different tokens, so that each is known wherever it goes."""
    return np.random.default_rng(n).permutation(1000)[:n].astype(np.int32)


def filled(row) -> tuple[list[int], list[list[int]]]:
    """`(the text with its blanks filled in, what each blank held, in the order of part B)`, read off a row as a person would."""
    prefix, scored = int(row["prefix"]), row["weights"] > 0
    inputs, targets = row["tokens"][scored].tolist(), row["targets"][scored].tolist()
    blanks, at = [], 0
    while at < len(inputs):
        end = targets.index(IDS.end, at)
        assert inputs[at] == IDS.start and inputs[at + 1 : end + 1] == targets[at:end], (
            "each input is the target before"
        )
        blanks.append((int(row["positions"][scored][at]), targets[at:end]))
        at = end + 1
    out = row["tokens"][:prefix].tolist()
    for where, held in sorted(blanks, reverse=True):  # from the right, so that places to the left keep their numbers
        mask = where if where < prefix else prefix - 1  # a long blank stands behind its mask, not at it
        assert out[mask] == (IDS.mask if where < prefix else IDS.long_mask)
        out[mask : mask + 1] = held
    assert not set(out) & {IDS.mask, IDS.long_mask}, "every mask has its blank"
    return out, [held for _, held in blanks]


configs = st.builds(
    InfillConfig, short=st.sampled_from([0.0, 0.5, 1.0]), hidden=st.floats(0.01, 0.5), mean_length=st.floats(0.1, 20)
)


@given(st.integers(1, 80), st.integers(infill.SHORTEST_ROW, 70), configs, st.integers(0, 2**32 - 1))
def test_part_a_with_its_blanks_filled_from_part_b_is_the_text(n, T, config, seed):
    text = text_of(n)
    row = infill.blanked_row(text, T, IDS, config, (seed, 7))
    assert {name: x.shape for name, x in row.items()} == {
        "tokens": (T,), "targets": (T,), "positions": (T,), "weights": (T,), "prefix": (),
    }  # fmt: skip
    found, blanks = filled(row)
    assert found == text[: len(found)].tolist() and all(blanks), "nothing lost, doubled or moved; no blank is empty"
    scored, prefix = row["weights"] > 0, int(row["prefix"])
    end = prefix + sum(len(held) + 1 for held in blanks)
    np.testing.assert_array_equal(scored, (np.arange(T) >= prefix) & (np.arange(T) < end))
    assert not row["targets"][~scored].any() and not row["tokens"][end:].any()
    assert len(found) == min(n, T - 2 * len(blanks)) and (end == T or len(found) == n), "as much text as has room"


@given(st.integers(3, 80), st.integers(8, 70), configs, st.integers(0, 2**32 - 1))
def test_short_blanks_share_their_mask_s_position_and_a_long_one_runs_on(n, T, config, seed):
    row = infill.blanked_row(text_of(n), T, IDS, config, (seed, 0))
    prefix, scored = int(row["prefix"]), row["weights"] > 0
    part_a, positions = row["tokens"][:prefix], row["positions"]
    np.testing.assert_array_equal(positions[:prefix], np.arange(prefix))
    if IDS.long_mask in part_a:
        assert part_a[-1] == IDS.long_mask and IDS.mask not in part_a
        np.testing.assert_array_equal(positions[scored], prefix + np.arange(scored.sum()))
        return
    masks = np.flatnonzero(part_a == IDS.mask)
    starts = np.flatnonzero(row["tokens"][scored] == IDS.start)
    blanks = np.split(positions[scored], starts[1:])
    assert all(len(set(one)) == 1 for one in blanks) and sorted(one[0] for one in blanks) == masks.tolist()
    assert (np.diff(masks) > 1).all(), "no two blanks touch"


@given(st.integers(0, 2**32 - 1), st.integers(10, 500), st.floats(0.05, 0.5), st.floats(0.5, 10))
def test_short_blanks_hide_their_share(seed, T, hidden, mean):
    row = infill.blanked_row(text_of(T + 1), T, IDS, InfillConfig(1.0, hidden, mean), (seed,))
    text, blanks = filled(row)
    assert abs(sum(map(len, blanks)) - hidden * len(text)) <= 1.5


def test_lengths_places_and_order_are_drawn_as_published():
    """Over many rows: Poisson's lengths without 0, every place alike, both orders alike; long blanks uniform from 1 to all."""
    rows = [infill.blanked_row(text_of(201), 200, IDS, SHORT, (3, i)) for i in range(400)]
    found = [filled(row) for row in rows]
    lengths = np.concatenate([[len(held) for held in blanks[:-1]] for _, blanks in found])  # the last is cut to fit
    for k in range(1, 7):
        p = math.exp(-3) * 3**k / math.factorial(k) / (1 - math.exp(-3))
        assert abs((lengths == k).mean() - p) < 4 * math.sqrt(p / len(lengths)), k
    hidden = np.zeros(200)
    for text, blanks in found:
        hidden[: len(text)] += np.isin(text, np.concatenate(blanks))
    thirds = hidden[:162].reshape(3, -1).mean(axis=1) / len(rows)
    np.testing.assert_allclose(thirds, 0.15, atol=0.01)
    firsts = [text.index(blanks[0][0]) < text.index(blanks[1][0]) for text, blanks in found]
    assert 0.4 < np.mean(firsts) < 0.6
    long = [infill.blanked_row(text_of(21), 12, IDS, LONG, (5, i)) for i in range(2000)]
    counts = np.bincount([int(row["weights"].sum()) - 1 for row in long], minlength=11)
    assert counts[0] == 0 and (np.abs(counts[1:] - 200) < 60).all(), "10 tokens of text, each number as often"


def test_three_rows_in_ten_have_short_blanks():
    batches = Blanked(Batches(text_of(900), 500, 30, 0), IDS)
    short = (batches(0)["tokens"] == IDS.mask).any(axis=1)
    assert 0.24 < short.mean() < 0.36
    assert ((batches(0)["tokens"] == IDS.long_mask).any(axis=1) == ~short).all()


def test_a_batch_is_a_function_of_seed_step_and_row():
    batches = Blanked(Batches(text_of(300), 6, 20, 1), IDS, seed=1)
    again, other = dataclasses.replace(batches), dataclasses.replace(batches, seed=2)
    for name, x in batches(5).items():
        np.testing.assert_array_equal(x, again(5)[name])
        parts = [batches.rows(i, 3)(5)[name] for i in range(3)]
        np.testing.assert_array_equal(x, np.concatenate(parts), err_msg="each process makes its own rows")
    assert (batches(5)["prefix"] != other(5)["prefix"]).any() and (batches(5)["prefix"] != batches(6)["prefix"]).any()


def test_evaluation_hides_the_same_in_every_text_once_and_fills_up_with_nothing():
    text = text_of(103)
    held_out = Blanked(EvalBatches(text, 4, 20), IDS)
    assert len(held_out) == 2 and len(list(held_out)) == 2
    rows = [{name: x[i] for name, x in batch.items()} for batch in held_out for i in range(4)]
    for k, row in enumerate(rows[:6]):
        found, _ = filled(row)
        np.testing.assert_array_equal(found, text[20 * k :][: len(found)])
    assert len(filled(rows[5])[0]) == 3, "the end of the text"
    assert not any(row["weights"].any() or row["tokens"].any() for row in rows[6:])


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"short": 1.5}, "short"),
        ({"hidden": 0.0}, "hidden"),
        ({"hidden": 0.6}, "hidden"),
        ({"mean_length": 0.0}, "mean_length"),
    ],
)
def test_impossible_blanks_are_refused(values, field):
    with pytest.raises(UserError, match=f"task.infill.{field}"):
        InfillConfig(**values)


def test_rows_too_short_for_a_blank_are_refused():
    with pytest.raises(UserError, match="sequence_length at least 3"):
        Blanked(Batches(text_of(30), 2, 2, 0), IDS)
