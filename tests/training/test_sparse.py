"""What sparse blinking gives is measured on such stacks, each pair on the same."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from training import settings as settings_file
from training import sparse
from training.__main__ import main
from training.fluctuation import Blinking

MODEL_SETTINGS = settings_file.load("limit").forward_model


def test_a_stack_is_of_its_cell() -> None:
    """Catches a cell's range that is not drawn from, and cells with the same stacks."""
    seen = set()
    for cell in product(sparse.DENSITIES, sparse.ON_FRACTIONS):
        stack = sparse.stack_of(MODEL_SETTINGS, cell, 0)
        fluctuation = stack.about["fluctuation"]
        assert isinstance(fluctuation, Blinking)
        assert cell[1][0] <= fluctuation.on_fraction <= cell[1][1]
        seen.add(stack.frames.tobytes())
    assert len(seen) == len(sparse.DENSITIES) * len(sparse.ON_FRACTIONS)


def test_the_limit_and_its_twin_see_the_same_stacks() -> None:
    """Catches a twin that is trained on other data, or for another time."""
    one, twin = (settings_file.load(name).model_dump() for name in ("limit", "limit_twin"))
    for name in ("chunk", "read_at", "copies"):
        del one["dataset"][name], twin["dataset"][name]
    assert one == twin


def test_a_gain_is_that_of_a_pair_on_the_same_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a sign, an error of the mean that is that of one stack, and scores mixed up.

    A method that is 1.5 dB better everywhere gains 1.5 dB, exactly.
    """
    monkeypatch.setattr(sparse, "psnr_db", lambda image, truth: float(image) + truth.size % 7)
    methods = {sparse.TWIN: lambda frames: frames.mean(), sparse.OURS: lambda f: f.mean() + 1.5}
    content = sparse.measure(MODEL_SETTINGS, methods, 3)
    mean, error = sparse.gain(content["cells"], sparse.OURS, sparse.TWIN)
    assert mean == pytest.approx(1.5) and error == pytest.approx(0.0, abs=1e-6)

    content["cells"][0]["psnr_db"] = {sparse.TWIN: [1.0] * 3, sparse.OURS: [2.0, 3.0, 4.0]}
    mean, error = sparse.gain(content["cells"][:1], sparse.OURS, sparse.TWIN)
    assert mean == pytest.approx(2.0) and error == pytest.approx(1 / np.sqrt(3))
    table = sparse.summary_table(content)
    first, *_, last = table.splitlines()[2:]
    assert first.startswith("| 0.5 to 2 | 0.02 to 0.04 | 1.00 | 3.00 | +2.00 ± 0.58 |")
    assert last.startswith("| 0.5 to 16 | 0.02 to 0.08 |")


def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a traceback where a run was not made, a standard error of one, and no gain at all."""
    for words, said in (
        (["--stacks", "1"], "at least 2"),
        ([], "name ours with --twin"),
        (["--limit", str(tmp_path)], "both of --limit and --limit-twin"),
    ):
        assert main(["sparse", *words]) == 2
        assert said in capsys.readouterr().err
    assert main(["sparse", "--limit", str(tmp_path), "--limit-twin", str(tmp_path)]) == 2
    assert "train first" in capsys.readouterr().err


def test_ours_is_compared_with_its_twin_alone(quantized_run, tmp_path, monkeypatch) -> None:
    """Catches runs of the limit asked for where they are not kept, and a gain that is not said."""
    models = tmp_path / "models"
    options = ["--version", "0.1", "--models", str(models), "--no-evaluation"]
    assert main(["release", "--run", str(quantized_run), *options]) == 0
    monkeypatch.setattr(sparse, "DENSITIES", sparse.DENSITIES[:1])
    monkeypatch.setattr(sparse, "ON_FRACTIONS", sparse.ON_FRACTIONS[:1])
    step = str(models / "learn2sofi-0.1-float32.tflite")
    words = ["--model", step, "--twin", step, "--stacks", "2", "--out", str(tmp_path)]
    assert main(["sparse", *words]) == 0
    assert json.loads((tmp_path / "sparse.json").read_text())["runs"] == {}
    head = (tmp_path / "sparse.md").read_text().splitlines()[0]
    assert head.endswith("| mean (bicubic) | ours, twin | ours | ours: gain |")
