"""What systemd is told, over a real datagram socket; the pipeline is a stand-in or the real one."""

import os
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from device import heartbeat as heartbeat_module
from device.camera import CameraError
from device.heartbeat import Heartbeat, Notifier, status_line
from device.pipeline import Pipeline

STATE = {
    "fps_camera": 30.02,
    "fps_reconstruction": 29.96,
    "mode": "stream",
    "error": None,
    "latency_ms": {"p50": 3.0, "p95": 12.4},
}


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


class Standing:
    """A pipeline whose progress the test sets."""

    def __init__(self):
        self.count = 0
        self.ended = False
        self.pause_s = 22.0

    def progress(self):
        return self.count

    def wait_ended(self, timeout):
        return self.ended

    def longest_pause_s(self):
        return self.pause_s

    def state(self):
        return STATE


@pytest.fixture
def systemd(tmp_path):
    """The end at which systemd listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        yield listening


def told(systemd):
    """Everything that was sent since the last time."""
    messages = []
    while True:
        try:
            messages.append(systemd.recv(4096).decode())
        except BlockingIOError:
            return messages


def notifier(systemd, watchdog_s=30.0):
    return Notifier(systemd.getsockname(), watchdog_s)


def seconds(heartbeat, clock, number):
    """Let time pass as the event loop does: ten beats a second."""
    for _ in range(10 * number):
        clock.now_s += 0.1
        heartbeat.beat()


def test_the_environment_says_where_and_how_often(monkeypatch):
    """Mutation: another process's watchdog is taken for ours; microseconds for seconds."""
    here = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "30000000"}
    assert Notifier.from_environment(here).watchdog_s == 30
    ours = here | {"WATCHDOG_PID": str(os.getpid())}
    assert Notifier.from_environment(ours).watchdog_s == 30
    assert Notifier.from_environment(here | {"WATCHDOG_PID": "1"}).watchdog_s == 0
    assert Notifier.from_environment({}).watchdog_s == 0
    Notifier.from_environment({}).send(READY=1)  # nobody there: nothing happens


def test_ready_and_stopping_are_told(systemd):
    """Mutation: READY without its line break, which systemd does not take."""
    heartbeat = Heartbeat(Standing(), notifier(systemd))
    heartbeat.ready("http://127.0.0.1:8000/")
    with heartbeat.stopping():
        pass
    ready, stopping = told(systemd)
    assert ready.split("\n") == ["READY=1", "STATUS=serving http://127.0.0.1:8000/"]
    assert stopping.startswith("STOPPING=1\n")


def test_more_time_is_asked_for_while_a_recording_is_made_whole(systemd, monkeypatch):
    """Mutations: systemd kills the daemon at TimeoutStopSec, and with it the recording.

    Also: asked for on and on, though the stop is over; never given up, though the disk hangs.
    """
    monkeypatch.setattr(heartbeat_module, "_ASK_EVERY_S", 0.01)
    monkeypatch.setattr(heartbeat_module, "_MOST_ASKED", 5)
    with Heartbeat(Standing(), notifier(systemd)).stopping():
        time.sleep(1)  # a hundred times the period: five come, however busy the machine
    assert told(systemd)[1:] == ["EXTEND_TIMEOUT_USEC=15000000"] * 5
    monkeypatch.setattr(heartbeat_module, "_ASK_EVERY_S", 10)
    with Heartbeat(Standing(), notifier(systemd)).stopping():
        pass
    assert len(told(systemd)) == 1


