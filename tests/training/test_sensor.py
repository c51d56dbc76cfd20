"""Sensor: photon statistics, gain, offset and the converter."""

from __future__ import annotations

import numpy as np
import pytest

from training.processing import Processing
from training.sensor import Sensor

BIT_DEPTHS = [8, 10, 12, 16]


@pytest.mark.parametrize("photons", [0.5, 5.0, 50.0, 2000.0])
def test_in_photoelectrons_the_variance_is_the_mean(photons: float) -> None:
    """Catches noise in ADU or in photons instead of electrons, and Gaussian noise of fixed width.

    A Poisson variable of mean m has a sample variance that scatters by sqrt((m + 2 m^2) / n).
    """
    n = 200_000
    sensor = Sensor(quantum_efficiency=0.6, read_noise_e=0)
    electrons = sensor.electrons(np.full(n, photons), np.random.default_rng(1)).astype(float)
    mean = 0.6 * photons
    assert abs(electrons.mean() - mean) < 5 * np.sqrt(mean / n)
    assert abs(electrons.var() - mean) < 5 * np.sqrt((mean + 2 * mean**2) / n)
    np.testing.assert_array_equal(electrons, np.rint(electrons))


@pytest.mark.parametrize("bits", BIT_DEPTHS)
def test_gain_and_offset_at_every_bit_depth(bits: int) -> None:
    """Catches gain applied to the offset, and efficiency left out of `adu_per_photon`."""
    top = 2**bits
    sensor = Sensor(0.5, 1.0, gain_adu_per_e=top / 400, offset_adu=top / 20, bit_depth=bits)
    frames = sensor.expose(np.full((200, 200), 100.0), np.random.default_rng(2))
    assert frames.dtype == np.uint16
    expected = top / 20 + 100 * sensor.adu_per_photon()
    spread = np.sqrt((50 + 1) * (top / 400) ** 2 + 1 / 12)  # shot, read, rounding
    assert abs(frames.mean() - expected) < 5 * spread / 200
    # A standard deviation of 40,000 nearly normal values scatters by its 1/283.
    assert frames.std() == pytest.approx(spread, rel=5 / 283)


@pytest.mark.parametrize("bits", BIT_DEPTHS)
def test_the_converter_clips_at_both_ends(bits: int) -> None:
    """Catches wrap-around, a top of 2**bits, and clipping before the offset."""
    rng = np.random.default_rng(3)
    bright = Sensor(1.0, 1.0, gain_adu_per_e=2**bits, offset_adu=5, bit_depth=bits)
    assert np.all(bright.expose(np.full((8, 8), 1000.0), rng) == 2**bits - 1)
    noisy = Sensor(1.0, 50.0, gain_adu_per_e=1.0, offset_adu=0.0, bit_depth=bits)
    dark = noisy.expose(np.zeros((100, 100)), rng)
    assert dark.min() == 0
    assert np.mean(dark == 0) == pytest.approx(0.504, abs=0.025)  # half, and 0.5 / 50 / sqrt(2 pi)
    assert dark.max() <= 2**bits - 1


@pytest.mark.parametrize(("offset", "level"), [(10.4, 10), (10.6, 11), (0.0, 0)])
def test_values_are_rounded_not_cut(offset: float, level: int) -> None:
    """Catches truncation, which takes half a unit off every image."""
    sensor = Sensor(read_noise_e=0.0, offset_adu=offset, bit_depth=12)
    assert np.all(sensor.expose(np.zeros((4, 4)), np.random.default_rng(4)) == level)


def test_read_noise_is_in_electrons_and_there_in_the_dark() -> None:
    """Catches read noise in ADU. 40,000 values: 5 standard errors are 1.8 %."""
    sensor = Sensor(1.0, read_noise_e=3.0, gain_adu_per_e=4.0, offset_adu=500, bit_depth=12)
    dark = sensor.expose(np.zeros((200, 200)), np.random.default_rng(5)).astype(float)
    assert dark.std() == pytest.approx(np.hypot(12, np.sqrt(1 / 12)), rel=0.018)
    assert dark.mean() == pytest.approx(500, abs=5 * 12 / 200)


