"""Hyperparameters that do not change the compiled program: a pytree of scalars passed to the step.

Because they are traced, one compiled step serves every learning rate, and `vmap` over them is a sweep. Whether a thing exists at
all (dropout, label smoothing, z-loss, a router's losses, an average of weights) is static and lives in the config, where `None` means absent.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Hypers:
    """Scalars, or arrays with a leading member axis under `vmap`. Steps are counted in optimiser steps."""

    learning_rate: jax.Array  # the schedule's peak
    warmup_steps: jax.Array
    horizon: jax.Array  # the step at which the schedule reaches its floor
    floor: jax.Array  # final rate as a fraction of the peak
    cooldown: jax.Array  # warmup-stable-decay: the decaying part, a fraction of the horizon
    weight_decay: jax.Array
    momentum: jax.Array  # SGD and Muon
    beta1: jax.Array
    beta2: jax.Array
    eps: jax.Array
    adam_ratio: jax.Array  # Muon: the rate of the leaves that AdamW updates, relative to `learning_rate`
    clip_norm: jax.Array  # infinity: no clipping
    ema_decay: jax.Array
    dropout: jax.Array
    label_smoothing: jax.Array
    z_loss: jax.Array
    balance_loss: jax.Array  # of a mixture of experts
    router_z_loss: jax.Array
    init_scale: jax.Array  # multiplies every random initial value
    seed: jax.Array  # uint32: initial weights and dropout


def make(**values: float) -> Hypers:
    """Hypers from Python numbers, as float32 scalars (float64 where x64 is on); the seed is uint32."""
    seed = jnp.asarray(values.pop("seed"), jnp.uint32)
    return Hypers(**{name: jnp.asarray(value, jnp.result_type(float)) for name, value in values.items()}, seed=seed)
