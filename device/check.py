"""What can be wrong with a Pi's camera, found without disturbing anybody.

Nothing here ends a process or changes a setting; what is found is said, with what to do.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from device.camera import Camera, CameraError
from device.errors import Learn2sofiError

if TYPE_CHECKING:
    from device.settings import Settings

ROOT = Path("/")
MIN_CMA_KIB = 64 * 1024
_READ_TIMEOUT_S = 3.0
_RUN_TIMEOUT_S = 2.0

# Bits of the firmware's get_throttled: now, and since the start (16 higher).
_THROTTLED = {
    0: "under-voltage: use the Pi's own power supply and a short cable",
    1: "the processor's frequency is capped: cool it",
    2: "the processor is throttled: cool it",
    3: "the processor is at its soft temperature limit: cool it",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    good : bool
        True if nothing is wrong with it.
    text : str
        What was found, and what to do where it is wrong.
    """

    good: bool
    text: str


def examine(settings: Settings, make_camera: Callable[[Settings], Camera]) -> list[Finding]:
    """Look at all that a camera needs, ending with a frame of it.

    Parameters
    ----------
    settings : Settings
        The camera's name among them.
    make_camera : callable
        Makes the camera that the settings name.

    Returns
    -------
    list of Finding
        In the order in which to mend them.
    """
    findings = []
    if settings.camera == "picamera2":
        findings += [find_device(ROOT), find_users(ROOT), find_cma(ROOT)]
    throttled = read_throttled(ROOT)
    if throttled is not None:
        findings += find_throttling(throttled)
    return [*findings, find_frame(settings, make_camera)]


def find_device(root: Path) -> Finding:
    """Look whether the kernel knows a camera."""
    media = sorted(root.glob("dev/media*"))
    if media:
        return Finding(True, f"the kernel has {len(media)} media devices")
    return Finding(
        False,
        "the kernel knows no camera: switch off, look at the cable (contacts towards the contacts; "
        "the Pi 5 and the Zero need the narrow one), put camera_auto_detect=1 or the sensor's "
        "dtoverlay into /boot/firmware/config.txt, start again",
    )


def find_users(root: Path) -> Finding:
    """Look who has a camera's device open; needs to be root to see other users' processes."""
    users: dict[int, str] = {}
    for descriptor in root.glob("proc/[0-9]*/fd/*"):
        process = descriptor.parent.parent
        if int(process.name) != os.getpid() and _is_camera(descriptor):
            users[int(process.name)] = _name_of(process)
    if not users:
        return Finding(True, "no other process that we may see has the camera open")
    named = ", ".join(f"{name} (process {number})" for number, name in sorted(users.items()))
    return Finding(
        False, f"the camera is in use by {named}: end it, if it is yours to end, and try again"
    )


def _is_camera(descriptor: Path) -> bool:
    try:
        target = descriptor.readlink().name
    except OSError:  # gone, or not ours to see
        return False
    return target.startswith(("media", "video", "v4l-subdev"))


def _name_of(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "?"


def find_cma(root: Path) -> Finding:
    """Look whether the kernel's contiguous memory holds a camera's buffers."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        lines = []
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Cma")}
    total = sizes.get("CmaTotal", 0)
    if total >= MIN_CMA_KIB:
        free = sizes.get("CmaFree", 0)
        return Finding(True, f"contiguous memory: {total // 1024} MiB, {free // 1024} free")
    return Finding(
        False,
        f"contiguous memory (CMA) is {total // 1024} MiB where at least {MIN_CMA_KIB // 1024} are "
        "needed: put dtoverlay=cma,cma-256 into /boot/firmware/config.txt and start again",
    )


def read_throttled(root: Path = ROOT) -> int | None:
    """Read the firmware's flags of heat and power; None where there are none, off a Pi.

    Parameters
    ----------
    root : Path
        Where the file systems are mounted.

    Returns
    -------
    int or None
        Bits 0 to 3: now; 16 to 19: since the start.
    """
    file = root / "sys/devices/platform/soc/soc:firmware/get_throttled"
    try:
        return int(file.read_text(), 16)
    except (OSError, ValueError):
        return _ask_firmware() if root == ROOT else None


def _ask_firmware() -> int | None:
    try:
        answer = subprocess.run(
            ["vcgencmd", "get_throttled"],
            capture_output=True,
            text=True,
            timeout=_RUN_TIMEOUT_S,
            check=True,
        )
        return int(answer.stdout.strip().partition("=")[2], 16)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def find_throttling(flags: int) -> list[Finding]:
    """Name each flag of heat and power.

    Parameters
    ----------
    flags : int
        From `read_throttled`.
    """
    wrong = []
    for bit, text in _THROTTLED.items():
        if flags >> bit & 1:
            wrong.append(Finding(False, f"now: {text}"))
        elif flags >> (bit + 16) & 1:
            wrong.append(Finding(False, f"since the start: {text}"))
    return wrong or [Finding(True, "power and temperature are and were well")]


class Warden:
    """Watches the firmware's flags for the page; asks at most every few seconds.

    Parameters
    ----------
    read : callable
        Reads the flags, see `read_throttled`.
    clock : callable
        Monotonic time in s.
    """

    PERIOD_S = 5.0

    def __init__(
        self,
        read: Callable[[], int | None] = read_throttled,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._asked_s: float | None = None
        self._warnings: list[str] = []

    def warnings(self) -> list[str]:
        """Say what is or was wrong with power and temperature; empty where nothing is."""
        with self._lock:
            now_s = self._clock()
            if self._asked_s is None or now_s - self._asked_s >= self.PERIOD_S:
                self._asked_s = now_s
                flags = self._read()
                found = [] if flags is None else find_throttling(flags)
                self._warnings = [finding.text for finding in found if not finding.good]
            return list(self._warnings)


def find_frame(settings: Settings, make_camera: Callable[[Settings], Camera]) -> Finding:
    """Open the camera and take a frame."""
    camera = None
    try:
        camera = make_camera(settings)
        camera.open()
        frame = camera.read(_READ_TIMEOUT_S)
    except (CameraError, Learn2sofiError) as error:
        return Finding(False, str(error))
    finally:
        if camera is not None:
            camera.close()
    height, width = frame.array.shape
    return Finding(True, f"{camera.name} gives frames of {width} x {height} px")
