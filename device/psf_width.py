"""The width of the PSF, found in the frames themselves.

Emitters that blink on their own are not correlated with each other, so that the covariance of two
pixels' fluctuation is one emitter's with itself: along the distance of the pixels it falls as the
PSF's autocorrelation, a Gaussian of sqrt(2) times its width, whatever the specimen looks like (the
property that SOFI weighs its cross-cumulants by: Dertinger et al., Opt. Express 18, 18875, 2010).
Shot and read noise of two pixels are independent and not in it. Under speckle neighbours fluctuate
together and the covariance is wider; how much so shows in its shape, in how strong it is beside the
noise, and in the finest structure of the mean image, which two halves of the frames have in common.

What is measured of this (`features`) goes through a few small networks, trained on simulated
stacks (`training/psf_width.py`), which say the width and how far it may be wrong. They are not
asked where nothing fluctuates: there the mean image alone would speak, which takes a broad
structure for a wide PSF. Whether something does is judged by pixels so far apart that a Bayer
sensor's interpolation does not bring them together, beside what noise alone would make of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from device.small_networks import SmallNetworks

REACH_PX = 8  # pixels that are compared lie no further apart
SQUARED_DISTANCES = (1, 2, 4, 5, 8, 9, 10, 13, 16, 18, 20, 25, 32, 36, 49, 64)
BANDS = 24  # of spatial frequency, from 0 to Nyquist's along an axis
LEAST_PX, FIELD_PX = 32, 256  # sides of a field; of a larger one the middle is enough
LEAST_FRAMES = 4  # half of them are compared with the other half
APART = SQUARED_DISTANCES.index(5)  # pixels that share no neighbour: (1, 2) px and the like
DIRECTIONS = 8  # in which they lie
LEAST_SIGNIFICANCE = 4.0  # covariance of pixels so far apart, in standard errors
LIMIT = 5.0  # of a feature, in standard deviations of the training

CAUTION = 0.6
"""How many standard errors below its estimate the width is told to the network: too narrow a PSF
leaves the image a little less sharp, too wide a one makes structure that is not there."""

LARGEST_ERROR = 0.3
"""Relative standard error from which on the network is told nothing. Who knows nothing but that a
microscope has some PSF errs by as much (the training's widths, by 32 %)."""

LOG_ERROR_RANGE = (-4.0, 1.0)
"""Of the logarithm of the relative error that a network may say."""

FEATURES = len(SQUARED_DISTANCES) - 1 + 2 + 2 * BANDS
_TINY = 1e-9


@dataclass(frozen=True, slots=True)
class PsfEstimate:
    """What was found.

    Attributes
    ----------
    sigma_px : float
        Standard deviation of the PSF in px.
    relative_error : float
        Its standard error over itself, as the networks expect it.
    """

    sigma_px: float
    relative_error: float

    @property
    def told_px(self) -> float | None:
        """What the network is told; None where too little is known."""
        if self.relative_error > LARGEST_ERROR:
            return None
        return self.sigma_px * float(np.exp(-CAUTION * self.relative_error))


def features(frames: np.ndarray) -> np.ndarray | None:
    """Measure what tells of the PSF's width.

    Parameters
    ----------
    frames : ndarray
        (T, H, W), normalized. Of a larger field than `FIELD_PX` the middle is looked at.

    Returns
    -------
    ndarray or None
        (n,) float32; None where nothing fluctuates, of fewer frames than `LEAST_FRAMES`, and of a
        field that is narrower than `LEAST_PX`, which holds too few pairs of pixels.
    """
    frames = frames[:, *middle(frames.shape[1:])].astype(np.float32, copy=False)
    if len(frames) < LEAST_FRAMES or min(frames.shape[1:]) < LEAST_PX:
        return None
    fluctuation = frames - frames.mean(axis=0)
    variance, *covariances = _covariances(fluctuation)
    if not covariances[APART] > LEAST_SIGNIFICANCE * max(_noise_of(fluctuation), _TINY):
        return None
    nearest = max(covariances[0], _TINY)
    ratios = np.clip(np.array(covariances[1:]) / nearest, -1.0, 1.5)
    strength = np.log([max(nearest / variance, 1e-4), variance])
    one, other = frames[0::2].mean(axis=0), frames[1::2].mean(axis=0)
    common = _cross_spectrum(one, other)  # (BANDS,)
    noise = _cross_spectrum(one - other, one - other)
    floor = 0.05 * noise + _TINY
    shared, first = np.maximum(common, floor), max(common[1], floor[1])
    spectra = (np.log(shared / first), np.log((noise + _TINY) / first))
    return np.concatenate([ratios, strength, *spectra]).astype(np.float32)


def middle(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Say which part of a field, (H, W), is looked at: all, or `FIELD_PX` in its middle."""
    begins = [max(0, (length - FIELD_PX) // 2) for length in shape]
    along_y, along_x = (slice(begin, begin + FIELD_PX) for begin in begins)
    return along_y, along_x


def _covariances(fluctuation: np.ndarray) -> list[float]:
    """Covariance of pixels at no distance, and at each of `SQUARED_DISTANCES`, of (T, H, W).

    Averaged over frames, all such pairs in the field and all directions.
    """
    count, height, width = fluctuation.shape
    # With so much room, and more where that is quicker, nothing is taken around the edges.
    size = [cv2.getOptimalDFTSize(length + REACH_PX) for length in (height, width)]
    power = np.zeros((size[0], size[1] // 2 + 1))
    for frame in fluctuation:
        power += np.abs(np.fft.rfft2(frame, size)) ** 2
    reach = np.arange(-REACH_PX, REACH_PX + 1)
    sums = np.fft.irfft2(power, size)[np.ix_(reach, reach)] / count
    pairs = np.outer(height - np.abs(reach), width - np.abs(reach))
    covariance, squared = sums / pairs, reach[:, None] ** 2 + reach**2
    return [float(covariance[squared == each].mean()) for each in (0, *SQUARED_DISTANCES)]


def _noise_of(fluctuation: np.ndarray) -> float:
    """Standard error of the covariance at `APART`, if all pixels of (T, H, W) were independent.

    The covariance is a mean of products, each of which has the two pixels' variances' product as
    its variance; each pair of pixels stands in it twice.
    """
    of_each = np.mean(np.square(fluctuation), axis=0, keepdims=True)  # variances, (1, H, W)
    _, *products = _covariances(of_each)
    pairs = fluctuation.size * DIRECTIONS / 2
    return float(np.sqrt(max(products[APART], 0.0) / pairs))


def _cross_spectrum(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Real part of the cross spectrum of two images, (H, W), averaged over bands, (BANDS,)."""
    window = np.outer(*(np.hanning(length) for length in one.shape))
    spectra = [np.fft.fft2((image - image.mean()) * window) for image in (one, other)]
    power = (spectra[0] * spectra[1].conj()).real / (window**2).sum()
    frequency = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, one.shape), indexing="ij"))
    band = np.minimum((2 * BANDS * frequency).astype(int), BANDS - 1).ravel()
    counts = np.bincount(band, minlength=BANDS)
    return np.bincount(band, power.ravel(), BANDS) / np.maximum(1, counts)


