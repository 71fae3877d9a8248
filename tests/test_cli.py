"""The command line: what it takes, and that whatever is wrong with that is one clear line and exit code 2."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_runs

from research import cli, train
from research.train import experiments

TINY = ["--model.width", "16", "--model.layers", "1", "--model.heads", "2", "--model.context", "8", "--batch-size", "4"]
COMMON = ["data", "run-dir", "steps", "seed", "target-loss", "eval-every", "checkpoint-every", "batch-size", "json"]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    return tiny_runs.write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """`call(*argv) -> (code, out, err)` of `research ...`, from an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        capsys.readouterr()
        try:
            code = cli.main([str(word) for word in argv])
        except SystemExit as stop:
            code = 0 if stop.code is None else stop.code
        return code, *capsys.readouterr()

    return run


def assert_refused(answer, *words):
    code, out, err = answer
    assert code == 2 and out == "", (code, out)
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert "Traceback" not in err
    for word in words:
        assert str(word) in err, err


# -- input that cannot be used


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["there is no file or folder", "nowhere.txt"]),
        (b"", ["is empty", "0 bytes"]),
        (b"text\x00more" * 100, ["NUL byte at byte offset 4"]),
        (b"caf\xe9 au lait" * 100, ["is not UTF-8", "byte 0xe9 at byte offset 3"]),
        (b"\xff\xfeh\x00", ["is not UTF-8", "byte offset 0", "UTF-16"]),
        (b"short", ["tokens, fewer than one context"]),
        (b"x", ["too few"]),
    ],
)
def test_text_that_cannot_be_used(call, tmp_path, content, words):
    file = tmp_path / ("nowhere.txt" if content is None else "text.txt")
    if content is not None:
        file.write_bytes(content)
    for data in (f"text:{file}", file) if content is not None else (f"text:{file}",):
        assert_refused(call("train", "lm_tiny_text", "--data", data, "--tokenizer", "byte", "--run-dir", "run"), *words)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--data", "jsonl:rows.jsonl"], ["rows.jsonl, line 2", "has no field 'text'"]),
        (["--data", "python_stdlb"], ["unknown data source", "Did you mean 'python_stdlib'?"]),
        (["--tokenizer", "bytes"], ["unknown tokeniser 'bytes'", "byte, char, bpe:N"]),
        (["--tokenizer", "bpe:7"], ["bpe:7"]),
        (["--tokenizer", "broken/tokenizer.json"], ["broken/tokenizer.json is not a tokenizer.json that can be read"]),
        (["--tokenizer", "other.json"], ["other.json"]),
        (["--model.vocab-size", "10"], ["model.vocab_size is 10", "257 ids"]),
        (["--model.context", "1000000"], ["fewer than one context"]),
        (["--mesh", "data=3"], ["mesh 'data=3' has 3 devices"]),
        (["--mesh", "date=1"], ["'date=1' is not AXIS=SIZE", "data"]),
        (["--run-dir", "file/run"], ["file/run cannot be written", "--run-dir"]),
        (["--run-dir", "file"], ["cannot be written"]),
        (["--run-dir", "broken"], ["not a run directory", "it holds tokenizer.json"]),
        (["--batch-size", "6", "--micro-batches", "4"], ["micro_batches is 4", "a divisor of batch size 6"]),
        (["--steps", "0"], ["steps is 0", "at least 1"]),
        (["--seed", "4294967296"], ["seed is 4294967296"]),
        (["--model.heads", "3"], ["model.heads is 3", "a divisor of width 16"]),
        (["--model.vocab-size", "99999999999"], ["model.vocab_size is 99999999999", "at most 2^31"]),
        (["--profile", "5:3"], ["--profile is '5:3'", "FIRST:LAST"]),
        (["--config", "nowhere.json"], ["--config nowhere.json", "No such file"]),
        (["--stepz", "3"], ["no option --stepz", "did you mean --steps?"]),
        (["--optimizer.schedule.warmup", "3"], ["did you mean --optimizer.schedule.warmup-steps?"]),
        (["--learning-rate", "3"], ["did you mean --optimizer.learning-rate?"]),
        (["--steps", "many"], ["--steps is 'many'", "a whole number"]),
        (["--steps", "1.5"], ["--steps is '1.5'", "a whole number"]),
        (["--target-loss", "low"], ["--target-loss is 'low'", "a number or None"]),
        (["--optimizer.kind", "adamv"], ["--optimizer.kind is 'adamv'", "adamw"]),
        (["--steps"], ["--steps is given no value"]),
        (["--json", "yes"], ["--json takes no value"]),
        (["extra"], ["unexpected argument 'extra' after --batch-size 4"]),
        (["--profile", "500000:500010"], ["--profile 500000:500010", "begins after the last of"]),
    ],
)
def test_arguments_that_cannot_be_used(call, tmp_path, text_file, argv, words):
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 0')
    (tmp_path / "other.json").write_text('{"hello": "world"}')
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"txt": "two"}\n')
    before = sorted(p.name for p in tmp_path.rglob("*"))
    defaults = ["--data", text_file, "--tokenizer", "byte", "--run-dir", "run", *TINY]
    assert_refused(call("train", "lm_tiny_text", *defaults, *argv), *words)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.name != ".lock") == before


