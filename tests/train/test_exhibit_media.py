"""Pictures, videos and sounds within a page decode to what they were made of."""

import base64
import io
import math
import wave

import numpy as np
import pytest
from html_pages import Page
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn
from PIL import Image, ImageSequence

from research.core.errors import UserError
from research.train import exhibits as ex
from research.train.exhibits import audio, media, pictures

DRAW = np.random.default_rng(0)


def content(uri, kind):
    head, data = uri.split(",")
    assert head == f"data:{kind};base64"
    return io.BytesIO(base64.b64decode(data, validate=True))


def decoded(uri, mode):
    return np.asarray(Image.open(content(uri, "image/png")).convert(mode))


def played(uri):
    with wave.open(content(uri, "audio/wav")) as file:
        assert file.getsampwidth() == 2
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
        return samples, file.getframerate()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_pictures_decode_to_their_pixels(channels, mode):
    images = DRAW.integers(0, 256, (3, 5, 4, channels), dtype=np.uint8)
    page = Page(ex.gallery(images, ["a", "b", "c"]))
    for one, shown, caption in zip(images, page.of("img"), "abc", strict=True):
        assert (decoded(shown["src"], mode) == (one[..., 0] if channels == 1 else one)).all()
        assert (shown["width"], shown["height"], shown["alt"], shown["class"]) == ("4", "5", caption, "squares")


@given(hn.arrays(np.float32, (1, 2, 3), elements=st.floats(0, 1, width=32)))
def test_floats_are_rounded_to_the_nearest_of_256(image):
    (shown,) = Page(ex.gallery(image, [""])).of("img")
    assert np.abs(decoded(shown["src"], "L") / 255 - image[0]).max() <= 0.5 / 255 + 1e-6


def test_wrong_pictures_are_marked_by_words_and_signs():
    page = Page(ex.gallery(np.zeros((3, 2, 2)), ["a", "b", "c"], np.array([True, False, True])))
    assert [text for text in page.texts if text[0] in "✓✗"] == ["✓ right", "✗ wrong", "✓ right"]
    assert [image["alt"] for image in page.of("img")] == ["a, right", "b, wrong", "c, right"]
    assert [figure["class"] for figure in page.of("figure")] == ["tile", "tile wrong", "tile"]
    assert "2 of 3 right." in page.texts


def test_many_and_large_pictures_are_limited_and_that_is_said(monkeypatch):
    page = Page(ex.gallery(np.zeros((70, 2, 2)), [""] * 70, [False] * 69 + [True]))
    assert len(page.of("img")) == 64 and "1 of 70 right. 6 of 70 pictures left out." in page.texts
    monkeypatch.setattr(pictures, "PIXELS", 400)
    image = np.zeros((2, 20, 40), np.uint8)
    image[:, :, 20:] = 200
    page = Page(ex.gallery(image, ["", ""]))
    small = decoded(page.of("img")[0]["src"], "L")
    assert small.shape == (10, 20) and (small[:, :7] == 0).all() and (small[:, 13:] == 200).all()
    assert "Shrunk from 40 × 20 to 20 × 10 pixels." in page.texts


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 64), st.integers(1, 4_000_000))
def test_a_budget_is_kept_and_nothing_is_enlarged(height, width, count, budget):
    h, w = media.fitting((height, width), count, budget)
    assert 1 <= h <= height and 1 <= w <= width
    if count * height * width <= budget:
        assert (h, w) == (height, width)
    assert h == 1 or w == 1 or count * (h - 0.5) * (w - 0.5) <= budget


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3)), r"shape \(2, 3\)"),
        (np.zeros((1, 3, 3, 2)), "C 1, 3 or 4"),
        (np.zeros((1, 0, 3, 1)), "shape"),
        (np.zeros((1, 3, 3), np.int32), "type int32"),
        (np.zeros((1, 3, 3), bool), "type bool"),
        (np.full((1, 3, 3), 1.1), "from 1.1 to 1.1"),
        (np.full((1, 3, 3), -0.1), "rescale"),
        (np.full((1, 3, 3), math.nan), "from nan to nan"),
        (np.zeros((2, 3, 3)), "1 captions for 2 pictures"),
    ],
)
def test_what_is_no_picture_is_refused(images, message):
    with pytest.raises(UserError, match=message):
        ex.gallery(images, ["a"])
    if "captions" not in message:
        with pytest.raises(UserError):
            ex.clips(images[None], ["a"])


