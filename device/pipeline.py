"""Camera thread -> queue -> reconstruction thread -> latest result; no I/O of its own.

The camera thread reads frames, judges them and queues them. The reconstruction thread takes them
in order, keeps the buffer and reconstructs. The queue holds a window, so that a machine which is
busy for a moment loses nothing; what is too much pushes the oldest out. In stream mode, where that
has happened and the work on a frame is known to take longer than the camera does, waiting would
only make old images: then the queue holds a few frames and the newest win, until the work is fast
enough again. Those that wait are taken into the stream without an image of their own, in less time,
but for the last of them; with a model that has no such shorter step the queue holds one. In window
mode the frames that came while a window was computed all enter the buffer before the next window
begins.

One lock guards the accounts, the queue, the results and the buffer against `push`. Only short work
is done under it: what is computed because somebody looks at it (standard deviation, error) is
computed outside, of copied sums.

What a thread did not foresee ends the pipeline: it is told by `fault`, and raised on in its thread.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum
from typing import Any, cast

import numpy as np

from device.accounting import Accounts, Clock, Latencies, RateMeter
from device.camera import (
    DTYPES,
    MIN_SIDE_PX,
    BrokenRecording,
    Camera,
    CameraError,
    CameraTimeout,
    EndOfStream,
    Frame,
    is_recorded,
)
from device.model import ModelError, Step
from device.preparation import Preparation
from device.reconstructor import (
    LOOKED_AT_EVERY,
    MODES,
    Mode,
    Reconstruction,
    Reconstructor,
    said_error,
    told_psf,
)
from device.ring_buffer import RingBuffer, missed_between

VIEWS = ("raw", "mean", "std", "reconstruction", "error")

_log = logging.getLogger(__name__)

_WORK_KEPT = 4 * LOOKED_AT_EVERY
_FIRST_STEPS = 5  # the first steps allocate and tell nothing of the later
_KEEPS_UP = 0.9
# Frames without an image before one that has one. Together they take no longer than an image does:
# more would make images rarer and older than a viewer likes.
_CARRIED = 2
_READ_TIMEOUT_S = 0.25
_GAP_S = 1.0
_OPEN_DEADLINE_S = 10.0
_NO_FRAME = "no_frame"


@dataclass(frozen=True, slots=True)
class View:
    """One image to look at.

    Attributes
    ----------
    view : str
        One of `VIEWS`.
    array : ndarray
        (H, W) uint16 or float32 in ADU; the reconstruction (2H, 2W), in ADU above background, and
        so its error. Nobody writes to it.
    seq : int
        Grows with every published result.
    timestamp_ns : int
        Sensor timestamp of the newest frame in it, in ns.
    index : int
        Number of the newest frame in it.
    frames : int
        Number of frames in it.
    facts : mapping
        What it was made from and how, for who keeps it. The reconstruction: ``mode``,
        ``psf_sigma_px`` as the network was told it, ``psf_found`` (``sigma_px`` and
        ``relative_error``, where nobody gave it), ``background`` and ``scale`` of the normalization
        in ADU, ``warming``, ``gaps``, ``span_ms`` and ``model`` (name and sha256). Its error: the
        same. Other images: nothing.
    """

    view: str
    array: np.ndarray
    seq: int
    timestamp_ns: int
    index: int
    frames: int
    facts: Mapping[str, Any] = field(default_factory=dict)


def _said_of_psf(result: Reconstruction) -> dict[str, Any]:
    """Say which width of the PSF a result's network was told, and what was found of it."""
    found = result.psf_found and asdict(result.psf_found)
    return {"psf_sigma_px": result.psf_sigma_px, "psf_found": found}


class _Break(IntEnum):
    """How much of the past a frame can no longer be joined to."""

    NONE = 0
    STREAM = 1
    ALL = 2


@dataclass(frozen=True, slots=True)
class _Era:
    """Frames of one era belong together; each frame carries its own.

    The breaks are numbered, so that a break is not lost with the frame that was skipped.
    """

    mode: Mode
    interval_s: float = 0.0
    stream: int = 0
    window: int = 0
    preparation: Preparation = field(default_factory=Preparation)

    def after(self, break_: _Break) -> _Era:
        stream = self.stream + (break_ >= _Break.STREAM)
        return replace(self, stream=stream, window=self.window + (break_ >= _Break.ALL))

    def broken_from(self, before: _Era) -> bool:
        """Tell whether the past is to be forgotten when this era follows another."""
        if self.window != before.window:
            return True
        # A window over a gap is marked, not forgotten.
        return self.mode == "stream" and self.stream != before.stream


