"""What a sweep will run: its trials, and the groups of them that one compiled program serves."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from research.core import config as C
from research.core.errors import UserError
from research.train import config as T

# Stop conditions that look at a run while it goes: a sweep has its own.
ENDS = ("max_tokens", "max_seconds", "target_loss", "patience")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep: its number, what it was given by dotted field name, and the whole config."""

    number: int
    fields: dict[str, Any]
    config: T.Config


@dataclasses.dataclass(frozen=True)
class Group:
    """Trials of one compiled program that run for as many steps: they differ in traced numbers alone."""

    trials: tuple[Trial, ...]

    @property
    def config(self) -> T.Config:
        return self.trials[0].config

    @property
    def program_key(self) -> str:
        """Equal for groups that share a compiled program."""
        return _key(self.config, T.HOST_ONLY)


def trials(base: T.Config, chosen: Iterable[Mapping[str, Any]], seeds: int = 1) -> list[Trial]:
    """The trials of chosen fields, each with so many seeds from the base's on, in order.

    Raises UserError for values that make no config, for `seed` chosen beside several seeds, and for a base that ends by looking at itself.
    """
    if seeds < 1:
        raise UserError(f"--seeds is {seeds}; expected a whole number of at least 1")
    if set_ends := [name for name in ENDS if getattr(base, name) is not None]:
        raise UserError(
            f"{set_ends[0]} is {getattr(base, set_ends[0])}; a sweep's trials end by their steps: set it to None"
        )
    made = []
    for fields in chosen:
        if "seed" in fields and seeds > 1:
            raise UserError("seed is given two specs, by its name and by --seeds; give one")
        for seed in range(seeds):
            own = dict(fields) if seeds == 1 else {**fields, "seed": base.seed + seed}
            made.append(Trial(len(made), own, C.set_values(base, own, f"trial {len(made)}")))
    if not made:
        raise UserError(
            "the space is empty: give at least one FIELD=SPEC, as in optimizer.learning_rate=log:1e-4:1e-2:8"
        )
    return made


def groups(made: Sequence[Trial]) -> list[Group]:
    """The trials by what they share, groups and trials in order."""
    found: dict[str, list[Trial]] = {}
    for trial in made:
        paced = T.HOST_ONLY - {"steps", "eval_every", "log_every", "max_skipped"}
        found.setdefault(_key(trial.config, paced), []).append(trial)
    return [Group(tuple(one)) for one in found.values()]


def _key(config: T.Config, without: set[str]) -> str:
    return json.dumps({name: value for name, value in T.static(config).items() if name not in without}, sort_keys=True)


def varied(group: Group) -> list[str]:
    """The fields in which a group's trials differ."""
    names = list(dict.fromkeys(name for trial in group.trials for name in trial.fields))
    return [name for name in names if len({repr(trial.fields.get(name)) for trial in group.trials}) > 1]


def fixed(group: Group, every: Sequence[Trial]) -> dict[str, Any]:
    """The swept fields that all of a group's trials have the same value of, where other trials have another."""
    own = set(group.trials[0].fields) - set(varied(group))
    return {
        name: group.trials[0].fields[name]
        for name in group.trials[0].fields
        if name in own and len({repr(trial.fields.get(name)) for trial in every}) > 1
    }