def test_debug_shows_where_it_went_wrong(call):
    code, _, err = call("train", "lm_tiny_text", "--data", "text:nowhere", "--debug")
    assert code == 2 and "Traceback" in err and "UserError: there is no file or folder 'nowhere'" in err


def test_a_run_of_another_config_is_refused_by_its_fields_and_kept(call, text_file, tmp_path):
    with tiny_runs.sharing():
        train.fit(tiny_runs.config(text_file, run_dir=str(tmp_path / "run"), steps=2, sample_every=None))
    stored = tmp_path / "run" / "config.json"
    kept = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != ".lock"}
    begin = ["train", "lm_tiny_text", "--config", stored]
    assert_refused(
        call(*begin, "--seed", "9", "--model.width", "32"),
        "seed: 0 there, 9 now",
        "model.width: 16 there, 32 now",
        "--fresh",
    )
    assert_refused(call(*begin, "--no-resume"), "already holds a run")
    changed = tmp_path / "changed.txt"
    changed.write_text(text_file.read_text() * 2)
    assert_refused(call(*begin, "--data", changed), "data: ")
    assert all(p.read_bytes() == content for p, content in kept.items())


# -- verbs


def test_usage_and_unknown_verbs(call):
    code, out, err = call()
    assert code == 0 and err == "" and all(f"  {verb}" in out for verb in cli.VERBS)
    assert call("--help")[:2] == call("-h")[:2] == (0, out)
    assert_refused(call("trian"), "no verb 'trian'", "did you mean train?")
    assert_refused(call("xyzzy"), "no verb 'xyzzy'")
    code, out, _ = call("--version")
    assert code == 0 and re.fullmatch(r"purestep \d+\.\d+\.\d+\n", out)
    assert json.loads(call("--version", "--json")[1]).keys() == {"purestep"}


def test_train_names_its_experiments(call):
    assert_refused(call("train"), "usage: research train NAME", "quickstart")
    assert_refused(call("train", "--json"), "usage")
    code, out, _ = call("train", "--help")
    assert code == 0 and all(name in out for name in experiments.names())
    assert_refused(call("train", "quikstart"), "no experiment 'quikstart'", "did you mean quickstart?")
    assert_refused(call("train", "nowhere.py"), "no experiment 'nowhere.py'")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_common_field(call, flag):
    code, out, err = call("train", "lm_tiny_text", flag)
    assert code == 0 and err == "" and "character-level language model" in out
    for name in (
        *COMMON,
        "fresh",
        "profile",
        "print-config",
        "config",
        "optimizer.schedule.warmup-steps",
        "model.context",
    ):
        assert f"--{name}" in out, name
    assert "--experiment" not in out
    assert "--hash" in call("inspect", flag)[1] and call("inspect", flag)[0] == 0


@pytest.mark.parametrize(
    "words",
    [
        ("train", "quickstart"),
        ("plan", "gpt2", "--topology", "cpu-1"),
        ("sweep", "quickstart"),
        ("launch", "tpu"),
        ("doctor",),
        ("sample",),
    ],
)
def test_help_says_of_every_option_what_it_is_and_nothing_of_its_neighbour(call, words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = call(*words, "--help")
    assert code == 0
    options = re.findall(r"^ {1,4}(--[a-z]\S*)(.*(?:\n {6,}\S.*)*)", out, re.MULTILINE)
    texts = {name: " ".join(re.split(r" {2,}|\n", text, maxsplit=1)[-1].split()) for name, text in options}
    texts = {name: re.sub(r" ?\((default: .*|required)\)$", "", text) for name, text in texts.items()}
    assert len(texts) >= 4 and not [name for name, text in texts.items() if not text]
    assert len(set(texts.values())) == len(texts), [
        name for name, text in texts.items() if list(texts.values()).count(text) > 1
    ]


def test_files_that_are_no_experiments(call, tmp_path):
    (tmp_path / "empty.py").write_text("")
    assert_refused(call("train", "empty.py"), "empty.py defines no EXPERIMENT")
    (tmp_path / "wrong.py").write_text("EXPERIMENT = 3")
    assert_refused(call("train", "wrong.py"), "wrong.py defines no EXPERIMENT")


def test_an_experiment_elsewhere_runs_by_its_path_with_its_neighbours(call, tmp_path, text_file):
    (tmp_path / "sizes_of_mine.py").write_text("WIDTH = 24\n")
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "from research import train\n"
        "from research.model.config import ModelConfig\n"
        "from sizes_of_mine import WIDTH\n"
        "@dataclasses.dataclass\n"
        "class Note:\n"
        "    text: str = 'x'\n"
        "EXPERIMENT = train.Experiment('mine', train.Config(model=ModelConfig(width=WIDTH)))\n"
    )
    code, out, _ = call("train", "./mine.py", "--print-config")
    assert code == 0 and json.loads(out)["model"]["width"] == 24
    sys.path.remove(str(tmp_path.resolve()))


