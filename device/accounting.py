"""What became of every frame, how often and how fast; no locks of its own."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

REASONS = ("shape", "dtype", "not_finite", "duplicate", "out_of_order", "failed")
"""Why frames are discarded; `failed` is a step that the runtime could not make."""

Clock = Callable[[], float]


@dataclass(slots=True)
class Accounts:
    """Where the frames went.

    A frame is captured when it is taken from the queue, skipped there or discarded; frames that
    still wait count nowhere but in `waiting` of the pipeline's state. So at every moment::

        captured = processed + skipped + discarded + in flight        (in flight is 0 or 1)

    Attributes
    ----------
    captured : int
        Frames from the camera that were dealt with.
    processed : int
        Frames fed to the step (stream) or to a window.
    skipped : int
        Frames that a newer one pushed out of the queue.
    discarded : dict of str to int
        Frames that could not be used, by reason.
    missed : int
        Frames that never came: gaps in the sensor's timestamps.
    reconstructions : int
        Images made.
    """

    captured: int = 0
    processed: int = 0
    skipped: int = 0
    discarded: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    missed: int = 0
    reconstructions: int = 0

    def take(self) -> None:
        """Begin with a frame: it is in flight until `finish` or `fail`."""
        self.captured += 1

    def finish(self) -> None:
        """End with the frame in flight: it was processed."""
        self.processed += 1

    def fail(self) -> None:
        """End with the frame in flight: the step could not be made."""
        self.discarded["failed"] += 1

    def skip(self) -> None:
        """Count a frame that a newer one pushed out."""
        self.captured += 1
        self.skipped += 1

    @property
    def unusable(self) -> int:
        """Frames that were discarded as they came, before any step."""
        return sum(self.discarded.values()) - self.discarded["failed"]

    def discard(self, reason: str) -> None:
        """Count a frame that cannot be used; the reason is one of `REASONS`."""
        self.captured += 1
        self.discarded[reason] += 1


class RateMeter:
    """Events per second over the last seconds.

    Parameters
    ----------
    clock : callable
        Monotonic time in s.
    horizon_s : float
        Older events are forgotten, but for the last few, in s.
    """

    _KEPT = 3

    def __init__(self, clock: Clock = time.monotonic, horizon_s: float = 5.0) -> None:
        self._clock = clock
        self._horizon_s = horizon_s
        self._times_s: deque[float] = deque()

    def tick(self, time_s: float) -> None:
        """Note an event at a time of the clock in s."""
        self._times_s.append(time_s)
        while len(self._times_s) > self._KEPT and self._times_s[0] < time_s - self._horizon_s:
            self._times_s.popleft()

    def per_second(self) -> float:
        """Rate in 1/s; sinks towards 0 when events stay away."""
        if len(self._times_s) < 2:
            return 0.0
        first_s, last_s = self._times_s[0], self._times_s[-1]
        events = len(self._times_s) - 1
        interval_s = (last_s - first_s) / events
        # One interval of silence is normal; what is beyond two counts as time without events.
        late_s = max(0.0, self._clock() - last_s - 2 * interval_s)
        span_s = last_s - first_s + late_s
        return events / span_s if span_s > 0 else 0.0


class Latencies:
    """The last latencies, for their percentiles.

    Parameters
    ----------
    kept : int
        Number of latencies kept.
    """

    def __init__(self, kept: int = 300) -> None:
        self._last_ms: deque[float] = deque(maxlen=kept)

    def add(self, latency_s: float) -> None:
        """Note a latency in s."""
        self._last_ms.append(latency_s * 1e3)

    def clear(self) -> None:
        """Forget them: what comes now takes another time."""
        self._last_ms.clear()

    def percentiles_ms(self) -> dict[str, float | None]:
        """Median and 95th percentile in ms; None while there is none."""
        if not self._last_ms:
            return {"p50": None, "p95": None}
        p50, p95 = np.percentile(self._last_ms, (50, 95))
        return {"p50": float(p50), "p95": float(p95)}
