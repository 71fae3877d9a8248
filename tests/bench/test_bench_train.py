"""`research bench train`: the order of the rounds, the rows, and what happens when a side fails."""

import json
import os

import jax
import pytest
from fake_sides import side

from research import cli
from research.bench import rows, train
from research.bench.shapes import Shape
from research.core import params as P
from research.core.errors import UserError
from research.families import gpt2
from research.model import transformer

TINY = Shape(1, 16, 2, 8, 2, 11)
CONTRACT = {"shape", "ours_tokens_per_second", "peer", "peer_tokens_per_second", "ratio"}


def log(folder) -> list:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_sides_are_timed_in_turn_and_told_the_same(tmp_path):
    ours, peers = (
        side(tmp_path, "ours"),
        [side(tmp_path, "eager", step="time.sleep(0.04 * steps)"), side(tmp_path, "compiled")],
    )
    result = train.measure([TINY], ours, peers, rounds=3, seconds=0.05)
    entries = log(tmp_path)
    built = [what["build"] for _, what in entries if "build" in what]
    assert len(built) == 3 and built[0] == built[1] == built[2]
    assert built[0]["context"] == 8 and built[0]["beta2"] == 0.95 and built[0]["threads"] >= 1
    last = max(i for i, (_, what) in enumerate(entries) if "build" in what)
    order = [name for i, (name, _) in enumerate(entries) if i > last and name != entries[i - 1][0]]
    assert order[-9:] == ["ours", "eager", "compiled"] * 3  # before them: the last side's warming up
    eager, compiled = result["rows"]
    assert [eager["peer"], compiled["peer"]] == ["eager", "compiled"]
    assert eager["ours_tokens_per_second"] == compiled["ours_tokens_per_second"] == sorted(eager["ours_rounds"])[1]
    assert eager["ratio"] == pytest.approx(eager["ours_tokens_per_second"] / sorted(eager["peer_rounds"])[1])
    assert 1.3 < eager["ratio"] < 3 and eager["note"] is None
    assert eager["ours_tokens_per_second"] == pytest.approx(16 / 0.02, rel=0.4)
    assert eager["mfu"] == pytest.approx(eager["ours_tokens_per_second"] * 60 / 6000)


def test_a_peer_that_is_not_installed(tmp_path):
    peers = [side(tmp_path, "eager", about="import torch_is_not_here"), side(tmp_path, "compiled")]
    (row,) = train.measure([TINY], side(tmp_path, "ours"), peers, rounds=1, seconds=0.02)["rows"]
    assert set(row) >= CONTRACT and row["ours_tokens_per_second"] > 0
    assert row["peer"] is row["peer_tokens_per_second"] is row["ratio"] is None
    assert "torch_is_not_here" in row["note"]


def test_a_peer_that_fails_leaves_its_row_and_the_others(tmp_path):
    peers = [side(tmp_path, "eager"), side(tmp_path, "compiled", build="raise RuntimeError('no compiler')")]
    result = train.measure([TINY], side(tmp_path, "ours"), peers, rounds=1, seconds=0.02)
    eager, compiled = result["rows"]
    assert eager["ratio"] > 0
    assert compiled["peer"] == "compiled" and compiled["peer_tokens_per_second"] is compiled["ratio"] is None
    assert compiled["note"] == "failed: no compiler"
    said = "\n".join(rows.lines(result))
    assert "compiled failed: no compiler" in said and f"{eager['ratio']:.2f}" in said


def test_a_peer_that_dies_in_a_round(tmp_path):
    dies = side(tmp_path, "eager", step="steps > 1 and os._exit(3)")
    (row,) = train.measure([TINY], side(tmp_path, "ours"), [dies], rounds=2, seconds=0.06)["rows"]
    assert row["ratio"] is None and row["ours_tokens_per_second"] > 0
    assert row["note"] == "died: its process ended with code 3"


def test_what_is_no_comparison_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="not the same model"):
        train.measure([TINY], side(tmp_path, "ours"), [side(tmp_path, "eager", params=11)], rounds=1, seconds=0.02)
    with pytest.raises(RuntimeError, match="loss is nan"):
        train.measure([TINY], side(tmp_path, "ours", step="'nan'"), [], rounds=1, seconds=0.02)
    with pytest.raises(RuntimeError, match="ours failed at 1 layers.*broken"):
        train.measure([TINY], side(tmp_path, "ours", build="raise ValueError('broken')"), [], rounds=1, seconds=0.02)
    with pytest.raises(UserError, match="smaller batch"):
        train.measure([TINY], side(tmp_path, "ours", build="raise MemoryError"), [], rounds=1, seconds=0.02)


