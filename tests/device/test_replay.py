"""The replay camera keeps a camera's time, and drops what a camera would drop."""

from __future__ import annotations

import threading

import cv2
import numpy as np
import pytest
import tifffile

from device.camera import BrokenRecording, CameraError, CameraTimeout, EndOfStream
from device.replay import BUFFER_S, ReplayCamera

T = 5
FPS = 30.0
START_NS = 5_000_000_000


class Clock:
    """Time that passes only by waiting and by `skip`."""

    def __init__(self) -> None:
        self.now_ns = START_NS

    def __call__(self) -> int:
        return self.now_ns

    def wait(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)

    skip = wait


@pytest.fixture
def stack(tmp_path):
    path = tmp_path / "a.tif"
    frames = np.arange(T, dtype=np.uint16)[:, None, None] + np.zeros((T, 16, 20), np.uint16)
    tifffile.imwrite(path, frames, photometric="minisblack")
    return path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def play(stack, clock):
    """Open a camera on the stack, its time in our hands."""
    cameras = []

    def opened(loop: bool = True, fps: float = FPS) -> ReplayCamera:
        camera = ReplayCamera(stack, fps, loop, clock=clock, wait=clock.wait)
        camera.open()
        cameras.append(camera)
        return camera

    yield opened
    for camera in cameras:
        camera.close()


def due_ns(slot: int) -> int:
    return START_NS + round(slot * 1e9 / FPS)


def test_frames_in_order_on_an_absolute_schedule(play, clock):
    """Mutations: intervals added up after rounding (drifts), or counted from the last read."""
    camera = play()
    assert camera.shape == (16, 20)
    assert camera.frame_interval_s == pytest.approx(1 / FPS, rel=1e-12)
    for slot in range(3 * T):
        frame = camera.read(1.0)
        assert frame.array[0, 0] == slot % T
        assert frame.index == slot
        # Exactly: the schedule is a formula, not a measurement.
        assert frame.timestamp_ns == due_ns(slot)
        assert clock.now_ns >= due_ns(slot)
        clock.skip(0.01)  # the reader is slow, but within the interval


def test_no_frame_before_its_time(play, clock):
    """Mutation: the wait is left out or halved."""
    camera = play()
    for slot in range(T):
        camera.read(1.0)
        # 2 ns: the wait in s and the schedule in ns are each rounded once.
        assert abs(clock.now_ns - due_ns(slot)) <= 2


def test_timeout_passes_the_time_and_keeps_the_frame(play, clock):
    """Mutations: the timeout is longer than asked; the frame is lost by it."""
    camera = play(fps=1.0)
    camera.read(1.0)
    with pytest.raises(CameraTimeout):
        camera.read(0.25)
    assert clock.now_ns - START_NS == 250_000_000
    frame = camera.read(1.0)
    assert (frame.index, frame.array[0, 0], frame.timestamp_ns) == (1, 1, START_NS + 10**9)


def test_a_reader_a_little_late_loses_nothing(play, clock):
    """Mutation: whatever is overdue is dropped."""
    camera = play()
    camera.read(1.0)
    clock.skip(0.9 * BUFFER_S)
    assert [camera.read(1.0).timestamp_ns for _ in range(40)] == [due_ns(k) for k in range(1, 41)]


def test_a_reader_far_behind_finds_a_gap(play, clock):
    """Mutations: nothing is dropped; dropped frames are counted as delivered; the loop slips."""
    camera = play()
    camera.read(1.0)
    clock.skip(BUFFER_S + 10.5 / FPS)  # slot 1 is 9.5 intervals older than the buffer holds
    frame = camera.read(1.0)
    assert frame.timestamp_ns == due_ns(10)
    assert frame.index == 1
    assert frame.array[0, 0] == 10 % T


def test_the_end_without_loop(play):
    """Mutation: the last frame is left out, or comes twice."""
    camera = play(loop=False)
    assert [int(camera.read(1.0).array[0, 0]) for _ in range(T)] == list(range(T))
    for _ in range(2):
        with pytest.raises(EndOfStream):
            camera.read(1.0)


