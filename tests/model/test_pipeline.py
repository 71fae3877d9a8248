"""Layers on several stages: the schedule by counting, and on eight devices against the layers one after the other."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.model import pipeline
from research.model.config import ModelConfig

CASES = (
    "stage=8 gpipe", "stage=4,fsdp=2 gpipe", "stage=2,data=2,tensor=2 packed", "stage=4,fsdp=2 circular", "stage=2,data=4 circular packed",
    "stage=4,data=2 thrice", "stage=2,expert=4 sparse", "stage=4,data=2 rest",
)  # fmt: skip


@given(stages=st.integers(2, 6), rounds=st.integers(1, 4), waves=st.integers(1, 3))
def test_every_stage_sees_every_microbatch_in_every_round_and_each_after_the_one_before(stages, rounds, waves):
    plan = pipeline.Schedule(stages, rounds, waves)
    own = [plan.at(turn) for turn in range(plan.microbatches * rounds)]
    assert sorted(own) == [(c, n) for c in range(rounds) for n in range(plan.microbatches)]
    done = {(c, s, n): turn + s for s in range(stages) for turn, (c, n) in enumerate(own)}
    assert max(done.values()) == plan.turns - 1
    for (c, s, n), turn in done.items():
        before = (c, s - 1, n) if s else (c - 1, stages - 1, n)
        assert before not in done or done[before] == turn - 1, "what a stage hands on is worked on in the next turn"


@given(stages=st.integers(1, 24), rounds=st.integers(1, 24))
def test_stretches_reach_their_stages_one_at_a_time(stages, rounds):
    steps = pipeline._sends(stages, rounds)
    for step in steps:
        assert sorted(stage for _, stage, _ in step) == list(range(stages)), "a permutation"
    came = {(stage, c): owner * rounds + j for step in steps for owner, (j, stage, c) in enumerate(step)}
    assert came == {(stage, c): c * stages + stage for stage in range(stages) for c in range(rounds)}


def test_rounds_shorten_the_wait():
    assert pipeline.Schedule(4, 1, 4).idle == pytest.approx(3 / 19)
    assert pipeline.Schedule(4, 2, 4).idle == pytest.approx(3 / 35)


def test_rows_fill_the_waves_that_there_are():
    config = ModelConfig(layers=8)
    sizes = {"stage": 4, "fsdp": 2}
    waves = {rows: pipeline.schedule(config, sizes, rows) for rows in (8, 24, 32, 40, 64, 12)}
    assert [plan and plan.waves for plan in waves.values()] == [1, 3, 4, 1, 4, None]
    more = dataclasses.replace(config, pipeline_microbatches=32)
    assert pipeline.schedule(more, sizes, 64).waves == 8
    assert pipeline.schedule(config, {"fsdp": 8}, 64) is None


@pytest.mark.parametrize(
    ("options", "sizes", "message"),
    [
        ({"layers": 6}, {"stage": 4}, "6 layers cannot be split over 4 stages in 1 round"),
        ({"layers": 8, "pipeline_rounds": 4}, {"stage": 4}, "8 layers cannot be split over 4 stages in 4 round"),
        ({"layers": 8, "patterns": ("full", "sliding")}, {"stage": 8}, "4 repeats of a pattern of 2 layers"),
        ({"layers": 8, "pipeline_microbatches": 6}, {"stage": 4}, "a multiple of 4 stages"),
        ({"layers": 8, "pipeline_microbatches": 12}, {"stage": 4, "data": 2}, "divides the 8 rows"),
    ],
)
def test_what_does_not_divide_is_refused(options, sizes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        pipeline.check(ModelConfig(**options), sizes, 16)


@pytest.fixture(scope="module")
def results(run_python):
    code = Path(__file__).with_name("pipeline_on_eight_devices.py").read_text()
    return json.loads(run_python(code, *CASES, devices=8).splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_a_pipeline_computes_what_the_layers_do(case, results):
    assert results[case]["far"] < 1e-5


def test_rows_are_handed_on_by_permutes_alone(results):
    """Forward, rows go to the next stage and up in the queue, and back their gradients do; weights lie where they are used."""
    found = results["stage=8 gpipe"]["collectives"]
    turns = pipeline.Schedule(8, 1, 2).turns
    assert found["collective-permute"] == 4 * (turns + 1) - 2, (
        found
    )  # what comes of the last one forward needs nothing back in the queue
    assert set(found) == {"collective-permute", "all-reduce"} and found["all-reduce"] == 2, (
        "of the embedding and of the loss"
    )


def test_dropout_differs_between_microbatches_and_is_repeatable(results):
    first, again = results["dropout"]
    assert first == again and len(set(first)) == len(first) == 16
