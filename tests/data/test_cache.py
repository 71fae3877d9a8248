"""Cache entries: whole or not there, whoever dies or interferes."""

import errno
import os
import time

import pytest

from research.core.errors import UserError
from research.core.paths import research_cache_dir
from research.data import cache


def writer(content: str = "content", calls: list | None = None):
    def write(folder):
        if calls is not None:
            calls.append(folder)
        (folder / "one.bin").write_text(content, encoding="utf-8")
        (folder / "two.bin").write_text(content * 2, encoding="utf-8")

    return write


def test_made_once_and_then_found(tmp_path):
    calls = []
    folder = tmp_path / "deep" / "key"
    assert cache.entry(folder, writer(calls=calls)) is False
    assert cache.entry(folder, writer(calls=calls)) is True
    assert len(calls) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "one.bin", "two.bin"]
    assert [path.name for path in folder.parent.iterdir()] == ["key"]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder / "one.bin"),
        lambda folder: (folder / "two.bin").write_bytes(b""),
        lambda folder: os.truncate(folder / "two.bin", 3),
        lambda folder: (folder / "one.bin").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: flip(folder / "manifest.json"),
        lambda folder: os.truncate(folder / "manifest.json", 10),
        lambda folder: (folder / "manifest.json").write_text('{"files": {}}'),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (cache._discard(folder), folder.write_text("a file"))[1],
        lambda folder: (cache._discard(folder), folder.mkdir())[1],
    ],
)
def test_damaged_entries_are_made_again(tmp_path, damage):
    folder = tmp_path / "key"
    cache.entry(folder, writer())
    damage(folder)
    assert cache.entry(folder, writer()) is False
    assert (folder / "two.bin").read_text(encoding="utf-8") == "contentcontent"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), UserError("no text")])
def test_a_failure_leaves_nothing_behind(tmp_path, error):
    def fail(folder):
        writer()(folder)
        raise error

    with pytest.raises(type(error)):
        cache.entry(tmp_path / "key", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_and_leaves_nothing_behind(tmp_path):
    def full(folder):
        (folder / "one.bin").write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"cannot write the cache folder .*No space left on device.*RESEARCH_CACHE"):
        cache.entry(tmp_path / "key", full)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the cache folder"):
        cache.entry(tmp_path / "file" / "key", writer())


def test_whoever_comes_second_takes_what_is_there(tmp_path):
    """The other process finishes while this one writes."""
    folder = tmp_path / "key"

    def overtaken(fresh):
        writer()(fresh)
        cache.entry(folder, writer("theirs!"))

    assert cache.entry(folder, overtaken) is False
    assert (folder / "one.bin").read_text(encoding="utf-8") == "theirs!"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path):
    for name in ("old", "new", "busy"):
        (tmp_path / f".tmp-{name}").mkdir()
        (tmp_path / f".tmp-{name}" / "half.bin").touch()
    before = time.time() - 2 * cache.ABANDONED_AFTER_SECONDS
    for path in (".tmp-old/half.bin", ".tmp-old", ".tmp-busy"):
        os.utime(tmp_path / path, (before, before))
    cache.entry(tmp_path / "key", writer())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-busy", ".tmp-new", "key"]


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RESEARCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert research_cache_dir() == tmp_path / ".cache" / "purestep"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(research_cache_dir()) == "/somewhere/purestep"
    monkeypatch.setenv("RESEARCH_CACHE", "~/mine")
    assert research_cache_dir() == tmp_path / "mine"
    assert not (tmp_path / "mine").exists()
