"""What can be set on a camera while it runs: limits, read-back, drift."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from device.errors import UserError
from device.pixel_format import Region

DRIFT = 0.05
"""A value this far from what was wanted, relative to it, is reported: sensors count in rows."""

SETTLING_FRAMES = 10
"""So many frames after a change no deviation is reported: they were on their way already."""

_READ: dict[str, tuple[str, Callable[[float], float]]] = {
    "exposure_us": ("ExposureTime", float),
    "gain": ("AnalogueGain", float),
    "fps": ("FrameDuration", lambda duration_us: 1e6 / duration_us),
}


class ControlError(UserError):
    """The camera does not take this value; the text is one sentence for the user."""


@runtime_checkable
class Controllable(Protocol):
    """A camera whose exposure, gain, rate or region can be set."""

    def controls(self) -> dict[str, dict[str, Any]]:
        """Tell each control as wanted and as it is."""

    def set_controls(self, changes: Mapping[str, Any]) -> bool:
        """Change some; True if the camera must be opened anew. Raises `ControlError`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the camera takes.

    Attributes
    ----------
    low, high : float
        Smallest and largest value, in the control's unit.
    """

    low: float
    high: float


def refuse_outside(
    name: str, value: float | None, limits: Limits | None, must_offer: bool = False
) -> None:
    """Refuse a value that the camera would clip or ignore.

    Parameters
    ----------
    name : str
        The control.
    value : float or None
        None is always taken: it leaves the control to the camera.
    limits : Limits or None
        None where the camera has no such control.
    must_offer : bool
        Refuse a control that the camera does not have, too.

    Raises
    ------
    ControlError
        Says what the camera takes.
    """
    if limits is None:
        if must_offer:
            raise ControlError(
                f"{name} cannot be set: this camera offers no such control; expected one of those "
                "with limits in /api/controls; leave it out"
            )
        return
    # A thousandth either way is rounding: 1 / 33333 us is not 30 a second.
    if value is not None and not limits.low * 0.999 <= value <= limits.high * 1.001:
        raise ControlError(
            f"{name} is {value:g}, which this camera does not take in this mode; expected "
            f"{limits.low:g} to {limits.high:g}; correct it"
        )


class Readings:
    """What the last frames' metadata said, against what was wanted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._metadata: dict[str, Any] = {}
        self._since_change = 0

    def note(self, metadata: Mapping[str, Any]) -> None:
        """Take in a frame's metadata, by libcamera's names."""
        with self._lock:
            self._metadata = dict(metadata)
            self._since_change += 1

    def expect_change(self) -> None:
        """Allow the camera some frames to become what is wanted."""
        with self._lock:
            self._since_change = 0

    def crop(self) -> Region | None:
        """Tell the part of the sensor that the last frame showed; None where it is not told."""
        with self._lock:
            rectangle = self._metadata.get("ScalerCrop")
        if not rectangle:
            return None
        left, top, width, height = rectangle
        return Region(top, left, height, width)

    def compare(self, name: str, wanted: float | None, limits: Limits | None) -> dict[str, Any]:
        """Tell a control as it is.

        Parameters
        ----------
        name : str
            ``exposure_us``, ``gain`` or ``fps``.
        wanted : float or None
            What was asked for; None leaves it to the camera, so that it cannot drift.
        limits : Limits or None
            What the camera takes.

        Returns
        -------
        dict
            ``wanted``, ``actual``, ``min``, ``max``, ``drifted``.
        """
        theirs, convert = _READ[name]
        with self._lock:
            value, settled = self._metadata.get(theirs), self._since_change > SETTLING_FRAMES
        actual = convert(value) if value else None
        far = bool(wanted and actual and abs(actual - wanted) > DRIFT * wanted)
        return {
            "wanted": wanted,
            "actual": actual,
            "min": limits and limits.low,
            "max": limits and limits.high,
            "drifted": settled and far,
        }
