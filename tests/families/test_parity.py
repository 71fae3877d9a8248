"""Every family computes what transformers computes, from stored expectations: logits, greedy tokens, and the way back to the same files."""

import json

import cases
import jax
import numpy as np
import pytest
import references
from safetensors.numpy import load_file

from research import hf, sample
from research.core import params as P
from research.families import MODEL_TYPES, glm130b, of_hf
from research.model import transformer
from research.model.config import Slot

NAMES = sorted(cases.CASES)
# One of each way to decode: rings, soft caps, two rotary bases, experts, interleaved halves, DeepNorm has a test of its own.
DECODED = [
    name
    for name in NAMES
    if not name.endswith(("biased", "untied-relu-unscaled", "uneven", "version-4", "linear", "biased-tied"))
]


def test_every_family_with_a_format_has_a_case():
    assert {case["model_type"] for case in cases.CASES.values()} == set(MODEL_TYPES)


@pytest.mark.parametrize("name", NAMES)
def test_logits(name, folder, logits):
    model = hf.load(folder(name))
    tokens = cases.tokens(model.config.V)
    out = jax.jit(lambda params: transformer.forward(params, tokens, model.config))(model.params)
    assert np.std(logits[name]) > 0.5  # of order 1
    np.testing.assert_allclose(np.asarray(out)[:, ::4], logits[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", DECODED)
def test_64_greedy_tokens(name, folder):
    model = hf.load(folder(name))
    prompts = [row.tolist() for row in cases.tokens(model.config.V)]
    results = sample.continuations(model, prompts, sample.Sampling(max_tokens=cases.NEW, temperature=0.0))
    assert [list(one.tokens) for one in results] == cases.expected()[name]["greedy"]


@pytest.mark.parametrize("name", NAMES)
def test_the_way_back_gives_the_same_tensors_and_config(name, folder, tmp_path):
    source = folder(name)
    model = hf.load(source)
    saved = hf.save(model.params, model.config, None, tmp_path / "saved")
    before, after = load_file(source / "model.safetensors"), load_file(saved / "model.safetensors")
    family = of_hf(cases.expected()[name]["config"])
    assert set(after) == {key for key in before if not key.endswith("inv_freq")}
    for key, value in after.items():
        np.testing.assert_array_equal(value, before[key], err_msg=key, strict=True)
    written = json.loads((saved / "config.json").read_text())
    assert family.config_from_hf(written) == model.config or not hf.families.family.differences(
        family.config_from_hf(written), model.config
    )
    assert written["model_type"] == cases.expected()[name]["config"]["model_type"] and written["architectures"] == [
        family.architecture
    ]
    again = hf.load(saved)
    assert P.digest(again.params) == P.digest(model.params)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_as_its_author_wrote_it_and_as_transformers_writes_it_are_one(name):
    raw, written = cases.CASES[name], cases.expected()[name]["config"]
    family = of_hf(raw)
    assert family is of_hf(written)
    assert family.config_from_hf(raw) == family.config_from_hf(written)


def test_glm130b_is_what_its_paper_says():
    config = glm130b.config(3, 24, 4, 36, vocab_size=53, context=32)
    rng = np.random.default_rng(0)
    flat = {}
    for path, p in P.flatten(transformer.specs(config)).items():
        x = rng.standard_normal(p.shape)
        flat[path] = (
            1 + 0.2 * x
            if path.endswith("scale")
            else 0.2 * x
            if not p.inputs and "embed/tokens" not in path
            else x * p.matrix_shape[0] ** -0.5
        )
    tokens, prefix = rng.integers(0, 53, (1, 12)), 5
    where = np.array([0, 1, 2, 3, 4, 2, 2, 2, 5, 6, 7, 8])
    inputs = {"tokens": tokens, "positions": where[None], "prefix": np.array([prefix])}
    params = P.unflatten({path: np.asarray(x, np.float32) for path, x in flat.items()})
    out = jax.jit(lambda params: transformer.apply(params, inputs, config).outputs)(params)
    expected = references.glm130b(flat, 3, 4, tokens[0], where, prefix)
    np.testing.assert_allclose(np.asarray(out)[0], expected, rtol=0, atol=1e-4)
    assert config.segments[0][0] == (Slot("prefix"),)
