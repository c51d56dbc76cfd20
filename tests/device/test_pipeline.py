"""The pipeline with a camera and a step that do what the test says, when it says so."""

from __future__ import annotations

import itertools
import queue
import threading
import time

import numpy as np
import pytest

from device.camera import BrokenRecording, CameraError, CameraTimeout, EndOfStream, Frame
from device.model import Manifest, ModelError, OutputFilter
from device.pipeline import Pipeline, _Pace, backoff_delays_s
from device.preparation import Preparation
from device.psf_width import PsfEstimate
from device.reconstructor import Reconstructor
from device.ring_buffer import Sums
from device.sampling import Sampling
from device.scene import SHOWN_BEFORE, Change, SceneWatch

INTERVAL_S = 0.01
PATIENCE_S = 20  # only a test that fails waits so long


class ScriptedCamera:
    """Delivers what the test puts in: frames, or errors to raise."""

    name = "scripted"

    def __init__(self, shape=(16, 18), interval_s=INTERVAL_S) -> None:
        self.shape = shape
        self.frame_interval_s = interval_s
        self.script: queue.Queue = queue.Queue()
        self.open_errors: list[CameraError] = []
        self.opened = self.closed = 0

    def open(self) -> None:
        self.opened += 1
        if self.open_errors:
            raise self.open_errors.pop(0)

    def read(self, timeout_s: float) -> Frame:
        try:
            item = self.script.get(timeout=min(timeout_s, 0.05))
        except queue.Empty:
            raise CameraTimeout("no frame came") from None
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        self.closed += 1

    def put(self, *slots: float, start_index: int = 0, array: np.ndarray | None = None) -> None:
        """Put in frames with these timestamps, counted in intervals."""
        for index, slot in enumerate(slots, start_index):
            image = _image(index, self.shape) if array is None else array
            self.script.put(Frame(image, round(slot * self.frame_interval_s * 1e9), index))


class CountingStep:
    """Its image is everywhere the number of steps since the zero state; waits where told to."""

    name, sha256 = "counting", "ab" * 32
    psf_width = None
    expected_error = None

    def __init__(self, frames: int = 6, told: bool = False, has_recurrence: bool = False) -> None:
        self.has_recurrence = has_recurrence
        self.images: list[bool] = []  # of each step, whether one was wanted
        frame = {"shape": (1, 16, 16, 1)}
        psf = {"psf_sigma_px": {"shape": (1, 1)}} if told else {}
        self.manifest = Manifest(
            format=1,
            name="counting",
            version="1",
            signature="step",
            frames=frames,
            upsampling=2,
            size_multiple=2,
            inputs={"frame": frame, "mean": frame, "h": frame, **psf},
            outputs={"image": {"shape": (1, 32, 32, 1)}, "h_out": frame},
            state={"h": "h_out"},
            normalization={
                "background_percentile": 5,
                "scale_percentile": 99.5,
                "min_contrast_sem": 3,
            },
            psf_sigma_px=(1.0, 2.0),
        )
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.errors: queue.Queue = queue.Queue()
        self.before = lambda: None
        self.widths: list[float] = []  # of the PSF, as told at each step

    def resize(self, height: int, width: int) -> None:
        self.size = (height, width)

    def zero_state(self):
        return {"h": np.zeros((1, *self.size, 1), np.float32)}

    def run(self, inputs, image=True):
        self.before()
        self.entered.release()
        self.gate.wait(PATIENCE_S)
        if not self.errors.empty():
            raise self.errors.get()
        self.widths += np.ravel(inputs.get("psf_sigma_px", ())).tolist()
        self.images.append(image)
        h_out = inputs["h"] + 1
        return {"image": h_out.repeat(2, axis=1).repeat(2, axis=2), "h_out": h_out}


class Clock:
    """The time that the test sets, in s."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def _image(index: int, shape=(16, 18)) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 4000, shape).astype(np.uint16)


def _until(condition) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never came about"
        time.sleep(0.001)


def _steps_in(pipeline: Pipeline) -> int:
    """Number of steps since the zero state, read from the newest image."""
    pipeline_scale = pipeline._last.scaling.scale
    return round(float(pipeline.latest("reconstruction").array[0, 0]) / pipeline_scale)


def _balance(state: dict) -> int:
    """Frames in flight, by the accounts."""
    ended = state["frames_processed"] + state["frames_skipped"]
    return state["frames_captured"] - ended - sum(state["frames_discarded"].values())


@pytest.fixture
def rig():
    """Make pipelines that are stopped at the test's end."""
    made = []

    def make(mode="stream", camera=None, step=None, **options) -> Pipeline:
        options.setdefault("backoff_s", (0.001, 0.004))
        pipeline = Pipeline(camera or ScriptedCamera(), step or CountingStep(), mode, **options)
        made.append(pipeline)
        return pipeline

    yield make
    for pipeline in made:
        pipeline._step.gate.set()
        pipeline.stop()


def _processed(pipeline: Pipeline, count: int) -> None:
    _until(lambda: pipeline.state()["frames_processed"] >= count)
    _until(lambda: pipeline.state()["frames_waiting"] == 0)


STATE_FIELDS = {
    *("mode", "frames_captured", "frames_processed", "frames_skipped", "frames_discarded"),
    *("frames_missed", "frames_waiting", "reconstructions", "fps_camera", "fps_reconstruction"),
    *("latency_ms", "buffer", "model", "uptime_s", "error", "ended", "camera", "gaps", "warming"),
    *("nothing_to_see", "last_frame_age_s", "frame_interval_s", "preparation", "span_ms"),
    *("psf_sigma_px", "psf_found", "tells_error"),
}


