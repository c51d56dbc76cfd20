"""Fluctuation: speckle as interference, blinking as a Markov chain, against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import j0, j1

from training.fluctuation import Blinking, SpeckleExcitation

NEW_EACH_FRAME = 4.0  # rad: exp(-16 / 2) of the field is left after one frame


def speckle(**changes: float) -> SpeckleExcitation:
    values = {"modes": 20, "grain_px": 4.0, "cone_rad": np.pi, "contrast": 1.0}
    return SpeckleExcitation(**values | {"phase_step_rad": NEW_EACH_FRAME} | changes)  # type: ignore[arg-type]


def within(values: np.ndarray, expected: float, largest_error: float) -> None:
    """Assert that a mean is within 5 of its standard errors, and that these are small enough."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert 5 * error < largest_error
    assert abs(values.mean() - expected) < 5 * error


@pytest.mark.parametrize("contrast", [0.3, 1.0])
def test_speckle_has_mean_1_and_the_contrast_of_its_modes(contrast: float) -> None:
    """Catches unnormalized amplitudes and a contrast that scales the mean or the variance.

    N waves with Rayleigh amplitudes share their energy as a flat Dirichlet distribution, so that
    the variance of the intensity is 1 - E[sum p^2] = 1 - 2 / (N + 1); contrast multiplies the
    standard deviation.
    """
    rng = np.random.default_rng(1)
    draws = np.stack([speckle(contrast=contrast).patterns(24, (12, 12), rng) for _ in range(150)])
    within(draws.mean(axis=(1, 2, 3)), 1.0, 0.03)
    variance = ((draws - 1) ** 2).mean(axis=(1, 2, 3)) / contrast**2
    within(variance, 1 - 2 / 21, 0.1)


def test_speckle_is_nowhere_negative_and_even_at_contrast_0() -> None:
    """Catches a field taken for an intensity, and contrast that does not mix with even light."""
    rng = np.random.default_rng(1)
    assert speckle().patterns(5, (32, 32), rng).min() >= 0
    assert speckle(contrast=0.25).patterns(5, (32, 32), rng).min() >= 0.75
    np.testing.assert_array_equal(speckle(contrast=0.0).patterns(3, (8, 8), rng), 1.0)


@pytest.mark.parametrize("grain_px", [4.0, 8.0])
def test_the_finest_fringe_has_the_period_of_the_grain(grain_px: float) -> None:
    """Catches a wave number that is off by a factor of two, or another along one axis.

    Waves from all round differ by vectors of length 2 k sin(u), u uniform: of the power, the part
    1 - asin(0.9) / (pi / 2) = 0.29 lies in the last tenth below the cut-off 2 k, none above it. The
    Hann window smears by 2 / 128 cycles per px, hence the margin.
    """
    n, rng = 128, np.random.default_rng(2)
    draws = [speckle(grain_px=grain_px).patterns(2, (n, n), rng) for _ in range(40)]
    patterns = np.concatenate(draws)  # (80, n, n)
    window = np.hanning(n)[:, None] * np.hanning(n)
    power = np.mean(np.abs(np.fft.fft2((patterns - 1) * window)) ** 2, axis=0)
    fy, fx = np.meshgrid(np.fft.fftfreq(n), np.fft.fftfreq(n), indexing="ij")
    radius, margin = np.hypot(fy, fx) * grain_px, 2 * grain_px / n
    power[radius < 2 * margin] = 0  # what a finite number of patterns leaves of the mean
    power /= power.sum()
    assert power[radius > 1 + margin].sum() < 0.01
    assert 0.2 < power[radius > 0.9].sum() < 0.6
    along_y, along_x = (power * fy**2).sum(), (power * fx**2).sum()
    assert along_y / along_x == pytest.approx(1, abs=0.25)  # 40 draws of 20 directions


@pytest.mark.parametrize("step_rad", [0.3, 1.0, NEW_EACH_FRAME])
def test_speckle_changes_as_fast_as_its_phases_walk(step_rad: float) -> None:
    """The intensity of one frame and the next correlate by exp(-step^2).

    Catches phases drawn anew instead of walked, a walk of all modes together, and a step that is
    not per frame. 600 independent draws of 20 modes: five standard errors are below 0.1.
    """
    rng = np.random.default_rng(3)
    draws = [speckle(phase_step_rad=step_rad).patterns(2, (10, 10), rng) - 1 for _ in range(600)]
    pairs = np.stack(draws)  # (600, 2, 10, 10)
    power = np.mean(pairs**2)
    within((pairs[:, 0] * pairs[:, 1]).mean(axis=(1, 2)) / power, np.exp(-(step_rad**2)), 0.16)


@pytest.mark.parametrize(("on_fraction", "on_time"), [(0.05, 0.5), (0.3, 4.0), (0.5, 1.0)])
def test_emitters_are_on_for_their_fraction_from_the_first_frame_on(
    on_fraction: float, on_time: float
) -> None:
    """Catches a start that is not stationary, and rates that are swapped."""
    on = Blinking(on_fraction, on_time).brightness(12, 20_000, np.random.default_rng(1))
    for frame in (0, 11):
        within(on[frame], on_fraction, 0.03)


