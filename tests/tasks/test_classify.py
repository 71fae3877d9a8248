"""Classification and regression: losses by their formulas, evaluation as sums, data checked at the door, and whole runs."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs

from research import train
from research.core import params as P
from research.core import rng
from research.core.errors import UserError
from research.data import examples, tokenizer
from research.data.augment.chain import augment, parse
from research.data.encoding import byte_description
from research.data.examples import Examples
from research.model import transformer
from research.model.config import ModelConfig
from research.model.input_config import FeatureConfig, ImageConfig
from research.sweep import Sweep
from research.tasks import task
from research.tasks.classify import ClassifyConfig, centred, check_labels
from research.tasks.lm import LMConfig
from research.train import classified
from research.train.run import load_run

MODEL = ModelConfig(
    inputs="image", image=ImageConfig(height=4, patch=2), head="linear", outputs=3, pool="mean", width=16, layers=1, heads=2,
    patterns=("bidirectional",), positions="learned",
)  # fmt: skip
BYTES = tokenizer.parse(json.dumps(byte_description()), "byte")
LABELS = np.array([0, 2, 1, 1])


@pytest.fixture
def params():
    return P.init(transformer.specs(MODEL), rng.key(3, "params"))


def batch(**changes):
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 1), dtype=np.uint8)
    made = {"image": image, "label": LABELS, "weights": np.array([1, 1, 1, 0], np.float32), **changes}
    return {name: jnp.asarray(value) for name, value in made.items() if value is not None}


def outputs(params, batch):
    return np.asarray(transformer.apply(params, centred(batch), MODEL).outputs, np.float64)


def test_the_losses_are_their_formulas(params):
    out = outputs(params, batch())
    p = np.exp(out) / np.exp(out).sum(axis=1, keepdims=True)
    total, weight, _ = ClassifyConfig().make_loss(MODEL)(params, batch())
    np.testing.assert_allclose(total, -np.log(p[np.arange(3), LABELS[:3]]).sum(), rtol=1e-5)
    assert weight == 3
    targets = np.random.default_rng(1).dirichlet([1, 1, 1], 4).astype(np.float32)
    soft, _, _ = ClassifyConfig().make_loss(MODEL)(params, batch(label=None, targets=targets))
    np.testing.assert_allclose(soft, -(targets * np.log(p))[:3].sum(), rtol=1e-5)
    s = 1 / (1 + np.exp(-out))
    binary, _, _ = ClassifyConfig(answer="sigmoid").make_loss(MODEL)(params, batch(label=None, targets=targets))
    np.testing.assert_allclose(binary, -(targets * np.log(s) + (1 - targets) * np.log(1 - s))[:3].sum(), rtol=1e-5)
    squared, _, _ = ClassifyConfig(answer="squared").make_loss(MODEL)(params, batch(label=None, targets=targets))
    np.testing.assert_allclose(squared, np.square(out - targets)[:3].mean(axis=1).sum(), rtol=1e-5)


def test_label_smoothing_of_labels_is_that_of_their_distributions(params):
    smooth = ClassifyConfig(label_smoothing=0.3, z_loss=0.1).make_loss(MODEL)
    hot = batch(label=None, targets=np.eye(3, dtype=np.float32)[LABELS])
    np.testing.assert_allclose(smooth(params, batch())[0], smooth(params, hot)[0], rtol=1e-6)
    assert smooth(params, batch())[0] != ClassifyConfig().make_loss(MODEL)(params, batch())[0]


def test_evaluation_counts_what_is_right(params):
    config = ClassifyConfig(label_smoothing=0.3, augment=("flip",))
    sums = jax.device_get(config.make_evaluation(MODEL)(params, batch()))
    right = outputs(params, batch()).argmax(axis=1) == LABELS
    assert sums["correct"] == right[:3].sum() and sums["weight"] == 3
    measures = config.measures(sums)
    plain, weight, _ = ClassifyConfig().make_loss(MODEL)(params, batch())
    np.testing.assert_allclose(measures["loss"], plain / weight, rtol=1e-6)
    assert list(measures) == ["loss", "accuracy"] and measures["accuracy"] == right[:3].mean()
    rows = ClassifyConfig().make_row_losses(MODEL)(params, batch())
    np.testing.assert_allclose(rows[:3].sum(), plain, rtol=1e-6)


def test_augmentation_needs_a_key_and_follows_it(params):
    loss = ClassifyConfig(augment=("rotate:40",)).make_loss(MODEL)
    plain = ClassifyConfig().make_loss(MODEL)(params, batch())[0]
    one, again, other = (loss(params, batch(), jax.random.key(k))[0] for k in (0, 0, 1))
    np.testing.assert_allclose(loss(params, batch())[0], plain)
    assert one == again and one != other and one != plain
    assert ClassifyConfig(augment=("flip",)).draws and not ClassifyConfig().draws


def test_texts_are_augmented_with_their_lengths():
    words = Examples(
        *({"tokens": np.tile(np.arange(1, 9), (4, 1)), "lengths": np.array([8, 6, 3, 1]), "label": np.arange(4) % 2},) * 2,
        classes=("a", "b"), tokenizer=BYTES,
    )  # fmt: skip
    model = ModelConfig(
        width=16,
        layers=1,
        heads=2,
        context=8,
        patterns=("bidirectional",),
        head="linear",
        pool="mean",
        positions="none",
    )
    fitted = ClassifyConfig().fitted(model, words)
    assert (fitted.vocab_size, fitted.outputs) == (257, 2)
    params = P.init(transformer.specs(fitted), rng.key(0, "params"))
    batch = {name: jnp.asarray(x) for name, x in words.train.items()} | {"weights": jnp.ones(4)}
    loss = ClassifyConfig(augment=("delete:0.5",)).make_loss(fitted)
    cut = augment(batch, rng.fold(jax.random.key(0), "augment"), parse(("delete:0.5",), "text", vocabulary=fitted.V))
    np.testing.assert_array_equal(cut["lengths"], [4, 3, 1, 1])
    expected = ClassifyConfig().make_loss(fitted)(params, cut)[0]
    np.testing.assert_allclose(loss(params, batch, jax.random.key(0))[0], expected, rtol=1e-6)
    assert abs(expected - ClassifyConfig().make_loss(fitted)(params, {**cut, "lengths": batch["lengths"]})[0]) > 1e-6


def test_labels_are_checked():
    with pytest.raises(UserError, match="example 1 has the label 3; there are classes 0 to 2"):
        check_labels(np.array([0, 3, 1]), ("a", "b", "c"), "here")
    with pytest.raises(UserError, match="class 'b' has no example"):
        check_labels(np.array([0, 2]), ("a", "b", "c"), "here")
    check_labels(np.array([0, 2]), ("a", "b", "c"), "here", empty=True)


def test_data_and_model_that_do_not_go_together_are_refused():
    config, image = ClassifyConfig(), np.zeros((3, 4, 4, 1), np.uint8)
    data = Examples(*({"image": image, "label": np.arange(3)},) * 2, classes=("a", "b", "c"))
    assert config.fitted(dataclasses.replace(MODEL, outputs=None), data) == MODEL
    refusals = [
        ({"inputs": "vectors"}, "model.inputs"),
        ({"inputs": "features", "features": FeatureConfig(numbers=2)}, "reads numbers \\(2,\\)"),
        ({"image": ImageConfig(height=6, patch=2)}, "reads image \\(6, 6, 1\\)"),
        ({"outputs": 4}, "model.outputs"),
        ({"pool": "none"}, "model.pool"),
    ]
    for changes, words in refusals:
        with pytest.raises(UserError, match=words):
            config.fitted(dataclasses.replace(MODEL, **changes), data)
    for answer, name in (("sigmoid", "label_smoothing"), ("squared", "z_loss")):
        with pytest.raises(UserError, match=f"task.{name}"):
            ClassifyConfig(answer=answer, **{name: 0.1})
    with pytest.raises(UserError, match="task.head_tile"):
        ClassifyConfig(head_tile=4)
    with pytest.raises(UserError, match="rotat"):
        ClassifyConfig(augment=("rotat",)).make_loss(MODEL)


@pytest.mark.parametrize(
    "changes", [{"inputs": "vectors"}, {"head": "linear", "outputs": 2}, {"patterns": ("full", "bidirectional")}]
)
def test_a_language_model_reads_tokens_from_the_left(changes):
    config = LMConfig()
    with pytest.raises(UserError, match=f"model.{next(iter(changes))}"):
        config.fitted(ModelConfig(**changes), None)


def test_kinds_are_found_by_name():
    assert task.of_kind("classify") is ClassifyConfig and task.of_kind("infill") is task.of_kind("lm")
    with pytest.raises(UserError, match="there are .*classify"):
        task.of_kind("clasify")


# -- whole runs


@pytest.fixture
def config(monkeypatch):
    """A run over pictures that are bright above, below, or not at all."""
    draw = np.random.default_rng(0)
    label = np.arange(60) % 3
    image = draw.integers(0, 100, (60, 4, 4, 1)).astype(np.uint8)
    image[label == 1, :2] += 150
    image[label == 2, 2:] += 150
    arrays = {"image": image, "label": label}
    made = Examples(
        examples.take(arrays, slice(0, 48)), examples.take(arrays, slice(48, 60)), classes=("no", "up", "down")
    )
    monkeypatch.setitem(examples._SOURCES, "lights", lambda rest: made)
    return train.Config(
        data="lights", model=dataclasses.replace(MODEL, outputs=None, dropout=0.1), optimizer=tiny_runs.ADAMW, steps=30, batch_size=12,
        task=ClassifyConfig(augment=("translate:0.1",)), log_every=5, eval_every=10, checkpoint_every=20,
    )  # fmt: skip


def test_a_run_learns_and_is_opened_again(config, tmp_path):
    result = train.fit(dataclasses.replace(config, run_dir=str(tmp_path), steps=80, eval_every=40))
    assert result.summary["accuracy"] == 1.0 and result.summary["bits_per_byte"] is None
    labels, image = (result.program.corpus.eval[name] for name in ("label", "image"))
    found = classified.report(result)
    assert found["accuracy"] == 1.0 and found["accuracy_count"] == len(labels) and found["macro_f1"] == 1.0
    shown = {file.name[3:-5]: file.read_text() for file in sorted((tmp_path / "exhibits").iterdir())}
    assert len(shown) == 4 and shown["examples-the-wrong-ones-first"].count("<img") == len(image)
    assert (
        "wrong" not in shown["examples-the-wrong-ones-first"].replace("the wrong ones first", "").partition("</h2>")[2]
    )
    run = load_run(tmp_path)
    assert run.config.task == config.task and run.model.outputs == 3
    held_out = [record for record in run.metrics if record["split"] == "eval"]
    assert [record["step"] for record in held_out] == [40, 80] and all(0 <= r["accuracy"] <= 1 for r in held_out)
    batch = {"image": jnp.asarray(result.program.corpus.eval["image"])}
    out = transformer.apply(run.params, centred(batch), run.model).outputs
    np.testing.assert_array_equal(np.argmax(out, axis=1), result.program.corpus.eval["label"])
    with pytest.raises(UserError, match="needs a language model"):
        _ = run.tokenizer
    assert "accuracy" in (tmp_path / "report.html").read_text()


def test_a_run_that_was_cut_off_ends_like_one_that_was_not(config, tmp_path):
    with tiny_runs.sharing():
        whole = dataclasses.replace(config, run_dir=str(tmp_path / "whole"))
        train.fit(whole)
        train.fit(dataclasses.replace(config, run_dir=str(tmp_path / "cut"), steps=13))
        train.fit(dataclasses.replace(config, run_dir=str(tmp_path / "cut"), steps=30))
    one, other = (tiny_runs.story(tmp_path / name) for name in ("whole", "cut"))
    assert one["hash"] == other["hash"]


@pytest.mark.parametrize("width", [1, 2])
def test_a_sweep_tells_of_its_members_metrics(config, tmp_path, width):
    rates, plain = (3e-3, 1e-2), dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=None))
    space = {"optimizer.learning_rate": list(rates)}
    results = Sweep(base=plain, space=space, out=str(tmp_path / "sweep"), width=width).run().complete
    assert len(results) == 2
    for line, rate in zip(results, rates, strict=True):
        alone = dataclasses.replace(
            plain, run_dir=str(tmp_path / f"{rate}"), optimizer=dataclasses.replace(plain.optimizer, learning_rate=rate)
        )
        summary = train.fit(alone).summary
        assert line["accuracy"] == summary["accuracy"] and line["bits_per_byte"] is None
        np.testing.assert_allclose(line["eval_loss"], summary["eval_loss"], rtol=1e-4)


def test_micro_batches_add_up(config, tmp_path):
    plain = dataclasses.replace(
        config, task=ClassifyConfig(), model=dataclasses.replace(config.model, dropout=None), steps=3, eval_every=3
    )
    found = [
        train.fit(dataclasses.replace(plain, run_dir=str(tmp_path / str(n)), micro_batches=n)).summary for n in (1, 4)
    ]
    assert math.isclose(found[0]["eval_loss"], found[1]["eval_loss"], rel_tol=1e-5)


def test_a_loss_that_cannot_be_leaves_no_run_behind(config, tmp_path):
    with pytest.raises(UserError, match="flip"):
        train.fit(dataclasses.replace(config, run_dir=str(tmp_path / "run"), task=ClassifyConfig(augment=("flp",))))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [{"sample_every": 5}, {"rows": "packed"}, {"clean": "plain"}, {"fim_rate": 0.5}])
def test_what_only_text_has_is_refused(config, tmp_path, changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        train.fit(dataclasses.replace(config, run_dir=str(tmp_path), **changes))