# --- accounts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["stream", "window"])
def test_the_accounts_balance_at_every_reading(rig, mode):
    """Mutations: a counter outside the lock; a frame counted at arrival and lost in the queue."""
    camera, step = ScriptedCamera(), CountingStep()
    pipeline = rig(mode, camera, step)
    wrong_shape = np.zeros((18, 16), np.uint16)
    for slot in range(300):
        camera.put(slot * 2 if slot % 50 else slot * 2 - 1, start_index=slot)  # now and then early
        if slot % 10 == 3:
            camera.put(slot * 2, start_index=slot)  # the same again
        if slot % 30 == 7:
            camera.put(slot * 2 - 3, start_index=slot)
            camera.put(slot * 2 + 1, array=wrong_shape)
    camera.script.put(EndOfStream())
    balances = set()
    pipeline.start()
    while not pipeline.wait_ended(0):
        balances.add(_balance(pipeline.state()))
    assert balances <= {0, 1}
    state = pipeline.state()
    assert _balance(state) == 0
    assert state["frames_captured"] == 350
    assert state["frames_processed"] + state["frames_skipped"] == 300
    assert {k: n for k, n in state["frames_discarded"].items() if n} == {
        "duplicate": 30,
        "out_of_order": 10,
        "shape": 10,
    }
    # 600 slots from -1 to 598, of which 300 came, and 10 with frames of a wrong shape.
    assert state["frames_missed"] == 290


def test_what_waits_too_long_is_skipped(rig):
    """Mutations: the newest is thrown away instead of the oldest; skipped frames not counted."""
    camera, step = ScriptedCamera(), CountingStep(frames=4)
    pipeline = rig("stream", camera, step)
    step.gate.clear()
    pipeline.start()
    camera.put(0)
    assert step.entered.acquire(timeout=PATIENCE_S)
    assert _balance(pipeline.state()) == 1  # the one in flight
    camera.put(*range(1, 8), start_index=1)
    _until(lambda: pipeline.state()["frames_skipped"] == 3)
    assert pipeline.state()["frames_waiting"] == 4
    assert pipeline.state()["frames_captured"] == 4
    step.gate.set()
    _processed(pipeline, 5)
    assert pipeline.latest("raw").index == 7
    assert pipeline.state()["frames_skipped"] == 3
    # Frames 0, 4, 5, 6, 7: a skipped frame never resets the state.
    assert _steps_in(pipeline) == 5
    assert pipeline.state()["frames_missed"] == 0


def _work_off_one_by_one(pipeline, camera, step, indices) -> None:
    for index in indices:
        camera.put(index, start_index=index)
        _processed(pipeline, index + 1)
        assert step.entered.acquire(timeout=PATIENCE_S)


def _hold_up(pipeline, camera, step, first: int, count: int) -> None:
    """Have one frame stay in its step while others come."""
    step.gate.clear()
    camera.put(first, start_index=first)
    assert step.entered.acquire(timeout=PATIENCE_S)
    before = pipeline.state()["frames_skipped"]
    camera.put(*range(first + 1, first + 1 + count), start_index=first + 1)
    _until(
        lambda: (
            pipeline.state()["frames_waiting"] + pipeline.state()["frames_skipped"]
            == count + before
        )
    )


def _held_up(rig, step, work_s: float, came: int):
    """Six frames that took so long each, and a seventh in its step while others came."""
    camera, clock = ScriptedCamera(), Clock()
    step.before = lambda: setattr(clock, "now_s", clock.now_s + work_s)
    pipeline = rig("stream", camera, step, clock=clock)
    pipeline.start()
    _work_off_one_by_one(pipeline, camera, step, range(6))
    _hold_up(pipeline, camera, step, first=6, count=came)
    return pipeline, camera


@pytest.mark.parametrize(
    ("work_s", "came", "waiting"),
    [
        (0.5 * INTERVAL_S, 6, 6),
        (1.2 * INTERVAL_S, 6, 6),  # what the queue takes is not lost, however slow the steps
        (0.5 * INTERVAL_S, 7, 6),
        (1.2 * INTERVAL_S, 7, 1),
    ],
)
def test_the_newest_wins_where_the_step_is_too_slow(rig, work_s, came, waiting):
    """Mutations: a long queue of old frames before a slow step; frames lost before a fast one.

    Also: frames lost for some slow steps, although the queue has room.
    """
    step = CountingStep(frames=6)
    pipeline, _ = _held_up(rig, step, work_s, came)
    assert pipeline.state()["frames_waiting"] == waiting
    step.gate.set()
    _processed(pipeline, 7 + waiting)
    assert pipeline.latest("raw").index == 6 + came


@pytest.mark.parametrize(
    ("step_s", "steps", "behind"),
    [
        (0.8, [1, 1, 1, 1], False),
        (0.8, [1, 1, 1, 2], True),
        (0.7, [1, 1, 1, 2], False),
        (0.5, [2, 2, 2, 2], True),
        (0.7, [1, 1, 1, 30], False),  # a buffer that was caught up with, once
    ],
)
def test_a_second_step_with_some_images_counts(step_s, steps, behind):
    """Mutations: the median of the images' work, which does not see every fourth; the work of a
    whole buffer as that of every image."""
    pace = _Pace()
    for count in 4 * steps if max(steps) < 30 else [1, 1, 1] * 4 + steps:
        pace.add(step_s * count, count)
    pace.note(overrun=True, interval_s=1.0)
    assert pace.behind is behind


def test_the_pace_is_told_the_steps_of_each_image(rig):
    """Mutation: one for each, although a look at what repeats makes two."""
    camera, step = ScriptedCamera(), CountingStep(frames=6)
    filtering = OutputFilter(notch_order=8, none=0.1, full=0.3, floor=0.2)
    always = step.manifest.normalization.model_copy(update={"min_contrast_sem": 0})
    changes = {"output_filter": filtering, "normalization": always}
    step.manifest = step.manifest.model_copy(update=changes)
    pipeline = rig("stream", camera, step)
    pipeline.start()
    for index in range(11):
        camera.put(index, start_index=index)
        _processed(pipeline, index + 1)
    assert list(pipeline._pace._steps) == [1] * 5 + [2] * 6


@pytest.mark.parametrize(("came", "carried", "skipped"), [(12, 2, 9), (31, 2, 28)])
def test_what_waits_is_carried_where_that_is_quick(rig, came, carried, skipped):
    """Mutations: an image for each, so that no newer one is made; all skipped but the newest; no
    image at all while more come; what is carried is not counted, or not in the buffer."""
    step = CountingStep(frames=8, has_recurrence=True)
    pipeline, _ = _held_up(rig, step, 1.2 * INTERVAL_S, came)
    assert pipeline.state()["frames_waiting"] == 1 + carried
    step.images.clear()
    step.gate.set()
    _processed(pipeline, 7 + 1 + carried)
    state = pipeline.state()
    assert step.images == [True, *[False] * carried, True]  # the first is that which was held up
    assert (state["reconstructions"], state["frames_skipped"]) == (6 + 1, skipped)
    assert pipeline.latest("reconstruction").index == 6 + came
    assert state["buffer"]["length"] == 8
    assert _steps_in(pipeline) == 7 + 1 + carried


