"""What a task is: a frozen record of its choices that knows its data, its loss and its metrics.

A task is a subclass of `TaskConfig` in a file of its own; its `kind` names it in a run's config.json. Everything else (the step, the loop, sweeps,
shardings, checkpoints) is the same for all.
"""

import abc
import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, get_args, get_type_hints

import jax

from research.core.config import check_choices, require
from research.core.errors import UserError
from research.core.hypers import Hypers
from research.model.config import ModelConfig

Loss = Callable[..., tuple[jax.Array, jax.Array, dict[str, jax.Array]]]
"""`loss(params, batch, key, hypers) -> (sum, weight, metrics)`: what training minimises is `sum / weight`; metrics are sums over the same weight."""

Evaluation = Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]
"""`evaluate(params, batch) -> sums`, to be added up over batches; `nll` and `weight` are among them."""

RowLosses = Callable[[Any, dict[str, jax.Array]], jax.Array]
"""`row_losses(params, batch) -> (B,)`: the loss of each row by itself."""

_KINDS: dict[str, type["TaskConfig"]] = {}


@dataclasses.dataclass(frozen=True)
class TaskConfig(abc.ABC):
    """What all tasks have. Penalties are None where absent from the program; a number is the default of the traced value."""

    kind: str = ""  # the task's name
    label_smoothing: float | None = None  # probability that is spread over all classes instead of the right one
    z_loss: float | None = None  # times the square of the log of the softmax denominator
    balance_loss: float | None = None  # of a mixture of experts, times the mean of its layers' `balance` (model/moe.py)
    router_z_loss: float | None = None  # likewise, times `router_z`
    head_tile: int | None = None  # tokens whose logits are held at a time; None: all

    unused: ClassVar[tuple[str, ...]] = ()  # of these fields: those that the task has no use for

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        for kind in get_args(get_type_hints(cls)["kind"]):
            _KINDS[kind] = cls

    def __post_init__(self):
        check_choices(self, "task")
        smoothing, tile = self.label_smoothing, self.head_tile
        require(smoothing is None or 0 <= smoothing < 1, "task.label_smoothing", smoothing, "a number in [0, 1)")
        for name in ("z_loss", "balance_loss", "router_z_loss"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"task.{name}", value, "a number of at least 0")
        require(tile is None or tile >= 1, "task.head_tile", tile, "a number of tokens, at least 1")
        for name in self.unused:
            require(
                getattr(self, name) is None, f"task.{name}", getattr(self, name), f"none: {self.kind} has no use for it"
            )

    @property
    def draws(self) -> bool:
        """Whether the loss needs a key besides dropout's."""
        return False

    @abc.abstractmethod
    def corpus(self, data: str, tokenizer: Any, **texts: Any) -> Any:
        """The task's data by the name of its source: a Corpus of text (data/tokens.py) or Examples (data/examples.py)."""

    @abc.abstractmethod
    def fitted(self, model: ModelConfig, corpus: Any) -> ModelConfig:
        """The model with what only its data knows (vocabulary, classes, sizes). Raises UserError where the two do not go together."""

    @abc.abstractmethod
    def make_loss(self, model: ModelConfig) -> Loss:
        """What the step differentiates. Raises UserError where the model lacks what the task asks of it."""

    @abc.abstractmethod
    def make_evaluation(self, model: ModelConfig) -> Evaluation:
        """What evaluation adds up, without dropout, augmentation and penalties."""

    @abc.abstractmethod
    def make_row_losses(self, model: ModelConfig) -> RowLosses:
        """The losses by which rows that are not finite are named."""

    def measures(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The metrics of the sums of all batches: `loss` first."""
        return {"loss": sums["nll"] / sums["weight"]}


def of_kind(kind: Any) -> type[TaskConfig]:
    """The class of a task by its kind. Raises UserError, with those that there are, for an unknown one."""
    if kind not in _KINDS:
        package = importlib.import_module("research.tasks")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"research.tasks.{module.name}")
    if kind not in _KINDS:
        raise UserError(f"task.kind is {kind!r}; there are {', '.join(sorted(_KINDS))}")
    return _KINDS[kind]


def given(task: TaskConfig, name: str, hypers: Hypers | None) -> Any:
    """What a loss of the config counts: its number, or the traced one; None where it is absent."""
    value = getattr(task, name)
    return value if hypers is None or value is None else getattr(hypers, name)


def check_router(model: ModelConfig, task: TaskConfig) -> None:
    """Raises UserError when the task has a router's loss and the model no router."""
    sparse = any(slot.feed_forward == "moe" for slots, _ in model.segments for slot in slots)
    for name in ("balance_loss", "router_z_loss"):
        value = getattr(task, name)
        require(sparse or value is None, f"task.{name}", value, "none, or a model with moe in feed_forward")


def with_router(
    total: jax.Array, weight: jax.Array, aux: dict[str, jax.Array], task: TaskConfig, hypers: Hypers | None
):
    """`(sum, weight, metrics)` of a loss with the router's losses, means over a batch, which count with its whole weight."""
    for name in aux:
        coefficient = given(task, f"{name}_loss", hypers)
        total = total if coefficient is None else total + coefficient * aux[name] * weight
    return total, weight, {name: value * weight for name, value in aux.items()}
