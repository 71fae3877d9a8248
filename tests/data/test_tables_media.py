"""Images and sounds: folders of classes, manifests, and the way from bytes to arrays."""

import io
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data.tables.decoding import decode_image, decode_wav
from research.data.tables.spec import open_tables
from research.data.tables.table import classes_of


def png(pixels: np.ndarray, form: str = "PNG") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=form)
    return buffer.getvalue()


def wav(data: bytes, width: int, channels: int = 1, rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return buffer.getvalue()


def long_header(tag: int, width: int, data: bytes) -> bytes:
    """A WAV file with the header WAVEFORMATEXTENSIBLE, whose sub-format is `tag`."""
    form = struct.pack("<HHIIHH", 0xFFFE, 1, 8000, 8000 * width, width, 8 * width)
    form += (
        struct.pack("<HHI", 22, 8 * width, 4) + struct.pack("<H", tag) + bytes.fromhex("000000001000800000aa00389b71")
    )
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def lay_out(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def test_a_folder_for_each_class(tmp_path):
    lay_out(tmp_path, "cat/1.png", "cat/x/2.JPG", "ant/3.png", "README.md", "cat/notes.txt", "cat/.hidden.png")
    table = open_tables(f"images:{tmp_path}")["all"]
    assert table.fields == ("image", "path", "label")
    assert classes_of(table) == {"label": ("ant", "cat")}
    assert [table.record(i) for i in range(len(table))] == [
        {"image": name.encode(), "path": name, "label": label}
        for name, label in (("ant/3.png", 0), ("cat/1.png", 1), ("cat/x/2.JPG", 1))
    ]
    assert table.identity(1) == "cat/1.png"
    with pytest.raises(IndexError):
        table.record(3)


def test_parts_share_the_numbers_of_their_classes_and_numbers_are_in_their_order(tmp_path):
    lay_out(tmp_path, "train/10/a.wav", "train/2/b.wav", "valid/9/c.wav", "test/10/d.wav")
    tables = open_tables(f"audio:{tmp_path}")
    assert list(tables) == ["test", "train", "validation"]
    assert {tuple(classes_of(table)["label"]) for table in tables.values()} == {("2", "9", "10")}
    assert [tables["train"].record(i)["label"] for i in range(2)] == [2, 0]
    assert tables["validation"].record(0)["label"] == 1


def test_classes_that_only_some_of_which_sound_like_parts_are_classes(tmp_path):
    lay_out(tmp_path, "train/1.png", "plane/2.png")
    assert classes_of(open_tables(f"images:{tmp_path}")["all"]) == {"label": ("plane", "train")}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.tsv", "path\tlabel\tspeaker\nx/1.wav\tyes\tA\n2.wav\tno\tB\n"),
        ("m.csv", "path,label,speaker\nx/1.wav,yes,A\n2.wav,no,B\n"),
        ("m.jsonl", '{"path":"x/1.wav","label":"yes","speaker":"A"}\n{"path":"2.wav","label":"no","speaker":"B"}'),
    ],
)
def test_a_manifest_in_every_format(tmp_path, name, content):
    lay_out(tmp_path, "x/1.wav", "2.wav", "not-listed.wav")
    (tmp_path / name).write_text(content)
    for spec in (f"audio:{tmp_path / name}", f"audio:{tmp_path}"):
        table = open_tables(spec)["all"]
        assert set(table.fields) == {"audio", "path", "label", "speaker"}
        assert [table.record(i) for i in range(len(table))] == [
            {"audio": b"x/1.wav", "path": "x/1.wav", "label": 1, "speaker": "A"},
            {"audio": b"2.wav", "path": "2.wav", "label": 0, "speaker": "B"},
        ]


def test_manifests_named_after_parts_and_without_labels(tmp_path):
    lay_out(tmp_path, "a/1.png", "a/2.png")
    (tmp_path / "train.tsv").write_text("path\tcaption\na/1.png\tone\n")
    (tmp_path / "test.tsv").write_text("path\tcaption\na/2.png\ttwo\n")
    tables = open_tables(f"images:{tmp_path}")
    assert tables["test"].record(0) == {"image": b"a/2.png", "path": "a/2.png", "caption": "two"}
    assert classes_of(tables["train"]) == {}


