"""The API of the camera: controls, recordings, warnings; with a camera that has controls."""

from __future__ import annotations

import itertools
import re
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from fastapi.testclient import TestClient

from device import server
from device.calibration import Calibration
from device.camera import Frame
from device.check import Warden
from device.controls import Limits, refuse_outside
from device.microscope import Microscope
from device.model import load_step
from device.pipeline import Pipeline
from device.recorder import Recordings
from device.sampling import Optics
from device.server import create_app

PATIENCE_S = 30  # only a test that fails waits so long


class SettableCamera:
    """Delivers 200 frames a second; remembers what was set."""

    name = "settable"
    frame_interval_s = 0.005

    def __init__(self) -> None:
        self.wanted: dict[str, object] = {"gain": 1.0, "roi": None}
        self.opened = 0
        self._numbers = itertools.count()

    @property
    def shape(self) -> tuple[int, int]:
        region = self.wanted["roi"]
        return (region.height, region.width) if region else (20, 24)

    def open(self) -> None:
        self.opened += 1
        self._open_shape = self.shape

    def close(self) -> None:
        pass

    def read(self, timeout_s: float) -> Frame:
        time.sleep(self.frame_interval_s)
        number = next(self._numbers)
        image = np.random.default_rng(number).integers(0, 900, self._open_shape)
        return Frame(image.astype(np.uint16), number * 5_000_000 + 1, number, 1500.0, 2.0)

    def controls(self) -> dict:
        return {"gain": {"wanted": self.wanted["gain"], "actual": 2.0}}

    def set_controls(self, changes) -> bool:
        if "gain" in changes:
            refuse_outside("gain", changes["gain"], Limits(1, 8))
        self.wanted.update(changes)
        return "roi" in changes


@pytest.fixture
def camera():
    return SettableCamera()


@pytest.fixture
def client(camera, tmp_path):
    pipeline = Pipeline(camera, load_step(None), backoff_s=(0.001, 0.002))
    microscope = Microscope(Optics(1.0, 500, 2.0, 20), Calibration())
    recordings = Recordings(pipeline, tmp_path / "recordings", microscope)
    pipeline.start()
    with TestClient(
        create_app(pipeline, recordings=recordings), base_url="http://localhost"
    ) as client:
        yield client
    recordings.stop()
    assert pipeline.stop()


def _until(client, condition) -> dict:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition(state := client.get("/api/state").json()):
        assert time.monotonic() < deadline_s, state
        time.sleep(0.01)
    return state


def test_controls_reach_the_camera(client, camera):
    """Mutations: what was not given is reset; a refused value answered with 200 or 500."""
    assert client.get("/api/controls").json()["gain"] == {"wanted": 1.0, "actual": 2.0}
    assert client.post("/api/controls", json={"gain": 4}).json()["gain"]["wanted"] == 4
    assert client.get("/api/controls").json()["mode"] == "stream"
    refused = client.post("/api/controls", json={"gain": 9})
    assert refused.status_code == 422
    assert "expected 1 to 8" in refused.json()["detail"]
    assert camera.wanted["gain"] == 4
    assert client.post("/api/controls", json={"roi": "1,2,3"}).status_code == 422
    assert client.post("/api/controls", json={"shutter": 1}).status_code == 422


def test_a_region_opens_the_camera_anew(client, camera):
    """Mutation: the region set, and every further frame discarded for its shape."""
    _until(client, lambda state: state["frames_captured"] > 3)
    assert client.post("/api/controls", json={"roi": "0,2,16,18"}).status_code == 200
    _until(client, lambda state: camera.opened == 2)
    state = _until(client, lambda state: state["buffer"]["length"] > 2)
    assert state["frames_discarded"]["shape"] == 0
    answer = client.get("/snapshot.tif?view=raw")
    assert answer.status_code == 200


def test_a_recording_by_the_api(client, tmp_path):
    """Mutations: frames lost between camera and file; a second recording over the first."""
    assert client.get("/api/recording").json()["recording"] is False
    started = client.post("/api/recording", json={"recording": True}).json()
    assert started["recording"] is True
    assert client.post("/api/recording", json={"recording": True}).status_code == 409
    _until(client, lambda _: client.get("/api/recording").json()["frames"] >= 40)
    ended = client.post("/api/recording", json={"recording": False}).json()
    assert (ended["recording"], ended["waiting"], ended["error"]) == (False, 0, None)
    path = Path(ended["file"])
    assert path.parent == tmp_path / "recordings"
    with tifffile.TiffFile(path) as tiff:
        frames, xml = tiff.asarray(), tiff.ome_metadata
    assert frames.shape == (ended["frames"], 20, 24)
    stamps = [int(s) for s in xml.split('"timestamps_ns">')[1].split("<")[0].split()]
    assert set(np.diff(stamps)) == {5_000_000}
    for frame, stamp in zip(frames, stamps, strict=True):
        seen = np.random.default_rng(stamp // 5_000_000).integers(0, 900, (20, 24))
        np.testing.assert_array_equal(frame, seen)
    assert 'PhysicalSizeX="0.1"' in xml  # 2 um at 20 x
    told = dict(re.findall(r'<M K="(psf[^"]+)">([^<]*)</M>', xml))
    assert float(told["psf_sigma_nm"]) == pytest.approx(105)  # 0.21 x 500 nm / 1.0
    assert float(told["psf_sigma_px"]) == pytest.approx(1.05)  # of 100 nm


def test_other_sites_may_not_record(client):
    """Mutation: a recording begun by another site's page."""
    refused = client.post(
        "/api/recording", json={"recording": True}, headers={"origin": "http://elsewhere"}
    )
    assert refused.status_code == 403


def test_heat_and_power_are_shown(client, monkeypatch):
    """Mutation: read by `check` alone, where nobody looks during an experiment."""
    assert client.get("/api/state").json()["warnings"] == []
    monkeypatch.setattr(server, "_WARDEN", Warden(lambda: 0x4))
    (warning,) = client.get("/api/state").json()["warnings"]
    assert "throttled" in warning
