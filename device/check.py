"""What can be wrong with a Pi's camera, found without disturbing anybody.

Nothing here ends a process or changes a setting; what is found is said, with what to do.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from device.camera import Camera, CameraError
from device.errors import Learn2sofiError
from device.picamera import BUFFERS

if TYPE_CHECKING:
    from device.settings import Settings

ROOT = Path("/")
MIN_CMA_KIB = 64 * 1024
_OTHER_CMA_KIB = 16 * 1024  # the small processed stream, the image processor's tables
_CMA_OVERLAYS = (256, 320, 384, 448, 512)  # MiB, of those that the overlay cma offers
# A sensor is an I2C device, "imx219 10-0010", and so is the motor of a lens.
_ON_I2C = re.compile(r" \d+-[0-9a-f]{4}$")
_LENSES = ("dw9", "ak7", "ad5")
_ASKS_FOR_CAMERA = re.compile(
    r"camera_auto_detect=1$|start_x=1$|dtoverlay=(imx|ov|arducam|camera|vc-mipi|irs|adv7|tc35)"
)
_READ_TIMEOUT_S = 3.0
_RUN_TIMEOUT_S = 2.0

# Bits of the firmware's get_throttled: now, and since the start (16 higher).
_THROTTLED = {
    0: "under-voltage: use the Pi's own power supply and a short cable",
    1: "the processor's frequency is capped: cool it",
    2: "the processor is throttled: cool it",
    3: "the processor is at its soft temperature limit: cool it",
}
# A Pi 4 names the node soc:firmware, a Pi 5 soc@107c000000:firmware; newer kernels have no such
# file at all, and the firmware is asked through /dev/vcio_gencmd or, before it came, /dev/vcio.
_THROTTLED_FILES = "sys/devices/platform/soc*/soc*:firmware/get_throttled"
_UNREADABLE = (
    "power and heat: cannot be read; expected the firmware of a Raspberry Pi to answer; on one, "
    "see what `vcgencmd get_throttled` says to the same user, who must be in group video"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    good : bool or None
        True if nothing is wrong with it; None if that cannot be known.
    text : str
        What was found, and what to do where it is wrong.
    """

    good: bool | None
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
    frame = find_frame(settings, make_camera)
    if settings.camera == "picamera2":
        findings += [find_device(ROOT), find_users(ROOT, bool(frame.good))]
        findings += [find_cma(ROOT, settings.camera_size)]
    return [*findings, *find_throttling(read_throttled(ROOT)), frame]


def find_device(root: Path) -> Finding:
    """Look whether the kernel knows a sensor; where not, whether it was told to look for one.

    A Pi has media devices (codecs, scalers) without any camera, so these prove nothing.
    """
    names = root.glob("sys/class/video4linux/v4l-subdev*/name")
    found = [name.read_text().strip() for name in names]
    sensors = sorted(name.split()[0] for name in found if _ON_I2C.search(name))
    sensors = [name for name in sensors if not name.startswith(_LENSES)]
    if sensors:
        return Finding(True, f"the kernel knows the sensor {', '.join(sensors)}")
    if _is_enabled(root):
        return Finding(
            False,
            "the kernel knows no camera although it looks for one: switch off, look at the cable "
            "(contacts towards the contacts, pushed home; the Pi 5 and the Zero need the narrow "
            "one); a sensor that is not the Pi's own needs its dtoverlay in config.txt",
        )
    return Finding(
        False,
        "the kernel knows no camera and looks for none: put camera_auto_detect=1 or the sensor's "
        "dtoverlay into /boot/firmware/config.txt and start again",
    )


def _is_enabled(root: Path) -> bool:
    """Tell whether the firmware's settings ask for a camera."""
    for folder in ("boot/firmware", "boot"):
        try:
            lines = (root / folder / "config.txt").read_text(errors="replace").splitlines()
        except OSError:
            continue
        settings = [line.partition("#")[0].strip() for line in lines]
        return any(_ASKS_FOR_CAMERA.match(setting) for setting in settings)
    return False


