"""Models that are there already: where a run starts, what `convert` writes, what `inspect` says of them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs

from research import hf, train
from research.core import params as P
from research.core.errors import UserError
from research.data import tokenizer as tokenizers
from research.data.encoding import byte_description
from research.families import llama
from research.model import transformer
from research.sample import engine
from research.train import convert, inspection, start
from research.train.run import load_run, open_model

CONFIG = llama.config(2, 16, 2, 24, vocab_size=259, context=24)
BYTE = tokenizers.parse(json.dumps(byte_description()), "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama of random weights in Hugging Face's layout, whose vocabulary is larger than its tokeniser's."""
    params = P.init(transformer.specs(CONFIG), jax.random.key(1))
    return hf.save(params, CONFIG, BYTE, tmp_path_factory.mktemp("hf") / "llama")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return tiny_runs.write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture
def config(text, folder, tmp_path):
    """A run of the tiny kind that starts from the folder."""
    return tiny_runs.config(
        text, tokenizer=None, init_from=str(folder), run_dir=str(tmp_path / "run"), steps=3, sample_every=None
    )


def test_a_run_starts_from_the_weights_model_and_tokeniser_of_a_folder(config, folder):
    begun = start.resolve(config)
    assert begun.config.model == dataclasses.replace(hf.read_config(folder), dropout=config.model.dropout)
    assert (begun.config.row_tokens, begun.config.tokenizer) == (config.model.context, str(folder))
    result = train.fit(
        dataclasses.replace(
            config, steps=1, optimizer=dataclasses.replace(config.optimizer, learning_rate=0.0, weight_decay=0.0)
        )
    )
    run = load_run(result.run.path)
    assert P.digest(run.params) == P.digest(hf.load(folder).params)  # a rate of 0 leaves them as they are
    assert run.model.vocab_size == 259 and run.tokenizer.kind == "byte"


def test_a_run_that_starts_from_weights_learns_and_resumes_to_the_same_bits(config, tmp_path):
    with tiny_runs.sharing():
        whole = load_run(train.fit(config).run.path)
        parts = dataclasses.replace(config, run_dir=str(tmp_path / "parts"))
        train.fit(dataclasses.replace(parts, steps=2))
        resumed = load_run(train.fit(parts).run.path)
        assert P.digest(whole.params) == P.digest(resumed.params)
        again = dataclasses.replace(config, init_from=str(whole.path), run_dir=str(tmp_path / "again"))
        went_on = train.fit(again)
    first, later = whole.metrics[-1]["loss"], went_on.summary["eval_loss"]
    assert later < first
    assert start.resolve(again).config.model == whole.model


