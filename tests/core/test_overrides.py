"""Configs from values and from the command line: what is accepted, and what an error says."""

import dataclasses
import json
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core import config as C
from research.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Schedule:
    kind: Literal["cosine", "linear"] = "cosine"
    warmup_steps: int = 100


@dataclasses.dataclass(frozen=True)
class Optimizer:
    schedule: Schedule = Schedule()
    learning_rate: float = 1e-3
    clip_norm: float | None = 1.0


@dataclasses.dataclass(frozen=True)
class Config:
    optimizer: Optimizer = Optimizer()
    patterns: tuple[Literal["full", "sliding"], ...] = ("full",)
    sizes: tuple[int, ...] = (1, 2)
    name: str | None = None
    low: int = 0
    high: int = 10
    loud: bool = False

    def __post_init__(self):
        if not self.low < self.high:
            raise UserError(f"low is {self.low}; expected less than high {self.high}")


@dataclasses.dataclass(frozen=True)
class Arguments:
    config: Config = Config()
    json: bool = False
    flattened = ("config",)


CONFIGS = st.builds(
    Config,
    optimizer=st.builds(
        Optimizer,
        schedule=st.builds(Schedule, kind=st.sampled_from(["cosine", "linear"]), warmup_steps=st.integers()),
        learning_rate=st.floats(allow_nan=False),
        clip_norm=st.none() | st.floats(allow_nan=False),
    ),
    patterns=st.lists(st.sampled_from(["full", "sliding"]), max_size=3).map(tuple),
    sizes=st.lists(st.integers(), max_size=3).map(tuple),
    name=st.sampled_from([None, "", "None", "-x", "é\n", "a b"]),
    low=st.integers(max_value=-1),
    high=st.integers(min_value=0),
    loud=st.booleans(),
)


@given(CONFIGS)
def test_a_config_survives_the_way_through_json(config):
    assert C.set_values(Config(), json.loads(json.dumps(C.to_dict(config))), "config.json") == config
    assert C.set_values(Config(), C.flat(C.to_dict(config)), "config.json") == config


@given(CONFIGS)
def test_flat_names_are_the_declared_fields(config):
    assert list(C.flat(C.to_dict(config))) == [name for name, _ in C.field_types(Config)]


def test_plain_values_share_nothing_with_the_config():
    plain = C.to_dict(Config())
    assert plain["patterns"] == ["full"] and plain["optimizer"]["schedule"] == {"kind": "cosine", "warmup_steps": 100}


def test_fields_change_together_so_that_checks_see_the_new_neighbours():
    assert C.set_values(Config(), {"low": 50, "high": 60}, "x") == Config(low=50, high=60)
    with pytest.raises(UserError, match="low is 50"):
        C.set_values(Config(), {"low": 50}, "x")


