"""From emitters on the output grid to photons on the camera's pixels."""

from __future__ import annotations

import numpy as np
from scipy.special import erf

UPSAMPLING = 2
TARGET_SIGMA_PX = 0.8  # in output pixels: as sharp as can be asked for


def imaging_matrix(pixels: int, sigma_px: float, margin: int) -> np.ndarray:
    """One axis of a Gaussian PSF, integrated over the camera's pixels.

    The Gaussian is separable, so that an image is ``rows @ density @ columns.T``. Entry (i, j) is
    the part of an emitter's light, from the centre of output pixel j, that falls on camera pixel i:
    ``(erf((b - u) / (sqrt(2) sigma)) - erf((a - u) / (sqrt(2) sigma))) / 2`` with the pixel's edges
    a, b (Smith et al., Nature Methods 7, 373, 2010).

    Parameters
    ----------
    pixels : int
        Camera pixels along the axis.
    sigma_px : float
        Standard deviation of the PSF in camera pixels; above 0.
    margin : int
        Camera pixels simulated beyond each edge, whose light reaches into the field.

    Returns
    -------
    ndarray
        (pixels, 2 (pixels + 2 margin)) float32; a column of an emitter well inside sums to 1.
    """
    emitters = (np.arange(UPSAMPLING * (pixels + 2 * margin)) + 0.5) / UPSAMPLING - margin
    edges = np.arange(pixels + 1)
    cumulative = erf((edges[:, None] - emitters[None, :]) / (np.sqrt(2) * sigma_px)) / 2
    return np.diff(cumulative, axis=0).astype(np.float32)


def image_formation(
    emission: np.ndarray, sigma_px: float, margin: int, shape: tuple[int, int]
) -> np.ndarray:
    """Blur and sample emission, (..., 2(H+2m), 2(W+2m)), to photons per pixel, (..., H, W)."""
    rows = imaging_matrix(shape[0], sigma_px, margin)
    columns = imaging_matrix(shape[1], sigma_px, margin)
    return rows @ emission @ columns.T


def target_image(density: np.ndarray, margin: int) -> np.ndarray:
    """The image the network is asked for.

    Parameters
    ----------
    density : ndarray
        Emitters' brightness per output pixel with margin, (2(H+2m), 2(W+2m)).
    margin : int
        Margin m in camera pixels.

    Returns
    -------
    ndarray
        The density convolved with a Gaussian of sigma 0.8 output px, (2H, 2W) float32, in
        brightness per *camera* pixel (four output pixels), so that it compares with the frames.
    """
    radius = int(5 * TARGET_SIGMA_PX) + 1
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / TARGET_SIGMA_PX) ** 2)
    rows, columns = (_band(n, taps / taps.sum()) for n in density.shape)
    blurred = rows @ density @ columns.T
    cut = UPSAMPLING * margin
    inner = tuple(slice(cut, n - cut) for n in density.shape)
    return (UPSAMPLING**2 * blurred[inner]).astype(np.float32)


def _band(n: int, taps: np.ndarray) -> np.ndarray:
    """Convolution with `taps` along one axis as a matrix, (n, n), zeros beyond the edge."""
    radius = len(taps) // 2
    matrix = np.zeros((n, n), np.float32)
    for offset, tap in zip(range(-radius, radius + 1), taps, strict=True):
        matrix += tap * np.eye(n, k=offset, dtype=np.float32)
    return matrix
