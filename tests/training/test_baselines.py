"""The methods to beat do what their names say, on the contract's grid."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import erf

from training import baselines, frozen, metrics


def spot(y: float, x: float, sigma: float, size: int = 32) -> np.ndarray:
    """A Gaussian of unit sum, integrated over pixels, (size, size)."""
    edges = np.arange(size + 1) - 0.5
    rows, columns = (
        0.5 * np.diff(erf((edges - centre) / (np.sqrt(2) * sigma))) for centre in (y, x)
    )
    return np.outer(rows, columns)


def centroid(image: np.ndarray) -> tuple[float, float]:
    axis, total = np.arange(image.shape[0]), image.sum()
    return float(image.sum(1) @ axis / total), float(image.sum(0) @ axis / total)


def flickering(seed: int = 0, frames: int = 400) -> np.ndarray:
    """A spot at (15.3, 12.8) of fluctuating brightness on a noisy background, (T, 32, 32)."""
    rng = np.random.default_rng(seed)
    brightness = 2000.0 * (rng.random(frames).repeat(4)[:frames] < 0.3)
    clean = 100.0 + brightness[:, None, None] * spot(15.3, 12.8, 1.5)
    return rng.poisson(clean).astype(np.uint16)


@pytest.mark.parametrize("name", list(baselines.methods()))
def test_every_method_keeps_the_grid(name: str) -> None:
    """Catches [::2], align-corners and a half-pixel shift, in each of the methods."""
    image = baselines.methods()[name](flickering()).astype(np.float64)
    assert image.shape == (64, 64) and np.isfinite(image).all()
    # Around the maximum only: noise further out has lever. What is left moves it by below 0.2.
    peak = np.clip(image - np.percentile(image, 90), 0, None)
    window = np.zeros_like(peak)
    window[24:40, 19:35] = peak[24:40, 19:35]
    assert centroid(window) == pytest.approx((2 * 15.3 + 0.5, 2 * 12.8 + 0.5), abs=0.2)


def test_statistics_over_time_are_what_they_are() -> None:
    """Catches statistics over space, of interpolated frames, or with different ddof."""
    frames = flickering(1, 30)
    np.testing.assert_allclose(
        baselines.mean(frames), baselines.enlarged(np.mean(frames, 0)), rtol=1e-6
    )
    np.testing.assert_allclose(
        baselines.variance(frames), baselines.enlarged(np.std(frames, 0) ** 2), rtol=1e-4
    )
    np.testing.assert_allclose(
        baselines.standard_deviation(frames), baselines.enlarged(np.std(frames, 0)), rtol=1e-6
    )


@pytest.mark.parametrize("method", [baselines.sofi2, baselines.xc_sofi2])
def test_second_cumulants_leave_the_noise_out(method: baselines.Method) -> None:
    """Catches lag 0 of a pixel with itself, in which the shot noise remains."""
    frames = np.random.default_rng(2).poisson(400.0, (400, 32, 32))
    # Variance 400; a product of independent noises averages to 400 / sqrt(400) = 20 a pixel, and
    # over 1024 pixels to below 1.
    assert baselines.variance(frames).mean() == pytest.approx(400.0, rel=0.05)
    assert abs(method(frames).mean()) < 6.0


@pytest.mark.parametrize("name", list(baselines.methods()))
def test_borders_are_no_different(name: str) -> None:
    """Catches padding that pairs a pixel with itself, or a border of zeros."""
    frames = np.random.default_rng(4).poisson(400.0, (300, 48, 48))
    image = baselines.methods()[name](frames)
    inner = image[16:-16, 16:-16]
    rim = np.concatenate([image[:2].ravel(), image[-2:].ravel(), image[:, :2].ravel()])
    # Means over 48 independent pixels at least: off by 3 of their standard errors is 0.43 of the
    # spread, and a pixel paired with itself is off by tens.
    assert abs(rim.mean() - inner.mean()) < 1.0 * image[4:-4, 4:-4].std()


def test_cumulants_have_their_order_and_linearization_undoes_it() -> None:
    """Catches exchanged orders, and a root that is not taken or of the wrong degree."""
    frames = flickering(3).astype(np.float64)
    for method, order in ((baselines.sofi2, 2), (baselines.xc_sofi2, 2), (baselines.sofi3, 3)):
        ratio = method(10.0 * frames).max() / method(frames).max()
        assert ratio == pytest.approx(10.0**order, rel=1e-4)
        linear = (
            method(10.0 * frames, linearized=True).max() / method(frames, linearized=True).max()
        )
        assert linear == pytest.approx(10.0, rel=1e-4)
        assert np.isfinite(method(frames, linearized=True)).all()


def test_third_cumulant_is_of_three_successive_frames() -> None:
    """Catches a repeated lag, which leaves noise in, by values worked out by hand."""
    series = np.array([0.0, 3.0, 0.0, 6.0, 0.0, 3.0])  # mean 2
    frames = np.broadcast_to(series[:, None, None], (6, 16, 16))
    change = [-2.0, 1.0, -2.0, 4.0, -2.0, 1.0]
    expected = np.mean([change[k] * change[k + 1] * change[k + 2] for k in range(4)])
    np.testing.assert_allclose(baselines.sofi3(frames), expected, rtol=1e-6)


def test_richardson_lucy_sharpens_to_the_spot_and_keeps_the_light() -> None:
    """Catches sigma in output px where input px are meant, and a kernel that is not normalized."""
    sigma = 1.5
    image = 1e4 * spot(31.0, 30.0, 2 * sigma, 64)
    estimate = baselines.deconvolved(image, 2 * sigma, 100)
    assert estimate.sum() == pytest.approx(image.sum(), rel=0.01)
    assert estimate.min() >= 0.0
    assert estimate.max() > 4 * image.max()
    assert centroid(estimate.astype(np.float64)) == pytest.approx((31.0, 30.0), abs=0.05)
    np.testing.assert_allclose(baselines.deconvolved(image, 3.0, 0), image, atol=0.01)


def test_richardson_lucy_takes_the_background_off() -> None:
    """Catches a background left in, which damps the deconvolution, and negative input."""
    frames = 1e4 * np.broadcast_to(spot(15.0, 15.0, 1.4), (3, 32, 32))
    bare = baselines.richardson_lucy(frames, 20)
    lifted = baselines.richardson_lucy(frames + 500.0, 20)
    assert lifted.max() == pytest.approx(bare.max(), rel=0.01)
    assert lifted.min() >= 0.0


def test_richardson_lucy_on_the_cumulant_sharpens_what_blinks() -> None:
    """Mutations: the cumulant itself, whose spots are narrower, or the mean, is deconvolved."""
    rng = np.random.default_rng(2)
    on = np.repeat(rng.random(60) < 0.5, 2)  # two frames long, so that neighbours correlate
    frames = 1e3 * on[:, None, None] * spot(15.0, 15.0, 1.4)
    image = baselines.richardson_lucy_on_sofi2(frames, 10)
    assert image.max() > 2 * baselines.sofi2(frames, linearized=True).max()
    assert centroid(image.astype(np.float64)) == pytest.approx((30.5, 30.5), abs=0.1)
    still = baselines.richardson_lucy_on_sofi2(np.ones((10, 32, 32)) * spot(15.0, 15.0, 1.4), 10)
    assert still.max() < 1e-3


def test_richardson_lucy_with_the_true_sigma_beats_the_mean_on_a_frozen_stack() -> None:
    """Catches a deconvolution with an exchanged or doubled sigma: it gains 5 dB here."""
    stack = frozen.generate(frozen.recipes()[9])
    known = baselines.informed_methods(stack.recipe.psf_sigma_px)
    gain = metrics.psnr_db(known["RL true sigma, 80"](stack.frames), stack.target)
    gain -= metrics.psnr_db(baselines.mean(stack.frames), stack.target)
    assert 4.0 < gain < 7.0


def test_radial_fluctuations_come_only_with_nanopyx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an import that is required, or names that vanish without reason."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert baselines.radial_fluctuations() == {}
    assert "mean (bicubic)" in baselines.methods()


def test_radial_fluctuations_are_averaged_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation: the first frame's radiality, or the first row of an image, is taken for all.

    The stand-in returns what nanopyx 2.1 does: SRRF a radiality map per frame, eSRRF one image.
    """

    def per_frame(frames: np.ndarray, magnification: int) -> np.ndarray:
        return frames.repeat(magnification, axis=1).repeat(magnification, axis=2)

    def averaged(frames: np.ndarray, magnification: int) -> np.ndarray:
        return per_frame(frames, magnification).mean(axis=0)

    stand_in = SimpleNamespace(SRRF=per_frame, eSRRF=averaged)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", lambda name: stand_in)
    frames = np.random.default_rng(1).random((5, 8, 9))
    expected = averaged(frames, 2)
    for method in baselines.radial_fluctuations().values():
        np.testing.assert_allclose(method(frames), expected, rtol=1e-6)
