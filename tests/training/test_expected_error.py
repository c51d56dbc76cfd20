"""Training of what says how far an image may be off, and its calibration."""

from __future__ import annotations

import json

import numpy as np
import pytest

from device import expected_error as on_device
from device.expected_error import FEATURES, PART
from training import expected_error, simulators
from training.__main__ import main
from training.calibration import decile_table, deciles, section
from training.expected_error import trained


def test_what_most_pixels_are_within_is_learned(monkeypatch):
    """Mutations: the mean error; one error for all; a standard deviation, which the few that are
    far off make; features used as they are in training and normalized on the device."""
    monkeypatch.setattr(expected_error, "EPOCHS", 6)
    monkeypatch.setattr(expected_error, "BATCH", 256)
    rng = np.random.default_rng(0)
    found = rng.normal(3, 2, (40_000, FEATURES)).astype(np.float32)
    spread = np.exp(-2 + 0.4 * (found[:, 2] - 3))
    errors = spread * rng.normal(0, 1, len(found))
    errors[::50] *= 40  # far off
    estimator = trained(found[4000:], errors[4000:], seed=1)
    said = estimator.of_features(found[:4000])
    assert np.median(np.abs(np.log(said / spread[:4000]))) < 0.1
    for expected, actual, within in deciles(said, errors[:4000]):
        assert expected == pytest.approx(actual, rel=0.25)
        assert within == pytest.approx(PART, abs=0.1)


def test_tenths_go_by_what_was_expected():
    """Mutations: sorted by the actual error; its sign kept; the mean instead of a quantile."""
    expected = np.arange(1, 101)[::-1] / 100
    groups = deciles(expected, -2 * expected)
    assert groups[0] == pytest.approx((0.055, 2 * (0.01 + 0.68 * 0.09), 0))
    assert groups[9][0] == pytest.approx(0.955)
    said = decile_table({"thin": groups})
    assert "| thin: actual, % | 14.2 |" in said
    assert "| thin: pixels within | 0% |" in said


def test_the_card_says_how_often_it_is_off():
    """Mutation: the worst stack is left out."""
    stacks = [["thin", 0.1, 0.2, 0.5], ["thin", 0.2, 0.3, 0.7], ["thin", 0.4, 0.4, 0.9]]
    said = section({"stacks": stacks, "deciles": {"thin": [(0.1, 0.2, 0.5)] * 10}})
    within = (
        "Stack by stack 70% of the pixels are within what was expected (median; from 50% to 90%)"
    )
    assert within in " ".join(said.split())
    assert "rank correlation of 1.00" in " ".join(said.split())


def test_the_command_trains_and_says_of_what(tiny_settings, tmp_path, monkeypatch, capsys):
    """Mutations: a file that the device does not read; stacks of the training's own seeds."""
    monkeypatch.setattr(expected_error, "EPOCHS", 1)
    collected, seeds = simulators.collected, []

    def watched(one, given, workers):
        seeds.extend(given)
        return collected(one, given, workers)

    monkeypatch.setattr(simulators, "collected", watched)
    run = tmp_path / "error"
    options = ["--settings", str(tiny_settings), "--run", str(run), "--workers", "0"]
    words = ["expected_error", *options, "--stacks"]
    assert main([*words, "20"]) == 0
    estimator = on_device.load((run / "expected_error.npz").read_bytes())
    image = np.random.default_rng(1).random((64, 64))
    assert estimator.estimate(image, image[::2, ::2], image[::2, ::2], None).shape == (64, 64)
    about = json.loads((run / "expected_error.json").read_text())
    assert (about["stacks"], about["seed"]) == (20, 3)
    assert seeds[:2] == [(3, 5, 0), (3, 5, 1)]
    assert about["model"].endswith("int8")
    assert len(about["expected_actual_within"]) == 10
    assert main([*words, "19"]) == 2
    assert "at least 20 are needed" in capsys.readouterr().err


def test_calibration_needs_a_model_that_says_its_error(quantized_run, tmp_path, capsys):
    """Mutation: an internal fault instead of a sentence."""
    models = tmp_path / "models"
    release = ["release", "--run", str(quantized_run), "--version", "0.1.0"]
    assert main([*release, "--models", str(models), "--no-evaluation"]) == 0
    model = models / "learn2sofi-0.1.0-int8.tflite"
    assert main(["calibration", "--model", str(model), "--out", str(tmp_path)]) == 2
    assert "does not say how far it may be off" in capsys.readouterr().err
