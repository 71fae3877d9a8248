"""Normalisation is that of the part to train on, whatever is held out."""

import csv
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from research.core.errors import UserError
from research.data.normalisation import fit
from research.data.tables.spec import open_tables
from research.data.tables.splits import split


def folder_of(path, draw, wild: int):
    """Pictures in parts of their own; those held out are of one wild colour."""
    for part, count in (("train", 6), ("validation", 3), ("test", 2)):
        for i in range(count):
            target = path / part / "x" / f"{i}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            size = (3 + i, 4)
            pixels = draw.integers(0, 255, (*size, 3)) if part == "train" else np.full((*size, 3), wild)
            Image.fromarray(pixels.astype(np.uint8)).save(target)


def test_images_by_channel_over_every_pixel_of_the_training_part(tmp_path):
    for name, wild in (("a", 0), ("b", 255)):
        folder_of(tmp_path / name, np.random.default_rng(0), wild)
    one, other = (fit(open_tables(f"images:{tmp_path}/{name}"), "image") for name in "ab")
    pixels = np.concatenate(
        [np.asarray(Image.open(p)).reshape(-1, 3) for p in sorted((tmp_path / "a" / "train").rglob("*.png"))]
    )
    np.testing.assert_allclose(one.mean, pixels.mean(0))
    np.testing.assert_allclose(one.std, pixels.std(0))
    assert one.records == 6 and (one.mean == other.mean).all() and (one.std == other.std).all()
    normal = one(pixels)
    assert normal.dtype == np.float32
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std(0), 1, atol=1e-5)


def test_sounds_by_sample(tmp_path):
    (tmp_path / "x").mkdir()
    for i in range(40):
        with wave.open(str(tmp_path / "x" / f"{i}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(np.full(10 + i, 100 * i, "<i2").tobytes())
    tables = open_tables(f"audio:{tmp_path}")
    train = split(tables)["train"]
    numbers = [int(train.record(i)["path"].split("/")[-1][:-4]) for i in range(len(train))]
    samples = np.concatenate([np.full(10 + n, 100 * n / 2**15) for n in numbers])
    found = fit(tables, "audio")
    np.testing.assert_allclose([found.mean, found.std], [samples.mean(), samples.std()], rtol=1e-6)


@given(st.lists(st.floats(-1e3, 1e3), min_size=40, max_size=60))
def test_numbers_of_a_column_split_by_hash(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["id", "height"], *([n, repr(value)] for n, value in enumerate(values))])
    tables = open_tables(f"csv:{path}")
    train = split(tables)["train"]
    own = np.array([float(train.record(i)["height"]) for i in range(len(train))])
    found = fit(tables, "height")
    np.testing.assert_allclose(found.mean, own.mean(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.std, own.std(), rtol=1e-6, atol=1e-3)
    assert np.isfinite(found(own)).all()


def test_refuses(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n" + "".join(f"{n},word\n" for n in range(40)))
    tables = open_tables(f"csv:{tmp_path}/x.csv")
    with pytest.raises(UserError, match="no field 'c'"):
        fit(tables, "c")
    with pytest.raises(UserError, match="field 'b' is 'word'; expected a finite number"):
        fit(tables, "b")
    (tmp_path / "x.csv").write_text("a,b\n" + "".join(f"{n},7\n" for n in range(40)))
    constant = fit(open_tables(f"csv:{tmp_path}/x.csv"), "b")
    assert (constant.mean, constant.std) == (7, 0) and constant(np.array([7.0, 8.0])).tolist() == [0, 1]
