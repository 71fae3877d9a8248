"""Language modelling: the loss that the step differentiates and the metrics that evaluation adds up.

The loss scores whatever a batch marks as targets. In kind `lm` that is every next token; in kind `infill` what was hidden from a text, with
the batches of tasks/infill.py.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import numpy as np

from research.core.config import require
from research.core.errors import UserError
from research.core.hypers import Hypers
from research.data.mixed import prepare
from research.data.tokens import Corpus
from research.model import blanks, head, transformer
from research.model.config import ModelConfig
from research.tasks import losses
from research.tasks.infill import InfillConfig
from research.tasks.task import Evaluation, Loss, RowLosses, TaskConfig, check_router, given, with_router


@dataclasses.dataclass(frozen=True)
class LMConfig(TaskConfig):
    """What is predicted of a text."""

    kind: Literal["lm", "infill"] = "lm"  # infill: for models whose layers have the pattern prefix
    infill: InfillConfig = InfillConfig()

    def corpus(self, data: str, tokenizer: Any, **texts: Any) -> Corpus:
        """The tokens of a text source (docs/data.md)."""
        return prepare(data, tokenizer, **texts)

    def fitted(self, model: ModelConfig, corpus: Corpus) -> ModelConfig:
        """The model with its tokeniser's vocabulary. Raises UserError where the text has ids that it lacks, and where it fills blanks and the task
        does not, or the other way round."""
        require(model.inputs == "tokens", "model.inputs", model.inputs, f"tokens, for the task {self.kind!r}")
        require(model.head == "vocabulary", "model.head", model.head, f"vocabulary, for the task {self.kind!r}")
        sees = "patterns without bidirectional: a token that is seen cannot be predicted"
        require(not model.is_bidirectional, "model.patterns", model.patterns, sees)
        model = with_vocabulary(model, corpus.tokenizer.vocab_size)
        check_vocabulary(model, corpus)
        if model.fills_blanks != (self.kind == "infill"):
            expected = "infill" if model.fills_blanks else "lm"
            raise UserError(
                f"task.kind is {self.kind!r}, but model.patterns are {model.patterns!r}; make it {expected!r}"
            )
        return model

    def make_loss(self, model: ModelConfig) -> Loss:
        return make_loss(model, self)

    def make_evaluation(self, model: ModelConfig) -> Evaluation:
        return make_evaluation(model)

    def make_row_losses(self, model: ModelConfig) -> RowLosses:
        return make_row_losses(model, self)


def with_vocabulary(model: ModelConfig, vocab_size: int) -> ModelConfig:
    """The model with its tokeniser's vocabulary, unless it has one already.

    A model that fills blanks has four ids more, exactly: they are the last of its vocabulary.
    """
    if model.fills_blanks:
        vocab_size += blanks.SPECIAL_IDS
        if model.vocab_size not in (None, vocab_size):
            raise UserError(
                f"model.vocab_size is {model.vocab_size}, but the tokeniser has {vocab_size - blanks.SPECIAL_IDS} ids and filling blanks "
                f"takes {blanks.SPECIAL_IDS} more; leave it out (None) or make it {vocab_size}"
            )
    return dataclasses.replace(model, vocab_size=vocab_size) if model.vocab_size is None else model


def check_vocabulary(model: ModelConfig, corpus: Corpus) -> None:
    """Raises UserError for a corpus with ids that the model lacks. A tokeniser may have more ids than its model, as Gemma 3's has."""
    size = corpus.tokenizer.vocab_size
    largest = size - 1 if size <= model.V else max(int(np.max(part.tokens)) for part in (corpus.train, corpus.eval))
    if largest >= model.V:
        raise UserError(
            f"model.vocab_size is {model.V}, but the text has the id {largest}, {corpus.tokenizer.decode([largest])!r}, "
            f"of its tokeniser's {size} ids; leave vocab_size out or make it {size}"
        )


def make_loss(model: ModelConfig, task: LMConfig = LMConfig()) -> Loss:
    """`loss(params, batch, key, hypers) -> (sum, weight, metrics)` over a batch of `tokens`, `targets` and `weights`, each (B, T), and of
    what else `transformer.hidden` takes.

    `sum / weight` is what training minimises, in nats per token; the router's losses, means over a batch, count with its whole weight.
    `metrics` are further sums over the same weight: `balance` and `router_z` of a mixture of experts, nothing otherwise. A key turns
    dropout on. Raises UserError when the task has a router's loss and the model no router.
    """
    check_router(model, task)

    def loss(params: Any, batch: dict[str, jax.Array], key: jax.Array | None = None, hypers: Hypers | None = None):
        out = transformer.hidden(params, batch, model, key=key, hypers=hypers)
        weights_BT = batch["weights"]

        def penalised(logits_BTV, targets_BT):
            smoothing, z_loss = given(task, "label_smoothing", hypers), given(task, "z_loss", hypers)
            return losses.softmax_cross_entropy(logits_BTV, targets_BT, label_smoothing=smoothing, z_loss=z_loss)

        losses_BT = head.losses(params, out.outputs, batch["targets"], model, penalised, task.head_tile)
        total, weight = losses.weighted_sum(losses_BT, weights_BT)
        return with_router(total, weight, out.aux, task, hypers)

    return loss


def make_row_losses(model: ModelConfig, task: LMConfig = LMConfig()) -> RowLosses:
    """`row_losses(params, batch) -> (B,)`: the weighted sum of each row's cross-entropies, in nats."""

    def row_losses(params, batch):
        out = transformer.hidden(params, batch, model)
        losses_BT = head.losses(
            params, out.outputs, batch["targets"], model, losses.softmax_cross_entropy, task.head_tile
        )
        return (losses_BT * batch["weights"]).sum(axis=1)

    return row_losses


def make_evaluation(model: ModelConfig) -> Evaluation:
    """`evaluate(params, batch) -> {"nll", "weight"}`: sums to be added over batches; no dropout, no smoothing, no z-loss."""
    plain = make_loss(model)

    def evaluate(params, batch):
        total, weight, _ = plain(params, batch)
        return {"nll": total, "weight": weight}

    return evaluate


def bits_per_byte(nats_per_token: float, tokens: int, n_bytes: int) -> float:
    """Held-out loss in bits per byte of text: independent of the tokeniser, comparable with compressors."""
    return nats_per_token * tokens / n_bytes / math.log(2)
