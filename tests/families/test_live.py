"""The same comparisons live, where transformers and PyTorch are installed: what we read, what we write, what is left out of a config."""

import json

import cases
import jax
import numpy as np
import pytest

from research import hf, sample
from research.core.errors import UserError
from research.families import MODEL_TYPES
from research.model import transformer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# One of each kind of layer that transformers has; the stored expectations cover the rest.
LIVE = [
    "gpt2", "gpt-neo", "gpt-neox", "llama-3.1", "mistral", "mixtral", "qwen2-tied-windows", "qwen3", "qwen3-moe", "gemma", "gemma2", "gemma3-scaled",
    "glm", "glm4", "phi3-longrope", "olmo2",
]  # fmt: skip

IN_FLOAT64 = ("gpt2",)  # the others norm, rotate or attend in float32 there, whatever the model's dtype


def theirs(folder):
    """The model that transformers loads from a folder, in float64."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(folder, attn_implementation="eager", experts_implementation="eager", dtype=torch.float64).eval()


@pytest.mark.parametrize("name", LIVE)
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_what_we_write_transformers_loads_unchanged_and_computes_alike_in_float64(name, folder, tmp_path):
    with jax.enable_x64(True):
        model = hf.load(folder(name), dtype="float64")
        saved = hf.save(model.params, model.config, None, tmp_path / "saved")
        tokens = cases.tokens(model.config.V)
        ours = np.asarray(jax.jit(lambda params: transformer.forward(params, tokens, model.config))(model.params))
    other = theirs(saved)
    with torch.no_grad():
        expected = other(torch.tensor(tokens.astype(np.int64))).logits.numpy()
    assert ours.dtype == np.float64 and np.std(expected) > 0.5
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-8 if name in IN_FLOAT64 else 1e-4)


@pytest.mark.parametrize("kind", sorted(set(MODEL_TYPES) - {"chatglm"}))
def test_fields_that_a_config_leaves_out_are_as_transformers_has_them(kind):
    family, full = MODEL_TYPES[kind], transformers.AutoConfig.for_model(kind).to_dict()
    whole = family.config_from_hf(full)
    for name in full:
        try:
            assert family.config_from_hf({key: value for key, value in full.items() if key != name}) == whole, name
        except UserError as error:
            assert f"{name} is missing" in str(error) or name == "model_type"


@pytest.mark.filterwarnings("ignore")
def test_a_tokeniser_and_its_stop_go_out_with_the_model(folder, tmp_path):
    from research.data import tokenizer as tokenizers
    from research.data.encoding import byte_description

    byte = tokenizers.parse(json.dumps(byte_description()), "test")
    config = {**cases.expected()["llama"]["config"], "vocab_size": 260}
    shapes = {
        **cases.expected()["llama"]["shapes"],
        "model.embed_tokens.weight": (260, 24),
        "lm_head.weight": (260, 24),
    }
    path = folder("llama", config, shapes)
    model = hf.load(path)
    saved = hf.save(model.params, model.config, byte, tmp_path / "saved")
    tokenizer, other = transformers.AutoTokenizer.from_pretrained(saved), theirs(saved)
    text = "你好 abc"
    assert tokenizer(text).input_ids == byte.encode(text).tolist()
    assert other.generation_config.eos_token_id == 256
    with torch.no_grad():
        out = other.generate(torch.tensor([tokenizer(text).input_ids]), do_sample=False, max_new_tokens=20)
    again = hf.load(saved)
    found = sample.continuations(again, [text], sample.Sampling(max_tokens=20, temperature=0.0))[0]
    assert list(found.tokens) == out[0, len(found.prompt_tokens) :].tolist()
