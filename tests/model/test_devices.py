"""Eight devices equal one: in a process of its own, since a process has its devices from its start."""

import json
from pathlib import Path

import pytest

MESHES = {"data=8": 1, "fsdp=8": 1 / 8, "data=2,fsdp=4": 1 / 4, "fsdp=4,tensor=2": 1 / 8}


@pytest.fixture(scope="module")
def results(run_python):
    code = Path(__file__).with_name("eight_devices.py").read_text()
    return json.loads(run_python(code, *MESHES, devices=8).splitlines()[-1])


@pytest.mark.parametrize("mesh", MESHES)
def test_loss_and_gradients_of_eight_devices_are_those_of_one(mesh, results):
    assert results[mesh]["loss"] < 1e-5 and results[mesh]["gradients"] < 1e-5, results[mesh]


@pytest.mark.parametrize(("mesh", "share"), MESHES.items())
def test_weights_and_their_gradients_lie_on_their_shards(mesh, share, results):
    assert results[mesh]["shares"] == [share] and results[mesh]["on their shards"], results[mesh]


def test_attention_on_eight_devices_is_that_of_one(run_python):
    code = Path(__file__).with_name("attention_on_eight_devices.py").read_text()
    results = json.loads(run_python(code, "sequence=8", "sequence=2,tensor=2,fsdp=2", devices=8).splitlines()[-1])
    assert len(results) == 20
    for name, found in results.items():
        cudnn = name.startswith("cudnn")
        assert found["far"] < (1e-2 if cudnn else 1e-5), (name, found)
        # in blocks: keys, values and their gradients, not something in every block
        assert found["collectives"] <= (6 if cudnn else 4), (name, found)
