"""From emitters on the output grid to photons on the camera's pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft
from scipy.special import erf

from device.sampling import AIRY_SIGMA

UPSAMPLING = 2
TARGET_SIGMA_PX = 0.8  # in output pixels: as sharp as can be asked for


def imaging_matrix(
    pixels: int, sigma_px: float, margin: int, away_px: float | np.ndarray = 0.0
) -> np.ndarray:
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
    away_px : float or ndarray
        How far the emitters have moved, in camera pixels; for each frame, (T,), a matrix each.

    Returns
    -------
    ndarray
        (..., pixels, 2 (pixels + 2 margin)) float32; a column of an emitter well inside sums to 1.
    """
    emitters = (np.arange(UPSAMPLING * (pixels + 2 * margin)) + 0.5) / UPSAMPLING - margin
    emitters = np.asarray(away_px)[..., None, None] + emitters  # (..., 1, E)
    edges = np.arange(pixels + 1)[:, None]
    cumulative = erf((edges - emitters) / (np.sqrt(2) * sigma_px)) / 2
    return np.diff(cumulative, axis=-2).astype(np.float32)


def image_formation(
    emission: np.ndarray,
    sigma_px: float,
    margin: int,
    shape: tuple[int, int],
    away_px: np.ndarray | None = None,
) -> np.ndarray:
    """Blur and sample emission, (..., 2(H+2m), 2(W+2m)), to photons per pixel, (..., H, W).

    `away_px`, (T, 2), is how far the specimen has moved along (y, x) in each frame of emission
    (T, ...), in camera px.
    """
    y, x = np.zeros(2) if away_px is None else away_px.T
    rows = imaging_matrix(shape[0], sigma_px, margin, y)
    columns = imaging_matrix(shape[1], sigma_px, margin, x)
    return np.asarray(rows @ emission @ columns.swapaxes(-1, -2))


@dataclass(frozen=True)
class GaussianPsf:
    """A sum of Gaussians.

    Attributes
    ----------
    parts : sequence of (float, float)
        Share of the light and standard deviation in camera px of each.
    """

    parts: Sequence[tuple[float, float]]

    def form(
        self,
        emission: np.ndarray,
        margin: int,
        shape: tuple[int, int],
        away_px: np.ndarray | None = None,
    ) -> np.ndarray:
        """Blur and sample emission, as `image_formation` does."""
        images = [
            share * image_formation(emission, sigma_px, margin, shape, away_px)
            for share, sigma_px in self.parts
        ]
        return sum(images[1:], start=images[0])


@dataclass(frozen=True)
class PupilPsf:
    """The diffraction of a round pupil, scalar: an Airy pattern, in focus or out of it.

    The amplitude is the Fourier transform of the pupil ``exp(2 pi i w rho^2)``, rho from 0 to 1 at
    its edge; its square is the PSF (Goodman, Introduction to Fourier Optics, chapter 6). The
    emission's grid is fine enough to hold both without loss, so that the image is exact but for
    what reaches around the edge, which lies in the margin.

    Attributes
    ----------
    sigma_px : float
        Standard deviation of the Gaussian that is nearest to the Airy pattern, in camera px:
        0.21 wavelengths over NA (Zhang et al., Applied Optics 46, 1819, 2007).
    defocus_waves : float
        w, the phase at the pupil's edge; 0 in focus.
    """

    sigma_px: float
    defocus_waves: float = 0.0

    def form(
        self,
        emission: np.ndarray,
        margin: int,
        shape: tuple[int, int],
        away_px: np.ndarray | None = None,
    ) -> np.ndarray:
        """Blur and sample emission, as `image_formation` does."""
        height, width = emission.shape[-2:]
        spectrum = fft.rfft2(emission) * self.transfer(height, width)
        if away_px is not None:
            fy, fx = _frequencies(height, width)
            y, x = away_px.T[:, :, None, None]
            spectrum *= np.exp(-2j * np.pi * (y * fy + x * fx[:, : width // 2 + 1]))
        image = fft.irfft2(spectrum, s=(height, width))
        cut = UPSAMPLING * margin
        rows, columns = (slice(cut, cut + UPSAMPLING * n, UPSAMPLING) for n in shape)
        return np.maximum(image[..., rows, columns], 0).astype(np.float32)  # -1e-7 of rounding

    def transfer(self, height: int, width: int) -> np.ndarray:
        """Spectrum of the PSF under a camera pixel, (height, width // 2 + 1) complex64.

        On the emission's grid, and shifted so that each camera pixel's centre, which is a quarter
        of a camera pixel beyond that of the first emission pixel in it, falls on the latter.
        """
        fy, fx = _frequencies(height, width)
        rho = np.hypot(fy, fx) / (AIRY_SIGMA / self.sigma_px)
        # An edge half a sample wide: a hard one is ragged, a softer one is a smaller pupil.
        samples = min(height, width) / UPSAMPLING * AIRY_SIGMA / self.sigma_px  # in its radius
        edge = np.clip(2 * (1 - rho) * samples + 0.5, 0, 1)
        pupil = edge * np.exp(2j * np.pi * self.defocus_waves * rho**2)
        psf = np.abs(fft.ifft2(pupil)) ** 2
        spectrum = fft.fft2(UPSAMPLING**2 * psf / psf.sum())  # light per camera pixel
        pixel = np.sinc(fy) * np.sinc(fx) * np.exp(2j * np.pi * (fy + fx) / 4)
        return (spectrum * pixel)[:, : width // 2 + 1].astype(np.complex64)


Psf = GaussianPsf | PupilPsf
"""What a point of the specimen becomes in the image."""


def _frequencies(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the emission's spectrum, (height, 1) and (1, width), in cycles per camera px."""
    fy, fx = (fft.fftfreq(n, 1 / UPSAMPLING).astype(np.float32) for n in (height, width))
    return fy[:, None], fx[None, :]


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
