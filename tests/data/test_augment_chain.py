"""The form that all augmentations share, their names in a config, and data sets made larger."""

import dataclasses
from pathlib import Path

import augment_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from augment_cases import batch_of, each, keys, names, run
from hypothesis import given, settings
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data.augment import audio, images, mixing, spans, text
from research.data.augment.base import Augmentation
from research.data.augment.chain import REGISTRY, augment, expand, parse
from research.data.augment.randaugment import RandAugment

KINDS = ("image", "text", "audio")
ROOT = Path(__file__).resolve().parents[2]
MADE = {"targets", "inputs", "inputs_length", "targets_length"}  # arrays that are new in a batch


@pytest.mark.parametrize("what", KINDS)
@settings(max_examples=10)
@given(seed=keys)
def test_strength_0_gives_the_batch_exactly(what, seed):
    given_batch = batch_of(what)
    for name, made in each(what, seed, 0.0).items():
        for array, value in given_batch.items():
            np.testing.assert_array_equal(made[array], value, err_msg=f"{name} {array}")
        if "targets" in made and what != "text":
            np.testing.assert_array_equal(made["targets"], np.eye(4)[given_batch["label"]], err_msg=name)
        if "inputs" in made:
            np.testing.assert_array_equal(made["inputs"], given_batch["tokens"])
            assert (made["targets_length"] == 1).all()


@pytest.mark.parametrize("what", KINDS)
@settings(max_examples=10)
@given(seed=keys, share=st.floats(0, 1, width=32, allow_subnormal=False))
def test_shapes_dtypes_and_ranges_are_kept_and_a_key_says_all(what, seed, share):
    made, again = each(what, seed, share), each(what, seed, share)
    for name, one in made.items():
        for array, value in batch_of(what).items():
            assert (one[array].shape, one[array].dtype) == (value.shape, value.dtype), f"{name} {array}"
        for array, value in one.items():
            assert array in batch_of(what) or array in MADE
            assert np.isfinite(value).all()
            np.testing.assert_array_equal(value, again[name][array], err_msg=f"{name} {array}")
    for name, one in made.items() if what == "image" else ():
        assert one["image"].min() >= 0 and one["image"].max() <= 1, name


@pytest.mark.parametrize("what", KINDS)
def test_rows_and_keys_differ(what):
    main = {"image": "image", "text": "tokens", "audio": "audio"}[what]
    batch = batch_of(what)
    same = {name: np.repeat(array[1:2], cases.ROWS, axis=0) for name, array in batch.items()}
    rows, first, second = each(what, 1, batch=same), each(what, 1), each(what, 2)
    for name in names(what):
        array = {"specaugment": "mel", "mixup_mel": "mel", "spans": "inputs"}.get(name, main)
        assert (first[name][array] != second[name][array]).any(), name
        if name in ("mixup", "mixup_mel", "cutmix"):  # of equal rows all mixtures are equal
            np.testing.assert_allclose(rows[name][array], same[array], atol=1e-6)
        else:
            assert len(np.unique(rows[name][array].reshape(cases.ROWS, -1), axis=0)) > 1, name


def test_places_in_a_chain_have_keys_of_their_own():
    batch, chain = batch_of("image"), (images.Flip(0.5), images.Flip(0.5))
    made = [run(batch, jax.random.key(seed), chain)["image"] for seed in range(3)]
    assert any((image != batch["image"]).any() for image in made)  # with one key, what is flipped is flipped back


def chain_of(what: str) -> tuple[Augmentation, ...]:
    """Most augmentations of a kind, one after the other."""
    some = {
        "image": ("flip", "rotate", "crop", "jitter", "cutout", "mixup", "cutmix"),
        "text": ("replace", "insert", "delete", "swap", "spans"),
        "audio": ("shift", "noise", "gain", "speed", "specaugment", "mixup"),
    }[what]
    return parse(some, what, **cases.SIZES)


