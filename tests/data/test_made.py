"""Sources that need no network: each is what it says it is, and the same whenever it is made."""

import numpy as np
import pytest

from research.core.errors import UserError
from research.data.examples import open_source
from research.data.made import films


def test_digits_are_scikit_learn_s():
    found = open_source("digits")
    assert found.train["image"].shape == (1438, 8, 8, 1) and found.eval["image"].shape == (359, 8, 8, 1)
    assert found.train["image"].max() == 255 and found.classes == tuple("0123456789")
    together = np.concatenate([found.train["label"], found.eval["label"]])
    np.testing.assert_array_equal(np.bincount(together), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    other = open_source("digits:1")
    assert other.source_fingerprint != found.source_fingerprint
    with pytest.raises(UserError, match="digits:1"):
        open_source("digits:x")


def test_films_move_as_they_are_called(monkeypatch):
    monkeypatch.setattr(films, "NOISE", 0.0)
    for kind in films.CLASSES:
        direction, speed = kind.split()
        for number in range(5):
            film = films.film(kind, number)[..., 0].astype(float)
            angles = 2 * np.pi * np.arange(films.SIZE) / films.SIZE
            step = np.array(films.DIRECTIONS[direction])
            along = film.sum(axis=2 if step[0] else 1)  # over the other side
            phase = np.unwrap(np.angle(along @ np.exp(1j * angles)))
            moved = (
                np.diff(phase).mean() * films.SIZE / (2 * np.pi)
            )  # pixels a frame: the first harmonic turns as the shape moves
            assert moved * step.sum() == pytest.approx(films.SPEEDS[speed], rel=0.25)


def test_films_are_functions_of_their_number():
    found, again = open_source("films:80"), open_source("films:80")
    assert found.source_fingerprint == again.source_fingerprint
    assert found.train["image"].shape == (64, 8, 16, 16, 1) and found.train["image"].dtype == np.uint8
    assert len(np.unique(found.train["image"].reshape(64, -1), axis=0)) == 64
    assert set(np.bincount(np.concatenate([found.train["label"], found.eval["label"]]))) == {10}
    for words in ("films:9", "films:many"):
        with pytest.raises(UserError, match=words):
            open_source(words)
