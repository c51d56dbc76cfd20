"""How far each pixel of a reconstruction may be off.

What is drawn errs where it is bright, steep, noisy, or much sharper than what was seen. All that is
known of this beside an image (`features`) goes, pixel by pixel, through a small network that was
trained on simulated stacks and their truth (`training/expected_error.py`); it says within which
error `PART` of such pixels are, as one standard deviation does of what is normally distributed. The
others may be far off: where two emitters were drawn as one, both places are. It judges images that
are like those of its training; what the forward model does not have, it does not know of either.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from device.small_networks import SmallNetworks

LIMIT = 4.0  # of a feature, in standard deviations of the training
PART = 0.68  # of the pixels are off by less
FLOOR = 0.005  # of what is normalized to 1: errors below it are alike
LOG_RANGE = (-6.0, 2.0)  # of the logarithm of floor and error
FEATURES = 15
PIXELS_AT_ONCE = 512
"""So few that NumPy's BLAS computes them on one core: its threads would wait for those of the step,
which a busy machine makes thirty times as long. They also stay in the processor's cache."""
_USUAL_PSF_PX = 1.4  # in the place of a width that nobody knows


def features(
    image: np.ndarray, mean: np.ndarray, std: np.ndarray, psf_sigma_px: float | None
) -> list[np.ndarray]:
    """Collect what tells of an image's error.

    Parameters
    ----------
    image : ndarray
        The reconstruction, normalized, (2H, 2W).
    mean, std : ndarray
        Of the frames it was made from, normalized (the mean less the background), (H, W).
    psf_sigma_px : float or None
        Width of the PSF as the network was told it, px.

    Returns
    -------
    list of ndarray
        FEATURES images, (2H, 2W) float32.
    """
    image, mean, std = (np.asarray(each, np.float32) for each in (image, mean, std))
    seen = _enlarged(mean, image.shape)
    fine = mean - _blurred(mean, 1.5)  # noise, and what structure is finer than a PSF
    steep = np.hypot(*(cv2.Sobel(image, cv2.CV_32F, *way, scale=1 / 8) for way in ((1, 0), (0, 1))))
    added, around = np.abs(image - seen), _blurred(image, 2)
    rough = np.sqrt(np.maximum(_blurred(image**2, 2) - around**2, 0))
    local = (
        _log(image, 0.01),
        _log(around, 0.01),
        _log(_blurred(image, 6), 0.01),
        _log(_blurred(added, 1), 0.003),
        _log(_blurred(added, 4), 0.003),
        _log(_blurred(steep, 1), 0.003),
        _log(_blurred(steep, 4), 0.003),
        _log(rough, 0.003),
        _log(seen, 0.01),
        _enlarged(_log(_blurred(std, 1), 0.003), image.shape),
        _enlarged(_log(np.sqrt(_blurred(fine**2, 3)), 0.001), image.shape),
    )
    everywhere = (
        _log(np.median(std), 0.003),
        _log(np.median(np.abs(fine)), 0.0005),
        np.log(psf_sigma_px or _USUAL_PSF_PX),
        psf_sigma_px is not None,
    )
    alike = np.array(everywhere, np.float32)[:, None, None]
    return [*local, *np.broadcast_to(alike, (len(everywhere), *image.shape))]


def _log(x: Any, floor: float) -> Any:
    return np.log(np.maximum(x, 0) + floor)


def _blurred(image: np.ndarray, sigma_px: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT_101)


def _enlarged(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Interpolate linearly to the output grid, pixel j at input coordinate (j + 0.5) / 2 - 0.5."""
    return cv2.resize(image, shape[1::-1], interpolation=cv2.INTER_LINEAR)


class ErrorEstimator(SmallNetworks):
    """A network that is the same for every pixel; it makes the logarithm of floor and error."""

    def estimate(
        self, image: np.ndarray, mean: np.ndarray, std: np.ndarray, psf_sigma_px: float | None
    ) -> np.ndarray:
        """Say the error of each pixel, (2H, 2W), normalized; see `features`."""
        planes = features(image, mean, std, psf_sigma_px)
        rows = max(1, PIXELS_AT_ONCE // image.shape[1])
        strips = (slice(begin, begin + rows) for begin in range(0, len(image), rows))
        return np.concatenate([self._strip(planes, strip) for strip in strips])

    def _strip(self, planes: list[np.ndarray], strip: slice) -> np.ndarray:
        found = np.stack([plane[strip] for plane in planes], axis=-1)  # (rows, 2W, n)
        return self.of_features(found.reshape(-1, FEATURES)).reshape(found.shape[:2])

    def of_features(self, found: np.ndarray) -> np.ndarray:
        """Say the errors, (N,), from `features`, (N, n)."""
        x = np.clip((found - self.centre) / self.spread, -LIMIT, LIMIT)
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1], strict=True):
            x = np.maximum(x @ kernel + bias, 0)
        (log_error,) = (x @ self.kernels[-1] + self.biases[-1]).T
        return np.maximum(np.exp(np.clip(log_error, *LOG_RANGE)) - FLOOR, 0).astype(np.float32)


def load(content: bytes) -> ErrorEstimator:
    """Read what `ErrorEstimator.save` wrote.

    Raises
    ------
    ValueError
        It is something else, or damaged.
    """
    nothing = np.zeros((1, FEATURES), np.float32)
    return ErrorEstimator.load(content, "error estimator", lambda each: each.of_features(nothing))
