"""A simulated stack, made ready as the device would feed it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from device import expected_error
from device.model import load_step
from device.normalize import NormalizationSettings, Scaling, measure
from device.psf_width import features
from device.reconstructor import Reconstruction, error_inputs, reconstruct_window
from training.forward_model import WINDOW, ForwardModelSettings, Stack, simulate
from training.mixture import chosen
from training.optics import UPSAMPLING

MOVES_PX = 8  # how far a specimen is moved along each axis at most
PSF_ERROR = 0.03  # standard deviation of the PSF's width as told over the true one, less 1


def running_mean(frames: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Mean of the last `window` frames at most, at every frame, (T, H, W) float32."""
    total = np.cumsum(frames.astype(np.float64), axis=0)
    lagged = np.concatenate([np.zeros_like(total[:window]), total[:-window]])[: len(total)]
    n = np.minimum(np.arange(1, len(total) + 1), window)
    return ((total - lagged) / n[:, None, None]).astype(np.float32)


def normalized(
    frames: np.ndarray, stream: bool, settings: NormalizationSettings | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames as the device would feed them.

    Parameters
    ----------
    frames : ndarray
        (T, H, W), ADU.
    stream : bool
        With the statistics of the last 30 frames at each frame, or with those of all frames.
    settings : NormalizationSettings, optional
        The formula's numbers.

    Returns
    -------
    frames, means : ndarray
        (T, H, W) float32, normalized.
    scales : ndarray
        ADU per normalized unit at each frame, (T,) float32.
    """
    if stream:
        means = running_mean(frames)
        scalings = [measure(mean, settings=settings) for mean in means]
    else:
        mean = frames.mean(axis=0, dtype=np.float64).astype(np.float32)
        means = np.broadcast_to(mean, frames.shape)
        scalings = [measure(mean, settings=settings)] * len(frames)
    return (
        np.stack([s.normalize(f) for s, f in zip(scalings, frames, strict=True)]),
        np.stack([s.normalize(m) for s, m in zip(scalings, means, strict=True)]),
        np.array([_positive(s) for s in scalings], np.float32),
    )


def _positive(scaling: Scaling) -> float:
    return scaling.scale or 1.0


def truth_in_its_unit(truth: np.ndarray) -> tuple[np.ndarray, float]:
    """Divide a target by its 99.9th percentile, or by more, so that nothing is above 1.5.

    The PSNR clips there instead. A target that is clipped would teach that bright points are flat.
    """
    unit = max(float(np.percentile(truth, 99.9)), float(truth.max()) / 1.5, 1e-6)
    return (truth / unit).astype(np.float32), unit


@dataclass(frozen=True)
class Example:
    """A stack made ready: normalized frames and means, scales, truth and its unit, PSF."""

    frames: np.ndarray  # (T, H, W)
    means: np.ndarray  # (T, H, W)
    scales: np.ndarray  # (T,)
    truth: np.ndarray  # (2H, 2W)
    unit: float
    former: np.ndarray | None = None  # (2H, 2W): the truth before frame `change_at`
    change_at: int = 0
    psf_sigma_px: float = 0.0  # as it is told; 0 where it is not

    @classmethod
    def of(
        cls, stack: Stack, stream: bool, normalization: NormalizationSettings | None = None
    ) -> Example:
        """Make a simulated stack ready."""
        return cls(
            *normalized(stack.frames, stream, normalization), *truth_in_its_unit(stack.truth)
        )

    def of_copies(self, copies: int) -> Example:
        """Replace a window by so many copies of its mean: without any fluctuation."""
        frames = np.broadcast_to(self.means[:1], (copies, *self.means.shape[1:]))
        return replace(self, frames=frames, means=frames, scales=self.scales[:copies])

    def turned(self, symmetry: int) -> Example:
        """Turn and mirror it: one of the eight symmetries of the square, 0 for as it is."""
        images = [_turned(images, symmetry) for images in (self.frames, self.means, self.truth)]
        former = None if self.former is None else _turned(self.former, symmetry)
        return replace(self, frames=images[0], means=images[1], truth=images[2], former=former)

    def truth_at(self, frame: int) -> np.ndarray:
        """Truth of the last 30 frames at a frame, (2H, 2W): after a change a mixture, for a while.

        It is what a window of these frames shows, and so what a stream is to show.
        """
        share = min(1.0, (frame + 1 - self.change_at) / WINDOW)
        if self.former is None or share == 1.0:
            return self.truth
        share = max(share, 0.0)
        return (share * self.truth + (1 - share) * self.former).astype(np.float32)

    def chunk(
        self, k: int, length: int, read_at: tuple[int, ...]
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Cut out chunk `k` of this length.

        Returns
        -------
        dict, ndarray
            The unrolled network's inputs for one place of the batch, and the truth at each frame
            of `read_at` (counted within the chunk), (n, 2H, 2W).
        """
        cut = slice(k * length, (k + 1) * length)
        read = [k * length + at for at in read_at]
        inputs = {
            "frames": self.frames[cut],
            "means": self.means[cut],
            "psf_sigma_px": np.array([self.psf_sigma_px], np.float32),
            "fresh": np.array(k == 0, np.float32),
            "gain": self.scales[read] / np.float32(self.unit),
        }
        return inputs, np.stack([self.truth_at(frame) for frame in read])


def _turned(images: np.ndarray, symmetry: int) -> np.ndarray:
    """Turn images, (..., H, W), by `symmetry` % 4 right angles, mirrored where it is 4 or more."""
    mirrored = images[..., ::-1] if symmetry >= 4 else images
    return np.rot90(mirrored, symmetry % 4, axes=(-2, -1))


def make_example(
    model: ForwardModelSettings,
    frames: int,
    size_px: int,
    stream: bool,
    seed: tuple[int, ...],
    normalization: NormalizationSettings | None = None,
    copies: int = 0,
    changes: bool = False,
    psf_told_fraction: float = 0.0,
) -> Example:
    """Simulate the stack of a seed and make it ready.

    With `copies`, as so many of its mean; with `changes`, as a specimen that is moved, or replaced,
    under the running stream. The width of the PSF is told for a part of the seeds.
    """
    size = size_px + (MOVES_PX if changes else 0)
    stack = simulate(model, frames, (size, size), np.random.default_rng(seed))
    if changes:
        example = _changing(stack, size_px, np.random.default_rng((*seed, 2)), normalization)
    else:
        example = Example.of(stack, stream, normalization)
    if copies:
        example = example.of_copies(copies)
    told = _psf_as_told(stack, psf_told_fraction, np.random.default_rng((*seed, 3)))
    return replace(example, psf_sigma_px=told)


def _psf_as_told(stack: Stack, fraction: float, rng: np.random.Generator) -> float:
    """Width of the PSF from an NA and a wavelength that are nearly right, in camera px, or 0."""
    error = rng.normal(1, PSF_ERROR)
    return stack.psf_sigma_px * error if rng.random() < fraction else 0.0


def _changing(
    stack: Stack,
    size_px: int,
    rng: np.random.Generator,
    normalization: NormalizationSettings | None,
) -> Example:
    """Play one part of the field first, then another one, or the same one turned."""
    first, then = rng.integers(0, MOVES_PX, (2, 2), endpoint=True)  # (y, x)
    at = int(rng.integers(len(stack.frames) // 4, len(stack.frames) // 2))
    symmetry = int(rng.integers(8)) if rng.random() < 0.5 else 0
    before, after = _cut(stack.frames, first, size_px), _cut(stack.frames, then, size_px)
    played = np.concatenate([before[:at], _turned(after[at:], symmetry)])
    whole, unit = truth_in_its_unit(stack.truth)
    truth = _turned(_cut(whole, UPSAMPLING * then, UPSAMPLING * size_px), symmetry)
    former = _cut(whole, UPSAMPLING * first, UPSAMPLING * size_px)
    return Example(*normalized(played, True, normalization), truth, unit, former, at)


def _cut(images: np.ndarray, corner: np.ndarray, size: int) -> np.ndarray:
    y, x = corner
    return images[..., y : y + size, x : x + size]


def psf_example(
    models: Sequence[ForwardModelSettings],
    also_part: float,
    normalization: NormalizationSettings,
    size_px: int,
    seed: tuple[int, ...],
) -> tuple[np.ndarray, float] | None:
    """Simulate a window and measure what tells of its PSF (`device.psf_width.features`).

    Where there are two models, the second draws it in `also_part` of the cases.

    Returns
    -------
    tuple of ndarray and float, or None
        The features, (n,), and the PSF's width in px; None where nothing fluctuates.
    """
    model = chosen(models, also_part, np.random.default_rng((*seed, 1)))
    stack = simulate(model, WINDOW, (size_px, size_px), np.random.default_rng(seed))
    found = features(normalized(stack.frames, False, normalization)[0])
    return None if found is None else (found, stack.psf_sigma_px)


def judged_pixels(
    result: Reconstruction, truth: np.ndarray, pixels: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Take some pixels of a reconstruction: what tells of their error, and the error.

    Parameters
    ----------
    result : Reconstruction
        Of frames of which not all pixels are equal.
    truth : ndarray
        (2H, 2W), ADU above background.
    pixels, seed : int
        How many, and which.

    Returns
    -------
    features, errors : ndarray
        `device.expected_error.features`, (n, FEATURES), and image less truth, (n,), normalized.
    """
    given = error_inputs(result)
    off = given[0] - truth / np.float32(result.scaling.scale)
    taken = np.random.default_rng(seed).choice(off.size, pixels, replace=False)
    found = [plane.ravel()[taken] for plane in expected_error.features(*given)]
    return np.stack(found, axis=-1), off.ravel()[taken]


loaded_step = cache(load_step)  # one interpreter in a process, whatever it is asked for


def error_example(
    settings: ForwardModelSettings, model: Path, size_px: int, pixels: int, seed: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Simulate a window and reconstruct it as a device does: see `judged_pixels`.

    None where the field is even.
    """
    stack = simulate(settings, WINDOW, (size_px, size_px), np.random.default_rng(seed))
    result = reconstruct_window(loaded_step(model), stack.frames)
    if result.scaling.scale == 0:
        return None
    return judged_pixels(result, stack.truth, pixels, seed[-1])
