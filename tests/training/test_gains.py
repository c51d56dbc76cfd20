"""A gain is that of the frames over their mean, on the same stacks, in the cell it stands in."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from device.errors import UserError
from training import gains
from training.__main__ import main
from training.fluctuation import Blinking, SpeckleExcitation
from training.gains import Cell

MODEL, TWIN = Path("ours-float32.tflite"), Path("twin-float32.tflite")


def test_a_map_varies_what_it_names_alone() -> None:
    """Catches rows and columns exchanged, and a base that is left."""
    for name, (base, (down, rows), (across, columns)) in gains.MAPS.items():
        cells = gains.cells_of(name)
        assert (len(cells), len(cells[0])) == (len(rows), len(columns))
        for row, line in zip(rows, cells, strict=True):
            for column, cell in zip(columns, line, strict=True):
                found = asdict(cell)
                assert (found.pop(down), found.pop(across)) == (row, column)
                assert found.items() <= asdict(base).items()


def test_every_cell_is_compared_with_the_same_without_fluctuation() -> None:
    """Catches a cell whose steady counterpart is not measured, and one of other photons."""
    cells = {cell for name in gains.MAPS for row in gains.cells_of(name) for cell in row}
    for cell in cells:
        steady = gains.still(cell)
        assert steady in cells and steady.fluctuation == "none"
        assert (steady.photons, steady.frames) == (cell.photons, cell.frames)
        assert gains.still(steady) == steady


def test_a_stack_is_what_its_cell_says() -> None:
    """Catches a condition that is drawn after all, and specimens that differ between cells."""
    blinking = gains.stack_of(Cell("blinking", photons=60.0, on_fraction=0.3, frames=5), 2)
    speckle = gains.stack_of(Cell("speckle", photons=25.0, grain_px=8.0, frames=5), 2)
    steady = gains.stack_of(Cell("none", frames=5), 2)
    assert blinking.frames.shape == (5, gains.SIZE_PX, gains.SIZE_PX)
    assert (blinking.about["photons"], speckle.about["photons"]) == pytest.approx((60.0, 25.0))
    first, second, third = (s.about["fluctuation"] for s in (blinking, speckle, steady))
    assert isinstance(first, Blinking) and isinstance(second, SpeckleExcitation)
    assert isinstance(third, SpeckleExcitation)
    assert first.on_fraction == pytest.approx(0.3) and first.bleach_time_frames == np.inf
    assert second.grain_px == pytest.approx(8.0)
    assert (second.contrast, third.contrast) == (1.0, 0.0)
    assert len({(s.about["family"], s.psf_sigma_px) for s in (blinking, speckle, steady)}) == 1


def test_nothing_but_noise_changes_where_nothing_fluctuates() -> None:
    """Catches a steady cell that fluctuates: sums of whole frames, with an error of 1 % or less.

    Under speckle of full contrast and 16 output px they differ by several per cent.
    """
    sums = [
        gains.stack_of(Cell(kind, photons=400.0, grain_px=16.0), 1).frames.sum(axis=(1, 2))
        for kind in ("none", "speckle")
    ]
    steady, moving = (float(np.std(s, ddof=1) / np.mean(s)) for s in sums)
    assert steady < 0.01
    assert moving > 3 * steady


def test_the_gain_is_ours_less_the_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a sign, and one of the two scored against another truth."""
    stack = gains.stack_of(Cell("none", frames=2), 0)
    noise = np.random.default_rng(2).normal(0, stack.truth.std(), stack.truth.shape)
    steps = {MODEL: {"ours": "ours"}, TWIN: {"twin": "twin"}}
    monkeypatch.setattr(gains.trials, "loaded", lambda paths: steps[paths[0]])
    monkeypatch.setattr(gains.trials, "model_method", lambda _: lambda f: stack.truth + noise / 10)
    monkeypatch.setattr(gains.evaluate, "twin_image", lambda twin, frames: stack.truth + noise)
    gain = gains.do(gains.Job(Cell("none", frames=2), 0, MODEL, TWIN))
    # A tenth of the noise is 20 dB, less what the affine fit takes of noise as large as the signal.
    assert 14.0 < gain < 20.5


