"""A recorded stack, played as if it came from a camera at a given frame rate."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from device.camera import BrokenRecording, CameraError, CameraTimeout, EndOfStream, Frame
from device.stack import Stack, StackError, open_stack

log = logging.getLogger(__name__)

# A camera's driver holds about this much before it drops frames.
BUFFER_S = 1.0


class ReplayCamera:
    """Plays a TIFF stack or a video on an absolute schedule: frame slot k is due at k intervals.

    A reader that falls behind finds the waiting frames until they are `BUFFER_S` old; older ones
    are dropped, as a camera does, and show as a gap in the timestamps.

    Parameters
    ----------
    path : Path or str
        The stack, see `device.stack.open_stack`.
    fps : float
        Frames per second, above 0.
    loop : bool
        Begin again at the end; timestamps go on.
    clock : callable
        Monotonic time in ns.
    wait : callable, optional
        Sleeps for a time in s; default waits so that `close` ends it.
    """

    recorded = True

    def __init__(
        self,
        path: Path | str,
        fps: float,
        loop: bool = True,
        clock: Callable[[], int] = time.monotonic_ns,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._path = Path(path)
        self._fps = fps
        self._interval_s = 1.0 / fps
        self._loop = loop
        self._clock = clock
        self._closing = threading.Event()
        self._wait = wait or self._closing.wait
        self._reading = threading.Lock()
        self._stack: Stack | None = None
        self._shape = (0, 0)
        self._rewind()

    @property
    def name(self) -> str:
        """``replay:`` and the path."""
        return f"replay:{self._path}"

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of every frame in px; known after `open`."""
        return self._shape

    @property
    def frame_interval_s(self) -> float:
        """Time between frames in s."""
        return self._interval_s

    def open(self) -> None:
        """Open the stack; its first frame is due at once.

        Raises
        ------
        CameraError
            The stack cannot be read.
        """
        self.close()
        try:
            stack = open_stack(self._path)
        except StackError as error:
            raise CameraError(str(error)) from error
        self._shape = stack.height, stack.width
        self._rewind()
        self._closing.clear()
        self._stack = stack

    def _rewind(self) -> None:
        self._start_ns: int | None = None
        self._slot = 0  # frames due since the start, dropped ones included
        self._delivered = 0
        self._turn_start = 0  # the slot at which this turn of the loop began
        self._pending: np.ndarray | None = None

    def read(self, timeout_s: float) -> Frame:
        """Wait for the next frame.

        Parameters
        ----------
        timeout_s : float
            Longest time to wait in s.

        Returns
        -------
        Frame
            Its timestamp is the slot's due time on the camera's clock.

        Raises
        ------
        CameraTimeout
            The next frame is due later.
        CameraError
            The camera is closed.
        BrokenRecording
            The frame cannot be decoded; opening again would only lead here again.
        EndOfStream
            The stack is over, without `loop`.
        """
        with self._reading:
            if self._start_ns is None:
                self._start_ns = self._clock()
            self._drop_stale()
            if self._pending is None:
                self._pending = self._decode()
            self._wait_until_due(timeout_s)
            return self._deliver(self._pending)

    def _due_ns(self) -> int:
        assert self._start_ns is not None
        return self._start_ns + round(self._slot * 1e9 / self._fps)

    def _drop_stale(self) -> None:
        """Pass over the slots that a camera's buffers would no longer hold."""
        late_s = (self._clock() - self._due_ns()) * 1e-9
        stale = int((late_s - BUFFER_S) / self._interval_s)
        if stale > 0:
            log.debug("%d frames dropped: the reader is %.1f s behind", stale, late_s)
            self._slot += stale
            self._pending = None

    def _decode(self) -> np.ndarray:
        """Decode the slot's frame, (H, W), beginning the stack again where it is over."""
        image = self._read_stack(self._slot - self._turn_start)
        while image is None:
            if not self._loop:
                raise EndOfStream(f"{self._path} has been played to its end")
            assert self._stack is not None
            self._turn_start += self._stack.frames  # known: its end was met
            image = self._read_stack(self._slot - self._turn_start)
        return image

    def _read_stack(self, index: int) -> np.ndarray | None:
        stack = self._stack
        if stack is None or self._closing.is_set():
            raise CameraError(f"{self.name} is closed; open it before reading")
        try:
            return stack.read_or_end(index)
        except StackError as error:
            raise BrokenRecording(str(error)) from error

    def _wait_until_due(self, timeout_s: float) -> None:
        wait_s = (self._due_ns() - self._clock()) * 1e-9
        if wait_s > 0:
            self._wait(min(wait_s, timeout_s))
        if self._closing.is_set():
            raise CameraError(f"{self.name} was closed while waiting for a frame")
        if wait_s > timeout_s:
            raise CameraTimeout(f"no frame of {self.name} within {timeout_s:g} s")

    def _deliver(self, image: np.ndarray) -> Frame:
        frame = Frame(image, self._due_ns(), self._delivered)
        self._delivered += 1
        self._slot += 1
        self._pending = None
        return frame

    def close(self) -> None:
        """Close the stack, and wake a `read` that waits. Never raises."""
        self._closing.set()
        with self._reading:  # a frame is not pulled away from under the decoder
            stack, self._stack = self._stack, None
            if stack is not None:
                stack.close()
