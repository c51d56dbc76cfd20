"""From frames to reconstructions: the window mode and the stream mode over one step."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeVar, cast, get_args

import cv2
import numpy as np

from device import output_filter
from device.camera import DTYPES, MIN_SIDE_PX, Frame
from device.errors import UserError
from device.model import ModelError, Step
from device.normalize import Scaling, measure
from device.psf_width import PsfEstimate, PsfWatch, middle
from device.ring_buffer import RingBuffer, Sums
from device.scene import Change, SceneWatch

Mode = Literal["stream", "window"]
MODES: tuple[str, ...] = get_args(Mode)
_Made = TypeVar("_Made")
RENEWED_AFTER = 120
"""Frames after which a stream's state gets a successor, begun from zero, which takes its place
after as many again: no state is older than twice that. An int8 state does not take in what would
change it by less than half a step, and after some hundred frames that shows. The image is always
the older state's; the younger one costs what a frame without an image does."""

LOOKED_AT_EVERY = 4
"""Images of a stream between two steps of looking for what repeats.

A look takes as many steps as a window, and so the images of four windows; then the next begins. The
first one makes a step with every image: half a machine's time, but never many steps at once.
Meanwhile a copy of the buffer's frames is kept. An answer that no other has followed in twice that
time, as where frames come in short bursts, is forgotten."""

UNKNOWN_PSF = 0.0  # what a model is told where nobody knows the width


