"""From a command line to a finished run: what `python experiments/NAME.py` and `research train NAME` both call."""

import contextlib
import dataclasses
import json
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from research.core import config as core_config
from research.core import host, sharding
from research.core.errors import UserError
from research.train import compile_cache, hosts, program, start, trackers
from research.train.checkpoint import Checkpointer, Keep
from research.train.config import Arguments, Config, Experiment, identity
from research.train.console import Console, count, duration
from research.train.follower import Follower
from research.train.loop import Loop, Result, out_of_memory, summarise
from research.train.program import check_single
from research.train.report import write_report
from research.train.rundir import RunDir
from research.train.signals import Signals

EXIT_BAD_INPUT = 2
EXIT_SIGNAL = 128
PLACES = ("data", "tokenizer", "init_from", "run_dir")  # which hosts may have elsewhere


def fit(
    experiment: Experiment | Config,
    *,
    name: str | None = None,
    resume: bool = True,
    fresh: bool = False,
    profile=None,
    step_timeout: float | None = None,
) -> Result:
    """Trains a config, or goes on with its run directory, and returns what came of it.

    A run that had finished trains nothing. Raises UserError for input that cannot be used; a signal ends the run with its state
    saved and `stopped_by` naming it.
    """
    config = experiment.config if isinstance(experiment, Experiment) else experiment
    name = name or (experiment.name if isinstance(experiment, Experiment) else "run")
    trackers.require(config.trackers)
    host.prepare()
    compile_cache.enable()
    check_single(config)
    if "://" in (config.run_dir or ""):
        raise UserError(f"run_dir is {config.run_dir!r}; give a folder: a bucket can be mounted as one (docs/tpu.md)")
    built = start.program_of(config)
    config, corpus = built.config, built.corpus
    same = identity(config, data=corpus.source_fingerprint, tokenizer=corpus.tokenizer_fingerprint)
    path = Path(config.run_dir or Path("runs") / name)
    with _opened(path, core_config.to_dict(config), same, resume, fresh) as run:
        if hosts.several():
            asked = {
                name: value
                for name, value in core_config.flat(core_config.to_dict(config)).items()
                if name not in PLACES
            }
            mine = hosts.facts(asked, corpus.source_fingerprint, sharding.row_part(built.mesh))
            hosts.preflight(mine, run.path, config.batch_size)
        done = run.finished(stop_conditions(config))
        if hosts.of_first(done is not None):
            return Result(done or {"stopped_by": "finished", "steps": config.steps}, None, None, run)
        if hosts.is_first():
            if corpus.tokenizer is not None:
                corpus.tokenizer.save(run.path / "tokenizer.json")
            run.track(trackers.start(config.trackers, run.path, name, core_config.to_dict(config), to_stderr))
        keep = Keep(last=config.keep_last, best=True, every=config.keep_every)
        with (
            Signals() as signals, Checkpointer(run.path / "checkpoints", keep) as saver, hosts.Watchdog(step_timeout) as watchdog,
        ):  # fmt: skip
            result = _train(config, built, run, saver, signals, watchdog, profile)
        over = result.summary["stopped_by"] != "non_finite" and not result.summary["stopped_by"].startswith("SIG")
        if over and isinstance(experiment, Experiment) and experiment.after is not None:
            result.summary.update(experiment.after(result))
        result.summary["wall_seconds"] = host.seconds_since_process_start()
        if over:
            run.finish(result.summary, stop_conditions(config))
        if hosts.is_first():
            write_report(run.path)
        return result


def _opened(path: Path, config: dict[str, Any], same: dict[str, Any], resume: bool, fresh: bool) -> RunDir:
    """The run directory: opened by the first process, followed by the others, on all of which it is an error where it cannot be opened."""
    if not hosts.several():
        return RunDir.open(path, config, same, resume=resume, fresh=fresh)
    run, problem = None, None
    if hosts.is_first():
        try:
            run = RunDir.open(path, config, same, resume=resume, fresh=fresh)
        except UserError as error:
            problem = error
    if not hosts.of_first(problem is None):
        raise problem or UserError(f"process 0 cannot open {path}; its output says why")
    return run or Follower(path, jax.process_index())


def _train(
    config: Config,
    built: program.Program,
    run: RunDir,
    saver: Checkpointer,
    signals: Signals,
    watchdog: hosts.Watchdog,
    profile,
) -> Result:
    with contextlib.closing(Console(config.steps, 0, run.write_log, quiet=not hosts.is_first())) as console:
        devices = jax.devices()
        console.say(f"{count(built.n_params)} parameters, {len(devices)} x {devices[0].device_kind}, {built.corpus.described}, "
                    f"{config.batch_size} x {config.row_tokens} a step")  # fmt: skip
        if config.init_from is not None:
            console.say(f"model, tokeniser and first weights are those of {config.init_from}")
        try:
            loop = Loop(config, built, run, saver, console, signals, watchdog)
            stopped_by = loop.go(profile)
        except Exception as error:
            if (explained := out_of_memory(error)) is not None:
                raise explained from error
            raise
        summary = summarise(loop, stopped_by)
        console.say(f"stopped by {stopped_by} at step {loop.step} after {duration(loop.seconds())}; {run.path}")
    return Result(summary, loop.state, built, run)