@pytest.fixture
def content(monkeypatch: pytest.MonkeyPatch) -> gains.Content:
    """Known gains: 0.3 dB of training, 0.5 of blinking, -0.4 of speckle; a tenth of scatter."""

    def known(_: object, jobs: list[gains.Job], __: int) -> list[float]:
        share = {"blinking": 0.5, "speckle": -0.4, "none": 0.0}
        return [0.3 + share[j.cell.fluctuation] + 0.1 * (-1) ** j.number for j in jobs]

    monkeypatch.setattr(gains.trials, "spread", known)
    step = SimpleNamespace(sha256="0" * 64)
    monkeypatch.setattr(gains.trials, "loaded", lambda paths: {paths[0].stem: step})
    return gains.measure(MODEL, TWIN, 4, 0)


def test_net_is_less_what_is_gained_without_fluctuation(content: gains.Content) -> None:
    """Catches the steady cells' gain added, stacks paired wrongly, and an error without its root.

    The scatter, the same in every cell, goes out of the net gain; of four stacks 0.1 up and down it
    is 0.1 sqrt(4 / 3) / sqrt(4).
    """
    kind = content["maps"]["kind"]
    np.testing.assert_allclose(kind["gain_db"], [[0.8, -0.1, 0.3]] * 4, atol=1e-9)
    np.testing.assert_allclose(kind["net_db"], [[0.5, -0.4, 0.0]] * 4, atol=1e-9)
    np.testing.assert_allclose(kind["gain_error_db"], 0.058, atol=1e-9)
    np.testing.assert_allclose(kind["net_error_db"], 0.0, atol=1e-9)
    found = content["overall"]
    assert found["none"]["cells"] == 4  # photons, not frames
    assert (found["none"]["mean_db"], found["none"]["error_db"]) == pytest.approx((0.3, 0.058))
    # In the maps density 20, photons 20 less the 5 of that base, frames 6 less that base; under
    # speckle grain 16, frames 6 less that base. No cell counts twice.
    net, blinking, speckled = found["net"], 20 + 15 + 5, 16 + 5
    assert (net["above"], net["below"], net["cells"]) == (blinking, speckled, blinking + speckled)
    assert (net["largest_db"], net["smallest_db"]) == pytest.approx((0.5, -0.4))
    mean = (0.5 * blinking - 0.4 * speckled) / (blinking + speckled)
    assert (net["mean_db"], net["error_db"]) == pytest.approx((mean, 0.0), abs=1e-3)
    # Stacks share their scatter between the cells: more cells do not take it away.
    assert found["gain"]["error_db"] == pytest.approx(0.058)


def test_the_report_has_every_number(content: gains.Content, tmp_path: Path) -> None:
    """Catches a lost table, plot, or file."""
    gains.report(content, tmp_path)
    assert json.loads((tmp_path / "gains.json").read_text()) == json.loads(json.dumps(content))
    text = (tmp_path / "gains.md").read_text()
    assert text.count("| --- |") == 2 * len(gains.MAPS)
    assert text.count("+0.50 ± 0.00") == 50 and text.count("+0.80 ± 0.06") == 50
    assert "where nothing fluctuates: +0.30 ± 0.06 dB" in text
    assert (tmp_path / "gains.png").read_bytes()[:4] == b"\x89PNG"
    assert "(model.gains.png)" in gains.section(content, "model.gains.png")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--stacks", "1", "--twin", "t.tflite"], "--stacks is 1"),
        ([], "--twin"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches an error without a second stack, and a gain over nothing."""
    out = tmp_path / "out"
    assert main(["gains", "--out", str(out), *options]) == UserError.exit_code
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_one_float_model_is_taken() -> None:
    """Catches the int8 form, which loses more than is asked for, compared with a float twin."""
    int8 = Path("ours-int8.tflite")
    assert gains.chosen_model([MODEL, int8]) == MODEL
    for models in ([], [int8], [MODEL, TWIN]):
        with pytest.raises(UserError, match="float32"):
            gains.chosen_model(models)
