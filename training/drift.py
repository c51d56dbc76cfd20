"""What a stream is like after a long time, and after its specimen changed.

Window mode on the same last frames is what a stream is compared with: it has seen nothing else.
Frames are made and scored as they pass; memory does not grow with their number.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice

import numpy as np

from device.camera import Frame
from device.model import Step
from device.reconstructor import Reconstructor, reconstruct_stream, reconstruct_window
from device.ring_buffer import RingBuffer
from training.forward_model import WINDOW
from training.metrics import high_pass, psnr_db
from training.scenes import Scene

log = logging.getLogger(__name__)

CHECKPOINTS = (30, 300, 3_000, 30_000)
REPEATS = 8  # windows, one after another, whose mean is the score: one alone is 0.1 dB of chance
CHANGE_AT = 300
RECOVERED_AFTER = 30
GHOST_AFTER = 60
MOVED_PX = 5
CHANGES = ("replaced", "moved")

Images = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Drift:
    """One form in one mode on one scene after so many frames, PSNR in dB, mean of `repeats`."""

    scene: str
    form: str
    mode: str
    frames: int
    repeats: int
    psnr_db: float


@dataclass(frozen=True, slots=True)
class StepResponse:
    """One form after a change of scene.

    Attributes
    ----------
    scene, change, form : str
        What changed and how; ``int8`` or ``float32``.
    stream_db, window_db : float
        PSNR against the new truth, `RECOVERED_AFTER` frames after the change, without a reset.
    daemon_db : float
        The same as the daemon plays it, which begins anew where it sees the scene change.
    ghost : float
        What is left of the old specimen's detail `GHOST_AFTER` frames after the change, over what
        it was before, without a reset. See `ghost`.
    daemon_ghost : float
        The same as the daemon plays it.
    """

    scene: str
    change: str
    form: str
    stream_db: float
    window_db: float
    daemon_db: float
    ghost: float
    daemon_ghost: float


class Streams:
    """Every form as a stream over one series of frames.

    Parameters
    ----------
    steps : mapping of str to Step
        Forms by name.
    shape : (int, int)
        Height and width of the frames in px.
    """

    def __init__(self, steps: Mapping[str, Step], shape: tuple[int, int]) -> None:
        self._steps = steps
        self._buffer = RingBuffer(WINDOW, shape, np.uint16)
        self._streams = {form: Reconstructor(step, "stream") for form, step in steps.items()}
        self._index = count()

    def push(self, array: np.ndarray) -> Images:
        """Take a frame, (H, W); the image of every form, (2H, 2W), but none for the first frame."""
        frame = Frame(array, 0, next(self._index))
        self._buffer.push(frame)
        results = {form: each.push(frame, self._buffer) for form, each in self._streams.items()}
        return {form: result.image for form, result in results.items() if result is not None}

    def windows(self) -> Images:
        """Reconstruct the last 30 frames by themselves with every form, (2H, 2W) each."""
        frames = self._buffer.frames()
        return {form: reconstruct_window(step, frames).image for form, step in self._steps.items()}


def looked_at(frames: int, checkpoints: Sequence[int] = CHECKPOINTS) -> dict[int, int]:
    """Say after which frames to score: number of frames to the checkpoint it counts for.

    Parameters
    ----------
    frames : int
        Length of the stream.
    checkpoints : sequence of int
        Those beyond `frames` are left out.
    """
    found: dict[int, int] = {}
    for checkpoint in checkpoints:
        if checkpoint <= frames:
            repeats = min(REPEATS, checkpoint // WINDOW)
            found |= {checkpoint - k * WINDOW: checkpoint for k in range(repeats)}
    return found


def drift(
    name: str, scene: Scene, steps: Mapping[str, Step], frames: int, rng: np.random.Generator
) -> list[Drift]:
    """Play a scene to every form, as a stream, and score it at the checkpoints.

    Parameters
    ----------
    name : str
        Of the scene.
    scene : Scene
        What is shown.
    steps : mapping of str to Step
        Forms by name.
    frames : int
        Length of the stream.
    rng : Generator
        Source of chance.
    """
    at, truth = looked_at(frames), scene.truth()
    streams = Streams(steps, scene.shape)
    found: dict[tuple[str, str, int], list[float]] = {}
    for number, array in enumerate(islice(scene.frames(rng), max(at)), start=1):
        images = streams.push(array)
        if number not in at:
            continue
        for mode, each in (("stream", images), ("window", streams.windows())):
            for form, image in each.items():
                found.setdefault((form, mode, at[number]), []).append(psnr_db(image, truth))
    log.info("%s: %d frames", name, max(at))
    return [
        Drift(name, form, mode, checkpoint, len(scores), float(np.mean(scores)))
        for (form, mode, checkpoint), scores in found.items()
    ]


def ghost(image: np.ndarray, own: np.ndarray, old: np.ndarray) -> float:
    """How much of the old truth's detail is in an image, in units of the old truth.

    The coefficient of the old truth's high-pass where the image's is fitted, by least squares, by
    it and the own truth's together; what both specimens have in common is nobody's ghost.

    Parameters
    ----------
    image, own, old : ndarray
        (2H, 2W) each: the image, the truth it should show, the truth it should not.
    """
    detail = np.stack([high_pass(old).ravel(), high_pass(own).ravel()], axis=1)
    return float(np.linalg.lstsq(detail, high_pass(image).ravel(), rcond=None)[0][0])


def step_response(
    name: str,
    change: str,
    scenes: tuple[Scene, Scene],
    steps: Mapping[str, Step],
    rng: np.random.Generator,
) -> list[StepResponse]:
    """Change the scene under the running streams, without a reset and as the daemon plays them.

    The ghost is that of the stream less that of a window of the same last frames, which has never
    seen the old specimen: a chance likeness of what the network draws wrongly is no memory.

    Parameters
    ----------
    name, change : str
        For the record.
    scenes : (Scene, Scene)
        Before and after.
    steps : mapping of str to Step
        Forms by name.
    rng : Generator
        Source of chance.
    """
    old, own = (scene.truth() for scene in scenes)
    streams = Streams(steps, scenes[0].shape)
    arrays = list(_changing(scenes, rng))
    snapshots: dict[int, tuple[Images, Images]] = {}
    ends = (CHANGE_AT, CHANGE_AT + RECOVERED_AFTER, CHANGE_AT + GHOST_AFTER)
    for number, array in enumerate(arrays, start=1):
        images = streams.push(array)
        if number in ends:
            snapshots[number] = images, streams.windows()
    before, recovered, late = (snapshots[end] for end in ends)
    found = []
    for form, step in steps.items():
        daemon = _as_the_daemon(step, arrays, ends)
        of_window, of_old = ghost(late[1][form], own, old), ghost(before[0][form], own, old)
        found.append(
            StepResponse(
                name,
                change,
                form,
                stream_db=psnr_db(recovered[0][form], own),
                window_db=psnr_db(recovered[1][form], own),
                daemon_db=psnr_db(daemon[ends[1]], own),
                ghost=(ghost(late[0][form], own, old) - of_window) / of_old,
                daemon_ghost=(ghost(daemon[ends[2]], own, old) - of_window) / of_old,
            )
        )
    return found


def _as_the_daemon(
    step: Step, arrays: Sequence[np.ndarray], ends: Sequence[int]
) -> dict[int, np.ndarray]:
    """Play frames, (H, W) each, to a stream that watches the scene.

    Returns its images, (2H, 2W), after so many frames each.
    """
    results = enumerate(reconstruct_stream(step, arrays), start=1)
    return {number: result.image for number, result in results if number in ends}


def _changing(scenes: tuple[Scene, Scene], rng: np.random.Generator) -> Iterator[np.ndarray]:
    before, after = (scene.frames(rng) for scene in scenes)
    return chain(islice(before, CHANGE_AT), islice(after, GHOST_AFTER))
