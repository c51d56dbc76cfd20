"""Whether the specimen in a stream is still the same.

A stream carries on what it saw. When another specimen is moved under the objective, its state is of
something that is no longer there. `SceneWatch` looks at the frames in blocks of pixels, whose
pattern (mean and brightness taken off) is compared along time. All that it needs to know of a
stack's own fluctuation, of its noise and of its emitters' blinking it learns from how different
the stack's past patterns were from each other: a specimen that never looks the same twice cannot
be told from its successor, and is hardly ever said to have changed.

A change is said when two patterns in a row are far from all that was before, farther by far than
the past patterns among themselves, and near to each other. Each pattern is a median over `GROUP`
frames, so that a bad frame or two are nothing. A change of brightness alone, such as bleaching, is
none. A move by a few pixels may leave most of each block where it was, and is seen by
`device.motion`, which also tells whether what looks like another scene is the same elsewhere.
What passes slowly through the field until it shows something else is not seen: its patterns are the
past among which the next is usual.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import cv2
import numpy as np

from device import motion

BLOCK_PX = 8
MAX_BLOCKS = 32
"""Along a side; larger fields have larger blocks, so that looking costs little."""

GROUP = 5
"""Frames whose median makes a pattern."""

SHOWN_BEFORE = GROUP + GROUP // 2
"""Frames of the new scene that had come when it was seen: the frame that tells makes one more.

A median is of the new scene with the third of five frames; the last two medians are of five frames
each, and both must be.
"""

GROUPS = 12
"""Patterns that are compared: the last two with those before them."""

MIN_DISTANCE = 0.3
"""One less the correlation with the past: below this, much of the old scene is still there."""

MIN_RATIO = 3.0
"""How much farther than the past patterns among themselves.

2 gives false alarms on simulated stacks (tests/device/test_scene.py) and 3 none; what is given up
is the change between specimens that fluctuate so much that they hardly look the same twice.
"""

KEPT_PER_FRAME = 0.995
"""How the largest distance that was usual is forgotten: by half in 140 frames.

The last 60 frames alone may be quiet where a few emitters blink seldom.
"""

_FLOOR = 1e-3  # of the past's own distances: a stack without any fluctuation


class Change(NamedTuple):
    """What a frame tells of those before it.

    Attributes
    ----------
    shown : int
        How many frames before this one show the new scene, or place, already.
    moved : bool
        True where the specimen is known again in another place.
    """

    shown: int
    moved: bool


class SceneWatch:
    """Looks at every frame of a stream; used by one thread."""

    def __init__(self) -> None:
        self._frames: deque[np.ndarray] = deque(maxlen=GROUP)
        self._patterns: deque[np.ndarray] = deque(maxlen=GROUP * (GROUPS - 1) + 1)
        self._usual = 0.0
        self._motion = motion.MoveWatch()

    def reset(self) -> None:
        """Forget the frames: the next one is the first of its scene."""
        self._motion.reset()
        self._forget()

    def _forget(self) -> None:
        self._frames.clear()
        self._patterns.clear()
        self._usual = 0.0

    def changed(self, frame: np.ndarray) -> Change | None:
        """Take a frame and tell whether the scene has changed by it: another one, or moved.

        Parameters
        ----------
        frame : ndarray
            (H, W) in ADU, uint8, uint16 or float32; another shape than before begins anew.

        Returns
        -------
        Change or None
            None where it has not, and while there is no past to compare with: fewer than 60 frames
            were seen, or, for the same scene in another place, fewer than 80.
        """
        frame = cv2.medianBlur(frame, 3)  # hot pixels always stay, whatever the specimen does
        moved = self._motion.changed(frame)
        if self._is_another(frame):
            return Change(SHOWN_BEFORE, moved or self._motion.known_elsewhere)
        return Change(motion.SHOWN_BEFORE, moved) if moved else None

    def _is_another(self, frame: np.ndarray) -> bool:
        """Take a frame and tell whether another scene was shown some frames ago."""
        blocks = _blocks(frame)
        if self._frames and self._frames[-1].size != blocks.size:
            self._forget()
        self._frames.append(blocks)
        if len(self._frames) < GROUP:
            return False
        self._patterns.append(_unit(np.median(np.stack(self._frames), axis=0)))
        if len(self._patterns) < GROUP * (GROUPS - 1) + 1:
            return False
        patterns = np.stack(list(self._patterns)[::GROUP])  # (GROUPS, n), of different frames each
        past, new = patterns[:-2], patterns[-2:]
        self._usual = max(KEPT_PER_FRAME * self._usual, _spread(past), _FLOOR)
        return _is_change(past, new, self._usual)


def _blocks(frame: np.ndarray) -> np.ndarray:
    """Mean of each block of a frame, (H, W), as a vector, (n,) float32."""
    height, width = (min(max(1, n // BLOCK_PX), MAX_BLOCKS) for n in frame.shape)
    small = cv2.resize(frame.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(small).ravel()


def _is_change(past: np.ndarray, new: np.ndarray, usual: float) -> bool:
    """Compare two new patterns, (2, n), with the past ones, (m, n), and the usual distance."""
    away = min(_distance(pattern, past.sum(axis=0)) for pattern in new)
    usual = max(usual, _distance(new[0], new[1]))
    return away > MIN_DISTANCE and away > MIN_RATIO * usual


def _spread(patterns: np.ndarray) -> float:
    """Largest distance of one of the patterns, (m, n), from all the others."""
    total = patterns.sum(axis=0)  # (n,)
    return max(_distance(pattern, total - pattern) for pattern in patterns)


def _unit(pattern: np.ndarray) -> np.ndarray:
    """Take mean and length off a pattern, (n,); what is even becomes zero."""
    centred = pattern - pattern.mean()
    length = float(np.linalg.norm(centred))
    return centred / length if length > 0 else centred


def _distance(pattern: np.ndarray, reference: np.ndarray) -> float:
    """One less the correlation; both have no mean, and the first has the length 1."""
    length = float(np.linalg.norm(reference))
    return 1.0 - float(pattern @ reference) / length if length > 0 else 1.0
