"""What a frame is, and what the daemon expects of a camera."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

MIN_SIDE_PX = 16
"""Smallest height and width of a frame that can be reconstructed."""

DTYPES = tuple(np.dtype(name) for name in ("uint8", "uint16", "float32"))
"""Types of frames that can be reconstructed."""


class CameraError(Exception):
    """The camera cannot be opened or has failed; the text is one sentence for the user."""


class CameraTimeout(CameraError):
    """No frame came within the time given to `Camera.read`."""


class EndOfStream(Exception):
    """A recording has been played to its end; no further frame will come."""


class BrokenRecording(EndOfStream):
    """A recording cannot be read further, now or later; the text is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One linear-intensity image and what is known of its making.

    Attributes
    ----------
    array : ndarray
        Intensity in ADU, (H, W), uint8, uint16 or float32. The frame owns it; nobody writes to it.
    timestamp_ns : int
        Sensor time of the exposure's start, monotonic, in ns; its epoch is the camera's own.
    index : int
        Number of this frame since `Camera.open`, from 0, counting delivered frames only.
    exposure_us : float or None
        Exposure time in us, where the camera tells it.
    gain : float or None
        Analogue gain (1 is none), where the camera tells it.
    digital_gain : float or None
        Factor that a processed stream was multiplied by, where the camera tells it.
    """

    array: np.ndarray
    timestamp_ns: int
    index: int
    exposure_us: float | None = None
    gain: float | None = None
    digital_gain: float | None = None


class Camera(Protocol):
    """A source of frames, all of one shape and type between `open` and `close`.

    One thread calls `read`; `close` may be called from any thread, and twice.
    """

    @property
    def name(self) -> str:
        """What the user calls this camera, such as ``replay:stack.tif``."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of every frame in px; known after `open`."""

    @property
    def frame_interval_s(self) -> float:
        """Nominal time between frames in s; known after `open`."""

    def open(self) -> None:
        """Make the camera ready to deliver. Raises `CameraError`."""

    def read(self, timeout_s: float) -> Frame:
        """Wait for the next frame.

        Raises
        ------
        CameraTimeout
            No frame came within `timeout_s`.
        CameraError
            The camera failed; it must be closed and may be opened again.
        EndOfStream
            The recording is over; `BrokenRecording` where it is damaged from here on.
        """

    def close(self) -> None:
        """Release the camera. Never raises."""


@runtime_checkable
class Described(Protocol):
    """A camera that knows more of itself than its name."""

    def facts(self) -> dict[str, object]:
        """Tell how it is set up, for the metadata of what it delivers; known after `open`."""


def is_recorded(camera: Camera) -> bool:
    """Tell whether a camera plays a recording, which is the same however often it is opened."""
    return bool(getattr(camera, "recorded", False))


def facts_of(camera: Camera) -> dict[str, object]:
    """Tell what a camera knows of itself, its name first.

    Parameters
    ----------
    camera : Camera
        Open, or opened before.
    """
    return {"camera": camera.name, **(camera.facts() if isinstance(camera, Described) else {})}
