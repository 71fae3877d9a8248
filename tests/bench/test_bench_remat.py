"""The benchmark of recomputation at a tiny shape: every policy is measured, and memory falls where it should."""

import json

import pytest

from research.bench import remat, rows
from research.core.errors import UserError
from research.scale import search


def test_every_policy_is_measured_beside_none(capsys):
    assert remat.main(["--shape", "4x32x2x64x4x64", "--rounds", "2", "--json"]) == 0
    *said, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)["rows"]
    assert tuple(row["remat"] for row in found) == search.POLICIES and len(said) == 3 + len(found)
    by_name = {row["remat"]: row for row in found}
    assert by_name["none"]["of_memory"] == by_name["none"]["of_time"] == 1
    assert by_name["full"]["peak_bytes"] < by_name["matmuls"]["peak_bytes"] < by_name["none"]["peak_bytes"]
    assert all(row["seconds"] > 0 and len(row["rounds"]) == 2 for row in found)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rounds", "0"], "--rounds is 0"),
        (["--shape", "gpt2-largest-batch"], "has no batch"),
        (["--shape", "smal"], "did you mean small"),
    ],
)
def test_bad_input_is_refused(words, said):
    with pytest.raises(UserError, match=said):
        remat.main(words)


def test_a_row_stands_beside_what_was_planned():
    row = {
        "shape": "GPT-2 124M",
        "ours_tokens_per_second": 90.0,
        "planned_tokens_per_second": 100.0,
        "planned_bytes": 2**31,
        "peak_bytes": 2**30,
    }
    assert rows._beside_plan(row) == [
        "GPT-2 124M: 0.90 of the 100 tokens/s planned; 1.00 GiB in use at the peak, 2.00 planned"
    ]
    assert rows._beside_plan({**row, "planned_bytes": None}) == []
