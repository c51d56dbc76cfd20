"""The page's part of the camera and of recordings, on the real daemon's parts.

The camera is `PiCamera` over a picamera2 that stands in for a Pi's: it delivers the demo stack as
raw frames, counts its exposure in rows as sensors do, and refuses nothing, as libcamera does.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import tifffile

from device.calibration import Calibration
from device.check import Warden
from device.microscope import Microscope
from device.model import load_step
from device.picamera import Capture, PiCamera
from device.pipeline import Pipeline
from device.recorder import Recordings
from device.replay import ReplayCamera
from device.server import bind, create_app, serve

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "device" / "demo.ome.tif"
SCREENSHOTS = ROOT / "out" / "e2e"
ROW_US = 18.9
CONTROLS = {
    "ExposureTime": (29, 1_000_000, 20_000),
    "AnalogueGain": (1.0, 16.0, 1.0),
    "FrameDurationLimits": (8_333, 1_000_000, 33_333),
}


class Request:
    def __init__(self, image: np.ndarray, metadata: dict) -> None:
        self.array, self._metadata = image.view(np.uint8).ravel(), metadata

    def acquire(self) -> None:
        pass

    def release(self) -> None:
        pass

    def get_metadata(self) -> dict:
        return self._metadata


class MappedArray:
    def __init__(self, request: Request, stream: str, reshape: bool) -> None:
        self.array = request.array

    def __enter__(self) -> MappedArray:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Picamera2:
    """Delivers 128 x 128 px of R16 frames at the rate that it was set to."""

    sensor_format = "R12"
    camera_controls = CONTROLS
    camera_properties: ClassVar = {"Model": "imx477"}
    silent = threading.Event()

    def __init__(self, number: int, tuning: str | None = None) -> None:
        self._frames = tifffile.imread(DEMO).astype(np.uint16)
        self._values = {"ExposureTime": 0, "AnalogueGain": 1.0}
        self._ended = threading.Event()
        self.pre_callback = lambda request: None

    def create_video_configuration(self, **wanted: object) -> dict:
        return wanted

    def configure(self, configuration: dict) -> None:
        pass

    def camera_configuration(self) -> dict:
        raw = {"format": "R12", "size": (128, 128), "stride": 256}
        return {"main": {}, "raw": raw, "sensor": {"bit_depth": 12}}

    def set_controls(self, values: dict) -> None:
        self._values.update(values)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._deliver, daemon=True)
        self._thread.start()

    def _deliver(self) -> None:
        began_ns = time.monotonic_ns()
        for slot, image in enumerate(itertools.cycle(self._frames)):
            interval_us = self._values["FrameDurationLimits"][0]
            if self._ended.wait(interval_us * 1e-6):
                return
            if not self.silent.is_set():
                stamp_ns = began_ns + slot * interval_us * 1_000  # a sensor knows no busy machine
                self.pre_callback(Request(image, self._metadata(interval_us, stamp_ns)))

    def _metadata(self, interval_us: int, stamp_ns: int) -> dict:
        exposure_us = min(self._values["ExposureTime"], interval_us - 100)
        return {
            "SensorTimestamp": stamp_ns,
            "ExposureTime": int(exposure_us // ROW_US * ROW_US),
            "AnalogueGain": self._values["AnalogueGain"],
            "FrameDuration": interval_us,
        }

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


class Microscopes:
    """Serves a pipeline over a camera, as `learn2sofi run` does."""

    def __init__(self, camera, folder: Path, token: str | None = None) -> None:
        self.pipeline = Pipeline(camera, load_step(), backoff_s=(0.05, 0.1))
        microscope = Microscope(None, Calibration())
        self.recordings = Recordings(self.pipeline, folder, microscope)
        self._stop, ready = threading.Event(), threading.Event()
        app = create_app(self.pipeline, token=token, recordings=self.recordings)
        listening = bind("127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        arguments = (app, listening, self._stop, lambda _: ready.set())
        self._server = threading.Thread(target=serve, args=arguments, daemon=True)
        self.pipeline.start()
        self._server.start()
        assert ready.wait(30)

    def end(self) -> None:
        self._stop.set()
        self._server.join(20)
        self.recordings.stop()
        self.pipeline.stop()


@pytest.fixture
def camera(monkeypatch):
    module = SimpleNamespace(Picamera2=Picamera2, MappedArray=MappedArray)
    monkeypatch.setitem(sys.modules, "picamera2", module)
    monkeypatch.setattr(Picamera2, "silent", threading.Event())
    return PiCamera(Capture(fps=20.0, size=(128, 128), exposure_us=8_000.0, gain=2.0))


@pytest.fixture
def served(browser, tmp_path, camera):
    """Serve cameras; what is served is ended with the test, before the stand-in goes."""
    made = []

    def start(camera, **options) -> Microscopes:
        made.append(Microscopes(camera, tmp_path / "recordings", **options))
        return made[-1]

    yield start
    browser.get("about:blank")  # before the server ends: what is said then is not the next test's
    browser.get_log("browser")
    for microscope in made:
        microscope.end()


@pytest.fixture
def page(browser, served, camera):
    """Show the page of the Pi's camera, its strip open."""
    microscope = served(camera)
    browser.get(microscope.address)
    wait_until(lambda: shown(browser, "#camera-button"), "the camera's button")
    click(browser, "#camera-button")
    wait_until(lambda: value(browser, "fps") == "20", "the camera's values")
    browser.microscope = microscope
    return browser


