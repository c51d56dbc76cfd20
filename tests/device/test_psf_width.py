"""What the frames tell of the PSF's width, and what the network is told of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from device import psf_width
from device.model import load_step
from device.psf_width import (
    APART,
    CAUTION,
    LARGEST_ERROR,
    SQUARED_DISTANCES,
    PsfEstimate,
    PsfWatch,
    PsfWidthEstimator,
    features,
)

FRAMES = 30


def blinking(sigma_px: float, seed: int = 0, photons: float = 300.0) -> np.ndarray:
    """Emitters along a ring that are on now and then, seen through a Gaussian, (30, 96, 96)."""
    rng = np.random.default_rng(seed)
    frames = np.zeros((FRAMES, 96, 96))
    turn = rng.uniform(0, 2 * np.pi, 400)
    y, x = (48 + 30 * np.array([np.sin(turn), np.cos(turn)])).round().astype(int)
    for frame in frames:
        np.add.at(frame, (y, x), (rng.random(400) < 0.2).astype(float))
    spread = ndimage.gaussian_filter(frames, (0, sigma_px, sigma_px))
    light = photons * spread / spread.mean(axis=0).max() + 20
    return ((rng.poisson(light) - 20) / photons).astype(np.float32)


@pytest.mark.parametrize("sigma_px", [1.0, 1.6, 2.2])
def test_the_covariance_of_blinking_falls_as_the_psfs_autocorrelation(sigma_px):
    """Mutations: neighbours that are not independent of the noise; sums instead of averages over
    pairs; distances squared twice."""
    ratios = features(blinking(sigma_px))[: len(SQUARED_DISTANCES) - 1]
    expected = np.exp(-(np.array(SQUARED_DISTANCES[1:6]) - 1) / (4 * sigma_px**2))
    np.testing.assert_allclose(ratios[:5], expected, atol=0.08)


def steady(sigma_px: float, seed: int = 0) -> np.ndarray:
    """A specimen that does not fluctuate, under shot noise, (30, 96, 96)."""
    light = 20 + 300 * blinking(sigma_px, seed).mean(axis=0).clip(0)
    return ((np.random.default_rng(seed).poisson(light, (FRAMES, 96, 96)) - 20) / 300).astype("f4")


def interpolated(frames: np.ndarray) -> np.ndarray:
    """Every other pixel replaced by the mean of its four neighbours, as a Bayer sensor's green."""
    cross = np.array([[[0, 1, 0], [1, 0, 1], [0, 1, 0]]]) / 4
    green = np.indices(frames.shape[1:]).sum(axis=0) % 2 == 0
    return np.where(green, frames, ndimage.convolve(frames, cross)).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_where_nothing_fluctuates_nothing_is_said(seed):
    """Mutations: the width of whatever the mean image shows; neighbours that an interpolation has
    brought together; noise that is the same for dark and for bright pixels."""
    assert features(steady(1.4, seed)) is None
    assert features(interpolated(steady(2.0, seed))) is None
    assert features(np.random.default_rng(seed).normal(0, 0.1, (FRAMES, 64, 64))) is None


@pytest.mark.parametrize("photons", [10.0, 300.0])
def test_faint_blinking_is_told_from_noise(photons):
    """Mutation: a fixed part of the variance is asked for, or far more than noise would make."""
    assert features(blinking(1.4, photons=photons)) is not None
    assert features(interpolated(blinking(1.4, photons=photons))) is not None


def test_the_noise_of_the_covariance_is_what_noise_makes_of_it():
    """Mutations: pairs counted twice, or pixels instead of pairs; the mean variance squared."""
    rng = np.random.default_rng(7)
    spread = np.where(rng.random((64, 64)) < 0.1, 10.0, 1.0)  # hot pixels
    found = []
    for _ in range(200):
        noise = rng.normal(0, spread, (FRAMES, 64, 64))
        found.append([psf_width._covariances(noise)[1 + APART], psf_width._noise_of(noise)])
    covariance, said = np.array(found).T
    assert said.mean() == pytest.approx(covariance.std(), rel=0.15)


def test_scale_and_place_of_the_field_do_not_matter_to_the_covariance():
    """Mutation: what lies around the edges is counted."""
    frames = blinking(1.4)
    count = len(SQUARED_DISTANCES)
    np.testing.assert_allclose(features(3 * frames)[:count], features(frames)[:count], atol=1e-3)
    np.testing.assert_allclose(features(np.flip(frames, 2)), features(frames), atol=1e-3)
    np.testing.assert_allclose(features(frames.transpose(0, 2, 1)), features(frames), atol=1e-3)


def test_of_a_large_field_the_middle_is_looked_at():
    """Mutation: all of it, which takes as long as a reconstruction."""
    noise = np.random.default_rng(2).normal(size=(4, 300, 280))
    frames = ndimage.gaussian_filter(noise, (0, 1.5, 1.5)).astype(np.float32)
    np.testing.assert_array_equal(features(frames), features(frames[:, 22:278, 12:268]))


