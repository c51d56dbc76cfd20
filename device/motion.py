"""Whether the specimen in a stream was moved.

A stage that is moved by a few pixels shows the same specimen in another place. `device.scene` looks
at patterns of coarse blocks, which such a move leaves much as they were; here the last frames are
correlated with those before them at every displacement. A specimen that stays, however it
fluctuates, is most like itself where it is. One that was moved is most like itself elsewhere.

A specimen that was in its place for long and is not any more is followed: what is seen is compared
with what was seen last in the old place, however long the way. A move is said when the last groups
of frames were all most like it in the same other place: of a move that takes more than three frames
for a pixel, too early. What is too noisy or too sparse to be known again is therefore never said to
have moved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import cv2
import numpy as np

GROUP = 5
"""Frames whose mean is correlated with the past."""

SETTLED = 9
"""Groups in a row, each a frame later than the one before, that must be in the same other place,
give or take a pixel."""

SHOWN_BEFORE = SETTLED - 2 + GROUP // 2
"""Frames that had shown the new place when the move was said: from the middle of the second of
these groups on. The frame that tells makes one more."""

STAYED = 30
"""Groups in a row that must have been in their place before, and much like the past there: where
few emitters blink seldom, a group is like nothing but the brightest of the moment."""

KNOWN = 3
"""Groups in a row in the same other place by which a specimen that looks like another is known;"""

KNOWN_LIKENESS = 0.7
"""and its likeness there: moved ones are at 0.7 to 0.99, others of their kind at 0.66 at most
(tests/device/test_scene.py has some of each)."""

PATIENCE = 90
"""Frames that a move may take: a stage that is turned by hand is some seconds on its way. After
that the place where the specimen is becomes its own."""

MAX_UNKNOWN = 2
"""Groups on the way that may be like the past nowhere. With more, what was in its place for a while
was that by chance, or is gone."""

PAST = 30
"""Frames before all that may be moved whose mean they are correlated with."""

MAX_SIDE_PX = 128
"""Larger fields are looked at in pixels as much larger."""

MIN_MOVE_PX = 2
"""Along an axis, in the pixels that are looked at: nearer, the likeness of what stays is greatest
now and then."""

MAX_MOVE_PX = 16
"""As far as is looked, and at most a quarter of the field: farther away, little of the specimen is
left in it, and likeness is chance. A likeness that is greatest there, where it may still grow, is
of no move."""

MIN_LIKENESS = 0.4
"""Correlation with the past where it is greatest: below, it may be another specimen, or noise."""

MIN_GAIN = 0.1
"""How much greater it must be at the new place than at the old one; or, of a smooth specimen, which
is like itself everywhere near:"""

MIN_GAIN_OVER_REST = 1.0
"""as much greater as what it lacks of 1 there."""

_BLUR_PX = 1.0  # sigma: noise of single pixels is like nothing

Place = tuple[int, int]
"""Displacement along y and x in px."""


class MoveWatch:
    """Looks at every frame of a stream; used by one thread."""

    def __init__(self) -> None:
        self._frames: deque[np.ndarray] = deque(maxlen=PAST + SETTLED + GROUP)
        self._stayed = 0  # groups in a row that were in their place
        self._left: np.ndarray | None = None  # what was last seen there, (h, w)
        self._likeness = 0.0  # to it, of the last group, where that is most like it
        self._since = self._unknown = 0  # groups since then, and how many were not known again
        self._places: deque[Place | None] = deque(maxlen=SETTLED)

    def reset(self) -> None:
        """Forget the frames: the next one is the first."""
        self._frames.clear()
        self._start()

    def _start(self) -> None:
        """Take the place where the specimen is for its own."""
        self._stayed, self._left, self._since, self._unknown = 0, None, 0, 0
        self._places.clear()

    def changed(self, frame: np.ndarray) -> bool:
        """Take a frame and tell whether the specimen was moved and has been in its new place since.

        Parameters
        ----------
        frame : ndarray
            (H, W) in ADU.

        Returns
        -------
        bool
            False while there are too few frames to compare with.
        """
        small = _small(frame)
        if self._frames and self._frames[-1].shape != small.shape:
            self.reset()
        self._frames.append(small)
        if len(self._frames) < PAST + SETTLED + GROUP:
            return False
        frames = list(self._frames)
        past = _contrast(frames[: -SETTLED - GROUP]) if self._left is None else self._left
        place, likeness, at_home = _most_alike(past, _contrast(frames[-GROUP:]))
        if likeness >= MIN_LIKENESS and not _away(place):
            if self._left is not None:
                self._start()  # it is back
            self._stayed += 1
            return False
        if self._left is None and self._stayed < STAYED:
            self._stayed = 0
            return False
        self._left = past
        return self._follow(place, likeness, at_home)

    @property
    def known_elsewhere(self) -> bool:
        """Whether the specimen is known again in another place, though not yet to stay there."""
        alike = self._left is not None and self._likeness >= KNOWN_LIKENESS
        return alike and _is_one(list(self._places)[-KNOWN:], KNOWN)

    def _follow(self, place: Place, likeness: float, at_home: float) -> bool:
        """Take a group that is not in its place; tell whether it has come to stay in another."""
        known = likeness >= MIN_LIKENESS
        self._places.append(place if known else None)
        self._likeness = likeness
        self._since += 1
        self._unknown += not known
        settled = _is_one(self._places, SETTLED)
        if settled and _clearly_more(likeness, at_home):
            return True
        # A stream that began anew later than it settled would lose more than it gains.
        if settled or self._since > PATIENCE or self._unknown > MAX_UNKNOWN:
            self._start()
        return False


def _is_one(places: Iterable[Place | None], groups: int) -> bool:
    """Tell whether so many groups were all known in the same place, give or take a pixel."""
    known = [place for place in places if place is not None]
    return len(known) == groups and bool(np.all(np.ptp(known, axis=0) <= 1))


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


def _most_alike(past: np.ndarray, new: np.ndarray) -> tuple[Place, float, float]:
    """Say at which displacement two images, (h, w), are most alike.

    Returns
    -------
    place : (int, int)
        The displacement.
    likeness, at_home : float
        Correlation there, and at no displacement; 0 for an image without contrast, and where it is
        greatest at the end of what is looked at.
    """
    length = float(np.linalg.norm(past) * np.linalg.norm(new))
    if length <= 0:
        return (0, 0), 0.0, 0.0
    shape = past.shape
    products = np.fft.irfft2(np.conj(np.fft.rfft2(past)) * np.fft.rfft2(new), s=shape)
    alike = np.fft.fftshift(products) / length
    y, x = shape[0] // 2, shape[1] // 2
    reach_y, reach_x = min(MAX_MOVE_PX, y // 2), min(MAX_MOVE_PX, x // 2)
    near = alike[y - reach_y : y + reach_y + 1, x - reach_x : x + reach_x + 1]
    row, column = np.unravel_index(int(np.argmax(near)), near.shape)
    dy, dx = int(row) - reach_y, int(column) - reach_x
    if abs(dy) == reach_y or abs(dx) == reach_x:
        return (0, 0), 0.0, 0.0
    return (dy, dx), float(near[row, column]), float(near[reach_y, reach_x])


def _clearly_more(likeness: float, at_home: float) -> bool:
    """Tell whether a specimen is much more like what was seen at the new place than at the old."""
    gain, rest = likeness - at_home, 1 - likeness
    return gain >= MIN_GAIN or gain >= MIN_GAIN_OVER_REST * rest


def _away(place: Place) -> bool:
    return max(abs(along) for along in place) >= MIN_MOVE_PX
