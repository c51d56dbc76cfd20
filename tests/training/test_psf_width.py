"""Training of what finds the PSF's width: simulated features, networks, and what they are worth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from device import psf_width as on_device
from training import psf_width
from training.__main__ import main
from training.forward_model import simulate
from training.mixture import ALSO_PART
from training.psf_width import Asked, judged, report, trained


@pytest.fixture(scope="module")
def examples() -> tuple[np.ndarray, np.ndarray]:
    """Features of which one tells the width, and another how well it does; the rest is noise."""
    rng = np.random.default_rng(0)
    found = rng.normal(0, 1, (1200, 6)).astype(np.float32)
    spread = np.where(found[:, 1] > 0, 0.3, 0.03)
    log_sigma = 0.3 + 0.3 * found[:, 0] + spread * rng.normal(0, 1, 1200)
    return found, np.exp(log_sigma)


def test_the_width_is_learned_and_how_far_it_may_be_wrong(examples, monkeypatch):
    """Mutations: the width instead of its logarithm; an error that is one number for all; features
    that are used as they are in training and normalized on the device."""
    monkeypatch.setattr(psf_width, "EPOCHS", 30)
    found, sigma_px = examples
    estimator = trained(found[200:], sigma_px[200:], seed=1)
    groups = judged(estimator, found[:200], sigma_px[:200])
    assert groups[0][1] < 0.08
    assert 0.2 < groups[-1][1] < 0.45
    assert groups[0][0] < groups[-1][0] / 2
    assert groups[-1][0] == pytest.approx(groups[-1][1], rel=0.5)


def test_the_table_says_what_was_expected_and_what_came() -> None:
    """Mutation: the two columns exchanged."""
    assert "| 2 of 2 | 20 % | 30 % |" in report([(0.1, 0.1), (0.2, 0.3)])


def test_the_command_simulates_once_and_trains_again(tiny_settings, tmp_path, monkeypatch, capsys):
    """Mutations: stacks that are simulated anew for the same settings, or taken for others."""
    monkeypatch.setattr(psf_width, "EPOCHS", 2)
    run = tmp_path / "psf"
    options = ["--settings", str(tiny_settings), "--run", str(run), "--workers", "0"]
    words = ["psf_width", *options, "--size-px", "32", "--stacks"]
    assert main([*words, "50"]) == 0
    first = (run / psf_width.ESTIMATOR).read_bytes()
    about = json.loads((run / psf_width.ABOUT).read_text())
    assert (about["stacks"], about["size_px"]) == (50, 32)
    flickering = gaussian_filter(np.random.default_rng(1).random((30, 32, 32)), (0, 1.5, 1.5))
    assert on_device.load(first).estimate(flickering)
    monkeypatch.setattr(psf_width, "simulated", None)  # cannot be called
    assert main([*words, "50"]) == 0
    assert (run / psf_width.ESTIMATOR).read_bytes() == first
    with pytest.raises(TypeError):
        main([*words, "51"])
    for wrong, said in (
        (["7"], "at least 50 are"),
        (["50", "--size-px", "8"], "at least 32 is"),
        (["50", "--also-part", "2"], "--also-part is 2; give a number from 0 to 1"),
        (["50", "--also-part", "0.3"], "--also-part is a part of nothing"),
    ):
        assert main([*words, *wrong]) == 2
        assert said in capsys.readouterr().err


def test_the_command_asks_for_what_it_is_told(tiny_settings, tmp_path, monkeypatch):
    """Mutations: the first settings' model twice; another part than the one given."""

    def noted(asked: Asked, workers: int) -> None:
        given.append(asked)
        raise InterruptedError

    given: list[Asked] = []
    monkeypatch.setattr(psf_width, "simulated", noted)
    words = ["psf_width", "--settings", str(tiny_settings), "--run", str(tmp_path / "psf")]
    for more in ([], ["--also", "original_drawn", "--also-part", "0.3"]):
        with pytest.raises(InterruptedError):
            main([*words, *more])
    alone, both = given
    assert len(alone.models) == 1
    assert both.also_part == 0.3
    assert both.models[0] == alone.models[0]
    assert [model.photons for model in both.models[1:]] == [(100.0, 100.0)]


@pytest.fixture
def asked(tiny_settings: Path) -> Asked:
    """Six stacks of 32 px."""
    from training import settings as settings_file

    settings = settings_file.load(str(tiny_settings))
    drawn = [settings.forward_model], ALSO_PART, settings.dataset.normalization
    return Asked(*drawn, settings.seed, stacks=6, size_px=32)


def test_another_number_of_workers_simulates_the_same(asked: Asked):
    """Mutation: a seed that depends on the process."""
    alone, shared = (psf_width.simulated(asked, workers) for workers in (0, 1))
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_part_of_the_stacks_is_drawn_by_the_other_settings(asked: Asked):
    """Mutations: the other settings never, or always; a stack that is another one for having been
    chosen; what was drawn not said beside the networks."""
    bright = {"photons": (1000, 1000), "speckle_contrast": (1, 1)}  # so that all of them fluctuate
    narrow, wide = (
        asked.models[0].model_copy(update={"psf_sigma_px": each, **bright})
        for each in ((1, 1.2), (2.5, 3.0))
    )
    ours, mixed, theirs = (
        replace(asked, models=[narrow, wide], also_part=part, stacks=12) for part in (0.0, 0.4, 1.0)
    )
    of_ours, of_both, of_theirs = (
        psf_width.simulated(each, 0)[1] for each in (ours, mixed, theirs)
    )
    assert of_ours.max() < 2.5 < of_theirs.min()
    wider = of_both > 2.5
    assert 0 < wider.sum() < 12
    np.testing.assert_array_equal(of_both[~wider], of_ours[~wider])
    rng = np.random.default_rng((asked.seed, psf_width.PSF_WIDTH, 0))
    assert of_ours[0] == simulate(narrow, 30, (32, 32), rng).psf_sigma_px
    assert mixed.content()["also_part"] == 0.4
    assert mixed.content()["also_forward_model"]["psf_sigma_px"] == [2.5, 3.0]
    assert "also_part" not in asked.content()


def test_a_stack_of_which_nothing_can_be_told_is_left_out(asked: Asked, monkeypatch):
    """Mutation: None among the features."""
    some = iter([(np.zeros(3), 1.0), None, (np.ones(3), 2.0)])
    monkeypatch.setattr(psf_width, "psf_example", lambda *_: next(some))
    found, sigma_px = psf_width.simulated(replace(asked, stacks=3), 0)
    assert found.shape == (2, 3)
    np.testing.assert_array_equal(sigma_px, [1.0, 2.0])
