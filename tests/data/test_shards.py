"""Prepared corpora on disk: killed and restarted, damaged, read across shards."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data import shards, streams
from research.data.loader import Batches, EvalBatches
from research.data.shards import Piece
from research.data.streams import Damaged, Ids

UNITS = 7


def piece(unit: int) -> tuple[dict[str, Piece], dict[str, int]]:
    draw = np.random.default_rng(unit)
    splits = ("train", "validation", "test")[: 1 + unit % 3]
    return {
        split: Piece(draw.integers(0, 99, 50 + unit).astype(np.uint8), np.array([0, 9]), np.array([unit, 7]), 3 * unit)
        for split in splits
    }, {"seen": unit, f"only {unit}": 1}


def make_all(folder, make=piece) -> bool:
    return shards.prepare(folder, UNITS, make, {"data": "x"}, lambda totals: None)


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_corpus_is_what_its_units_are(tmp_path):
    assert make_all(tmp_path / "c") is False and make_all(tmp_path / "c", None) is True
    manifest = shards.manifest(tmp_path / "c")
    assert manifest["counts"] == {"seen": 21, **{f"only {unit}": 1 for unit in range(UNITS)}}
    for number, split in enumerate(shards.SPLITS):
        expected = [piece(unit)[0][split] for unit in range(UNITS) if unit % 3 >= number]
        found = shards.read(tmp_path / "c", split, np.dtype(np.uint8))
        assert np.asarray(found.tokens).tolist() == np.concatenate([one.ids for one in expected]).tolist()
        before = np.cumsum([0, *(len(one.ids) for one in expected)])
        assert found.begins.tolist() == [b + x for one, b in zip(expected, before, strict=False) for x in one.begins]
        assert found.records.tolist() == [x for one in expected for x in one.records]
        assert found.bytes == sum(one.size for one in expected) == manifest["splits"][split]["bytes"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("stop", range(UNITS))
def test_work_that_was_cut_off_goes_on_where_it_stood(tmp_path, stop):
    make_all(tmp_path / "whole")
    made = []

    def cut_off(unit):
        if unit == stop:
            raise KeyboardInterrupt
        return piece(unit)

    with pytest.raises(KeyboardInterrupt):
        make_all(tmp_path / "c", cut_off)
    assert not (tmp_path / "c").exists()
    [unfinished] = tmp_path.glob(".part-c")
    (unfinished / ".half-written").write_bytes(b"x")
    if stop:  # a listed unit whose file was torn is made again
        (unfinished / "train-00000.bin").write_bytes(b"torn")
    make_all(tmp_path / "c", lambda unit: made.append(unit) or piece(unit))
    assert made == [*([0] if stop else []), *range(stop, UNITS)]
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


def test_what_is_wrong_with_the_data_leaves_nothing_and_a_full_disk_what_was_done(tmp_path, monkeypatch):
    def wrong(unit):
        if unit == 2:
            raise UserError("a bad line")
        return piece(unit)

    with pytest.raises(UserError, match="a bad line"):
        make_all(tmp_path / "c", wrong)
    assert list(tmp_path.iterdir()) == []
    sync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 6:
            raise OSError(28, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot write the cache folder .*No space left on device.*RESEARCH_CACHE"):
        make_all(tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == [".part-c"]
    make_all(tmp_path / "whole")
    make_all(tmp_path / "c")
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


def test_killed_at_random_moments_it_is_byte_for_byte_the_same(tmp_path):
    lines = [json.dumps({"text": f"line {number} " * (1 + number % 9)}) for number in range(6000)]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    script = (
        "import sys; from research.data import sources, tokens; sources.UNIT = (1 << 14, 1 << 14);"
        f"tokens.prepare('jsonl:{tmp_path}/lines.jsonl', 'byte', cache_dir=sys.argv[1])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(cache):
        return subprocess.Popen([sys.executable, "-c", script, str(tmp_path / cache)], env=environment)

    assert start("whole").wait() == 0
    draw, kills = np.random.default_rng(0), 0
    while kills < 4:
        process = start("cut")
        unfinished = tmp_path / "cut" / "tokens"
        before = len(list(unfinished.glob(".part-*/unit-*")))
        while process.poll() is None and len(list(unfinished.glob(".part-*/unit-*"))) <= before + draw.integers(3):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        if process.returncode == 0:
            break
    assert kills > 1 and start("cut").wait() == 0
    [whole], [cut] = (list((tmp_path / name / "tokens").iterdir()) for name in ("whole", "cut"))
    assert contents(whole) == contents(cut) and len(contents(whole)) > 40


def over_shards(*sizes: int) -> tuple[np.ndarray, Ids]:
    bounds = np.cumsum([0, *sizes])
    whole = np.arange(bounds[-1]).astype(np.uint16)
    arrays = tuple(whole[a:b] for a, b in zip(bounds, bounds[1:], strict=False))
    return whole, Ids(arrays, (None,) * len(arrays))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_shards_are_one_sequence(sizes, data):
    whole, ids = over_shards(*sizes)
    a = data.draw(st.integers(0, len(whole)))
    b = data.draw(st.integers(a, len(whole)))
    assert ids[a:b].tolist() == whole[a:b].tolist() and len(ids) == len(whole)
    length = data.draw(st.integers(1, len(whole)))
    starts = np.array(data.draw(st.lists(st.integers(0, len(whole) - length), min_size=1, max_size=5)))
    assert ids.windows(starts, length).tolist() == [whole[s : s + length].tolist() for s in starts]
    for batches in (Batches, EvalBatches):
        if len(whole) > 4:
            stream = [batches(one, 2, 3, **({"seed": 1} if batches is Batches else {})) for one in (whole, ids)]
            for name in ("tokens", "targets", "weights"):
                assert stream[0](0)[name].tolist() == stream[1](0)[name].tolist()


def test_damage_is_named_by_file_and_offset_or_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "BLOCK", 16)
    ids = np.arange(100, dtype=np.uint8)
    pieces = {"train": Piece(ids, np.array([0]), np.array([0]), 1)}
    shards.prepare(tmp_path / "c", 1, lambda unit: (pieces, {}), {}, lambda totals: None)
    path = tmp_path / "c" / "train-00000.bin"
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)
    assert shards.is_intact(tmp_path / "c", thorough=False) and not shards.is_intact(tmp_path / "c", thorough=True)
    stream = shards.read(tmp_path / "c", "train", np.dtype(np.uint8)).tokens
    assert stream[0:48].tolist() == list(range(48)) and stream[64:100][0] == 64
    with pytest.raises(Damaged, match=rf"{path} is damaged between the byte offsets 48 and 64.*--damaged skip"):
        stream[63:64]
    batches = Batches(stream, 18, 5, 0)
    with pytest.raises(Damaged, match="offsets 48 and 64"):
        batches(0)
    starts = np.array([row[0].start for row in batches.stretches(batches.records(0))])
    batch = Batches(stream, 18, 5, 0, damaged="skip")(0)
    touched = (starts + 5 >= 48) & (starts < 64)
    assert 0 < touched.sum() < 18 and (batch["weights"].sum(1) == np.where(touched, 0, 5)).all()
    assert (batch["tokens"][~touched, 0] == starts[~touched]).all() and not batch["tokens"][touched].any()
    path.unlink()
    with pytest.raises(Damaged, match="cannot read .*train-00000.bin"):
        shards.read(tmp_path / "c", "train", np.dtype(np.uint8))