class ReconstructionError(UserError):
    """Frames that cannot be reconstructed; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """One reconstructed image and what it was made from.

    Attributes
    ----------
    image : ndarray
        Counts above background in ADU, (2H, 2W) float32; output pixel j lies at input coordinate
        (j + 0.5) / 2 - 0.5.
    scaling : Scaling
        Background and scale of the normalization, in ADU.
    mode : str
        ``stream`` or ``window``.
    frames : int
        Frames it was made from, counted up to the model's window (30).
    warming : bool
        True while there were fewer frames than the model's window.
    nothing_to_see : bool
        True where the mean image has no contrast beyond its noise.
    gaps : int
        Frames missed inside the window, or in the last 30 frames of the stream.
    span_ms : float
        Time from the oldest to the newest of those frames, in ms.
    timestamp_ns : int
        Sensor timestamp of the newest frame in ns.
    index : int
        Number of the newest frame.
    psf_sigma_px : float or None
        Width of the PSF that the network was told; None where it was told nothing.
    psf_found : PsfEstimate or None
        What was found in the frames, where nobody gave a width.
    sums : Sums or None
        Of the frames it was made from (in a stream of the last ones): what its error is judged by,
        on the device and in training.
    """

    image: np.ndarray
    scaling: Scaling
    mode: Mode
    frames: int
    warming: bool
    nothing_to_see: bool
    gaps: int
    span_ms: float
    timestamp_ns: int
    index: int
    psf_sigma_px: float | None = None
    psf_found: PsfEstimate | None = None
    sums: Sums | None = None


class Reconstructor:
    """Runs a step over frames, in stream or in window mode; used by one thread.

    Parameters
    ----------
    step : Step
        The network's step.
    mode : str
        ``stream``: one step for every frame, the state carried on. ``window``: the frames in the
        buffer, all of them from a zero state, and all of them again, transposed.
    interval_s : float
        Nominal time between frames in s, to count gaps by; 0 where it is not known.
    psf_sigma_px : float, optional
        Width of the PSF in input px, for models that take it; default is that it is not known, and
        is looked for in the frames by models that can (`device.psf_width`).

    Attributes
    ----------
    steps : int
        Steps made so far: it grows while a long window is being computed.
    """

    def __init__(
        self,
        step: Step,
        mode: Mode = "stream",
        interval_s: float = 0.0,
        psf_sigma_px: float | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"the mode is stream or window, not {mode}")
        self.mode: Mode = mode
        self.interval_s = interval_s
        self.steps = 0
        self._step = step
        self._normalization = step.manifest.normalization.settings()
        self._psf_watch = step.psf_width and PsfWatch(step.psf_width, step.manifest.frames)
        self._state: dict[str, np.ndarray] | None = None
        self._younger: dict[str, np.ndarray] | None = None
        self._age = 0
        self._filter = step.manifest.output_filter and step.manifest.output_filter.settings()
        self._damping: np.ndarray | None = None  # of an image's cosines, (2H, 2W)
        self._images_damped = 0  # by this answer
        self._look: Iterator[None] | None = None
        self._looked = False
        self._images_seen = 0  # of full buffers, since the look began anew
        self._shape = (0, 0)  # of the frames
        self._previous: np.ndarray | None = None
        self._fed = 0
        self._scene = SceneWatch()
        self.set_psf(psf_sigma_px)

    def reset(self) -> None:
        """Forget all frames: the next one is the first.

        What they told of the PSF's width goes, too. It errs with the specimen, the same way as long
        as that is seen: kept for another, it leaves a stream further below a window.
        """
        if self._psf_watch:
            self._psf_watch.reset()
            self._tell_psf()
        self._damping = None
        self._start_over()

    def begin_anew(self) -> None:
        """Forget all frames, but neither the PSF's width nor what is damped: see `reset`.

        The specimen may still be the same. Both are looked for anew.
        """
        if self._psf_watch:
            self._psf_watch.look_again()
        self._start_over()

    def _start_over(self) -> None:
        """Forget what the network made of the frames."""
        self._scene.reset()
        self._state = None
        self._previous = None
        self._fed = 0
        self._look_again()

    def _look_again(self) -> None:
        """Have the next look for what repeats begin at once; what is damped stays until then."""
        self._look, self._looked, self._images_seen = None, False, 0

    def scene_changed(self, array: np.ndarray) -> Change | None:
        """Look at the next frame, and forget those before it where the scene has changed by it.

        To be told of every frame of a stream before it is pushed. The buffer is the caller's: of
        its frames it is to keep the last ``shown`` alone.

        Parameters
        ----------
        array : ndarray
            The frame, (H, W) in ADU.

        Returns
        -------
        Change or None
            None where it shows what the frames before it do; in a window, which has no past, too.
        """
        change = self._scene.changed(array) if self.mode == "stream" else None
        if change and change.moved:
            self.begin_anew()
        elif change:
            self.reset()
        return change

    def set_psf(self, sigma_px: float | None) -> None:
        """Give the width of the PSF in input px; None where it is not known."""
        self._psf_given_px = sigma_px
        self._tell_psf()
        self._look_again()

    @property
    def psf_found(self) -> PsfEstimate | None:
        """What the frames tell of the PSF's width; None where it was given."""
        if self._psf_given_px is not None or not self._psf_watch:
            return None
        return self._psf_watch.estimate

    def _tell_psf(self) -> None:
        """Have the network told what is known of the PSF's width by now."""
        found = self.psf_found
        known = self._psf_given_px if found is None else found.told_px
        self._psf_told_px = told_psf(self._step, known)
        self._constants = constant_inputs(self._step, self._psf_told_px)

    def _look_for_psf(self, newest: int, buffer: RingBuffer, scaling: Scaling) -> None:
        """Keep the PSF's width up to date with the newest frame, where nobody gave it."""
        if not self._psf_watch or self._psf_given_px is not None or scaling.nothing_to_see:
            return

        def normalized() -> np.ndarray:
            return scaling.normalize(buffer.frames(middle(buffer.shape)))

        told_before = self._psf_told_px
        if self._psf_watch.see(newest, len(buffer), normalized):
            self._tell_psf()
            if told_before is None and self._psf_told_px is not None:
                self._look_again()

    def push(self, frame: Frame, buffer: RingBuffer) -> Reconstruction | None:
        """Reconstruct with a new frame.

        Parameters
        ----------
        frame : Frame
            The newest frame.
        buffer : RingBuffer
            The last frames, this one included.

        Returns
        -------
        Reconstruction or None
            None for the first frame: one frame does not fluctuate.

        Raises
        ------
        ModelError
            The model cannot be run at this size, or the runtime failed.
        """
        if self.mode == "window":
            return self._window(frame, buffer) if len(buffer) > 1 else None
        result = self._stream(frame, buffer)
        return result if self._fed > 1 else None

    def carry(self, frame: Frame, buffer: RingBuffer) -> None:
        """Take a frame into the stream without an image, which may take less time than `push`.

        Parameters, errors: see `push`.
        """
        scaling, mean = self._catch_up(frame, buffer)
        self._carry(frame.array, scaling, mean)

    def _stream(self, frame: Frame, buffer: RingBuffer) -> Reconstruction:
        """Make one step with the newest frame, by the statistics of the frames up to it."""
        scaling, mean = self._catch_up(frame, buffer)
        image = self._feed(frame.array, scaling, mean)
        self._go_on_looking(buffer, scaling)
        return self._result(image, scaling, frame, buffer, self._fed)

    def _catch_up(self, frame: Frame, buffer: RingBuffer) -> tuple[Scaling, np.ndarray]:
        """Make ready for the newest frame; returns the scaling and the mean, (1, H', W', 1).

        A stream that begins with more frames in the buffer plays those before it first.
        """
        padded_size = self._fit(buffer.shape)
        before: Iterable[np.ndarray] = ()  # (H, W) each
        if self._state is None or self._shape != buffer.shape:
            self._begin(buffer.shape)
            self._state, self._younger, self._age = self._step.zero_state(), None, 0
            before = buffer.frames()[:-1]
        scaling, mean = self._measure(frame, buffer, padded_size)
        for array in before:
            self._carry(array, scaling, mean)
        return scaling, mean

    def _window(self, frame: Frame, buffer: RingBuffer) -> Reconstruction:
        """Make a step with each frame of the buffer, by the statistics of exactly these; twice.

        The network is symmetric under mirrors, not under right angles: its images of the frames and
        of the transposed frames are averaged (self-ensemble: Lim et al., CVPR workshops 2017). That
        takes away a part of its errors, and of int8's. What is to be damped is judged by halves of
        the frames that are played as they are alone.
        """
        padded_size = self._fit(buffer.shape)
        self._begin(buffer.shape)
        scaling, mean = self._measure(frame, buffer, padded_size)
        frames = buffer.frames()  # (T, H, W)
        image = _finished(self._play(frames, scaling, mean, self._constants))
        across = np.ascontiguousarray(mean.transpose(0, 2, 1, 3))
        transposed = frames.transpose(0, 2, 1)
        other = _finished(self._play(transposed, scaling, across, self._constants))
        image = (image + other.transpose(0, 2, 1, 3)) / 2
        self._look_at_once(frames, scaling)
        result = self._result(image, scaling, frame, buffer, len(buffer))
        self._damping = None  # a stream does not go on with it
        return result

    def _play(
        self,
        frames: np.ndarray,
        scaling: Scaling,
        mean: np.ndarray,
        constants: dict[str, np.ndarray],
    ) -> Generator[None, None, np.ndarray]:
        """Play frames, (T, H, W) in ADU, from the zero state, beside the stream.

        Yields before each step; returns the last image, (1, 2H', 2W', 1).
        """
        self._step.resize(mean.shape[1], mean.shape[2])
        state, before = self._step.zero_state(), frames[0]
        for k, array in enumerate(frames):
            yield
            inputs = self._inputs(array, before, scaling, mean) | constants | state
            outputs = self._step.run(inputs, image=k == len(frames) - 1)
            state, before = self._carried_on(outputs), array
            self.steps += 1
        return outputs["image"]

    def _look_at_once(self, frames: np.ndarray, scaling: Scaling) -> None:
        """Find what repeats in frames, (T, H, W) in ADU, where there are enough of them."""
        self._damping = None
        if not self._filter or len(frames) < output_filter.LEAST_FRAMES or scaling.nothing_to_see:
            return
        _finished(self._find_what_repeats(frames, scaling, self._filter))

    def _go_on_looking(self, buffer: RingBuffer, scaling: Scaling) -> None:
        """Go on to look for what repeats in a stream, once its buffer has a window's frames."""
        count = self._step.manifest.frames
        self._images_damped += 1
        if self._images_damped > 2 * LOOKED_AT_EVERY * count:
            self._damping = None
        if scaling.nothing_to_see:
            self._look = None  # what comes next may be another specimen
            return
        if not self._filter or len(buffer) < count:
            return
        self._images_seen += 1
        if self._looked and self._images_seen % LOOKED_AT_EVERY:
            return
        try:
            if self._look is None:
                frames = buffer.frames()[-count:]
                self._look = self._find_what_repeats(frames, scaling, self._filter)
                next(self._look)  # up to its first step
            next(self._look)
        except StopIteration:
            self._look, self._looked = None, True
        except ModelError:
            self._look_again()  # a generator that has failed would only end
            raise

    def _find_what_repeats(
        self, frames: np.ndarray, scaling: Scaling, settings: output_filter.OutputFilterSettings
    ) -> Generator[None, None, None]:
        """Find what to damp: what the images of the odd and of the even frames do not both show.

        The frames are (T, H, W) in ADU. Yields before each step; at the end `_damping` is set.
        """
        size = padded_size(self._step, (frames.shape[1], frames.shape[2]))
        constants = self._constants  # of both: the PSF's width may be found anew meanwhile
        images = []
        for half in (frames[0::2], frames[1::2]):  # (T / 2, H, W)
            mean = _padded(scaling.normalize(half.mean(axis=0, dtype=np.float32)), size)
            image = yield from self._play(half, scaling, mean, constants)
            images.append(output_filter.without_lattice(self._cropped(image), settings))
        of_bands = output_filter.weights(output_filter.ring_correlation(*images), settings)
        self._damping = output_filter.of_cosines(of_bands, images[0].shape)
        self._images_damped = 0

    def _filtered(
        self, image: np.ndarray, settings: output_filter.OutputFilterSettings
    ) -> np.ndarray:
        """Take the lattice out of an image, (2H, 2W), and damp what does not repeat."""
        shown = output_filter.without_lattice(image, settings)
        return shown if self._damping is None else output_filter.weighed(shown, self._damping)

    def _cropped(self, image: np.ndarray) -> np.ndarray:
        """Cut the padding off an image, (1, 2H', 2W', 1); returns (2H, 2W)."""
        height, width = (self._step.manifest.upsampling * length for length in self._shape)
        return image[0, :height, :width, 0]

    def _fit(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Set the step up for frames of a shape; return the padded shape."""
        size = padded_size(self._step, shape)
        self._step.resize(*size)
        return size

    def _begin(self, shape: tuple[int, int]) -> None:
        """Forget the frames before; those of another shape may have another PSF."""
        if self._shape == shape:
            self._start_over()
        else:
            self.reset()
        self._shape = shape

    def _measure(
        self, frame: Frame, buffer: RingBuffer, padded_size: tuple[int, int]
    ) -> tuple[Scaling, np.ndarray]:
        """Measure the frames up to the newest: scaling, mean, (1, H', W', 1), and the PSF."""
        scaling = measure(buffer.mean(), buffer.standard_error(), self._normalization)
        self._look_for_psf(frame.index, buffer, scaling)
        return scaling, _padded(scaling.normalize(buffer.mean()), padded_size)

    def _carry(self, array: np.ndarray, scaling: Scaling, mean: np.ndarray) -> None:
        """Make one step with a frame, (H, W) in ADU, whose image nobody looks at."""
        self._run(array, scaling, mean, image=False)

    def _feed(self, array: np.ndarray, scaling: Scaling, mean: np.ndarray) -> np.ndarray:
        """Make one step; (H, W) in ADU to the network's image, (1, 2H', 2W', 1)."""
        return self._run(array, scaling, mean, image=True)["image"]

    def _run(
        self, array: np.ndarray, scaling: Scaling, mean: np.ndarray, image: bool
    ) -> dict[str, np.ndarray]:
        assert self._state is not None
        before = array if self._previous is None else self._previous
        inputs = self._inputs(array, before, scaling, mean) | self._constants
        self._previous = array
        outputs = self._step.run({**inputs, **self._state}, image)
        self.steps += 1
        self._state = self._carried_on(outputs)
        self._fed = min(self._fed + 1, self._step.manifest.frames)
        self._renew(inputs)
        return outputs

    def _inputs(
        self, array: np.ndarray, before: np.ndarray, scaling: Scaling, mean: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Make a frame ready, (H, W) in ADU, and the one before it where the network takes it."""
        size = (mean.shape[1], mean.shape[2])
        inputs = {"frame": _padded(scaling.normalize(array), size), "mean": mean}
        if "previous" in self._step.manifest.inputs:
            inputs["previous"] = _padded(scaling.normalize(before), size)
        return inputs

    def _carried_on(self, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {into: outputs[out] for into, out in self._step.manifest.state.items()}

    def _renew(self, inputs: dict[str, np.ndarray]) -> None:
        """Raise a successor of the state with these inputs, too; see `RENEWED_AFTER`."""
        self._age += 1
        if self._age <= RENEWED_AFTER:
            return
        younger = self._step.zero_state() if self._younger is None else self._younger
        self._younger = self._carried_on(self._step.run({**inputs, **younger}, image=False))
        if self._age == 2 * RENEWED_AFTER:
            self._state, self._younger, self._age = self._younger, None, RENEWED_AFTER

    def _result(
        self,
        image: np.ndarray,
        scaling: Scaling,
        frame: Frame,
        buffer: RingBuffer,
        frames: int,
    ) -> Reconstruction:
        shown = self._cropped(image)
        if self._filter:
            shown = self._filtered(shown, self._filter)
        return Reconstruction(
            image=scaling.restore(shown),
            scaling=scaling,
            mode=self.mode,
            frames=frames,
            warming=frames < self._step.manifest.frames,
            nothing_to_see=scaling.nothing_to_see,
            gaps=buffer.gaps(self.interval_s),
            span_ms=buffer.span_ms,
            timestamp_ns=frame.timestamp_ns,
            index=frame.index,
            psf_sigma_px=self._psf_told_px,
            psf_found=self.psf_found,
            sums=buffer.sums(),
        )


def _finished(steps: Generator[None, None, _Made]) -> _Made:
    """Take all steps at once; returns what they made."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(_Made, end.value)


def error_inputs(
    result: Reconstruction,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float | None]:
    """Give what `device.expected_error.features` takes of a result whose scale is above 0."""
    assert result.sums is not None
    scaling, unit = result.scaling, np.float32(result.scaling.scale)
    mean = scaling.normalize(result.sums.mean())
    return result.image / unit, mean, result.sums.std() / unit, result.psf_sigma_px


def said_error(step: Step, result: Reconstruction) -> np.ndarray | None:
    """Say how far each pixel of a result may be off, (2H, 2W), ADU: 68 % are off by less.

    None where the model does not say it, where all is even, and of fewer frames than a window has,
    which it never saw. Of a stream it says what a window would be off by.
    """
    if step.expected_error is None or result.warming or result.scaling.scale == 0:
        return None
    return result.scaling.restore(step.expected_error.estimate(*error_inputs(result)))


def reconstruct_window(
    step: Step, frames: np.ndarray, psf_sigma_px: float | None = None
) -> Reconstruction:
    """Reconstruct one image from a stack.

    Parameters
    ----------
    step : Step
        The network's step.
    frames : ndarray
        At least 2 frames in ADU, (T, H, W), H and W from 16 up, uint8, uint16 or float32. Of more
        than the model's window (30), the last are used.
    psf_sigma_px : float, optional
        See `Reconstructor`.

    Returns
    -------
    Reconstruction
        Its `index` counts the frames given, its `timestamp_ns` is 0.

    Raises
    ------
    ReconstructionError
        The frames are too few or too small, not finite or of another type.
    """
    if frames.ndim != 3 or frames.shape[0] < 2:
        raise ReconstructionError(
            f"a stack of shape {frames.shape} cannot be reconstructed: at least 2 frames "
            "(T, H, W) are needed, because one frame does not fluctuate; give a longer stack"
        )
    window = frames[-step.manifest.frames :]  # (T, H, W)
    first = frames.shape[0] - window.shape[0]
    buffer = RingBuffer(len(window), frames.shape[1:], frames.dtype)
    for index, array in enumerate(window, start=first):  # (H, W)
        frame = _checked(array, index)
        buffer.push(frame)
    return Reconstructor(step, "window", psf_sigma_px=psf_sigma_px)._window(frame, buffer)


def reconstruct_stream(
    step: Step, frames: Iterable[np.ndarray], psf_sigma_px: float | None = None
) -> Iterator[Reconstruction]:
    """Reconstruct one image for every frame, each from the frames up to it.

    Where the scene changes (`device.scene`), the stream begins anew, with the frames that have
    shown the new scene by then.

    Parameters
    ----------
    step : Step
        The network's step; not to be used elsewhere meanwhile.
    frames : iterable of ndarray
        Frames in ADU, each (H, W), all of one shape and type, H and W from 16 up, uint8, uint16
        or float32; taken one by one.
    psf_sigma_px : float, optional
        See `Reconstructor`.

    Yields
    ------
    Reconstruction
        One for every frame, the first included; `index` counts them, `timestamp_ns` is 0.

    Raises
    ------
    ReconstructionError
        A frame is too small, not finite, or of another shape or type than the first.
    """
    reconstructor = Reconstructor(step, "stream", psf_sigma_px=psf_sigma_px)
    arrays = iter(frames)
    first = next(arrays, None)
    if first is None:
        return
    _checked(first, 0)
    buffer = RingBuffer(step.manifest.frames, first.shape, first.dtype)
    for index, array in enumerate(chain((first,), arrays)):
        frame = _checked(array, index, first)
        if change := reconstructor.scene_changed(array):
            buffer.keep_last(change.shown)
        buffer.push(frame)
        yield reconstructor._stream(frame, buffer)


def _checked(array: np.ndarray, index: int, like: np.ndarray | None = None) -> Frame:
    """Make a frame of an image that can be reconstructed."""
    problem = unusable(array)
    if like is not None and (array.shape, array.dtype) != (like.shape, like.dtype):
        problem = f"is {array.dtype} {array.shape}, the first {like.dtype} {like.shape}"
    if problem:
        raise ReconstructionError(
            f"frame {index} {problem}; expected are finite uint8, uint16 or float32 frames (H, W) "
            f"of one shape, from {MIN_SIDE_PX} x {MIN_SIDE_PX} px up: convert the stack"
        )
    return Frame(array, 0, index)


def unusable(array: np.ndarray) -> str:
    """Say why an image cannot be reconstructed; empty where it can.

    Parameters
    ----------
    array : ndarray
        A frame in ADU.

    Returns
    -------
    str
        The end of a sentence that begins with the frame.
    """
    if array.ndim != 2 or min(array.shape) < MIN_SIDE_PX:
        return f"has the shape {array.shape}"
    if array.dtype not in DTYPES:
        return f"has the type {array.dtype}"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return "has pixels that are not finite (NaN or infinite)"
    return ""


def padded_size(step: Step, shape: tuple[int, int]) -> tuple[int, int]:
    """Round a frame's height and width in px up to what the step can be run at."""
    multiple = step.manifest.size_multiple
    height, width = (-(-length // multiple) * multiple for length in shape)
    return height, width


def constant_inputs(step: Step, psf_sigma_px: float | None = None) -> dict[str, np.ndarray]:
    """Fill the inputs that stay the same from frame to frame.

    Parameters
    ----------
    step : Step
        Whose inputs.
    psf_sigma_px : float, optional
        See `Reconstructor`.

    Returns
    -------
    dict of str to ndarray
        By name, as the manifest has them; empty where the model takes none.
    """
    if not step.manifest.takes_psf:
        return {}
    told = told_psf(step, psf_sigma_px)
    shape = step.manifest.inputs["psf_sigma_px"].shape
    return {"psf_sigma_px": np.full(shape, UNKNOWN_PSF if told is None else told, np.float32)}


def told_psf(step: Step, psf_sigma_px: float | None) -> float | None:
    """Say what a model is told of a PSF's width, px: what it was trained for; None: nothing."""
    if psf_sigma_px is None or not step.manifest.takes_psf:
        return None
    return float(np.clip(psf_sigma_px, *step.manifest.psf_sigma_px))


def _padded(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Reflect an image, (H, W), below and to the right up to a size; NHWC (1, H', W', 1)."""
    bottom, right = size[0] - image.shape[0], size[1] - image.shape[1]
    if bottom or right:
        image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REFLECT_101)
    return np.ascontiguousarray(image)[np.newaxis, :, :, np.newaxis]  # (1, H', W', 1)
