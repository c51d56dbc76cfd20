"""What the network has to beat: every method here takes frames (T, H, W) to an image (2H, 2W)."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

Method = Callable[[np.ndarray], np.ndarray]

REFERENCE = "mean (bicubic)"
DECONVOLUTION = "RL blind, 20"
UPSAMPLING = 2
BLIND_SIGMA_PX = 1.4
BACKGROUND_PERCENTILE = 5.0


def enlarged(image: np.ndarray) -> np.ndarray:
    """Interpolate bicubically on the output's grid, (H, W) -> (2H, 2W), float32.

    `cv2.resize` puts output pixel j at input coordinate (j + 0.5) / 2 - 0.5.
    """
    height, width = image.shape
    size = (UPSAMPLING * width, UPSAMPLING * height)
    return cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_CUBIC)


def _fluctuation(frames: np.ndarray) -> np.ndarray:
    """Frames without their mean over time, (T, H, W), float64."""
    frames = frames.astype(np.float64)
    return frames - frames.mean(axis=0)


def mean(frames: np.ndarray) -> np.ndarray:
    """Widefield mean: what there is without any method, (2H, 2W)."""
    return enlarged(frames.mean(axis=0, dtype=np.float64))


def standard_deviation(frames: np.ndarray) -> np.ndarray:
    """Take the standard deviation over time, (2H, 2W)."""
    return enlarged(frames.std(axis=0, dtype=np.float64))


def variance(frames: np.ndarray) -> np.ndarray:
    """Variance over time: SOFI's second cumulant at lag 0, noise included, (2H, 2W)."""
    return enlarged(frames.var(axis=0, dtype=np.float64))


def _real_root(cumulant: np.ndarray, order: int) -> np.ndarray:
    """Bring a cumulant back to a brightness: its root, negative values (noise) taken as 0."""
    return np.clip(cumulant, 0.0, None) ** (1.0 / order)


def sofi2(frames: np.ndarray, linearized: bool = False) -> np.ndarray:
    """Second cumulant at lag 1: shot and read noise do not correlate over time and drop out.

    Dertinger et al. 2009. `linearized` takes the square root, (2H, 2W).
    """
    change = _fluctuation(frames)
    cumulant = (change[1:] * change[:-1]).mean(axis=0)
    return enlarged(_real_root(cumulant, 2) if linearized else cumulant)


def xc_sofi2(frames: np.ndarray, linearized: bool = False) -> np.ndarray:
    """Second cross-cumulant of neighbouring pixels at lag 0, on the doubled grid.

    Dertinger et al. 2010: two pixels' noise is independent, so that their covariance has none,
    and it belongs to the point midway between them. Averaged are the pairs whose midpoint is the
    pixel itself, horizontal and vertical. `linearized` takes the square root, (2H, 2W).
    """
    # Repeated edges: reflected ones would pair the border's neighbour with itself, noise and all.
    change = np.pad(_fluctuation(frames), ((0, 0), (1, 1), (1, 1)), mode="edge")
    middle = slice(1, -1)
    vertical = (change[:, :-2, middle] * change[:, 2:, middle]).mean(axis=0)
    horizontal = (change[:, middle, :-2] * change[:, middle, 2:]).mean(axis=0)
    cumulant = 0.5 * (vertical + horizontal)
    return enlarged(_real_root(cumulant, 2) if linearized else cumulant)


def sofi3(frames: np.ndarray, linearized: bool = False) -> np.ndarray:
    """Third cumulant at lags 0, 1, 2; `linearized` takes the cube root, (2H, 2W)."""
    change = _fluctuation(frames)
    cumulant = (change[2:] * change[1:-1] * change[:-2]).mean(axis=0)
    return enlarged(_real_root(cumulant, 3) if linearized else cumulant)


def _blur(image: np.ndarray, sigma_output_px: float) -> np.ndarray:
    size = 2 * int(np.ceil(5.0 * sigma_output_px)) + 1
    # Reflection keeps the kernel its own adjoint, borders included.
    return cv2.GaussianBlur(image, (size, size), sigma_output_px, borderType=cv2.BORDER_REFLECT)


