"""Language modelling: the loss that the step differentiates and the metrics that evaluation adds up.

The loss scores whatever a batch marks as targets. In kind `lm` that is every next token; in kind `infill` what was hidden from a text, with
the batches of tasks/infill.py.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax

from research.core.hypers import Hypers
from research.model import head, transformer
from research.model.config import ModelConfig, check_choices, require
from research.tasks import losses
from research.tasks.infill import InfillConfig

Loss = Callable[..., tuple[jax.Array, jax.Array, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """What is predicted, and what the loss adds to cross-entropy. None: absent from the program; a number is the default of the traced value."""

    kind: Literal["lm", "infill"] = "lm"  # infill: for models whose layers have the pattern prefix
    infill: InfillConfig = InfillConfig()
    label_smoothing: float | None = None  # probability that is spread over all tokens instead of the right one
    z_loss: float | None = None  # times the square of the log of the softmax denominator
    balance_loss: float | None = None  # of a mixture of experts, times the mean of its layers' `balance` (model/moe.py)
    router_z_loss: float | None = None  # likewise, times `router_z`
    head_tile: int | None = None  # tokens whose logits are held at a time; None: all

    def __post_init__(self):
        check_choices(self, "task")
        smoothing, z_loss, tile = self.label_smoothing, self.z_loss, self.head_tile
        require(smoothing is None or 0 <= smoothing < 1, "task.label_smoothing", smoothing, "a number in [0, 1)")
        require(z_loss is None or z_loss >= 0, "task.z_loss", z_loss, "a number of at least 0")
        for name in ("balance_loss", "router_z_loss"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"task.{name}", value, "a number of at least 0")
        require(tile is None or tile >= 1, "task.head_tile", tile, "a number of tokens, at least 1")


def make_loss(model: ModelConfig, task: LMConfig = LMConfig()) -> Loss:
    """`loss(params, batch, key, hypers) -> (sum, weight, metrics)` over a batch of `tokens`, `targets` and `weights`, each (B, T), and of
    what else `transformer.hidden` takes.

    `sum / weight` is what training minimises, in nats per token; the router's losses, means over a batch, count with its whole weight.
    `metrics` are further sums over the same weight: `balance` and `router_z` of a mixture of experts, nothing otherwise. A key turns
    dropout on. Raises UserError when the task has a router's loss and the model no router.
    """
    sparse = any(slot.feed_forward == "moe" for slots, _ in model.segments for slot in slots)
    for name in ("balance_loss", "router_z_loss"):
        value = getattr(task, name)
        require(sparse or value is None, f"task.{name}", value, "none, or a model with moe in feed_forward")

    def given(name: str, hypers: Hypers | None):
        """What a loss of the config counts: its number, or the traced one; None where it is absent."""
        value = getattr(task, name)
        return value if hypers is None or value is None else getattr(hypers, name)

    def loss(params: Any, batch: dict[str, jax.Array], key: jax.Array | None = None, hypers: Hypers | None = None):
        out = transformer.hidden(params, batch, model, key=key, hypers=hypers)
        weights_BT = batch["weights"]

        def penalised(logits_BTV, targets_BT):
            smoothing, z_loss = given("label_smoothing", hypers), given("z_loss", hypers)
            return losses.softmax_cross_entropy(logits_BTV, targets_BT, label_smoothing=smoothing, z_loss=z_loss)

        losses_BT = head.losses(params, out.outputs, batch["targets"], model, penalised, task.head_tile)
        total, weight = losses.weighted_sum(losses_BT, weights_BT)
        for name in out.aux:
            coefficient = given(f"{name}_loss", hypers)
            total = total if coefficient is None else total + coefficient * out.aux[name] * weight
        return total, weight, {name: value * weight for name, value in out.aux.items()}

    return loss


def make_row_losses(
    model: ModelConfig, task: LMConfig = LMConfig()
) -> Callable[[Any, dict[str, jax.Array]], jax.Array]:
    """`row_losses(params, batch) -> (B,)`: the weighted sum of each row's cross-entropies, in nats."""

    def row_losses(params, batch):
        out = transformer.hidden(params, batch, model)
        losses_BT = head.losses(
            params, out.outputs, batch["targets"], model, losses.softmax_cross_entropy, task.head_tile
        )
        return (losses_BT * batch["weights"]).sum(axis=1)

    return row_losses


def make_evaluation(model: ModelConfig) -> Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]:
    """`evaluate(params, batch) -> {"nll", "weight"}`: sums to be added over batches; no dropout, no smoothing, no z-loss."""
    plain = make_loss(model)

    def evaluate(params, batch):
        total, weight, _ = plain(params, batch)
        return {"nll": total, "weight": weight}

    return evaluate


def bits_per_byte(nats_per_token: float, tokens: int, n_bytes: int) -> float:
    """Held-out loss in bits per byte of text: independent of the tokeniser, comparable with compressors."""
    return nats_per_token * tokens / n_bytes / math.log(2)
