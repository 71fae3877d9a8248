"""The benchmark of sweeps: what is run beside what, the ratios, and where `vmap` stops paying."""

import json

import pytest

from research.bench import crossover, sweep
from research.core.errors import UserError
from research.sweep.width import Measured, TooWide


@pytest.fixture
def commands(monkeypatch):
    """The commands that are run, each of which takes a known time: ours 2 s, a process 1 s, a run in one process 0.5 s after 0.25 s."""
    ran = []

    def finished(command, environment):
        ran.append((command, environment.get("JAX_ENABLE_COMPILATION_CACHE")))
        return "words\n" + json.dumps({"started": 0.25, "took": [0.5, 0.5]})

    def run(words, environment):
        finished(words, environment)
        return {"sweep": 2.0, "train": 1.0, "data": 0.1}[words[0]]

    monkeypatch.setattr(sweep, "_finished", finished)
    monkeypatch.setattr(sweep, "_run", run)
    return ran


def test_one_command_stands_beside_64_processes_and_64_runs(commands, capsys):
    assert sweep.main(["--runs", "2", "--json"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["seconds"] == found["seconds_warm"] == 2.0
    assert found["vs_processes"] == pytest.approx(64 / 2) and found["vs_in_process"] == pytest.approx((0.25 + 32) / 2)
    assert any("64 processes" in line and "32.0" in line for line in table)
    swept = [words for words, _ in commands if words[0] == "sweep"]
    assert [words[words.index("--seeds") + 1] for words in swept] == ["2"] * 3
    assert {"optimizer.learning_rate=log:1e-4:1e-2:8", "optimizer.weight_decay=0,0.01,0.03,0.1", "steps=100"} <= set(
        swept[0]
    )
    caches = [cache for words, cache in commands if words[0] == "sweep"]
    assert caches == ["false", None, None]


def test_without_the_warm_cache_nothing_is_told_of_it(commands, capsys):
    sweep.main(["--no-warm", "--json"])
    assert "seconds_warm" not in json.loads(capsys.readouterr().out.splitlines()[-1])


def test_vmap_is_held_against_a_loop_over_sizes(call_verb, monkeypatch, tmp_path):
    def measure(program, members, shared):
        if program.model.width == 16 and members > 4:
            raise TooWide("no room")
        gain = min(members, 64 / program.model.width)
        return Measured(program, members, 0.01 / gain, 0, 0.0)

    monkeypatch.setattr(crossover.width, "measure", measure)
    plot = tmp_path / "plot.svg"
    code, out, err = call_verb(
        "bench", "sweep", "--crossover", "--sizes", "8", "16", "64", "--plot", str(plot), "--json"
    )
    found = json.loads(out.splitlines()[-1])
    assert code == 0 and "no room" in err and plot.read_text().startswith("<?xml")
    assert [row["ratio"] for row in found["rows"]] == pytest.approx([8, 4, 1])
    assert [row["members"] for row in found["rows"]] == [16, 4, 4]
    assert found["crossover_params"] == found["rows"][2]["params"] and "vmap pays below" in out


@pytest.mark.parametrize(("words", "said"), [(["--runs", "0"], "--runs is 0"), (["--sizes", "0"], "--sizes is")])
def test_bad_input(words, said):
    with pytest.raises(UserError, match=said):
        sweep.main(words)
