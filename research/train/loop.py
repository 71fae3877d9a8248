"""The one training loop: `fit` turns a config into a run directory, and goes on exactly where an earlier `fit` of it stopped."""

import contextlib
import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax

from research.core.errors import UserError
from research.data.prefetch import prefetch
from research.train import hosts
from research.train.checkpoint import Checkpointer
from research.train.config import Config
from research.train.console import Console, duration
from research.train.program import Program
from research.train.rundir import RunDir, read_metrics, read_samples
from research.train.signals import Signals
from research.train.step import METRICS, State

Record = dict[str, Any]


@dataclasses.dataclass
class Progress:
    """What stopping depends on besides the state; saved with it. `seconds` is wall clock of training over all resumptions."""

    tokens: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    since_best: int = 0
    train_loss: float | None = None
    eval_loss: float | None = None
    measures: dict[str, float] = dataclasses.field(default_factory=dict)  # of that evaluation, besides its loss
    eval_step: int = -1
    milestone: int = 0  # the last step whose evaluation, samples and checkpoint were done

    def evaluated(self, step: int, measures: dict[str, float]) -> bool:
        """Takes in an evaluation and returns whether it is the best so far."""
        loss = measures["loss"]
        self.measures = {name: value for name, value in measures.items() if name != "loss"}
        self.eval_loss, self.eval_step = loss, step
        if math.isfinite(loss) and (self.best is None or loss < self.best):
            self.best, self.best_step, self.since_best = loss, step, 0
            return True
        self.since_best += 1
        return False


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished or interrupted run: `summary` is the JSON object of the contract for scripts."""

    summary: dict[str, Any]
    state: State | None
    program: Program | None
    run: RunDir


class Loop:
    """One run in progress: the program and its state, and everything a step may have to do besides."""

    def __init__(
        self, config: Config, program: Program, run: RunDir, saver: Checkpointer, console: Console, signals: Signals,
        watchdog: hosts.Watchdog,
    ):  # fmt: skip
        self.config, self.program, self.run, self.saver = config, program, run, saver
        self.console, self.signals, self.watchdog = console, signals, watchdog
        self.votes = hosts.Votes() if hosts.several() else None
        self.pending: deque[tuple[int, dict[str, jax.Array], jax.Array | None]] = deque()
        restored = saver.restore(program.abstract_state())
        self.state: State = program.initial_state() if restored is None else restored.state
        self.step = int(self.state.step)
        self.progress = Progress() if restored is None else Progress(**restored.meta)
        self.saved_step, self.saved_at = -1 if restored is None else self.step, time.perf_counter()
        if restored is not None:
            console.say(f"resumed from step {self.step} of {run.path}")
        run.cut_back(self.step if self.step else -1)  # -1: the sample of step 0 is drawn again
        # What a start that was killed before its checkpoint had written, and this one does again.
        self.written = {(record["step"], record.get("split")) for record in read_metrics(run.path)}
        self.written |= {(step, "sample") for step, _ in read_samples(run.path)}
        self.started, self.seconds_before = time.perf_counter(), self.progress.seconds
        self.logged = (self.started, self.step)
        self.stalled = 0.0  # seconds since then that the step waited for its batch
        self.skipped_in_a_row = 0

    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def requested(self) -> int | None:
        """The signal, or the vote, that is to stop the run: of several processes what all have read of the others, never its own."""
        return self.signals.requested if self.votes is None else self.votes.agreed

    def go(self, profile: tuple[int, int] | None) -> str:
        """Trains until a stop condition holds and returns its name. The state of that moment is on disk when it returns."""
        config = self.config
        self.milestone()  # what a signal left undone
        stop = self.why_stop()
        if config.sample_every is not None and hosts.several():
            self.console.say("several processes draw no samples; research sample does, from a checkpoint")
        elif self.step == 0 and stop is None and config.sample_every is not None:
            self.sample()
        batches = prefetch(self.program.batches, self.step, config.steps, self.program.put_batch, config.prefetch)
        with contextlib.closing(batches), tracing(profile, self.run, lambda: self.step) as trace:
            while stop is None:
                trace()
                asked = time.perf_counter()
                batch = next(batches)
                self.stalled += time.perf_counter() - asked
                self.state, metrics = hosts.in_order(self.program.step(self.state, batch, self.program.hypers))
                self.step += 1
                self.progress.tokens += config.step_tokens
                self.pending.append((self.step, metrics, None if self.votes is None else self.votes.cast(*self.vote())))
                self.take(all_of_them=self.is_milestone(self.step) or self.save_is_due())
                self.milestone()
                stop = self.why_stop()
        self.take(all_of_them=True)
        if self.requested is None and stop != "non_finite" and self.progress.eval_step != self.step:
            best = self.evaluate()
            self.save(bool(best))
            if best is None:  # a signal has cut it short
                stop = self.why_stop() or stop
        if self.saved_step != self.step:
            self.save()
        self.saver.wait()
        return stop

    def is_milestone(self, step: int) -> bool:
        """Whether this step evaluates, saves or samples, and so must wait for what was dispatched."""
        config = self.config
        cadences = [config.eval_every, config.checkpoint_every, config.sample_every]
        return step == config.steps or any(every is not None and step % every == 0 for every in cadences)

    def milestone(self) -> None:
        """The evaluation, samples and checkpoint that are due after this step. What a signal cuts short stays due."""
        config, best = self.config, False
        every = config.check_replicas_every
        if every is not None and self.step % every == 0 and self.step:
            self.program.check_replicas(self.state)
        if self.progress.milestone == self.step or self.requested is not None:
            return
        if self.step % config.eval_every == 0 or self.step == config.steps:
            best = self.evaluate()
            if best is None:
                return
        if config.sample_every is not None and self.step % config.sample_every == 0 and not hosts.several():
            self.sample()
        self.progress.milestone = self.step
        if best or self.step % config.checkpoint_every == 0 or self.step == config.steps or self.save_is_due():
            self.save(best)

    def why_stop(self) -> str | None:
        """The name of the stop condition that holds after this step, or None."""
        config, progress = self.config, self.progress
        if self.requested is not None:
            return hosts.signal_of(self.requested)
        if self.skipped_in_a_row >= config.max_skipped:
            return "non_finite"
        if (
            config.target_loss is not None
            and progress.eval_loss is not None
            and progress.eval_loss <= config.target_loss
        ):
            return "target_loss"
        if config.patience is not None and progress.since_best >= config.patience:
            return "patience"
        if config.max_tokens is not None and progress.tokens >= config.max_tokens:
            return "max_tokens"
        if self.votes is None and self.out_of_time():
            return "max_seconds"
        return "steps" if self.step >= config.steps else None

    def clock_asks_for_a_save(self) -> bool:
        """Whether `checkpoint_minutes` are over since the last checkpoint."""
        minutes = self.config.checkpoint_minutes
        return minutes is not None and time.perf_counter() - self.saved_at >= 60 * minutes

    def save_is_due(self) -> bool:
        """The same for this process alone, or as the first of several had it when all last read their votes."""
        return self.clock_asks_for_a_save() if self.votes is None else self.votes.save

    def out_of_time(self) -> bool:
        return self.config.max_seconds is not None and self.seconds() >= self.config.max_seconds

    def vote(self) -> tuple[int, bool]:
        """What this process has to say to the others: a signal it was sent; the first one also, that time is up or that a save is due."""
        stop = self.signals.requested or (hosts.OUT_OF_TIME if hosts.is_first() and self.out_of_time() else 0)
        return stop, hosts.is_first() and self.clock_asks_for_a_save()

    def take(self, all_of_them: bool) -> None:
        """Reads the metrics of finished steps. One step stays in flight, so that the host never waits for the device it feeds.

        Of steps that are read together nobody knows when each was done: they are logged after the last, as equally fast.
        """
        read = []
        while len(self.pending) > (0 if all_of_them else 1):
            step, metrics, vote = self.pending.popleft()
            if self.votes is not None and vote is not None:
                self.votes.read(vote)
            self.skipped_in_a_row, self.progress.train_loss = int(metrics["skipped_in_a_row"]), float(metrics["loss"])
            self.watchdog.alive()
            if self.skipped_in_a_row:
                what = self.program.name_bad_leaf(int(metrics["bad_leaf"]))
                rows = self.program.name_bad_rows(self.state, step)
                self.console.say(
                    f"step {step}: {what} is not finite; the update is skipped ({self.skipped_in_a_row} in a row); not finite: {rows}"
                )
            if step % self.config.log_every == 0 or step == self.config.steps:
                read.append((step, {name: float(value) for name, value in metrics.items()}))
        if read:
            now, (then, step_then) = time.perf_counter(), self.logged
            self.logged = (now, read[-1][0])
            a_step = max(now - then, 1e-9) / (read[-1][0] - step_then)
            stalled, self.stalled = self.stalled / max(now - then, 1e-9), 0.0
            for step, metrics in read:
                self.log(step, metrics, a_step, stalled)

    def log(self, step: int, metrics: dict[str, float], a_step: float, stalled: float) -> None:
        """Writes what a step was like; `a_step`: seconds that it took; `stalled`: the share of them that it waited for its batch."""
        rate = self.config.step_tokens / a_step
        record = {
            "step": step, "split": "train", "loss": metrics["loss"], "grad_norm": metrics["grad_norm"],
            "learning_rate": metrics["learning_rate"], "update_ratio": metrics["update_ratio"], "skipped": int(metrics["skipped"]),
            "tokens": step * self.config.step_tokens, "time": self.seconds(), "tokens_per_second": rate,
            "mfu": rate * self.program.flops_per_token / self.program.peak_flops,
            "data_stall": stalled,
            **{name: value for name, value in metrics.items() if name not in METRICS},
        }  # fmt: skip
        self.run.write_metrics(record)
        self.console.progress(step, record, (self.config.steps - step) * a_step)

    def evaluate(self) -> bool | None:
        """The held-out loss, logged; returns whether it is the best so far, None if a signal cut it short."""
        began = time.perf_counter()
        found = self.program.evaluate(self.state, interrupted=self.interrupted)
        self.watchdog.alive()
        if found is None:
            return None
        best = self.progress.evaluated(self.step, found)
        record = {"step": self.step, "split": "eval", **found, "time": self.seconds()}
        if (self.step, "eval") not in self.written:
            self.run.write_metrics(record)
        took = time.perf_counter() - began
        others = "".join(f"{value:.3f} {name.replace('_', ' ')}  " for name, value in self.progress.measures.items())
        self.console.say(f"step {self.step}  held-out loss {found['loss']:.4f}  {others}({duration(took)})")
        self.logged = (self.logged[0] + took, self.logged[1])
        return best

    def interrupted(self) -> bool:
        """Whether an evaluation is to be left. Several processes finish it: they agree between steps alone."""
        self.watchdog.alive()
        return self.votes is None and self.signals.requested is not None

    def sample(self) -> None:
        began = time.perf_counter()
        text = self.program.sample(self.state)
        if (self.step, "sample") not in self.written:
            self.run.write_sample(self.step, text)
        self.console.say(f"step {self.step}  sample: {text[:80]!r}")
        self.logged = (self.logged[0] + time.perf_counter() - began, self.logged[1])

    def save(self, best: bool = False) -> None:
        self.take(all_of_them=True)  # a resumed run logs none of the steps before again
        self.progress.seconds = self.seconds()
        self.saver.save(self.step, self.state, dataclasses.asdict(self.progress), is_best=best)
        self.watchdog.alive()
        self.saved_step, self.saved_at = self.step, time.perf_counter()
        if self.votes is not None:
            self.votes.save = False


@contextlib.contextmanager
def tracing(window: tuple[int, int] | None, run: RunDir, step: Callable[[], int]) -> Iterator[Callable[[], None]]:
    """A function to call before every step: traces those of the window into the run directory's `profile/`."""
    active = False

    def advance() -> None:
        nonlocal active
        if window is None:
            return
        if not active and window[0] <= step() < window[1]:
            jax.profiler.start_trace(str(run.path / "profile"))
            active = True
        elif active and step() >= window[1]:
            jax.profiler.stop_trace()
            active = False

    try:
        yield advance
    finally:
        if active:
            jax.profiler.stop_trace()


def summarise(loop: Loop, stopped_by: str) -> dict[str, Any]:
    """The JSON object of a run, but for the wall clock, which the caller adds at its end."""
    progress, program = loop.progress, loop.program
    loss = progress.eval_loss
    return {
        "steps": loop.step, "tokens": progress.tokens, "train_loss": progress.train_loss, "eval_loss": loss,
        "bits_per_byte": None, **progress.measures, "best_eval_loss": progress.best,
        "best_step": progress.best_step, "params": program.n_params, "train_seconds": loop.seconds(),
        "skipped": int(loop.state.extra["skipped"]), "run_dir": str(loop.run.path), "stopped_by": stopped_by,
    }  # fmt: skip


def out_of_memory(error: BaseException) -> UserError | None:
    """A device's out-of-memory error as one line that says what to lower."""
    text = str(error)
    if not isinstance(error, (jax.errors.JaxRuntimeError, MemoryError)) or not (
        isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text
    ):
        return None
    return UserError(
        f"out of memory ({text.splitlines()[0][:160] if text else 'on the host'}); lower --batch-size or --sequence-length, raise "
        "--micro-batches, set --task.head-tile 4096 or --model.remat full, or spread the run over more devices with --mesh"
    )
