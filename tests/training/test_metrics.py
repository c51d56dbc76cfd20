"""The scores are those of the contract."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from training import metrics


def picture(seed: int = 0, size: int = 96) -> np.ndarray:
    """Smooth, positive, with bright and empty places."""
    rng = np.random.default_rng(seed)
    image = gaussian_filter(rng.random((size, size)) ** 8, 1.2)
    return image / image.max()


def test_psnr_is_the_contracts_formula() -> None:
    """Catches another percentile, no clip, a peak of 1, a fit without offset, a cropped frame."""
    truth = picture(1) ** 2
    truth[5, 5] = 9.0  # clipped to 1.5, so that the peak is 1.5
    prediction = 3.0 * truth + 7.0 + np.random.default_rng(2).normal(0, 0.2, truth.shape)
    reference = np.clip(truth / np.percentile(truth, 99.9), 0.0, 1.5)
    design = np.stack([prediction.ravel(), np.ones(truth.size)], axis=1)
    solution = np.linalg.lstsq(design, reference.ravel(), rcond=None)[0]
    error = np.mean((design @ solution - reference.ravel()) ** 2)
    # Two routes to one least-squares fit in float64: equal to nine digits.
    assert reference.max() == 1.5
    assert metrics.psnr_db(prediction, truth) == pytest.approx(
        10 * np.log10(1.5**2 / error), abs=1e-9
    )


def test_psnr_does_not_depend_on_scale_or_offset_but_on_noise() -> None:
    """Catches a fit of the truth to the prediction, whose error then shrinks with the scale."""
    truth = picture(3)
    noisy = truth + np.random.default_rng(4).normal(0, 0.05, truth.shape)
    score = metrics.psnr_db(noisy, truth)
    assert metrics.psnr_db(250.0 * noisy - 40.0, truth) == pytest.approx(score, abs=1e-9)
    assert metrics.psnr_db(noisy.astype(np.float32), truth) == pytest.approx(score, abs=1e-3)
    assert metrics.psnr_db(2 * noisy - truth, truth) < score - 3.0


def test_half_an_output_pixel_costs_a_good_picture_dear() -> None:
    """Catches a score blind to the grid: the contract quotes 29 dB for half a pixel's shift."""
    truth = gaussian_filter(np.random.default_rng(5).random((128, 128)) ** 40, 0.8)
    shifted = 0.5 * (truth + np.roll(truth, 1, axis=1))
    assert 20.0 < metrics.psnr_db(shifted, truth) < 35.0


def test_perfect_is_infinite_and_constant_is_finite() -> None:
    """Catches a division by zero at either end."""
    truth = np.zeros((16, 16))
    truth[4:12, 4:12] = 1.0
    assert metrics.psnr_db(truth, truth) == float("inf")
    # A constant is fitted by the truth's mean 1/4: error 3/16 at peak 1.
    assert metrics.psnr_db(np.full((16, 16), 3.0), truth) == pytest.approx(
        10 * np.log10(16 / 3), abs=1e-9
    )


def test_empty_truth_is_refused() -> None:
    """Catches a silent NaN."""
    with pytest.raises(ValueError, match="above 0"):
        metrics.psnr_db(picture(), np.zeros((96, 96)))


def test_ssim_and_nrmse_judge_the_fitted_picture() -> None:
    """Catches scores of the raw prediction, which scale and offset would ruin."""
    truth = picture(6)
    noisy = truth + np.random.default_rng(7).normal(0, 0.05, truth.shape)
    for fitted in (noisy, 80.0 * noisy + 500.0):
        assert metrics.ssim(fitted, truth) == pytest.approx(metrics.ssim(noisy, truth), abs=1e-9)
    assert metrics.ssim(5.0 * truth + 1.0, truth) == pytest.approx(1.0, abs=1e-9)
    assert metrics.ssim(noisy, truth) < 0.95
    reference = metrics.normalized_truth(truth)
    residual = metrics.affine_fit(noisy, reference) - reference
    expected = np.sqrt(np.mean(residual**2) / np.mean(reference**2))
    assert metrics.nrmse(9.0 * noisy, truth) == pytest.approx(expected, rel=1e-9)


def test_pearson_of_a_constant_is_zero() -> None:
    """Catches NaN where an image is flat, and a sign lost."""
    image = picture()
    assert metrics.pearson(image, np.full_like(image, 2.0)) == 0.0
    assert metrics.pearson(image, 5.0 - 3.0 * image) == pytest.approx(-1.0, abs=1e-12)