def test_pictures_of_an_accelerator_and_of_a_decoder_that_rounds():
    import jax.numpy as jnp

    (shown,) = Page(ex.gallery(jnp.full((1, 2, 2, 3), 1.004, jnp.bfloat16), ["a"])).of("img")
    assert (decoded(shown["src"], "RGB") == 255).all()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_videos_decode_to_their_frames(channels, mode):
    videos = DRAW.integers(0, 256, (2, 5, 8, 6, channels), dtype=np.uint8)
    if channels == 4:
        videos[:, :, :4, :] = 0  # what cannot be seen needs no colour
        videos[:, :, 4:, :, 3] |= 1
    page = Page(ex.clips(videos, ["a", "b"], rate=10))
    for one, shown, still in zip(videos, page.of("img"), page.of("source"), strict=True):
        film = Image.open(content(shown["src"], "image/webp"))
        frames = [np.asarray(frame.convert(mode)).reshape(8, 6, channels) for frame in ImageSequence.Iterator(film)]
        assert (np.stack(frames) == one).all() and film.info["loop"] == 0
        assert (decoded(still["srcset"], mode).reshape(8, 6, channels) == one[0]).all()
        assert still["media"] == "(prefers-reduced-motion: reduce)"
    assert [image["alt"] for image in page.of("img")] == ["video: a", "video: b"]


def durations(film):
    found = []
    for i in range(film.n_frames):
        film.seek(i)
        film.load()
        found.append(film.info["duration"])
    return found


def test_long_videos_lose_frames_and_no_time(monkeypatch):
    monkeypatch.setattr(pictures, "FRAMES", 4)
    videos = np.arange(10, dtype=np.uint8)[None, :, None, None] * np.full((1, 1, 4, 4), 20, np.uint8)
    page = Page(ex.clips(videos, ["a"], rate=10))
    film = Image.open(content(page.of("img")[0]["src"], "image/webp"))
    assert durations(film) == [200, 300, 200, 300]
    values = [int(np.asarray(frame.convert("L"))[0, 0]) for frame in ImageSequence.Iterator(film)]
    assert values == [0, 40, 100, 140]
    assert "10 frames at 10 a second. 6 of 10 frames of each left out." in page.texts


def test_a_rate_above_zero():
    with pytest.raises(UserError, match="0 frames a second"):
        ex.clips(np.zeros((1, 1, 2, 2, 1)), ["a"], rate=0)
    for rate in (0, -1, 0.5):
        with pytest.raises(UserError, match="samples a second"):
            ex.sounds([np.zeros(4)], rate, ["a"])


def test_boxes_lie_on_their_pictures():
    images = [DRAW.integers(0, 256, (20, 30, 3), dtype=np.uint8), np.zeros((8, 4))]
    page = Page(
        ex.scenes(images, [[[1, 2, 11, 7], [0, 0, 5.5, 20]], [[1, 1, 2, 3]]], [["b", "a"], ["b"]], [[0.2, 0.9], [1]])
    )
    assert [svg["viewbox"] for svg in page.of("svg")] == ["0 0 30 20", "0 0 4 8"]
    assert (decoded(page.of("image")[0]["href"], "RGB") == images[0]).all()
    boxes = [(r["class"], *(float(r[k]) for k in ("x", "y", "width", "height"))) for r in page.of("rect", "box")]
    assert boxes == [("box series s1", 1, 2, 10, 5), ("box series s0", 0, 0, 5.5, 20), ("box series s1", 1, 1, 1, 2)]
    assert "a 0.90, b 0.20" in page.texts and page.of("svg")[1]["aria-label"] == "picture with 1 boxes: b 1.00"


def test_of_many_boxes_those_of_the_highest_scores_are_drawn():
    boxes = [[[i, 0, i + 1, 1] for i in range(50)]]
    page = Page(ex.scenes([np.zeros((2, 60))], boxes, [["x"] * 50], [np.arange(50)]))
    assert sorted(float(r["x"]) for r in page.of("rect", "box")) == list(range(10, 50))
    assert "10 of 50 boxes, those of the lowest scores, left out." in page.texts
    page = Page(ex.scenes([np.zeros((2, 2))] * 30, [[]] * 30, [[]] * 30))
    assert len(page.of("svg")) == 24 and "6 of 30 pictures left out." in page.texts


