"""Units made by other processes, or by Beam: the bytes are those of one process, whoever made which."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from data_commands import texts, write_lines

from research.core.errors import UserError
from research.data import shards, sources, units, workers
from research.data.tokens import prepare
from research.data.units import Job


@pytest.fixture
def spec(tmp_path, monkeypatch) -> str:
    """A source of some twenty units, of which cleaning drops a part."""
    monkeypatch.setattr(sources, "UNIT", (500, 500))
    kept = ({"text": text if n % 3 else "  "} for n, text in enumerate(texts(90)))
    return write_lines(tmp_path / "lines.jsonl", kept)


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_workers_leave_the_bytes_of_one_process(spec, tmp_path):
    seen = []
    alone = prepare(spec, "bpe:280", clean="plain", cache_dir=tmp_path / "c", out=tmp_path / "one", workers=1)
    both = prepare(
        spec, "bpe:280", clean="plain", cache_dir=tmp_path / "c", out=tmp_path / "two", workers=2,
        progress=lambda done, total: seen.append(done),
    )  # fmt: skip
    assert contents(tmp_path / "one") == contents(tmp_path / "two") and len(contents(tmp_path / "one")) > 40
    assert both.cleaning == alone.cleaning and both.cleaning.dropped
    assert seen == sorted(seen) and seen[-1] == sum(
        len((text if n % 3 else "  ").encode()) for n, text in enumerate(texts(90))
    )


def test_what_a_worker_finds_wrong_is_said_as_by_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "UNIT", (200, 200))
    lines = [{"text": text, "extra": None if n == 70 else 1} for n, text in enumerate(texts(80))]
    spec = write_lines(tmp_path / "lines.jsonl", lines)
    for count in (1, 2):
        with pytest.raises(UserError, match=r"record 70 has no value in the field 'extra'"):
            prepare(spec, "byte", text_field="{text}{extra}", cache_dir=tmp_path / "c", workers=count)
    assert list((tmp_path / "c" / "tokens").iterdir()) == []


def test_a_worker_that_dies_is_named_and_what_is_done_stays(spec, tmp_path, monkeypatch):
    ask, asked = workers._ask, []

    def killing(process, number, seen):
        asked.append(number)
        if len(asked) == 5:
            process.kill()
        ask(process, number, seen)

    monkeypatch.setattr(workers, "_ask", killing)
    with pytest.raises(UserError, match=r"ended with code -9, .* fewer --workers: what is done is kept"):
        prepare(spec, "byte", clean="plain", cache_dir=tmp_path / "c", out=tmp_path / "own", workers=2)
    assert 3 <= len(list((tmp_path / ".part-own").glob("unit-*"))) < 15 and not (tmp_path / "own").exists()
    prepare(spec, "byte", clean="plain", cache_dir=tmp_path / "c", out=tmp_path / "own")
    prepare(spec, "byte", clean="plain", cache_dir=tmp_path / "c", out=tmp_path / "whole")
    assert contents(tmp_path / "own") == contents(tmp_path / "whole")


def test_killed_with_its_workers_at_work_it_leaves_none_and_goes_on(spec, tmp_path):
    script = (
        "import sys; from research.data import sources, tokens; sources.UNIT = (500, 500);"
        "tokens.prepare(sys.argv[1], 'byte', clean='plain', cache_dir=sys.argv[2], out=sys.argv[3], workers=2)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, spec, tmp_path / "c", tmp_path / "own"]
    process = subprocess.Popen(command, env=environment)
    while process.poll() is None and not list(tmp_path.glob(".part-own/unit-*")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while (left := _workers_in(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    prepare(spec, "byte", clean="plain", cache_dir=tmp_path / "c", out=tmp_path / "whole", workers=1)
    assert contents(tmp_path / "own") == contents(tmp_path / "whole")


def _workers_in(folder) -> list[int]:
    """Processes that write below a folder: those of `research.data.units` whose files it is."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        if "research.data.units" in words and os.getpgid(process.pid) == os.getpgid(0):
            found.append(process.pid)
    return found


