"""The last frames, in order, with their mean and standard deviation kept up to date.

Sums are kept while frames come and go, so that a mean costs the same for 2 frames as for 30. For
integer frames the sums are int64 and exact. For float frames they are float64, and every push sums
another band of rows anew from the stored frames: within a turn of the buffer all of them, so that
rounding cannot pile up, and no push takes longer than the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from device.camera import Frame

_NOISE_GRID_PX = 4
"""The noise is judged on every fourth pixel in y and x: enough for a median, and cheap."""


def missed_between(earlier_ns: int, later_ns: int, interval_s: float) -> int:
    """Count the frames missed between two frames.

    Parameters
    ----------
    earlier_ns, later_ns : int
        Sensor timestamps of two successive frames in ns.
    interval_s : float
        Nominal time between frames in s; 0 where it is not known: then nothing is missed.

    Returns
    -------
    int
        Frame slots left empty. Jitter below half an interval makes none.
    """
    if interval_s <= 0:
        return 0
    slots = round((later_ns - earlier_ns) * 1e-9 / interval_s)
    return max(0, slots - 1)


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums along time of a number of frames, any shape.

    Attributes
    ----------
    count : int
        Number of frames.
    total, total_sq : ndarray
        Sum of the frames, and of their squares; int64 or float64.
    """

    count: int
    total: np.ndarray
    total_sq: np.ndarray

    def mean(self) -> np.ndarray:
        """Compute the mean of the frames, float32."""
        return (self.total / max(1, self.count)).astype(np.float32)

    def std(self) -> np.ndarray:
        """Compute the standard deviation of the frames as they are (by n, not n - 1), float32."""
        count = max(1, self.count)
        # n * sum(x^2) - sum(x)^2 is exact for integers; rounding can take floats below 0.
        spread = np.maximum(count * self.total_sq - self.total * self.total, 0)
        return (np.sqrt(spread) / count).astype(np.float32)


