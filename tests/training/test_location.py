"""Emitters are found where they are, and a drawn shift is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from training import baselines, location


@pytest.mark.parametrize("place", [(23.0, 25.0), (24.3, 22.6), (25.49, 24.51)])
def test_the_mean_draws_an_emitter_where_it_is(place: tuple[float, float]) -> None:
    """Catches axes exchanged, and a grid that is off by half an output px.

    Bicubic interpolation and the noise move the centre by up to 0.04 px.
    """
    frames = location.one_emitter(np.array(place), 1.4, np.random.default_rng(1))
    assert frames.shape == (30, location.FIELD_PX, location.FIELD_PX)
    found = location.centre(baselines.mean(frames))
    np.testing.assert_allclose(found, 2 * (np.array(place) + 0.5) - 0.5, atol=0.06)


def test_what_is_measured_is_the_shift_of_the_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A method that draws everything a pixel to the right. Catches errors without their sign."""

    def methods(_: object) -> dict[str, baselines.Method]:
        return {
            location.REFERENCE: baselines.mean,
            location.DECONVOLUTION: lambda frames: np.roll(baselines.mean(frames), 1, axis=1),
        }

    monkeypatch.setattr(location.trials, "methods", methods)
    monkeypatch.setattr(location, "SIGMAS_PX", (1.4,))
    content = location.measure([], 3, workers=0)
    true, moved = (np.array(content["errors"]["1.4"][name]) for name in location.SHOWN)
    np.testing.assert_allclose(moved - true, np.tile([0.0, 1.0], (3, 1)), atol=2e-3)
    location.report(content, tmp_path)
    assert json.loads((tmp_path / "location.json").read_text()) == content
    rows = location.summary_table(content).splitlines()[2:]
    assert len(rows) == 2
    assert rows[0].endswith("| 100% |")
    assert rows[1].endswith("| 0% |")
    assert 0.95 < float(rows[1].split("|")[3]) < 1.05