def wait_until(condition, what, limit_s=30):
    """Poll; the limit only ends a test that has failed already."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)


def click(browser, selector):
    browser.execute_script("document.querySelector(arguments[0]).click()", selector)


def shown(browser, selector):
    script = "return document.querySelector(arguments[0])?.offsetWidth > 0"
    return browser.execute_script(script, selector)


def text(browser, selector):
    return browser.execute_script("return document.querySelector(arguments[0]).innerText", selector)


def value(browser, control):
    script = "return document.querySelector(`[data-control=${arguments[0]}] input`).value"
    return browser.execute_script(script, control)


def reading(browser, control):
    return text(browser, f"[data-control={control}] small")


def enter(browser, control, content):
    """Type into a field as a user does, and press Enter."""
    from selenium.webdriver.common.keys import Keys

    field = browser.find_element("css selector", f"[data-control={control}] input")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(content, Keys.ENTER)


def screenshot(browser, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    (SCREENSHOTS / f"{name}.png").write_bytes(browser.get_screenshot_as_png())


def errors(browser):
    """What went wrong on the page; a refusal by the API is logged by the browser, and is none."""
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    return [entry for entry in severe if "422" not in entry["message"]]


def test_controls_are_shown_as_they_are_and_can_be_set(page, camera):
    """Mutations: what was asked for shown as what is; a value that is typed but never sent."""
    wait_until(lambda: "is 7" in reading(page, "exposure_us"), "the exposure of a frame")
    assert value(page, "exposure_us") == "8000"
    # 423 rows of 18.9 us; the narrow space parts thousands.
    assert reading(page, "exposure_us").replace("\u202f", "") == "is 7994 · 29 to 1000000"
    assert reading(page, "gain") == "is 2 · 1 to 16"
    enter(page, "gain", "6.5")
    wait_until(lambda: "is 6.5" in reading(page, "gain"), "the gain of a frame")
    enter(page, "fps", "25")
    wait_until(lambda: "is 25" in reading(page, "fps"), "the rate of a frame")
    assert (camera._wanted.gain, camera._wanted.fps) == (6.5, 25.0)
    assert not shown(page, "#refusal")
    assert errors(page) == []
    screenshot(page, "camera")


def test_a_region_is_taken_and_given_back(page):
    """Mutations: a region that the page writes otherwise than the API reads; no way back."""
    enter(page, "roi", "16, 32, 48, 64")
    wait_until(lambda: reading(page, "roi") == "is 16, 32, 48, 64", "the region")
    size = "return document.querySelector('[data-view=raw] canvas').height"
    wait_until(lambda: page.execute_script(size) == 48, "a picture of the region")
    click(page, "#whole")
    wait_until(lambda: reading(page, "roi") == "is 0, 0, 128, 128", "the whole field")
    assert value(page, "roi") == ""
    assert errors(page) == []


def test_what_the_camera_does_not_take_is_said_in_its_sentence(page, camera):
    """Mutations: a refusal swallowed, shown as JSON, or left standing after a value was taken."""
    enter(page, "gain", "99")
    wait_until(lambda: shown(page, "#refusal"), "the refusal")
    assert text(page, "#refusal").startswith("Gain is 99, which this camera does not take")
    assert "expected 1 to 16" in text(page, "#refusal")
    assert value(page, "gain") == "99"  # there to be corrected
    assert camera._wanted.gain == 2.0
    screenshot(page, "camera-refusal")
    enter(page, "exposure_us", "bright")
    wait_until(lambda: "exposure_us: " in text(page, "#refusal").lower(), "the other refusal")
    enter(page, "gain", "3")
    wait_until(lambda: not shown(page, "#refusal"), "no refusal")
    wait_until(lambda: "is 3" in reading(page, "gain"), "the gain of a frame")
    assert errors(page) == []


def test_drift_is_told(page):
    """Mutation: an exposure that the frame rate cut short is shown as if it were as asked."""
    enter(page, "exposure_us", "200000")
    wait_until(lambda: "not as asked" in reading(page, "exposure_us"), "the drift")
    assert reading(page, "exposure_us").replace("\u202f", "").startswith("is 49")
    screenshot(page, "camera-drift")


def test_an_empty_field_leaves_it_to_the_camera(page, camera):
    """Mutation: an empty exposure sent as 0, and refused."""
    enter(page, "exposure_us", " ")
    wait_until(lambda: camera._wanted.exposure_us is None, "automatic exposure")
    assert not shown(page, "#refusal")


def test_typing_is_no_shortcut(page):
    """Mutation: a 1 or an l in a field switches the layout or the contrast."""
    layout = "return document.getElementById('stage').dataset.layout"
    enter(page, "fps", "12")
    wait_until(lambda: "is 12" in reading(page, "fps"), "the rate")
    assert page.execute_script(layout) == "all"


def test_a_recording_from_the_page(page):
    """Mutations: a button that only looks pressed; the file's name or its frames not told."""
    wait_until(lambda: text(page, "#record") == "Record", "the button")
    click(page, "#record")
    wait_until(lambda: text(page, "#record") == "Stop", "a recording")
    recordings = page.microscope.recordings
    wait_until(lambda: recordings.state()["frames"] >= 20, "frames")
    wait_until(lambda: "Recording" in text(page, "#recording"), "the line")
    screenshot(page, "recording")
    click(page, "#record")
    wait_until(lambda: text(page, "#record") == "Record", "the end")
    state = recordings.state()
    assert text(page, "#recording") == f"Recorded {state['frames']} frames: {state['file']}"
    assert len(tifffile.imread(state["file"])) == state["frames"]
    assert errors(page) == []


