"""The information of two emitters obeys the physics that it is made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training import fisher, frozen
from training.fisher import Blinking, Pair
from training.frozen_specimens import Emitters

SIGMA_PX = 1.4
PAIR = Pair(1.7, 0.3, 120.0, 90.0, 6.0, SIGMA_PX)
PARAMETERS = ("distance_px", "centre_px", "first_e", "second_e")


def error_px(information: np.ndarray, frames: int = 30) -> float:
    return fisher.distance_error_px(information, frames)


def moved(name: str, by: float) -> Pair:
    return replace(PAIR, **{name: getattr(PAIR, name) + by})


def test_what_is_expected_is_what_the_frozen_set_integrates() -> None:
    """Catches a PSF of another width, a place that is shifted, and brightnesses exchanged.

    A path of code of its own; beyond 4 sigma, where the field ends, is less than 1e-3 of the light.
    """
    edges = np.arange(fisher.COLUMNS + 1) - fisher.COLUMNS / 2
    x = np.array([-0.85 + 0.3, 0.85 + 0.3])
    emitters = Emitters(np.zeros(2), x, np.ones(2))
    whole = frozen.integrate(emitters, PAIR.brightness_e[:, None], SIGMA_PX, edges)[0]
    cut = (fisher.COLUMNS - fisher.ROWS) // 2
    found = PAIR.expectation(np.ones((1, 2))).reshape(fisher.ROWS, fisher.COLUMNS)
    np.testing.assert_allclose(found, whole[cut:-cut] + 6.0, atol=1e-9)
    assert 209.5 < (found - 6.0).sum() < 210.0


@pytest.mark.parametrize("place", range(4), ids=PARAMETERS)
def test_the_expectation_has_the_gradient_it_says(place: int) -> None:
    """Catches a wrong sign or factor in any derivative; second-order differences err by 1e-6."""
    relative, step = np.array([[0.7, 0.4]]), 1e-4
    up, down = (moved(PARAMETERS[place], by).expectation(relative)[0] for by in (step, -step))
    analytic = (PAIR.combination(relative) @ PAIR.basis())[0, place]
    np.testing.assert_allclose(analytic, (up - down) / (2 * step), atol=1e-6)
    assert np.abs(analytic).max() > 1e-3


@pytest.mark.parametrize("place", range(4), ids=PARAMETERS)
@pytest.mark.parametrize("members", [1, 3])
def test_the_score_is_the_gradient_of_the_likelihood(place: int, members: int) -> None:
    """Catches states weighted by what they are before the counts are seen, and a lost term."""
    blinking, step = Blinking(0.3, members), 1e-4
    rng = np.random.default_rng(1)
    states = blinking.states[rng.integers(len(blinking.states), size=8)]
    counts = rng.poisson(PAIR.expectation(states)).astype(np.float64)
    up, down = (
        fisher.log_likelihood(moved(PARAMETERS[place], by), counts, blinking)
        for by in (step, -step)
    )
    analytic = fisher.scores(PAIR, counts, blinking)[:, place]
    np.testing.assert_allclose(analytic, (up - down) / (2 * step), rtol=1e-4, atol=1e-5)


def test_the_score_is_zero_on_average() -> None:
    """Catches states drawn with other weights than the likelihood's.

    Over the states by their weights; 5 standard errors.
    """
    blinking, rng = Blinking(0.3), np.random.default_rng(2)
    mean, variance = np.zeros(4), np.zeros(4)
    expected = PAIR.expectation(blinking.states)
    for state, weight in zip(expected, blinking.weights, strict=True):
        counts = rng.poisson(state, (4000, state.size)).astype(np.float64)
        score = fisher.scores(PAIR, counts, blinking)
        mean += weight * score.mean(axis=0)
        variance += weight**2 * score.var(axis=0) / len(counts)
    assert np.all(np.abs(mean) < 5 * np.sqrt(variance))


def test_information_adds_up_over_frames() -> None:
    """Catches a bound that falls otherwise than with the root of the number of frames.

    Also: two frames of half the light each, background and all, are one of the whole.
    """
    told = fisher.from_known_states(PAIR, Blinking(0.3))
    assert error_px(told, 120) == pytest.approx(error_px(told, 30) / 2)
    half = replace(PAIR, first_e=60.0, second_e=45.0, floor_e=3.0)
    assert error_px(fisher.from_mean(half, 1.0), 60) == pytest.approx(
        error_px(fisher.from_mean(PAIR, 1.0), 30)
    )


def test_emitters_that_are_always_on_tell_no_more_in_frames_than_in_their_mean() -> None:
    """Catches a mean without its noise, and a scale lost in the simulated information.

    2,000 frames give the information to 3 % or so; told is exact.
    """
    mean = fisher.from_mean(PAIR, 1.0)
    np.testing.assert_allclose(fisher.from_known_states(PAIR, Blinking(1.0)), mean, rtol=1e-12)
    rng = np.random.default_rng(3)
    unknown = fisher.from_unknown_states(PAIR, Blinking(1.0), 2000, rng)
    assert error_px(unknown) == pytest.approx(error_px(mean), rel=0.05)
    even = np.ones((5, 2))
    free = fisher.from_unknown_excitation(PAIR, even)
    assert error_px(free) == pytest.approx(error_px(mean), rel=1e-9)


def test_the_bound_falls_with_the_root_of_the_photons() -> None:
    """Catches a noise that is not that of photons; the floor, 1e-9, is no background."""
    dark = replace(PAIR, floor_e=1e-9)
    bright = replace(dark, first_e=400.0, second_e=300.0)
    dark = replace(dark, first_e=100.0, second_e=75.0)
    for told in (fisher.from_mean(dark, 0.2), fisher.from_known_states(dark, Blinking(0.2))):
        assert np.isfinite(error_px(told))
    ratio = error_px(fisher.from_mean(dark, 0.2)) / error_px(fisher.from_mean(bright, 0.2))
    assert ratio == pytest.approx(2.0, rel=1e-3)


def test_one_emitter_alone_is_located_as_thompson_says() -> None:
    """Catches a wrong unit. Far apart, the distance is known as well as two places are.

    Sigma over the root of the photons each (Thompson et al., Biophys. J. 82, 2775, 2002, with the
    pixel's 1/12 added to the variance), without background; the field holds 4 sigma beside them.
    """
    far = Pair(8.0, 0.0, 200.0, 200.0, 1e-9, 1.0)
    expected = np.sqrt(2 * (1 + 1 / 12) / (30 * 200.0))
    assert error_px(fisher.from_mean(far, 1.0)) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("distance", [0.4, 1.0, 2.5])
def test_frames_tell_no_less_than_their_mean_and_no_more_than_if_they_were_told(
    distance: float,
) -> None:
    """Catches a mixture with a wrong posterior: what is computed from data tells no more than they.

    3 % are for the simulation.
    """
    pair = replace(PAIR, distance_px=distance * SIGMA_PX, first_e=100.0, second_e=100.0)
    rng = np.random.default_rng(4)
    for blinking in (Blinking(0.1), Blinking(0.5), Blinking(0.3, 3)):
        mean = error_px(fisher.from_mean(pair, blinking.on_fraction))
        unknown = error_px(fisher.from_unknown_states(pair, blinking, 1000, rng))
        told = error_px(fisher.from_known_states(pair, blinking))
        assert told < 1.03 * unknown < 1.03 * 1.03 * mean
    light = fisher.excitation(pair, 0.95, 2000, rng)
    mean = error_px(fisher.from_mean(pair, 1.0))
    free = error_px(fisher.from_unknown_excitation(pair, light))
    assert error_px(fisher.from_known_excitation(pair, light)) < free < 1.03 * mean


def test_many_emitters_together_hardly_fluctuate() -> None:
    """Catches members that blink as one: of 12 with the same light the frames tell much less."""
    gains = [
        error_px(fisher.from_mean(PAIR, 0.2))
        / error_px(fisher.from_known_states(PAIR, Blinking(0.2, members)))
        for members in (1, 12)
    ]
    assert gains[0] > 1.5 * gains[1] > 1.5


@pytest.mark.parametrize(("aperture", "distance"), [(0.5, 1.0), (0.95, 1.0), (0.95, 3.0)])
def test_speckle_at_both_emitters_is_alike_where_they_are_near(
    aperture: float, distance: float
) -> None:
    """Catches a field taken for the intensity, and an aperture upside down.

    Intensity correlates as the square of the field, and is exponential: its variance is 1. Of
    40,000 draws 3 to 4 standard errors are 0.02 for the correlation, 0.05 for the variance.
    """
    pair = replace(PAIR, distance_px=distance * SIGMA_PX)
    light = fisher.excitation(pair, aperture, 40_000, np.random.default_rng(5))
    np.testing.assert_allclose(light.mean(axis=0), 1.0, atol=0.02)
    np.testing.assert_allclose(light.var(axis=0), 1.0, atol=0.06)
    u = 2 * np.pi * 0.21 * aperture * distance
    # J1(u) by its integral: (1 / pi) int cos(t - u sin t) dt over 0 to pi
    t = (np.arange(2000) + 0.5) * np.pi / 2000
    bessel = np.cos(t - u * np.sin(t)).mean()
    found = np.corrcoef(light.T)[0, 1]
    assert found == pytest.approx((2 * bessel / u) ** 2, abs=0.025)


def test_no_information_is_no_estimate() -> None:
    """Catches a bound of 0, or a crash, of emitters at one place."""
    assert error_px(fisher.from_mean(replace(PAIR, distance_px=0.0), 1.0)) == np.inf
    assert error_px(np.zeros((4, 4))) == np.inf