def test_digest_follows_content_names_labels_and_the_numbers_of_classes(tmp_path):
    def digest(spec: str) -> str:
        table = open_tables(spec)
        return table["train" if "train" in table else "all"].digest()[0]

    lay_out(tmp_path, "train/x/1.png", "train/y/2.png")
    digests = [digest(f"images:{tmp_path}")]
    lay_out(tmp_path, "test/a/3.png")
    digests.append(digest(f"images:{tmp_path}"))
    for names in ("ab", "ba"):
        (tmp_path / "m.tsv").write_text("path\tlabel\ntrain/x/1.png\t{}\ntrain/y/2.png\t{}\n".format(*names))
        digests.append(digest(f"images:{tmp_path}/m.tsv"))
    (tmp_path / "train/x/1.png").write_bytes(b"changed")
    digests.append(digest(f"images:{tmp_path}/m.tsv"))
    assert len(set(digests)) == 5


@pytest.mark.parametrize(
    ("names", "manifest", "message"),
    [
        (["a/1.mp3"], None, r"no file below .* ends in \.wav; there are \['\.mp3'\]"),
        (["a/1.wav", "2.wav"], None, r"2\.wav is in no folder of a class.*manifest"),
        (["1.wav"], ("m.tsv", "file\tlabel\n1.wav\ta\n"), r"has no field 'path'; it has \['file', 'label'\]"),
        (["1.wav"], ("m.tsv", "path\tlabel\n3.wav\ta\n"), "the manifest names '3.wav', and there is no such file"),
        (["1.wav", "m.csv"], ("m.tsv", "path\n1.wav\n"), "holds manifests as csv and tsv"),
    ],
)
def test_bad_folders_are_named(tmp_path, names, manifest, message):
    lay_out(tmp_path, *names)
    if manifest:
        (tmp_path / manifest[0]).write_text(manifest[1])
    with pytest.raises(UserError, match=message):
        open_tables(f"audio:{tmp_path}")


def test_empty_files_and_folders_that_are_not_there(tmp_path):
    lay_out(tmp_path, "a/1.png")
    (tmp_path / "a/1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"a/1\.png is empty"):
        open_tables(f"images:{tmp_path}")["all"].record(0)
    with pytest.raises(UserError, match="neither a folder nor a manifest"):
        open_tables(f"images:{tmp_path}/b")


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 3), (3, 5, 4)])
def test_images_decode_to_their_pixels(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    decoded = decode_image(png(pixels))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, pixels.reshape(3, 5, -1))


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("P", 3), ("LA", 4), ("CMYK", 3)])
def test_other_modes_become_grey_or_colours(mode, channels):
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (255, 255, 255)).convert(mode).save(buffer, format="TIFF")
    assert decode_image(buffer.getvalue()).shape == (2, 2, channels)
    assert decode_image(buffer.getvalue())[..., 0].tolist() == [[255, 255], [255, 255]]


def test_bad_images_are_named():
    whole = png(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    for content in (whole[: len(whole) // 2], b"", b"GIF89a", b"no image"):
        with pytest.raises(UserError, match=r"a/b\.png is no image that can be read"):
            decode_image(content, "a/b.png")
    with pytest.raises(UserError, match="mode I;16, expected 8 bits"):
        decode_image(png(np.zeros((2, 2), np.uint16)))


@given(st.sampled_from([1, 2, 3, 4]), st.integers(1, 3), st.lists(st.floats(-1, 1), max_size=9))
def test_wav_decodes_to_what_was_written(width, channels, values):
    full = 2 ** (8 * width - 1)
    numbers = [min(round(value * full), full - 1) for value in values for _ in range(channels)]
    offset = 128 if width == 1 else 0
    data = b"".join((number + offset).to_bytes(width, "little", signed=width > 1) for number in numbers)
    samples, rate = decode_wav(wav(data, width, channels, rate=11025))
    assert (samples.dtype, samples.shape, rate) == (np.float32, (len(values), channels), 11025)
    np.testing.assert_array_equal(samples.ravel(), np.array(numbers, np.float32) / np.float32(full))


def test_the_long_header_is_read_where_it_says_pcm():
    samples, _ = decode_wav(long_header(1, 2, struct.pack("<2h", 16384, -32768)))
    assert samples.tolist() == [[0.5], [-1.0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no WAV file that can be read"),
        (b"ID3 something else", "no WAV file that can be read"),
        (wav(bytes(100), 2)[:80], "cut off: its header says 50 samples, and 18 are there"),
        (wav(bytes(100), 2)[:30], "no WAV file that can be read"),
        (long_header(3, 4, bytes(8)), "samples as floats, expected whole numbers.*ffmpeg"),
        (long_header(3, 4, bytes(8)).replace(b"\xfe\xff", b"\x03\x00", 1), "samples as floats"),
        (long_header(6, 1, bytes(8)), "no WAV file that can be read"),
    ],
)
def test_bad_wav_is_named(content, message):
    with pytest.raises(UserError, match=rf"a/b\.wav .*{message}"):
        decode_wav(content, "a/b.wav")
