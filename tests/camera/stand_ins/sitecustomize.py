"""Makes the real picamera2 accept libcamera's virtual camera; Python imports this by itself.

Only what the virtual camera cannot do is replaced: it has no raw role and no frame rate, and
picamera2's own allocator needs kernel buffers that a build machine does not have, and a frame's
status is not set. The daemon under test runs as it is.

Environment: CAMERA_TEST_FPS paces the virtual camera, which delivers as fast as it can otherwise;
timestamps are the pace's, as a sensor's are its clock's: who refuses a frame sees a gap.
CAMERA_TEST_FAIL names a file; while it exists the camera delivers nothing.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import libcamera
import picamera2.picamera2
from picamera2 import Picamera2
from picamera2.allocators import LibcameraAllocator

_LATE_S = 0.1


class _Pace:
    """Holds frames back to a frame rate, and altogether while the camera is to fail."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._interval_s = 1.0 / float(os.environ.get("CAMERA_TEST_FPS", "30"))
        self._fail = os.environ.get("CAMERA_TEST_FAIL", "")
        self._due_s = time.monotonic()
        self._slot = 0

    def __call__(self, request: Any) -> None:
        if self._fail and Path(self._fail).exists():
            return
        # A frame that is late is caught up with, as a sensor would have gone on.
        self._due_s = max(self._due_s + self._interval_s, time.monotonic() - _LATE_S)
        time.sleep(max(0.0, self._due_s - time.monotonic()))
        self._slot += 1
        metadata = request.get_metadata()
        metadata["SensorTimestamp"] = round(self._slot * self._interval_s * 1e9)
        request.get_metadata = lambda: metadata
        self._function(request)


def _modes_without_raw(self: Picamera2) -> list[dict[str, Any]]:
    roles = libcamera.StreamRole.Raw, libcamera.StreamRole.VideoRecording
    configurations = (self.camera.generate_configuration([role]) for role in roles)
    formats = next(filter(None, configurations)).at(0).formats
    return [
        {"format": str(pixel_format), "size": (size.width, size.height)}
        for pixel_format in formats.pixel_formats
        for size in formats.sizes(pixel_format)
    ]


class _AnyStatus(libcamera.FrameMetadata.Status):
    """Equals every status: libcamera 0.4's virtual camera leaves it uninitialised."""

    __hash__ = None

    def __eq__(self, other: object) -> bool:
        return True


class _Libcamera:
    """The libcamera that picamera2 sees: the real one, but for what counts as success."""

    FrameMetadata = SimpleNamespace(Status=SimpleNamespace(Success=_AnyStatus(0)))

    def __getattr__(self, name: str) -> Any:
        return getattr(libcamera, name)


_configure = Picamera2.configure


def _configure_without_kernel(self: Picamera2, configuration: Any = None) -> None:
    self.allocator = LibcameraAllocator(self.camera)
    _configure(self, configuration)


def _get_callback(self: Picamera2) -> Any:
    return self.__dict__.get("paced")


def _set_callback(self: Picamera2, function: Any) -> None:
    self.__dict__["paced"] = function and _Pace(function)


picamera2.picamera2.libcamera = _Libcamera()
Picamera2._get_raw_modes = _modes_without_raw
Picamera2.configure = _configure_without_kernel
Picamera2.pre_callback = property(_get_callback, _set_callback)
