"""Every family on eight devices is the one on one, over each axis of a mesh alone and over pairs; each family on some of them."""

import json
from pathlib import Path

import cases
import pytest

MESHES = (
    "data=8", "fsdp=8", "tensor=8", "sequence=8", "data=2,fsdp=4", "data=2,tensor=4", "data=4,sequence=2", "fsdp=4,tensor=2", "fsdp=2,sequence=4",
    "sequence=2,tensor=4", "stage=2,data=4", "stage=2,fsdp=4", "stage=2,tensor=4", "stage=2,sequence=4",
)  # fmt: skip
SPARSE = (
    "expert=4,data=2",
    "expert=4,fsdp=2",
    "expert=2,sequence=4",
    "expert=2,tensor=4",
    "stage=2,expert=4",
    "expert=4,tensor=2",
)
FAMILIES = (
    "gpt2", "gpt-neo", "gpt-neox", "llama", "llama-biased-wide-heads", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "glm4", "phi3",
    "olmo2",
)  # fmt: skip
EACH = 1


def asked() -> dict:
    """Meshes dealt out to families in turn; of mixtures of experts those with `expert`."""
    dense = {
        name: (cases.CASES[name], [MESHES[(EACH * i + j) % len(MESHES)] for j in range(EACH)])
        for i, name in enumerate(FAMILIES)
    }
    sparse = {
        name: (cases.CASES[name], list(SPARSE[3 * i : 3 * i + 3])) for i, name in enumerate(("mixtral", "qwen3-moe"))
    }
    return dense | sparse


@pytest.fixture(scope="module")
def results(run_python, tmp_path_factory):
    file = tmp_path_factory.mktemp("devices") / "asked.json"
    file.write_text(json.dumps(asked()))
    code = Path(__file__).with_name("families_on_eight_devices.py").read_text()
    return json.loads(run_python(code, str(file), devices=8).splitlines()[-1])


@pytest.mark.parametrize("case", [f"{name} {mesh}" for name, (_, meshes) in asked().items() for mesh in meshes])
def test_eight_devices_compute_what_one_does(case, results):
    assert results[case] < 1e-5


def test_every_mesh_is_tried():
    tried = {mesh for _, meshes in asked().values() for mesh in meshes}
    assert tried == {*MESHES, *SPARSE}
