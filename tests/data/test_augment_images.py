"""Augmentations of images: beside Pillow, SciPy and colorsys, with inverses, and labels that follow."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from augment_cases import batch_of, keys, run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

from research.data.augment import colour, geometry, images, mixing
from research.data.augment.chain import parse
from research.data.augment.randaugment import MOVES, OPERATIONS, RandAugment, operation

H, W = 12, 16
IMAGE = batch_of("image")["image"][0]
small = st.floats(-1, 1, width=32, allow_subnormal=False)
warp = jax.jit(geometry.warp, static_argnames="fill")
rotate = jax.jit(lambda image, degrees: geometry.warp(image, geometry.rotation(degrees)))
translate = jax.jit(lambda image, right, down: geometry.warp(image, geometry.translation(right, down)))
crop = jax.jit(geometry.crop)


def smooth(size: int = 24) -> np.ndarray:
    """A picture without sharp edges, uint8 [size, size, 3]."""
    y, x = np.mgrid[:size, :size] / size
    waves = np.stack([np.sin(5 * x + 3 * y), np.cos(4 * y - 2 * x), np.sin(6 * x * y + 1)], axis=-1)
    return np.round(127 + 120 * waves).astype(np.uint8)


@settings(max_examples=25)
@given(
    st.lists(small, min_size=6, max_size=6),
    st.sampled_from([(0.0, "grid-constant"), ("nearest",) * 2, ("reflect",) * 2]),
)
def test_the_resampler_is_scipys(numbers, fills):
    ours, theirs = fills
    xx, xy, dx, yx, yy, dy = (
        1 + numbers[0] / 2,
        numbers[1],
        5 * numbers[2],
        numbers[3],
        1 + numbers[4] / 2,
        5 * numbers[5],
    )
    made = warp(IMAGE, geometry.affine(xx, xy, dx, yx, yy, dy), ours)
    matrix, middle = np.array([[yy, yx], [xy, xx]]), np.array([(H - 1) / 2, (W - 1) / 2])
    offset = middle + np.array([dy, dx]) - matrix @ middle
    for channel in range(3):
        expected = ndimage.affine_transform(
            IMAGE[..., channel].astype(np.float64), matrix, offset, order=1, mode=theirs, cval=0.0
        )
        np.testing.assert_allclose(made[..., channel], expected, atol=2e-5)


def test_a_number_to_fill_with_shows_outside():
    moved = warp(IMAGE, geometry.translation(5, 0), 0.25)
    np.testing.assert_array_equal(moved[:, :5], 0.25)
    np.testing.assert_array_equal(moved[:, 5:], IMAGE[:, :-5])


@pytest.mark.parametrize("direction", ["horizontal", "vertical"])
@given(seed=keys)
def test_flipped_twice_is_as_before(direction, seed):
    chain = (images.Flip(1.0, direction),)
    once = run(batch_of("image"), jax.random.key(seed), chain)
    axis = 2 if direction == "horizontal" else 1
    np.testing.assert_array_equal(once["image"], np.flip(batch_of("image")["image"], axis))
    np.testing.assert_array_equal(run(once, jax.random.key(seed), chain)["image"], batch_of("image")["image"])


def test_half_of_the_images_are_flipped():
    batch = {"image": np.tile(np.array([0.0, 1.0], np.float32).reshape(1, 1, 2, 1), (4000, 1, 1, 1))}
    share = run(batch, jax.random.key(0), (images.Flip(0.3),))["image"][:, 0, 0, 0].mean()
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5


@pytest.mark.parametrize("size", [7, 8])
def test_four_quarter_turns_are_none(size):
    image = np.random.default_rng(0).random((size, size, 3), np.float32)
    once = rotate(image, 90.0)
    np.testing.assert_allclose(once, np.rot90(image), atol=1e-5)  # counter-clockwise
    np.testing.assert_allclose(rotate(rotate(rotate(once, 90.0), 90.0), 90.0), image, atol=1e-5)


@given(st.integers(-W, W), st.integers(-H, H))
def test_there_and_back_inside_the_frame_is_as_before(right, down):
    there = np.asarray(translate(IMAGE, right, down))
    back = np.asarray(translate(there, -right, -down))
    expected = np.zeros_like(IMAGE)
    rows = slice(max(-down, 0), H - max(down, 0))
    columns = slice(max(-right, 0), W - max(right, 0))
    expected[rows, columns] = IMAGE[rows, columns]
    np.testing.assert_array_equal(back, expected)
    np.testing.assert_array_equal(there[max(down, 0) : H + down, max(right, 0) : W + right], IMAGE[rows, columns])


def test_scaling_up_and_down_is_nearly_as_before():
    image = (smooth() / 255).astype(np.float32)
    twice = geometry.warp(geometry.warp(image, geometry.scaling(1.25)), geometry.scaling(0.8))
    np.testing.assert_allclose(twice[4:-4, 4:-4], image[4:-4, 4:-4], atol=0.02)
    larger = geometry.warp(image, geometry.scaling(2.0), "nearest")
    np.testing.assert_allclose(larger[::23, ::23].mean(), image[6:19:11, 6:19:11].mean(), atol=0.1)


@settings(max_examples=30)
@given(st.data())
def test_crops_are_pillows(data):
    height, width = data.draw(st.integers(1, H)), data.draw(st.integers(1, W))
    top, left = data.draw(st.integers(0, H - height)), data.draw(st.integers(0, W - width))
    made = crop(IMAGE, top, left, height, width)
    for channel in range(3):
        box = Image.fromarray(IMAGE[top : top + height, left : left + width, channel])
        expected = np.asarray(box.resize((W, H), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(made[..., channel], expected, atol=2e-6)


boxes = jax.jit(
    lambda key, strength: jnp.stack(
        jax.vmap(lambda k: images.Crop(strength).box(k, 24, 24))(jax.random.split(key, 200))
    )
)


@settings(max_examples=20)
@given(keys, st.floats(0, 1, width=32, allow_subnormal=False))
def test_boxes_of_crops_are_whole_inside_and_of_the_shares_asked_for(seed, strength):
    top, left, height, width = np.asarray(boxes(jax.random.key(seed), strength))
    for numbers in (top, left, height, width):
        assert (numbers == np.round(numbers)).all()
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 24).all() and (left + width <= 24).all()
    assert (height >= 1).all() and (width >= 1).all()
    assert (((height + 0.5) * (width + 0.5)) / 24**2 >= 1 - strength - 1e-5).all()
    assert ((width + 0.5) / (height - 0.5) >= 3 / 4).all() and ((width - 0.5) / (height + 0.5) <= 4 / 3).all()


def test_areas_of_crops_are_uniform():
    _, _, height, width = np.asarray(boxes(jax.random.key(0), 0.5))
    areas = (height * width / 24**2)[height < 24]
    assert abs(areas.mean() - 0.72) < 0.04 and areas.min() < 0.55 and areas.max() > 0.9


@settings(max_examples=20)
@given(keys, st.integers(0, 5))
def test_padded_crops_are_windows_of_the_padded_image(seed, pixels):
    made = run(batch_of("image"), jax.random.key(seed), (images.PadCrop(float(pixels)),))["image"]
    for image, one in zip(batch_of("image")["image"], made, strict=True):
        padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))
        shifts = range(2 * pixels + 1)
        assert any((padded[i : i + H, j : j + W] == one).all() for i in shifts for j in shifts)


@settings(max_examples=25)
@given(st.floats(0, 2, width=32, allow_subnormal=False))
def test_colours_change_as_pillow_changes_them(factor):
    pixels = np.random.default_rng(0).integers(60, 180, (9, 11, 3)).astype(np.uint8)
    image, picture = jnp.asarray(pixels / 255, jnp.float32), Image.fromarray(pixels)
    for change, theirs in (
        (colour.brightness, ImageEnhance.Brightness),
        (colour.contrast, ImageEnhance.Contrast),
        (colour.saturation, ImageEnhance.Color),
        (colour.sharpness, ImageEnhance.Sharpness),
    ):
        expected = np.asarray(theirs(picture).enhance(factor)) / 255
        np.testing.assert_allclose(change(image, factor), expected, atol=2.6 / 255, err_msg=change.__name__)


def test_tones_change_as_pillow_changes_them():
    pixels = smooth()
    image, picture = jnp.asarray(pixels / 255, jnp.float32), Image.fromarray(pixels)
    for bits in range(1, 9):
        expected = np.asarray(ImageOps.posterize(picture, bits)) / 255
        np.testing.assert_allclose(colour.posterize(image, bits), expected, atol=1e-6)
    expected = np.asarray(ImageOps.solarize(picture, 101)) / 255
    np.testing.assert_allclose(colour.solarize(image, 100.5 / 255), expected, atol=1e-6)
    np.testing.assert_array_equal(colour.solarize(image, 1.0), image)
    dim = np.asarray(Image.fromarray((pixels // 2 + 30).astype(np.uint8)))
    expected = np.asarray(ImageOps.autocontrast(Image.fromarray(dim))) / 255
    np.testing.assert_allclose(colour.autocontrast(jnp.asarray(dim / 255, jnp.float32)), expected, atol=1.01 / 255)
    expected = np.asarray(ImageOps.equalize(Image.fromarray(dim))) / 255
    np.testing.assert_allclose(colour.equalize(jnp.asarray(dim / 255, jnp.float32)), expected, atol=1e-6)
    flat = jnp.full((6, 6, 3), 0.3)
    np.testing.assert_array_equal(colour.autocontrast(flat), flat)
    np.testing.assert_array_equal(colour.equalize(flat), flat)


hue = jax.jit(colour.hue)


@settings(max_examples=25)
@given(st.floats(-0.5, 0.5, width=32, allow_subnormal=False))
def test_hues_turn_as_colorsys_has_them(turns):
    made = hue(IMAGE, turns).reshape(-1, 3)
    for before, after in zip(IMAGE.reshape(-1, 3)[:40].tolist(), made[:40], strict=True):
        h, s, v = colorsys.rgb_to_hsv(*before)
        np.testing.assert_allclose(after, colorsys.hsv_to_rgb((h + turns) % 1, s, v), atol=2e-5)
    np.testing.assert_allclose(hue(hue(IMAGE, turns), -turns), IMAGE, atol=2e-5)
    np.testing.assert_allclose(hue(jnp.eye(3)[None], 1 / 3), jnp.eye(3)[None, [1, 2, 0]], atol=1e-6)


def test_images_of_one_channel_have_no_colour_to_change():
    image = IMAGE[..., :1]
    np.testing.assert_array_equal(colour.saturation(image, 0.3), image)
    np.testing.assert_array_equal(colour.hue(image, 0.3), image)
    assert (colour.contrast(image, 0.3) != image).any()


@settings(max_examples=20)
@given(keys, st.floats(0, 1, width=32, allow_subnormal=False))
def test_cutout_covers_one_box_and_nothing_else(seed, share):
    made = np.asarray(run(batch_of("image"), jax.random.key(seed), (images.Cutout(share, fill=0.125),))["image"])
    height, width = (int(np.round(np.float32(side) * np.float32(share))) for side in (H, W))
    for image, one in zip(batch_of("image")["image"], made, strict=True):
        covered = (one == 0.125).all(axis=-1)
        np.testing.assert_array_equal(one[~covered], image[~covered])
        rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
        assert covered.sum() == len(rows) * len(columns)
        if len(rows):
            assert len(rows) == np.ptp(rows) + 1 <= height and len(columns) <= width
            inside = rows[0] > 0 and rows[-1] < H - 1
            assert not inside or len(rows) == height
        assert (len(rows) > 0) == (height > 0 and width > 0)


apply = jax.jit(operation)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_every_operation_is_the_one_of_its_name(sign):
    image, level = jnp.asarray(smooth() / 255, jnp.float32), 0.5
    made = {name: apply(image, i, level, sign) for i, name in enumerate(OPERATIONS)}
    moves = {
        "identity": geometry.affine(),
        "rotate": geometry.rotation(15.0 * sign),
        "shear_x": geometry.affine(xy=0.15 * sign),
        "shear_y": geometry.affine(yx=0.15 * sign),
        "translate_x": geometry.translation(75 / 331 * 24 * sign, 0),
        "translate_y": geometry.translation(0, 75 / 331 * 24 * sign),
    }
    expected = {name: geometry.warp(image, matrix, 0.5) for name, matrix in moves.items()} | {
        "brightness": colour.brightness(image, 1 + 0.45 * sign),
        "saturation": colour.saturation(image, 1 + 0.45 * sign),
        "contrast": colour.contrast(image, 1 + 0.45 * sign),
        "sharpness": colour.sharpness(image, 1 + 0.45 * sign),
        "posterize": colour.posterize(image, 6),
        "solarize": colour.solarize(image, 0.5),
        "autocontrast": colour.autocontrast(image),
        "equalize": colour.equalize(image),
    }
    assert set(moves) == set(MOVES) and set(expected) == set(OPERATIONS)
    for name, one in expected.items():
        np.testing.assert_allclose(made[name], one, atol=1e-5, err_msg=name)
    assert all((apply(image, i, 0.0, sign) == image).all() for i in range(len(OPERATIONS)))


def test_operations_are_drawn_alike():
    image = jnp.asarray(smooth(10) / 255, jnp.float32)
    rows = 1400
    made = run({"image": jnp.stack([image] * rows)}, jax.random.key(0), (RandAugment(20.0, operations=1),))["image"]
    all_of_them = [apply(image, i, 20 / 30, sign) for i in range(len(OPERATIONS)) for sign in (1.0, -1.0)]
    distances = jnp.abs(made[:, None] - jnp.stack(all_of_them)[None]).max(axis=(2, 3, 4))
    assert distances.min(axis=1).max() < 1e-4  # each row is one of them
    counts = np.bincount(np.asarray(distances.argmin(axis=1)) // 2, minlength=len(OPERATIONS))
    expected = rows / len(OPERATIONS)
    assert ((counts - expected) ** 2 / expected).sum() < 34.5  # chi-squared, 13 degrees: 1 in 1000
    signs = (np.asarray(distances.argmin(axis=1)) % 2)[np.asarray(distances.argmin(axis=1)) // 2 == 1]
    assert 0.3 < signs.mean() < 0.7  # turns either way


def labelled(rows: int = 8, classes: int = 3, frames: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    """Images whose channel c is 1 everywhere if the label is c, and 0 if not: the mean of channels is the target."""
    label = np.arange(rows, dtype=np.int32) % classes
    hot = np.eye(classes, dtype=np.float32)[label].reshape(rows, *[1] * (len(frames) + 2), classes)
    return {"image": np.broadcast_to(hot, (rows, *frames, H, W, classes)).copy(), "label": label}


@pytest.mark.parametrize("frames", [(), (2,)])
@settings(max_examples=20)
@given(seed=keys, strength=st.floats(0.0625, 3, width=32, allow_subnormal=False))
def test_labels_follow_what_is_mixed(frames, seed, strength):
    batch = labelled(frames=frames)
    for chain in ((mixing.Mixup(strength, 3),), (mixing.CutMix(strength, 3),)):
        made = run(batch, jax.random.key(seed), chain)
        shown = made["image"].mean(axis=tuple(range(1, made["image"].ndim - 1)))
        np.testing.assert_allclose(made["targets"], shown, atol=1e-5)
        np.testing.assert_allclose(made["targets"].sum(axis=1), 1, atol=1e-5)
        np.testing.assert_array_equal(made["label"], batch["label"])
    both = run(batch, jax.random.key(seed), (mixing.Mixup(strength, 3), mixing.CutMix(strength, 3)))
    shown = both["image"].mean(axis=tuple(range(1, both["image"].ndim - 1)))
    np.testing.assert_allclose(both["targets"], shown, atol=1e-5)


@settings(max_examples=20)
@given(keys)
def test_the_area_that_is_cut_is_the_weight_of_the_label(seed):
    batch = labelled(rows=6, classes=6)
    made = run(batch, jax.random.key(seed), (mixing.CutMix(1.0, 6),))
    for row in range(6):
        image = np.asarray(made["image"][row])
        own = image[..., row] == 1
        assert set(np.unique(image)) <= {0.0, 1.0}
        np.testing.assert_allclose(made["targets"][row, row], own.mean(), atol=1e-6)
        rows, columns = np.flatnonzero(~own.all(axis=1)), np.flatnonzero(~own.all(axis=0))
        assert (~own).sum() == len(rows) * len(columns)  # one box


def test_weights_are_of_the_beta_distribution():
    weights = np.asarray(mixing.beta(jax.random.key(0), 0.2, 20000))
    assert abs(weights.mean() - 0.5) < 0.015 and abs(weights.var() - 0.25 / 1.4) < 0.005
    assert (mixing.beta(jax.random.key(0), 0.0, 4) == 1).all()


def test_without_labels_images_are_mixed_all_the_same():
    batch = {"image": batch_of("image")["image"]}
    made = run(batch, jax.random.key(0), (mixing.Mixup(1.0),))
    assert set(made) == {"image"} and (made["image"] != batch["image"]).any()
    targets = np.eye(6, dtype=np.float32)
    made = run({**batch, "targets": targets}, jax.random.key(0), (mixing.Mixup(1.0),))
    np.testing.assert_allclose(np.tensordot(made["targets"], batch["image"], 1), made["image"], atol=1e-5)


def test_frames_of_a_clip_change_alike():
    specs = ("flip", "rotate", "scale", "translate", "shear", "crop", "pad_crop", "jitter", "cutout", "randaugment")
    batch = {"image": batch_of("image")["image"]}
    clips = {"image": np.repeat(batch["image"][:, None], 2, axis=1)}

    @jax.jit
    def both(key):
        return {one: (chain[0](batch, key)["image"], chain[0](clips, key)["image"]) for one, chain in chains.items()}

    chains = {spec: parse((spec,)) for spec in specs}
    for seed in range(4):
        for spec, (still, moving) in both(jax.random.key(seed)).items():
            if spec != "randaugment":  # equalisation counts in whole pixels, of which two frames have twice as many
                np.testing.assert_allclose(moving[:, 0], still, atol=1e-5, err_msg=spec)
            np.testing.assert_array_equal(moving[:, 0], moving[:, 1], err_msg=spec)
