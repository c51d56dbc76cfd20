"""An hour of frames through a camera that does everything that cameras do wrong."""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np
from fastapi.testclient import TestClient

from device.camera import CameraError, CameraTimeout, EndOfStream, Frame
from device.model import load_step
from device.pipeline import Pipeline
from device.server import create_app

SHAPE = (16, 16)
FAULTS = ("drop", "timeout", "stall", "break", "repeat", "disorder", "shape", "dtype", "not_finite")
AN_HOUR_AT_60 = 216_000
FRAMES_PER_READING = 1_000
A_READ_S = 0.25  # as long as the pipeline waits for a frame
LONGER_THAN_PATIENCE_S = 2.1  # it is 2 s at this rate
PATIENCE_S = 600  # only a test that fails waits so long


class FaultyCamera:
    """Delivers frames at full speed, with faults; a real `Camera`.

    Now and then it waits for a reading of the daemon's state to begin, so that a busy machine reads
    as often as an idle one, while frames come. It counts what it did: `met` each fault, `delivered`
    frames, `missing` slots of the sensor's clock that were dropped between two frames of one
    opening, `opened`. Time passes as it says, so that a silence takes no time: `clock`.
    """

    name = "faulty"
    shape = SHAPE

    def __init__(self, frames: int, rate: float, interval_s: float = 1 / 60) -> None:
        self.frame_interval_s = interval_s
        self.met: Counter[str] = Counter()
        self.delivered = self.missing = self.opened = 0
        self._now_s = 0.0
        self._frames, self._rate = frames, rate
        self._rng = np.random.default_rng(5)
        self._images = self._rng.normal(400, 30, (64, *SHAPE)).astype(np.float32)
        self._slot = self._index = 0
        self._usable_slot: int | None = None  # of the last usable frame since opening
        self._is_open = False
        self.reading = threading.Event()

    def open(self) -> None:
        assert not self._is_open, "opened again without being closed"
        if self._rng.random() < 0.2:
            self.met["open"] += 1
            raise CameraError("the camera is busy")
        self._is_open = True
        self.opened += 1
        self._index, self._usable_slot = 0, None

    def close(self) -> None:
        self._is_open = False

    def clock(self) -> float:
        """The time in s, of the camera's own making."""
        return self._now_s

    def read(self, timeout_s: float) -> Frame:
        assert self._is_open, "read while closed"
        if self.delivered >= self._frames:
            raise EndOfStream
        if self._usable_slot is not None and self._rng.random() < self._rate:
            fault = str(self._rng.choice(FAULTS))
            self.met[fault] += 1
            return getattr(self, f"_{fault}")()
        return self._good()

    def _deliver(self, array: np.ndarray, slot: int) -> Frame:
        frame = Frame(array, round(slot * self.frame_interval_s * 1e9), self._index)
        self._index += 1
        self._now_s += self.frame_interval_s
        self.delivered += 1
        if self.delivered % FRAMES_PER_READING == 0:
            self.reading.wait(PATIENCE_S)
            self.reading.clear()
        return frame

    def _good(self) -> Frame:
        self._slot += 1
        self._usable_slot = self._slot
        return self._deliver(self._images[self._slot % 64], self._slot)

    def _drop(self) -> Frame:
        lost = int(self._rng.integers(1, 5))
        self._slot += lost
        self.missing += lost
        return self._good()

    def _timeout(self) -> Frame:
        self._now_s += A_READ_S
        raise CameraTimeout("no frame came")

    def _stall(self) -> Frame:
        self._now_s += LONGER_THAN_PATIENCE_S
        raise CameraTimeout("no frame came for long")

    def _break(self) -> Frame:
        raise CameraError("the camera's cable fell out")

    def _repeat(self) -> Frame:
        assert self._usable_slot is not None
        return self._deliver(self._images[0], self._usable_slot)

    def _disorder(self) -> Frame:
        assert self._usable_slot is not None
        return self._deliver(self._images[0], self._usable_slot - 2)

    def _unusable(self, array: np.ndarray) -> Frame:
        self._slot += 1
        return self._deliver(array, self._slot)

    def _shape(self) -> Frame:
        return self._unusable(np.zeros((8, 8), np.float32))

    def _dtype(self) -> Frame:
        return self._unusable(np.zeros(SHAPE, np.int32))

    def _not_finite(self) -> Frame:
        return self._unusable(np.full(SHAPE, np.nan, np.float32))


def _in_flight(state: dict) -> int:
    ended = state["frames_processed"] + state["frames_skipped"]
    return state["frames_captured"] - ended - sum(state["frames_discarded"].values())


def test_an_hour_with_every_fault_is_accounted_for_at_every_reading():
    """Mutations: gaps not counted, or unusable frames among them; reopened without being closed.

    Also: a counter outside the lock; a frame lost in the queue; a camera that is not opened again
    after a fault or a silence, or is after every time-out.
    """
    camera = FaultyCamera(AN_HOUR_AT_60, rate=0.01)
    step = load_step(None)
    pipeline = Pipeline(camera, step, clock=camera.clock, backoff_s=(0.001, 0.002))
    client = TestClient(create_app(pipeline), base_url="http://localhost")
    pipeline.start()
    readings, before, deadline_s = 0, 0, time.monotonic() + PATIENCE_S
    try:
        while not pipeline.wait_ended(0.002):
            camera.reading.set()
            state = client.get("/api/state").json()
            assert _in_flight(state) in (0, 1), state
            assert state["frames_captured"] >= before
            readings, before = readings + 1, state["frames_captured"]
            assert time.monotonic() < deadline_s, state
        state = client.get("/api/state").json()
    finally:
        assert pipeline.stop()
    assert readings > 100
    assert set(camera.met) == {*FAULTS, "open"}
    assert min(camera.met.values()) > 20
    assert camera.opened == 1 + camera.met["break"] + camera.met["stall"]
    assert _in_flight(state) == 0
    assert state["frames_captured"] == camera.delivered == AN_HOUR_AT_60
    assert state["frames_missed"] == camera.missing
    assert state["frames_discarded"] == {
        "shape": camera.met["shape"],
        "dtype": camera.met["dtype"],
        "not_finite": camera.met["not_finite"],
        "duplicate": camera.met["repeat"],
        "out_of_order": camera.met["disorder"],
        "failed": 0,
    }
