"""Stacks for the other measurements: what was asked for is what the camera sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from device.errors import UserError
from training import baselines, frozen, trials
from training.frozen_specimens import Emitters
from training.trials import Conditions

SIZE_PX = 24
BASE = Conditions("blinking", photons=200.0, psf_sigma_px=1.4)


def emitters(count: int = 300, seed: int = 0) -> Emitters:
    y, x = np.random.default_rng(seed).uniform(4, SIZE_PX - 5, (2, count))
    return Emitters(y, x, np.ones(count))


def test_photons_are_those_of_the_brightest_pixels() -> None:
    """Catches a scale by the total, by the peak emitter or by the mean; quantum efficiency twice.

    1,200 emitters, on for a tenth of the time: the light of 30 frames scatters by some 3 %, that
    of the brightest few pixels by 10.
    """
    points = emitters(1200)
    factor = BASE.photons / trials.brightest(points, BASE.psf_sigma_px, SIZE_PX)
    seen = trials.scaled(points, factor)
    frames = trials.expose(seen, BASE, SIZE_PX, np.random.default_rng(1))
    assert frames.shape == (30, SIZE_PX, SIZE_PX) and frames.dtype == np.uint16
    sensor = trials.SENSOR
    counts = frames.mean(axis=0) - sensor.offset_adu
    photons = counts / sensor.adu_per_photon - trials.BACKGROUND * BASE.photons
    assert np.percentile(photons, 99.9) == pytest.approx(BASE.photons, rel=0.25)
    inside = frozen.integrate(
        seen, seen.brightness[:, None], BASE.psf_sigma_px, trials.edges_px(SIZE_PX)
    )
    assert photons.sum() == pytest.approx(inside.sum(), rel=0.1)


@pytest.mark.parametrize("fluctuation", trials.FLUCTUATIONS)
def test_strength_scales_the_fluctuation_and_not_the_mean(
    fluctuation: frozen.Fluctuation,
) -> None:
    """Catches a strength that dims the specimen, or is not linear; 0 must not fluctuate at all."""
    spreads = {}
    for strength in (0.0, 0.5, 1.0):
        conditions = replace(BASE, fluctuation=fluctuation, strength=strength, frames=120)
        change = trials.relative_brightness(np.random.default_rng(3), emitters(), conditions)
        assert change.shape == (300, 120)
        assert change.mean() == pytest.approx(1.0, abs=0.12)
        spreads[strength] = change.std()
    assert spreads[0.0] == 0.0
    assert spreads[0.5] == pytest.approx(spreads[1.0] / 2, rel=1e-9)
    assert spreads[1.0] > 0.3


def test_fewer_frames_are_the_first_ones() -> None:
    """Catches a sweep over frames whose points differ by more than their frames."""
    few, many = (
        trials.expose(emitters(), replace(BASE, frames=n), SIZE_PX, np.random.default_rng(5))
        for n in (4, 9)
    )
    np.testing.assert_array_equal(few, many[:4])


@pytest.mark.parametrize("frames", [30, 60])
def test_a_specimen_that_drifts_is_in_its_place_in_the_middle_of_the_last_30(frames: int) -> None:
    """Mutations: a drift that begins there, or ends there; one of 30 frames spread over all."""
    one = Emitters(np.array([15.0]), np.array([16.0]), np.array([1e5]))
    conditions = replace(BASE, strength=0.0, frames=frames, drift_px=2.0, photons=100.0)
    seen = trials.expose(one, conditions, 32, np.random.default_rng(1)).astype(float)
    seen -= np.median(seen)
    y, x = ((seen.sum(axis=axis) * np.arange(32)).sum(axis=1) / seen.sum((1, 2)) for axis in (2, 1))
    np.testing.assert_allclose((y[-30:].mean(), x[-30:].mean()), (15.0, 16.0), atol=0.05)
    np.testing.assert_allclose((y[-1] - y[-30], x[-1] - x[-30]), (1.2, 1.6), atol=0.2)


def test_the_target_lies_on_the_contracts_grid() -> None:
    """Catches a target shifted by half an output px, or of another width."""
    one = Emitters(np.array([10.0]), np.array([7.25]), np.ones(1))
    target = trials.target_of(one, SIZE_PX)
    assert target.shape == (2 * SIZE_PX, 2 * SIZE_PX)
    assert target.sum() == pytest.approx(1.0, rel=1e-6)
    rows, columns = np.indices(target.shape)
    assert (target * rows).sum() == pytest.approx(2 * 10.5 - 0.5, abs=1e-6)
    assert (target * columns).sum() == pytest.approx(2 * 7.75 - 0.5, abs=1e-6)
    variance = (target * (rows - 20.5) ** 2).sum()
    assert variance == pytest.approx(0.8**2 + 1 / 12, rel=1e-3)  # 1/12: that of the pixel


def test_classical_methods_are_there_without_a_model() -> None:
    """Catches a curve that is lost from the plots."""
    assert set(trials.methods({})) == set(trials.COMPARED)
    assert {baselines.REFERENCE, "RL blind, 20", "RL blind, 80"} < set(trials.COMPARED)


def test_results_come_in_the_order_of_the_jobs() -> None:
    """Catches results that are handed to other jobs."""
    assert trials.spread(len, ["a", "bbb", "cc"], workers=0) == [1, 3, 2]
    assert trials.spread(len, ["a", "bbb", "cc"], workers=1) == [1, 3, 2]


def test_a_negative_number_of_processes_is_refused(tmp_path: Path) -> None:
    """Catches a traceback out of the pool."""
    import argparse

    parser = argparse.ArgumentParser()
    trials.add_arguments(parser)
    with pytest.raises(UserError, match="--workers is -1"):
        trials.models_of(parser.parse_args(["--workers", "-1", "--out", str(tmp_path)]))