def test_whole_numbers_become_floats_where_floats_are_declared():
    changed = C.set_values(Config(), {"optimizer": {"clip_norm": 2}}, "x").optimizer.clip_norm
    assert changed == 2 and isinstance(changed, float)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optimizer": {"learning_rat": 1}}, ["'optimizer.learning_rat'", "'optimizer.learning_rate'"]),
        ({"warmup_steps": 1}, ["'warmup_steps'", "'optimizer.schedule.warmup_steps'"]),
        ({"optimizer": 3}, ["'optimizer'"]),
        ({"low": {"deep": 3}}, ["'low.deep'", "'low'"]),
        ({"low": 1.5}, ["low is 1.5", "a whole number"]),
        ({"low": True}, ["low is True", "a whole number"]),
        ({"low": "1"}, ["low is '1'", "a whole number"]),
        ({"low": None}, ["low is None", "a whole number"]),
        ({"optimizer.learning_rate": "fast"}, ["learning_rate is 'fast'", "a number"]),
        ({"optimizer.learning_rate": 10**400}, ["learning_rate", "a number"]),
        ({"optimizer.clip_norm": "no"}, ["clip_norm is 'no'", "a number"]),
        ({"patterns": ["full", "ful"]}, ["patterns is 'ful'", "one of full, sliding"]),
        ({"patterns": "full"}, ["patterns is 'full'", "any number of: one of full, sliding"]),
        ({"sizes": [1, "2"]}, ["sizes is '2'", "a whole number"]),
        ({"loud": 1}, ["loud is 1", "true or false"]),
        ({"name": 3}, ["name is 3", "text"]),
    ],
)
def test_wrong_values_are_refused_by_field_and_source(values, words):
    with pytest.raises(UserError) as error:
        C.set_values(Config(), values, "run/config.json")
    assert str(error.value).startswith("run/config.json: ") and "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("argv", "changes"),
    [
        ([], {}),
        (["--optimizer.schedule.warmup-steps", "200"], {"optimizer.schedule.warmup_steps": 200}),
        (["--optimizer.schedule.warmup_steps=200"], {"optimizer.schedule.warmup_steps": 200}),
        (["--optimizer.learning-rate", "1e-4", "--low", "-5"], {"optimizer.learning_rate": 1e-4, "low": -5}),
        (["--optimizer.clip-norm", "None"], {"optimizer.clip_norm": None}),
        (["--patterns", "sliding", "full"], {"patterns": ["sliding", "full"]}),
        (["--sizes", "-1", "3", "--loud"], {"sizes": [-1, 3], "loud": True}),
        (["--patterns"], {"patterns": []}),
        (["--name=--x", "--no-loud"], {"name": "--x"}),
        (["--low", "70", "--high", "80"], {"low": 70, "high": 80}),
    ],
)
def test_overrides(argv, changes):
    assert C.flat(C.to_dict(C.parse(Config(), argv, "prog"))) == {**C.flat(C.to_dict(Config())), **changes}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["--optimizer.schedule.warmup-stepz", "2"],
            ["--optimizer.schedule.warmup-stepz", "did you mean --optimizer.schedule.warmup-steps"],
        ),
        (["--warmup-steps", "2"], ["did you mean --optimizer.schedule.warmup-steps"]),
        (["--learning_rat=2"], ["did you mean --optimizer.learning-rate"]),
        (["--optim.clip-norm", "2"], ["did you mean --optimizer.clip-norm"]),
        (["--low", "1.5"], ["--low is '1.5'", "a whole number"]),
        (["--high", "20", "--low", "x", "--loud"], ["--low is 'x'", "a whole number"]),
        (["--low"], ["--low is given no value", "a whole number"]),
        (["--low", "--loud"], ["--low is given no value"]),
        (["--low", "3", "4"], ["unexpected argument '4' after --low 3"]),
        (["--name", "x", "y"], ["unexpected argument 'y' after --name x"]),
        (["--patterns", "full", "ful"], ["--patterns is 'full ful'", "one of full, sliding"]),
        (["--optimizer.schedule.kind", "cos"], ["one of cosine, linear"]),
        (["--optimizer.clip-norm", "no"], ["a number or None"]),
        (["--loud", "yes"], ["--loud takes no value", "'yes'"]),
        (["--name", "-x"], ["--name=-x"]),
        (["low", "3"], ["unexpected argument 'low'"]),
        (["-l", "3"], ["unexpected argument '-l'"]),
        (["--"], ["unexpected argument '--'"]),
        (["--low", "11"], ["low is 11; expected less than high 10"]),
    ],
)
def test_wrong_overrides_are_refused_in_one_line(argv, words):
    with pytest.raises(UserError) as error:
        C.parse(Config(), argv, "prog")
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_flattened_fields_are_known_without_their_prefix():
    with pytest.raises(UserError, match="did you mean --optimizer.learning-rate"):
        C.parse(Arguments(), ["--optimizer.learning-rat", "3"], "prog")
    with pytest.raises(UserError, match="did you mean --low"):
        C.parse(Arguments(), ["--config.lowe", "3"], "prog")


def test_help_prints_every_field_and_exits(capsys):
    with pytest.raises(SystemExit) as stop:
        C.parse(Config(), ["--help"], "prog", "What it does.")
    text = capsys.readouterr().out
    assert stop.value.code in (0, None)
    assert "What it does." in text and "--optimizer.schedule.warmup-steps" in text and "--patterns" in text
