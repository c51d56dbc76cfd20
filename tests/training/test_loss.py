"""The loss is the logarithm that the evaluation reports, up to a factor."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from training.loss import FLOOR, log_relative_error


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
