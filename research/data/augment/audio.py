"""Augmentations of `audio`, floating samples (B, samples), and of `mel`, spectrograms (B, frames, mels).

Nothing is cut to [-1, 1]: samples that a gain or noise takes beyond are left to whoever writes them to a file. Mixing of two rows is `mixing.Mixup`.
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from research.core.errors import UserError
from research.data.augment.base import Rows, leaves
from research.data.augment.images import either

REACH = 16  # samples on each side that a resampled one is made of
UNIT = 1 << 16  # steps of a speed between 0 and 1


class Sounds(Rows):
    """An augmentation of samples."""

    ARRAY = "audio"
    AXES = (2,)


@leaves("strength")
@dataclass(frozen=True)
class Shift(Sounds):
    """Moves sounds in time by up to a share `strength` of their samples either way; silence, or what was pushed out (wrap), takes the room."""

    strength: ArrayLike = 0.1
    edge: Literal["silence", "wrap"] = "silence"
    RANGES = {"strength": (0, 1)}
    CHOICES = {"edge": ("silence", "wrap")}

    def row(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the samples moved."""
        return shift(x, jnp.round(either(key) * self.strength * len(x)).astype(jnp.int32), self.edge)


@leaves("strength", "snr", "bank")
@dataclass(frozen=True, eq=False)
class Noise(Sounds):
    """Adds noise at a signal-to-noise ratio of `snr` decibels: white, or a stretch of a random row of `bank` (N, samples), which goes round.

    Powers are means of squares over the whole row, so that the ratio holds exactly for what is added. `strength` multiplies the noise. A silent row
    stays silent.
    """

    strength: ArrayLike = 1.0
    snr: ArrayLike = 20.0
    bank: jax.Array | None = None
    RANGES = {"strength": (0, math.inf), "snr": (-math.inf, math.inf)}

    def row(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the samples with noise."""
        return x + self.strength * at_ratio(self.noise(len(x), key), x, self.snr)

    def noise(self, samples: int, key: jax.Array) -> jax.Array:
        """Returns noise of any loudness, (samples,)."""
        if self.bank is None:
            return jax.random.normal(key, (samples,))
        if self.bank.ndim != 2:
            raise UserError(f"the bank of Noise has shape {self.bank.shape}; expected (number, samples)")
        for_row, for_start = jax.random.split(key)
        number, length = self.bank.shape
        places = (jax.random.randint(for_start, (), 0, length) + jnp.arange(samples)) % length
        return jnp.asarray(self.bank)[jax.random.randint(for_row, (), 0, number), places].astype(jnp.float32)


@leaves("strength")
@dataclass(frozen=True)
class Gain(Sounds):
    """Makes sounds louder or quieter by up to `strength` decibels, uniformly."""

    strength: ArrayLike = 6.0

    def row(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the samples multiplied."""
        return gain(x, either(key) * self.strength)


@leaves("strength")
@dataclass(frozen=True)
class Speed(Sounds):
    """Plays sounds faster or slower, pitch and all, by a factor from 1 / (1 + strength) to 1 + strength, uniform in its logarithm.

    The number of samples stays: slower ones are cut at the end, faster ones followed by silence. The factor is at most 4.
    """

    strength: ArrayLike = 0.1
    RANGES = {"strength": (0, 3)}

    def row(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the samples resampled."""
        return speed(x, jnp.exp(either(key) * jnp.log1p(self.strength)))


@leaves("strength")
@dataclass(frozen=True)
class SpecAugment(Rows):
    """Covers stretches of frames and of frequencies of `mel` (SpecAugment, arXiv 1904.08779, section 2; its time warping is left out).

    Each of `frequency_masks` covers f neighbouring mels, f uniform from 0 to `frequency`, and each of `time_masks` covers t frames, from 0 to `time`
    but no more than a share `most` of all; they may overlap. `strength` multiplies `frequency` and `time`; by default they are the paper's
    policy LD. Covered values become the row's mean, which is the paper's 0 for spectrograms of mean 0, or 0.
    """

    strength: ArrayLike = 1.0
    frequency: int = 27
    time: int = 100
    frequency_masks: int = 2
    time_masks: int = 2
    most: float = 1.0
    value: Literal["mean", "zero"] = "mean"
    ARRAY = "mel"
    AXES = (3,)
    RANGES = dict.fromkeys(("strength", "frequency", "time", "frequency_masks", "time_masks"), (0, math.inf)) | {
        "most": (0, 1)
    }
    CHOICES = {"value": ("mean", "zero")}

    def row(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the spectrogram with parts covered."""
        frames, mels = x.shape
        for_time, for_frequency = jax.random.split(key)
        longest = jnp.minimum(self.time * jnp.asarray(self.strength), self.most * frames)
        widest = self.frequency * jnp.asarray(self.strength)
        in_time = stretches(for_time, frames, self.time_masks, longest)
        in_frequency = stretches(for_frequency, mels, self.frequency_masks, widest)
        covered = in_time[:, None] | in_frequency[None, :]
        return jnp.where(covered, x.mean() if self.value == "mean" else 0.0, x)


def stretches(key: jax.Array, size: int, number: int, longest: ArrayLike) -> jax.Array:
    """Returns which of `size` places lie in any of `number` stretches: lengths uniform from 0 to `longest`, starts among all that fit."""
    for_length, for_start = jax.random.split(key)
    most = jnp.minimum(jnp.floor(jnp.asarray(longest, jnp.float32)), size)
    length = jnp.floor(jax.random.uniform(for_length, (number, 1)) * (most + 1))
    start = jnp.floor(jax.random.uniform(for_start, (number, 1)) * (size - length + 1))
    place = jnp.arange(size)[None, :]
    return ((place >= start) & (place < start + length)).any(axis=0)


def shift(x: jax.Array, samples: jax.Array, edge: Literal["silence", "wrap"] = "silence") -> jax.Array:
    """Returns samples (n,) moved by whole samples, which may be traced, later if positive."""
    moved = jnp.roll(x, samples)
    if edge == "wrap":
        return moved
    before = jnp.arange(len(x)) - samples
    return jnp.where((before >= 0) & (before < len(x)), moved, 0)


def gain(x: jax.Array, decibels: ArrayLike) -> jax.Array:
    """Returns samples multiplied by 10^(decibels / 20); exactly themselves at 0."""
    return x * jnp.exp(jnp.asarray(decibels, jnp.float32) * (math.log(10) / 20))


def at_ratio(noise: jax.Array, x: jax.Array, snr: ArrayLike) -> jax.Array:
    """Returns noise (n,) so loud that the power of samples `x` (n,) lies `snr` decibels above it; silence for silent samples or noise."""
    power, own = jnp.mean(jnp.square(x)), jnp.mean(jnp.square(noise))
    ratio = jnp.where(own > 0, power / jnp.where(own > 0, own, 1), 0)
    return gain(noise * jnp.sqrt(ratio), -jnp.asarray(snr))


def speed(x: jax.Array, factor: ArrayLike) -> jax.Array:
    """Returns samples (n,) played `factor` times as fast, of the same number; exactly themselves at a factor of 1.

    Band-limited interpolation by a sinc under a Hann window, 16 samples to either side, which lets pass what lies below half the rate before and
    after. The factor is rounded to 1 / 65536 and places are made of whole numbers, exact up to 2^24 samples.
    """
    step = jnp.round(jnp.asarray(factor, jnp.float32) * UNIT).astype(jnp.uint32)
    index, fraction = places(len(x), step)
    cutoff = jnp.minimum(1, UNIT / step.astype(jnp.float32))

    def tap(total: jax.Array, offset: jax.Array) -> tuple[jax.Array, None]:
        source, distance = index + offset, offset - fraction
        window = jnp.square(jnp.cos(jnp.pi / 2 * jnp.clip(distance / REACH, -1, 1)))
        there = (source >= 0) & (source < len(x))
        value = jnp.where(there, x[jnp.clip(source, 0, len(x) - 1)], 0)
        return total + value * cutoff * jnp.sinc(cutoff * distance) * window, None

    made = jax.lax.scan(tap, jnp.zeros_like(x), jnp.arange(1 - REACH, REACH + 1))[0]
    return jnp.where(step == UNIT, x, jnp.where(index < len(x), made, 0))


def places(samples: int, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns `t step / 65536` for t from 0 to `samples` - 1 as a whole number, int32, and a fraction in [0, 1), float32.

    Float32 alone would lose the fraction in long sounds, so the product is made in two parts, neither of which overflows 32 bits.
    """
    t = jnp.arange(samples, dtype=jnp.uint32)
    whole, part = step >> 16, step & 0xFFFF
    high = (t >> 8) * part
    low = ((high & 0xFF) << 8) + (t & 0xFF) * part
    return (t * whole + (high >> 8) + (low >> 16)).astype(jnp.int32), (low & 0xFFFF).astype(jnp.float32) / UNIT
