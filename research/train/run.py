"""A finished or running run, opened to be read: in a notebook, by `research inspect`, by `research sample`; or another model in its place."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from research import hf
from research.core import dtypes
from research.core import params as P
from research.core.errors import UserError
from research.data import tokenizer as tokenizers
from research.data.tokenizer import Tokenizer
from research.model import transformer
from research.model.config import ModelConfig
from research.tasks.lm import LMConfig, with_vocabulary
from research.train import config as C
from research.train import rundir
from research.train import step as S
from research.train.checkpoint import read_state, restore_subtree


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run directory. What is read from it, is read when first asked for."""

    path: Path
    config: C.Config

    @functools.cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, in order."""
        return rundir.read_metrics(self.path)

    @functools.cached_property
    def samples(self) -> list[tuple[int, str]]:
        return rundir.read_samples(self.path)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokeniser. Raises UserError where its task reads no text."""
        if not (self.path / "tokenizer.json").exists() and not isinstance(self.config.task, LMConfig):
            kind = self.config.task.kind
            raise UserError(f"{self.path} learned the task {kind!r} and has no tokeniser; this needs a language model")
        return tokenizers.load(self.path / "tokenizer.json")

    @functools.cached_property
    def model(self) -> ModelConfig:
        text = isinstance(self.config.task, LMConfig)
        return with_vocabulary(self.config.model, self.tokenizer.vocab_size) if text else self.config.model

    @property
    def _abstract(self) -> P.Tree:
        """The shapes of the parameters as the config has them: one edited by hand may disagree with what was saved."""
        return P.abstract(transformer.specs(self.model))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @functools.cached_property
    def trained(self) -> tuple[int, P.Tree]:
        """`(step, parameters as trained)` of the newest whole checkpoint. Raises UserError when there is none."""
        restored = restore_subtree(self.checkpoints, "params", expected=self._abstract)
        return restored.step, restored.state

    @functools.cached_property
    def params(self) -> P.Tree:
        """The parameters to evaluate, sample and export: the average of weights where the run keeps one."""
        if self.config.optimizer.ema_decay is not None:
            return restore_subtree(self.checkpoints, "extra/average", expected=self._abstract).state
        if self.config.optimizer.kind != "schedule-free-adamw":
            return self.trained[1]
        specs, hypers = transformer.specs(self.model), C.hypers(self.config)
        abstract = jax.eval_shape(lambda h: S.init_state(specs, self.config.optimizer, h), hypers)
        # Not by a Checkpointer, which clears what a running trainer is writing.
        restored = read_state(self.checkpoints, abstract)
        return S.eval_params(restored.state, self.config.optimizer, specs, hypers)


def load_run(path: str | Path) -> Run:
    """Opens a run directory for reading. Raises UserError when it is none."""
    path = Path(path).expanduser()
    stored = rundir.read_config(path)
    return Run(path, C.from_dict(stored["config"], str(path / rundir.CONFIG)))


def open_model(name: str | Path) -> Run | hf.Pretrained:
    """A run directory, a folder in Hugging Face's layout, or a model of the hub by its id, whose weights are read as they are computed with.

    Raises UserError as `load_run` and `hf.load` do.
    """
    if rundir.holds_run(Path(name).expanduser()):
        return load_run(name)
    return hf.load(name, dtype=str(dtypes.compute_dtype("auto", jnp.float32)))
