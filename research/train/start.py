"""Where a run starts from: parameters that its seed draws, or, with `init_from`, those of a model that is there already."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research import hf
from research.core import params as P
from research.core import sharding
from research.core.errors import UserError
from research.data.tokenizer import Tokenizer
from research.families.family import NOT_ARCHITECTURE
from research.model import transformer
from research.train import rundir
from research.train.config import Config
from research.train.program import Program, Weights, build
from research.train.run import Run, load_run

TEXT = (
    "data",
    "text_field",
    "learn",
    "clean",
    "tokenizer",
    "init_from",
)  # what a corpus is made of, besides the kind of its task
KEPT = (
    "context",
    *(name for name in NOT_ARCHITECTURE if name not in ("family", "init")),
)  # of the config's model, beside another's


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """A config with the model that it starts from, that model's tokeniser or the name of one, and what reads its weights; None: they are drawn."""

    config: Config
    tokenizer: str | Tokenizer | None  # None: what `tokens.prepare` takes where none is asked for
    weights: Weights | None


def program_of(config: Config, corpora: dict[tuple, Any] | None = None) -> Program:
    """The program of a config: what it starts from resolved, its data read, nothing compiled. Programs of the same text share what is kept of it in
    `corpora`. Raises UserError where the config, its data and the devices do not fit."""
    begun, kept = resolve(config), {} if corpora is None else corpora
    key = (config.task.kind, *(getattr(config, name) for name in TEXT))
    if key not in kept:
        texts = {name: getattr(config, name) for name in ("text_field", "learn", "clean")}
        kept[key] = config.task.corpus(config.data, begun.tokenizer, **texts)
    return build(begun.config, kept[key], begun.weights)


def resolve(config: Config) -> Start:
    """What `config.init_from` names, none of its weights read.

    The architecture and the tokeniser are that model's, whatever the config says. The config's own stay how the model is computed and trained
    (dropout, dtype, remat, ...) and how long rows are: its context, as far as the model's reaches. Raises UserError where there is no such
    model, or one without a tokeniser.
    """
    if config.init_from is None:
        return Start(config, config.tokenizer, None)
    opened = open_source(config.init_from)
    if isinstance(opened, Run):
        model, tokenizer, place = opened.model, opened.tokenizer, opened.path / "tokenizer.json"
    else:
        model, tokenizer, place = opened.config, hf.tokenizer_of(opened.folder), opened.folder
        if tokenizer is None:
            raise UserError(f"{config.init_from} holds no tokeniser; put its tokenizer.json beside its config.json")
    how = {name: getattr(config.model, name) for name in KEPT if name != "context"}
    begun = dataclasses.replace(
        config, model=dataclasses.replace(model, **how), tokenizer=str(place),
        sequence_length=config.sequence_length or min(config.model.context, model.context),
    )  # fmt: skip
    return Start(begun, tokenizer, lambda mesh: _read(opened, mesh))


def check_overrides(config: Config, options: Sequence[str]) -> None:
    """Raises UserError for an option of a command line (`model.width`) that would change what comes with `config.init_from`."""
    for name in options if config.init_from is not None else ():
        head, _, rest = name.replace("-", "_").partition(".")
        if head == "tokenizer" or (head == "model" and rest not in KEPT):
            raise UserError(
                f"--{name} cannot be given beside init_from: model and tokeniser are those of {config.init_from}. "
                f"Of the model may be set: {', '.join(KEPT)}"
            )


def open_source(name: str) -> Run | hf.Source:
    """A run directory, a folder in Hugging Face's layout or an id of the hub, opened without reading weights."""
    return load_run(name) if rundir.holds_run(Path(name).expanduser()) else hf.open_source(name)


def _read(opened: Run | hf.Source, mesh: jax.sharding.Mesh) -> P.Tree:
    if isinstance(opened, hf.Source):
        return hf.read(opened, "float32", mesh)
    where = sharding.shardings(transformer.specs(opened.model), mesh)
    return jax.tree.map(lambda leaf, sharding: jax.device_put(np.asarray(leaf), sharding), opened.params, where)