def test_an_image_is_made_however_many_frames_wait(rig):
    """Mutation: frames that come faster than they are carried leave no time for an image."""
    step = CountingStep(frames=6, has_recurrence=True)
    pipeline, camera = _held_up(rig, step, 1.2 * INTERVAL_S, came=7)
    step.images.clear()
    index = iter(range(14, 100))

    def one_comes_for_one_that_goes():
        if len(step.images) < 20:
            camera.put(number := next(index), start_index=number)

    step.before = one_comes_for_one_that_goes
    step.gate.set()
    _until(lambda: len(step.images) >= 20)
    assert max(np.diff(np.flatnonzero(step.images))) <= 3


@pytest.mark.parametrize("work_s", [0.5 * INTERVAL_S, 1.2 * INTERVAL_S])
def test_every_frame_has_its_image_while_the_queue_has_room(rig, work_s):
    """Mutation: whatever waits is carried, after any short hold-up and on a fast machine, too."""
    step = CountingStep(frames=6, has_recurrence=True)
    pipeline, _ = _held_up(rig, step, work_s, came=6)
    step.gate.set()
    _processed(pipeline, 13)
    assert all(step.images)


def test_a_carried_frame_that_fails_is_counted(rig):
    """Mutation: it stays in flight for ever."""
    step = CountingStep(frames=6, has_recurrence=True)
    pipeline, _ = _held_up(rig, step, 1.2 * INTERVAL_S, came=7)

    def fail_once() -> None:
        if step.images[-1:] == [True] and len(step.images) == 7:
            step.errors.put(ModelError("the runtime failed"))
            step.before = lambda: None

    step.before = fail_once
    step.gate.set()
    _until(lambda: pipeline.state()["frames_discarded"]["failed"] == 1)
    _until(lambda: pipeline.state()["frames_waiting"] == 0 and _balance(pipeline.state()) == 0)


def test_the_queue_is_long_again_when_the_work_is_fast_again(rig):
    """Mutation: one hold-up makes the newest win for ever after."""
    camera, step, clock = ScriptedCamera(), CountingStep(frames=6), Clock()
    work_s = [2 * INTERVAL_S]
    step.before = lambda: setattr(clock, "now_s", clock.now_s + work_s[0])
    pipeline = rig("stream", camera, step, clock=clock)
    pipeline.start()
    _work_off_one_by_one(pipeline, camera, step, range(6))
    _hold_up(pipeline, camera, step, first=6, count=7)
    assert pipeline.state()["frames_waiting"] == 1
    work_s[0] = 0.1 * INTERVAL_S
    step.gate.set()
    _processed(pipeline, 8)
    assert step.entered.acquire(timeout=PATIENCE_S)
    for index in range(14, 30):  # more than the median is taken of
        camera.put(index, start_index=index)
        _processed(pipeline, index - 5)
        assert step.entered.acquire(timeout=PATIENCE_S)
    _hold_up(pipeline, camera, step, first=30, count=5)
    assert pipeline.state()["frames_waiting"] == 5
    assert pipeline.state()["frames_skipped"] == 6


def test_frames_that_come_while_a_window_runs_are_in_the_next(rig):
    """Mutation: one window for every frame, or frames skipped as in stream mode."""
    camera, step = ScriptedCamera(), CountingStep(frames=6)
    pipeline = rig("window", camera, step)
    step.gate.clear()
    pipeline.start()
    camera.put(0, 1)
    assert step.entered.acquire(timeout=PATIENCE_S)
    assert pipeline.state()["frames_processed"] == 2  # they are in the window that runs
    camera.put(2, 3, 4, 5, start_index=2)
    _until(lambda: pipeline.state()["frames_waiting"] == 4)
    step.gate.set()
    _processed(pipeline, 6)
    _until(lambda: (pipeline.latest("reconstruction") or pipeline.latest("raw")).index == 5)
    state = pipeline.state()
    assert state["reconstructions"] == 2
    assert state["frames_skipped"] == 0
    assert _steps_in(pipeline) == 6


def test_a_window_gets_on_while_it_is_computed(rig):
    """Mutation: frames alone counted: the watchdog ends a window that takes long."""
    camera, step, allowed = ScriptedCamera(), CountingStep(frames=6), threading.Semaphore(0)
    step.before = lambda: allowed.acquire(timeout=PATIENCE_S)
    pipeline = rig("window", camera, step)
    pipeline.start()
    camera.put(0, 1)
    _until(lambda: pipeline.state()["frames_processed"] == 2)
    for _ in range(4):  # two frames, played twice
        before = pipeline.progress()
        time.sleep(0.01)
        assert pipeline.progress() == before
        allowed.release()
        _until(lambda before=before: pipeline.progress() > before)


def test_more_than_a_window_that_waits_is_skipped(rig):
    """Mutation: the queue of window mode has no end, or frames pass through the buffer unseen."""
    camera, step = ScriptedCamera(), CountingStep(frames=6)
    pipeline = rig("window", camera, step)
    step.gate.clear()
    pipeline.start()
    camera.put(0, 1)
    assert step.entered.acquire(timeout=PATIENCE_S)
    camera.put(*range(2, 14), start_index=2)
    _until(lambda: camera.script.empty() and pipeline.state()["frames_waiting"] == 6)
    step.gate.set()
    _processed(pipeline, 8)
    _until(lambda: pipeline.latest("reconstruction").index == 13)
    state = pipeline.state()
    assert (state["frames_processed"], state["frames_skipped"]) == (8, 6)
    assert state["reconstructions"] == 2


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((16, 18), np.int32), "dtype"),
        (np.zeros((16, 18), np.uint8), "dtype"),  # the first frame was uint16
        (np.zeros((16, 18, 3), np.uint16), "shape"),
    ],
)
def test_what_cannot_be_used_is_discarded(rig, array, reason):
    """Mutation: any of the checks left out; the discarded frame's time counts as the newest."""
    camera = ScriptedCamera()
    pipeline = rig(camera=camera)
    camera.put(0, 1)
    camera.put(2, array=array)
    camera.put(2, start_index=2)
    pipeline.start()
    _processed(pipeline, 3)
    state = pipeline.state()
    assert state["frames_discarded"][reason] == sum(state["frames_discarded"].values()) == 1
    assert state["frames_missed"] == 0


