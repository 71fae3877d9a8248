"""What the tests of sampling share: the byte tokeniser."""

import json

import pytest

from research.data import tokenizer as T
from research.data.encoding import byte_description


@pytest.fixture(scope="session")
def tokenizer() -> T.Tokenizer:
    return T.parse(json.dumps(byte_description()), "test")
