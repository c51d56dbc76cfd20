"""Methods are scored on the stacks that the settings draw, against the mean of the same stacks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from training import settings as settings_file
from training import simulated
from training.__main__ import main
from training.baselines import REFERENCE

DRAWN = settings_file.load("original_drawn").forward_model


def test_drawn_stacks_are_the_originals_but_for_the_images() -> None:
    """Catches a number that is changed in one of the two files alone."""
    original = settings_file.load("original").forward_model.model_dump()
    changed = {k for k, v in DRAWN.model_dump().items() if v != original[k]}
    assert changed == {"images", "images_fraction", "families", "thin_fraction"}


def test_every_method_sees_the_same_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a stack drawn anew for each method, a sign, and the worst of another method."""
    monkeypatch.setattr(simulated, "SIZE_PX", 32)
    seen: dict[str, list[float]] = {"one": [], "other": []}

    def method(name: str):  # type: ignore[no-untyped-def]
        return lambda frames: seen[name].append(float(frames.sum())) or np.zeros((64, 64))

    content = simulated.measure(DRAWN, {n: method(n) for n in seen}, 3)
    assert seen["one"] == seen["other"] and len(set(seen["one"])) == 3
    assert len(content["families"]) == len(content["psf_sigma_px"]) == 3

    content["psnr_db"] = {REFERENCE: [20.0, 22.0, 24.0], "ours": [22.0, 21.5, 26.0]}
    content["families"] = ["filaments", "cells", "filled_rods"]
    assert simulated.worst_of(content, "ours") == 1
    *_, mean, ours = simulated.score_table(content).splitlines()
    assert mean == f"| {REFERENCE} | 22.00 | +0.00 | +0.00 (filaments, 0) | 0 of 3 |"
    assert ours == "| ours | 23.17 | +1.17 | -0.50 (cells, 1) | 1 of 3 |"


def test_the_command_writes_table_numbers_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a form that is left out, and a picture that nobody drew."""
    monkeypatch.setattr(simulated, "SIZE_PX", 32)
    assert main(["simulated", "--stacks", "1", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "int8, window" in shown and "float32, window" in shown and "RL blind" in shown
    assert shown == (tmp_path / "simulated.md").read_text()
    content = json.loads((tmp_path / "simulated.json").read_text())
    assert content["settings"] == "original_drawn" and len(content["models"]) == 2
    assert (tmp_path / "panel-simulated.png").stat().st_size > 1000
    assert main(["simulated", "--stacks", "0"]) == 2
    assert "--stacks is 0" in capsys.readouterr().err
