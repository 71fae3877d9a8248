"""What the tests of sampling share: the byte tokeniser, and character tokenisers."""

import json
from collections.abc import Callable

import pytest

from research.data import tokenizer as T
from research.data.encoding import byte_description, char_description


@pytest.fixture(scope="session")
def tokenizer() -> T.Tokenizer:
    return T.parse(json.dumps(byte_description()), "test")


@pytest.fixture(scope="session")
def characters() -> Callable[[str], T.Tokenizer]:
    """`characters(alphabet)`: the tokeniser whose ids are those characters, sorted. It has no separator."""
    return lambda alphabet: T.parse(json.dumps(char_description(alphabet)), "test")
