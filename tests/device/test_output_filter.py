"""The lattice is taken out, and so is what does not repeat; nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from device.output_filter import (
    BANDS,
    OutputFilterSettings,
    notch,
    of_cosines,
    ring_correlation,
    weighed,
    weights,
    without_lattice,
)


def _noise(shape: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _cosine(shape: tuple[int, int], ky: int, kx: int) -> np.ndarray:
    """One cosine of the transform: it is continued by its mirror image."""
    y, x = (np.pi * (np.arange(n) + 0.5) / n for n in shape)
    return np.outer(np.cos(ky * y), np.cos(kx * x)).astype(np.float32)


@pytest.mark.parametrize("shape", [(256, 256), (128, 300), (32, 34)])
def test_what_is_the_same_correlates_and_noise_does_not(shape):
    """Mutations: no square root, no normalization; one image with itself; the brightness counts."""
    same, one, other = (100 + _noise(shape, seed) for seed in range(3))
    np.testing.assert_allclose(ring_correlation(same, 3 * same), 1, atol=1e-6)
    np.testing.assert_allclose(ring_correlation(same, -same), -1, atol=1e-6)
    # Of n cosines in a band the correlation of noise scatters by 1 / sqrt(n), n from a dozen up.
    assert abs(ring_correlation(one, other)).mean() < 0.2


def test_half_noise_correlates_by_a_half():
    """Mutation: the power of one image alone in the denominator."""
    same, one, other = (_noise((256, 256), seed) for seed in range(3))
    found = ring_correlation(same + one, 2 * (same + other))
    np.testing.assert_allclose(found[5:], 0.5, atol=0.1)


@pytest.mark.parametrize(
    ("ky", "kx", "cycles"), [(40, 0, 20 / 128), (0, 90, 45 / 200), (30, 60, 0.19)]
)
def test_a_band_is_a_frequency_in_cycles_per_px(ky, kx, cycles):
    """Mutations: a frequency twice too high; axes taken for each other."""
    shape = (128, 200)
    one, other = _noise(shape, 1), _noise(shape, 2)
    wave = 20 * _cosine(shape, ky, kx)
    found = ring_correlation(one + wave, other + wave)
    count = len(found)
    assert count == 128 // 4
    assert abs(np.argmax(found[2:]) + 2 - cycles * 2 * count) <= 1.6


def test_an_empty_band_correlates_with_nothing():
    """Mutation: NaN, of zero by zero, which would be an image of NaN."""
    found = ring_correlation(np.ones((64, 64), np.float32), np.ones((64, 64), np.float32))
    np.testing.assert_array_equal(found, 0)


def test_weights_go_from_the_floor_to_one():
    """Mutations: floor not added, or left out; the ends taken for each other; no clipping."""
    settings = OutputFilterSettings(none=0.2, full=0.6, floor=0.1)
    found = weights(np.array([-1, 0.2, 0.4, 0.6, 1]), settings)
    np.testing.assert_allclose(found, [0.1, 0.1, 0.55, 1, 1])


def test_a_wave_is_weighed_by_its_band_and_the_mean_is_left():
    """Mutations: weights of the wrong band, squared or of one axis alone; the mean is damped."""
    shape, of_bands = (96, 160), np.linspace(1, 0.2, BANDS)
    for ky, kx in ((48, 0), (0, 80), (40, 30), (95, 159)):
        cycles = min(np.hypot(ky / 192, kx / 320), 0.5)
        weight = np.interp(cycles, (np.arange(BANDS) + 0.5) / (2 * BANDS), of_bands)
        image = 5 + _cosine(shape, ky, kx)
        expected = 5 + weight * _cosine(shape, ky, kx)
        np.testing.assert_allclose(weighed(image, of_cosines(of_bands, shape)), expected, atol=1e-4)


def test_weights_of_one_leave_an_image_as_it_is():
    """Mutation: an image that is not the transform's own inverse."""
    image = np.abs(_noise((64, 90), 3))
    np.testing.assert_allclose(
        weighed(image, of_cosines(np.ones(16), image.shape)), image, atol=1e-5
    )


def test_no_brightness_is_below_zero():
    """Mutation: what rings beside a point is shown as less than nothing."""
    image = np.zeros((64, 64), np.float32)
    image[32, 32] = 100
    of_bands = np.where(np.arange(16) < 5, 1.0, 0.2)
    shown = weighed(image, of_cosines(of_bands, image.shape))
    assert shown.min() == 0 and 20 < shown.max() < 60


@pytest.mark.parametrize(("ky", "kx"), [(1, 0), (0, 1), (1, 1)])
def test_what_repeats_every_two_px_is_taken_out_and_coarser_structure_is_not(ky, kx):
    """Mutations: a frequency twice too high, or of one axis alone; a lower order."""
    shape = (96, 160)
    weight = notch(shape, 8)
    y, x = np.indices(shape)
    lattice = np.cos(np.pi * (ky * y + kx * x))
    np.testing.assert_allclose(_shown_inside(3 + lattice, weight), 3, atol=0.01)
    for period in (4, 5, 12):
        coarse = 2 + np.cos(2 * np.pi / period * (ky * y + kx * x) + 0.3)
        np.testing.assert_allclose(_shown_inside(coarse, weight), coarse[16:-16, 16:-16], atol=0.02)


def _shown_inside(image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return weighed(image, weight)[16:-16, 16:-16]


def test_the_notch_draws_nothing_along_the_border():
    """Mutation: zeros beyond the field, which stripe what reaches it by a tenth."""
    y, x = np.indices((64, 90)) / 10
    for image in (np.full((64, 90), 7.0), 20 + 3 * y - x + np.sin(y)):
        np.testing.assert_allclose(weighed(image, notch(image.shape, 8)), image, rtol=2e-3)


def test_what_is_dark_stays_dark():
    """Mutation: what the notch rings beside an edge, which is drawn as a faint line."""
    settings = OutputFilterSettings()
    image = np.zeros((64, 64), np.float32)
    image[20:26, 10:50] = 100
    assert weighed(image, notch(image.shape, settings.notch_order))[image == 0].max() > 1
    shown = without_lattice(image, settings)
    assert shown[image == 0].max() == 0
    np.testing.assert_allclose(shown[23, 13:47], 100, rtol=0.05)


def test_a_band_is_summed_with_its_neighbours():
    """Mutation: each by itself, which scatters more."""
    one, other = np.zeros((2, 128, 128), np.float32)
    for ky in range(1, 128):
        wave = _cosine((128, 128), ky, 0)
        one += wave
        other += wave * (1 if 40 <= ky < 44 else -1)  # band 10 of 32, 4 cosines each
    found = ring_correlation(one, other)
    np.testing.assert_allclose(
        found[[8, 9, 10, 11, 12]], [-1, -1 / 3, -1 / 3, -1 / 3, -1], atol=0.1
    )


def test_the_coarsest_structure_is_damped_less_than_its_band():
    """Mutation: the mean, too, is damped as the first band."""
    weight = of_cosines(np.full(16, 0.2), (64, 64))
    assert weight[0, 0] == 1
    assert 0.2 < weight[0, 1] < 1 and weight[0, 4] == pytest.approx(0.2)
