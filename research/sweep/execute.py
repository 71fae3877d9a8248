"""A sweep as it runs: groups of members trained rung by rung, each result on disk as soon as it is there."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import jax

from research.core import config as C
from research.core.errors import UserError
from research.data.tokens import Corpus
from research.sweep import plan as P
from research.sweep import results, rungs, width
from research.sweep.members import Member, Together, looped, together
from research.train import start
from research.train.config import SWITCHES, TRACED
from research.train.console import duration
from research.train.program import Program

if TYPE_CHECKING:
    from research.sweep.sweep import Sweep

Report = Callable[[str], None]
Live = dict[int, Member | None]
"""The members that are not over, by number; None for one that has not begun."""
POPULATION_RUNGS = 5


class Kept(Protocol):
    """Where results go: a folder, or what a worker hands to its storage."""

    path: Any
    lines: list[dict[str, Any]]

    def add(self, line: dict[str, Any]) -> None: ...


@dataclasses.dataclass
class Made:
    """What trials of one sweep share: corpora, programs, and how wide each was found to run best."""

    corpora: dict[tuple, Corpus] = dataclasses.field(default_factory=dict)
    programs: dict[str, Program] = dataclasses.field(default_factory=dict)
    widths: dict[str, width.Measured] = dataclasses.field(default_factory=dict)
    packs: dict[tuple[str, bool], Together] = dataclasses.field(default_factory=dict)


class Execution:
    """One run of trials of a sweep. `prepare` finds out all that can be wrong before anything trains."""

    def __init__(self, sweep: "Sweep", planned: Sequence[P.Trial], say: Report, made: Made | None = None):
        self.sweep, self.say, self.trials = sweep, say, list(planned)
        self.groups = P.groups(self.trials)
        self.group_of = {trial.number: n for n, group in enumerate(self.groups) for trial in group.trials}
        made = Made() if made is None else made
        self.corpora, self.programs, self.widths, self.packs = made.corpora, made.programs, made.widths, made.packs

    def prepare(self) -> None:
        """Reads the data and builds each group's program, without compiling. Raises UserError, naming the trial, for one that does not fit."""
        for group in self.groups:
            if group.program_key in self.programs:
                continue
            try:
                self.programs[group.program_key] = start.program_of(_on_members(group.config), self.corpora)
            except UserError as error:
                given = P.fixed(group, self.trials)
                raise UserError(f"{'the trials with ' + said(given) + ': ' if given else ''}{error}") from error

    # -- the plan

    def show_plan(self) -> None:
        """Measures a step of the first group and prints what will run."""
        for line in self.plan_lines():
            self.say(line)

    def plan_lines(self) -> list[str]:
        first = self.groups[0]
        measured = self.width_of(first)
        per_flop = measured.seconds / self._flops(first)
        compiles = len(self.programs)
        out = [f"{len(self.trials)} trials in {len(self.groups)} group(s), {compiles} to compile"]
        total = 0.0
        for n, group in enumerate(self.groups):
            seconds = per_flop * self._flops(group) * group.config.steps * len(group.trials)
            total += seconds
            given, varied = P.fixed(group, self.trials), P.varied(group)
            own = self.widths.get(group.program_key)
            room = f", {own.bytes / 2**20:,.0f} MiB a step, width {own.width} ({own.how})" if own else ""
            about = f"group {n}: {said(given) or 'all'}; {len(group.trials)} members" + (
                f" by {', '.join(varied)}" if varied else ""
            )
            out.append(f"  {about}; {group.config.steps} steps{room}, about {duration(seconds)}")
        compiling = measured.compile_seconds * compiles
        share = self._work()
        halved = "" if share == 1 else f" in full, {share:.0%} of it by the rungs"
        out.append(
            f"about {duration(total)}{halved}, and {duration(compiling)} to compile "
            f"({measured.seconds * 1e3:.3g} ms a step of group 0, measured; the others by their FLOPs)"
        )
        return out

    def _flops(self, group: P.Group) -> float:
        return self.programs[group.program_key].flops_per_token * group.config.step_tokens

    def _work(self) -> float:
        """The share of all members' steps that is trained if nobody diverges."""
        if self.sweep.search != "halving":
            return 1.0
        ends, alive, done, before = self.ends(1_000_000, 1_000_000), len(self.trials), 0.0, 0
        for end in ends:
            done += alive * (end - before)
            alive, before = max(1, alive // self.sweep.eta), end
        return done / len(self.trials) / ends[-1]

    def width_of(self, group: P.Group) -> width.Measured:
        if group.program_key not in self.widths:
            program = self.programs[group.program_key]
            self.widths[group.program_key] = width.choose(program, group, self.sweep.width, self.say)
        return self.widths[group.program_key]

    # -- training

    def ends(self, steps: int, eval_every: int) -> list[int]:
        """The steps at which members of so many are ranked, or told to a storage after each evaluation, the last of them their end."""
        if self.sweep.shared:
            return sorted({*range(eval_every, steps, eval_every), steps})
        if self.sweep.search == "population":
            count = self.sweep.rungs or POPULATION_RUNGS
            return sorted({math.ceil(steps * (n + 1) / (count + 1)) for n in range(count)} | {steps})
        if self.sweep.search != "halving":
            return [steps]
        room = rungs.most(len(self.trials), min(trial.config.steps for trial in self.trials), self.sweep.eta)
        count = min(room, self.sweep.rungs or room)
        return rungs.steps_of(steps, count, self.sweep.eta)

    def run(self, folder: Kept) -> None:
        """Trains every member that has no result yet; each has one, in the folder, when this returns."""
        done = {line["trial"] for line in folder.lines}
        waiting = [trial for trial in self.trials if trial.number not in done]
        if done:
            self.say(f"{len(done)} of {len(self.trials)} trials are done: {folder.path}")
        if not waiting:
            return
        self.show_plan()
        began = time.perf_counter()
        self.train(waiting, folder, self._ranked)
        self.say(f"{len(waiting)} trials in {duration(time.perf_counter() - began)}; {folder.path}")

    def train(self, trials: Sequence[P.Trial], folder: Kept, ranked: Callable[[Live, int, Kept], None]) -> None:
        """Trains members up to each of their rungs. `ranked` says what becomes of those that are live after one but the last."""
        live: Live = dict.fromkeys(trial.number for trial in trials)
        count = max(len(self._ends_of(group)) for group in self.groups)
        for rung in range(count):
            for group in self.groups:
                if rung < len(self._ends_of(group)):
                    self._advance([trial for trial in group.trials if trial.number in live], rung, live, folder)
            if rung + 1 < count:
                ranked(live, rung, folder)

    def _ends_of(self, group: P.Group) -> list[int]:
        return self.ends(group.config.steps, group.config.eval_every)

    def _member(self, trial: P.Trial) -> Member:
        group = self.groups[self.group_of[trial.number]]
        program = self.programs[group.program_key]
        begun = start.resolve(trial.config).config if trial.config.init_from else trial.config
        return Member(trial, program.like(_on_members(begun)))

    def _advance(self, trials: Sequence[P.Trial], rung: int, live: Live, folder: Kept) -> None:
        """Trains members of one group up to a rung, as many at once as is fastest; those that are over are written and let go."""
        if not trials:
            return
        group = self.groups[self.group_of[trials[0].number]]
        until, chosen = self._ends_of(group)[rung], self.width_of(group)
        for at in range(0, len(trials), chosen.width):
            pack = [live[trial.number] or self._member(trial) for trial in trials[at : at + chosen.width]]
            live.update({member.trial.number: member for member in pack})
            if isinstance(chosen.of, Together):
                together(pack, until, self._together(group))
            else:
                looped(pack, until)
            for member in pack:
                member.rungs.append((until, member.loss))
                if member.diverged or until == group.config.steps:
                    self.finish(member, "diverged" if member.diverged else "complete", live, folder)

    def _together(self, group: P.Group) -> Together:
        """The program of a group's width, over shared batches or each member's own: what was measured, where that is it."""
        chosen, key = self.width_of(group), (group.program_key, width.shares_data(group))
        if key not in self.packs:
            fits = isinstance(chosen.of, Together) and chosen.of.shared == key[1]
            made = chosen.of if fits else Together(self.programs[key[0]], chosen.width, key[1])
            assert isinstance(made, Together)
            self.packs[key] = made
        return self.packs[key]

    def finish(self, member: Member, status: str, live: Live, folder: Kept) -> None:
        number = member.trial.number
        line = results.line(member, status, self.group_of[number])
        folder.add(line)
        member.state = None
        del live[number]
        loss = "" if line["metric"] is None else f"loss {line['metric']:.4f}  "
        self.say(
            f"trial {number}  {said(member.trial.fields)}  {loss}{status} at step {member.step}  ({len(folder.lines)}/{len(self.trials)})"
        )

    def _ranked(self, live: Live, rung: int, folder: Kept) -> None:
        """What becomes of the members at a rung."""
        if self.sweep.search == "population":
            self._exploited(live, rung)
            return
        losses = {n: member.loss for n, member in live.items() if member is not None}
        for line in folder.lines:  # of those that are over, what they had here
            if len(line["rungs"]) > rung:
                loss = line["rungs"][rung][1]
                losses[line["trial"]] = math.inf if loss is None else loss
        keep = rungs.kept(losses, self.sweep.eta)
        for number, member in list(live.items()):
            if member is not None and number not in keep:
                self.finish(member, "stopped", live, folder)

    def _exploited(self, live: Live, rung: int) -> None:
        """The worst members of each group go on from the best ones, with numbers near theirs."""
        for n, group in enumerate(self.groups):
            members = [member for trial in group.trials if (member := live.get(trial.number)) is not None]
            parents = rungs.exploit([member.loss for member in members], self.sweep.share)
            states = [member.state for member in members]
            fields = [member.trial.fields for member in members]
            for place, parent in enumerate(parents):
                if place == parent:
                    continue
                drawn = rungs.explore(fields[parent], self._bounds(), [self.sweep.seed, n, rung, place])
                self._reborn(members[place], states[parent], drawn)

    def _bounds(self) -> dict[str, tuple[float, float]]:
        """The traced numbers that a population explores, with their least and largest values."""
        explored = (TRACED | SWITCHES) - {"seed", "data_seed"}
        found = {}
        for one in self.sweep.dimensions().dimensions:
            numbers = [x for x in one.values or (one.low, one.high) if isinstance(x, (int, float))]
            if one.field in explored and numbers:
                found[one.field] = (min(numbers), max(numbers))
        return found

    def _reborn(self, member: Member, state: Any, fields: dict[str, Any]) -> None:
        kept = {name: member.trial.fields[name] for name in ("seed", "data_seed") if name in member.trial.fields}
        fields = {**fields, **kept}
        config = C.set_values(member.trial.config, fields, f"trial {member.trial.number}")
        self.say(f"trial {member.trial.number}  goes on from a better one with {said(fields)}")
        member.trial = dataclasses.replace(member.trial, fields=fields, config=config)
        member.program = member.program.like(_on_members(config))
        member.state = jax.tree.map(lambda leaf: leaf.copy(), state)
        member.diverged = False


def _on_members(config: Any) -> Any:
    """The config on a mesh of members, where several devices are here and it asks for none in particular."""
    count = jax.device_count()
    return dataclasses.replace(config, mesh=f"member={count}") if config.mesh == "auto" and count > 1 else config


def said(fields: dict[str, Any]) -> str:
    """Fields in words, numbers short."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in fields.items()
    )
