"""One condition is varied at a time, and what is averaged belongs together."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from training import evaluate, sweeps, trials
from training.baselines import REFERENCE
from training.frozen_specimens import MARGIN_PX

FEW = {
    "frames": (8, 30),
    "photons": (25.0, 100.0),
    "psf_sigma_px": (1.4, 2.4),
    "strength": (0.0, 1.0),
}


@pytest.fixture(scope="module")
def content() -> sweeps.Content:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "SWEEPS", FEW)
        return sweeps.measure([], 2, 0)


def test_one_condition_is_varied_at_a_time() -> None:
    """Catches a sweep that leaves another condition changed, and a base that is no point of it."""
    base = asdict(sweeps.BASE)
    for name, values in sweeps.SWEEPS.items():
        assert base[name] in values
        for value in values:
            found = asdict(sweeps.conditions_at((name, value), "speckle"))
            assert found.pop("fluctuation") == "speckle"
            assert found.pop(name) == value
            assert found.items() <= base.items()


def test_each_family_is_seen_under_both_fluctuations() -> None:
    """Catches families that only blink."""
    seen = {
        (n % 4, next(iter(scores)).fluctuation)
        for n in range(sweeps.STACKS)
        for scores in [_conditions(n)]
    }
    assert len(seen) == 8


def _conditions(number: int) -> dict[trials.Conditions, dict[str, float]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "SWEEPS", {"frames": (2,)})
        return sweeps.do(sweeps.Job("thin", number, ()))


def test_a_specimen_is_the_middle_of_its_field() -> None:
    """Catches a field without its margin, which would be dark at the border, and a shift."""
    emitters = sweeps.specimen("continuous", 3)  # a sheet, all over the field
    for place in (emitters.y_px, emitters.x_px):
        assert -0.5 - MARGIN_PX <= place.min() < -0.5 - MARGIN_PX + 1
        assert sweeps.SIZE_PX - 1.5 + MARGIN_PX < place.max() <= sweeps.SIZE_PX - 0.5 + MARGIN_PX
    again = sweeps.specimen("continuous", 3)
    np.testing.assert_array_equal(emitters.brightness, again.brightness)


def test_more_light_is_better_and_a_steady_specimen_has_no_sofi(content: sweeps.Content) -> None:
    """Catches points in another order, and methods or kinds exchanged.

    30 frames of 100 photons: a mean over 8 frames or of 25 photons must be worse; without
    fluctuation SOFI sees noise alone, a dB or more below what it sees with it.
    """
    for kind in sweeps.KINDS:
        mean = content["psnr_db"][kind][REFERENCE]
        assert mean["frames"][1] == mean["photons"][1] == mean["strength"][1]  # all the base
        assert mean["frames"][0] < mean["frames"][1] - 0.1
        assert mean["photons"][0] < mean["photons"][1] - 0.1
    sofi = content["psnr_db"]["thin"]["SOFI-2 linearized"]["strength"]
    assert sofi[0] < sofi[1] - 1.0
    assert content["psnr_db"]["thin"][REFERENCE]["strength"][0] > sofi[0]


def test_who_is_told_the_width_is_told_that_of_the_point(content: sweeps.Content) -> None:
    """Catches the base's width told at every point: deconvolution with it would win by nothing
    where the PSF is wider."""
    told, blind = (content["psnr_db"]["thin"][name] for name in (trials.INFORMED, "RL blind, 80"))
    assert told["frames"] == blind["frames"]  # the base's width is what blind assumes
    assert told["psf_sigma_px"][1] > blind["psf_sigma_px"][1] + 0.5


def test_our_network_is_told_the_width() -> None:
    """Catches a model that is blind under the name of one that is told."""
    steps = trials.loaded(evaluate.default_models())
    frames = np.random.default_rng(1).poisson(50, (30, 32, 32)).astype(np.uint16)
    for name in steps:
        blind = trials.methods(steps)[name](frames)
        told = trials.told_methods(steps, 2.0)[f"{name}, PSF told"](frames)
        assert np.abs(told - blind).max() > 0.01 * np.ptp(blind)


def test_the_report_has_every_number(content: sweeps.Content, tmp_path: Path) -> None:
    """Catches a lost table, plot, or file."""
    sweeps.report(content, tmp_path)
    assert json.loads((tmp_path / "sweeps.json").read_text()) == json.loads(json.dumps(content))
    text = (tmp_path / "sweeps.md").read_text()
    assert text.count("| RL blind, 20 |") == 2 * len(FEW)
    assert (tmp_path / "sweeps.png").read_bytes()[:4] == b"\x89PNG"
    section = sweeps.section(content, "model.sweeps.png")
    assert "(model.sweeps.png)" in section and "photons per frame 100" in section