def holds(rows: int) -> str:
    return f"if request['batch_size'] > {rows}: raise MemoryError"


@pytest.mark.parametrize(
    ("ours", "peers", "expected"), [(100, (64, 9), 8), (5, (40, 3), 2), (32, (32, 64), 32), (40, (), 32)]
)
def test_the_largest_batch_that_all_hold(tmp_path, ours, peers, expected):
    contenders = [side(tmp_path, "ours", build=holds(ours)), *(side(tmp_path, f"p{n}", build=holds(n)) for n in peers)]
    assert train.largest_batch(TINY, contenders, {}).batch_size == expected


def test_on_an_accelerator_one_side_is_done_before_the_next_begins(tmp_path):
    ours = side(tmp_path, "ours", platform="gpu", device="cuda", dtype="bfloat16")
    result = train.measure([TINY], ours, [side(tmp_path, "a"), side(tmp_path, "b")], rounds=2, seconds=0.02)
    assert [row["peer"] for row in result["rows"]] == ["a", "b"] and result["dtype"] == "bfloat16"
    names = [name for name, _ in log(tmp_path)]
    assert names == sorted(names, key=["ours", "a", "b"].index)
    assert all(what["build"]["device"] == "cuda" for _, what in log(tmp_path) if "build" in what)


def test_not_one_row_fits(tmp_path):
    with pytest.raises(UserError, match="not one row"):
        train.largest_batch(TINY, [side(tmp_path, "ours", build=holds(0))], {})
    with pytest.raises(RuntimeError, match="broken"):
        train.largest_batch(TINY, [side(tmp_path, "ours", build="raise ValueError('broken')")], {})


def test_doubts():
    row = {"shape": "s", "peer": "p", "ours_rounds": [100.0, 110.0], "peer_rounds": [100.0, 190.0]}
    assert rows.doubts([row], 0.01) == ["warning: s: rounds of p lie between 100 and 190 tokens/s"]
    assert "60% of the processors" in rows.doubts([{**row, "peer_rounds": None}], 0.6)[0]


def test_the_command_without_a_peer(capfd, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=1")
    argv = [
        "bench",
        "train",
        "--shapes",
        "1x16x2x8x2x11",
        "--seconds",
        "0.1",
        "--rounds",
        "2",
        "--peer",
        "none",
        "--json",
    ]
    assert cli.main(argv) == 0
    out = capfd.readouterr().out.strip().splitlines()
    result = json.loads(out[-1])
    (row,) = result["rows"]
    assert set(row) >= CONTRACT
    assert row["shape"] == "1 layers x 16 wide x 8 context x batch 2, vocabulary 11"
    assert row["ours_tokens_per_second"] > 0 and row["compile_seconds"] > 0 and 0 < row["mfu"] < 1
    assert row["peer"] is row["peer_tokens_per_second"] is row["ratio"] is None and row["note"]
    assert row["params"] == P.count(transformer.specs(gpt2.config(1, 16, 2, 11, 8)))
    assert result["versions"]["jax"] == jax.__version__ and len(row["ours_rounds"]) == 2
    assert any(row["shape"] in line and f"{row['ours_tokens_per_second']:,.0f}" in line for line in out[:-1])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "there are train, data"),
        (["trian"], "did you mean train"),
        (["train", "--shapes", "smal"], "did you mean small"),
        (["train", "--seconds", "0"], "--seconds is 0"),
        (["train", "--rounds", "0"], "--rounds is 0"),
        (["train", "--peers", "none"], "did you mean --peer"),
        (["train", "--peer", "no"], "expected one of both, eager, compiled, none"),
        (["data", "--shape", "gpt2-largest-batch"], "has no batch size"),
        (["data", "--data", "text:/no/such/file"], "/no/such/file"),
    ],
)
def test_bad_input_is_one_line_and_code_2(capsys, argv, said):
    assert cli.main(["bench", *argv]) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("error: ") and err.count("\n") == 1


def test_the_largest_batch_is_refused_on_a_cpu(tmp_path):
    with pytest.raises(UserError, match="on a CPU give a batch size"):
        train.measure([Shape(1, 16, 2, 8, 0, 11)], side(tmp_path, "ours"), [], rounds=1, seconds=0.02)


def test_help(capsys):
    assert cli.main(["bench", "--help"]) == 0
    assert "train" in capsys.readouterr().out