@dataclass(frozen=True, slots=True)
class _Arrival:
    frame: Frame
    time_s: float
    era: _Era
    raw: np.ndarray | None = None  # as it came, where the frame was corrected


class _Intake:
    """Judges the frames of one opened camera, in order."""

    def __init__(self, shape: tuple[int, int], interval_s: float) -> None:
        self._shape = shape
        self._interval_s = interval_s
        # A slow camera's ordinary interval is no gap.
        self._gap_s = max(_GAP_S, 3 * interval_s)
        self._dtype: np.dtype | None = None
        self._newest_ns: int | None = None
        self._seen_ns: int | None = None  # of any frame: an unusable one was not missed

    def reason_against(self, frame: Frame) -> str | None:
        """Say why a frame cannot be used: a key of `Accounts.discarded`, or None."""
        array = frame.array
        if array.shape != self._shape:
            return "shape"
        if array.dtype not in DTYPES or self._dtype not in (None, array.dtype):
            return "dtype"
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return "not_finite"
        return self._order(frame.timestamp_ns)

    def missed_before(self, frame: Frame) -> int:
        """Count the frames that never came between the last one, usable or not, and this."""
        seen_ns = self._seen_ns
        if seen_ns is None or frame.timestamp_ns > seen_ns:
            self._seen_ns = frame.timestamp_ns
        if seen_ns is None:
            return 0
        return missed_between(seen_ns, frame.timestamp_ns, self._interval_s)

    def join(self, frame: Frame) -> _Break:
        """Take a usable frame as the newest; tell what it breaks."""
        before_ns, self._newest_ns = self._newest_ns, frame.timestamp_ns
        self._dtype = frame.array.dtype
        if before_ns is None:
            return _Break.NONE
        if frame.timestamp_ns < before_ns:  # the sensor's clock began anew
            self._seen_ns = frame.timestamp_ns
            return _Break.ALL
        passed_s = (frame.timestamp_ns - before_ns) * 1e-9
        return _Break.STREAM if passed_s > self._gap_s else _Break.NONE

    def _order(self, timestamp_ns: int) -> str | None:
        if self._newest_ns is None or timestamp_ns > self._newest_ns:
            return None
        if timestamp_ns == self._newest_ns:
            return "duplicate"
        # Further back than a gap, the sensor's clock began anew.
        back_s = (self._newest_ns - timestamp_ns) * 1e-9
        return None if back_s > self._gap_s else "out_of_order"


def backoff_delays_s(first_s: float = 0.5, longest_s: float = 10.0) -> Iterator[float]:
    """Yield the waiting times between attempts to open a camera, in s: each twice the last."""
    delay_s = first_s
    while True:
        yield delay_s
        delay_s = min(2 * delay_s, longest_s)


class _Pace:
    """Tells whether the work for an image keeps up with the camera.

    It is the median work for a step, as some of it is held up, times the steps that an image was
    made with on average: some have a second one beside them (`LOOKED_AT_EVERY`). What a step of
    the younger state takes (`RENEWED_AFTER`) is counted as the step's, as it comes with all or
    none: the second step, which has none, is taken for dearer than it is, and the pace for slower,
    by a tenth.

    Slow steps alone prove nothing while the queue takes what they leave: a machine that is busy for
    a moment catches up. Behind is who has let the queue run over; until the work is fast enough.
    """

    def __init__(self) -> None:
        self._step_s: deque[float] = deque(maxlen=_WORK_KEPT)  # for frames that got an image
        self._steps: deque[int] = deque(maxlen=_WORK_KEPT)
        self.behind = False

    def add(self, work_s: float, steps: int) -> None:
        """Take note of the work for an image, s: one step, two, or a buffer to catch up with."""
        steps = max(1, steps)
        self._step_s.append(work_s / steps)
        self._steps.append(min(steps, 2))

    def note(self, overrun: bool, interval_s: float) -> None:
        """Take note of whether the queue has run over: `behind` says how things stand."""
        self.behind = (self.behind or overrun) and not self._keeps_up(interval_s)

    def _keeps_up(self, interval_s: float) -> bool:
        if len(self._step_s) < _FIRST_STEPS or interval_s <= 0:
            return True
        work_s = statistics.median(self._step_s) * statistics.mean(self._steps)
        return work_s < _KEEPS_UP * interval_s


