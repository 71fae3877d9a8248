"""Rows mixed with other rows of the batch, and labels that follow.

Row i is mixed with row p(i) of a random permutation p. Where the batch has `label`, whole numbers (B,), it gains `targets` (B, classes) float32:
the share of each class in what the row has become. Where it has `targets` already, from an earlier mixing, those are mixed. `label` stays
that of the row's own part, and a batch with neither is mixed all the same.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from research.core.dtypes import at_least_float32
from research.core.errors import UserError
from research.data.augment.base import Augmentation, Batch, leaves
from research.data.augment.images import box_mask, random_box

AXES = {"image": (4, 5), "audio": (2,), "mel": (3,)}


@leaves("strength")
@dataclass(frozen=True)
class Mixup(Augmentation):
    """Mixup (arXiv 1710.09412, section 2): `w x_i + (1 - w) x_j` of two rows of an array, and the same of their targets.

    Every row draws its w from Beta(strength, strength); at strength 0 it is 1. Raises UserError in a call for a batch with labels if the
    number of classes is not given.
    """

    strength: ArrayLike = 0.2
    classes: int | None = None
    array: Literal["image", "audio", "mel"] = "image"
    CHOICES = {"array": tuple(AXES)}

    def apply(self, batch: Batch, key: jax.Array) -> Batch:
        """Returns the batch with rows mixed."""
        array = self.need(batch, self.array, AXES[self.array])
        for_partner, for_weight = jax.random.split(key)
        partner = jax.random.permutation(for_partner, len(array))
        weight = beta(for_weight, self.strength, len(array))
        made = mix(at_least_float32(array), partner, weight).astype(array.dtype)
        return {**batch, self.array: made, **mixed_targets(self, batch, self.classes, partner, weight)}


@leaves("strength")
@dataclass(frozen=True)
class CutMix(Augmentation):
    """CutMix (arXiv 1905.04899, section 3.1): a box of each image is that of another row, and targets are mixed by area.

    A weight is drawn from Beta(strength, strength); the box's sides are sqrt(1 - weight) of the image's and its middle is any pixel. What counts is
    the area that lies inside the image. At strength 0 nothing is cut. Raises UserError as `Mixup` does.
    """

    strength: ArrayLike = 1.0
    classes: int | None = None

    def apply(self, batch: Batch, key: jax.Array) -> Batch:
        """Returns the batch with boxes of other rows."""
        image = self.need(batch, "image", AXES["image"])
        H, W = image.shape[-3:-1]
        for_partner, for_weight, for_box = jax.random.split(key, 3)
        partner = jax.random.permutation(for_partner, len(image))

        def box(key: jax.Array, weight: jax.Array) -> jax.Array:
            side = jnp.sqrt(1 - weight)
            return box_mask(H, W, *random_box(key, H, W, jnp.floor(H * side), jnp.floor(W * side)))

        inside = jax.vmap(box)(jax.random.split(for_box, len(image)), beta(for_weight, self.strength, len(image)))
        weight = 1 - inside.sum(axis=(1, 2)) / (H * W)
        where = inside.reshape(len(image), *[1] * (image.ndim - 4), H, W, 1)
        made = jnp.where(where, image[partner], image)
        return {**batch, "image": made, **mixed_targets(self, batch, self.classes, partner, weight)}


def beta(key: jax.Array, concentration: ArrayLike, rows: int) -> jax.Array:
    """Returns a weight (rows,) for each row from the symmetric beta distribution; 1 where its concentration is 0."""
    a = jnp.asarray(concentration, jnp.float32)
    safe = jnp.where(a > 0, a, 1)
    return jnp.where(a > 0, jax.random.beta(key, safe, safe, (rows,)), 1)


def mix(x: jax.Array, partner: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns `w x_i + (1 - w) x_partner(i)` over the first axis of (B, ...), for weights (B,)."""
    w = weight.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
    return w * x + (1 - w) * x[partner]


def mixed_targets(who: Augmentation, batch: Batch, classes: int | None, partner: jax.Array, weight: jax.Array) -> Batch:
    """Returns `{"targets": (B, classes)}` of a batch's targets or labels mixed, or nothing if it has neither. Raises UserError for labels without
    a number of classes."""
    if "targets" in batch:
        return {"targets": mix(who.need(batch, "targets", (2,)), partner, weight)}
    if "label" not in batch:
        return {}
    if classes is None:
        name = type(who).__name__
        raise UserError(f"{name} got labels and no number of classes; give it as classes, or give targets in the batch")
    label = who.need(batch, "label", (1,), jnp.integer)
    return {"targets": mix(jax.nn.one_hot(label, classes, dtype=jnp.float32), partner, weight)}