def test_frames_with_nan_are_discarded(rig):
    """Mutation: NaN enters the buffer's sums and stays."""
    camera = ScriptedCamera()
    pipeline = rig(camera=camera)
    good = _image(0).astype(np.float32)
    bad = good.copy()
    bad[3, 3] = np.nan
    for slot, array in enumerate((good, bad, good)):
        camera.put(slot, start_index=slot, array=array)
    pipeline.start()
    _processed(pipeline, 2)
    assert pipeline.state()["frames_discarded"]["not_finite"] == 1
    assert np.isfinite(pipeline.latest("mean").array).all()


def test_a_failing_step_is_shown_and_gone_on_from(rig):
    """Mutation: the thread dies, or the frame stays in flight for ever."""
    camera, step = ScriptedCamera(), CountingStep()
    step.errors.put(ModelError("the step failed"))
    pipeline = rig(camera=camera, step=step)
    pipeline.start()
    camera.put(0)
    _until(lambda: pipeline.state()["error"] == "the step failed")
    state = pipeline.state()
    assert (state["frames_discarded"]["failed"], _balance(state)) == (1, 0)
    camera.put(1, 2, start_index=1)
    _processed(pipeline, 2)
    assert pipeline.state()["error"] is None


# --- gaps and resets -----------------------------------------------------------------------------


def test_missed_frames_are_counted_and_a_short_gap_resets_nothing(rig):
    """Mutation: jitter counts as a miss; a gap of less than a second resets the stream."""
    camera = ScriptedCamera()
    pipeline = rig(camera=camera)
    pipeline.start()
    for index, slot in enumerate((0, 1.3, 2, 2.8, 7, 107)):  # 4 and 99 slots are left out
        camera.put(slot, start_index=index)
        _processed(pipeline, index + 1)
    state = pipeline.state()
    assert state["frames_missed"] == 3 + 99
    assert state["gaps"] == 3 + 99
    assert _steps_in(pipeline) == 6


def test_a_gap_of_more_than_a_second_resets_the_stream(rig):
    """Mutation: the state or the buffer's statistics live on over the gap."""
    camera = ScriptedCamera()
    pipeline = rig(camera=camera)
    pipeline.start()
    for index, slot in enumerate((0, 1, 2, 103, 104)):
        camera.put(slot, start_index=index)
        _processed(pipeline, index + 1)
    state = pipeline.state()
    assert state["frames_missed"] == 100
    assert (state["gaps"], state["buffer"]["length"], state["warming"]) == (0, 2, True)
    assert _steps_in(pipeline) == 2


def test_another_scene_resets_the_stream(rig):
    """Mutations: the state or the buffer's old frames live on; what had come of the new scene is
    thrown away; the watch is not asked."""
    rng = np.random.default_rng(8)
    patterns = np.zeros((2, 16, 18))
    patterns[0, :8], patterns[1, :, 9:] = 1000, 1000
    frames = rng.poisson(100 + patterns.repeat((70, 20), axis=0)).astype(np.uint16)
    watch = SceneWatch()
    (alarm,) = [number for number, frame in enumerate(frames) if watch.changed(frame)][:1]
    assert 70 < alarm < 82
    camera = ScriptedCamera()
    pipeline = rig(camera=camera, step=CountingStep(frames=30))
    pipeline.start()
    for index, frame in enumerate(frames):
        camera.put(index, start_index=index, array=frame)
        _processed(pipeline, index + 1)
        if index == alarm:
            assert pipeline.state()["buffer"]["length"] == SHOWN_BEFORE + 1
    assert _steps_in(pipeline) == len(frames) - alarm + SHOWN_BEFORE


def test_of_a_moved_specimen_not_all_is_forgotten(rig, monkeypatch):
    """Mutations: a reset, which forgets the PSF's width, too; frames of the old place that stay."""
    changes, resets = iter([None] * 5 + [Change(2, moved=True)] + [None] * 2), []
    monkeypatch.setattr(SceneWatch, "changed", lambda *_: next(changes))
    camera = ScriptedCamera()
    pipeline = rig(camera=camera, step=CountingStep(frames=30))
    pipeline.start()
    for index in range(8):
        if index == 5:
            monkeypatch.setattr(Reconstructor, "reset", resets.append)
        camera.put(index, start_index=index)
        _processed(pipeline, index + 1)
    assert pipeline.state()["buffer"]["length"] == 5
    assert _steps_in(pipeline) == 5
    assert not resets


def test_a_window_over_a_long_gap_is_marked(rig):
    """Mutation: window mode forgets what the contract says it marks."""
    camera = ScriptedCamera()
    pipeline = rig("window", camera=camera)
    pipeline.start()
    for index, slot in enumerate((0, 1, 2, 103, 104)):
        camera.put(slot, start_index=index)
        _processed(pipeline, index + 1)
    _until(lambda: pipeline.latest("reconstruction").index == 4)
    assert pipeline.state()["gaps"] == 100
    assert _steps_in(pipeline) == 5


def test_a_gap_resets_even_when_its_first_frame_is_skipped(rig):
    """Mutation: the reset is tied to the frame after the gap and lost with it."""
    camera, step = ScriptedCamera(), CountingStep(frames=4)
    pipeline = rig("stream", camera, step)
    step.gate.clear()
    pipeline.start()
    camera.put(0)
    assert step.entered.acquire(timeout=PATIENCE_S)
    camera.put(*range(200, 208), start_index=1)  # of the eight, the last four wait
    _until(lambda: pipeline.state()["frames_skipped"] == 4)
    step.gate.set()
    _processed(pipeline, 5)
    assert _steps_in(pipeline) == 4


