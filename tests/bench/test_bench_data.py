"""`research bench data` on a small text."""

import json

import pytest

from research import cli


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 200, encoding="utf-8")
    argv = ["--data", f"text:{text}", "--tokenizer", "char", "--shape", "1x16x2x8x2x2", "--seconds", "0.15", "--json"]
    assert cli.main(["bench", "data", *argv]) == 0
    out = capsys.readouterr().out.strip().splitlines()
    result = json.loads(out[-1])
    assert result["vocabulary"] == 28  # the letters, the space and the line's end: the text's, not the shape's
    assert result["ratio"] == pytest.approx(result["loader_tokens_per_second"] / result["step_tokens_per_second"])
    assert result["loader_tokens_per_second"] == pytest.approx(16 * result["loader_batches_per_second"])
    assert result["fed_tokens_per_second"] > 0 and all(len(rounds) == 3 for rounds in result["rounds"].values())
    assert any("loader to device" in line and f"{result['ratio']:,.1f}" in line for line in out[:-1])
