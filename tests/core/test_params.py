"""Parameters as data: declarations, initial values, counts, masks and the digest."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core import params as P
from research.core import rng
from research.model import transformer
from research.model.config import ModelConfig

SMALL = {
    "table": P.Param((7, 4), ("vocab", "embed"), P.normal(0.5)),
    "layer": {
        "query": P.Param((4, 2, 3), ("embed", "heads", "head"), P.normal(0.1), inputs=1).stack(3),
        "output": P.Param((2, 3, 4), ("heads", "head", "embed"), P.Init("uniform", 0.2), inputs=2).stack(3),
        "scale": P.Param((4,), ("embed",), P.ONES).stack(3),
    },
    "logit_bias": P.Param((7,), ("vocab",), P.ZEROS),
}
GPT2_BIAS = ("query", "key", "value", "attention-output", "mlp-in", "mlp-out", "norm")


@pytest.mark.parametrize(
    ("shape", "axes", "inputs", "message"),
    [
        ((2, 3), ("embed",), 0, "one per dimension"),
        ((2, 0), ("embed", "mlp"), 1, "empty dimension"),
        ((2, 3), ("embed", "mlp"), 3, "cannot contract"),
        ((2, 3), ("layers", "embed"), 2, "cannot contract"),
        ((2, 3), ("embed", "mlp"), -1, "cannot contract"),
    ],
)
def test_declarations_that_contradict_themselves_are_refused(shape, axes, inputs, message):
    with pytest.raises(ValueError, match=message):
        P.Param(shape, axes, P.ZEROS, inputs)


def test_unknown_initialiser_is_refused():
    with pytest.raises(ValueError, match="expected normal, uniform or constant"):
        P.Init("gaussian")  # pyright: ignore[reportArgumentType]


def test_stacking_keeps_the_view_of_one_layer():
    query = SMALL["layer"]["query"]
    assert (query.shape, query.axes) == ((3, 4, 2, 3), ("layers", "embed", "heads", "head"))
    assert query.stacked and query.matrix_shape == (4, 6) and query.size == 72
    assert SMALL["layer"]["output"].matrix_shape == (6, 4)


def test_kinds_and_the_decay_mask():
    kinds = {path: p.kind for path, p in P.flatten(SMALL).items()}
    assert kinds == {
        "layer/output": "matrix", "layer/query": "matrix", "layer/scale": "vector", "logit_bias": "vector", "table": "table",
    }  # fmt: skip
    decayed = {path for path, on in P.flatten(P.decay_mask(SMALL)).items() if on}
    assert decayed == {"layer/output", "layer/query", "table"}


def test_no_norm_scale_or_bias_of_a_transformer_is_decayed():
    config = ModelConfig(
        vocab_size=5, bias=(*GPT2_BIAS, "unembed"), tied=False, norm="layer", positions="learned", qk_norm="whole"
    )
    specs, mask = P.flatten(transformer.specs(config)), P.flatten(P.decay_mask(transformer.specs(config)))
    for path, decayed in mask.items():
        assert decayed != ("norm" in path or "bias" in path), path
        assert decayed == (specs[path].init.kind == "normal"), path


def test_flatten_and_unflatten_are_inverse_and_sorted():
    flat = P.flatten(SMALL)
    assert list(flat) == sorted(flat)
    assert P.unflatten(flat) == SMALL


def test_initial_values_have_the_declared_shape_scale_and_dtype():
    specs = {
        "n": P.Param((200, 300), ("embed", "mlp"), P.normal(0.5), 1),
        "u": P.Param((200, 300), ("embed", "mlp"), P.Init("uniform", 2.0), 1),
    }
    values = jax.jit(lambda key: P.init({**specs, **SMALL}, key, jnp.bfloat16))(jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), values) == P.tree_map(
        lambda p: (p.shape, jnp.bfloat16), {**specs, **SMALL}
    )
    assert abs(float(jnp.std(values["n"].astype(jnp.float32))) - 0.5) < 0.01
    u = np.asarray(values["u"], np.float32)
    assert u.min() >= -2 and u.max() <= 2 and abs(u.std() - 2 / 3**0.5) < 0.02
    assert (np.asarray(values["layer"]["scale"]) == 1).all() and (np.asarray(values["logit_bias"]) == 0).all()


def test_adding_a_leaf_changes_no_other_and_no_two_leaves_agree():
    shape = P.Param((4, 4), ("embed", "mlp"), P.normal(1.0), 1)
    few, more = {"a": {"x": shape}, "c": shape}, {"a": {"w": shape, "x": shape}, "b": shape, "c": shape}
    before, after = jax.jit(lambda key: (P.init(few, key), P.init(more, key)))(jax.random.key(3))
    after_flat = P.flatten(after)
    for path, value in P.flatten(before).items():
        np.testing.assert_array_equal(value, after_flat[path], err_msg=path)
    values = [np.asarray(v) for v in after_flat.values()]
    assert all((a != b).all() for i, a in enumerate(values) for b in values[:i])


def test_abstract_allocates_nothing_and_agrees_with_init():
    shapes = P.abstract(SMALL, jnp.bfloat16)
    assert shapes == jax.eval_shape(lambda: P.init(SMALL, jax.random.key(0), jnp.bfloat16))


@pytest.mark.parametrize(
    ("width", "layers", "heads", "count"),
    [
        (768, 12, 12, 124_439_808),
        (1024, 24, 16, 354_823_168),
        (1280, 36, 20, 774_030_080),
        (1600, 48, 25, 1_557_611_200),
    ],
)
def test_exact_counts_of_the_published_gpt2_sizes(width, layers, heads, count):
    config = ModelConfig(
        vocab_size=50257, context=1024, width=width, layers=layers, heads=heads, positions="learned", norm="layer",
        activation="gelu-tanh", bias=GPT2_BIAS, tied=True,
    )  # fmt: skip
    assert P.count(transformer.specs(config)) == count


def test_digest_is_sha256_over_path_dtype_shape_and_bytes():
    tree = {"b": {"x": jnp.arange(3, dtype=jnp.int32)}, "a": jnp.ones((2, 1), jnp.float32)}
    expected = hashlib.sha256()
    for path, name, array in (
        ("a", "float32", np.ones((2, 1), np.float32)),
        ("b/x", "int32", np.arange(3, dtype=np.int32)),
    ):
        expected.update(f"{path}\0{name}\0{array.shape}\0".encode() + array.tobytes())
    assert P.digest(tree) == expected.hexdigest()


def test_digest_sees_a_single_bit_the_sign_of_zero_paths_shapes_and_dtypes():
    base = np.array([0.0, 1.0, np.nan, 3.0], np.float32)
    flipped = base.copy()
    flipped.view(np.uint32)[1] ^= 1
    variants = [
        {"w": base}, {"w": flipped}, {"w": np.where(base == 0, -0.0, base).astype(np.float32)}, {"v": base}, {"w": base.reshape(2, 2)},
        {"w": base.view(np.int32)}, {"w": base.astype(np.float64)}, {"w": {"w": base}}, {"w": base, "x": base},
    ]  # fmt: skip
    digests = [P.digest(v) for v in variants]
    assert len(set(digests)) == len(variants)
    assert P.digest({"w": jnp.asarray(base)}) == digests[0], "a device array is its bytes"
    assert P.digest({"w": base.reshape(2, 2).T}) == P.digest({"w": np.ascontiguousarray(base.reshape(2, 2).T)})


def test_names_give_keys_that_differ_and_stay():
    assert rng.name_to_int("decoder/0/0/attention/query") == int.from_bytes(
        hashlib.sha256(b"decoder/0/0/attention/query").digest()[:4], "little"
    )
    config = ModelConfig(vocab_size=5, layers=7, patterns=("full",) * 6, tied=False)
    paths = list(P.flatten(transformer.specs(config)))
    assert len({rng.name_to_int(path) for path in paths}) == len(paths)


def test_fold_takes_names_numbers_and_traced_numbers_in_order():
    key = jax.random.key(0)
    data = lambda *parts: tuple(np.asarray(jax.random.key_data(rng.fold(key, *parts))))  # noqa: E731
    assert data("a", 3) == tuple(
        np.asarray(jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, rng.name_to_int("a")), 3)))
    )
    assert (
        len({data(), data("a"), data("b"), data("a", "b"), data("b", "a"), data("a", 1), data(1, "a"), data("a", 2)})
        == 8
    )
    traced = jax.jit(lambda seed, step: jax.random.key_data(rng.key(seed, "dropout", step)))(
        jnp.uint32(7), jnp.int32(5)
    )
    np.testing.assert_array_equal(traced, jax.random.key_data(rng.key(7, "dropout", 5)))


def test_params_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL["table"].shape = (1,)
