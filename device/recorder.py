"""Raw frames to OME-TIFF, each with its timestamp, exposure and gain, without losing one."""

from __future__ import annotations

import logging
import math
import queue
import threading
from array import array
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tifffile

from device.camera import Frame, facts_of
from device.errors import FaultError, UserError
from device.files import whole_or_nothing
from device.ometiff import NAMESPACE, OutputError, check_output
from device.ring_buffer import missed_between

if TYPE_CHECKING:
    import numpy as np

    from device.microscope import Microscope
    from device.pipeline import Pipeline

log = logging.getLogger(__name__)

WAITING_BYTES = 256 * 1024 * 1024
"""Frames that may wait for the disk, in bytes; a minute of 128 x 128 px, seconds of full frames."""


class RecordingError(FaultError):
    """A recording ended before it was asked to; the text is one sentence for the user."""


class Recorder:
    """Writes frames in a thread of its own, so that the camera never waits for a disk.

    The file appears under its name when it is whole. If the disk stays behind for too long, the
    recording ends there: what it holds has no hole.

    Parameters
    ----------
    path : Path
        The file, ``.ome.tif``.
    pixel_size_um : float, optional
        Side of a pixel in the sample plane in um.
    annotations : mapping, optional
        Names and values that the file carries; None is left out.
    interval_s : float
        Nominal time between frames in s, to count by what the camera itself missed; 0 where it is
        not known.
    waiting_bytes : int
        Frames that may wait for the disk, in bytes.
    overwrite : bool
        Whether a file that is there already may be replaced.

    Raises
    ------
    OutputError
        The path cannot be written to, or holds a file that is not to be replaced.
    """

    def __init__(
        self,
        path: Path,
        *,
        pixel_size_um: float | None = None,
        annotations: Mapping[str, object] | None = None,
        interval_s: float = 0.0,
        waiting_bytes: int = WAITING_BYTES,
        overwrite: bool = False,
    ) -> None:
        check_output(path)
        if not overwrite:
            _refuse_existing(path)
        self.path = path
        self._pixel_size_um = pixel_size_um
        self._annotations = dict(annotations or {})
        self._interval_s = interval_s
        self._waiting_bytes = waiting_bytes
        self._queue: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._like: tuple[tuple[int, ...], np.dtype] | None = None
        self._taken = 0
        self._missed = 0
        self._newest_ns: int | None = None
        self._written = _Ledger()
        self._ended = False
        self._error: str | None = None
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    @property
    def frames(self) -> int:
        """Frames taken in so far."""
        return self._taken

    @property
    def missed(self) -> int:
        """Frames that the camera itself missed meanwhile: gaps in the sensor's timestamps."""
        return self._missed

    @property
    def error(self) -> str | None:
        """Why the recording ended by itself; None if it did not."""
        return self._error

    def add(self, frame: Frame) -> bool:
        """Take a frame in; returns at once.

        Parameters
        ----------
        frame : Frame
            As it came from the camera.

        Returns
        -------
        bool
            False if the recording has ended.
        """
        with self._lock:
            if self._ended:
                return False
            problem = self._problem(frame)
            if problem:
                self._fail(problem)
                return False
            self._taken += 1
            self._note_gap(frame)
            self._queue.put(frame)
            return True

    def _note_gap(self, frame: Frame) -> None:
        newest_ns, self._newest_ns = self._newest_ns, frame.timestamp_ns
        if newest_ns is not None:
            self._missed += missed_between(newest_ns, frame.timestamp_ns, self._interval_s)

    def _problem(self, frame: Frame) -> str | None:
        array = frame.array
        self._like = self._like or (array.shape, array.dtype)
        if (array.shape, array.dtype) != self._like:
            return (
                f"the frames changed to {array.dtype} {array.shape} after {self._taken} frames; "
                "expected all alike; the file holds those before, start another recording"
            )
        if (self._queue.qsize() + 1) * array.nbytes > self._waiting_bytes:
            return (
                f"the disk could not keep up after {self._taken} frames; expected a faster one, "
                "a smaller region or a lower rate; the file holds the frames up to there"
            )
        return None

    def _fail(self, error: str) -> None:
        self._error = self._error or f"{self.path}: {error}"
        self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._queue.put(None)

    def finish(self) -> None:
        """End the recording and wait until the file is whole.

        Raises
        ------
        RecordingError
            It had ended by itself, or there is no file: no frame came, or the disk failed.
        """
        with self._lock:
            self._end()
        self._thread.join()
        if self._error:
            raise RecordingError(self._error)

    def state(self) -> dict[str, Any]:
        """Tell how the recording stands."""
        return {
            "recording": not self._ended,
            "file": str(self.path),
            "frames": self._taken,
            "missed": self._missed,
            "waiting": max(0, self._taken - len(self._written)),
            "error": self._error,
        }

    # --- writer's thread -------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with whole_or_nothing(self.path) as beside:
                self._write_pages(beside)
                tifffile.tiffcomment(beside, self._description().encode())
        except RecordingError as error:
            with self._lock:
                self._fail(str(error))
        except OSError as error:
            with self._lock:
                self._fail(
                    f"could not be written ({error.strerror or error}); expected room and a "
                    "working disk; nothing was left behind, free some space and record again"
                )

    def _write_pages(self, beside: Path) -> None:
        with tifffile.TiffWriter(beside, bigtiff=True, ome=False) as tiff:
            while (frame := self._queue.get()) is not None:
                tiff.write(
                    frame.array,  # (H, W)
                    contiguous=True,
                    photometric="minisblack",
                    metadata=None,
                    description=NAMESPACE if not len(self._written) else None,
                    software=NAMESPACE,
                )
                self._written.add(frame)
            if not len(self._written):
                raise RecordingError(
                    "no frame came; expected at least one; look whether the camera delivers"
                )

    def _description(self) -> str:
        """Write OME-XML: each plane's time since the first and its exposure, and all exactly."""
        assert self._like is not None
        (height, width), dtype = self._like
        frames = len(self._written)
        notes = {**self._annotations, "frames_missed": self._missed}
        xml = tifffile.OmeXml()
        xml.addimage(
            dtype,
            (frames, height, width),
            (frames, 1, 1, height, width, 1),
            axes="TYX",
            Plane=self._written.planes(),
            MapAnnotation={**_notes(notes), **self._written.columns()},
            **_pixel_size(self._pixel_size_um),
        )
        return xml.tostring(declaration=True)