def test_a_recording_that_ends_by_itself_says_why(page):
    """Mutation: a recording that failed looks as if it had been stopped."""
    click(page, "#record")
    wait_until(lambda: page.microscope.recordings.state()["frames"] >= 5, "frames")
    enter(page, "roi", "0,0,64,64")  # other frames than the file has
    wait_until(lambda: "the frames changed" in text(page, "#recording"), "the sentence")
    wait_until(lambda: text(page, "#record") == "Record", "the end")
    screenshot(page, "recording-ended")


def test_a_camera_that_falls_silent_is_said(page):
    """Mutation: the strip or the page forgets what there was, or shows the old as live."""
    title = "return 'trouble' in stage.dataset && document.querySelector('#veil .title').innerText"
    wait_until(lambda: page.execute_script(title) is False, "no trouble")
    Picamera2.silent.set()
    wait_until(lambda: page.execute_script(title) == "Camera lost", "the words")
    wait_until(lambda: "no frame" in text(page, "#veil .detail"), "the camera's own sentence")
    screenshot(page, "camera-lost")
    Picamera2.silent.clear()
    wait_until(lambda: page.execute_script(title) is False, "frames again")
    assert errors(page) == []


def test_a_camera_that_cannot_be_opened_is_said(browser, served, camera, monkeypatch):
    """Mutation: a page that waits for the first frame for ever, and does not say for what."""

    def busy(number: int, tuning: str | None) -> None:
        raise RuntimeError("Device or resource busy")

    monkeypatch.setattr(sys.modules["picamera2"], "Picamera2", busy)
    browser.get(served(camera).address)
    title = "return document.querySelector('#veil .title').innerText"
    wait_until(lambda: browser.execute_script(title) == "No camera", "the words")
    assert "Device or resource busy" in text(browser, "#veil .detail")
    assert "learn2sofi check" in text(browser, "#veil .detail")
    wait_until(lambda: shown(browser, "#camera-button"), "the camera's button")
    click(browser, "#record")  # there is nothing to record, and that is said when it is ended
    wait_until(lambda: text(browser, "#record") == "Stop", "a recording")
    click(browser, "#record")
    wait_until(lambda: "no frame came" in text(browser, "#recording").lower(), "the sentence")
    screenshot(browser, "camera-busy")
    assert errors(browser) == []


