"""Settings of the property tests here, and what the tests of `research data` share."""

import functools
import wave

import numpy as np
import pytest
from data_commands import texts, write_lines
from hypothesis import settings

settings.register_profile("data", deadline=None)  # a busy machine is no failure
settings.load_profile("data")


@pytest.fixture
def source(tmp_path) -> str:
    return write_lines(tmp_path / "lines.jsonl", ({"text": text, "n": n} for n, text in enumerate(texts(80))))


@pytest.fixture
def call(call_verb, tmp_path, monkeypatch):
    """`call(*argv) -> (code, out, err)` of `research data ...`, from an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "cache"))
    return functools.partial(call_verb, "data")


@pytest.fixture
def media(tmp_path) -> tuple[str, str]:
    from PIL import Image

    for number in range(40):
        for name in ("images", "audio"):
            (tmp_path / name / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((6, 8, 3), np.uint8)
        pixels[:3, :, 0] = 255
        Image.fromarray(pixels).save(tmp_path / "images" / f"class{number % 2}" / f"{number}.png")
        tone = (np.sin(2 * np.pi * 1000 * np.arange(4000) / 8000) * 20000).astype("<i2")
        with wave.open(str(tmp_path / "audio" / f"class{number % 2}" / f"{number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(tone.tobytes())
    return f"images:{tmp_path}/images", f"audio:{tmp_path}/audio"
