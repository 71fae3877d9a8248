"""`research bench data` on a small text."""

import json

import pytest

from research import cli


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 200, encoding="utf-8")
    argv = ["--data", f"text:{text}", "--tokenizer", "char", "--shape", "1x16x2x8x2x2", "--seconds", "0.15", "--images", "4",
            "--gigabytes", "0.001", "--json"]  # fmt: skip
    assert cli.main(["bench", "data", *argv]) == 0
    out = capsys.readouterr().out.strip().splitlines()
    result = json.loads(out[-1])
    assert result["vocabulary"] == 28  # the letters, the space and the line's end: the text's, not the shape's
    assert result["ratio"] == pytest.approx(result["loader_tokens_per_second"] / result["step_tokens_per_second"])
    assert result["loader_tokens_per_second"] == pytest.approx(16 * result["loader_batches_per_second"])
    assert result["fed_tokens_per_second"] > 0 and all(len(rounds) == 3 for rounds in result["rounds"].values())
    rows = {(row["what"], row["peer"]): row for row in result["rows"]}
    plain, library = rows["batches", "a plain sequential read"], rows["tokenising", "tokenizers, encode_batch"]
    loop, early = rows["images", "a plain decode loop"], rows["memory", "its most in the first quarter of the time"]
    for row in (plain, library, loop, early):
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer_rate"]) and row["ours"] > 0
    assert len(plain["ours_rounds"]) == 3 and early["unit"] == "MB resident" and early["ours"] > 10
    for peer in ("Hugging Face datasets", "grain"):
        row = rows["batches", peer]
        assert (row["ratio"] is None) == (row["note"] is not None)
    assert any("a plain decode loop" in line and f"{loop['ratio']:.2f}" in line for line in out[:-1])
    assert any("loader to device" in line and f"{result['ratio']:,.1f}" in line for line in out[:-1])
