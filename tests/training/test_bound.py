"""The report says what the bounds are, and from where on two emitters are resolved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from device.errors import UserError
from training import bound, fisher
from training.__main__ import main


@pytest.fixture(scope="module")
def content() -> bound.Content:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bound, "ON_FRACTIONS", (0.05, 1.0))
        patch.setattr(bound, "PHOTONS", (25.0, 400.0))
        patch.setattr(bound, "MEMBERS", (1, 4))
        return bound.measure(120, 0)


def test_a_condition_is_what_it_says(content: bound.Content) -> None:
    """Catches conditions and bounds in another order, and sigma taken for pixels."""
    assert [f["photons"] for f in content["blinking"]] == [25.0, 25.0, 400.0, 400.0]
    for found in content["blinking"]:
        pair = bound.pair_at(bound.DISTANCES[5], found["photons"])
        information = fisher.from_mean(pair, found["on_fraction"])
        expected = fisher.distance_error_px(information, 30) / bound.PSF_SIGMA_PX
        assert found["mean"][5] == pytest.approx(expected, rel=1e-3)
    for found in (content["blinking"][1], content["blinking"][3]):  # always on
        # 120 frames give the bound to 10 % or so; told is exact but for the rounding
        assert bound.ratios(found, "known") == pytest.approx(1.0, rel=1e-3)
        assert bound.ratios(found, "unknown")[5] == pytest.approx(1.0, abs=0.3)
        assert found["never_on"] == 0.0
    rare = content["blinking"][2]
    assert bound.ratios(rare, "unknown")[5] > 2.0


def test_background_and_photons_are_those_of_the_trials() -> None:
    """Catches photons taken for electrons, and a background of all pixels' light."""
    pair = bound.pair_at(2.0, 400.0)
    assert pair.distance_px == pytest.approx(2.8)
    assert pair.brightness_e == pytest.approx([300.0, 300.0])
    assert 4.0 + 2.0 < pair.floor_e < 4.0 + 2.5  # 2 e read noise; a tenth of 300 e * 0.077


def test_resolved_is_where_the_bound_falls_below_half_of_the_distance() -> None:
    """Catches another part of the distance, and a distance at which it only passes by."""
    distances = np.array(bound.DISTANCES)
    found = {"mean": 0.25 * np.ones(len(distances)), "frames": distances}
    assert bound.resolved(found, "mean") == pytest.approx(0.5)
    assert bound.resolved(found, "frames") is None
    found["frames"] = 0.1 * distances
    assert bound.resolved(found, "frames") == bound.DISTANCES[0]
    passing = np.where(distances == 1.0, 0.1, 0.8)  # below half at 1, not at 1.5, again at 2
    last = bound.resolved({"mean": passing}, "mean")
    assert last is not None and 1.5 < last < 2.0


def test_the_chance_that_one_is_never_on() -> None:
    """Catches both for one of them: (1 - p)^30 of either, (1 - 0.02)^30 = 0.545."""
    assert bound.never_on(0.02) == pytest.approx(1 - (1 - 0.5455) ** 2, abs=1e-3)
    assert bound.never_on(0.02, 16) == pytest.approx(2 * 0.98**480, rel=1e-3)


def test_the_error_is_that_of_repetitions() -> None:
    """Catches a jackknife without its factor: of batches that scatter by 10 %, a half of it."""
    rng = np.random.default_rng(6)

    def draw(count: int) -> np.ndarray:
        assert count == 25
        return np.eye(4) * rng.normal(1.0, 0.1)

    found = [bound.estimated(draw, 100) for _ in range(400)]
    scatter = np.std([value for value, _ in found])
    errors = np.sqrt(np.mean([error**2 for _, error in found]))
    assert errors == pytest.approx(scatter, rel=0.15)


def test_the_report_has_every_number(content: bound.Content, tmp_path: Path) -> None:
    """Catches a lost table, plot, or file, and sentences whose numbers are not the tables'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bound, "PHOTONS", (25.0, 400.0))
        bound.report(content, tmp_path)
        said = bound.sentences(content)
    assert json.loads((tmp_path / "bound.json").read_text()) == json.loads(json.dumps(content))
    text = (tmp_path / "bound.md").read_text()
    assert "(bound.png)" in text and said in text
    assert text.count("| 25 |") == 2 + len(bound.APERTURES)
    assert (tmp_path / "bound.png").read_bytes()[:4] == b"\x89PNG"
    low, high = bound.span(content["speckle"], "unknown")
    assert f"{low:.2f} to {high:.2f} times" in said
    rare = content["blinking"][2]
    assert f"on in 5% of the frames, from {bound.resolved(rare, 'mean'):.2f} sigma" in said


@pytest.mark.parametrize(("option", "value"), [("--samples", "3"), ("--workers", "-1")])
def test_too_few_samples_are_refused(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a jackknife over empty batches, and a folder left behind."""
    out = tmp_path / "out"
    assert main(["bound", option, value, "--out", str(out)]) == UserError.exit_code
    assert f"{option} is {value}; give" in capsys.readouterr().err
    assert not out.exists()
