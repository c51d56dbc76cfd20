"""The one normalization, used by the device and by the training.

A window's frames are brought to the range that the network was trained on by one offset and one
scale, both measured on the window's mean image::

    background = percentile(median3x3(mean), background_percentile)
    bright     = percentile(median3x3(mean), scale_percentile) - background
    peak       = percentile(median3x3(mean), peak_percentile) - background
    scale      = max(bright, peak / highest_peak)
    normalized = (frame - background) / scale

The second bound is for a few points in an empty field: they would be many times as bright as the
network, and int8, can tell apart.

The median over 3 x 3 pixels takes isolated hot pixels out of the statistics: no image formed by an
objective is sharper than its PSF, so what stands alone in one pixel is not the sample. The
percentiles carry no information about single pixels, so that a cosmic ray or a dust grain rescales
nothing. The network's image times `scale` is in input counts above background.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True, slots=True)
class NormalizationSettings:
    """The numbers of the formula; they travel in the model's manifest.

    Attributes
    ----------
    background_percentile : float
        Percentile of the smoothed mean image that is taken as background, 0 to 100.
    scale_percentile : float
        Percentile of the smoothed mean image that is mapped to 1, 0 to 100, or to less.
    min_contrast_sem : float
        Contrast of the mean image, in standard errors of the mean, below which the verdict is
        "nothing to see".
    peak_percentile : float
        Percentile of the smoothed mean image that is mapped to no more than `highest_peak`.
    highest_peak : float
        Infinite where there is no such bound.
    """

    background_percentile: float = 5.0
    scale_percentile: float = 99.5
    min_contrast_sem: float = 3.0
    peak_percentile: float = 99.9
    highest_peak: float = 1.5


@dataclass(frozen=True, slots=True)
class Scaling:
    """Offset and scale of one window.

    Attributes
    ----------
    background : float
        What is subtracted, in ADU.
    scale : float
        What is divided by, in ADU; 0 where the mean image is constant: then everything is 0.
    nothing_to_see : bool
        True where the mean image has no contrast beyond its noise.
    """

    background: float
    scale: float
    nothing_to_see: bool

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """Bring an image in ADU, any shape, to the network's range, float32."""
        if self.scale == 0:
            return np.zeros(image.shape, np.float32)
        return (image.astype(np.float32) - np.float32(self.background)) / np.float32(self.scale)

    def restore(self, image: np.ndarray) -> np.ndarray:
        """Bring the network's image, any shape, to ADU above background, float32."""
        if self.scale == 0:
            return np.zeros(image.shape, np.float32)  # a product could be -0, or NaN of infinity
        return np.multiply(image, np.float32(self.scale), dtype=np.float32)


def measure(
    mean: np.ndarray,
    standard_error: float = 0.0,
    settings: NormalizationSettings | None = None,
) -> Scaling:
    """Measure offset and scale on a window's mean image.

    Parameters
    ----------
    mean : ndarray
        Mean of the window's frames in ADU, (H, W).
    standard_error : float
        Typical standard error of a pixel of `mean` in ADU (temporal standard deviation over the
        root of the number of frames); 0 judges contrast against nothing.
    settings : NormalizationSettings, optional
        The formula's numbers; the defaults are those of the current model.

    Returns
    -------
    Scaling
        A constant mean image has scale 0 and the verdict "nothing to see".
    """
    settings = settings or NormalizationSettings()
    smooth = cv2.medianBlur(np.ascontiguousarray(mean, dtype=np.float32), 3)  # (H, W)
    background, bright, peak = _percentiles(
        smooth, settings.background_percentile, settings.scale_percentile, settings.peak_percentile
    )
    contrast = max(bright - background, (peak - background) / settings.highest_peak)
    flat = contrast <= 1e-6 * max(abs(bright), abs(background))
    unseen = flat or contrast < settings.min_contrast_sem * standard_error
    return Scaling(background, 0.0 if flat else contrast, unseen)


def _percentiles(image: np.ndarray, *percentiles: float) -> list[float]:
    """Compute percentiles of an image, (H, W), exactly as `np.percentile` does.

    It is the dearest part of a frame's way beside the step, and this is twice as fast: nothing is
    partitioned but at the values that are asked for.
    """
    places = [(image.size - 1) * (percentile / 100) for percentile in percentiles]
    below = [int(place) for place in places]
    above = [min(index + 1, image.size - 1) for index in below]
    sorted_there = np.partition(image, sorted({*below, *above}), axis=None)  # (H * W,)
    return [
        _between(sorted_there[low], sorted_there[high], place - low)
        for place, low, high in zip(places, below, above, strict=True)
    ]


def _between(low: np.floating, high: np.floating, share: float) -> float:
    """Interpolate from the nearer end, as NumPy does, so that no value lies outside."""
    step = float(high - low)
    return float(low) + step * share if share < 0.5 else float(high) - step * (1 - share)