@pytest.mark.parametrize(("on_fraction", "on_time"), [(0.1, 2.0), (0.3, 4.0), (0.5, 1.0)])
def test_blinking_is_forgotten_at_the_rate_of_both_transitions(
    on_fraction: float, on_time: float
) -> None:
    """From lag 1 to lag 2 the covariance falls by exp(-1 / (on_time (1 - on_fraction))).

    Off transitions come at the rate 1 / on_time, both together at 1 / (on_time (1 - on_fraction));
    the average over an exposure changes the covariances, not this ratio. Catches a time in
    sub-steps taken for frames and a mean off time in place of the mean on time. 0.04 is five
    standard errors (40,000 emitters, 20 pairs each, seen in repeats to scatter by 0.006).
    """
    on = Blinking(on_fraction, on_time).brightness(22, 40_000, np.random.default_rng(4))
    on -= on_fraction
    lag_1, lag_2 = (np.mean(on[:-lag] * on[lag:]) for lag in (1, 2))
    assert lag_2 / lag_1 == pytest.approx(np.exp(-1 / (on_time * (1 - on_fraction))), abs=0.04)


@pytest.mark.parametrize("on_time", [0.3, 1.0, 8.0])
def test_exposures_see_emitters_on_for_a_part_of_the_frame(on_time: float) -> None:
    """Catches blinking in step with the frames: values would be 0 and 1 only.

    An exposure is whole or empty when its three moments agree; each pair agrees as the chain says.
    """
    f = 0.4
    decay = np.exp(-1 / (3 * on_time * (1 - f)))
    stay_on, stay_off = f + (1 - f) * decay, (1 - f) + f * decay
    partial = 1 - f * stay_on**2 - (1 - f) * stay_off**2
    on = Blinking(f, on_time).brightness(6, 30_000, np.random.default_rng(5))
    thirds = on * 3
    np.testing.assert_allclose(thirds, np.rint(thirds), atol=1e-5)
    assert set(np.rint(thirds).astype(int).ravel()) == {0, 1, 2, 3}
    within(np.mean((on > 0.1) & (on < 0.9), axis=0), partial, 0.02)


def test_bleaching_is_exponential_and_for_good() -> None:
    """Catches a bleaching rate taken for a time, and emitters that come back."""
    blinking = Blinking(0.999, 100.0, bleach_time_frames=20.0)
    on = blinking.brightness(60, 5_000, np.random.default_rng(6))
    for frame in (5, 20, 40):
        within(on[frame], 0.999 * np.exp(-frame / 20), 0.05)
    dark_long = np.all(on[20:26] == 0, axis=0)  # 1000 frames of off time are unheard of here
    assert dark_long.sum() > 1000
    assert np.mean(on[26:, dark_long]) < 0.002
    unbleached = Blinking(0.999, 100.0).brightness(60, 5_000, np.random.default_rng(6))
    within(unbleached[59], 0.999, 0.005)


def test_a_seed_is_a_fluctuation() -> None:
    """Catches randomness from elsewhere than `rng`."""
    for one, two in ((7, 7), (7, 8)):
        a, b = (Blinking(0.2, 1.0).brightness(4, 50, np.random.default_rng(s)) for s in (one, two))
        assert np.array_equal(a, b) == (one == two)
        a, b = (speckle().patterns(3, (8, 9), np.random.default_rng(s)) for s in (one, two))
        assert a.shape == (3, 8, 9)
        assert a.dtype == np.float32
        assert np.array_equal(a, b) == (one == two)


@pytest.mark.parametrize("through_objective", [False, True])
def test_speckle_has_the_grain_of_its_aperture(through_objective: bool) -> None:
    """Goodman, Speckle Phenomena in Optics: the intensity correlates over a distance r as
    ``J0(k r)^2`` behind a ring of directions, ``(2 J1(k r) / (k r))^2`` behind a full aperture.

    Mutation: frequencies evenly over the aperture's radius instead of its area. 20 sets of 60 waves
    leave an error of some 0.03.
    """
    k, lags = np.pi / 6, np.array([2, 4, 6, 8])
    found = []
    for seed in range(20):
        waves = SpeckleExcitation(60, 6.0, np.pi, 4.0, 1.0, fills_aperture=through_objective)
        patterns = waves.patterns(60, (48, 48), np.random.default_rng(seed)) - 1
        products = [(patterns[:, :, :-lag] * patterns[:, :, lag:]).mean() for lag in lags]
        found.append(np.array(products) / (patterns**2).mean())
    expected = 2 * j1(k * lags) / (k * lags) if through_objective else j0(k * lags)
    np.testing.assert_allclose(np.mean(found, axis=0), expected**2, atol=0.07)
