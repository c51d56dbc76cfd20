"""Optics: no light lost, the right width, the contract's grid."""

from __future__ import annotations

from math import erf

import numpy as np
import pytest
from scipy.special import j1

from training.optics import (
    AIRY_SIGMA,
    GaussianPsf,
    Psf,
    PupilPsf,
    image_formation,
    imaging_matrix,
    target_image,
)

SIGMAS_PX = [0.9, 1.4, 2.8]


def moments(profile: np.ndarray) -> tuple[float, float]:
    """Centroid and variance of a profile, in pixels."""
    x = np.arange(len(profile))
    centroid = np.sum(x * profile) / profile.sum()
    return float(centroid), float(np.sum((x - centroid) ** 2 * profile) / profile.sum())


@pytest.mark.parametrize("sigma_px", SIGMAS_PX)
def test_psf_and_binning_lose_no_light(sigma_px: float) -> None:
    """Catches a PSF that is not normalized, and binning by mean instead of sum.

    Emitters stay 6 sigma inside the field: 1e-5 leaves room for float32 only.
    """
    rng, margin = np.random.default_rng(1), int(np.ceil(3 * sigma_px))
    emission = np.zeros((3, 2 * (64 + 2 * margin), 2 * (48 + 2 * margin)), np.float32)
    inside = 2 * (margin + int(np.ceil(6 * sigma_px)))
    middle = emission[:, inside:-inside, inside:-inside]
    middle[...] = rng.random(middle.shape)
    image = image_formation(emission, sigma_px, margin, (64, 48))
    assert image.shape == (3, 64, 48)
    np.testing.assert_allclose(image.sum(axis=(1, 2)), emission.sum(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize("sigma_px", SIGMAS_PX)
@pytest.mark.parametrize("j", [70, 71])
def test_an_emitter_is_seen_with_the_width_of_the_psf_where_it_is(sigma_px: float, j: int) -> None:
    """Second moment sigma^2 + 1/12 (the pixel), centroid (j + 0.5) / 2 - 0.5.

    Catches a width in output px, a PSF sampled instead of integrated, or integrated twice, and a
    grid that is shifted by half an output pixel. Exact but for the tail beyond the field and
    float32: 1e-3 px is a hundredth of 1/12.
    """
    margin = 4
    profile = imaging_matrix(64, sigma_px, margin)[:, j + 2 * margin].astype(float)
    centroid, variance = moments(profile)
    assert centroid == pytest.approx((j + 0.5) / 2 - 0.5, abs=1e-3)
    assert variance == pytest.approx(sigma_px**2 + 1 / 12, abs=1e-3)


@pytest.mark.parametrize("sigma_px", SIGMAS_PX)
def test_the_psf_is_a_gaussian_integrated_over_each_pixel(sigma_px: float) -> None:
    """Catches any other shape of the same width, against a sum over 1000 points per pixel."""
    j, margin, fine = 40, 6, 1000
    centre = (j + 0.5) / 2  # of pixel edges: camera pixel i reaches from i to i + 1
    x = (np.arange(40 * fine) + 0.5) / fine
    density = np.exp(-0.5 * ((x - centre) / sigma_px) ** 2) / (np.sqrt(2 * np.pi) * sigma_px)
    expected = density.reshape(40, fine).mean(axis=1)
    profile = imaging_matrix(40, sigma_px, margin)[:, j + 2 * margin]
    np.testing.assert_allclose(profile, expected, atol=1e-6)


def test_an_image_is_the_product_of_its_profiles() -> None:
    """Catches swapped axes and another width along one axis."""
    margin, sigma_px = 4, 1.3
    emission = np.zeros((2 * (24 + 8), 2 * (40 + 8)), np.float32)
    emission[2 * margin + 20, 2 * margin + 61] = 3.0
    rows, columns = imaging_matrix(24, sigma_px, margin), imaging_matrix(40, sigma_px, margin)
    expected = 3 * np.outer(rows[:, 2 * margin + 20], columns[:, 2 * margin + 61])
    np.testing.assert_allclose(
        image_formation(emission, sigma_px, margin, (24, 40)), expected, atol=1e-6
    )


def test_light_from_beyond_the_edge_reaches_into_the_field() -> None:
    """Catches a margin that is cut off before the blur."""
    sigma_px, margin = 1.5, 5
    profile = imaging_matrix(32, sigma_px, margin)[:, 2 * margin - 1]  # 1/4 px outside
    expected = (1 - erf(0.25 / (np.sqrt(2) * sigma_px))) / 2
    assert profile.sum() == pytest.approx(expected, abs=1e-5)


def test_even_emission_gives_four_output_pixels_of_light_per_camera_pixel() -> None:
    """Catches a binning by mean, and a target in another unit than the frames."""
    sigma_px, margin = 1.2, 6
    emission = np.full((2 * (40 + 2 * margin),) * 2, 0.5, np.float32)
    frame = image_formation(emission, sigma_px, margin, (40, 40))
    target = target_image(emission, margin)
    assert target.shape == (80, 80)
    np.testing.assert_allclose(frame, 2.0, rtol=1e-4)  # 5 sigma of margin: 3e-7 of the light
    np.testing.assert_allclose(target, 2.0, rtol=1e-4)


def test_the_target_is_the_density_under_a_gaussian_of_0_8_output_px() -> None:
    """Catches another width, a width in camera px, a shift, and lost brightness.

    The taps end at 6 sigma; sampling a Gaussian of 0.8 px widens it by less than 1e-3.
    """
    margin = 3
    density = np.zeros((2 * (32 + 6), 2 * (48 + 6)), np.float32)
    density[2 * margin + 31, 2 * margin + 50] = 2.0
    target = target_image(density, margin).astype(float)
    assert target.sum() == pytest.approx(4 * 2.0, rel=1e-5)
    for axis, position in ((1, 31), (0, 50)):
        centroid, variance = moments(target.sum(axis=axis))
        assert centroid == pytest.approx(position, abs=1e-4)
        assert variance == pytest.approx(0.8**2, abs=2e-3)
    peak = target[31, 50] / target.sum()  # of a Gaussian: 1 / (2 pi sigma^2), 1 % by sampling
    assert peak == pytest.approx(1 / (2 * np.pi * 0.64), rel=0.01)


def pupil_image(psf: PupilPsf, at: tuple[int, int], size_px: int = 64) -> np.ndarray:
    """Image of one emitter at an output pixel of a field without margin."""
    emission = np.zeros((2 * size_px, 2 * size_px), np.float32)
    emission[at] = 1
    return psf.form(emission, 0, (size_px, size_px))


@pytest.mark.parametrize("sigma_px", SIGMAS_PX)
def test_a_pupil_in_focus_makes_an_airy_pattern(sigma_px: float) -> None:
    """Against (2 J1(v) / v)^2, v = 2 pi r NA / wavelength, summed over the pixels.

    Catches a wrong width, a pattern beside its place, and a pixel that is not integrated. The
    pattern's tails beyond the field come back around: 2 % of the peak is room for that.
    """
    image = pupil_image(PupilPsf(sigma_px), (63, 65))
    fine = 8
    at = (np.arange(64 * fine) + 0.5) / fine
    radius = np.hypot(*np.meshgrid(at - 63.5 / 2, at - 65.5 / 2, indexing="ij"))
    k = 2 * np.pi * AIRY_SIGMA / sigma_px
    v = k * radius + 1e-9
    exact = k**2 / (4 * np.pi) * (2 * j1(v) / v) ** 2  # light per square px
    exact = exact.reshape(64, fine, 64, fine).mean(axis=(1, 3))
    assert image.sum() == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(image, exact, atol=0.02 * exact.max())


@pytest.mark.parametrize("sigma_px", SIGMAS_PX)
def test_a_gaussian_of_its_width_is_nearest_to_an_airy_pattern(sigma_px: float) -> None:
    """Catches a width that means something else for pupils than for Gaussians."""
    image = pupil_image(PupilPsf(sigma_px), (63, 63))

    def distance(width: float) -> float:
        emission = np.zeros((128, 128), np.float32)
        emission[63, 63] = 1
        gaussian = GaussianPsf([(1.0, width * sigma_px)]).form(emission, 0, (64, 64))
        best = (gaussian * image).sum() / (gaussian**2).sum()
        return float(((image - best * gaussian) ** 2).sum())

    widths = np.linspace(0.8, 1.2, 41)
    assert widths[np.argmin([distance(w) for w in widths])] == pytest.approx(1, abs=0.06)


def test_defocus_widens_and_loses_no_light() -> None:
    """Mutation: the pupil's phase is left out."""
    sharp, wide = (pupil_image(PupilPsf(1.4, waves), (63, 63)) for waves in (0.0, 0.5))
    assert wide.max() < 0.7 * sharp.max()
    assert wide.sum() == pytest.approx(sharp.sum(), rel=1e-3)


def test_a_pupils_margin_is_cut_off() -> None:
    """Mutation: the image begins with the margin, or an output pixel beside it."""
    emission = np.zeros((2 * (32 + 8), 2 * (32 + 8)), np.float32)
    emission[8 + 30 : 8 + 32, 8 + 20 : 8 + 22] = 1  # the four output px of camera px (15, 10)
    image = PupilPsf(1.0).form(emission, 4, (32, 32))
    assert np.unravel_index(image.argmax(), image.shape) == (15, 10)
    y, x = (np.arange(32) * image.sum(axis=axis) for axis in (1, 0))
    assert (y.sum() / image.sum(), x.sum() / image.sum()) == pytest.approx((15, 10), abs=0.6)
    assert image[14, 10] == pytest.approx(image[16, 10], rel=1e-3)


@pytest.mark.parametrize("psf", [GaussianPsf([(0.7, 1.2), (0.3, 2.0)]), PupilPsf(1.2, 0.2)])
def test_a_specimen_that_moves_by_an_output_pixel_is_seen_there(psf: Psf) -> None:
    """Mutations: y and x exchanged, the sign, output px for camera px, one shift for all frames."""
    emission = np.zeros((2, 80, 80), np.float32)
    emission[:, 40, 30] = 1
    moved = np.roll(emission, (2, -3), axis=(1, 2))  # output px: 1 and -1.5 camera px
    away_px = np.array([[0.0, 0.0], [1.0, -1.5]])
    still, there = (psf.form(each, 4, (32, 32)) for each in (emission, moved))
    seen = psf.form(emission, 4, (32, 32), away_px)
    np.testing.assert_allclose(seen[0], still[0], atol=1e-6)
    np.testing.assert_allclose(seen[1], there[1], atol=1e-6)