class RingBuffer:
    """A preallocated store of the last frames and their statistics.

    Not locked: one thread pushes; who takes `sums` in another thread must exclude `push`.

    Parameters
    ----------
    capacity : int
        Number of frames kept, at least 1.
    shape : tuple of int
        Height and width of every frame in px.
    dtype : dtype
        Type of every frame: uint8, uint16 or float32. NaN must not be pushed into float buffers.
    """

    def __init__(self, capacity: int, shape: tuple[int, int], dtype: np.dtype | type) -> None:
        if capacity < 1:
            raise ValueError(f"a ring buffer holds at least 1 frame, not {capacity}")
        self._frames = np.zeros((capacity, *shape), dtype)  # (capacity, H, W)
        exact = np.issubdtype(self._frames.dtype, np.integer)
        sum_dtype = np.int64 if exact else np.float64
        self._renewing = not exact
        self._sum = np.zeros(shape, sum_dtype)  # (H, W)
        self._sum_sq = np.zeros(shape, sum_dtype)  # (H, W)
        self._scratch = np.zeros(shape, sum_dtype)  # (H, W)
        self._timestamps_ns: list[int] = []
        self._next = 0
        self._mean: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._timestamps_ns)

    @property
    def capacity(self) -> int:
        """Number of frames kept at most."""
        return self._frames.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the frames in px."""
        return self._frames.shape[1], self._frames.shape[2]

    @property
    def dtype(self) -> np.dtype:
        """Type of the frames."""
        return self._frames.dtype

    @property
    def timestamps_ns(self) -> tuple[int, ...]:
        """Sensor timestamps of the frames held, oldest first, in ns."""
        return tuple(self._timestamps_ns)

    @property
    def span_ms(self) -> float:
        """Time from the oldest frame held to the newest in ms; 0 for fewer than 2 frames."""
        if len(self) < 2:
            return 0.0
        return (self._timestamps_ns[-1] - self._timestamps_ns[0]) * 1e-6

    def push(self, frame: Frame) -> None:
        """Take a frame in; the oldest leaves when the buffer is full.

        Raises
        ------
        ValueError
            The frame's shape or type is not the buffer's.
        """
        array = frame.array
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(
                f"the buffer takes {self.dtype} frames of {self.shape}, "
                f"not {array.dtype} of {array.shape}"
            )
        full = len(self) == self.capacity
        if full:
            self._account(self._frames[self._next], np.subtract)
            del self._timestamps_ns[0]
        self._frames[self._next] = array
        self._account(array, np.add)
        self._timestamps_ns.append(frame.timestamp_ns)
        if full and self._renewing:
            self._renew_band()
        self._mean = None
        self._next = (self._next + 1) % self.capacity

    def clear(self) -> None:
        """Forget all frames."""
        self._timestamps_ns.clear()
        self._next = 0
        self._mean = None
        self._sum[...] = 0
        self._sum_sq[...] = 0

    def keep_last(self, count: int) -> None:
        """Forget all frames but the last `count`, or fewer where there are not so many."""
        first = max(0, len(self) - count)
        kept = zip(self.frames()[first:], self.timestamps_ns[first:], strict=True)
        self.clear()
        for index, (array, timestamp_ns) in enumerate(kept):
            self.push(Frame(array, timestamp_ns, index))

    def frames(self, region: tuple[slice, slice] = np.s_[:, :]) -> np.ndarray:
        """Copy the frames held, or a region of each, oldest first, (n, H, W)."""
        first = self._next - len(self)
        order = np.arange(first, self._next) % self.capacity
        return self._frames[:, *region][order]  # (n, H, W)

    def mean(self) -> np.ndarray:
        """Mean of the frames held, (H, W) float32; read-only, zeros for an empty buffer."""
        if self._mean is None:
            mean = Sums(len(self), self._sum, self._sum_sq).mean()  # (H, W)
            mean.flags.writeable = False
            self._mean = mean
        return self._mean

    def std(self) -> np.ndarray:
        """Compute the standard deviation along time of the frames held, (H, W) float32.

        It is that of the frames as they are (divided by n, not by n - 1); zeros for fewer than 2.
        """
        return Sums(len(self), self._sum, self._sum_sq).std()

    def sums(self) -> Sums:
        """Copy the sums, (H, W), for who computes of them while frames go on coming."""
        return Sums(len(self), self._sum.copy(), self._sum_sq.copy())

    def standard_error(self) -> float:
        """Typical standard error of a pixel of `mean`, in the frames' unit; 0 for fewer than 2.

        The median over a grid of pixels, so that what blinks in few pixels is not taken for noise.
        """
        if len(self) < 2:
            return 0.0
        grid = (slice(None, None, _NOISE_GRID_PX), slice(None, None, _NOISE_GRID_PX))
        typical_std = float(np.median(Sums(len(self), self._sum[grid], self._sum_sq[grid]).std()))
        return typical_std / (len(self) - 1) ** 0.5

    def gaps(self, interval_s: float) -> int:
        """Count the frames missed between the frames held.

        Parameters
        ----------
        interval_s : float
            Nominal time between frames in s; 0 where it is not known.
        """
        stamps = self._timestamps_ns
        return sum(
            missed_between(earlier, later, interval_s)
            for earlier, later in zip(stamps, stamps[1:], strict=False)
        )

    def _account(self, array: np.ndarray, add_or_subtract: np.ufunc) -> None:
        """Bring a frame, (H, W), into both sums or out of them."""
        wide = self._scratch  # (H, W)
        np.copyto(wide, array)
        add_or_subtract(self._sum, wide, out=self._sum)
        np.multiply(wide, wide, out=wide)
        add_or_subtract(self._sum_sq, wide, out=self._sum_sq)

    def _renew_band(self) -> None:
        """Sum one band of rows anew: the share of them that belongs to the slot just written."""
        height, slot = self.shape[0], self._next
        rows = slice(slot * height // self.capacity, (slot + 1) * height // self.capacity)
        band = self._frames[:, rows].astype(self._sum.dtype)  # (capacity, rows, W)
        self._sum[rows] = band.sum(axis=0)
        self._sum_sq[rows] = np.einsum("tyx,tyx->yx", band, band)