def test_what_is_no_model_or_has_no_tokeniser_is_refused_before_there_is_a_run(config, folder, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        train.fit(dataclasses.replace(config, init_from=str(tmp_path / "nowhere")))
    bare = hf.save(hf.load(folder).params, CONFIG, None, tmp_path / "bare")
    with pytest.raises(UserError, match="holds no tokeniser; put its tokenizer.json beside"):
        train.fit(dataclasses.replace(config, init_from=str(bare)))
    assert not (tmp_path / "run").exists()


def test_a_tokeniser_may_have_more_ids_than_its_model_if_the_text_has_none_of_them(config, tmp_path):
    def starting(vocab_size):
        model = dataclasses.replace(CONFIG, vocab_size=vocab_size)
        folder = hf.save(P.init(transformer.specs(model), jax.random.key(1)), model, BYTE, tmp_path / str(vocab_size))
        return dataclasses.replace(config, init_from=str(folder), steps=1)

    with pytest.raises(UserError, match=r"vocab_size is 100, but the text has the id \d+, '.', of its tokeniser's 257"):
        train.fit(starting(100))
    assert not (tmp_path / "run").exists()
    result = train.fit(starting(256))  # the separator of documents is the last id, and there is one document
    assert load_run(result.run.path).model.vocab_size == 256


def test_options_that_would_change_what_comes_with_the_weights_are_refused(config):
    start.check_overrides(config, ["model.dtype", "model.context", "optimizer.learning-rate"])
    for option in ("model.width", "model.no-tied", "tokenizer", "model.mlp-width"):
        with pytest.raises(
            UserError, match=f"--{option} cannot be given beside init_from: model and tokeniser are those of"
        ):
            start.check_overrides(config, ["steps", option])
    start.check_overrides(dataclasses.replace(config, init_from=None), ["model.width", "tokenizer"])


def test_rows_may_not_be_longer_than_learned_positions_reach(config):
    learned = dataclasses.replace(config.model, positions="learned")
    with pytest.raises(
        UserError, match="sequence_length is 9; expected at most model.context 8: positions are learned"
    ):
        dataclasses.replace(config, model=learned, sequence_length=9)
    assert dataclasses.replace(config, model=learned, sequence_length=5).step_tokens == 20


def test_converting_there_and_back_gives_the_same_bits(folder, tmp_path):
    source = hf.load(folder)
    found = convert.convert(str(folder), tmp_path / "run")
    assert found == {
        "source": str(folder),
        "path": str(tmp_path / "run"),
        "to": "run",
        "params": P.count(transformer.specs(CONFIG)),
    }
    run = load_run(tmp_path / "run")
    assert P.digest(run.params) == P.digest(source.params) and run.model == source.config
    assert run.tokenizer.fingerprint == BYTE.fingerprint
    assert convert.convert(str(tmp_path / "run"), tmp_path / "back")["to"] == "hf"
    back = hf.load(tmp_path / "back")
    assert P.digest(back.params) == P.digest(source.params) and back.config == source.config
    prompts, greedy = ["ab"], engine.Sampling(max_tokens=5, temperature=0.0)
    tokens = {engine.continuations(model, prompts, greedy)[0].tokens for model in (source, run, back)}
    assert len(tokens) == 1


def test_a_dtype_is_kept_changed_or_refused(folder, tmp_path):
    convert.convert(str(folder), tmp_path / "half", "hf", "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(hf.load(tmp_path / "half").params)} == {jnp.dtype("bfloat16")}
    convert.convert(str(tmp_path / "half"), tmp_path / "run")
    assert {np.asarray(leaf).dtype for leaf in jax.tree.leaves(load_run(tmp_path / "run").params)} == {
        np.dtype("float32")
    }
    with pytest.raises(UserError, match="dtype is 'bfloat16'; a run directory holds float32"):
        convert.convert(str(folder), tmp_path / "no", "run", "bfloat16")
    assert not (tmp_path / "no").exists()


def test_converting_over_what_is_there_is_refused_and_leaves_it(folder, tmp_path):
    (tmp_path / "mine").write_text("keep")
    for to in ("hf", "run"):
        with pytest.raises(UserError, match="already holds something"):
            convert.convert(str(folder), tmp_path, to)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(UserError, match="inside lies in .* itself; give a folder beside it"):
        convert.convert(str(folder), folder / "inside")


def test_the_command_converts_and_says_what_it_made(folder, tmp_path, capsys):
    assert convert.main([str(folder), str(tmp_path / "out"), "--to", "hf", "--dtype", "float16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["to"] == "hf"
    with pytest.raises(UserError, match="usage: research convert SRC DST"):
        convert.main([str(folder)])


def test_a_converted_run_is_not_trained_on_by_mistake(config, folder, tmp_path):
    convert.convert(str(folder), tmp_path / "run")
    with pytest.raises(UserError, match="holds a run of another config"):
        train.fit(config)


def test_inspecting_a_folder_reads_no_weights_and_names_their_dtype(folder, tmp_path, monkeypatch, capsys):
    convert.convert(str(folder), tmp_path / "half", "hf", "bfloat16")
    monkeypatch.setattr(hf, "read", None)
    assert inspection.main([str(tmp_path / "half"), "--json"]) == 0
    out = capsys.readouterr().out.splitlines()
    found = json.loads(out[-1])
    assert found["family"] == "llama" and found["params"] == P.count(transformer.specs(CONFIG))
    leaf = found["leaves"]["decoder/0/0/mlp/in"]
    assert leaf == {
        "shape": [2, 16, 24],
        "axes": ["layers", "embed", "mlp"],
        "dtype": "bfloat16",
        "count": 768,
        "bytes": 1536,
    }
    assert f"{found['params']:,} parameters in bfloat16, {2 * found['params']:,} bytes" in out


def test_inspecting_a_preset_shows_what_it_would_be(capsys):
    assert inspection.main(["llama3.1-405b"]) == 0
    assert "405,853,388,800 parameters in float32" in capsys.readouterr().out
    with pytest.raises(UserError, match="is a preset and has no weights to hash"):
        inspection.main(["gpt2", "--hash"])


def test_a_misspelt_preset_is_met_with_the_nearest(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="llama3.1-405: there is no such folder.*the nearest preset is llama3.1-405b"):
        inspection.main(["llama3.1-405"])


def test_the_hash_of_a_folder_is_that_of_the_run_made_of_it(folder, tmp_path, capsys):
    convert.convert(str(folder), tmp_path / "run")
    inspection.main([str(folder), "--hash"])
    inspection.main([str(tmp_path / "run"), "--hash"])
    hashes = [line for line in capsys.readouterr().out.splitlines() if len(line) == 64 and " " not in line]
    assert len(hashes) == 2 and len(set(hashes)) == 1


def test_a_model_opens_by_what_its_folder_holds(folder, tmp_path):
    convert.convert(str(folder), tmp_path / "run")
    assert type(open_model(tmp_path / "run")).__name__ == "Run"
    assert type(open_model(folder)).__name__ == "Pretrained"