def test_an_abstract_socket_is_reached():
    """Mutation: the @ of an abstract address is taken for a file's name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0learn2sofi-test-{os.getpid()}")
        listening.settimeout(10)
        Notifier(f"@learn2sofi-test-{os.getpid()}").send(READY=1)
        assert listening.recv(100) == b"READY=1"


def test_a_systemd_that_cannot_be_reached_is_logged_once(tmp_path, caplog):
    """Mutation: the daemon dies of it; the journal is filled with it."""
    lost = Notifier(str(tmp_path / "nobody"))
    for _ in range(3):
        lost.send(WATCHDOG=1)
    assert len(caplog.records) == 1


def test_the_watchdog_is_fed_while_frames_are_processed_and_not_otherwise(systemd):
    """Mutation: fed by time alone; fed at every one of ten beats a second."""
    pipeline, clock = Standing(), Clock()
    heartbeat = Heartbeat(pipeline, notifier(systemd), clock)
    for _ in range(5):
        pipeline.count += 30
        seconds(heartbeat, clock, 1)
    assert 4 <= told(systemd).count("WATCHDOG=1") <= 6  # once a second
    seconds(heartbeat, clock, 60)
    assert told(systemd).count("WATCHDOG=1") <= 1  # what came since the last look
    pipeline.count += 1
    seconds(heartbeat, clock, 2)
    assert told(systemd).count("WATCHDOG=1") == 1


def test_a_recording_at_its_end_is_no_hang(systemd):
    """Mutation: a stack without loop is restarted for ever."""
    pipeline, clock = Standing(), Clock()
    pipeline.ended = True
    seconds(Heartbeat(pipeline, notifier(systemd), clock), clock, 10)
    assert told(systemd).count("WATCHDOG=1") >= 9


def test_rare_frames_get_more_patience(systemd):
    """Mutation: a camera of one frame a minute is restarted between its frames."""
    pipeline, clock = Standing(), Clock()
    heartbeat = Heartbeat(pipeline, notifier(systemd), clock)
    seconds(heartbeat, clock, 2)
    assert not [message for message in told(systemd) if "WATCHDOG_USEC" in message]
    pipeline.pause_s = 620.0
    seconds(heartbeat, clock, 5)
    assert told(systemd).count("WATCHDOG_USEC=620000000") == 1


def test_without_a_watchdog_nothing_is_fed(systemd):
    """Mutation: WATCHDOG sent where systemd asked for none."""
    pipeline, clock = Standing(), Clock()
    seconds(Heartbeat(pipeline, notifier(systemd, 0.0), clock), clock, 10)
    assert all(message.startswith("STATUS=") for message in told(systemd))


def test_the_status_is_one_line_with_the_rates():
    """Mutation: an error of several lines breaks the protocol's lines."""
    assert status_line(STATE) == (
        "30.0 frames/s from the camera, 30.0 reconstructions/s (stream), latency p95 12 ms"
    )
    assert "error: no camera; plug it in" in status_line(
        STATE | {"error": "no camera;\nplug it in"}
    )
    assert "latency" not in status_line(STATE | {"latency_ms": {"p50": None, "p95": None}})


class Missing:
    """A camera that is not there; to find that out takes as long as the test says."""

    name, shape, frame_interval_s = "missing", (32, 32), 0.1

    def __init__(self, clock, takes_s):
        self.clock, self.takes_s = clock, takes_s
        self.asked = threading.Semaphore(0)

    def open(self):
        self.clock.now_s += self.takes_s
        self.asked.release()
        raise CameraError("there is none")

    def close(self):
        pass


class NoStep:
    name, sha256 = "none", ""
    psf_width = None
    expected_error = None

    class manifest:  # noqa: N801
        frames = 30


@pytest.mark.parametrize(("takes_s", "progresses"), [(0.1, True), (11.0, False)])
def test_attempts_to_open_the_camera_count_when_they_end_in_time(monkeypatch, takes_s, progresses):
    """Mutation: a missing camera is died of; an attempt that hung for long is taken for life."""
    monkeypatch.setattr("device.pipeline.Reconstructor", lambda *_: SimpleNamespace(steps=0))
    clock = Clock()
    camera = Missing(clock, takes_s)
    pipeline = Pipeline(camera, NoStep(), clock=clock, backoff_s=(0.001, 0.001))
    pipeline.start()
    try:
        for _ in range(3):
            assert camera.asked.acquire(timeout=20)
    finally:
        pipeline.stop()
    assert (pipeline.progress() >= 3) is progresses
    assert pipeline.longest_pause_s() == pytest.approx(12.001)  # patience + deadline + back-off
