"""The smallest runs: a text, a config, programs that are compiled once, and ways to interrupt a run at a chosen place."""

import contextlib
import dataclasses
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from research.core import params as P
from research.model.config import ModelConfig
from research.train import command, loop, program, rundir
from research.train.checkpoint import Checkpointer, restore_subtree
from research.train.config import Config
from research.train.optim import OptimizerConfig, ScheduleConfig

MODEL = ModelConfig(context=8, width=16, layers=1, heads=2, dropout=0.1)
ADAMW = OptimizerConfig(learning_rate=1e-2, schedule=ScheduleConfig("constant", 2))
RATES = ("time", "tokens_per_second", "mfu", "data_stall")  # what no two runs have in common


def write_text(path: Path) -> Path:
    """5 kB of words, lines and a few letters that take two bytes."""
    words, draw = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "été", "x1"], random.Random(0)
    path.write_text("".join(draw.choice(words) + draw.choice("   \n") for _ in range(900)), encoding="utf-8")
    return path


def config(text: Path, **changes) -> Config:
    """12 steps of AdamW with dropout. No two cadences agree, and the last step is on none but sampling's."""
    values = {
        "data": str(text), "tokenizer": "char", "model": MODEL, "optimizer": ADAMW, "steps": 12, "batch_size": 4,
        "log_every": 2, "eval_every": 5, "checkpoint_every": 4, "sample_every": 6, "sample_prompt": "alpha ", "sample_tokens": 4,
    }  # fmt: skip
    return Config(**{**values, **changes})


_build, _programs = program.build, {}


def build_shared(config: Config, corpus, weights=None) -> program.Program:
    """`program.build`, with the compiled functions of the first program that was like this one, and no peak measured."""
    built = _build(config, corpus, weights)
    kind = dataclasses.replace(
        config.optimizer, learning_rate=0.0, schedule=ScheduleConfig(config.optimizer.schedule.kind)
    )
    key = (built.model, config.task, kind, config.micro_batches, config.mesh)
    if key not in _programs:
        _programs[key] = built
    same = {
        name: getattr(_programs[key], name) for name in ("init", "step", "eval_params", "_evaluate", "state_shardings")
    }
    built.__dict__.update(same, peak_flops=1e9)
    return built


def story(path) -> dict:
    """All that two equal runs have in common: metrics without times, samples, and the hash of the last parameters."""
    records = [{k: v for k, v in record.items() if k not in RATES} for record in rundir.read_metrics(path)]
    last = restore_subtree(Path(path) / "checkpoints", "params")
    return {"metrics": records, "samples": rundir.read_samples(path), "step": last.step, "hash": P.digest(last.state)}


def until(condition, seconds: float = 600.0) -> None:
    """Waits for a condition that must come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


class Killed(BaseException):
    """Stands for the process having ended here."""


class Interruptions:
    """What can happen to a run of this process."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.patch = patch

    def around(self, owner, name: str, after) -> None:
        """Calls `after(self)` after the method."""
        method = getattr(owner, name)

        def wrapped(this, *arguments, **named):
            result = method(this, *arguments, **named)
            after(this)
            return result

        self.patch.setattr(owner, name, wrapped)

    def signal_at(self, step: int, number: int = signal.SIGTERM) -> None:
        """A signal after `step` was dispatched and before anything that is due after it."""

        def send(running):
            if running.step == step and running.signals.requested is None:
                os.kill(os.getpid(), number)
                until(lambda: running.signals.requested is not None)

        self.around(loop.Loop, "take", send)

    def signal_in_evaluation(self, number: int = signal.SIGTERM) -> None:
        """A signal while an evaluation is under way."""
        evaluate = program.Program.evaluate

        def evaluating(built, state, interrupted):
            os.kill(os.getpid(), number)
            until(interrupted)
            return evaluate(built, state, interrupted)

        self.patch.setattr(program.Program, "evaluate", evaluating)

    def kill_after_write(self, n: int) -> None:
        """The end right after the n-th record or sample has been written."""
        written = []

        def count(_):
            written.append(1)
            if len(written) == n:
                raise Killed

        for name in ("write_metrics", "write_sample"):
            self.around(rundir.RunDir, name, count)

    def kill_in_save(self, step: int) -> None:
        """The end when the checkpoint of `step` is complete but has not yet got its name."""
        publish = Checkpointer._publish

        def publishing(saver, staging, final):
            if final.name == f"{step:08d}":
                raise Killed
            publish(saver, staging, final)

        self.patch.setattr(Checkpointer, "_publish", publishing)


@contextlib.contextmanager
def interrupted() -> Iterator[Interruptions]:
    """`with interrupted() as stop: stop.signal_at(3); fit(...)`: what is patched inside is whole again after."""
    with pytest.MonkeyPatch.context() as patch:
        yield Interruptions(patch)


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Runs of one kind in this process share what they compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command.program, "build", build_shared)
        yield


SENTINELS = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")


def tokenizer_with_sentinels(folder) -> str:
    """A tokenizer.json of bytes, a separator, and what marks prefix, middle and suffix."""
    import tokenizers as library

    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(["alpha beta gamma delta"], trainer)
    made.add_special_tokens(list(SENTINELS))
    made.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")
