"""The loss is the logarithm that the evaluation reports, up to a factor."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from training.loss import (
    COARSE_FLOOR,
    COARSE_SIGMA_PX,
    FLOOR,
    log_coarse_error,
    log_relative_error,
    loss_with,
)


def loss(truth: np.ndarray, image: np.ndarray) -> float:
    return float(keras.ops.convert_to_numpy(log_relative_error(truth, image)))


@pytest.fixture
def truth() -> np.ndarray:
    """Two places, three images each, (2, 3, 8, 10)."""
    return np.random.default_rng(1).random((2, 3, 8, 10), np.float32)


def test_it_is_the_mean_logarithm_of_each_images_error(truth: np.ndarray) -> None:
    """Catches a logarithm of the mean, which lets one bad image hide all others, and a mean over
    the wrong axes."""
    offset = np.arange(1, 7, dtype=np.float32).reshape(2, 3, 1, 1)
    expected = np.mean(np.log(offset**2 + FLOOR))
    assert loss(truth, truth + offset) == pytest.approx(expected, rel=1e-5)


def test_halving_the_error_is_worth_the_same_anywhere(truth: np.ndarray) -> None:
    """Two times less error: 6.02 dB, log 4. Catches a floor that flattens what matters."""
    noise = np.random.default_rng(2).normal(0, 0.2, truth.shape).astype(np.float32)
    gain = loss(truth, truth + noise) - loss(truth, truth + noise / 2)
    assert gain == pytest.approx(np.log(4), abs=0.01)  # the floor takes 1 % at -20 dB


def test_a_perfect_image_ends_at_the_floor(truth: np.ndarray) -> None:
    """Catches a logarithm of 0, and one worse for brightness that is off by a factor."""
    assert loss(truth, truth) == pytest.approx(np.log(FLOOR), rel=1e-5)
    assert loss(truth, 2 * truth) > loss(truth, 1.5 * truth) > loss(truth, truth) + 1


def test_the_coarse_error_is_that_of_the_blurred_image(truth: np.ndarray) -> None:
    """Against SciPy's Gaussian, cut at three sigma as well. Catches a blur along one axis only."""
    blurred = gaussian_filter(
        truth, (0, 0, COARSE_SIGMA_PX, COARSE_SIGMA_PX), mode="constant", truncate=3.0
    )
    expected = np.mean(np.log((blurred**2).mean(axis=(2, 3)) + COARSE_FLOOR))
    found = float(keras.ops.convert_to_numpy(log_coarse_error(truth, 0 * truth)))
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_displaced_point_weighs_more_than_a_wide_one() -> None:
    """Two errors of the same power when sharp: a place that is wrong, and a width.

    Catches weights that leave one of the two errors out.
    """
    y, x = np.mgrid[:32, :32]

    def spot(at: float, sigma_px: float) -> np.ndarray:
        r2 = (y - 16) ** 2 + (x - at) ** 2
        return (np.exp(-r2 / (2 * sigma_px**2)) / sigma_px**2)[None, None].astype(np.float32)

    truth = spot(16, 0.8)
    place, width = spot(16.25, 0.8) - truth, spot(16, 1.0) - truth
    width *= np.sqrt(np.mean(place**2) / np.mean(width**2))
    sharp, both = (
        [float(loss_with(weight)(truth, truth + error)) for error in (place, width)]
        for weight in (0.0, 0.5)
    )
    assert sharp[0] == pytest.approx(sharp[1], abs=0.01)
    assert both[0] > both[1] + 0.3