def test_opening_again_begins_again(play, clock):
    """Mutation: position, numbers or time go on from before."""
    camera = play()
    camera.read(1.0)
    camera.read(1.0)
    camera.close()
    clock.skip(100)
    camera.open()
    frame = camera.read(1.0)
    assert (frame.index, frame.array[0, 0]) == (0, 0)
    assert frame.timestamp_ns == clock.now_ns


def test_a_closed_camera_says_so(play):
    """Mutation: an AttributeError or a ValueError of tifffile escapes."""
    camera = play()
    camera.close()
    camera.close()
    with pytest.raises(CameraError, match="closed"):
        camera.read(1.0)


def test_close_wakes_a_waiting_reader(stack):
    """In real time. Mutation: close waits for the read, here a minute, or the read goes on."""
    camera = ReplayCamera(stack, 1 / 60)
    camera.open()
    camera.read(1.0)
    outcome: list[BaseException] = []

    def read() -> None:
        with pytest.raises(CameraError) as caught:
            camera.read(50.0)
        outcome.append(caught.value)

    reader = threading.Thread(target=read)
    reader.start()
    camera.close()
    reader.join(20)
    assert not reader.is_alive()
    assert len(outcome) == 1 and not isinstance(outcome[0], CameraTimeout)


def test_a_missing_stack_is_a_camera_error(tmp_path):
    """Mutation: StackError escapes, which the pipeline does not know."""
    with pytest.raises(CameraError, match="no such file"):
        ReplayCamera(tmp_path / "no.tif", FPS).open()


@pytest.mark.parametrize("bad", [0, 2])
def test_nan_is_delivered_like_any_frame(tmp_path, clock, bad):
    """Mutation: it fails at the frame, or at opening; who reads is to judge and to count it."""
    frames = np.zeros((5, 16, 16), np.float32)
    frames[bad, 3, 3] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", frames)
    camera = ReplayCamera(tmp_path / "a.tif", FPS, clock=clock, wait=clock.wait)
    camera.open()
    finite = [bool(np.isfinite(camera.read(1.0).array).all()) for _ in range(5)]
    assert finite == [index != bad for index in range(5)]
    camera.close()


@pytest.mark.parametrize("loop", [True, False])
def test_a_frame_that_cannot_be_decoded_is_the_end(tmp_path, clock, loop):
    """Mutation: a CameraError, after which the stack is opened again, up to here, for ever."""
    path = damaged(tmp_path / "a.tif", bad=2)
    camera = ReplayCamera(path, FPS, loop, clock=clock, wait=clock.wait)
    camera.open()
    camera.read(1.0)
    camera.read(1.0)
    with pytest.raises(BrokenRecording, match="frame 2"):
        camera.read(1.0)
    camera.close()


def damaged(path, bad):
    """Write a compressed stack of five frames, of which one is no deflate stream."""
    tifffile.imwrite(path, np.zeros((5, 16, 16), np.uint16), compression="zlib", metadata=None)
    with tifffile.TiffFile(path) as file:
        page = file.pages[bad]
        offset, length = page.dataoffsets[0], page.databytecounts[0]
    content = bytearray(path.read_bytes())
    content[offset : offset + length] = b"\xff" * length
    path.write_bytes(content)
    return path


def test_the_name_is_what_the_user_gave(stack):
    """Mutation: the bare path."""
    assert ReplayCamera(stack, FPS).name == f"replay:{stack}"


def test_a_video_goes_round(tmp_path, clock):
    """Mutation: a video that was played to its end is not decoded from its start again."""
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 30, (32, 32), False)
    for index in range(3):
        writer.write(np.full((32, 32), 80 * index, np.uint8))
    writer.release()
    camera = ReplayCamera(path, FPS, clock=clock, wait=clock.wait)
    camera.open()
    greys = [float(camera.read(1.0).array[0, 0]) for _ in range(8)]
    camera.close()
    assert greys[0] < greys[1] < greys[2]
    assert greys == (greys[:3] * 3)[:8]