def _refuse_existing(path: Path) -> None:
    """Refuse to replace what was measured: it cannot be made again."""
    if path.exists():
        raise OutputError(
            f"{path}: is there already; expected a new name, for what was measured cannot be made "
            "again; choose another, or give --overwrite"
        )


class _Ledger:
    """What is known of each frame that was written, in 32 bytes; NaN is what is not known."""

    def __init__(self) -> None:
        self._exposures_us = array("d")
        self._gains = array("d")
        self._digital_gains = array("d")
        self._timestamps_ns = array("q")

    def __len__(self) -> int:
        return len(self._timestamps_ns)

    def add(self, frame: Frame) -> None:
        """Note a frame."""
        self._exposures_us.append(_or_nan(frame.exposure_us))
        self._gains.append(_or_nan(frame.gain))
        self._digital_gains.append(_or_nan(frame.digital_gain))
        self._timestamps_ns.append(frame.timestamp_ns)

    def planes(self) -> dict[str, list[Any]]:
        """Tell each plane's time since the first and, where all are known, its exposure, in s."""
        first_ns = self._timestamps_ns[0]
        planes: dict[str, list[Any]] = {
            "DeltaT": [(timestamp_ns - first_ns) * 1e-9 for timestamp_ns in self._timestamps_ns],
            "DeltaTUnit": ["s"] * len(self),
        }
        if not any(map(math.isnan, self._exposures_us)):
            planes["ExposureTime"] = [exposure_us * 1e-6 for exposure_us in self._exposures_us]
            planes["ExposureTimeUnit"] = ["s"] * len(self)
        return planes

    def columns(self) -> dict[str, str]:
        """Write all exactly: OME has no place for a plane's gains, and DeltaT is rounded.

        What no frame told is left out; what some did not is ``nan`` there.
        """
        values: dict[str, array[Any]] = {
            "timestamps_ns": self._timestamps_ns,
            "exposures_us": self._exposures_us,
            "gains": self._gains,
            "digital_gains": self._digital_gains,
        }
        told = {name: column for name, column in values.items() if not all(map(math.isnan, column))}
        return {name: " ".join(map(str, column)) for name, column in told.items()}


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _notes(annotations: Mapping[str, object]) -> dict[str, str]:
    notes = {"Namespace": NAMESPACE, "content": "raw frames, uncorrected"}
    return notes | {name: str(value) for name, value in annotations.items() if value is not None}


def _pixel_size(pixel_size_um: float | None) -> dict[str, Any]:
    if pixel_size_um is None:
        return {}
    sizes = {f"PhysicalSize{axis}": pixel_size_um for axis in "XY"}
    return {**sizes, **{f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}}


class Recordings:
    """The daemon's recordings: one at a time, named by the time of their beginning.

    Parameters
    ----------
    pipeline : Pipeline
        Whose camera's frames are recorded.
    folder : Path
        Where the files go; made when the first is begun.
    microscope : Microscope
        Whose pixel size and optics the files carry.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        folder: Path,
        microscope: Microscope,
    ) -> None:
        self._pipeline = pipeline
        self._folder = folder
        self._microscope = microscope
        self._lock = threading.Lock()
        self._recorder: Recorder | None = None
        self._untap: Callable[[], None] = lambda: None

    def start(self) -> dict[str, Any]:
        """Begin a recording; its state.

        Raises
        ------
        UserError
            One is running, or the folder cannot be written to.
        """
        with self._lock:
            if self._recorder and self._recorder.state()["recording"]:
                raise UserError(
                    "a recording is running; expected one at a time; stop it before another"
                )
            recorder = self._recorder = self._begin()
            self._untap()
            self._untap = self._pipeline.tap(recorder.add)
            log.info("recording to %s", recorder.path)
            return recorder.state()

    def _begin(self) -> Recorder:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self._folder}: cannot be made ({error.strerror}); expected a folder for "
                "recordings; correct the setting recordings"
            ) from error
        name = datetime.now(UTC).strftime("raw-%Y%m%dT%H%M%S.%fZ.ome.tif")
        camera = self._pipeline.camera
        return Recorder(
            self._folder / name,
            pixel_size_um=self._microscope.pixel_size_um(camera),
            annotations={**facts_of(camera), **self._microscope.notes(camera)},
            interval_s=camera.frame_interval_s,
        )

    def stop(self) -> dict[str, Any]:
        """End the recording, if there is one, and return its state when the file is whole."""
        with self._lock:
            self._untap()
            if self._recorder is None:
                return self._state()
            try:
                self._recorder.finish()
            except RecordingError as error:
                log.warning("recording: %s", error)
            return self._state()

    def state(self) -> dict[str, Any]:
        """Tell how the recording stands."""
        return self._state()

    def _state(self) -> dict[str, Any]:
        recorder = self._recorder
        if recorder is None:
            nothing = {"recording": False, "file": None, "error": None}
            return {**nothing, "frames": 0, "missed": 0, "waiting": 0}
        return recorder.state()