def deconvolved(image: np.ndarray, sigma_output_px: float, iterations: int) -> np.ndarray:
    """Richardson-Lucy with a Gaussian PSF, from the image itself.

    Parameters
    ----------
    image : ndarray
        Non-negative image, (H, W).
    sigma_output_px : float
        Standard deviation of the PSF in px of this image.
    iterations : int
        Number of iterations, 0 or more.

    Returns
    -------
    ndarray
        Estimate, (H, W), float32.
    """
    floor = np.float32(1e-6 * max(float(image.max()), 1e-12))
    data = np.maximum(image.astype(np.float32), floor)
    estimate = data.copy()
    for _ in range(iterations):
        ratio = data / np.maximum(_blur(estimate, sigma_output_px), floor)
        estimate *= _blur(ratio, sigma_output_px)
    return estimate


def richardson_lucy(
    frames: np.ndarray, iterations: int, psf_sigma_px: float = BLIND_SIGMA_PX
) -> np.ndarray:
    """Richardson-Lucy on the bicubic mean, its 5th percentile taken off as background.

    Parameters
    ----------
    frames : ndarray
        (T, H, W).
    iterations : int
        Number of iterations.
    psf_sigma_px : float
        PSF in *input* px; 1.4 where it is not known.

    Returns
    -------
    ndarray
        (2H, 2W), float32.
    """
    image = mean(frames)
    image = np.clip(image - np.percentile(image, BACKGROUND_PERCENTILE), 0.0, None)
    return deconvolved(image, UPSAMPLING * psf_sigma_px, iterations)


def richardson_lucy_on_sofi2(frames: np.ndarray, iterations: int) -> np.ndarray:
    """Richardson-Lucy, blind, on the linearized second cumulant, (2H, 2W) float32.

    The root of the cumulant of a single emitter has the PSF's own width.
    """
    image = np.clip(sofi2(frames, linearized=True), 0.0, None)
    return deconvolved(image, UPSAMPLING * BLIND_SIGMA_PX, iterations)


def methods() -> dict[str, Method]:
    """All methods that know nothing but the frames; SRRF and eSRRF where nanopyx is installed."""
    table: dict[str, Method] = {
        REFERENCE: mean,
        "standard deviation": standard_deviation,
        "variance": variance,
        "SOFI-2": sofi2,
        "SOFI-2 linearized": partial(sofi2, linearized=True),
        "SOFI-2 cross": xc_sofi2,
        "SOFI-2 cross, linearized": partial(xc_sofi2, linearized=True),
        "SOFI-3": sofi3,
        "SOFI-3 linearized": partial(sofi3, linearized=True),
    }
    for iterations in (10, 20, 80):
        table[f"RL blind, {iterations}"] = partial(richardson_lucy, iterations=iterations)
    table["RL blind on SOFI-2 linearized, 10"] = partial(richardson_lucy_on_sofi2, iterations=10)
    return table | radial_fluctuations()


def informed_methods(psf_sigma_px: float, name: str = "RL true sigma") -> dict[str, Method]:
    """Richardson-Lucy with a PSF that the other methods do not know: the stack's true one."""
    return {
        f"{name}, {count}": partial(richardson_lucy, iterations=count, psf_sigma_px=psf_sigma_px)
        for count in (20, 80, 160)
    }


def radial_fluctuations() -> dict[str, Method]:
    """SRRF and eSRRF (averages over time) from nanopyx 2; empty where it is not installed."""
    if importlib.util.find_spec("nanopyx") is None:
        return {}
    nanopyx = importlib.import_module("nanopyx.methods")

    def srrf(frames: np.ndarray) -> np.ndarray:
        radiality = nanopyx.SRRF(frames.astype(np.float32), magnification=UPSAMPLING)
        return np.asarray(radiality).mean(axis=0)  # (T, 2H, 2W) to (2H, 2W)

    def esrrf(frames: np.ndarray) -> np.ndarray:
        return np.asarray(nanopyx.eSRRF(frames.astype(np.float32), magnification=UPSAMPLING))

    return {"SRRF": srrf, "eSRRF": esrrf}
