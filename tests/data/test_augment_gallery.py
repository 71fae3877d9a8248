"""The pictures of docs/augment.md."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from research.data.augment import gallery

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_gallery_draws_sheets_and_prints_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gallery, "IMAGES", ("flip:1", "mixup:1", "pad_crop:0"))
    monkeypatch.setattr(gallery, "SOUNDS", ("gain:0", "specaugment:16:30:2:2"))
    gallery.main([str(tmp_path)])
    with Image.open(tmp_path / "augment_images.png") as sheet:
        wide, high = sheet.size
        shown = np.asarray(sheet.convert("RGB")).astype(int)
    assert wide >= 2 * 5 * gallery.SIDE and high >= 2 * gallery.SIDE
    tiles = [
        shown[gallery.LINE :][: gallery.SIDE, 2 * gallery.GAP + i * (gallery.SIDE + gallery.GAP) :] for i in (0, 1)
    ]
    house, flipped = (tile[:, : gallery.SIDE] for tile in tiles)
    assert np.abs(house[:, ::-1] - flipped).mean() < 12 < np.abs(house - flipped).mean()  # of few colours
    with Image.open(tmp_path / "augment_audio.png") as sheet:
        assert len(np.unique(np.asarray(sheet))) > 10
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == f"| as it was | {gallery.SENTENCE} |" and len(lines) == 3 + len(gallery.TEXTS) + 3


def test_every_scene_and_sound_is_its_own():
    scenes = np.stack([gallery.scene(number) for number in range(4)])
    assert len(np.unique(scenes.reshape(4, -1), axis=0)) == 4 and scenes.min() >= 0 and scenes.max() <= 1
    rising, beats = gallery.sounds()
    decibels = gallery.spectrogram(rising)
    peaks = decibels[:, 3:40].argmax(axis=1)[20:-20]
    assert peaks[-20:].mean() > peaks[:20].mean() + 5  # it rises
    assert decibels.min() >= -50 and (rising != beats).any()


@pytest.mark.parametrize("name", ["augment_images.png", "augment_audio.png"])
def test_pictures_of_the_documentation_are_small_and_shown(name):
    assert (DOCS / name).stat().st_size < 60_000
    assert f"]({name})" in (DOCS / "augment.md").read_text()
