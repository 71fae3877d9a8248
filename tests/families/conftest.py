"""A case of cases.py as a folder of its own, and what it should compute."""

import json
from pathlib import Path

import cases
import numpy as np
import pytest
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def logits():
    """Expected logits by case, (B, T / 4, V)."""
    with np.load(HERE / "expectations.npz") as stored:
        return dict(stored)


@pytest.fixture
def folder(tmp_path):
    """`folder(case)` writes a case as a model's folder, with another config or other shapes where they are given."""

    def write(case: str, config: dict | None = None, shapes: dict | None = None) -> Path:
        path = tmp_path / case
        path.mkdir()
        save_file(
            cases.tensors(case, shapes or cases.expected()[case]["shapes"]),
            path / "model.safetensors",
            {"format": "pt"},
        )
        (path / "config.json").write_text(json.dumps(config or cases.expected()[case]["config"]))
        return path

    return write