def test_a_slow_cameras_interval_is_no_gap(rig):
    """Mutation: a fixed second, at which a camera of 0.5 frames per second never warms up."""
    camera = ScriptedCamera(interval_s=2.0)
    pipeline = rig(camera=camera)
    pipeline.start()
    camera.put(0, 1, 2, 3)
    _processed(pipeline, 4)
    assert _steps_in(pipeline) == 4


def test_a_sensor_clock_that_begins_anew_is_followed(rig):
    """Mutation: every frame is out of order until the old time is reached again."""
    camera = ScriptedCamera()
    pipeline = rig("window", camera=camera)
    pipeline.start()
    camera.put(1000, 1001, 1002)
    _processed(pipeline, 3)
    camera.put(0, 1, start_index=3)
    _processed(pipeline, 5)
    state = pipeline.state()
    assert sum(state["frames_discarded"].values()) == 0
    assert (state["buffer"]["length"], state["frames_missed"]) == (2, 0)


@pytest.mark.parametrize("mode", ["stream", "window"])
def test_reset_forgets_with_the_next_frame(rig, mode):
    """Mutation: reset does nothing in one of the modes, or throws frames away."""
    camera = ScriptedCamera()
    pipeline = rig(mode, camera)
    pipeline.start()
    camera.put(0, 1, 2)
    _processed(pipeline, 3)
    pipeline.reset()
    camera.put(3, 4, start_index=3)
    _processed(pipeline, 5)
    _until(lambda: pipeline.latest("reconstruction").index == 4)
    assert _steps_in(pipeline) == 2
    assert pipeline.state()["buffer"]["length"] == 2


def test_the_mode_changes_with_the_next_frame(rig):
    """Mutation: the new mode begins on the old mode's buffer or state."""
    camera = ScriptedCamera()
    pipeline = rig("stream", camera)
    pipeline.start()
    camera.put(0, 1, 2)
    _processed(pipeline, 3)
    pipeline.set_mode("window")
    camera.put(3, 4, start_index=3)
    _processed(pipeline, 5)
    _until(lambda: pipeline.latest("reconstruction").index == 4)
    assert pipeline.state()["mode"] == "window"
    assert _steps_in(pipeline) == 2
    pipeline.set_mode("window")  # no change, so no reset
    camera.put(5, start_index=5)
    _until(lambda: pipeline.latest("reconstruction").index == 5)
    assert _steps_in(pipeline) == 3
    with pytest.raises(ValueError, match="stream or window"):
        pipeline.set_mode("both")


def test_the_psf_is_told_from_the_next_frame_on_and_nothing_is_forgotten(rig):
    """Mutations: a width that is only shown; a reset with it; no way back to the optics' own."""
    camera, step = ScriptedCamera(), CountingStep(told=True)
    sampling = Sampling(pixel_nm=100.0, psf_sigma_px=1.25, binning=1)
    pipeline = rig("stream", camera, step, prepare=lambda _: Preparation(sampling=sampling))
    pipeline.start()
    camera.put(0, 1, 2)
    _processed(pipeline, 3)
    said = {"found": None, "min": 1.0, "max": 2.0}
    assert pipeline.psf() == said | {"wanted": None, "actual": 1.25}
    pipeline.set_psf(1.5)
    camera.put(3, start_index=3)
    _processed(pipeline, 4)
    assert pipeline.psf() == said | {"wanted": 1.5, "actual": 1.5}
    assert pipeline.state()["psf_sigma_px"] == 1.5
    _until(lambda: pipeline.latest("reconstruction").index == 3)
    assert pipeline.latest("reconstruction").facts["psf_sigma_px"] == 1.5
    assert _steps_in(pipeline) == 4
    pipeline.set_psf(None)
    camera.put(4, start_index=4)
    _processed(pipeline, 5)
    assert step.widths == [1.25, 1.25, 1.25, 1.5, 1.25]


def test_a_width_that_is_found_is_told_and_said_until_the_pixels_are_others(rig):
    """Mutations: found and not said; said on for a camera that was opened anew."""

    class Finding:
        def estimate(self, frames):
            return PsfEstimate(1.5, 0.1)

    camera, step = ScriptedCamera(), CountingStep(frames=4, told=True)
    step.psf_width = Finding()
    pipeline = rig("stream", camera, step)
    pipeline.start()
    array = _image(1)
    array[:8] += 20000  # something to see
    camera.put(0, 1, 2, 3, array=array)
    _processed(pipeline, 4)
    told = pytest.approx(PsfEstimate(1.5, 0.1).told_px)
    assert step.widths == [0.0, 0.0, 0.0, told]
    found = {"sigma_px": pytest.approx(1.5), "relative_error": pytest.approx(0.1)}
    _until(lambda: pipeline.latest("reconstruction").index == 3)
    facts = pipeline.latest("reconstruction").facts
    for said in (pipeline.state(), facts):
        assert (said["psf_sigma_px"], said["psf_found"]) == (told, found)
    assert (pipeline.psf()["actual"], pipeline.psf()["found"]) == (told, found)
    pipeline.set_psf(1.25)
    assert (pipeline.psf()["actual"], pipeline.psf()["found"]) == (1.25, None)
    pipeline.set_psf(None)
    pipeline.set_mode("window")
    assert (pipeline.psf()["actual"], pipeline.psf()["found"]) == (None, None)


def test_the_width_is_that_of_the_page_then_of_the_settings_then_of_the_optics(rig):
    """Mutations: a page that drops the setting; a width told of beyond what the network is told."""
    wide = Sampling(pixel_nm=10.0, psf_sigma_px=5.0, binning=8)
    optics = {"prepare": lambda _: Preparation(sampling=wide)}
    camera, step = ScriptedCamera(), CountingStep(told=True)
    pipeline = rig("stream", camera, step, psf_sigma_px=1.5, **optics)
    pipeline.set_psf(1.75)
    pipeline.set_psf(None)
    assert pipeline.psf()["actual"] == 1.5
    with pytest.raises(ValueError, match=r"is 5 px; expected 1 to 2 px"):
        rig(step=CountingStep(told=True), psf_sigma_px=5.0)
    pipeline = rig("stream", camera, step, **optics)
    pipeline.start()
    camera.put(0, 1)
    _processed(pipeline, 2)
    _until(lambda: pipeline.latest("reconstruction") is not None)
    assert pipeline.latest("reconstruction").facts["psf_sigma_px"] == step.widths[-1] == 2.0