@pytest.mark.parametrize("what", KINDS)
def test_jit_and_vmap_over_keys_change_nothing(what):
    chain, batch, two = chain_of(what), batch_of(what), jax.random.split(jax.random.key(3))
    plain = [augment(batch, key, chain) for key in two]
    mapped = jax.jit(jax.vmap(augment, (None, 0, None)))(batch, two, chain)
    for i, key in enumerate(two):
        compiled = run(batch, key, chain)
        assert set(compiled) == set(plain[i]) == set(mapped)
        for name, value in plain[i].items():
            np.testing.assert_allclose(compiled[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
            np.testing.assert_allclose(mapped[name][i], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_one_program_serves_all_strengths():
    program, key, batch = jax.jit(lambda *parts: augment(*parts)), jax.random.key(0), batch_of("image")
    turned = [program(batch, key, (images.Rotate(s), images.Flip(0.5)))["image"] for s in (0.0, 5.0, 50.0)]
    assert program._cache_size() == 1 and (turned[1] != turned[2]).any()
    program(batch, key, (images.Rotate(5.0, fill=0.5), images.Flip(0.5)))
    assert program._cache_size() == 2  # choices are static
    stacked = (images.Rotate(jnp.array([0.0, 5.0, 50.0])), images.Flip(jnp.full(3, 0.5)))
    swept = jax.vmap(augment, (None, None, 0))(batch, key, stacked)
    np.testing.assert_allclose(swept["image"], jnp.stack(turned), atol=1e-5)


def test_a_strength_given_in_the_call_counts():
    batch, key = batch_of("image"), jax.random.key(0)
    expected = images.Rotate(40.0)(batch, key)["image"]
    np.testing.assert_array_equal(images.Rotate(1.0)(batch, key, 40.0)["image"], expected)
    chain = (images.Flip(1.0), images.Rotate(1.0))
    made = augment(batch, key, chain, (None, 0.0))["image"]
    np.testing.assert_array_equal(made, batch["image"][:, :, ::-1])
    with pytest.raises(UserError, match="3 strengths are given for 2"):
        augment(batch, key, chain, (0.0, 0.0, 0.0))
    with pytest.raises(UserError, match="strength of Flip is 2"):
        chain[0](batch, key, 2.0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_kept(dtype):
    batch = {name: jnp.asarray(array) for name, array in batch_of("image").items()}
    batch["image"] = batch["image"].astype(dtype)
    chain = parse(("rotate:20", "jitter", "randaugment:1:9", "mixup:0.2", "cutmix"), classes=4)
    made = run(batch, jax.random.key(1), chain)
    assert made["image"].dtype == dtype and made["targets"].dtype == jnp.float32
    assert made["image"].min() >= 0 and made["image"].max() <= 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: images.Flip(1.5), "strength of Flip is 1.5; expected a number from 0 to 1"),
        (lambda: images.Flip(float("nan")), "strength of Flip is nan"),
        (lambda: images.Flip(direction="sideways"), "direction of Flip is 'sideways'; expected one of horizontal"),
        (lambda: images.Rotate(-1.0), "expected a number of at least 0"),
        (lambda: images.Rotate(fill="wrap"), "fill of Rotate is 'wrap'; expected one of nearest, reflect"),
        (lambda: images.Translate(fill=2.0), "fill of Translate is 2.0"),
        (lambda: RandAugment(31.0), "strength of RandAugment is 31.0; expected a number from 0 to 30"),
        (lambda: mixing.Mixup(array="tokens"), "array of Mixup is 'tokens'"),
        (lambda: text.Replace(), "Replace has no tokens to draw"),
        (lambda: text.Insert(vocabulary=5, first=4), "from 4 to below 5; expected at least two"),
        (lambda: spans.Spans(sentinel=9, mean_span=0.5), "mean_span of Spans is 0.5"),
        (lambda: audio.Speed(4.0), "strength of Speed is 4.0; expected a number from 0 to 3"),
        (lambda: audio.Noise(snr=float("inf")), "snr of Noise is inf"),
    ],
)
def test_bad_numbers_and_choices_are_refused(make, said):
    with pytest.raises(UserError, match=said):
        make()


@pytest.mark.parametrize(
    ("one", "batch", "said"),
    [
        (images.Flip(), {"label": np.zeros(2, np.int32)}, "Flip needs 'image' in the batch, which has label"),
        (images.Flip(), {}, "which has nothing"),
        (images.Flip(), {"image": np.zeros((2, 4, 4, 3), np.uint8)}, "'image' of uint8; expected floating .* 255"),
        (images.Flip(), {"image": np.zeros((4, 4, 3), np.float32)}, r"shape \(4, 4, 3\); expected 4 or 5 axes"),
        (text.Delete(), {"tokens": np.zeros((2, 4), np.int32)}, "Delete needs 'lengths'"),
        (text.Delete(), {"tokens": np.zeros((2, 4), np.float32)}, "'tokens' of float32; expected whole numbers"),
        (mixing.Mixup(), {**batch_of("image")}, "Mixup got labels and no number of classes"),
        (mixing.CutMix(), {**batch_of("image")}, "CutMix got labels and no number of classes"),
        (audio.Noise(bank=jnp.zeros(5)), {"audio": np.zeros((2, 8), np.float32)}, "bank of Noise has shape"),
    ],
)
def test_batches_that_lack_something_are_refused(one, batch, said):
    with pytest.raises(UserError, match=said):
        one(batch, jax.random.key(0))


def test_texts_name_augmentations():
    made = parse(("flip", "crop:0.8", "randaugment:2:9", "mixup:0.2"), what="image", classes=10)
    assert made == (images.Flip(), images.Crop(0.8), RandAugment(9.0, operations=2), mixing.Mixup(0.2, 10))
    assert parse(("flip_vertical:0.1", " jitter:0.1:0.2 ")) == (
        images.Flip(0.1, "vertical"),
        images.Jitter(brightness=0.1, contrast=0.2),
    )
    assert parse(("spans:0.2:4",), "text", vocabulary=100) == (spans.Spans(0.2, sentinel=99, mean_span=4.0),)
    assert parse(("spans",), "text", sentinel=7) == (spans.Spans(sentinel=7),)
    assert parse(("noise:10", "mixup:0.3"), "audio")[1] == mixing.Mixup(0.3, array="audio")
    assert parse(()) == ()


@pytest.mark.parametrize(
    ("spec", "what", "said"),
    [
        ("flpi", "image", "augmentation 'flpi': there is no 'flpi' for image; did you mean 'flip'"),
        ("", "image", "there is no '' for image"),
        ("delete", "image", "'delete' is an augmentation of text, and not of image"),
        ("flip:x", "image", "augmentation 'flip:x': strength is 'x'; expected a number"),
        ("flip:inf", "image", "strength is 'inf'"),
        ("flip:1.1", "image", "augmentation 'flip:1.1': strength of Flip is 1.1"),
        ("randaugment:1.5:9", "image", "operations is '1.5'; expected a whole number"),
        ("rotate:1:2", "image", "has 2 numbers; expected at most 1: strength"),
        ("replace", "text", "augmentation 'replace': Replace has no tokens to draw"),
        ("spans", "text", "needs sentinel"),
        ("flip", "video", "no augmentations of 'video'; expected one of image, text, audio"),
    ],
)
def test_texts_that_name_nothing_are_refused(spec, what, said):
    with pytest.raises(UserError, match=said):
        parse((spec,), what)


@given(st.sampled_from(KINDS), st.text("abcdefghilmnoprstuvx:_.0123456789-", max_size=16))
def test_any_text_is_read_or_refused(what, spec):
    try:
        (made,) = parse((spec,), what, **cases.SIZES)
    except UserError as error:
        assert repr(spec) in str(error)
    else:
        assert isinstance(made, Augmentation) and spec.split(":")[0] in REGISTRY[what]


def test_fields_that_the_registry_names_exist():
    for entries in REGISTRY.values():
        for entry in entries.values():
            fields = {field.name for field in dataclasses.fields(entry.make)}
            assert {*entry.numbers, *entry.fixed, *entry.sizes} <= fields


def test_the_documentation_lists_every_augmentation():
    lines = (ROOT / "docs" / "augment.md").read_text().splitlines()
    rows = {line.split("`")[1].split(":")[0] for line in lines if line.startswith("| `")}
    assert rows == {name for entries in REGISTRY.values() for name in entries}


def test_expanded_data_are_copies_under_keys_of_their_own():
    draw = np.random.default_rng(0)
    arrays = {
        "image": draw.random((11, 6, 6, 3), np.float32),
        "label": np.arange(11) % 4,
        "name": np.array([f"row {i}" for i in range(11)]),
    }
    chain = (images.Flip(1.0), images.Rotate(20.0), mixing.Mixup(0.5, 4))
    made = expand(arrays, 3, jax.random.key(0), chain, batch_size=4)
    assert {name: array.shape for name, array in made.items()} == {
        "image": (33, 6, 6, 3),
        "label": (33,),
        "name": (33,),
        "targets": (33, 4),
    }
    assert made["name"].tolist() == arrays["name"].tolist() * 3
    assert made["label"].tolist() == arrays["label"].tolist() * 3 and made["label"].dtype == np.int64
    assert len(np.unique(made["image"].reshape(33, -1), axis=0)) == 33
    again = expand(arrays, 2, jax.random.key(0), chain, batch_size=4)
    np.testing.assert_array_equal(made["image"][:22], again["image"])
    assert (expand(arrays, 1, jax.random.key(1), chain, batch_size=4)["image"] != made["image"][:11]).any()
    own = made["targets"][np.arange(33), made["label"]]
    assert (own > 0).all() and made["targets"].min() >= 0


@pytest.mark.parametrize("batch_size", [1, 4, 5, 100])
def test_expanded_rows_keep_their_order_at_every_batch_size(batch_size):
    arrays = {"audio": np.arange(30, dtype=np.float64).reshape(10, 3), "other": np.arange(10.0)}
    made = expand(arrays, 2, jax.random.key(0), (audio.Gain(0.0),), batch_size)
    assert made["audio"].dtype == np.float64
    np.testing.assert_array_equal(made["audio"], np.concatenate([arrays["audio"]] * 2))
    np.testing.assert_array_equal(made["other"], np.concatenate([arrays["other"]] * 2))


def test_what_cannot_be_expanded_is_refused():
    key, one = jax.random.key(0), np.zeros((2, 3), np.float32)
    for arrays, n, said in (
        ({}, 1, "rows"),
        ({"audio": one, "x": one[:1]}, 1, r"\[1, 2\] rows"),
        ({"audio": one}, 0, "0"),
    ):
        with pytest.raises(UserError, match=said):
            expand(arrays, n, key, ())
