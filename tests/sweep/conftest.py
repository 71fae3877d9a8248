"""What the tests of sweeps share."""

import dataclasses

import pytest
import tiny_runs

from research.sweep import Sweep


@pytest.fixture(scope="session")
def base(text_file):
    """A run of 12 steps that draws no samples."""
    return tiny_runs.config(text_file, sample_every=None, eval_every=6, eval_batches=2)


@pytest.fixture
def sweep(base, tmp_path):
    """`sweep(space, **options)`: a Sweep of the base config in a folder of its own."""

    def make(space, changes=None, **options) -> Sweep:
        config = dataclasses.replace(base, **(changes or {}))
        return Sweep(**{"base": config, "space": space, "out": str(tmp_path / "sweep"), "width": 1, **options})

    return make
