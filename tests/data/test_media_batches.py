"""Batches of images and sounds: every record once an epoch, any step alone, the same on any number of hosts."""

import io
import wave

import numpy as np
import pytest
from PIL import Image

from research.core.errors import UserError
from research.data.media_batches import MediaBatches
from research.data.tables.spec import open_tables


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Eleven pictures of two classes, each of a colour of its own, of several sizes and modes."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(11):
        path = folder / ("even", "odd")[i % 2] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        mode = ("RGB", "L", "RGBA")[i % 3]
        colour = {"RGB": (20 * i, 3, 9), "L": 20 * i, "RGBA": (20 * i, 3, 9, 255)}[mode]
        Image.new(mode, (8 + i, 8), colour).save(path)
    return open_tables(f"images:{folder}")["all"]


def test_an_epoch_has_every_record_once_and_each_epoch_its_own_order(images):
    batches = MediaBatches(images, 11, 8, seed=3)
    orders = [batches(step)["record"].tolist() for step in range(3)]
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_any_step_alone_and_any_number_of_hosts_give_the_same_rows(images):
    whole = MediaBatches(images, 4, 8, seed=0)
    for step in (7, 2, 2):
        expected = whole(step)
        for hosts in (1, 2, 4):
            parts = [MediaBatches(images, 4, 8, seed=0, threads=1).rows(i, hosts)(step) for i in range(hosts)]
            for name, value in expected.items():
                np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value)


def test_pictures_have_one_size_three_colours_and_their_label(images):
    batch = MediaBatches(images, 11, 8, seed=0)(0)
    assert batch["image"].shape == (11, 8, 8, 3) and batch["image"].dtype == np.uint8
    for number, picture, label in zip(batch["record"], batch["image"], batch["label"], strict=True):
        record = images.record(int(number))
        i = int(record["path"].split("/")[-1][:2])
        assert label == i % 2 == record["label"]
        assert picture[4, 4].tolist() == ([20 * i] * 3 if i % 3 == 1 else [20 * i, 3, 9])


def test_sounds_are_cut_or_filled_up_and_their_channels_averaged(tmp_path):
    for name, count, channels in (("short", 5, 1), ("long", 40, 2)):
        (tmp_path / "x").mkdir(exist_ok=True)
        with wave.open(str(tmp_path / "x" / f"{name}.wav"), "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes((np.arange(count * channels) * 64).astype("<i2").tobytes())
    batch = MediaBatches(open_tables(f"audio:{tmp_path}")["all"], 2, 12, seed=0)(0)
    assert batch["audio"].shape == (2, 12) and batch["rate"].tolist() == [8000, 8000]
    long, short = (batch["audio"][batch["record"].tolist().index(i)] * 2**15 / 64 for i in (0, 1))
    assert short.tolist() == [0, 1, 2, 3, 4, *[0] * 7] and long.tolist() == [2 * i + 0.5 for i in range(12)]


def test_what_cannot_be_decoded_is_named_and_what_is_no_media_refused(images, tmp_path):
    (tmp_path / "bad").mkdir()
    content = io.BytesIO()
    Image.new("RGB", (64, 64), (1, 2, 3)).save(content, "PNG")
    (tmp_path / "bad" / "cut.png").write_bytes(content.getvalue()[:60])
    with pytest.raises(UserError, match=r"bad/cut.png is no image that can be read"):
        MediaBatches(open_tables(f"images:{tmp_path}")["all"], 1, 8, seed=0)(0)
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match=r"has no field 'image'; it has \['text'\]"):
        MediaBatches(open_tables(f"jsonl:{tmp_path}/x.jsonl")["all"], 1, 8, seed=0)
    for wrong in ({"batch_size": 0}, {"size": 0}, {"batch_size": 3, "part": (0, 2)}):
        with pytest.raises(UserError):
            MediaBatches(**{"table": images, "batch_size": 2, "size": 8, "seed": 0, **wrong})


# -- transforms, and processes that make batches ahead


def flipped(row, key):
    """Half of the pictures mirrored, and the key beside them."""
    image = row["image"][:, ::-1] if key % 2 else row["image"]
    return {**row, "image": image, "key": np.uint64(key)}


def test_a_transform_is_a_function_of_the_record_and_a_key_of_its_own(images):
    plain, changed = (MediaBatches(images, 8, 8, seed=0, transform=f) for f in (None, flipped))
    for step in (3, 0):
        before, after = plain(step), changed(step)
        for number, key in enumerate(after["key"].tolist()):
            expected = before["image"][number][:, ::-1] if key % 2 else before["image"][number]
            np.testing.assert_array_equal(after["image"][number], expected)
        np.testing.assert_array_equal(changed(step)["key"], after["key"])
    keys = np.concatenate([changed(step)["key"] for step in range(40)])
    assert len(set(keys.tolist())) == 320 and 0.4 < np.mean(keys % 2) < 0.6
    assert (MediaBatches(images, 8, 8, seed=1, transform=flipped)(0)["key"] != changed(0)["key"]).all()


def test_processes_make_the_batches_that_threads_make_in_any_order(images):
    pytest.importorskip("grain")
    threads = MediaBatches(images, 4, 8, seed=0, transform=flipped)
    batches = MediaBatches(images, 4, 8, seed=0, transform=flipped, workers=1)
    try:
        for step in (5, 6, 7, 2):
            found, expected = batches(step), threads(step)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert found[name].dtype == value.dtype
                np.testing.assert_array_equal(found[name], value)
    finally:
        batches.close()


def test_what_a_process_finds_wrong_is_said_as_by_a_thread(tmp_path):
    pytest.importorskip("grain")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "bad.png").write_bytes(b"no picture")
    batches = MediaBatches(open_tables(f"images:{tmp_path}")["all"], 1, 8, seed=0, workers=1)
    with pytest.raises(UserError, match=r"^x/bad\.png is no image"):
        batches(0)


def test_workers_without_grain_name_the_extra(images, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(UserError, match=r"pip install 'purestep\[grain\]'"):
        MediaBatches(images, 4, 8, seed=0, workers=2)
    with pytest.raises(UserError, match="workers is -1"):
        MediaBatches(images, 4, 8, seed=0, workers=-1)
