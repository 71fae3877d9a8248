"""`research sample`: what it prints where, its JSON line, and what it refuses."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from research.core.errors import UserError
from research.model.config import ModelConfig
from research.sample import command
from research.sample.engine import continuations
from research.sample.models import Loaded
from research.sample.options import Sampling

CONFIG = ModelConfig(vocab_size=257, context=32, width=16, layers=1, heads=2, mlp_width=24, tied=False)
OPTIONS = ["--max-tokens", "20", "--seed", "5", "--top_p", "0.9"]
SAMPLING = Sampling(max_tokens=20, seed=5, top_p=0.9)


@pytest.fixture(scope="module")
def loaded(tiny, tokenizer):
    return Loaded(tiny.params(CONFIG), CONFIG, tokenizer)


@pytest.fixture
def sample(loaded, capfdbinary):
    """`sample(*options) -> (standard output, standard error)` as text."""

    def run(*options: str) -> tuple[str, str]:
        assert (
            command.sample_command(lambda run: loaded if run == "runs/x" else pytest.fail(run), ["runs/x", *options])
            == 0
        )
        out, err = capfdbinary.readouterr()
        return out.decode(), err.decode()

    return run


def test_standard_output_is_prompt_and_continuation_verbatim(sample, loaded):
    out, err = sample("--prompt", "a\n b", *OPTIONS)
    expected = continuations(loaded, ["a\n b"], SAMPLING)[0]
    assert out == "a\n b" + expected.text
    assert "loading runs/x" in err and "tokens/s, ended by: length" in err


def test_the_last_line_is_json(sample, loaded):
    out, _ = sample("--prompt", "a\n b", "--json", *OPTIONS)
    expected = continuations(loaded, ["a\n b"], SAMPLING)[0]
    text, line = out[: -len(out.splitlines()[-1]) - 1], out.splitlines()[-1]
    assert text == "a\n b" + expected.text + "\n"
    report = json.loads(line)
    assert report["prompt"] == "a\n b" and report["tokens"] == 20 and report["tokens_per_second"] > 0
    sample_of = {"prompt": "a\n b", "text": expected.text, "tokens": list(expected.tokens), "finish_reason": "length"}
    assert report["samples"] == [{**sample_of, "prompt_tokens": list(b"a\n b")}]


def test_several_samples_are_set_apart(sample, loaded):
    out, _ = sample("--prompt", "ab", "--prompt=--c", "--num", "2", *OPTIONS)
    results = continuations(loaded, ["ab", "--c"], Sampling(**{**vars(SAMPLING), "num": 2}))
    parts = [
        f"=== prompt {i // 2 + 1} of 2, sample {i % 2 + 1} of 2 ===\n{one.prompt}{one.text}\n"
        for i, one in enumerate(results)
    ]
    assert out == "".join(parts)


def test_a_prompt_from_standard_input(sample, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é\n".encode()), encoding="ascii"))
    assert sample("--prompt", "-", "--max-tokens", "0")[0] == "é\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff"), encoding="utf-8"))
    with pytest.raises(UserError, match="not UTF-8 at byte 2"):
        sample("--prompt", "-")


def test_text_is_utf8_whatever_the_locale(monkeypatch, loaded):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    command.sample_command(lambda run: loaded, ["r", "--prompt", "é\n", "--max-tokens", "0"])
    assert raw.getvalue() == "é\n".encode()


def test_an_empty_prompt_shows_only_its_continuation(sample, loaded):
    assert sample(*OPTIONS)[0] == continuations(loaded, [None], SAMPLING)[0].text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the model is missing"),
        (["--prompt", "x"], "the model is missing"),
        (["r", "--promt", "x"], "did you mean --prompt"),
        (["r", "--top-k", "many"], "--top-k is 'many'; expected a whole number"),
        (["r", "--temperature", "-1"], "temperature is -1.0; expected"),
        (["r", "--prompt", "-", "--prompt", "-"], "read once"),
        (["r", "stray"], "unexpected argument 'stray'"),
        (["r", "--prompt", "two", "words"], "--prompt is 'two words'"),
        (["r", "--prompt", "--json"], "--prompt is given no value"),
    ],
)
def test_a_bad_command_line_is_refused_before_anything_is_loaded(argv, message):
    with pytest.raises(UserError, match=message):
        command.sample_command(lambda run: pytest.fail("loaded"), argv)


def test_a_bad_prompt_leaves_standard_output_empty(sample, capfdbinary):
    with pytest.raises(UserError, match="not Unicode"):
        sample("--prompt", "a\udcff")
    assert capfdbinary.readouterr().out == b""


def test_texts_may_begin_with_a_dash():
    run, arguments = command.parse(["r", "--stop", "-x", "--prompt", "-y", "--prompt", "-", "--stop=--z", "--json"])
    assert (run, arguments.prompt, arguments.sampling.stop) == ("r", ("-y", "-"), ("-x", "--z"))
    assert arguments.json


def test_help_lists_the_options(capsys):
    with pytest.raises(SystemExit) as stop:
        command.parse(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(f"--{name}" in text for name in ("prompt", "top-k", "repetition-penalty", "stop", "json"))


def test_a_reader_that_leaves_is_no_error():
    code = """
from research.model.config import ModelConfig
from research.sample import command
from research.sample.models import Loaded
from research.train.command import guarded
def run(*_):
    for _ in range(100): command._write("x" * 10000)
command._run = run
print(guarded(lambda: command.sample_command(lambda run: Loaded({}, ModelConfig(), None), ["r"]), False), file=__import__("sys").stderr)
"""
    root = Path(__file__).resolve().parents[2]
    child = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout and child.stderr
    child.stdout.read(10)
    child.stdout.close()
    assert child.stderr.read().split() == [b"loading", b"r", b"0"]
    child.stderr.close()
    assert child.wait() == 0
