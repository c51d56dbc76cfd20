"""What systemd is told: READY when the page is served, STATUS with the rates, WATCHDOG while alive.

Without systemd (no ``NOTIFY_SOCKET``) nothing is sent. The protocol is that of ``sd_notify(3)``.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from device.pipeline import Pipeline

_log = logging.getLogger(__name__)

_BEAT_S = 1.0
_STATUS_S = 5.0
_EXTENSION_S = 15.0
_ASK_EVERY_S = 1.0
_MOST_ASKED = 600  # then the disk hangs, and nobody would wait for it any longer


class Notifier:
    """Sends datagrams to systemd.

    Parameters
    ----------
    address : str or None
        The socket's path, ``@`` first where it is abstract; None sends nothing.
    watchdog_s : float
        Time after which systemd takes a silent service for dead, in s; 0 for never.
    """

    def __init__(self, address: str | None = None, watchdog_s: float = 0.0) -> None:
        self._address = address
        self.watchdog_s = watchdog_s
        self._reachable = True

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Notifier:
        """Make the notifier that systemd asked for, or one that sends nothing."""
        for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watchdog_us = int(environment.get("WATCHDOG_USEC", 0)) if for_us else 0
        return cls(environment.get("NOTIFY_SOCKET"), watchdog_us * 1e-6)

    def send(self, **fields: object) -> None:
        """Send fields such as ``READY=1``; what cannot be sent is logged once and not died of."""
        if self._address is None:
            return
        message = "\n".join(f"{name}={value}" for name, value in fields.items())
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                # The event loop calls: rather lose a message than wait for a busy systemd.
                sender.setblocking(False)
                sender.sendto(message.encode(), address)
        except OSError as error:
            if self._reachable:
                _log.warning("systemd cannot be told anything (%s)", error)
            self._reachable = False
        else:
            self._reachable = True


class Heartbeat:
    """Feeds the watchdog from the server's event loop, and only while the pipeline gets on.

    So a hung camera, a hung reconstruction and a hung server all end in silence.

    Parameters
    ----------
    pipeline : Pipeline
        Whose `progress` must grow.
    notifier : Notifier
        Where to send.
    clock : callable
        Monotonic time in s.
    """

    def __init__(
        self, pipeline: Pipeline, notifier: Notifier, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pipeline = pipeline
        self._notifier = notifier
        self._clock = clock
        self._progress = -1
        self._beat_s = self._status_s = -float("inf")
        self._patience_s = notifier.watchdog_s

    def ready(self, address: str) -> None:
        """Say that the page can be opened at an address."""
        self._notifier.send(READY=1, STATUS=f"serving {address}")

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Say that the end is wanted, and ask systemd to wait for it, ten minutes at most.

        An hour's recording may take a slow card longer than ``TimeoutStopSec`` to be made whole,
        and would be lost if the daemon were killed meanwhile.
        """
        self._notifier.send(STOPPING=1, STATUS="stopping")
        done = threading.Event()
        asking = threading.Thread(target=self._ask_for_time, args=(done,), daemon=True)
        asking.start()
        try:
            yield
        finally:
            done.set()
            asking.join()

    def _ask_for_time(self, done: threading.Event) -> None:
        asked = 0
        while not done.wait(_ASK_EVERY_S) and asked < _MOST_ASKED:
            self._notifier.send(EXTEND_TIMEOUT_USEC=round(_EXTENSION_S * 1e6))
            asked += 1

    def beat(self) -> None:
        """Look at the pipeline and tell systemd; cheap, to be called several times a second."""
        now_s = self._clock()
        if now_s - self._beat_s >= _BEAT_S:
            self._beat_s = now_s
            self._feed()
        if now_s - self._status_s >= _STATUS_S:
            self._status_s = now_s
            self._notifier.send(STATUS=status_line(self._pipeline.state()))

    def _feed(self) -> None:
        if not self._notifier.watchdog_s:
            return
        self._adapt()
        progress = self._pipeline.progress()
        # A recording that was played to its end has nothing more to do, and that is no fault.
        if progress != self._progress or self._pipeline.wait_ended(0):
            self._progress = progress
            self._notifier.send(WATCHDOG=1)

    def _adapt(self) -> None:
        """Have systemd wait longer for a camera whose frames are rare."""
        patience_s = max(self._notifier.watchdog_s, self._pipeline.longest_pause_s())
        if patience_s != self._patience_s:
            self._patience_s = patience_s
            self._notifier.send(WATCHDOG_USEC=round(patience_s * 1e6))


def status_line(state: Mapping[str, Any]) -> str:
    """Say in one line how things stand.

    Parameters
    ----------
    state : mapping
        From `Pipeline.state`.

    Returns
    -------
    str
        What ``systemctl status`` shows.
    """
    rates = (
        f"{state['fps_camera']:.1f} frames/s from the camera, "
        f"{state['fps_reconstruction']:.1f} reconstructions/s ({state['mode']})"
    )
    if state["error"]:
        return f"{rates}; error: {' '.join(state['error'].split())}"
    p95_ms = state["latency_ms"]["p95"]
    return rates if p95_ms is None else f"{rates}, latency p95 {p95_ms:.0f} ms"
