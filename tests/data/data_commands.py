"""What the tests of `research data` write and look at."""

import json
from pathlib import Path

import numpy as np

TEXT = "the river of a town and its mill in late winter was as quiet as snow on an old roof until bells began"
WORDS = TEXT.split()


def texts(count: int) -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, 12 + number % 9)) + f" № {number}.\n" for number in range(count)]


def write_lines(path: Path, records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return f"jsonl:{path}"


def last(answer) -> dict:
    code, out, err = answer
    assert code == 0 and err == "", err
    return json.loads(out.splitlines()[-1])


def assert_refused(answer, *words):
    code, out, err = answer
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, (code, out, err)
    for word in words:
        assert str(word) in err, err
