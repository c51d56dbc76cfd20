"""How far a reconstruction may be off: what tells of it, and what the shipped model says."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from device import expected_error
from device.expected_error import FEATURES, FLOOR, ErrorEstimator, features
from device.model import load_step
from device.reconstructor import error_inputs, reconstruct_window, said_error
from training import scenes
from training.forward_model import WINDOW

SHAPE = (24, 20)


def given(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image, a mean and a deviation, normalized."""
    rng = np.random.default_rng(seed)
    image = rng.gamma(2, 0.2, (2 * SHAPE[0], 2 * SHAPE[1]))
    return image, rng.gamma(2, 0.2, SHAPE), rng.gamma(2, 0.05, SHAPE)


@pytest.fixture(scope="module")
def shipped() -> ErrorEstimator:
    estimator = load_step().expected_error
    assert estimator is not None
    return estimator


def test_every_feature_is_on_the_output_grid_and_finite():
    """Mutations: rows and columns exchanged; the logarithm of nothing."""
    image, mean, std = given()
    for psf in (None, 1.2):
        found = features(image, mean, std, psf)
        assert len(found) == FEATURES
        for plane in found:
            assert (plane.shape, plane.dtype) == (image.shape, np.float32)
            assert np.isfinite(plane).all()
    assert np.isfinite(features(0 * image, 0 * mean, 0 * std, None)).all()


@pytest.mark.parametrize("at_once", [1, 90, 10**6])
def test_the_error_is_the_same_however_many_pixels_are_computed_at_once(
    shipped, at_once, monkeypatch
):
    """Mutations: a strip left out, or put in another's place."""
    expected = shipped.estimate(*given(), 1.1)
    monkeypatch.setattr(expected_error, "PIXELS_AT_ONCE", at_once)
    np.testing.assert_allclose(shipped.estimate(*given(), 1.1), expected, rtol=1e-5)


def test_what_is_mirrored_has_a_mirrored_error(shipped):
    """Mutations: an image that is enlarged off its grid; a gradient with a direction."""
    image, mean, std = given()
    error = shipped.estimate(image, mean, std, 1.3)
    mirrored = shipped.estimate(image[:, ::-1], mean[:, ::-1], std[:, ::-1], 1.3)
    np.testing.assert_allclose(mirrored[:, ::-1], error, rtol=1e-3)


@pytest.mark.parametrize("kind", ["rods, speckle", "filaments, blinking"])
def test_noise_makes_the_error_larger(shipped, kind):
    """Mutation: the deviation is not looked at. (Of pixels at random it knows nothing.)"""
    rng = np.random.default_rng(11)
    frames = np.stack([*islice(scenes.draw_scene(kind, 64, rng).frames(rng), WINDOW)])
    image, mean, std, psf = error_inputs(reconstruct_window(load_step(), frames))
    as_it_is, noisy = (shipped.estimate(image, mean, times * std, psf) for times in (1, 4))
    assert noisy.mean() > 1.1 * as_it_is.mean()


def test_what_is_saved_can_be_read_again(shipped):
    """Mutations: a layer is lost; one of another number of features, which ends the daemon."""
    again = expected_error.load(shipped.save())
    np.testing.assert_array_equal(again.estimate(*given(), 1.0), shipped.estimate(*given(), 1.0))
    fewer = replace(shipped, centre=shipped.centre[1:], spread=shipped.spread[1:])
    for content in (b"", b"PK nothing", shipped.save()[:500], fewer.save()):
        with pytest.raises(ValueError, match="no error estimator"):
            expected_error.load(content)


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_the_error_that_is_said_is_about_the_error_that_there_is(kind):
    """Mutations: counts for normalized values, or the other way round; no floor.

    68 % of such pixels are to be within; on these scenes, which are smoother than most of the
    training's, more are, and what is said is up to four times the mean error.
    """
    rng = np.random.default_rng(11)
    scene = scenes.draw_scene(kind, 64, rng)
    frames = np.stack([*islice(scene.frames(rng), WINDOW)])
    step = load_step()
    result = reconstruct_window(step, frames)
    off, said = np.abs(result.image - scene.truth()), said_error(step, result)
    assert np.mean(off <= said + FLOOR * result.scaling.scale) > 0.6
    assert 1 / 3 < said.mean() / off.mean() < 6
