"""Augmentations of sounds: measured in decibels, samples and hertz."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from augment_cases import ROWS, batch_of, keys, run
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.augment import audio
from research.data.augment.audio import Gain, Noise, Shift, SpecAugment, Speed
from research.data.augment.mixing import Mixup

AUDIO, MEL = batch_of("audio")["audio"], batch_of("audio")["mel"]
N = AUDIO.shape[1]
BANK = np.random.default_rng(3).normal(size=(3, 250)).astype(np.float32)
speed = jax.jit(audio.speed)


def of(one, seed: int, batch=None) -> dict[str, np.ndarray]:
    return jax.tree.map(np.asarray, run(batch_of("audio") if batch is None else batch, jax.random.key(seed), (one,)))


def decibels(power) -> np.ndarray:
    return 10 * np.log10(power)


@pytest.mark.parametrize("bank", [None, BANK], ids=["white", "bank"])
@settings(max_examples=25)
@given(seed=keys, snr=st.floats(-20, 50, width=32, allow_subnormal=False))
def test_the_ratio_measured_is_the_one_asked_for(bank, seed, snr):
    noise = (
        of(Noise(snr=snr, bank=None if bank is None else jnp.asarray(bank)), seed)["audio"].astype(np.float64) - AUDIO
    )
    measured = decibels((AUDIO.astype(np.float64) ** 2).mean(axis=1) / (noise**2).mean(axis=1))
    np.testing.assert_allclose(measured, snr, atol=0.05)


def test_white_noise_is_white_and_a_bank_is_heard_as_it_is():
    noise = of(Noise(snr=0.0), 0)["audio"] - AUDIO
    assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 4 / (ROWS * N) ** 0.5
    assert abs(np.corrcoef(noise[0], noise[1])[0, 1]) < 4 / N**0.5
    heard = of(Noise(snr=0.0, bank=jnp.asarray(BANK)), 0)["audio"] - AUDIO
    rows = set()
    for one in heard:
        whole = np.stack([[np.resize(np.roll(clip, -start), N) for start in range(250)] for clip in BANK])
        alike = (whole @ one) / np.linalg.norm(whole, axis=-1) / np.linalg.norm(one)
        assert alike.max() > 0.999
        rows.add(int(alike.max(axis=1).argmax()))
    assert len(rows) > 1


def test_silence_stays_silent_and_a_silent_bank_adds_nothing():
    silent = {"audio": np.zeros((2, 50), np.float32)}
    np.testing.assert_array_equal(of(Noise(snr=0.0), 0, silent)["audio"], 0)
    np.testing.assert_array_equal(of(Noise(snr=0.0, bank=jnp.zeros((2, 9))), 0)["audio"], AUDIO)


@settings(max_examples=25)
@given(keys, st.floats(0, 40, width=32, allow_subnormal=False))
def test_gains_stay_within_their_decibels(seed, strength):
    made = of(Gain(strength), seed)["audio"]
    factors = made[:, :1] / AUDIO[:, :1]
    np.testing.assert_allclose(made, AUDIO * factors, rtol=1e-4)
    assert (np.abs(2 * decibels(factors)) <= strength + 1e-3).all()
    np.testing.assert_allclose(audio.gain(jnp.ones(1), 20.0), 10, rtol=1e-5)


@pytest.mark.parametrize("edge", ["silence", "wrap"])
@settings(max_examples=20)
@given(seed=keys, strength=st.floats(0, 1, width=32, allow_subnormal=False))
def test_shifts_move_whole_samples(edge, seed, strength):
    ramp = {"audio": np.tile(np.arange(1, 41, dtype=np.float32), (ROWS, 1))}
    for row in of(Shift(strength, edge), seed, ramp)["audio"]:
        candidates = []
        for by in range(-40, 41):
            moved = np.roll(ramp["audio"][0], by)
            if edge == "silence":
                moved[:by] *= by <= 0
                moved[len(moved) + by if by < 0 else 40 :] = 0
            if (moved == row).all():
                candidates.append(abs(by))
        assert candidates and min(candidates) <= round(40 * strength) + 1e-6


def tone(hertz: float, factor: float = 1.0, rate: int = 8000, samples: int = 2000) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * factor * np.arange(samples) / rate).astype(np.float32)


@settings(max_examples=20)
@given(st.floats(0.6, 1.6), st.floats(200, 2000))
def test_tones_played_faster_are_higher_in_proportion(factor, hertz):
    made = np.asarray(speed(tone(hertz), factor))
    end = int(2000 / factor) if factor > 1 else 2000
    exact = round(float(np.float32(factor)) * 65536) / 65536
    np.testing.assert_allclose(made[60 : end - 60], tone(hertz, exact)[60 : end - 60], atol=0.02)
    np.testing.assert_array_equal(made[int(np.ceil(2000 / factor)) + 1 :], 0)


def test_tones_that_would_come_out_folded_are_silenced():
    made = np.asarray(speed(tone(3500), 1.6))  # 5,600 Hz at a rate of 8,000
    assert np.abs(made[60:-900]).max() < 0.02
    np.testing.assert_array_equal(speed(tone(3500), 1.0), tone(3500))


@settings(max_examples=30)
@given(st.integers(65536 // 4, 4 * 65536))
def test_places_in_long_sounds_are_exact(step):
    samples = 1 << 20
    index, fraction = (np.asarray(part) for part in places(jnp.uint32(step)))
    exact = np.arange(samples, dtype=np.int64) * step
    np.testing.assert_array_equal(index, exact >> 16)
    np.testing.assert_array_equal(fraction * 65536, exact & 0xFFFF)


places = jax.jit(lambda step: audio.places(1 << 20, step))


@settings(max_examples=15)
@given(keys)
def test_speeds_lie_within_their_bounds(seed):
    batch = {"audio": np.tile(tone(500), (ROWS, 1))}
    made = of(Speed(0.25), seed, batch)["audio"]
    crossings = (np.diff(np.sign(made[:, 100:1500]), axis=1) > 0).sum(axis=1) / 1400 * 8000 / 500
    assert (crossings > 0.8 - 0.02).all() and (crossings < 1.25 + 0.02).all()
    assert len(np.unique(made[:, 700])) == ROWS


@pytest.mark.parametrize("value", ["mean", "zero"])
@settings(max_examples=20)
@given(seed=keys, strength=st.floats(0, 1, width=32, allow_subnormal=False))
def test_masks_are_stretches_of_frames_and_frequencies(value, seed, strength):
    one = SpecAugment(strength, frequency=8, time=12, frequency_masks=1, time_masks=1, value=value)
    for before, after in zip(MEL, of(one, seed)["mel"], strict=True):
        covered = after != before
        frames, mels = np.flatnonzero(covered.all(axis=1)), np.flatnonzero(covered.all(axis=0))
        expected = np.zeros_like(covered)
        expected[frames], expected[:, mels] = True, True
        np.testing.assert_array_equal(covered, expected)
        assert len(frames) <= 12 * strength + 1e-5 and len(mels) <= 8 * strength + 1e-5
        assert not len(frames) or np.ptp(frames) + 1 == len(frames)
        assert not len(mels) or np.ptp(mels) + 1 == len(mels)
        np.testing.assert_allclose(after[covered], before.mean() if value == "mean" else 0, atol=1e-5)


def test_widths_and_starts_of_masks_are_uniform():
    def one(key):
        return audio.stretches(key, 10, 1, 3.0)

    masks = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 4000)))
    widths = np.bincount(masks.sum(axis=1), minlength=4)
    assert len(widths) == 4 and ((widths - 1000) ** 2 / 1000).sum() < 16.3  # chi-squared, 3 degrees: 1 in 1000
    starts = np.bincount(masks[masks.sum(axis=1) == 3].argmax(axis=1), minlength=8)
    expected = widths[3] / 8
    assert len(starts) == 8 and ((starts - expected) ** 2 / expected).sum() < 24.3  # 7 degrees


def test_a_share_of_the_frames_is_the_most_that_a_mask_covers():
    for seed in range(5):
        made = of(SpecAugment(time=40, most=0.1, frequency_masks=0, time_masks=1), seed)["mel"]
        assert ((made != MEL).all(axis=2).sum(axis=1) <= 4).all()
    full = audio.stretches(jax.random.key(0), 10, 50, 1e9)
    assert full.any() and full.shape == (10,)


@pytest.mark.parametrize("array", ["audio", "mel"])
def test_mixed_sounds_are_weighted_sums_of_two_rows(array):
    batch = {**batch_of("audio"), "label": np.arange(ROWS, dtype=np.int32)}
    made = of(Mixup(1.0, ROWS, array), 0, batch)
    np.testing.assert_allclose(np.tensordot(made["targets"], batch[array], 1), made[array], atol=1e-4)
    assert ((made["targets"] > 0).sum(axis=1) <= 2).all() and (made[array] != batch[array]).any()
    other = "mel" if array == "audio" else "audio"
    np.testing.assert_array_equal(made[other], batch[other])
