"""A worker of a study: takes a batch of choices from the storage, trains it as a sweep does, tells each evaluation, hands in the results, and takes
the next. It ends when every choice is over. Killed at any moment it loses its batch, which another worker takes over; the same command goes on."""

import contextlib
import itertools
import json
import statistics
import threading
import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from research.core.errors import UserError
from research.sweep import plan as P
from research.sweep import results
from research.sweep import study as S
from research.sweep.execute import Execution, Live, Made, Report, said
from research.sweep.report import write_report
from research.sweep.results import Folder
from research.train.console import duration

if TYPE_CHECKING:
    from optuna.trial import Trial

    from research.sweep.sweep import Sweep

POLL = 1.0  # seconds between two looks at a storage where all choices are with other workers


def run(sweep: "Sweep", say: Report, plan_only: bool = False) -> tuple[list[dict[str, Any]], int]:
    """Works on a sweep's study until it is complete, and writes its folder. Returns all results, and how many trials there shall be. Raises UserError
    for a storage that cannot be reached, and for a study of another sweep."""
    S.check_installed(sweep.search)
    made, by_sampler = Made(), sweep.search in S.SAMPLERS
    checked = Execution(sweep, _corners(sweep) if by_sampler else sweep.planned(), say, made)
    checked.prepare()
    listed = None if by_sampler else list(sweep.choices())
    total = int(sweep.trials or 0) if listed is None else len(listed)
    if plan_only:
        say(f"{total} choices by {sweep.search}, {sweep.seeds} seed(s) each; batches of {sweep.batch}")
        checked.show_plan()
        return [], total * sweep.seeds
    sweep.folder.mkdir(parents=True, exist_ok=True)
    url = sweep.storage or f"journal:{sweep.folder / 'study.journal'}"
    with S.reached(url), S.storage_at(url) as storage:
        return Worker(sweep, storage, say, made, listed, total).work(), total * sweep.seeds


def _corners(sweep: "Sweep") -> list[P.Trial]:
    """Trials that try every value, or end of a range, of one field beside the first of all others."""
    space = sweep.dimensions().dimensions
    values = {one.field: one.values or (one.low, one.high) for one in space}
    first = {name: found[0] for name, found in values.items()}
    chosen = [{**first, name: value} for name, found in values.items() for value in found]
    return P.trials(sweep.base, chosen, sweep.seeds)


