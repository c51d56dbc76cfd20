"""Calibration by the commands, on a sensor with hot pixels under tilted light."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from device import calibration, cli
from device.calibration import Calibration, CalibrationError
from device.camera import CameraError, Frame
from device.preparation import Preparation
from device.replay import ReplayCamera

LOG = logging.getLogger(__name__)
PROGRAM = [sys.executable, "-c", "import sys; from device.cli import main; sys.exit(main())"]
PATIENCE_S = 60  # only a test that fails waits so long
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


def _tilt_percent(image: np.ndarray) -> float:
    """Difference between the right and the left quarter of an image, (H, W), in % of its mean."""
    quarter = image.shape[1] // 4
    left, right = image[:, :quarter].mean(), image[:, -quarter:].mean()
    return float(100 * (right - left) / image.mean())


def _hot_sigmas(image: np.ndarray) -> float:
    """How far the worst hot pixel stands out of its surroundings, in sigmas of all pixels."""
    image = image.astype(np.float32)  # (H, W)
    excess = image - cv2.medianBlur(image, 5)
    sigma = 1.4826 * np.median(np.abs(excess))  # robust: three pixels of 3072 do not move it
    return float(max(abs(excess[y, x]) for y, x in HOT) / sigma)


def _figures(image: np.ndarray) -> str:
    return f"hot pixel {_hot_sigmas(image):6.1f} sigma, tilt {_tilt_percent(image):5.1f} %"


class Daemon:
    """`learn2sofi run` on a sample, with settings of its environment."""

    def __init__(self, sample: Path, **settings: str) -> None:
        own = {name: value for name, value in os.environ.items() if "LEARN2SOFI" not in name}
        own |= {f"LEARN2SOFI_{name.upper()}": value for name, value in settings.items()}
        camera = ["--camera", f"replay:{sample}", "--fps", "60", "--port", "0"]
        self._process = subprocess.Popen(
            [*PROGRAM, "run", *camera], stdout=subprocess.PIPE, text=True, env=own
        )

    def __enter__(self) -> Daemon:
        assert self._process.stdout is not None
        self._address = self._process.stdout.readline().split()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self._address + path, timeout=PATIENCE_S) as answer:
            return answer.read()

    def image(self, view: str) -> np.ndarray:
        return tifffile.imread(io.BytesIO(self.get(f"snapshot.tif?view={view}")))  # (H, W)

    def record(self, wanted: bool) -> dict:
        body = json.dumps({"recording": wanted}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._address + "api/recording", body, headers)
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return json.load(answer)

    def until(self, path: str, condition) -> dict:
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition(state := json.loads(self.get(path))):
            assert time.monotonic() < deadline_s, state
            time.sleep(0.05)
        return state

    def mean(self) -> np.ndarray:
        """Mean of 30 frames, (H, W), once there are so many."""
        self.until("api/state", lambda state: state["buffer"]["length"] == 30)
        return self.image("mean")


def test_a_hot_pixel_and_a_tilted_illumination_are_gone_after_calibrate(bench, tmp_path):
    """And the raw recording still has them.

    Mutations: not applied, or to the recording and the raw view too; flat multiplied; dark added.
    The figures are logged: pytest -k tilted_illumination --log-cli-level=info
    """
    sample = bench / "sample.tif"
    with Daemon(sample) as daemon:
        before = daemon.mean()
    settings = {"calibration": str(bench / "calibration"), "recordings": str(tmp_path)}
    with Daemon(sample, **settings) as daemon:
        after, view = daemon.mean(), daemon.image("raw")
        state = json.loads(daemon.get("api/state"))
        daemon.record(True)
        daemon.until("api/recording", lambda recording: recording["frames"] >= 40)
        path = Path(daemon.record(False)["file"])
    raw = tifffile.imread(path)  # (T, H, W)
    images = {"before": before, "after": after, "raw recording": raw.mean(axis=0)}
    for name, image in images.items():
        LOG.info("%-13s %s", name, _figures(image))
    assert state["preparation"]["calibration"] == ["dark", "flat"]
    for uncorrected in (images["before"], images["raw recording"]):
        # 900 ADU above noise of some 4 (500 photons in 30 frames); 60 % of the light between the
        # quarters' middles, and the sensor's offset hides an eighth of it.
        assert 100 < _hot_sigmas(uncorrected) < 400
        assert 45 < _tilt_percent(uncorrected) < 60
    # Three pixels replaced by the median of their neighbours: noise like any other's.
    assert _hot_sigmas(after) < 4
    assert abs(_tilt_percent(after)) < 1  # the noise of two quarters' means is 0.03 %
    assert after.mean() == pytest.approx(FULL / 2, rel=0.01)
    assert _hot_sigmas(view) > 20  # the raw view shows what came: one frame, 22 ADU of noise
    _assert_part_of_the_loop(raw, tifffile.imread(sample))


def _assert_part_of_the_loop(raw: np.ndarray, sample: np.ndarray) -> None:
    """The recorded frames are the sample's, to the last bit, one after another, (T, H, W)."""
    (first,) = (n for n, frame in enumerate(sample) if np.array_equal(frame, raw[0]))
    played = (first + np.arange(len(raw))) % len(sample)
    np.testing.assert_array_equal(raw, sample[played])