def stop_conditions(config: Config) -> dict[str, Any]:
    """What decides when a run is over: a finished run goes on when these change."""
    return {name: getattr(config, name) for name in ("steps", "max_tokens", "max_seconds", "target_loss", "patience")}


def to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def run_experiment(experiment: Experiment, argv: Sequence[str], prog: str) -> int:
    """One experiment under a command line; returns the exit code (0, 2 on bad input, 128 + n after signal n)."""
    argv, source = take_option(list(argv), "--config")
    config = experiment.config if source is None else read_config(experiment.config, source)
    arguments: Arguments = core_config.parse(Arguments(config), argv, prog, experiment.description)
    start.check_overrides(arguments.experiment, core_config.options_given(argv))
    if arguments.distributed and not arguments.print_config:
        hosts.join(
            hosts.Processes(arguments.coordinator, arguments.num_processes, arguments.process_id, arguments.heartbeat)
        )
    experiment = dataclasses.replace(experiment, config=arguments.experiment)
    if arguments.print_config:
        print(json.dumps(core_config.to_dict(experiment.config), indent=None if arguments.json else 2))
        return 0
    result = fit(
        experiment, resume=arguments.resume, fresh=arguments.fresh, profile=arguments.profiled(), step_timeout=arguments.step_timeout
    )  # fmt: skip
    stopped_by = result.summary["stopped_by"]
    if result.state is None:
        print(
            f"{result.run.path} is finished (stopped by {stopped_by} at step {result.summary['steps']}): nothing to train"
        )
    if arguments.json and hosts.is_first():
        print(json.dumps(finite(result.summary)), flush=True)
    if stopped_by.startswith("SIG"):
        return EXIT_SIGNAL + signal.Signals[stopped_by]
    if stopped_by == "non_finite":
        to_stderr(f"error: {experiment.config.max_skipped} steps in a row were not finite; the last good state is saved in {result.run.path}. "
                  "Lower --optimizer.learning-rate or look at the data.")  # fmt: skip
        return EXIT_BAD_INPUT
    return 0


def finite(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary with null for numbers that are not finite, which JSON lacks."""
    return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in summary.items()}


def take_option(argv: list[str], name: str) -> tuple[list[str], str | None]:
    """The command line without `name VALUE` (or `name=VALUE`), and the value. Raises UserError where the value is missing."""
    for i, word in enumerate(argv):
        if word == name:
            if i + 1 == len(argv):
                raise UserError(f"{name} is given no value; expected one after it")
            return argv[:i] + argv[i + 2 :], argv[i + 1]
        if word.startswith(f"{name}="):
            return argv[:i] + argv[i + 1 :], word.partition("=")[2]
    return argv, None


def read_config(default: Config, path: str) -> Config:
    """`default` with the fields of a JSON file: a run's config.json, or a plain object of config fields."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"--config {path} is not JSON: {error}") from None
    values = values.get("config", values) if isinstance(values, dict) else values
    if not isinstance(values, dict):
        raise UserError(f"--config {path} holds {type(values).__name__}; expected an object of config fields")
    return core_config.set_values(default, values, path)


def guarded(function: Callable[[], int], debug: bool) -> int:
    """The function's exit code; a UserError becomes one line on standard error and code 2.

    SIGINT and SIGTERM outside of training, where nothing is there to be saved, end the process with 130 and 143.
    """
    try:
        with ending_on_signals():
            return function()
    except BrokenPipeError:  # the reader has seen enough; Python would complain again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return EXIT_SIGNAL + signal.SIGINT
    except UserError as error:
        if debug:
            traceback.print_exc()
        else:
            to_stderr(f"error: {' '.join(str(error).split())}")
        return EXIT_BAD_INPUT


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """SIGTERM leaves by SystemExit and SIGINT by KeyboardInterrupt, so that what is open is closed.

    That holds for SIGINT even where it is ignored, as in a script's background job: training heeds it too. Python allows handlers in the main
    thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        sys.exit(EXIT_SIGNAL + number)

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, end)}
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def main(experiment: Experiment, argv: Sequence[str] | None = None) -> None:
    """Runs an experiment script and exits: `train.main(EXPERIMENT)` under `if __name__ == "__main__"`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    sys.exit(guarded(lambda: run_experiment(experiment, argv, f"{experiment.name}.py"), "--debug" in argv))