def test_how_many_workers_there_are(spec, monkeypatch):
    source = sources.resolve(spec)
    assert len(source.units) > 10 and workers.count(None, source, slow=True) == 1  # too small for a process to pay
    monkeypatch.setattr(workers, "SMALLEST", 1000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(3)))
    assert workers.count(None, source, slow=True) == 3 and workers.count(None, source, slow=False) == 1
    assert workers.count(100, source, slow=False) == len(source.units)
    with pytest.raises(UserError, match="--workers is 0"):
        workers.count(0, source, slow=True)


def test_units_are_a_64th_of_a_source_within_bounds(spec, monkeypatch):
    source = sources.resolve(spec)
    records = len(source.tables["all"])
    for bounds, most in (((1, 10**9), 64), ((10**9, 10**10), 1), ((1, 2), records)):
        monkeypatch.setattr(sources, "UNIT", bounds)
        found = sources.resolve(spec).units
        assert most * 0.7 <= len(found) <= most + 1
        assert [one.start for one in found[1:]] == [one.stop for one in found[:-1]] and found[-1].stop == records


# -- Beam


@pytest.fixture
def beam():
    pytest.importorskip("apache_beam")
    from research.data import beam

    return beam.engine("runner=DirectRunner")


def test_beam_leaves_the_bytes_of_one_process(spec, tmp_path, beam):
    prepare(spec, "bpe:280", clean="plain", cache_dir=tmp_path / "c", out=tmp_path / "one")
    prepare(spec, "bpe:280", clean="plain", cache_dir=tmp_path / "c", out=tmp_path / "beam", engine=beam)
    assert contents(tmp_path / "one") == contents(tmp_path / "beam")


def test_what_one_began_another_ends(spec, tmp_path, beam):
    def part(job: Job, seen) -> None:
        for number in range(0, len(job.units), 3):
            units.make(job, number)
        raise shards.Unfinished("the power failed")

    with pytest.raises(UserError, match="the power failed"):
        prepare(spec, "byte", clean="plain", cache_dir=tmp_path / "c", out=tmp_path / "own", engine=part)
    prepare(spec, "byte", clean="plain", cache_dir=tmp_path / "c", out=tmp_path / "own", engine=beam)
    prepare(spec, "byte", clean="plain", cache_dir=tmp_path / "c", out=tmp_path / "whole")
    assert contents(tmp_path / "own") == contents(tmp_path / "whole")


def test_what_beam_finds_wrong_is_said_as_by_one_process(tmp_path, beam):
    lines = [{"text": text, "extra": None if n == 70 else 1} for n, text in enumerate(texts(80))]
    spec = write_lines(tmp_path / "lines.jsonl", lines)
    with pytest.raises(
        UserError, match=r"^jsonl:.*, record 70 has no value in the field 'extra', which --text-field names\.$"
    ):
        prepare(spec, "byte", text_field="{text}{extra}", cache_dir=tmp_path / "c", engine=beam)
    assert list((tmp_path / "c" / "tokens").iterdir()) == []


def test_beam_refuses_options_that_it_does_not_know(beam):
    from research.data.beam import engine

    with pytest.raises(UserError, match="no pipeline option 'runnr'"):
        engine("runnr=DirectRunner")


def test_workers_of_beam_that_see_another_disk_are_found_out(spec, tmp_path, beam, monkeypatch):
    from research.data import beam as module

    monkeypatch.setattr(units, "make", lambda job, number: None)
    with pytest.raises(UserError, match=r"made 0 of \d+ units in .* under the same path"):
        prepare(spec, "byte", cache_dir=tmp_path / "c", engine=module.engine("runner=DirectRunner"))


def test_without_beam_the_extra_is_named(monkeypatch):
    from research.data import beam

    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install 'purestep\[beam\]'"):
        beam.engine("")


def test_a_job_is_plain_values():
    job = Job("f", "t", (sources.Unit("all", 0, 3), sources.Unit("train", 3, 4)), 10, "d", None, "answer", None)
    assert Job.from_json(job.to_json()) == job and hash(Job.from_json(job.to_json())) == hash(job)
    assert np.dtype(np.uint16) == units.dtype_for(300)