@pytest.mark.parametrize(
    "frames",
    [np.ones((30, 32, 32)), np.random.default_rng(5).random((3, 32, 32))]
    + [np.random.default_rng(5).random((30, *shape)) for shape in ((16, 64), (31, 31))],
)
def test_where_too_little_is_seen_nothing_is_said(frames):
    """Mutations: 0 / 0; halves of too few frames; bands without a frequency in small fields."""
    assert features(frames) is None


@pytest.fixture(scope="module")
def shipped() -> PsfWidthEstimator:
    estimator = load_step().psf_width
    assert estimator is not None
    return estimator


@pytest.mark.parametrize("sigma_px", [1.0, 1.4, 2.0])
def test_the_shipped_estimator_finds_the_width_of_blinking_emitters(shipped, sigma_px):
    """Mutations: features in another order than in the training; another logarithm."""
    found = shipped.estimate(blinking(sigma_px, seed=3))
    assert abs(np.log(found.sigma_px / sigma_px)) < 2 * found.relative_error
    assert found.relative_error < 0.2


def test_it_knows_less_of_faint_blinking(shipped):
    """Mutation: the error that is expected is a constant."""
    faint, bright = (shipped.estimate(blinking(1.4, photons=n)) for n in (4.0, 300.0))
    assert faint.relative_error > 2 * bright.relative_error


def test_less_than_found_is_told_and_of_the_unsure_nothing():
    """Mutations: more instead of less; told whatever the error."""
    assert PsfEstimate(1.5, 0.1).told_px == pytest.approx(1.5 * np.exp(-0.1 * CAUTION))
    assert PsfEstimate(1.5, LARGEST_ERROR + 0.01).told_px is None


def test_what_is_saved_can_be_read_again(shipped):
    """Mutations: a layer is lost; one of another number of features, which ends the daemon."""
    again = psf_width.load(shipped.save())
    frames = blinking(1.3)
    assert again.estimate(frames) == shipped.estimate(frames)
    fewer = replace(shipped, centre=shipped.centre[1:], spread=shipped.spread[1:])
    for content in (b"", b"PK nothing", shipped.save()[:500], fewer.save()):
        with pytest.raises(ValueError, match="no PSF width estimator"):
            psf_width.load(content)


class Scripted:
    """Estimates what it is told to, one after the other."""

    def __init__(self, *estimates: PsfEstimate | None) -> None:
        self.left, self.asked = list(estimates), 0

    def estimate(self, frames: np.ndarray) -> PsfEstimate | None:
        self.asked += 1
        return self.left.pop(0)


def test_a_series_is_looked_at_once_per_buffer_of_new_frames():
    """Mutations: at every frame, which costs a third of a step; before the buffer is full."""
    script = Scripted(PsfEstimate(1.0, 0.1), PsfEstimate(2.0, 0.1), None)
    watch = PsfWatch(script, 5)
    told = []
    for index in range(100, 115):
        buffered = min(5, index - 99)
        if watch.see(index, buffered, lambda: np.zeros((5, 8, 8))):
            told.append((index, watch.estimate.sigma_px))
    assert [index for index, _ in told] == [104, 109]
    assert [sigma for _, sigma in told] == pytest.approx([1.0, np.sqrt(2.0)])
    assert script.asked == 3


def test_the_surer_estimate_counts_more_and_a_reset_forgets():
    """Mutations: a plain average; an estimate that outlives its series."""
    watch = PsfWatch(Scripted(PsfEstimate(1.0, 0.1), PsfEstimate(2.0, 0.2)), 1)
    for index in range(2):
        watch.see(index, 1, lambda: np.zeros((1, 8, 8)))
    assert watch.estimate.sigma_px == pytest.approx(2 ** (1 / 5))
    watch.look_again()
    assert watch.estimate is not None
    watch.reset()
    assert watch.estimate is None


def test_frames_that_count_anew_are_looked_at_again():
    """Mutation: a camera that begins at 0 again is never looked at."""
    watch = PsfWatch(Scripted(PsfEstimate(1.0, 0.1), PsfEstimate(1.0, 0.1)), 2)
    assert watch.see(1000, 2, lambda: np.zeros((2, 8, 8)))
    assert watch.see(1, 2, lambda: np.zeros((2, 8, 8)))


def test_replacing_a_network_changes_the_estimate(shipped):
    """Mutation: only the first of the networks is asked."""
    swapped = replace(shipped, biases=tuple(b + (k == 2) for k, b in enumerate(shipped.biases)))
    frames = blinking(1.4)
    assert swapped.estimate(frames).sigma_px > 2 * shipped.estimate(frames).sigma_px