class Pipeline:
    """A camera's frames, reconstructed as they come.

    Parameters
    ----------
    camera : Camera
        Opened, read and closed by the pipeline.
    step : Step
        Used by the pipeline alone, between `start` and `stop`.
    mode : str
        ``stream`` or ``window``.
    capacity : int, optional
        Frames in the buffer; default is the model's window.
    clock : callable
        Monotonic time in s.
    backoff_s : tuple of float
        First and longest waiting time before a failed camera is opened again, in s.
    prepare : callable, optional
        Tells for the opened camera what is done to its frames before anything is measured on them;
        the raw view shows them as they came.
    psf_sigma_px : float, optional
        Width of the PSF in px of the prepared frames, instead of what the optics say.

    Raises
    ------
    ValueError
        The model does not take that width; see `check_psf`.
    """

    def __init__(
        self,
        camera: Camera,
        step: Step,
        mode: Mode = "stream",
        capacity: int | None = None,
        clock: Clock = time.monotonic,
        backoff_s: tuple[float, float] = (0.5, 10.0),
        prepare: Callable[[Camera], Preparation] = lambda _: Preparation(),
        psf_sigma_px: float | None = None,
    ) -> None:
        self._camera = camera
        self._prepare = prepare
        self._step = step
        self._capacity = capacity or step.manifest.frames
        self._clock = clock
        self._backoff_s = backoff_s
        self._reconstructor = Reconstructor(step, mode)
        self._era = self._followed = _Era(mode)
        self._psf_given_px = psf_sigma_px
        self._psf_wanted_px: float | None = None  # while running, instead of both
        self._psf_known_px: float | None = None  # to the reconstructor; else it looks for it
        self._changed = threading.Condition()
        self._looking = threading.Lock()  # one std or error at a time
        self._queue: deque[_Arrival] = deque()
        self._buffer: RingBuffer | None = None
        self._newest: Frame | None = None
        self._views: dict[str, View] = {}
        self._last: Reconstruction | None = None
        self._last_era: _Era | None = None
        self._seq = 0
        self._unused = 0  # frames that entered the buffer since the last window
        self._carried = 0  # frames that entered the stream since the last image
        self._accounts = Accounts()
        self._camera_rate = RateMeter(clock)
        self._result_rate = RateMeter(clock)
        self._latencies = Latencies()
        self._pace = _Pace()
        self._callbacks: list[Callable[[], object]] = []
        self._taps: tuple[Callable[[Frame], object], ...] = ()
        self._reopening = threading.Event()
        self._camera_error: str | None = None
        self._model_error: str | None = None
        self._fault: str | None = None
        self._last_arrival_s: float | None = None
        self._started_s: float | None = None
        self._source_ended = False
        self._attempts = 0  # to open the camera, that ended in time
        self._ended = threading.Event()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.check_psf(psf_sigma_px)

    # --- for the owner ---------------------------------------------------------------------------

    def start(self) -> None:
        """Start both threads; the camera is opened by its own, so this returns at once.

        Raises
        ------
        RuntimeError
            The pipeline was started before.
        """
        if self._threads:
            raise RuntimeError("a pipeline starts once")
        self._started_s = self._clock()
        work = {"camera": self._run_camera, "reconstruction": self._run_reconstruction}
        self._threads = [
            threading.Thread(target=self._guarded, args=(body,), name=name, daemon=True)
            for name, body in work.items()
        ]
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float = 2.0) -> bool:
        """End both threads and close the camera.

        Parameters
        ----------
        timeout : float
            Longest time to wait, in s; a thread that hangs in the camera is left behind.

        Returns
        -------
        bool
            True if both threads ended.
        """
        deadline_s = time.monotonic() + timeout
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        self._join(time.monotonic() + timeout / 2)
        if self._alive():
            # Closing from outside can wake a read that hangs; it may hang itself.
            threading.Thread(target=self._camera.close, name="camera close", daemon=True).start()
            self._join(deadline_s)
        for thread in self._alive():
            _log.warning(
                "the %s thread did not end within %.1f s; left behind", thread.name, timeout
            )
        return not self._alive()

    def wait_ended(self, timeout: float | None = None) -> bool:
        """Wait until a recording was played to its end and its frames were worked off, or a fault.

        Parameters
        ----------
        timeout : float, optional
            Longest time to wait, in s.

        Returns
        -------
        bool
            True if it has ended.
        """
        return self._ended.wait(timeout)

    def fault(self) -> str | None:
        """Say what a thread died of; None while nothing of the kind happened."""
        with self._changed:
            return self._fault

    def reset(self) -> None:
        """Forget the past: the next frame to come is the first."""
        with self._changed:
            self._era = self._era.after(_Break.ALL)

    def set_mode(self, mode: Mode) -> None:
        """Go on in another mode with the next frame to come, which is its first.

        Raises
        ------
        ValueError
            There is no such mode.
        """
        if mode not in MODES:
            raise ValueError(f"the mode is stream or window, not {mode}")
        with self._changed:
            if mode != self._era.mode:
                self._era = replace(self._era.after(_Break.ALL), mode=mode)
                self._latencies.clear()

    def check_psf(self, sigma_px: float | None) -> None:
        """Refuse a width of the PSF that the model is not told or was not trained for.

        Raises
        ------
        ValueError
            One sentence.
        """
        if sigma_px is None:
            return
        if not self._step.manifest.takes_psf:
            raise ValueError(f"{self._step.name} is not told the PSF's width; leave it out")
        low, high = self._step.manifest.psf_sigma_px
        if not low <= sigma_px <= high:
            raise ValueError(
                f"the PSF's sigma is {sigma_px:g} px; expected {low:g} to {high:g} px, for which "
                f"{self._step.name} was trained; bin the frames where it is wider"
            )

    def set_psf(self, sigma_px: float | None) -> None:
        """Tell the network the PSF's width in px of the prepared frames, from the next one on.

        None goes back to the width given at first, or what the optics say. Nothing is forgotten:
        the width changes only what is made of the past.

        Raises
        ------
        ValueError
            See `check_psf`.
        """
        self.check_psf(sigma_px)
        with self._changed:
            self._psf_wanted_px = sigma_px

    def psf(self) -> dict[str, Any] | None:
        """Say how wide the PSF is, in px of the prepared frames; None where the model is not told.

        As `set_psf` wants it, as the network is told it, within which limits, and what was found in
        the frames: `sigma_px` and its `relative_error`, or None.
        """
        if not self._step.manifest.takes_psf:
            return None
        low, high = self._step.manifest.psf_sigma_px
        with self._changed:
            said = {"wanted": self._psf_wanted_px, "min": low, "max": high}
            told = self._psf_told()
            return said | {"actual": told["psf_sigma_px"], "found": told["psf_found"]}

    def _psf_told(self) -> dict[str, Any]:
        """Tell, under the lock, the width that is given, or else was found for the last image."""
        known, last, era = self._psf_of(self._era), self._last, self._last_era
        same = era is not None and era.window == self._era.window  # binning, region and camera
        if known is None and same and last is not None and last.psf_found is not None:
            return _said_of_psf(last)
        return {"psf_sigma_px": known, "psf_found": None}

    def _psf_of(self, era: _Era) -> float | None:
        """Width that the network is told in an era, px of the prepared frames; None: unknown."""
        sources = (self._psf_wanted_px, self._psf_given_px, era.preparation.psf_sigma_px)
        known = next((sigma_px for sigma_px in sources if sigma_px is not None), None)
        return told_psf(self._step, known)

    @property
    def camera(self) -> Camera:
        """The camera; opened, read and closed by the pipeline alone."""
        return self._camera

    def reopen(self) -> None:
        """Close the camera and open it again, for settings that it takes only then."""
        self._reopening.set()

    def tap(self, callback: Callable[[Frame], object]) -> Callable[[], None]:
        """Have a function called with every frame as it comes from the camera, also unusable ones.

        Parameters
        ----------
        callback : callable
            Called from the camera's thread, so it must return at once and not raise.

        Returns
        -------
        callable
            Ends it; may be called twice.
        """
        with self._changed:
            self._taps += (callback,)
        return lambda: self._untap(callback)

    def _untap(self, callback: Callable[[Frame], object]) -> None:
        with self._changed:
            self._taps = tuple(tap for tap in self._taps if tap is not callback)

    # --- for who looks ---------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Have a function called after every new result.

        Parameters
        ----------
        callback : callable
            Called from the reconstruction thread, so it must return at once; one that raises
            RuntimeError (an event loop that is closed) is called no more.

        Returns
        -------
        callable
            Ends the subscription; may be called twice.
        """
        with self._changed:
            self._callbacks.append(callback)
        return lambda: self._unsubscribe(callback)

    def latest(self, view: str) -> View | None:
        """Return the newest image of a view, or None while there is none.

        Raises
        ------
        ValueError
            There is no such view.
        """
        if view not in VIEWS:
            raise ValueError(f"a view is one of {', '.join(VIEWS)}, not {view}")
        if view == "std":
            return self._latest_std()
        if view == "error":
            return self._latest_error()
        with self._changed:
            return self._views.get(view)

    @property
    def tells_error(self) -> bool:
        """Whether the model says how far its images may be off."""
        return self._step.expected_error is not None

    def healthy(self) -> bool:
        """Tell whether a usable frame came lately and somebody works on the frames."""
        with self._changed:
            age_s, limit_s = self._age_s(), self._patience_s()
        at_work = len(self._threads) == 2 and self._threads[1].is_alive()
        return at_work and age_s is not None and age_s < limit_s

    def progress(self) -> int:
        """Give a number that grows as long as the pipeline gets on, and stands still when it hangs.

        It counts frames processed, steps of the network, of which a window takes many, and attempts
        to open the camera that ended, well or not, within their deadline; of a recording, which is
        not opened again, the unusable frames too.
        """
        with self._changed:
            played = self._accounts.unusable if is_recorded(self._camera) else 0
            done = self._accounts.processed + self._reconstructor.steps
            return done + self._attempts + played

    def longest_pause_s(self) -> float:
        """Longest time in s for which `progress` may stand still although nothing hangs."""
        with self._changed:
            return self._patience_s() + self._backoff_s[1] + _OPEN_DEADLINE_S

    def state(self) -> dict[str, Any]:
        """Say how things stand: the fields of ``/api/state``, all of one moment."""
        with self._changed:
            return {**self._accounts_state(), **self._speed_state(), **self._result_state()}

    def _accounts_state(self) -> dict[str, Any]:
        accounts = self._accounts
        return {
            "frames_captured": accounts.captured,
            "frames_processed": accounts.processed,
            "frames_skipped": accounts.skipped,
            "frames_discarded": dict(accounts.discarded),
            "frames_missed": accounts.missed,
            "frames_waiting": len(self._queue),
            "reconstructions": accounts.reconstructions,
        }

    def _speed_state(self) -> dict[str, Any]:
        now_s = self._clock()
        return {
            "fps_camera": self._camera_rate.per_second(),
            "fps_reconstruction": self._result_rate.per_second(),
            "latency_ms": self._latencies.percentiles_ms(),
            "uptime_s": 0.0 if self._started_s is None else now_s - self._started_s,
            "last_frame_age_s": self._age_s(),
            "frame_interval_s": self._era.interval_s,
        }

    def _result_state(self) -> dict[str, Any]:
        last = self._last
        length = 0 if self._buffer is None else len(self._buffer)
        return {
            "mode": self._era.mode,
            **self._psf_told(),
            "camera": self._camera.name,
            "preparation": self._era.preparation.state(self._newest),
            "model": self._model_state(),
            "tells_error": self.tells_error,
            "buffer": {"length": length, "capacity": self._capacity},
            "gaps": last.gaps if last else 0,
            "span_ms": last.span_ms if last else 0.0,
            "warming": last.warming if last else True,
            "nothing_to_see": last.nothing_to_see if last else False,
            "error": self._fault or self._camera_error or self._model_error,
            "ended": self._ended.is_set(),
        }

    def _model_state(self) -> dict[str, str]:
        return {"name": self._step.name, "sha256": self._step.sha256}

    def _age_s(self) -> float | None:
        return None if self._last_arrival_s is None else self._clock() - self._last_arrival_s

    def _patience_s(self) -> float:
        return max(2.0, 10 * self._era.interval_s)

    def _latest_std(self) -> View | None:
        """Compute the std view, but once for a buffer: somebody looks at it."""
        with self._looking:
            with self._changed:
                newest, buffer, shown = self._newest, self._buffer, self._views.get("std")
                if newest is None or buffer is None or not len(buffer):
                    return shown
                if shown is not None and (shown.seq, shown.index) == (self._seq, newest.index):
                    return shown
                sums, seq = buffer.sums(), self._seq
            view = self._view("std", sums.std(), newest, sums.count, seq)
            with self._changed:
                self._views["std"] = view
            return view

    def _latest_error(self) -> View | None:
        """Compute how far the newest reconstruction may be off, but once: somebody looks at it."""
        with self._looking:
            with self._changed:
                of, last = self._views.get("reconstruction"), self._last
                shown = self._views.get("error")
            if of is None or last is None or (shown is not None and shown.seq == of.seq):
                return shown
            array = said_error(self._step, last)
            if array is None:
                return None
            view = replace(of, view="error", array=array)
            with self._changed:
                self._views["error"] = view
            return view

    def _unsubscribe(self, callback: Callable[[], object]) -> None:
        with self._changed:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

    def _alive(self) -> list[threading.Thread]:
        return [thread for thread in self._threads if thread.is_alive()]

    def _join(self, deadline_s: float) -> None:
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do a thread's work; what it did not foresee ends the pipeline and is raised on."""
        try:
            work()
        except BaseException as error:
            with self._changed:
                name, kind = threading.current_thread().name, type(error).__name__
                self._fault = self._fault or f"the {name} thread failed ({kind}: {error})"
            self._ended.set()
            raise

    # --- camera thread ---------------------------------------------------------------------------

    def _run_camera(self) -> None:
        delays_s = backoff_delays_s(*self._backoff_s)
        while not self._stopping.is_set():
            before = self._last_arrival()
            try:
                self._read_until_fault()
            except EndOfStream as end:
                if isinstance(end, BrokenRecording):
                    self._set_camera_error(str(end))
                self._end_source()
                return
            except CameraError as error:
                if not self._stopping.is_set():  # closing a camera may well end a read
                    self._set_camera_error(str(error))
            finally:
                self._camera.close()
            if self._last_arrival() != before:
                delays_s = backoff_delays_s(*self._backoff_s)
            self._stopping.wait(next(delays_s))

    def _read_until_fault(self) -> None:
        """Open the camera and read it until it fails, ends or the pipeline stops."""
        self._open_camera()
        intake = self._begin_intake()
        quiet_since_s = self._clock()
        self._reopening.clear()
        while not self._stopping.is_set() and not self._reopening.is_set():
            wrong = self._read_one(intake)
            # Opened again, a recording would lead to the same frames again, and never past them.
            if wrong is None or (wrong != _NO_FRAME and is_recorded(self._camera)):
                quiet_since_s = self._clock()
            elif self._clock() - quiet_since_s > self._patience_s():
                raise self._silence(wrong)

    def _read_one(self, intake: _Intake) -> str | None:
        """Take in a frame; say what was wrong with it or that none came, None for a usable one."""
        try:
            frame = self._camera.read(_READ_TIMEOUT_S)
        except CameraTimeout:
            return _NO_FRAME
        return self._admit(frame, intake)

    def _silence(self, wrong: str) -> CameraTimeout:
        what = "no frame" if wrong == _NO_FRAME else f"no usable frame (discarded: {wrong})"
        return CameraTimeout(
            f"{self._camera.name} gave {what} within {self._patience_s():g} s; expected one "
            f"every {self._era.interval_s:.3g} s; look at its cable and at `learn2sofi check`"
        )

    def _open_camera(self) -> None:
        began_s = self._clock()
        try:
            self._camera.open()
        finally:
            with self._changed:
                self._attempts += self._clock() - began_s < _OPEN_DEADLINE_S

    def _begin_intake(self) -> _Intake:
        shape, interval_s = self._camera.shape, self._camera.frame_interval_s
        preparation = self._prepare(self._camera)
        preparation.check(shape)
        if min(preparation.shape(shape)) < MIN_SIDE_PX:
            raise CameraError(
                f"{self._camera.name} gives frames of {shape[0]} x {shape[1]} px where at least "
                f"{MIN_SIDE_PX} x {MIN_SIDE_PX} are expected; choose a larger region"
            )
        with self._changed:
            # Another clock and maybe another scene: nothing joins what came before.
            self._era = replace(
                self._era.after(_Break.ALL), interval_s=interval_s, preparation=preparation
            )
        return _Intake(shape, interval_s)

    def _admit(self, frame: Frame, intake: _Intake) -> str | None:
        """Queue a frame, or discard it and say why."""
        now_s = self._clock()
        for tap in self._taps:
            tap(frame)
        reason = intake.reason_against(frame)
        with self._changed:
            self._accounts.missed += intake.missed_before(frame)
            if reason:
                self._accounts.discard(reason)
                return reason
            self._era = self._era.after(intake.join(frame))
            self._last_arrival_s = now_s
            self._camera_rate.tick(now_s)
            self._enqueue(_Arrival(frame, now_s, self._era))
        self._set_camera_error(None)
        return None

    def _enqueue(self, arrival: _Arrival) -> None:
        self._queue.append(arrival)
        self._pace.note(len(self._queue) > self._capacity, arrival.era.interval_s)
        room = self._capacity
        if self._pace.behind and arrival.era.mode == "stream":
            room = min(room, 1 + _CARRIED if self._step.has_recurrence else 1)
        while len(self._queue) > room:
            self._queue.popleft()
            self._accounts.skip()
        self._changed.notify_all()

    def _end_source(self) -> None:
        with self._changed:
            self._source_ended = True
            self._changed.notify_all()

    def _last_arrival(self) -> float | None:
        with self._changed:
            return self._last_arrival_s

    def _set_camera_error(self, error: str | None) -> None:
        """Show a camera's error or its end; log only the change."""
        with self._changed:
            before, self._camera_error = self._camera_error, error
        if error and error != before:
            _log.warning("camera: %s", error)
        elif before and not error:
            _log.info("camera: frames come again")

    # --- reconstruction thread -------------------------------------------------------------------

    def _run_reconstruction(self) -> None:
        while (taken := self._take()) is not None:
            began_s = self._clock()
            arrival = self._prepared(taken)
            self._buffer_frame(arrival)
            if arrival.era.mode == "stream":
                if self._is_carried(arrival):
                    self._carry(arrival)
                else:
                    self._reconstruct(arrival, began_s)
            elif not self._window_can_grow(arrival):
                self._unused = 0
                self._reconstruct(arrival, began_s)
        if self._source_ended and not self._stopping.is_set():
            self._ended.set()

    def _take(self) -> _Arrival | None:
        """Wait for a frame; None when there is nothing more to do."""
        with self._changed:
            while not self._queue and not self._source_ended and not self._stopping.is_set():
                self._changed.wait()
            if self._stopping.is_set() or not self._queue:
                return None
            self._accounts.take()
            return self._queue.popleft()

    def _prepared(self, arrival: _Arrival) -> _Arrival:
        frame = arrival.frame
        array = arrival.era.preparation.apply(frame.array)  # (H, W), smaller where binned
        if array is frame.array:
            return arrival
        return replace(arrival, frame=replace(frame, array=array), raw=frame.array)

    def _is_carried(self, arrival: _Arrival) -> bool:
        """Tell whether a later frame of the same stream gets the image."""
        with self._changed:
            wanted = self._pace.behind and self._goes_on(arrival)
        carried = wanted and self._step.has_recurrence and self._carried < _CARRIED
        self._carried = self._carried + 1 if carried else 0
        return carried

    def _window_can_grow(self, arrival: _Arrival) -> bool:
        """Tell whether the next waiting frame belongs in the same window and pushes none out."""
        self._unused += 1
        with self._changed:
            return self._goes_on(arrival) and self._unused < self._capacity

    def _goes_on(self, arrival: _Arrival) -> bool:
        """Tell, under the lock, whether a frame waits that belongs to the same series."""
        return bool(self._queue) and not self._queue[0].era.broken_from(arrival.era)

    def _buffer_frame(self, arrival: _Arrival) -> None:
        """Put a frame into the buffer, after what its era asks for."""
        broken = arrival.era.broken_from(self._followed)
        if arrival.era.window != self._followed.window:
            self._reconstructor.reset()
        elif broken:  # by a gap
            self._reconstructor.begin_anew()
        self._followed = arrival.era
        known_px = self._psf_of(arrival.era)
        if known_px != self._psf_known_px:
            self._psf_known_px = known_px
            self._reconstructor.set_psf(known_px)
        self._reconstructor.mode = arrival.era.mode
        self._reconstructor.interval_s = arrival.era.interval_s
        kept = 0 if broken else self._capacity
        if change := self._reconstructor.scene_changed(arrival.frame.array):
            _log.info(
                "frame %d shows %s: the stream begins anew",
                arrival.frame.index,
                "another place" if change.moved else "another scene",
            )
            kept = min(kept, change.shown)
        with self._changed:
            buffer = self._fitting_buffer(arrival.frame.array)
            if kept < len(buffer):
                buffer.keep_last(kept)
            buffer.push(arrival.frame)
            self._newest = arrival.frame
            if arrival.era.mode == "window":
                self._accounts.finish()  # it is in a window now, whenever that is computed

    def _fitting_buffer(self, array: np.ndarray) -> RingBuffer:
        buffer = self._buffer
        if buffer is None or (buffer.shape, buffer.dtype) != (array.shape, array.dtype):
            shape = cast(tuple[int, int], array.shape)
            buffer = self._buffer = RingBuffer(self._capacity, shape, array.dtype)
        return buffer

    def _carry(self, arrival: _Arrival) -> None:
        """Take a frame into the stream without an image."""
        assert self._buffer is not None
        try:
            self._reconstructor.carry(arrival.frame, self._buffer)
        except ModelError as error:
            self._fail(arrival, str(error))
            return
        with self._changed:
            self._accounts.finish()

    def _reconstruct(self, arrival: _Arrival, began_s: float) -> None:
        """Reconstruct with the newest frame and publish; a failure is shown, not died of."""
        assert self._buffer is not None
        before = self._reconstructor.steps
        try:
            result = self._reconstructor.push(arrival.frame, self._buffer)
        except ModelError as error:
            self._fail(arrival, str(error))
            return
        mean = self._buffer.mean()  # (H, W)
        with self._changed:
            self._publish(arrival, mean, result)
            if arrival.era.mode == "stream":
                self._pace.add(self._clock() - began_s, self._reconstructor.steps - before)
            callbacks = tuple(self._callbacks)
        for callback in callbacks:
            self._call(callback)

    def _fail(self, arrival: _Arrival, error: str) -> None:
        with self._changed:
            if arrival.era.mode == "stream":
                self._accounts.fail()
            before, self._model_error = self._model_error, error
        if error != before:
            _log.error("reconstruction: %s", error)

    def _publish(self, arrival: _Arrival, mean: np.ndarray, result: Reconstruction | None) -> None:
        assert self._buffer is not None
        frame, frames = arrival.frame, len(self._buffer)
        self._seq += 1
        self._model_error = None
        raw = frame.array if arrival.raw is None else arrival.raw  # (H, W)
        raw = raw.astype(np.uint16) if raw.dtype == np.uint8 else raw
        self._views["raw"] = self._view("raw", raw, frame, 1)
        self._views["mean"] = self._view("mean", mean, frame, frames)
        if arrival.era.mode == "stream":
            self._accounts.finish()
        if result is not None:
            self._publish_result(arrival, result)

    def _publish_result(self, arrival: _Arrival, result: Reconstruction) -> None:
        now_s = self._clock()
        self._last, self._last_era = result, arrival.era
        self._accounts.reconstructions += 1
        self._result_rate.tick(now_s)
        self._latencies.add(now_s - arrival.time_s)
        self._views["reconstruction"] = self._view(
            "reconstruction", result.image, arrival.frame, result.frames
        )

    def _view(
        self, view: str, array: np.ndarray, newest: Frame, frames: int, seq: int | None = None
    ) -> View:
        seq = self._seq if seq is None else seq
        facts = self._facts() if view == "reconstruction" else {}
        return View(view, array, seq, newest.timestamp_ns, newest.index, frames, facts)

    def _facts(self) -> dict[str, Any]:
        """Say how the last result was made: `View.facts`."""
        last = self._last
        assert last is not None
        return {
            "mode": last.mode,
            **_said_of_psf(last),
            "background": last.scaling.background,
            "scale": last.scaling.scale,
            "warming": last.warming,
            "gaps": last.gaps,
            "span_ms": last.span_ms,
            "model": self._model_state(),
        }

    def _call(self, callback: Callable[[], object]) -> None:
        try:
            callback()
        except RuntimeError:
            _log.warning("a subscriber failed and is called no more", exc_info=True)
            self._unsubscribe(callback)
