"""Classification and regression: one answer to a whole picture, film, table or text.

The model has a linear head (model/head.py). `softmax` picks one of the classes, `sigmoid` answers yes or no for each, `squared` gives numbers. A
batch has what the model reads, `weights` (B,), and either `label` int (B,) or `targets` float (B, K): shares of classes, answers in [0, 1], or
numbers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from research.core import rng
from research.core.config import require
from research.core.errors import UserError
from research.core.hypers import Hypers
from research.data.augment.chain import augment, parse
from research.data.examples import Examples, open_source
from research.model import inputs, transformer
from research.model.config import ModelConfig
from research.tasks import losses
from research.tasks.lm import with_vocabulary
from research.tasks.task import Evaluation, Loss, RowLosses, TaskConfig, check_router, given, with_router


@dataclasses.dataclass(frozen=True)
class ClassifyConfig(TaskConfig):
    """What is asked of each example."""

    kind: Literal["classify"] = "classify"
    answer: Literal["softmax", "sigmoid", "squared"] = (
        "softmax"  # one class; yes or no to each; numbers, with a squared error
    )
    augment: tuple[str, ...] = ()  # what is done to examples in training, in order (docs/augment.md)

    unused = ("head_tile",)

    def __post_init__(self):
        super().__post_init__()
        for name in ("label_smoothing", "z_loss"):
            value = getattr(self, name)
            require(value is None or self.answer == "softmax", f"task.{name}", value, "none, or the answer softmax")

    @property
    def draws(self) -> bool:
        return bool(self.augment)

    def corpus(self, data: str, tokenizer: Any, **texts: Any) -> Examples:
        """The examples of a source, checked: labels within the classes, none of which is empty."""
        found = open_source(data)
        for part, arrays in (("train", found.train), ("eval", found.eval)):
            if "label" in arrays:
                check_labels(arrays["label"], found.classes, f"{data}, part {part!r}", empty=part == "eval")
        return found

    def fitted(self, model: ModelConfig, corpus: Examples) -> ModelConfig:
        """The model with as many outputs as there are classes, or numbers in `targets`."""
        for name, shape in inputs.shapes(model).items():
            if name not in corpus.train or not _is_of(shape, corpus.train[name].shape[1:]):
                there = ", ".join(f"{key} {array.shape[1:]}" for key, array in sorted(corpus.train.items()))
                raise UserError(
                    f"model.inputs is {model.inputs!r}, which reads {name} {shape} of a row; {corpus.name} has {there}. "
                    "Set model.inputs and its sizes to what is there"
                )
        if model.inputs == "tokens" and corpus.tokenizer is not None:
            model = with_vocabulary(model, corpus.tokenizer.vocab_size)
        require(
            model.head == "linear" and model.pool != "none",
            "model.pool",
            model.pool,
            "with a linear head: cls, mean, attention or last",
        )
        outputs = len(corpus.classes) if "label" in corpus.train else corpus.train["targets"].shape[1]
        require(model.outputs in (None, outputs), "model.outputs", model.outputs, f"{outputs}, as {corpus.name} has it")
        return dataclasses.replace(model, outputs=outputs)

    def make_loss(self, model: ModelConfig) -> Loss:
        check_router(model, self)
        what = "image" if model.inputs == "image" else "text"
        require(
            not self.augment or model.inputs in ("image", "tokens"),
            "task.augment",
            self.augment,
            "nothing: pictures and tokens are augmented",
        )
        words = model.V if model.inputs == "tokens" else None
        chain = parse(self.augment, what, classes=model.outputs, vocabulary=words)

        def loss(params, batch, key=None, hypers: Hypers | None = None):
            if chain and key is not None:
                batch = augment(unit(batch), rng.fold(key, "augment"), chain)
            out = transformer.apply(params, centred(batch), model, key=key, hypers=hypers)
            total, weight = losses.weighted_sum(self._losses(out.outputs, batch, hypers), batch["weights"])
            return with_router(total, weight, out.aux, self, hypers)

        return loss

    def _losses(self, outputs_BK: jax.Array, batch: Mapping[str, jax.Array], hypers: Hypers | None = None) -> jax.Array:
        """The loss of each row, (B,): nats, of `sigmoid` summed over the questions; or the mean squared error."""
        if self.answer == "softmax":
            smoothing, z_loss = given(self, "label_smoothing", hypers), given(self, "z_loss", hypers)
            if "targets" not in batch:
                return losses.softmax_cross_entropy(
                    outputs_BK, batch["label"], label_smoothing=smoothing, z_loss=z_loss
                )
            return losses.soft_cross_entropy(outputs_BK, batch["targets"], label_smoothing=smoothing, z_loss=z_loss)
        targets_BK = batch["targets"] if "targets" in batch else jax.nn.one_hot(batch["label"], outputs_BK.shape[1])
        if self.answer == "sigmoid":
            return jnp.sum(losses.sigmoid_cross_entropy(outputs_BK, targets_BK), axis=-1)
        return losses.mean_squared_error(outputs_BK, targets_BK)

    def make_evaluation(self, model: ModelConfig) -> Evaluation:
        plain = dataclasses.replace(self, label_smoothing=None, z_loss=None)

        def evaluate(params, batch):
            outputs_BK = transformer.apply(params, centred(batch), model).outputs
            nll, weight = losses.weighted_sum(plain._losses(outputs_BK, batch), batch["weights"])
            sums = {"nll": nll, "weight": weight}
            if self.answer == "softmax" and "label" in batch:
                right = jnp.argmax(outputs_BK, axis=-1) == batch["label"]
                sums["correct"] = jnp.sum(batch["weights"] * right)
            return sums

        return evaluate

    def make_row_losses(self, model: ModelConfig) -> RowLosses:
        return lambda params, batch: self._losses(transformer.apply(params, centred(batch), model).outputs, batch)

    def measures(self, sums: Mapping[str, float]) -> dict[str, float]:
        """`loss`, and the share of right answers where one class is right."""
        found = super().measures(sums)
        return {**found, "accuracy": sums["correct"] / sums["weight"]} if "correct" in sums else found


def _is_of(expected: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    """Whether a shape is the one expected, in which None is any size."""
    return len(shape) == len(expected) and all(
        size in (None, found) for size, found in zip(expected, shape, strict=True)
    )


def unit(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """A batch whose pictures are numbers in [0, 1], as augmentations take them; bytes are 255ths."""
    if "image" not in batch or batch["image"].dtype != jnp.uint8:
        return dict(batch)
    return {**batch, "image": batch["image"].astype(jnp.float32) / 255}


def centred(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """A batch whose pictures are numbers in [-1, 1], as models read them."""
    batch = unit(batch)
    return {**batch, "image": 2 * batch["image"] - 1} if "image" in batch else batch


def check_labels(labels: np.ndarray, classes: tuple[str, ...], where: str, empty: bool = False) -> None:
    """Raises UserError for a label that is none of the classes, and, unless `empty`, for a class without any example."""
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        raise UserError(
            f"{where}: example {outside[0]} has the label {labels[outside[0]]}; there are classes 0 to {len(classes) - 1}"
        )
    counts = np.bincount(labels, minlength=len(classes))
    if not empty and (counts == 0).any():
        raise UserError(
            f"{where}: the class {classes[int(np.argmin(counts))]!r} has no example; give one, or leave the class out"
        )