def find_users(root: Path, is_free: bool = False) -> Finding:
    """Look who has a camera's device open; needs to be root to see other users' processes.

    Parameters
    ----------
    root : Path
        Where the file systems are mounted.
    is_free : bool
        A frame could be taken: desktops have a camera's devices open without using it.
    """
    users: dict[int, str] = {}
    for descriptor in root.glob("proc/[0-9]*/fd/*"):
        process = descriptor.parent.parent
        if int(process.name) != os.getpid() and _is_camera(descriptor):
            users[int(process.name)] = _name_of(process)
    if not users:
        return Finding(True, "no other process that we may see has the camera open")
    named = ", ".join(f"{name} (process {number})" for number, name in sorted(users.items()))
    if is_free:
        return Finding(True, f"{named} has the camera's devices open, and leaves it free")
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


def find_cma(root: Path, camera_size: str = "640x480") -> Finding:
    """Look whether the kernel's contiguous memory holds a camera's buffers.

    Parameters
    ----------
    root : Path
        Where the file systems are mounted.
    camera_size : str
        Width x height of the stream in px.
    """
    width, height = map(int, camera_size.split("x"))
    stream_kib = BUFFERS * width * height * 2 // 1024  # two bytes a px, as raw has
    needed_kib = max(MIN_CMA_KIB, stream_kib + _OTHER_CMA_KIB)
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        lines = []
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Cma")}
    total = sizes.get("CmaTotal", 0)
    if total >= needed_kib:
        free = sizes.get("CmaFree", 0)
        return Finding(True, f"contiguous memory: {total // 1024} MiB, {free // 1024} free")
    return Finding(
        False,
        f"contiguous memory (CMA) is {total // 1024} MiB where at least {needed_kib // 1024} are "
        f"needed for {camera_size}: put dtoverlay=cma,cma-{_cma_overlay(needed_kib)} into "
        "/boot/firmware/config.txt and start again, or choose a smaller camera_size",
    )


def _cma_overlay(needed_kib: int) -> int:
    """Name the smallest size in MiB that the overlay knows and that is enough."""
    return next((size for size in _CMA_OVERLAYS if size * 1024 >= needed_kib), _CMA_OVERLAYS[-1])


def read_throttled(root: Path = ROOT) -> int | None:
    """Read the firmware's flags of heat and power; None where it does not tell, as off a Pi.

    Parameters
    ----------
    root : Path
        Where the file systems are mounted.

    Returns
    -------
    int or None
        Bits 0 to 3: now; 16 to 19: since the start.
    """
    for file in sorted(root.glob(_THROTTLED_FILES)):
        try:
            return int(file.read_text(), 16)
        except (OSError, ValueError):
            continue
    return _ask_firmware() if root == ROOT else None


def is_pi(root: Path = ROOT) -> bool:
    """Tell whether this machine calls itself a Raspberry Pi."""
    try:
        return "Raspberry Pi" in (root / "proc/device-tree/model").read_text(errors="replace")
    except OSError:
        return False


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


def find_throttling(flags: int | None) -> list[Finding]:
    """Name each flag of heat and power.

    Parameters
    ----------
    flags : int or None
        From `read_throttled`.
    """
    if flags is None:
        return [Finding(None, _UNREADABLE)]
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
    is_pi : callable
        Tells whether there ought to be flags.
    """

    PERIOD_S = 5.0

    def __init__(
        self,
        read: Callable[[], int | None] = read_throttled,
        clock: Callable[[], float] = time.monotonic,
        is_pi: Callable[[], bool] = is_pi,
    ) -> None:
        self._read = read
        self._clock = clock
        self._is_pi = is_pi
        self._lock = threading.Lock()
        self._asked_s: float | None = None
        self._warnings: list[str] = []

    def warnings(self) -> list[str]:
        """Say what is or was wrong with power and temperature; empty where nothing is.

        That it cannot be read is said on a Pi alone: elsewhere nobody expects it.
        """
        with self._lock:
            now_s = self._clock()
            if self._asked_s is None or now_s - self._asked_s >= self.PERIOD_S:
                self._asked_s = now_s
                found = find_throttling(self._read())
                self._warnings = [finding.text for finding in found if self._matters(finding)]
            return list(self._warnings)

    def _matters(self, finding: Finding) -> bool:
        return self._is_pi() if finding.good is None else not finding.good


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