class PsfWidthEstimator(SmallNetworks):
    """Some small networks of the same size.

    Their kernels are (networks, inputs, outputs); the last layer makes the logarithms of the width
    in px and of its relative standard error.
    """

    def estimate(self, frames: np.ndarray) -> PsfEstimate | None:
        """Find the width in frames, (T, H, W), normalized; None where nothing fluctuates."""
        found = features(frames)
        return None if found is None else self.of_features(found)

    def of_features(self, found: np.ndarray) -> PsfEstimate:
        """Find the width from `features`, (n,)."""
        given = np.clip((found - self.centre) / self.spread, -LIMIT, LIMIT)
        x = np.broadcast_to(given, (len(self.kernels[0]), len(given)))
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1], strict=True):
            x = np.maximum(np.einsum("ei,eij->ej", x, kernel) + bias, 0)
        log_sigma, log_error = (np.einsum("ei,eij->ej", x, self.kernels[-1]) + self.biases[-1]).T
        log_error = np.clip(log_error, *LOG_ERROR_RANGE)
        variance = np.mean(np.exp(2 * log_error)) + np.var(log_sigma)
        return PsfEstimate(float(np.exp(log_sigma.mean())), float(np.sqrt(variance)))


def load(content: bytes) -> PsfWidthEstimator:
    """Read what `PsfWidthEstimator.save` wrote.

    Raises
    ------
    ValueError
        It is something else, or damaged.
    """
    nothing = np.zeros(FEATURES, np.float32)
    return PsfWidthEstimator.load(
        content, "PSF width estimator", lambda each: each.of_features(nothing)
    )


class PsfWatch:
    """Keeps an estimate up to date over a series of frames.

    The first comes with the first full buffer, and another with every buffer of new frames; they
    are averaged, each by its error, over the last `KEPT`. What is known by now is `estimate`, None
    where it is nothing.

    Parameters
    ----------
    estimator : PsfWidthEstimator
        What estimates.
    frames : int
        Frames of a buffer.
    """

    KEPT = 8

    def __init__(self, estimator: PsfWidthEstimator, frames: int) -> None:
        self._estimator, self._frames = estimator, frames
        self.reset()

    def reset(self) -> None:
        """Forget all: the next frame may be of another specimen, or microscope."""
        self._found: list[PsfEstimate] = []
        self.estimate: PsfEstimate | None = None
        self.look_again()

    def look_again(self) -> None:
        """Look at the next full buffer, whichever frames were seen before."""
        self._due = 0

    def see(self, newest: int, buffered: int, frames: Callable[[], np.ndarray]) -> bool:
        """Take the newest frame into account; returns whether the estimate is a new one.

        Parameters
        ----------
        newest : int
            Number of the newest frame.
        buffered : int
            Frames in the buffer.
        frames : callable
            Gives these, normalized, (T, H, W); called where they are needed.
        """
        if buffered < self._frames or 0 < self._due - newest < self._frames:
            return False
        self._due = newest + self._frames
        found = self._estimator.estimate(frames())
        if found is None:
            return False
        self._found = [*self._found, found][-self.KEPT :]
        self.estimate = averaged(self._found)
        return True


def averaged(estimates: Sequence[PsfEstimate]) -> PsfEstimate:
    """Average estimates of one series, one or more, each by its error."""
    errors = np.array([each.relative_error for each in estimates])
    logs = np.log([each.sigma_px for each in estimates])
    weights = errors**-2 / np.sum(errors**-2)
    # What they err by is mostly the specimen's doing, and the same each time.
    error = float(np.sqrt(weights @ errors**2))
    return PsfEstimate(float(np.exp(weights @ logs)), error)
