"""Calibration by the commands, on a sensor with hot pixels under tilted light."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

from device import calibration, cli
from device.calibration import Calibration, CalibrationError
from device.camera import CameraError
from device.model import load_step
from device.pipeline import Pipeline
from device.preparation import Preparation
from device.replay import ReplayCamera

HOT = ((7, 9), (20, 33), (40, 3))
SHAPE = (48, 64)
OFFSET, FULL = 64, 1000
TILT = np.linspace(0.6, 1.4, SHAPE[1])  # along x; mean 1


def _stack(path: Path, light: float, seed: int, frames: int = 40) -> Path:
    """Write frames of an even field: shot noise, offset, tilt, hot pixels 900 ADU up."""
    rng = np.random.default_rng(seed)
    field = np.broadcast_to(light * TILT, (frames, *SHAPE))
    stack = rng.poisson(field) + rng.normal(OFFSET, 2, field.shape)
    for y, x in HOT:
        stack[:, y, x] += 900
    tifffile.imwrite(path, np.clip(stack.round(), 0, 65535).astype(np.uint16))
    return path


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Path:
    """Measure dark and flat by the commands; a folder with the calibration and a sample."""
    folder = tmp_path_factory.mktemp("bench")
    for kind, light, seed in (("dark", 0, 1), ("flat", FULL, 2)):
        source = _stack(folder / f"{kind}-frames.tif", light, seed)
        options = ["--camera", f"replay:{source}", "--fps", "5000", "--frames", "40"]
        options += ["--calibration", str(folder / "calibration")]
        assert cli.main(["calibrate", kind, *options]) == 0
    _stack(folder / "sample.tif", FULL / 2, 3)
    return folder


def _tilt(image: np.ndarray) -> float:
    """Relative difference between the right and the left quarter of an image, (H, W)."""
    quarter = image.shape[1] // 4
    left, right = image[:, :quarter].mean(), image[:, -quarter:].mean()
    return float((right - left) / image.mean())


def _excess(image: np.ndarray) -> float:
    """How far the hot pixels stand out, relative to the image's median."""
    worst = max(abs(image[y, x] - np.median(image)) for y, x in HOT)
    return float(worst / np.median(image))


def test_hot_pixels_and_tilt_are_gone_and_the_recording_still_has_them(bench):
    """Mutations: not applied, or to the recording too; flat multiplied; dark added."""
    folder = bench / "calibration"
    camera = ReplayCamera(bench / "sample.tif", fps=500)
    loaded = calibration.load(folder)
    pipeline = Pipeline(camera, load_step(None), prepare=lambda _: Preparation(loaded))
    raw: list[np.ndarray] = []
    pipeline.tap(lambda frame: raw.append(frame.array))
    pipeline.start()
    deadline_s = time.monotonic() + 60
    while pipeline.state()["buffer"]["length"] < 30 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    mean, view = pipeline.latest("mean").array, pipeline.latest("raw").array
    assert pipeline.state()["preparation"]["calibration"] == ["dark", "flat"]
    assert pipeline.stop()
    before = np.mean(raw[:30], axis=0)
    # 0.6 of the mean between quarters, minus what the offset hides; 900 ADU on some 560.
    assert 0.4 < _tilt(before) < 0.65
    assert 1.2 < _excess(before) < 2.2
    # 30 frames of 500 photons leave 0.8 % a pixel, and the flat field 0.5 %.
    assert abs(_tilt(mean)) < 0.01
    assert _excess(mean) < 0.04
    assert mean.mean() == pytest.approx(FULL / 2, rel=0.01)
    assert _excess(view.astype(float)) > 1.2  # the raw view shows what came


def test_record_leaves_frames_uncorrected(bench, tmp_path, monkeypatch):
    """Mutation: `record` corrects by the calibration that the settings name."""
    monkeypatch.setenv("LEARN2SOFI_CALIBRATION", str(bench / "calibration"))
    target = tmp_path / "raw.ome.tif"
    options = ["--camera", f"replay:{bench / 'sample.tif'}", "--fps", "2000", "--frames", "40"]
    assert cli.main(["record", str(target), *options]) == 0
    np.testing.assert_array_equal(tifffile.imread(target), tifffile.imread(bench / "sample.tif"))


def test_exactly_the_hot_pixels_are_found(bench):
    """Mutations: the brightest of the noise taken for hot; a threshold that no pixel passes."""
    hot = calibration.load(bench / "calibration").hot
    assert {tuple(place) for place in np.argwhere(hot).tolist()} == set(HOT)


def test_parts_are_switched(bench):
    """Mutation: a switch without effect."""
    folder = bench / "calibration"
    assert calibration.load(folder, flat=False).applied == ["dark"]
    assert calibration.load(folder, dark=False).applied == ["flat"]
    assert calibration.load(None).applied == []
    image = np.full(SHAPE, 9, np.uint16)
    assert Calibration().apply(image) is image


def test_frames_of_another_shape_are_refused(bench):
    """Mutation: broadcast, or an exception that ends the reconstruction's thread."""
    loaded = calibration.load(bench / "calibration")
    loaded.check(SHAPE)
    with pytest.raises(CameraError, match="calibrate again"):
        loaded.check((48, 65))


def test_a_dark_flat_field_is_refused():
    """Mutation: division by noise around 0."""
    frames = np.random.default_rng(1).normal(64, 2, (10, 16, 16))
    dark, hot = calibration.measure_dark(frames)
    with pytest.raises(CalibrationError, match="evenly bright"):
        calibration.measure_flat(frames, Calibration(dark, hot))


def test_flat_needs_dark_first(tmp_path, bench, capsys):
    """Mutation: the sensor's offset taken for light."""
    source = f"replay:{bench / 'sample.tif'}"
    options = ["--camera", source, "--calibration", str(tmp_path / "none")]
    assert cli.main(["calibrate", "flat", *options]) == 2
    assert "calibrate dark" in capsys.readouterr().err


def test_an_empty_folder_is_refused(tmp_path):
    """Mutation: a misspelt folder taken for no calibration."""
    with pytest.raises(CalibrationError, match="holds no calibration"):
        calibration.load(tmp_path)
