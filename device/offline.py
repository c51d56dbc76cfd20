"""From a recorded stack to a reconstructed one, in the memory of one window."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from device.camera import MIN_SIDE_PX
from device.errors import UserError
from device.model import Step, load_step
from device.ometiff import check_output, write_ometiff
from device.psf_width import PsfEstimate
from device.reconstructor import (
    Mode,
    Reconstruction,
    reconstruct_stream,
    reconstruct_window,
    said_error,
    told_psf,
)
from device.stack import MIN_FRAMES, Stack, open_stack

log = logging.getLogger(__name__)

CHANNELS = ("reconstruction", "expected error")
"""Of a file with errors; an error that is not known is NaN."""


class JobError(UserError):
    """What was asked for does not fit the stack; the text is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to reconstruct, and how.

    Attributes
    ----------
    source, target : Path
        The recorded stack, and the OME-TIFF to be written.
    mode : str
        ``window``: one image from the last frames, or one per `every` frames; ``stream``: one
        image for each frame.
    every : int or None
        In window mode: an image after every so many frames.
    frames : tuple of int, or None
        First frame, from 0, and the one behind the last; None for the stack's begin or end.
    roi : tuple of int or None
        Region in px: Y, X, height, width.
    model : Path or None
        Model file; None is the newest int8 model.
    psf_sigma_px : float or None
        Width of the PSF in input px, for models that ask for it.
    pixel_size_um : float or None
        Side of an input pixel in um; None is what the stack tells.
    error : bool
        With a second channel: the error that 68 % of such pixels are within, NaN where it is not
        known, as of fewer frames than a window has.
    """

    source: Path
    target: Path
    mode: Mode = "window"
    every: int | None = None
    frames: tuple[int | None, int | None] = (None, None)
    roi: tuple[int, int, int, int] | None = None
    model: Path | None = None
    psf_sigma_px: float | None = None
    pixel_size_um: float | None = None
    error: bool = False


def reconstruct_file(job: Job) -> None:
    """Do a job; a progress bar is shown where stderr is a terminal.

    Parameters
    ----------
    job : Job
        What to reconstruct.

    Raises
    ------
    UserError
        Stack, model, output or the job itself is not usable; nothing is left behind.
    FaultError
        The output could not be written; nothing is left behind.
    """
    check_output(job.target)
    with open_stack(job.source) as stack:
        if job.target.exists() and job.target.samefile(job.source):
            raise JobError(f"{job.target}: is the input; expected another file; rename the output")
        selection = _Selection(stack, job)
        step = load_step(job.model)
        if job.error and step.expected_error is None:
            raise JobError(
                f"{step.name} does not say how far it may be off: leave --error out, or take a "
                "model that comes with its file of expected errors"
            )
        _note_psf(step, job.psf_sigma_px)
        _write(job, step, selection)


def _write(job: Job, step: Step, selection: _Selection) -> None:
    annotations = _annotations(job, step, selection)
    log.info("%s: %d images from %s", job.target, selection.images, job.source)
    with tqdm(total=selection.frames, unit="frame", disable=None) as bar:
        results = _results(job, step, selection, bar.update)
        write_ometiff(
            job.target,
            _noting_scales(results, annotations, step if job.error else None),
            _output_shape(step, selection),
            channels=CHANNELS if job.error else (),
            pixel_size_um=_output_pixel_size_um(job, step, selection),
            annotations=annotations,
        )


def _output_shape(step: Step, selection: _Selection) -> tuple[int, int, int]:
    upsampling = step.manifest.upsampling
    return selection.images, upsampling * selection.height, upsampling * selection.width


def _output_pixel_size_um(job: Job, step: Step, selection: _Selection) -> float | None:
    pixel_size_um = job.pixel_size_um or selection.pixel_size_um
    return None if pixel_size_um is None else pixel_size_um / step.manifest.upsampling


def _results(
    job: Job, step: Step, selection: _Selection, progress: Callable[[int], object]
) -> Iterator[Reconstruction]:
    if job.mode == "stream":
        frames = _counted(selection.read_all(), progress)
        yield from reconstruct_stream(step, frames, job.psf_sigma_px)
        return
    for window, new_frames in windows(selection.read, selection.ends, step.manifest.frames):
        yield reconstruct_window(step, window, job.psf_sigma_px)
        progress(new_frames)


def _counted(
    frames: Iterable[np.ndarray], progress: Callable[[int], object]
) -> Iterator[np.ndarray]:
    for frame in frames:
        yield frame
        progress(1)


def windows(
    read: Callable[[int], np.ndarray], ends: Iterable[int], length: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the last frames before each end, reading every frame once at most.

    Parameters
    ----------
    read : callable
        Gives frame k, (H, W).
    ends : iterable of int
        Growing; an end is the frame behind a window's last.
    length : int
        Longest window in frames; the first ones may be shorter.

    Yields
    ------
    tuple of ndarray and int
        The window (T, H, W), and by how many frames its end lies behind the one before.
    """
    held: deque[np.ndarray] = deque(maxlen=length)
    following, last_end = 0, 0
    for end in ends:
        if end - length > following:
            held.clear()
            following = end - length
        while following < end:
            held.append(read(following))
            following += 1
        yield np.stack(held), end - last_end  # (T, H, W)
        last_end = end