@pytest.fixture(scope="module")
def run(text_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "one"
    with tiny_runs.sharing():
        train.fit(tiny_runs.config(text_file, run_dir=str(path), steps=2, sample_every=None))
    return path


def test_inspect(call, run):
    code, out, err = call("inspect", run)
    assert code == 0 and err == ""
    for text in (
        str(run),
        "checkpoints 00000002" if "00000002" in out else "checkpoints 2",
        "optimizer.kind = adamw",
        "embed/tokens",
        "held out",
    ):
        assert text in out
    assert call("inspect", run, "--hash")[1].splitlines()[:-1] == out.splitlines()
    assert re.fullmatch("[0-9a-f]{64}", call("inspect", run, "--hash")[1].splitlines()[-1])
    facts = json.loads(call("inspect", run, "--json")[1].splitlines()[-1])
    assert (facts["checkpoints"], facts["last_eval"]["step"]) == ([2], 2)
    assert facts["params"] == sum(leaf["count"] for leaf in facts["leaves"].values())


def test_inspect_refuses_what_is_no_model(call, run, tmp_path):
    assert_refused(call("inspect"), "usage: research inspect MODEL")
    assert_refused(call("inspect", "./nowhere"), "./nowhere: there is no such folder")
    assert_refused(call("inspect", run, "--hush"), "no option --hush", "--hash")
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    (tmp_path / "tokenizer.json").write_bytes((run / "tokenizer.json").read_bytes())
    assert call("inspect", tmp_path)[0] == 0
    assert_refused(call("inspect", tmp_path, "--hash"), "no checkpoint")
    (tmp_path / "tokenizer.json").write_text("{")
    assert_refused(call("inspect", tmp_path), "tokenizer.json")


def test_a_config_that_is_not_of_its_checkpoints_is_refused(call, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    stored = json.loads((copy / "config.json").read_text())
    stored["config"]["model"]["width"] = 32
    (copy / "config.json").write_text(json.dumps(stored))
    assert_refused(call("inspect", copy, "--hash"), "is of another state", "[1, 16", "[1, 32")
    code, out, err = call("sample", copy, "--prompt", "a")
    assert_refused((code, out, err.partition("\n")[2]), "is of another state")  # its first line says what it loads


# -- processes


def process(*argv, cwd):
    environment = {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    import os

    done = subprocess.run(
        [sys.executable, *map(str, argv)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_train_by_name_is_running_the_file(text_file, tmp_path):
    argv = [
        "--data",
        text_file,
        *TINY,
        "--steps",
        "3",
        "--eval-every",
        "2",
        "--log-every",
        "1",
        "--sample-every",
        "None",
        "--json",
    ]
    file = experiments.folder() / "lm_tiny_text.py"
    summaries = []
    for start, name in ((["-m", "research", "train", "lm_tiny_text"], "a"), ([file], "b")):
        code, out, err = process(*start, *argv, "--run-dir", tmp_path / name, cwd=tmp_path)
        assert code == 0 and err == "", err
        summary = json.loads(out.splitlines()[-1])
        assert summary["run_dir"] == str(tmp_path / name) and summary["wall_seconds"] > summary["train_seconds"]
        summaries.append({k: v for k, v in summary.items() if not k.endswith("seconds") and k != "run_dir"})
    assert summaries[0] == summaries[1] and summaries[0]["steps"] == 3
    assert tiny_runs.story(tmp_path / "a") == tiny_runs.story(tmp_path / "b")
    assert {p.name for p in (tmp_path / "a").iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "tokenizer.json",
        "train.log",
        "report.html",
    }


def test_bad_input_in_a_process_of_its_own(tmp_path):
    code, out, err = process(experiments.folder() / "lm_tiny_text.py", "--data", "text:nowhere.txt", cwd=tmp_path)
    assert_refused((code, out, err), "there is no file or folder 'nowhere.txt'")
    assert list(tmp_path.iterdir()) == []


def test_the_package_and_the_list_of_verbs_come_without_what_is_heavy(tmp_path):
    code = "import sys, research.cli; research.cli.main(['--help']); print(sorted({'jax', 'numpy', 'tyro', 'rich'} & set(sys.modules)))"
    status, out, err = process("-c", code, cwd=tmp_path)
    assert status == 0 and out.splitlines()[-1] == "[]", err