def test_a_width_that_the_model_was_not_trained_for_is_refused(rig):
    """Mutations: a width that is cut off in silence; one that a model without the input takes."""
    told, blind = rig(step=CountingStep(told=True)), rig()
    with pytest.raises(ValueError, match=r"is 2.5 px; expected 1 to 2 px"):
        told.set_psf(2.5)
    assert told.psf()["wanted"] is None
    with pytest.raises(ValueError, match="counting is not told"):
        blind.set_psf(1.5)
    assert blind.psf() is None
    assert blind.state()["psf_sigma_px"] is None


# --- cameras that fail ---------------------------------------------------------------------------


def test_waiting_times_double_up_to_the_longest():
    """Mutation: no end, no beginning anew, or a first attempt that waits long."""
    assert list(itertools.islice(backoff_delays_s(), 7)) == [0.5, 1, 2, 4, 8, 10, 10]


def test_a_camera_that_fails_is_shown_and_opened_again(rig):
    """Mutations: the last image is dropped; the error stays; the failed camera is not closed."""
    camera = ScriptedCamera()
    pipeline = rig(camera=camera)
    pipeline.start()
    camera.put(500, 501)
    _processed(pipeline, 2)
    camera.open_errors = [CameraError("it is unplugged")] * 3
    camera.script.put(CameraError("it was pulled"))
    _until(lambda: pipeline.state()["error"] == "it is unplugged")
    assert pipeline.latest("reconstruction").index == 1
    _until(lambda: not camera.open_errors)
    camera.put(0, 1, 2)
    _processed(pipeline, 5)
    state = pipeline.state()
    assert state["error"] is None
    assert (camera.opened, camera.closed) == (5, 4)
    # It is another clock: nothing was missed, and the state does not live on.
    assert (state["frames_missed"], _steps_in(pipeline)) == (0, 3)


def test_a_camera_that_comes_back_in_another_size_goes_on(rig):
    """Mutation: frames of the new size are discarded for ever."""
    camera = ScriptedCamera()
    pipeline = rig(camera=camera)
    pipeline.start()
    camera.put(0, 1)
    _processed(pipeline, 2)
    camera.shape = (21, 24)
    camera.script.put(CameraError("changed"))
    camera.put(2, 3, start_index=2)
    _processed(pipeline, 4)
    assert pipeline.latest("reconstruction").array.shape == (42, 48)
    assert pipeline.state()["buffer"] == {"length": 2, "capacity": 6}


def test_a_camera_that_stops_delivering_is_opened_again(rig):
    """Mutations: time-outs are waited out for ever; the wait of one read told as the silence."""
    camera, clock = ScriptedCamera(), Clock()
    pipeline = rig(camera=camera, clock=clock)
    pipeline.start()
    camera.put(0, 1)
    _processed(pipeline, 2)
    clock.now_s += 1.9
    assert (camera.opened, pipeline.state()["error"]) == (1, None)
    clock.now_s += 0.2
    _until(lambda: camera.opened == 2)
    assert "gave no frame within 2 s; expected one every 0.01 s" in pipeline.state()["error"]


class JunkCamera(ScriptedCamera):
    """Gives frames of a wrong shape and no others, four a second of the test's clock."""

    def __init__(self, clock: Clock, recorded: bool) -> None:
        super().__init__(interval_s=0.25)
        self.recorded = recorded
        self._clock = clock

    def read(self, timeout_s: float) -> Frame:
        time.sleep(0.0005)  # no busy loop
        self._clock.now_s += self.frame_interval_s
        return Frame(_image(0, (8, 8)), round(self._clock.now_s * 1e9), 0)


def test_a_camera_that_gives_only_unusable_frames_is_opened_again(rig):
    """Mutation: any frame ends the silence; then nothing is shown, nothing gets on, and the
    watchdog ends the daemon again and again."""
    clock = Clock()
    camera = JunkCamera(clock, recorded=False)
    pipeline = rig(camera=camera, clock=clock)
    pipeline.start()
    _until(lambda: camera.opened >= 3)
    assert pipeline.progress() >= 2
    state = pipeline.state()
    assert "gave no usable frame (discarded: shape) within 2.5 s" in state["error"]
    assert state["frames_processed"] == 0


def test_a_recording_of_unusable_frames_is_played_on(rig):
    """Mutations: opened again, from the beginning, so that its end never comes; played on, and
    ended by the watchdog."""
    clock = Clock()
    camera = JunkCamera(clock, recorded=True)
    pipeline = rig(camera=camera, clock=clock)
    pipeline.start()
    _until(lambda: pipeline.state()["frames_discarded"]["shape"] >= 40)
    assert camera.opened == 1
    assert pipeline.progress() > 40


def test_a_field_too_small_is_shown(rig):
    """Mutation: the frames reach the step."""
    pipeline = rig(camera=ScriptedCamera(shape=(15, 64)))
    pipeline.start()
    _until(lambda: pipeline.state()["error"])
    assert "15 x 64" in pipeline.state()["error"]


@pytest.mark.parametrize(("interval_s", "limit_s"), [(0.01, 2.0), (0.5, 5.0)])
def test_health_is_that_frames_come(rig, interval_s, limit_s):
    """Mutations: 2 s whatever the interval; healthy before the first frame."""
    camera, clock = ScriptedCamera(interval_s=interval_s), Clock()
    pipeline = rig(camera=camera, clock=clock)
    assert not pipeline.healthy()
    pipeline.start()
    camera.put(0)
    _until(pipeline.healthy)
    clock.now_s += limit_s - 0.01
    assert pipeline.healthy()
    assert pipeline.state()["last_frame_age_s"] == pytest.approx(limit_s - 0.01)
    clock.now_s += 0.02
    assert not pipeline.healthy()
    camera.put(1, start_index=1)
    _until(pipeline.healthy)


