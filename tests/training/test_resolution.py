"""Two lines are two where they are, one is one, and the distances are read off rightly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from device.errors import UserError
from training import resolution, trials
from training.__main__ import main
from training.baselines import REFERENCE
from training.resolution import Place

MIDDLE = Place((23.3, 23.9), 0.6)


def drawn(shape: str, distance_px: float, sigma_px: float) -> np.ndarray:
    """The specimen as an ideal image, (96, 96), of a Gaussian width in input px."""
    from training import frozen

    emitters = resolution.SHAPES[shape](np.random.default_rng(0), MIDDLE, distance_px)
    edges = trials.edges_px(resolution.SIZE_PX, 2)
    return frozen.integrate(emitters, emitters.brightness[:, None], sigma_px, edges)[0]


def test_the_profile_lies_across_the_lines() -> None:
    """Catches an angle turned the other way, x and y exchanged, a grid shifted by half a px."""
    values = resolution.profile(drawn("pair", 5.0, 0.5), MIDDLE)
    places = resolution.across()
    left, right = places < 0, places > 0
    assert places[left][values[left].argmax()] == pytest.approx(-2.5, abs=0.2)
    assert places[right][values[right].argmax()] == pytest.approx(2.5, abs=0.2)
    assert values[np.abs(places) > 8].max() < 0.01 * values.max()


def test_a_dip_is_a_part_of_the_lower_peak() -> None:
    """Catches a dip against the higher peak, against the background, or outside of the lines.

    Two Gaussians of sigma s at a distance d add up, in their middle, to 2 exp(-d^2 / 8 s^2).
    """
    s = resolution.across()
    pair = np.exp(-((s - 1.5) ** 2) / 2) + 0.5 * np.exp(-((s + 1.5) ** 2) / 2)
    seen = np.abs(s) <= 1.5
    expected = 1 - pair[seen].min() / pair[s < -0.5].max()
    assert resolution.deepest_dip(pair, 3.0) == pytest.approx(expected, abs=0.01)
    assert 0.05 < expected < 0.5
    single = np.exp(-(s**2) / 2)
    assert resolution.deepest_dip(single, 3.0) == 0.0
    far = single + 0.5 * np.exp(-((s - 6) ** 2) / 0.5)  # something else beside it
    assert resolution.deepest_dip(far, 3.0) == 0.0
    assert resolution.deepest_dip(np.zeros_like(s), 3.0) == 0.0


@pytest.mark.parametrize("distance_px", [1.6, 2.6, 5.0])
def test_the_truth_shows_a_pair_apart_and_a_single_line_whole(distance_px: float) -> None:
    """Catches a single line with a gap of its own: what is split then is the method's doing.

    Seen as sharply as the target, sigma 0.4 px, all pairs that are tried are apart.
    """
    dips = {
        shape: resolution.deepest_dip(
            resolution.profile(drawn(shape, distance_px, 0.4), MIDDLE), distance_px
        )
        for shape in resolution.SHAPES
    }
    assert dips["pair"] > resolution.DIP
    assert dips["single"] < resolution.DIP / 2


def test_the_single_line_is_as_wide_and_as_bright_as_the_pair() -> None:
    """Catches a counter-test that is narrower, or half as bright."""
    pair, single = (
        shape(np.random.default_rng(1), MIDDLE, 3.0) for shape in resolution.SHAPES.values()
    )
    assert pair.brightness.sum() == single.brightness.sum()
    normal = np.array([np.cos(MIDDLE.angle_rad), -np.sin(MIDDLE.angle_rad)])
    for each in (pair, single):
        across = normal @ (np.stack([each.y_px, each.x_px]) - np.array([[23.3], [23.9]]))
        assert np.ptp(across) == pytest.approx(3.0 + resolution.LINE_WIDTH_PX, abs=0.02)


def test_places_are_random_and_the_same_for_both_shapes() -> None:
    """Catches one angle for all trials, and a pair beside another single line."""
    conditions = trials.Conditions("speckle", 60.0, 1.4, frames=2)
    seen = [resolution.frames_of("pair", 3.0, conditions, (1, k)) for k in range(3)]
    assert len({place.angle_rad for place, _ in seen}) == 3
    place, frames = resolution.frames_of("single", 3.0, conditions, (1, 0))
    assert place == seen[0][0]
    assert not np.array_equal(frames, seen[0][1])


def test_distances_are_interpolated_and_must_hold() -> None:
    """Catches the first crossing taken where the fraction falls again, and points not between."""
    distances = (1.0, 2.0, 3.0, 4.0)
    assert resolution.reached(distances, np.array([0.0, 0.0, 1.0, 1.0]), 0.5) == 2.5
    assert resolution.reached(distances, np.array([0.0, 0.6, 0.2, 1.0]), 0.5) == pytest.approx(
        3.375
    )
    assert resolution.reached(distances, np.array([0.0, 0.0, 0.0, 0.4]), 0.5) is None
    assert resolution.reached(distances, np.ones(4), 0.5) == 1.0


@pytest.fixture(scope="module")
def content() -> resolution.Content:
    return resolution.measure([], 4, 0, distances_px=(2.0, 5.0), photons=(400.0,))


def test_the_mean_shows_what_its_psf_lets_it(content: resolution.Content) -> None:
    """Catches pair and single exchanged, and fractions that are not of the trials.

    With sigma 1.45 px (PSF and pixel) the mean's dip is 20 % at 3.9 px.
    """
    assert resolution.curve(content, "shown", REFERENCE, 400.0).tolist() == [0.0, 1.0]
    assert resolution.curve(content, "split", REFERENCE, 400.0).tolist() == [0.0, 0.0]
    summary = resolution.summary(content, REFERENCE, 400.0)
    assert summary == {
        "px_50%": 3.5,
        "ratio_50%": 1.0,
        "px_90%": pytest.approx(4.7),
        "ratio_90%": 1.0,
        "split": 0.0,
    }
    assert set(content["shown"]) == set(trials.COMPARED)


def test_the_report_is_written_whole(content: resolution.Content, tmp_path: Path) -> None:
    """Catches tables whose columns do not fit, a missing curve, or a missing picture."""
    resolution.report(content, tmp_path)
    assert json.loads((tmp_path / "resolution.json").read_text()) == content
    text = (tmp_path / "resolution.md").read_text()
    assert text.count("| 400 | RL blind, 80 |") == 3  # summary, shown apart, split
    assert "![" in text and "(resolution.png)" in text
    assert (tmp_path / "resolution.png").read_bytes()[:4] == b"\x89PNG"
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_an_odd_number_of_trials_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches fractions above 1, where half of the trials are rounded down."""
    assert main(["resolution", "--trials", "3"]) == 2
    assert "--trials is 3" in capsys.readouterr().err
    with pytest.raises(UserError):
        main(["--debug", "resolution", "--trials", "0"])