class _Selection:
    """The frames and the region of a stack that a job is about, numbered from 0."""

    def __init__(self, stack: Stack, job: Job) -> None:
        self._stack = stack
        first, end = job.frames
        self._first = first or 0
        self._end = stack.frames if end is None else end
        self._check_frames()
        self.frames = self._end - self._first
        top, left, self.height, self.width = job.roi or (0, 0, stack.height, stack.width)
        self._region = np.s_[top : top + self.height, left : left + self.width]
        self._check_region(top, left)
        self.ends = self._window_ends(job.every)
        self.images = self.frames if job.mode == "stream" else len(self.ends)
        self.pixel_size_um = stack.pixel_size_um

    def read(self, index: int) -> np.ndarray:
        """Read frame `index` of the selection, (H, W)."""
        return np.ascontiguousarray(self._stack.read(self._first + index)[self._region])

    def read_all(self) -> Iterator[np.ndarray]:
        """Read the frames one by one, each (H, W)."""
        return (self.read(index) for index in range(self.frames))

    def _check_frames(self) -> None:
        count = self._stack.frames
        if self._end > count or self._end - self._first < MIN_FRAMES:
            raise JobError(
                f"--frames {self._first}:{self._end} does not fit the {count} frames of "
                f"{self._stack.path}; expected A:B with 0 <= A, A + {MIN_FRAMES} <= B <= {count} "
                "(B is not included); choose other frames"
            )

    def _check_region(self, top: int, left: int) -> None:
        inside = top + self.height <= self._stack.height and left + self.width <= self._stack.width
        if not inside or min(self.height, self.width) < MIN_SIDE_PX:
            raise JobError(
                f"--roi {top},{left},{self.height},{self.width} does not fit frames of "
                f"{self._stack.height} x {self._stack.width} px; expected Y,X,H,W inside them, H "
                f"and W at least {MIN_SIDE_PX}; choose another region"
            )

    def _window_ends(self, every: int | None) -> range:
        if every is None:
            return range(self.frames, self.frames + 1)
        if not MIN_FRAMES <= every <= self.frames:
            raise JobError(
                f"--every {every} does not fit {self.frames} frames; expected {MIN_FRAMES} to "
                f"{self.frames}; choose another number, or --mode stream for an image every frame"
            )
        return range(every, self.frames + 1, every)


def _note_psf(step: Step, psf_sigma_px: float | None) -> None:
    """Say what a given PSF width means for this model."""
    if psf_sigma_px is None:
        return
    low, high = step.manifest.psf_sigma_px
    if not step.manifest.takes_psf:
        log.warning("%s is blind: the PSF's width that was given is not used", step.name)
    elif not low <= psf_sigma_px <= high:
        log.warning(
            "a PSF of sigma %.2f px lies outside %.2f to %.2f px, for which %s was trained",
            *(psf_sigma_px, low, high, step.name),
        )


def _annotations(job: Job, step: Step, selection: _Selection) -> dict[str, Any]:
    """Collect what the file is to tell about its making."""
    return {
        "software": f"learn2sofi {version('learn2sofi')}",
        "input": job.source.name,
        "model": step.name,
        "model_sha256": step.sha256,
        "mode": job.mode,
        "every": job.every,
        "frames": f"{selection._first}:{selection._end}",
        "roi": ",".join(map(str, job.roi)) if job.roi else None,
        "psf_sigma_px": told_psf(step, job.psf_sigma_px),
        "normalization": step.manifest.normalization.model_dump_json(),
        "unit": "input counts above background",
        "error_unit": "input counts, error that 68 % of such pixels are within"
        if job.error
        else None,
    }


def _noting_scales(
    results: Iterable[Reconstruction], annotations: dict[str, Any], with_error_of: Step | None
) -> Iterator[np.ndarray]:
    """Yield the images, and what a step says of their errors; note each one's scale."""
    backgrounds, scales, verdicts = [], [], []
    found: list[PsfEstimate | None] = []
    unknown = 0
    told: list[float | None] = []
    for result in results:
        backgrounds.append(round(result.scaling.background, 4))
        scales.append(round(result.scaling.scale, 4))
        verdicts.append(result.nothing_to_see)
        found.append(result.psf_found)
        told.append(None if result.psf_sigma_px is None else round(result.psf_sigma_px, 3))
        yield result.image
        if with_error_of is not None:
            error = said_error(with_error_of, result)
            unknown += error is None
            yield np.full_like(result.image, np.nan) if error is None else error
    if unknown and with_error_of is not None:
        log.warning(
            "the error of %d of %d images is not known (NaN): it takes %d frames and some contrast",
            *(unknown, len(scales), with_error_of.manifest.frames),
        )
    annotations["background_adu"] = json.dumps(backgrounds)
    annotations["scale_adu"] = json.dumps(scales)
    if known := [each for each in found if each is not None]:
        sigmas = [None if each is None else round(each.sigma_px, 3) for each in found]
        errors = [None if each is None else round(each.relative_error, 3) for each in found]
        annotations["psf_found_px"] = json.dumps(sigmas)
        annotations["psf_found_relative_error"] = json.dumps(errors)
        annotations["psf_sigma_px"] = json.dumps(told)
        last = known[-1]
        log.info(
            "the PSF's sigma, as found in the frames: %.2f px, give or take %.0f %%",
            *(last.sigma_px, 100 * last.relative_error),
        )
    if verdicts and verdicts[-1]:
        annotations["verdict"] = "nothing to see"
        log.warning("nothing to see: the mean image shows no contrast beyond its noise")