def test_nothing_to_see_is_said(browser, served, camera, monkeypatch):
    """Mutation: noise stretched over the whole range, as if it were a sample."""
    noise = np.random.default_rng(1).poisson(200, (64, 128, 128)).astype(np.uint8)
    monkeypatch.setattr(tifffile, "imread", lambda _: noise)
    browser.get(served(camera).address)
    wait_until(lambda: "warming" in text(browser, "#buffer"), "a buffer that fills")
    title = "return document.querySelector('#veil .title').innerText"
    wait_until(lambda: browser.execute_script(title) == "Nothing to see", "the words")
    screenshot(browser, "nothing-to-see")
    assert errors(browser) == []


def test_a_recorded_stack_has_no_camera_to_set(browser, served):
    """Mutation: fields that do nothing. Recording is possible all the same."""
    microscope = served(ReplayCamera(DEMO, fps=20))
    browser.get(microscope.address)
    wait_until(lambda: shown(browser, "#record"), "the record button")
    assert not shown(browser, "#camera-button")
    assert not shown(browser, "#camera-strip")
    assert errors(browser) == []


def test_heat_and_power_are_said(browser, served, camera, monkeypatch):
    """Mutation: the Pi's flags shown by the API alone."""
    from device import server

    monkeypatch.setattr(server, "_WARDEN", Warden(lambda: 0x5))
    browser.get(served(camera).address)
    wait_until(lambda: "under-voltage" in text(browser, "#warnings"), "the warning")
    screenshot(browser, "throttled")


def test_the_token_is_asked_for(browser, served, camera):
    """Mutations: a form that leads nowhere; a page that goes on asking; wrong tokens taken."""
    token = "a-token-of-more-than-32-characters-0123"
    browser.get(served(camera, token=token).address)
    screenshot(browser, "login")
    for attempt in ("wrong", token):
        field = browser.find_element("id", "token")
        field.send_keys(attempt)
        field.submit()
        if attempt == "wrong":
            wait_until(lambda: "not the microscope's" in text(browser, "body"), "the refusal")
            screenshot(browser, "login-wrong")
    wait_until(lambda: shown(browser, "#record"), "the page")
    browser.delete_all_cookies()
    wait_until(lambda: browser.find_elements("id", "token"), "the form again")


def test_a_phone_shows_the_strip_without_sideways_scrolling(page):
    """Mutation: a fixed width anywhere in the strip."""
    page.set_window_size(500, 900)  # the narrowest that the browser allows
    try:
        wider = page.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wider <= 0
        screenshot(page, "camera-phone")
    finally:
        page.set_window_size(1600, 900)