@pytest.mark.parametrize("sigma", [1.6, 2.7, 5.5])
def test_rsp_finds_the_blur(sigma: float) -> None:
    """Catches a sigma in input px, a blur after binning, binning by [::2], a clipped range."""
    reconstruction = picture(8)
    widefield = 40.0 + 300.0 * metrics.binned(
        gaussian_filter(reconstruction, sigma, mode="nearest")
    )
    found, _ = metrics.best_blur(widefield, reconstruction)
    # A bounded scalar search to 1e-5 of the correlation's flat top: a percent of sigma.
    assert found == pytest.approx(sigma, rel=0.02)
    assert metrics.rsp(widefield, reconstruction) == pytest.approx(1.0, abs=1e-5)
    # The residual error in the unit of the widefield, whose contrast is some ten of 300.
    assert metrics.rse(widefield, reconstruction) < 0.5


def test_rsp_falls_with_invented_structure_and_rse_is_in_counts() -> None:
    """Catches an RSP that only sees that both are pictures; an RSE without the affine fit."""
    truth = picture(9)
    widefield = 300.0 * metrics.binned(gaussian_filter(truth, 2.0))
    invented = 0.5 * truth + 0.5 * picture(10)
    assert metrics.rsp(widefield, invented) < 0.9
    ratio = metrics.rse(10 * widefield, invented) / metrics.rse(widefield, invented)
    assert ratio == pytest.approx(10.0, rel=1e-6)
    assert metrics.rse(widefield, 7 * invented + 3) == pytest.approx(
        metrics.rse(widefield, invented), rel=1e-3
    )


def test_binning_is_by_area() -> None:
    """Catches [::2], which shifts by half an output pixel."""
    image = np.arange(24.0).reshape(4, 6)
    np.testing.assert_allclose(metrics.binned(image), [[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]])


def test_odd_even_sees_detail_alone() -> None:
    """Catches an odd/even correlation that smooth structure carries, or of the low pass."""
    rng = np.random.default_rng(11)
    smooth = 25.0 * gaussian_filter(rng.random((128, 128)), 12.0)
    assert smooth.std() > 0.1  # twice the noise: unfiltered, the two would correlate by 0.8
    noise = rng.normal(0.0, 0.05, (2, 128, 128))
    # 16,384 independent pixels: standard error 0.008.
    assert abs(metrics.odd_even(smooth + noise[0], smooth + noise[1])) < 0.05
    detail = rng.normal(0.0, 0.05, (128, 128))
    both = metrics.odd_even(detail + noise[0], detail + noise[1])
    assert both == pytest.approx(0.5, abs=0.05)


def test_sharpness_falls_with_blur_and_ignores_noise() -> None:
    """Catches variances in place of covariances, which noise would raise, and S upside down."""
    rng = np.random.default_rng(12)
    truth = picture(12, 128)
    noise = rng.normal(0.0, 0.05, (2, 128, 128))
    clean = metrics.sharpness(truth, truth)
    assert metrics.sharpness(truth + noise[0], truth + noise[1]) == pytest.approx(clean, rel=0.1)
    blurred = gaussian_filter(truth, 2.0)
    assert metrics.sharpness(blurred, blurred) < 0.7 * clean
    assert metrics.sharpness(3 * truth + 1, 3 * truth + 1) == pytest.approx(clean, rel=1e-9)
    assert metrics.sharpness(np.zeros((9, 9)), np.zeros((9, 9))) == 0.0


def test_frc_cutoff_follows_the_blur() -> None:
    """Catches a frequency per image, a threshold at 0.5, rings counted from 0."""
    rng = np.random.default_rng(13)
    white = rng.normal(0.0, 1.0, (128, 128))
    noise = rng.normal(0.0, 0.02, (2, 128, 128))
    assert metrics.frc_cutoff(white, white) == 0.5
    assert metrics.frc_cutoff(noise[0], noise[1]) < 0.06
    sigma = 3.0
    signal = gaussian_filter(white, sigma, mode="wrap")
    cutoff = metrics.frc_cutoff(signal + noise[0], signal + noise[1])
    # Correlation 1/7 where the signal's power is a sixth of the noise's:
    # exp(-(2 pi f sigma)^2) = 0.02^2 / 6. One ring in 64 and the noise of a ring: 10 %.
    expected = np.sqrt(np.log(6 / 0.02**2)) / (2 * np.pi * sigma)
    assert cutoff == pytest.approx(expected, rel=0.1)


def test_frc_refuses_unequal_images() -> None:
    """Catches rings of different frequencies compared with each other."""
    with pytest.raises(ValueError, match="two equal squares"):
        metrics.frc_cutoff(np.zeros((8, 8)), np.zeros((8, 10)))
