"""Examples in memory: parts, names, batches and evaluation rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data import examples
from research.data.examples import ExampleBatches, ExampleRows, Examples, open_source, source, split, take


def arrays(n: int) -> dict[str, np.ndarray]:
    return {"x": np.arange(n), "y": np.arange(2 * n, dtype=np.float32).reshape(n, 2)}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 9), st.integers(0, 2**32), st.integers(0, 40))
def test_every_epoch_has_every_example_once(n, batch_size, seed, first):
    batches = ExampleBatches(arrays(n), batch_size, 1, seed)
    steps = -(-2 * n // batch_size)
    seen = np.concatenate([batches(step)["x"] for step in range(steps)])
    assert sorted(seen[:n]) == sorted(seen[n : 2 * n]) == list(range(n))
    again = batches(first)
    np.testing.assert_array_equal(again["x"], batches(first)["x"])
    np.testing.assert_array_equal(again["y"][:, 0], 2 * again["x"])
    np.testing.assert_array_equal(again["weights"], np.ones(batch_size, np.float32))


def test_processes_share_a_batch():
    whole = ExampleBatches(arrays(10), 6, 1, 0)
    parts = [whole.rows(i, 3)(4)["x"] for i in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), whole(4)["x"])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 3))
def test_evaluation_has_every_example_once_and_fills_up_with_weight_0(n, batch_size, parts):
    rows = ExampleRows(arrays(n), batch_size * parts, 1)
    found = [rows.rows(i, parts)(b) for b in range(len(rows)) for i in range(parts)]
    weights, x = (np.concatenate([batch[name] for batch in found]) for name in ("weights", "x"))
    np.testing.assert_array_equal(x[weights == 1], np.arange(n))
    assert (x[weights == 0] == 0).all() and weights.sum() == n


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.floats(0.05, 0.9), st.integers(0, 99))
def test_a_split_leaves_out_nothing(n, share, seed):
    train, held_out = split(arrays(n), share, seed)
    both = np.concatenate([train["x"], held_out["x"]])
    assert sorted(both) == list(range(n)) and len(held_out["x"]) == max(1, round(n * share))
    np.testing.assert_array_equal(split(arrays(n), share, seed)[1]["x"], held_out["x"])


def test_a_fingerprint_follows_content_names_and_classes():
    one = Examples(arrays(3), arrays(2))
    assert one.source_fingerprint == Examples(arrays(3), arrays(2)).source_fingerprint
    renamed = {"x": arrays(3)["x"], "z": arrays(3)["y"]}
    others = [
        Examples(arrays(3), arrays(1)),
        Examples(arrays(3), arrays(2), classes=("a",)),
        Examples(renamed, {"x": arrays(2)["x"], "z": arrays(2)["y"]}),
        Examples({**arrays(3), "x": np.arange(1, 4)}, arrays(2)),
    ]
    assert len({one.source_fingerprint, *(other.source_fingerprint for other in others)}) == 5


def test_sources_have_names(monkeypatch):
    monkeypatch.setattr(examples, "_SOURCES", {})
    source("numbers")(lambda rest: Examples(arrays(int(rest or 3)), arrays(1)))
    assert len(open_source("numbers:5").train["x"]) == 5 and open_source("numbers:5").name == "numbers:5"
    assert "3 examples" in open_source("numbers").described
    with pytest.raises(UserError, match="did you mean numbers"):
        open_source("number")


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ({"x": np.arange(2), "y": np.arange(3)}, arrays(2)),
        (arrays(0), arrays(2)),
        ({}, {}),
        (arrays(2), take({"x": np.arange(3)}, [0])),
    ],
)
def test_parts_that_do_not_go_together_are_refused(train, held_out):
    with pytest.raises(UserError, match="expected"):
        Examples(train, held_out)