@pytest.mark.parametrize(
    ("boxes", "labels", "scores"),
    [
        ([[[5, 5, 1, 6]]], [["a"]], None),
        ([[[5, 5, math.nan, 6]]], [["a"]], None),
        ([[[5, 5, 6, 6]]], [["a", "b"]], None),
        ([[[5, 5, 6, 6]]], [["a"]], [[]]),
        ([[[5, 5, 6]]], [["a"]], None),
        ([], [["a"]], None),
        ([[[5, 5, 6, 6]]], [["a"]], []),
    ],
)
def test_boxes_that_are_none_are_refused(boxes, labels, scores):
    with pytest.raises(UserError, match="picture"):
        ex.scenes([np.zeros((8, 8))], boxes, labels, scores)


def test_sounds_decode_to_their_samples():
    floats, ints = DRAW.uniform(-1, 1, 300), DRAW.integers(-(2**15), 2**15, (200, 2), dtype=np.int16)
    page = Page(ex.sounds([floats, ints], 8000, ["a", "b"]))
    samples, rate = played(page.of("audio")[0]["src"])
    assert rate == 8000 and samples.shape == (300, 1) and np.abs(samples[:, 0] / 32767 - floats).max() <= 0.5 / 32767
    samples, _ = played(page.of("audio")[1]["src"])
    assert (samples == ints).all() and page.texts[0] == "a, 0.0375 s"


def test_loud_sounds_are_divided_and_long_ones_cut(monkeypatch):
    monkeypatch.setattr(audio, "SAMPLES", 2000)
    page = Page(ex.sounds([np.full(3000, 2.0), np.zeros(500)], 1000, ["a", "b"]))
    samples, _ = played(page.of("audio")[0]["src"])
    assert samples.shape == (1000, 1) and (samples == 32767).all()
    assert "a, 1 s of 3 s, divided by 2 to fit" in page.texts and "b, 0.5 s" in page.texts
    page = Page(ex.sounds([np.zeros(5)] * 14, 1000, ["a"] * 14))
    assert len(page.of("audio")) == 12 and any("2 of 14 sounds left out" in text for text in page.texts)


@pytest.mark.parametrize(
    "samples", [np.zeros(0), np.zeros((4, 3)), np.zeros((2, 2, 2)), np.zeros(4, np.int32), np.array([0, math.nan])]
)
def test_what_is_no_sound_is_refused(samples):
    with pytest.raises(UserError, match="sound 0 has"):
        ex.sounds([samples], 8000, ["a"])


@pytest.mark.parametrize("hertz", [500, 1500, 3000])
def test_a_tone_is_a_bright_row_at_its_frequency(hertz):
    rate = 8000
    drawn = audio.spectrogram(np.sin(2 * np.pi * hertz * np.arange(rate) / rate), rate)
    rows, columns = drawn.shape
    assert rows <= audio.ROWS and columns == 8000 // 128 + 1 and drawn.max() == 1 and drawn.min() >= 0
    brightest = drawn[:, columns // 2].argmax()
    assert abs((1 - (brightest + 0.5) / rows) * rate / 2 - hertz) <= rate / 2 / rows
    assert drawn[:, columns // 2].min() < 0.4


@given(st.integers(1, 3000), st.sampled_from([100, 8000, 44100]))
def test_every_sound_has_a_spectrogram(length, rate):
    assert (audio.spectrogram(np.zeros(length), rate) == 0).all()
    drawn = audio.spectrogram(DRAW.normal(size=length), rate)
    assert 1 <= drawn.shape[1] <= audio.COLUMNS and np.isfinite(drawn).all() and drawn.max() == 1


def test_a_spectrogram_is_a_picture_between_its_axes():
    page = Page(ex.sounds([np.sin(np.arange(4000.0))], 8000, ["a"]))
    assert {"time, s", "frequency, kHz"} <= set(page.texts)
    (image,) = page.of("image")
    assert decoded(image["href"], "RGB").max() > 200 and image["preserveaspectratio"] == "none"
    assert page.of("svg")[0]["aria-label"] == "spectrogram of a: 0 to 4 kHz over 0.5 seconds"
