"""Whether the specimen in a stream was moved.

A stage that is moved by a few pixels shows the same specimen in another place. `device.scene` looks
at patterns of coarse blocks, which such a move leaves much as they were; here the last frames are
correlated with those before them at every displacement. A specimen that stays, however it
fluctuates, is most like itself where it is. One that was moved is most like itself elsewhere.

A move is said when the last groups of frames were all most like the past elsewhere, the last of
them by far, and those before that were all most like it where it was. What is too noisy or too
sparse to be known again is therefore never said to have moved.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

import cv2
import numpy as np

GROUP = 5
"""Frames whose mean is correlated with the past."""

MOVED = 7
"""Groups in a row, each a frame later than the one before, that must be elsewhere. The first is so
with the second or third frame that shows the new place; with the last, `device.scene.SHOWN_BEFORE`
and one have shown it."""

STAYED = 30
"""Groups in a row that must have been in their place before, and much like the past there: where
few emitters blink seldom, a group is like nothing but the brightest of the moment."""

BETWEEN = 2
"""Groups between those that may be anywhere."""

PAST = 30
"""Frames before all that may be moved whose mean they are correlated with."""

MAX_SIDE_PX = 128
"""Larger fields are looked at in pixels as much larger."""

MIN_MOVE_PX = 2
"""Along an axis, in the pixels that are looked at. Of simulated specimens that stay, the likeness
is never greatest farther away than 1 px (tests/device/test_motion.py)."""

MAX_MOVE_PX = 16
"""As far as is looked, and at most a quarter of the field: farther away, little of the specimen is
left in it, and likeness is chance. A likeness that still grows there is of no move."""

MIN_LIKENESS = 0.4
"""Correlation with the past where it is greatest: below, it may be another specimen, or noise."""

MIN_GAIN = 0.1
"""How much greater it must be at the new place than at the old one, for the last group."""

_BLUR_PX = 1.0  # sigma: noise of single pixels is like nothing


class MoveWatch:
    """Looks at every frame of a stream; used by one thread."""

    def __init__(self) -> None:
        self._frames: deque[np.ndarray] = deque(maxlen=PAST + MOVED + GROUP)
        # Of each group, whether it was elsewhere, and whether it was like the past anywhere.
        self._groups: deque[tuple[bool, bool]] = deque(maxlen=STAYED + BETWEEN + MOVED)

    def reset(self) -> None:
        """Forget the frames: the next one is the first."""
        self._frames.clear()
        self._groups.clear()

    def changed(self, frame: np.ndarray) -> bool:
        """Take a frame and tell whether the specimen was moved some frames ago.

        Parameters
        ----------
        frame : ndarray
            (H, W) in ADU; another shape than before begins anew.

        Returns
        -------
        bool
            False while there are too few frames to compare with.
        """
        small = _small(frame)
        if self._frames and self._frames[-1].shape != small.shape:
            self.reset()
        self._frames.append(small)
        if len(self._frames) < PAST + MOVED + GROUP:
            return False
        frames = list(self._frames)
        away_px, likeness, stayed = _most_alike(
            _contrast(frames[: -MOVED - GROUP]), _contrast(frames[-GROUP:])
        )
        alike = likeness >= MIN_LIKENESS
        self._groups.append((away_px >= MIN_MOVE_PX, alike))
        if len(self._groups) < STAYED + BETWEEN + MOVED:
            return False
        before, after = islice(self._groups, STAYED), islice(self._groups, STAYED + BETWEEN, None)
        stayed_before = all(known and not away for away, known in before)
        moved = alike and likeness >= stayed + MIN_GAIN and all(away for away, _ in after)
        return stayed_before and moved


def _small(frame: np.ndarray) -> np.ndarray:
    """Bring a frame to `MAX_SIDE_PX` along its longer side at most, (h, w) float32."""
    factor = max(1.0, max(frame.shape) / MAX_SIDE_PX)
    height, width = (max(1, round(length / factor)) for length in frame.shape)
    image = cv2.resize(frame.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.GaussianBlur(image, (0, 0), _BLUR_PX))


def _contrast(frames: list[np.ndarray]) -> np.ndarray:
    """Mean of frames, (h, w) each, without its level and its edges."""
    mean = np.mean(frames, axis=0)
    height, width = mean.shape
    return (mean - mean.mean()) * np.outer(np.hanning(height), np.hanning(width))


def _most_alike(past: np.ndarray, new: np.ndarray) -> tuple[int, float, float]:
    """Say at which displacement two images, (h, w), are most alike.

    Returns
    -------
    away : int
        The displacement in px along y or x, whichever is larger.
    likeness, stayed : float
        Correlation there, and at no displacement; 0 for an image without contrast, and where it is
        greatest at the end of what is looked at.
    """
    length = float(np.linalg.norm(past) * np.linalg.norm(new))
    if length <= 0:
        return 0, 0.0, 0.0
    shape = past.shape
    products = np.fft.irfft2(np.conj(np.fft.rfft2(past)) * np.fft.rfft2(new), s=shape)
    alike = np.fft.fftshift(products) / length
    y, x = shape[0] // 2, shape[1] // 2
    reach_y, reach_x = min(MAX_MOVE_PX, y // 2), min(MAX_MOVE_PX, x // 2)
    near = alike[y - reach_y : y + reach_y + 1, x - reach_x : x + reach_x + 1]
    dy, dx = np.unravel_index(int(np.argmax(near)), near.shape)
    away_y, away_x = abs(int(dy) - reach_y), abs(int(dx) - reach_x)
    if away_y == reach_y or away_x == reach_x:
        return 0, 0.0, 0.0
    return max(away_y, away_x), float(near[dy, dx]), float(near[reach_y, reach_x])
