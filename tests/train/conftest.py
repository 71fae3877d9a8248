"""What the tests of whole runs share."""

import pytest
import tiny_runs


@pytest.fixture
def quick():
    """Runs of one kind share what they compile."""
    with tiny_runs.sharing():
        yield
