"""Folders in Hugging Face's layout: what is read, what is refused, and what is written."""

import dataclasses
import json
import pickle

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research import hf
from research.core import params as P
from research.core.errors import UserError
from research.data import tokenizer as tokenizers
from research.data.encoding import byte_description
from research.families import FAMILIES, MODEL_TYPES, gpt2, preset
from research.model import transformer
from research.model.config import ModelConfig, MoEConfig, RopeConfig

LLAMA = "llama"


@pytest.fixture
def byte():
    return tokenizers.parse(json.dumps(byte_description()), "test")


def test_the_dtype_asked_for_is_the_dtype_of_every_leaf(folder):
    path = folder(LLAMA)
    kept, half = hf.load(path), hf.load(path, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(kept.params)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
    for a, b in zip(jax.tree.leaves(kept.params), jax.tree.leaves(half.params), strict=True):
        np.testing.assert_array_equal(np.asarray(a.astype(jnp.bfloat16)), np.asarray(b))
    with pytest.raises(UserError, match="dtype is 'int8'; expected one of float32, bfloat16"):
        hf.load(path, dtype="int8")


def test_saving_in_another_dtype_and_loading_it_is_bitwise_the_cast(folder, tmp_path):
    model = hf.load(folder(LLAMA))
    saved = hf.save(model.params, model.config, None, tmp_path / "half", dtype="bfloat16")
    assert json.loads((saved / "config.json").read_text())["torch_dtype"] == "bfloat16"
    cast = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    assert P.digest(hf.load(saved).params) == P.digest(cast)


def test_a_leaf_of_parts_in_different_dtypes_takes_the_wider(folder):
    path = folder(LLAMA)
    stored = load_file(path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    stored[name] = stored[name].astype(np.float16)
    save_file(stored, path / "model.safetensors")
    leaf = hf.load(path).params["decoder"]["0"]["0"]["mlp"]["in"]
    assert leaf.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(leaf[1]), stored[name].T.astype(np.float32))


def test_missing_extra_and_misshapen_tensors_are_all_listed(folder):
    path = folder(LLAMA)
    stored = load_file(path / "model.safetensors")
    del stored["model.norm.weight"], stored["model.layers.2.self_attn.q_proj.weight"]
    stored["model.layers.7.extra"] = np.zeros(3, np.float32)
    stored["model.embed_tokens.weight"] = np.zeros((66, 24), np.float32)
    save_file(stored, path / "model.safetensors")
    with pytest.raises(UserError) as error:
        hf.load(path)
    for part in ("2 missing: model.layers.2.self_attn.q_proj.weight; model.norm.weight", "1 extra: model.layers.7.extra",
                 "1 misshapen: model.embed_tokens.weight is 66x24, expected 67x24"):  # fmt: skip
        assert part in str(error.value)


def test_whole_numbers_are_no_weights(folder):
    path = folder(LLAMA)
    stored = load_file(path / "model.safetensors")
    stored["model.norm.weight"] = np.ones(24, np.int32)
    save_file(stored, path / "model.safetensors")
    with pytest.raises(UserError, match="1 of a wrong type: model.norm.weight is int32, expected floating point"):
        hf.load(path)


@pytest.mark.parametrize("where", [None, 3, ""])
def test_what_is_no_name_at_all_is_refused(where):
    with pytest.raises(UserError, match=f"there is {where!r} where the folder of a model or an id"):
        hf.load(where)


def test_names_without_their_prefix_are_those_of_the_bare_model(folder):
    path = folder("gpt2")
    before = P.digest(hf.load(path).params)
    stored = load_file(path / "model.safetensors")
    bare = {name.removeprefix("transformer."): value for name, value in stored.items()}
    bare["h.0.attn.bias"] = np.tril(np.ones((1, 1, 8, 8), np.float32))  # a mask, as the published files hold it
    save_file(bare, path / "model.safetensors")
    assert P.digest(hf.load(path).params) == before


def test_a_tied_model_may_hold_its_head_once_more(folder):
    path = folder("gpt2")
    stored = load_file(path / "model.safetensors")
    save_file({**stored, "lm_head.weight": stored["transformer.wte.weight"].copy()}, path / "model.safetensors")
    assert "unembed" not in hf.load(path).params


def test_a_head_that_a_tied_model_holds_once_more_has_its_table_s_shape(folder):
    path = folder("gpt2")
    save_file(
        {**load_file(path / "model.safetensors"), "lm_head.weight": np.zeros((3, 3), np.float32)},
        path / "model.safetensors",
    )
    with pytest.raises(UserError, match="lm_head.weight is 3x3, expected 67x24"):
        hf.load(path)


def test_links_out_of_the_folder_are_refused(folder, tmp_path):
    path = folder(LLAMA)
    (tmp_path / "elsewhere.json").write_text("{}")
    (path / "tokenizer.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(UserError, match="is a link to .*elsewhere.json, outside the folder"):
        hf.load(path)


def test_what_transformers_does_not_read_is_neither_read_nor_written(tmp_path):
    values = {**cases.expected()[LLAMA]["config"], "partial_rotary_factor": 0.5}
    assert MODEL_TYPES["llama"].config_from_hf(values).rope.fraction == 1
    half = ModelConfig(
        vocab_size=9, width=16, layers=1, heads=2, rope=RopeConfig(fraction=0.5), tied=False, family="llama"
    )
    with pytest.raises(UserError, match="cannot say model.rope"):
        hf.save({}, half, None, tmp_path / "out")


def test_every_layer_of_a_qwen3_moe_model_slides_or_none(tmp_path):
    values = {
        **cases.expected()["qwen3-moe"]["config"],
        "use_sliding_window": True,
        "max_window_layers": 2,
        "sliding_window": 4,
    }
    found = MODEL_TYPES["qwen3_moe"].config_from_hf(values)
    assert (found.patterns, found.window) == (("sliding",), 4)
    mixed = dataclasses.replace(found, patterns=("full", "sliding"))
    with pytest.raises(UserError, match="cannot say model.patterns"):
        hf.save({}, mixed, None, tmp_path / "out")


def test_a_model_of_a_base_width_goes_out_as_the_standard_one(tmp_path, tiny):
    config = tiny.config(base_width=8, family="llama")
    params = tiny.params(config)
    loaded = hf.load(hf.save(params, config, None, tmp_path / "out"))
    assert loaded.config.base_width is None
    tokens = tiny.tokens(config)
    one, other = tiny.forward(params, tokens, config), tiny.forward(loaded.params, tokens, loaded.config)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_shards_and_their_index_are_one_model(folder, tmp_path):
    model = hf.load(folder("qwen3-moe"))
    saved = hf.save(model.params, model.config, None, tmp_path / "shards", max_shard_bytes=20_000)
    names = sorted(file.name for file in saved.glob("*.safetensors"))
    assert len(names) > 3 and names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(names)
    assert P.digest(hf.load(saved).params) == P.digest(model.params)
    (saved / names[1]).unlink()
    with pytest.raises(UserError, match=names[1]):
        hf.load(saved)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd.safetensors", "a/b.safetensors"])
def test_an_index_that_leads_out_of_the_folder_is_refused(folder, shard):
    path = folder(LLAMA)
    (path / "model.safetensors").rename(path.parent / "model.safetensors")
    index = {"weight_map": dict.fromkeys(cases.expected()[LLAMA]["shapes"], shard)}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="expected the bare name of a .safetensors file"):
        hf.load(path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_is_never_opened(folder, name):
    path = folder(LLAMA)
    (path / "model.safetensors").unlink()

    class Bomb:
        def __reduce__(self):
            return (print, ("opened",))

    (path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="Only safetensors are read: pickle can run code"):
        hf.load(path)


def test_what_is_no_model_is_refused_with_the_way_out(folder, tmp_path):
    with pytest.raises(UserError, match="no such folder, and it is no id of the hub"):
        hf.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no config.json that can be read"):
        hf.load(tmp_path / "empty")
    path = folder(LLAMA)
    with pytest.raises(UserError, match="is a file; give the folder"):
        hf.load(path / "config.json")
    (path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is not JSON"):
        hf.load(path)
    (path / "config.json").write_text(json.dumps({"schema": 1, "config": {}, "identity": {}}))
    with pytest.raises(UserError, match="is a run directory"):
        hf.load(path)


@pytest.mark.parametrize(
    ("case", "field", "value"),
    [
        (LLAMA, "model_type", "bert"), (LLAMA, "hidden_act", "mish"), (LLAMA, "num_attention_heads", "four"), (LLAMA, "hidden_size", -3),
        (LLAMA, "quantization_config", {"bits": 4}), (LLAMA, "rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True), ("gpt2", "add_cross_attention", True), ("gemma", "use_bidirectional_attention", True),
        ("chatglm2", "add_bias_linear", True), ("chatglm2", "quantization_bit", 4), ("chatglm2", "pre_seq_len", 128),
        ("phi3", "attention_bias", True), ("qwen3", "layer_types", ["chunked_attention"] * 3), ("gpt-neo", "attention_types", [[["wide"], 4]]),
        ("gpt-neox", "use_parallel_residual", "yes"), ("qwen2-tied-windows", "max_window_layers", "a"), ("qwen3-moe", "mlp_only_layers", 3),
        ("gemma2", "query_pre_attn_scalar", 0), ("gemma3", "rope_parameters", {"full_attention": 3, "sliding_attention": 7}),
        (LLAMA, "rms_norm_eps", 10**400), (LLAMA, "num_hidden_layers", 300_000),
        (LLAMA, "num_key_value_heads", 3), ("chatglm2", "multi_query_group_num", 3), ("qwen3-moe", "num_experts_per_tok", 99),
        (LLAMA, "rope_scaling", {"rope_type": "linear", "factor": -2.0}),
    ],
)  # fmt: skip
def test_a_feature_that_we_lack_is_named_by_field_and_value(folder, case, field, value):
    config = {**cases.expected()[case]["config"], field: value}
    if field == "rope_scaling":
        config.pop("rope_parameters", None)
    path = folder(case, config)
    with pytest.raises(UserError) as error:
        hf.load(path)
    said = str(error.value)
    if field == "rope_scaling":
        field, value = next(pair for pair in value.items() if pair[0] in said)
    assert said.startswith(str(path)) and f"{field} is {value!r}" in said


@pytest.mark.parametrize("kind", sorted(MODEL_TYPES))
def test_a_config_that_lacks_everything_is_refused_or_all_defaults(kind):
    try:
        assert MODEL_TYPES[kind].config_from_hf({"model_type": kind}).layers > 1
    except UserError as error:
        assert "is missing; expected a whole number above 0" in str(error)


def test_a_folder_is_written_whole_or_not_at_all(folder, tmp_path, monkeypatch):
    model = hf.load(folder(LLAMA))
    monkeypatch.setattr(hf.writer, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        hf.save(model.params, model.config, None, tmp_path / "new" / "out")
    assert list((tmp_path / "new").iterdir()) == []


def test_what_is_there_is_not_written_over(folder, tmp_path):
    model = hf.load(folder(LLAMA))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="already holds something; give a new folder"):
        hf.save(model.params, model.config, None, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_parameters_that_are_not_those_of_the_config_are_listed(folder, tmp_path):
    model = hf.load(folder(LLAMA))
    params = {**model.params, "more": jnp.zeros(2), "embed": {"tokens": jnp.zeros((3, 4))}}
    del params["final_norm"]
    with pytest.raises(
        UserError, match=r"embed/tokens is 3x4, expected 67x24; final_norm/scale is missing; more is extra"
    ):
        hf.save(params, model.config, None, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "family"),
    [
        ({}, "llama"), ({"tied": True}, "llama"), ({"qk_norm": "head"}, "qwen3"), ({"qk_norm": "whole", "norm_placement": "branch-output"}, "olmo2"),
        ({"bias": ("query", "key", "value")}, "qwen2"), ({"patterns": ("sliding",)}, "mistral"),
        ({"feed_forward": ("moe",), "moe": MoEConfig(4, 2)}, "mixtral"),
        ({"rope": RopeConfig(fraction=0.5, layout="interleaved")}, "glm"),
        ({"positions": "learned", "norm": "layer", "activation": "gelu-tanh", "bias": gpt2.BIAS}, "gpt2"),
    ],
)  # fmt: skip
def test_a_model_of_ours_goes_out_in_the_format_of_the_first_family_that_can_hold_it(changes, family, tmp_path, byte):
    config = ModelConfig(
        vocab_size=257, context=16, width=16, layers=2, heads=2, window=5, **{"tied": False, **changes}
    )
    params = P.init(transformer.specs(config), jax.random.key(0))
    saved = hf.load(hf.save(params, config, byte, tmp_path / "out"))
    assert saved.config.family == family and P.digest(saved.params) == P.digest(params)
    assert saved.tokenizer is not None and saved.tokenizer.fingerprint == byte.fingerprint


@pytest.mark.parametrize(
    "changes", [{"positions": "alibi"}, {"patterns": ("full", "sliding")}, {"residual": "parallel-shared"}]
)
def test_a_model_that_no_format_can_hold_is_refused_with_what_stands_in_the_way(changes, tmp_path):
    config = ModelConfig(vocab_size=9, width=16, layers=2, heads=2, **changes)
    with pytest.raises(UserError, match=rf"no family's config.json can hold this model.*{next(iter(changes))}"):
        hf.save({}, config, None, tmp_path / "out")


# -- the hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's cache in a folder of the test, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_model_in_the_hub_s_cache_is_read_through_its_links(folder, hub):
    source, revision = folder(LLAMA), "0123456789abcdef0123456789abcdef01234567"
    home = hub / "models--someone--small"
    snapshot, blobs = home / "snapshots" / revision, home / "blobs"
    for one in (snapshot, blobs, home / "refs"):
        one.mkdir(parents=True)
    (home / "refs" / "main").write_text(revision)
    for file in source.iterdir():
        (blobs / f"b-{file.name}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/b-{file.name}")
    assert P.digest(hf.load("someone/small").params) == P.digest(hf.load(source).params)
    assert hf.read_config("someone/small") == hf.load(source).config


def test_a_model_that_is_nowhere_says_how_to_get_it(hub):
    with pytest.raises(
        UserError, match=r"no such folder, and the hub cannot be reached .* `hf download someone/other --local-dir DIR`"
    ):
        hf.load("someone/other")


def test_how_a_model_is_computed_is_no_part_of_what_is_published():
    config = preset("gpt2")
    other = dataclasses.replace(config, remat="full", unroll=3, pipeline_rounds=2, pipeline_microbatches=8)
    assert FAMILIES["gpt2"].config_to_hf(other) == FAMILIES["gpt2"].config_to_hf(config)
