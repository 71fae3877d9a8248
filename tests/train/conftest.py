"""What the tests of whole runs share."""

import pytest
import tiny_runs


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    return tiny_runs.write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture
def quick():
    """Runs of one kind share what they compile."""
    with tiny_runs.sharing():
        yield
