"""`research bench sample`: rows made of what the sides say, and our own side at a tiny size."""

import json

import fake_sides
import pytest

from research.bench import bandwidth, command, sample, sample_ours, sample_peer
from research.core.errors import UserError
from research.families import gpt2

SHAPE = {
    "layers": 1,
    "width": 8,
    "heads": 2,
    "vocabulary": 32,
    "prompt": 4,
    "new": 3,
    "batch": 2,
    "threads": 1,
    "device": "cpu",
}
OURS = {"bytes_per_step": 1000.0, "prompt_seconds": 0.004}


@pytest.fixture
def sides(tmp_path):
    """Ours, the bandwidth and two peers, whose step takes 20 ms; the second peer is not installed."""
    ours = fake_sides.side(tmp_path, "ours", **OURS)
    reading = fake_sides.side(tmp_path, "bandwidth", bytes=2000, way="by hand")
    peer = fake_sides.side(tmp_path, "peer", prompt_seconds=0.01)
    absent = fake_sides.side(tmp_path, "absent", build="raise ImportError('no such library')")
    return ours, reading, [peer, absent]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(sample, "LEAST_SECONDS", 0.04)


def test_a_row_a_peer_with_rates_of_decoding_alone(sides):
    result = sample.measure(sample.Arguments(batch=(1, 2), new=5, rounds=2), *sides)
    assert [(row["batch"], row["peer"]) for row in result["rows"]] == [
        (1, "peer"),
        (1, "absent"),
        (2, "peer"),
        (2, "absent"),
    ]
    first, second, third, _ = result["rows"]
    assert len(first["ours_rounds"]) == len(first["peer_rounds"]) == 2
    assert (
        0.7 * 4 / 0.016 < first["ours_tokens_per_second"] <= 4 / 0.016
    )  # 4 tokens after the prompt's, in 20 ms less the prompt's 4
    assert 0.4 * 4 / 0.01 < first["peer_tokens_per_second"] <= 4 / 0.01
    assert first["ratio"] == first["ours_tokens_per_second"] / first["peer_tokens_per_second"]
    assert third["ours_tokens_per_second"] > 1.2 * first["ours_tokens_per_second"]
    read = first["ours_tokens_per_second"] * 1000
    assert first["bandwidth_fraction"] == pytest.approx(read / first["bandwidth"]) and first["bandwidth"] <= 2000 / 0.02
    assert second["ratio"] is None and second["note"] == "missing: no such library"
    assert "2.00" not in sample.lines(result)[0] and any("absent missing" in line for line in sample.lines(result))
    json.dumps(result)


def test_every_side_is_told_the_same(sides, tmp_path):
    sample.measure(sample.Arguments(batch=(1,), rounds=1), *sides)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    requests = {name: what["build"] for name, what in log if "build" in what}
    assert requests["bandwidth"] == requests["ours"] == requests["peer"]
    assert (requests["ours"]["layers"], requests["ours"]["vocabulary"]) == (12, 50257)


def test_without_a_peer_the_row_says_so(sides):
    ours, reading, _ = sides
    rows = sample.measure(sample.Arguments(batch=(1,), rounds=1), ours, reading, [])["rows"]
    assert [(row["peer"], row["ratio"], row["note"]) for row in rows] == [(None, None, "no peer was asked for")]


def test_a_peer_of_another_size_ends_the_benchmark(sides, tmp_path):
    ours, reading, _ = sides
    other = fake_sides.side(tmp_path, "other", prompt_seconds=0.0, params=11)
    with pytest.raises(RuntimeError, match="other has 11 parameters, ours 10"):
        sample.measure(sample.Arguments(batch=(1,), rounds=1), ours, reading, [other])


def test_our_side_generates_what_was_asked_for_and_says_what_a_token_reads():
    facts, run = sample_ours.build(SHAPE)
    assert facts["params"] == 32 * 8 + 1024 * 8 + 12 * 8 * 8 + 13 * 8 + 2 * 8 and facts["prompt_seconds"] > 0
    keys = 2 * 2 * 1 * 8 * (4 + 3 / 2)  # rows x keys and values x layers x width x positions
    assert facts["bytes_per_step"] == 4 * (facts["params"] - 1024 * 8 + keys)
    assert run(1) == run(1)


def test_what_a_token_of_gpt2_reads_is_half_a_gigabyte():
    request = {"batch": 1, "prompt": 128, "new": 128}
    read = sample_ours.bytes_per_step(gpt2.FAMILY.presets["gpt2"], request, 4)
    assert read == 4 * (124_439_808 - 1024 * 768 + 2 * 12 * 768 * 192)


def test_the_bandwidth_side_multiplies_by_the_model_s_own_matrices():
    request = {"layers": 2, "width": 8, "vocabulary": 32}
    facts, run = bandwidth.build(request)
    assert facts["bytes"] == 4 * (2 * 12 * 8 * 8 + 32 * 8) and facts["way"] in ("xla", "numpy")
    assert run(2) == 0.0
    whole = bandwidth.shapes({"layers": 12, "width": 768, "vocabulary": 50257})
    assert sum(rows * columns for rows, columns in whole) == 12 * 12 * 768**2 + 50257 * 768


def test_the_peer_generates_with_either_cache():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    for cache in ("default", "static"):
        facts, run = sample_peer.build({**SHAPE, "cache": cache})
        assert facts["params"] == sample_ours.build(SHAPE)[0]["params"] and run(1) == run(1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--new", "1"], "new is 1; expected a whole number of at least 2"), (["--batch", "0"], "batch is"),
        (["--preset", "gpt5"], "preset is 'gpt5'; expected one of gpt2, gpt2-medium"), (["--new", "1000"], "new is 1000; expected at most 897"),
        (["--rounds", "0"], "rounds is 0"),
    ],
)  # fmt: skip
def test_bad_options_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        command.main(["sample", *options])