class HangingCamera(ScriptedCamera):
    """Its read ignores the time-out; close wakes it only where told to."""

    def __init__(self, wakes: bool) -> None:
        super().__init__()
        self.hangs = threading.Event()
        self.released = threading.Event()
        self.wakes = wakes

    def read(self, timeout_s: float) -> Frame:
        self.hangs.set()
        self.released.wait(PATIENCE_S)
        raise CameraError("closed")

    def close(self) -> None:
        super().close()
        if self.wakes:
            self.released.set()
        else:
            self.released.wait(PATIENCE_S)


@pytest.mark.parametrize("wakes", [True, False])
def test_a_camera_that_hangs_does_not_hold_up_the_end(rig, wakes):
    """Mutation: join without a limit, or close called by who stops and hung itself."""
    camera = HangingCamera(wakes)
    pipeline = rig(camera=camera)
    pipeline.start()
    assert camera.hangs.wait(PATIENCE_S)
    began_s = time.monotonic()
    assert pipeline.stop(timeout=0.4) is wakes
    assert time.monotonic() - began_s < 2  # the contract's limit for the whole daemon
    camera.released.set()


def test_stop_closes_the_camera(rig):
    """Mutation: the camera stays open, or frames are still taken."""
    camera = ScriptedCamera()
    pipeline = rig(camera=camera)
    pipeline.start()
    camera.put(0, 1)
    _processed(pipeline, 2)
    assert pipeline.stop()
    assert camera.closed == camera.opened == 1
    assert not pipeline.healthy()


def test_the_end_waits_for_the_last_frame(rig):
    """Mutation: ended is told when the camera has ended, with frames still waiting."""
    camera, step = ScriptedCamera(), CountingStep()
    pipeline = rig(camera=camera, step=step)
    step.gate.clear()
    camera.put(0, 1, 2)
    camera.script.put(EndOfStream())
    pipeline.start()
    _until(lambda: camera.closed == 1)
    assert not pipeline.wait_ended(0)
    assert not pipeline.state()["ended"]
    step.gate.set()
    assert pipeline.wait_ended(PATIENCE_S)
    state = pipeline.state()
    assert (state["ended"], state["frames_processed"], state["error"]) == (True, 3, None)
    assert camera.opened == 1