class Worker:
    """One process at a study of `total` choices: those that are `listed`, or a sampler's."""

    def __init__(
        self, sweep: "Sweep", storage: Any, say: Report, made: Made, listed: list[dict[str, Any]] | None, total: int
    ):
        optuna = S.optuna_module()
        self.sweep, self.say, self.made, self.listed, self.total = sweep, say, made, listed, total
        self.space = sweep.dimensions()
        self.distributions = S.distributions(self.space)
        self.name, self.watch, self.shown = S.worker_name(), S.Watch(), False
        self.study = optuna.create_study(
            storage=storage, study_name=sweep.study or sweep.name, load_if_exists=True,
            pruner=S.pruner_of(sweep.pruner),
        )  # fmt: skip
        self._agree()

    def _agree(self) -> None:
        """Makes a new study this sweep's. Raises UserError where it is another's."""
        trials, ours = self.study.get_trials(deepcopy=False), json.loads(json.dumps(self.sweep.described()))
        name = self.study.study_name
        if (
            S.SWEEP not in self.study.user_attrs
        ):  # asked after the trials: another worker makes it a sweep's before it adds some
            if trials:
                raise UserError(f"the study {name!r} was not made by a sweep; give another name by --study")
            self.study.set_user_attr(S.SWEEP, {"id": uuid.uuid4().hex, **ours})
        found = {key: value for key, value in self.study.user_attrs[S.SWEEP].items() if key != "id"}
        results.refuse_other(f"the study {name!r} is another sweep's", found, ours, "Give another name by --study.")

    def work(self) -> list[dict[str, Any]]:
        """Batch after batch until every choice is over; returns all results."""
        self.say(f"study {self.study.study_name!r}: {len(self._board().over)} of {self.total} choices are over")
        waiting = False
        with self._beating():
            while len(self._board().over) < self.total:
                if batch := self._batch():
                    waiting = False
                    self._trained(batch)
                    self._written()
                    continue
                if not waiting:
                    self.say("all choices that are not over are with other workers; waiting for them")
                waiting = True
                time.sleep(POLL)
        return self._written(report=True)

    @contextlib.contextmanager
    def _beating(self) -> Iterator[None]:
        """Gives signs of life while the block runs."""
        ended, interval = threading.Event(), self.sweep.heartbeat

        def beat():
            for count in itertools.count(1):
                if ended.wait(interval):
                    return
                with contextlib.suppress(*S.lost()):  # the block itself will say so
                    self.study.set_user_attr(S.BEAT + self.name, [count, interval])

        self.study.set_user_attr(S.BEAT + self.name, [0, interval])
        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _board(self) -> S.Board:
        return S.Board(self.study.get_trials(deepcopy=False), self.total)

    # -- taking

    def _batch(self) -> dict[int, "Trial"]:
        """Trials for this worker by choice: of choices whose worker is dead, then of new ones; none where all are taken."""
        self._bury()
        taken: dict[int, Trial] = {}
        while len(taken) < self.sweep.batch:
            board = self._board()
            if not any(one.state.name == "WAITING" for one in board.trials) and not self._more(board):
                break
            if self.listed is None:
                self.study.sampler = S.sampler_of(self.sweep.search, self.sweep.seed, len(board.trials))
            trial = self.study.ask(self.distributions)
            board = self._board()
            if board.is_spare(trial.number):
                self.study.tell(trial, state=_state("FAIL"))
                continue
            trial.set_user_attr(S.WORKER, self.name)
            taken[board.choice_of[trial.number]] = trial
        return taken

    def _more(self, board: S.Board) -> bool:
        """Whether there is another choice to ask for, which is then in the storage or is a sampler's to make."""
        if board.abandoned:
            self._add(board.abandoned[0], board.originals[board.abandoned[0]].params)
            return True
        if self.listed is None:
            return len(board.originals) < self.total
        new = next((n for n in range(self.total) if n not in board.originals), None)
        if new is not None:
            self._add(new, S.params_of(self.space, self.listed[new]))
        return new is not None

    def _add(self, choice: int, params: dict[str, Any]) -> None:
        """Adds a trial that stands for a choice and waits for a worker."""
        create = S.optuna_module().trial.create_trial
        attributes = {S.CHOICE: choice}
        waiting = create(
            state=_state("WAITING"), params=params, distributions=self.distributions, user_attrs=attributes
        )
        self.study.add_trial(waiting)

    def _bury(self) -> None:
        """Fails the trials whose workers are dead."""
        beats = {
            key.removeprefix(S.BEAT): tuple(value)
            for key, value in self.study.user_attrs.items()
            if key.startswith(S.BEAT)
        }
        running = self.study.get_trials(deepcopy=False, states=(_state("RUNNING"),))
        # One that was just taken has no worker's name yet; it shall have one soon.
        owners = {one.number: one.user_attrs.get(S.WORKER, f"that took trial {one.number}") for one in running}
        unnamed = {owner: (0, self.sweep.heartbeat) for owner in owners.values() if owner not in beats}
        dead = self.watch.dead({**beats, **unnamed}, time.monotonic()) - {self.name}
        for trial in running:
            if owners[trial.number] in dead:
                self.say(f"the worker of trial {trial.number} is gone; it is taken over")
                with contextlib.suppress(ValueError, S.optuna_module().exceptions.UpdateFinishedTrialError):
                    self.study.tell(trial.number, state=_state("FAIL"))

    # -- training

    def _trained(self, batch: dict[int, "Trial"]) -> None:
        """Trains a batch and hands in its results. What is not handed in when it is interrupted is given back."""
        open_trials = dict(batch)
        try:
            members = [one for choice, trial in batch.items() for one in self._members(choice, trial, open_trials)]
            if not members:
                return
            execution = Execution(self.sweep, members, self.say, self.made)
            execution.prepare()
            if not self.shown:
                execution.show_plan()
            self.shown = True
            began, results_of = time.perf_counter(), _Results(self, open_trials)
            execution.train(members, results_of, lambda live, *_: self._told(execution, live, results_of))
            self.say(f"a batch of {len(batch)} choices in {duration(time.perf_counter() - began)}")
        finally:
            for trial in open_trials.values():
                self._end(trial, "FAIL")

    def _members(self, choice: int, trial: "Trial", open_trials: dict[int, "Trial"]) -> list[P.Trial]:
        """A choice's trials, one for every seed, numbered over the whole study; none where a sampler's choice makes no config, which is over then."""
        fields, seeds = S.fields_of(self.space, trial.params), self.sweep.seeds
        try:
            made = P.trials(self.sweep.base, [fields], seeds)
        except UserError as error:
            self.say(f"{said(fields)} makes no run: {error}")
            self._end(open_trials.pop(choice), "FAIL", [])
            return []
        return [P.Trial(choice * seeds + one.number, one.fields, one.config) for one in made]

    def _told(self, execution: Execution, live: Live, of: "_Results") -> None:
        """Reports what members have reached, as the mean of each choice, and ends the choices that the pruner gives up."""
        for choice, trial in list(of.open_trials.items()):
            own = [live[n] for n in of.numbers(choice) if n in live]
            members = [member for member in own if member is not None]
            if not members:
                continue
            gone = [float("inf")] * (self.sweep.seeds - len(own))  # those that diverged
            step = members[0].step
            try:
                trial.report(statistics.fmean([*(member.loss for member in members), *gone]), step)
                given_up = trial.should_prune()
            except S.optuna_module().exceptions.UpdateFinishedTrialError:
                self.say(
                    f"trial {trial.number} was taken over, since this worker gave no sign of life; it is dropped here"
                )
                del of.open_trials[choice]
                given_up = True
            for member in members if given_up else ():
                execution.finish(member, "stopped", live, of)

    def _end(
        self, trial: "Trial", state: str, lines: list[dict[str, Any]] | None = None, value: float | None = None
    ) -> None:
        """Tells the storage that a trial is over, with its results. One that was taken over in the meantime is another's."""
        try:
            if lines is not None:
                trial.set_user_attr(S.LINES, lines)
            self.study.tell(trial, value, _state(state))
        except (ValueError, S.optuna_module().exceptions.UpdateFinishedTrialError):
            self.say(f"trial {trial.number} was taken over, since this worker gave no sign of life")

    def _written(self, report: bool = False) -> list[dict[str, Any]]:
        """Brings the folder up to what the storage has; returns all of it."""
        identity = self.study.user_attrs[S.SWEEP]["id"]  # by now no worker that began beside this one sets another
        folder = Folder(self.sweep.folder, {**self.sweep.described(), "study": identity}, wait=True)
        try:
            there = {line["trial"] for line in folder.lines}
            for line in self._board().lines:
                if line["trial"] not in there:
                    folder.add(line)
            if report:
                folder.write_table()
                write_report(folder.path)
            return folder.lines
        finally:
            folder.close()


class _Results:
    """Where a batch's results go: those of a choice to the storage, once it has one of every seed."""

    def __init__(self, worker: Worker, open_trials: dict[int, "Trial"]):
        self.worker, self.open_trials, self.path = worker, open_trials, worker.sweep.folder
        self.lines: list[dict[str, Any]] = []

    def numbers(self, choice: int) -> range:
        """The numbers of a choice's trials, over its seeds."""
        return range(choice * self.worker.sweep.seeds, (choice + 1) * self.worker.sweep.seeds)

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append({**line, "group": None, "rungs": []})  # groups differ from worker to worker
        choice = line["trial"] // self.worker.sweep.seeds
        own = [one for one in self.lines if one["trial"] in self.numbers(choice)]
        if len(own) < self.worker.sweep.seeds or choice not in self.open_trials:
            return
        own.sort(key=lambda one: one["trial"])
        complete = all(one["status"] == "complete" for one in own)
        value = statistics.fmean(one["metric"] for one in own) if complete else None
        self.worker._end(self.open_trials.pop(choice), "COMPLETE" if complete else "PRUNED", own, value)


def _state(name: str) -> Any:
    return S.optuna_module().trial.TrialState[name]