def test_a_seed_is_an_exposure() -> None:
    """Catches randomness from elsewhere than `rng`, and light below 0 that stops the camera."""
    light = np.linspace(-1, 50, 64).reshape(8, 8)
    a, b, c = (Sensor().expose(light, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_the_fixed_pattern_is_the_same_in_every_frame() -> None:
    """Catches a pattern drawn anew for each frame, and one that is missing.

    Means of 400 frames: shot noise leaves 100 / 20 of 10,000 electrons, 0.05 %.
    """
    sensor = Sensor(1.0, 0.0, offset_adu=0, bit_depth=16, response_spread=0.02)
    frames = sensor.expose(np.full((400, 40, 40), 10_000.0), np.random.default_rng(6))
    mean = frames.mean(axis=0) / 10_000
    assert mean.std() == pytest.approx(0.02, rel=0.1)  # 1,600 pixels: 5 of their 1/57
    halves = [part.mean(axis=0).ravel() for part in (frames[:200], frames[200:])]
    assert np.corrcoef(halves)[0, 1] > 0.99


def test_hot_pixels_are_few_bright_and_stay() -> None:
    """Catches a share that is ignored, and hot pixels that take light away or wander."""
    sensor = Sensor(
        0.5, 0.0, offset_adu=10, bit_depth=16, hot_pixel_fraction=0.01, hot_pixel_e=1000
    )
    frames = sensor.expose(np.zeros((4, 200, 200)), np.random.default_rng(7)).astype(int) - 10
    hot = frames.mean(axis=0) > 5
    assert hot.mean() == pytest.approx(0.01, abs=0.0025)  # 5 standard deviations of the binomial
    assert np.all(frames[:, ~hot] <= 40)
    assert frames[:, hot].mean() == pytest.approx(1000, rel=0.25)  # 5 / sqrt(400)


def test_columns_have_offsets_and_even_and_odd_ones_differ() -> None:
    """Catches rows for columns, offsets drawn anew for each frame, and none that alternate.

    Of 1,600 sensors the difference of even and odd is sqrt(2) times a column's, within 5 of its
    standard errors of 1 / sqrt(3,200).
    """
    sensor = Sensor(1.0, 0.0, offset_adu=100, gain_adu_per_e=100, column_offset_e=0.1)
    frames = sensor.expose(np.zeros((2, 3, 8)), np.random.default_rng(9)).astype(int)
    assert np.array_equal(frames[0], frames[1])
    assert np.ptp(frames[0], axis=0).max() == 0 and np.ptp(frames[0], axis=1).min() > 0
    rng = np.random.default_rng(10)
    dark = np.stack([sensor.expose(np.zeros((1, 64)), rng)[0] for _ in range(1600)]) / 100 - 1
    apart = dark[:, ::2].mean(axis=1) - dark[:, 1::2].mean(axis=1)
    own = 0.1 * np.sqrt(1 / 16)  # what 32 even and 32 odd columns of their own leave
    assert apart.std() == pytest.approx(np.hypot(0.1 * np.sqrt(2), own), rel=0.09)


def test_processing_comes_after_the_noise() -> None:
    """Catches noise that is white although the frames were interpolated."""
    sensor = Sensor(
        1.0, 5.0, offset_adu=500, bit_depth=12, processing=Processing(resampling_sigma_px=0.8)
    )
    dark = sensor.expose(np.zeros((200, 200)), np.random.default_rng(8)).astype(float) - 500
    neighbours = np.mean(dark[:, 1:] * dark[:, :-1]) / dark.var()
    assert neighbours == pytest.approx(
        np.exp(-1 / (4 * 0.64)), abs=0.05
    )  # of a blurred white noise