def test_a_broken_recording_ends_with_its_error(rig, caplog):
    """Mutations: it is opened again for ever; its error is lost, or logged again and again."""
    camera = ScriptedCamera()
    pipeline = rig(camera=camera)
    camera.put(0, 1, 2)
    camera.script.put(BrokenRecording("frame 3 cannot be read"))
    pipeline.start()
    assert pipeline.wait_ended(PATIENCE_S)
    state = pipeline.state()
    assert (state["error"], state["frames_processed"]) == ("frame 3 cannot be read", 3)
    assert camera.opened == camera.closed == 1
    assert pipeline.fault() is None
    assert [record.message for record in caplog.records] == ["camera: frame 3 cannot be read"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("thread", ["camera", "reconstruction"])
def test_what_nobody_foresaw_is_told_and_ends_it(rig, thread):
    """Mutation: the thread dies without a word, and who waits for the end waits for ever."""
    camera, step = ScriptedCamera(), CountingStep()
    fault = LookupError("of ours")
    if thread == "reconstruction":
        step.errors.put(fault)
        camera.put(0)
    else:
        camera.script.put(fault)
    pipeline = rig(camera=camera, step=step)
    pipeline.start()
    assert pipeline.wait_ended(PATIENCE_S)
    expected = f"the {thread} thread failed (LookupError: of ours)"
    assert pipeline.fault() == pipeline.state()["error"] == expected
    assert pipeline.stop()
    assert camera.closed == 1


def test_a_pipeline_starts_once(rig):
    """Mutation: two threads on one camera."""
    pipeline = rig()
    pipeline.start()
    with pytest.raises(RuntimeError, match="once"):
        pipeline.start()


# --- who looks -----------------------------------------------------------------------------------


def test_the_views_show_the_buffer(rig):
    """Mutations: views exchanged; the mean of another number of frames; raw as it came."""
    camera = ScriptedCamera()
    pipeline = rig(camera=camera, capacity=4)
    assert pipeline.latest("raw") is pipeline.latest("std") is None
    pipeline.start()
    images = [_image(index) // 16 for index in range(6)]
    for index, image in enumerate(images):
        camera.put(index, start_index=index, array=image.astype(np.uint8))
        _processed(pipeline, index + 1)
    held = pipeline._buffer.frames().astype(float)
    raw, mean, std, image = (
        pipeline.latest(view) for view in ("raw", "mean", "std", "reconstruction")
    )
    np.testing.assert_array_equal(raw.array, images[-1].astype(np.uint8))
    assert (raw.array.dtype, raw.frames) == (np.uint16, 1)
    np.testing.assert_allclose(mean.array, held.mean(0), rtol=1e-6)  # float32 rounding
    np.testing.assert_allclose(std.array, held.std(0), rtol=1e-6, atol=1e-5)
    assert (mean.frames, std.frames) == (4, 4)
    assert (image.array.shape, image.array.dtype) == ((32, 36), np.float32)
    assert {view.index for view in (raw, mean, std, image)} == {5}
    assert {view.seq for view in (raw, mean, std, image)} == {raw.seq}
    with pytest.raises(ValueError, match="a view is one of"):
        pipeline.latest("variance")


def test_the_deviation_is_computed_once_and_only_for_who_looks(rig, monkeypatch):
    """Mutation: computed for every frame, or for every look."""
    calls = []
    std = Sums.std

    def counted(sums: Sums) -> np.ndarray:
        if sums.total.shape == camera.shape:  # not the few pixels that the noise is judged by
            calls.append(1)
        return std(sums)

    monkeypatch.setattr(Sums, "std", counted)
    camera = ScriptedCamera()
    pipeline = rig(camera=camera)
    pipeline.start()
    camera.put(0, 1)
    _processed(pipeline, 2)
    assert not calls
    first = pipeline.latest("std")
    assert pipeline.latest("std") is first
    assert len(calls) == 1
    camera.put(2, start_index=2)
    _processed(pipeline, 3)
    assert pipeline.latest("std").index == 2


class Judging:
    """Says that every pixel may be off by a tenth of what it is, and keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple] = []

    def estimate(self, *given):
        self.shown.append(given)
        return given[0] / 10


def test_the_error_is_that_of_the_newest_reconstruction_and_computed_once(rig):
    """Mutations: computed for every frame or every look; normalized where ADU are promised; of
    another moment than the image beside it."""
    camera, step = ScriptedCamera(), CountingStep(frames=6)
    step.expected_error = Judging()
    pipeline = rig(camera=camera, step=step)
    assert pipeline.latest("error") is None
    pipeline.start()
    assert pipeline.state()["tells_error"]
    camera.put(*range(6))
    _processed(pipeline, 6)
    assert not step.expected_error.shown
    error, image = pipeline.latest("error"), pipeline.latest("reconstruction")
    assert pipeline.latest("error") is error
    np.testing.assert_allclose(error.array, image.array / 10, rtol=1e-6)
    assert (error.seq, error.timestamp_ns, error.index) == (image.seq, image.timestamp_ns, 5)
    assert (error.view, error.facts) == ("error", image.facts)
    ((_, mean, std, told),) = step.expected_error.shown
    held = pipeline._buffer.frames().astype(float)
    scale, background = error.facts["scale"], error.facts["background"]
    np.testing.assert_allclose(mean, (held.mean(0) - background) / scale, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(std, held.std(0) / scale, rtol=1e-4, atol=1e-5)
    assert told is None
    camera.put(6, start_index=6)
    _processed(pipeline, 7)
    assert pipeline.latest("error").index == 6


def test_the_error_goes_with_its_image_while_the_next_is_made(rig):
    """Mutation: judged by the buffer of now, which a reset has emptied."""
    camera, step = ScriptedCamera(), CountingStep(frames=3)
    step.expected_error = Judging()
    pipeline = rig(camera=camera, step=step)
    pipeline.start()
    for index in range(4):
        camera.put(index, start_index=index)
        _processed(pipeline, index + 1)
    held = pipeline._buffer.frames().astype(float)
    while step.entered.acquire(blocking=False):
        pass
    step.gate.clear()
    pipeline.reset()
    camera.put(4, start_index=4)
    assert step.entered.acquire(timeout=PATIENCE_S)
    error, image = pipeline.latest("error"), pipeline.latest("reconstruction")
    assert (error.seq, error.array.shape) == (image.seq, image.array.shape)
    ((_, _, std, _),) = step.expected_error.shown
    np.testing.assert_allclose(std * error.facts["scale"], held.std(0), rtol=1e-4, atol=1e-3)


def test_nobody_knows_the_error_of_a_model_that_does_not_tell_it(rig):
    """Mutation: the newest image of another view in its place."""
    camera = ScriptedCamera()
    pipeline = rig(camera=camera)
    pipeline.start()
    camera.put(0, 1)
    _processed(pipeline, 2)
    assert pipeline.latest("error") is None
    assert not pipeline.state()["tells_error"]


def test_the_deviation_is_computed_outside_the_lock(rig, monkeypatch):
    """Mutation: under it, so that the camera's thread and the event loop wait for who looks."""
    camera = ScriptedCamera()
    pipeline = rig(camera=camera)
    pipeline.start()
    camera.put(0, 1)
    _processed(pipeline, 2)
    free = []
    std = Sums.std

    def watched(sums: Sums) -> np.ndarray:
        reader = threading.Thread(target=lambda: free.append(pipeline.state()), daemon=True)
        reader.start()
        reader.join(1.0)  # in vain, where the lock is held
        assert free
        return std(sums)

    monkeypatch.setattr(Sums, "std", watched)
    assert pipeline.latest("std") is not None


def test_there_is_no_reconstruction_of_one_frame(rig):
    """Mutation: an image from the first frame on."""
    camera = ScriptedCamera()
    pipeline = rig(camera=camera)
    pipeline.start()
    camera.put(0)
    _processed(pipeline, 1)
    assert pipeline.latest("reconstruction") is None
    assert pipeline.latest("mean") is not None
    assert (pipeline.state()["reconstructions"], pipeline.state()["warming"]) == (0, True)


def test_subscribers_hear_of_each_result_until_they_leave(rig):
    """Mutations: called before the result is there; called after leaving; one error stops all."""
    camera = ScriptedCamera()
    pipeline = rig(camera=camera)
    heard: list[int] = []
    calls = itertools.count()

    def failing() -> None:
        next(calls)
        raise RuntimeError("the event loop is closed")

    pipeline.subscribe(failing)
    leave = pipeline.subscribe(lambda: heard.append(pipeline.latest("raw").index))
    pipeline.start()
    for index in range(3):
        camera.put(index, start_index=index)
        _until(lambda index=index: heard == list(range(index + 1)))
    assert next(calls) == 1
    leave()
    leave()
    camera.put(3, start_index=3)
    _processed(pipeline, 4)
    assert heard == [0, 1, 2]


def test_latency_is_from_arrival_to_result(rig):
    """Mutation: measured from the sensor's clock, or only the step's time."""
    camera, step, clock = ScriptedCamera(), CountingStep(), Clock()
    pipeline = rig(camera=camera, step=step, clock=clock)
    pipeline.start()
    camera.put(0)
    _processed(pipeline, 1)
    assert pipeline.state()["latency_ms"] == {"p50": None, "p95": None}
    step.gate.clear()
    camera.put(1, start_index=1)
    for _ in range(2):
        assert step.entered.acquire(timeout=PATIENCE_S)
    clock.now_s += 0.5
    step.gate.set()
    _processed(pipeline, 2)
    assert pipeline.state()["latency_ms"]["p50"] == pytest.approx(500)
    pipeline.set_mode("window")  # which takes another time: the page must not wait as for a stream
    assert pipeline.state()["latency_ms"] == {"p50": None, "p95": None}


def test_the_state_has_the_fields_of_the_contract(rig):
    """Mutation: a field renamed or left out, before frames as well as after."""
    camera = ScriptedCamera()
    pipeline = rig(camera=camera)
    assert set(pipeline.state()) == STATE_FIELDS
    pipeline.start()
    camera.put(0, 1)
    _processed(pipeline, 2)
    state = pipeline.state()
    assert set(state) == STATE_FIELDS
    assert state["model"] == {"name": "counting", "sha256": "ab" * 32}
    assert (state["camera"], state["mode"]) == ("scripted", "stream")
    assert state["frame_interval_s"] == INTERVAL_S