def test_record_leaves_frames_uncorrected(bench, tmp_path, monkeypatch):
    """Mutation: `record` corrects by the calibration that the settings name."""
    monkeypatch.setenv("LEARN2SOFI_CALIBRATION", str(bench / "calibration"))
    target = tmp_path / "raw.ome.tif"
    options = ["--camera", f"replay:{bench / 'sample.tif'}", "--fps", "2000", "--frames", "40"]
    assert cli.main(["record", str(target), *options]) == 0
    np.testing.assert_array_equal(tifffile.imread(target), tifffile.imread(bench / "sample.tif"))


def test_record_replaces_nothing_unless_it_is_told_to(bench, tmp_path, capsys):
    """Mutation: an hour's recording lost to a name that was given twice."""
    target = tmp_path / "raw.ome.tif"
    target.write_bytes(b"an hour")
    options = ["--camera", f"replay:{bench / 'sample.tif'}", "--fps", "2000", "--frames", "5"]
    assert cli.main(["record", str(target), *options]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "is there already" in sentence
    assert "--overwrite" in sentence
    assert target.read_bytes() == b"an hour"
    assert cli.main(["record", str(target), "--overwrite", *options]) == 0
    assert tifffile.imread(target).shape == (5, *SHAPE)


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


def test_a_dark_frame_of_another_exposure_is_told(tmp_path):
    """Mutations: exposure or gain not kept with the dark frame, or not compared with the live."""
    image = np.full(SHAPE, 64, np.float32)
    notes = {"exposure_us": 8_000.0, "gain": 2.0}
    calibration.save_dark(tmp_path, image, image > 100, notes)
    preparation = Preparation(calibration.load(tmp_path))

    def warning(exposure_us: float | None, gain: float | None) -> str | None:
        return preparation.state(Frame(image, 1, 0, exposure_us, gain))["warning"]

    assert warning(7_900, 2.0) is None  # sensors count in rows
    assert "another exposure, us (8000)" in warning(4_000, 2.0)
    assert "another gain (2)" in warning(8_000, 4.0)
    assert warning(None, None) is None  # a recorded stack does not know
    assert preparation.state()["warning"] is None


def test_calibrate_notes_the_exposure(tmp_path, monkeypatch):
    """Mutation: the file knows its frames' exposure and gain no more."""

    class DarkCamera(ReplayCamera):
        def read(self, timeout_s: float) -> Frame:
            return replace(super().read(timeout_s), exposure_us=7_994.0, gain=2.5)

    source = _stack(tmp_path / "dark.tif", 0, 1, frames=5)
    monkeypatch.setattr(cli, "_camera", lambda settings: DarkCamera(source, 5_000))
    folder = tmp_path / "calibration"
    assert cli.main(["calibrate", "dark", "--frames", "5", "--calibration", str(folder)]) == 0
    measured = calibration.load(folder)
    assert (measured.dark_exposure_us, measured.dark_gain) == (7_994.0, 2.5)


def test_flat_needs_dark_first(tmp_path, bench, capsys):
    """Mutation: the sensor's offset taken for light."""
    source = f"replay:{bench / 'sample.tif'}"
    options = ["--camera", source, "--calibration", str(tmp_path / "none")]
    assert cli.main(["calibrate", "flat", *options]) == 2
    assert "calibrate dark" in capsys.readouterr().err


def test_flat_needs_dark_of_the_same_shape(tmp_path, bench, capsys):
    """Mutations: a fault (1), and the live image's advice, which is no help with a flat field."""
    dark = np.full((24, 32), 64, np.float32)
    calibration.save_dark(tmp_path, dark, dark > 100, {})
    source = f"replay:{bench / 'sample.tif'}"
    options = ["--camera", source, "--calibration", str(tmp_path)]
    assert cli.main(["calibrate", "flat", *options]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "(24, 32)" in sentence
    assert f"{SHAPE}" in sentence
    assert "`learn2sofi calibrate dark` with these settings" in sentence
    assert "set dark and flat to false" not in sentence
    assert not (tmp_path / calibration.FLAT_FILE).exists()


def test_an_empty_folder_is_refused(tmp_path):
    """Mutation: a misspelt folder taken for no calibration."""
    with pytest.raises(CalibrationError, match="holds no calibration"):
        calibration.load(tmp_path)
