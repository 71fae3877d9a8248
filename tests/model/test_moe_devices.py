"""A sparse model on eight devices equals that on one: in a process of its own, since a process has its devices from its start."""

import json
from pathlib import Path

import pytest

CASES = {
    "data=8 ragged 0.7": 1,
    "fsdp=4,expert=2 auto none": 1 / 8,
    "data=2,fsdp=2,expert=2 auto 0.7": 1 / 4,
}


@pytest.fixture(scope="module")
def results(run_python):
    code = Path(__file__).with_name("sparse_on_eight_devices.py").read_text()
    return json.loads(run_python(code, *CASES, devices=8).splitlines()[-1])


@pytest.mark.parametrize(("case", "share"), CASES.items())
def test_a_sparse_model_on_eight_devices_is_the_one_on_one(case, share, results):
    found = results[case]
    assert found["loss"] < 1e-5 and found["gradients"] < 1e-5 and found["share"] == share, found


def test_rows_are_laid_out_where_they_lie(results):
    assert results["data=8 ragged 0.7"]["collectives"] == ["all-reduce"], "of losses and gradients; no token travels"
