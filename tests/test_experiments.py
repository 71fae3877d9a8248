"""Every experiment: a runnable document, short, that builds what it says without training it."""

import ast
import dataclasses

import jax
import jax.numpy as jnp
import pytest

from research.core import config as core_config
from research.core import params as P
from research.data.examples import ExampleBatches
from research.tasks import lm
from research.train import config as C
from research.train import experiments, program

NAMES = experiments.names()
VOCABULARY = 1024


def test_the_experiments_are_there():
    assert {
        "quickstart",
        "lm_tiny_text",
        "gpt2_124m",
        "shakespeare",
        "glm_infill",
        "classify_images",
        "classify_video",
    } <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_a_document_that_runs(name):
    file = experiments.folder() / f"{name}.py"
    source = file.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source))
    assert docstring and f"python experiments/{name}.py" in docstring
    assert len(source.splitlines()) <= 90
    assert source.rstrip().endswith('if __name__ == "__main__":\n    train.main(EXPERIMENT)')
    assert "/work" not in source and "/home" not in source


@pytest.mark.parametrize("name", NAMES)
def test_its_config_builds_state_and_step_abstractly(name):
    experiment = experiments.load(name)
    assert experiment.name == name and experiment.config.run_dir is None and experiment.description
    config = experiment.config
    assert C.from_dict(core_config.to_dict(config), name) == config
    corpus, text = None, isinstance(config.task, lm.LMConfig)
    if text:
        model = lm.with_vocabulary(config.model, VOCABULARY)
    else:
        corpus = config.task.corpus(config.data, config.tokenizer)
        model = config.task.fitted(config.model, corpus)
    built = program.Program(config, corpus, model, None, C.hypers(config))  # type: ignore[arg-type]
    state = jax.eval_shape(built.init_function, built.hypers)
    assert sum(x.size for x in jax.tree.leaves(state.params)) == built.n_params == P.count(built.specs)
    rows = jax.ShapeDtypeStruct((config.batch_size, model.context), jnp.int32)
    batch = {"tokens": rows, "targets": rows, "weights": jax.ShapeDtypeStruct(rows.shape, jnp.float32)}
    if corpus is not None:
        batch = ExampleBatches(corpus.train, config.batch_size, config.row_tokens, 0)(0)
    after, metrics = jax.eval_shape(built.step_function, state, batch, built.hypers)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert all(value.shape == () for value in metrics.values())


def test_the_sizes_are_the_published_ones():
    gpt2 = experiments.load("gpt2_124m").config
    assert P.count(program.transformer.specs(dataclasses.replace(gpt2.model, vocab_size=50257))) == 124_439_808
    assert gpt2.batch_size * gpt2.model.context == 491_520
    quick = lm.with_vocabulary(experiments.load("quickstart").config.model, VOCABULARY)
    assert 0.9e6 < P.count(program.transformer.specs(quick)) < 1.3e6
    small = lm.with_vocabulary(experiments.load("shakespeare").config.model, 65)
    assert 0.7e6 < P.count(program.transformer.specs(small)) < 0.9e6 and small.context == 64


def test_defaults_of_one_experiment_are_not_another_s():
    loaded = [experiments.load(name) for name in NAMES]
    assert len({e.name for e in loaded}) == len(NAMES) and experiments.load(NAMES[0]).config == loaded[0].config
