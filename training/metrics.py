"""How good a reconstruction is: against the truth, and without one.

Every score is of the whole frame.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize_scalar
from skimage.metrics import normalized_root_mse, structural_similarity

TRUTH_PERCENTILE = 99.9
TRUTH_CLIP = 1.5
HIGH_PASS_SIGMA_OUTPUT_PX = 3.0
RSP_SIGMA_RANGE_OUTPUT_PX = (1.0, 10.0)
FRC_THRESHOLD = 1.0 / 7.0


def normalized_truth(truth: np.ndarray) -> np.ndarray:
    """Divide the truth by its 99.9th percentile and clip it to 0..1.5, float64.

    Raises
    ------
    ValueError
        The truth is empty of signal, so that there is nothing to divide by.
    """
    peak = np.percentile(truth, TRUTH_PERCENTILE)
    if not peak > 0:
        raise ValueError(f"The truth's 99.9th percentile is {peak}; it must be above 0.")
    return np.clip(truth.astype(np.float64) / peak, 0.0, TRUTH_CLIP)


def affine_fit(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Fit ``a * prediction + b`` to the truth by least squares, float64, any shape.

    A constant prediction becomes the truth's mean. `a` may be negative: the definition does not
    forbid it, and a method that needs it scores badly anyway.
    """
    centred = prediction.astype(np.float64) - np.mean(prediction, dtype=np.float64)
    power = np.sum(centred**2)
    slope = np.sum(centred * truth) / power if power > 0 else 0.0
    return slope * centred + np.mean(truth)


def psnr_db(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB.

    Truth over its 99.9th percentile, clipped to 0..1.5; prediction affine-fitted to it; peak is
    the truth's maximum; whole frame.
    """
    reference = normalized_truth(truth)
    error = np.mean((affine_fit(prediction, reference) - reference) ** 2)
    if error == 0:
        return float("inf")
    return float(10.0 * np.log10(reference.max() ** 2 / error))


def ssim(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity of the affine-fitted prediction (Wang et al. 2004: sigma 1.5)."""
    reference = normalized_truth(truth)
    return float(
        structural_similarity(
            reference,
            affine_fit(prediction, reference),
            data_range=reference.max(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def nrmse(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Root mean square error of the affine-fitted prediction over the truth's root mean square."""
    reference = normalized_truth(truth)
    return float(normalized_root_mse(reference, affine_fit(prediction, reference)))


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation coefficient of two images; 0 where one of them is constant."""
    a, b = first - np.mean(first, dtype=np.float64), second - np.mean(second, dtype=np.float64)
    power = np.sqrt(np.sum(a**2) * np.sum(b**2))
    return float(np.sum(a * b) / power) if power > 0 else 0.0


def binned(image: np.ndarray) -> np.ndarray:
    """Mean over 2 x 2 pixels, (2H, 2W) -> (H, W)."""
    height, width = image.shape
    return image.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))


def best_blur(widefield: np.ndarray, reconstruction: np.ndarray) -> tuple[float, np.ndarray]:
    """Find the Gaussian that makes the reconstruction most like the widefield image.

    Parameters
    ----------
    widefield : ndarray
        Mean of the frames, (H, W).
    reconstruction : ndarray
        Image on the output grid, (2H, 2W).

    Returns
    -------
    sigma_output_px : float
        Between 1 and 10 output px.
    ndarray
        The reconstruction blurred by it and binned 2 x 2, (H, W).
    """

    def degraded(sigma: float) -> np.ndarray:
        return binned(gaussian_filter(reconstruction.astype(np.float64), sigma, mode="nearest"))

    def loss(sigma: float) -> float:
        return -pearson(widefield, degraded(sigma))

    # The correlation has one maximum in nearly all images; a coarse scan guards the others.
    low, high = RSP_SIGMA_RANGE_OUTPUT_PX
    scan = np.geomspace(low, high, 8)
    best = int(np.argmin([loss(sigma) for sigma in scan]))
    bounds = (scan[max(best - 1, 0)], scan[min(best + 1, len(scan) - 1)])
    sigma = float(minimize_scalar(loss, bounds=bounds, method="bounded").x)
    sigma = min((sigma, float(scan[best])), key=loss)
    return sigma, degraded(sigma)


def rsp(widefield: np.ndarray, reconstruction: np.ndarray) -> float:
    """Resolution-scaled Pearson coefficient (Culley et al. 2018, with a Gaussian of 1 to 10 px)."""
    return pearson(widefield, best_blur(widefield, reconstruction)[1])


def rse(widefield: np.ndarray, reconstruction: np.ndarray) -> float:
    """Resolution-scaled error: root mean square, in the widefield's unit, after an affine fit."""
    blurred = best_blur(widefield, reconstruction)[1]
    return float(np.sqrt(np.mean((affine_fit(blurred, widefield) - widefield) ** 2)))


def high_pass(image: np.ndarray) -> np.ndarray:
    """Take off the image blurred by 3 output px: what is left is detail."""
    smooth = gaussian_filter(image.astype(np.float64), HIGH_PASS_SIGMA_OUTPUT_PX, mode="nearest")
    return image - smooth


def odd_even(odd: np.ndarray, even: np.ndarray) -> float:
    """Pearson of the detail in the reconstructions from odd and from even frames."""
    return pearson(high_pass(odd), high_pass(even))


def sharpness(odd: np.ndarray, even: np.ndarray) -> float:
    """S = cov(HP odd, HP even) / cov(odd, even): the part of the agreed variance that is detail."""
    both = np.cov(odd.ravel(), even.ravel())[0, 1]
    if both == 0:
        return 0.0
    return float(np.cov(high_pass(odd).ravel(), high_pass(even).ravel())[0, 1] / both)


def frc_curve(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Fourier ring correlation of two square images.

    Both lose their mean and fade to it at the border (Hann window), so that the frame's edges
    do not correlate. (What the device damps by is judged in bands of the cosine transform instead,
    whose weights are applied there, too: `device.output_filter.ring_correlation`.)

    Returns
    -------
    ndarray
        Correlation in the rings of 1, 2, ... (size / 2 - 1) cycles per image, (size / 2 - 1,).
    """
    size = first.shape[0]
    if first.shape != (size, size) or second.shape != (size, size):
        raise ValueError(f"FRC needs two equal squares, not {first.shape} and {second.shape}.")
    window = np.outer(np.hanning(size), np.hanning(size))
    a, b = (np.fft.fft2(window * (image - image.mean())) for image in (first, second))
    cycles = np.fft.fftfreq(size) * size
    ring = np.rint(np.hypot(cycles[:, None], cycles[None, :])).astype(int).ravel()

    def summed(values: np.ndarray) -> np.ndarray:
        return np.bincount(ring, values.ravel())[1 : size // 2]

    power = np.sqrt(summed(np.abs(a) ** 2) * summed(np.abs(b) ** 2))
    shared = summed((a * b.conj()).real)
    return np.divide(shared, power, out=np.zeros_like(shared), where=power > 0)


def frc_cutoff(first: np.ndarray, second: np.ndarray) -> float:
    """Frequency up to which two images agree, in cycles per px, by the 1/7 threshold.

    The curve is smoothed over three rings; where it never falls below 1/7, the answer is 0.5.
    """
    curve = np.convolve(np.pad(frc_curve(first, second), 1, mode="edge"), np.ones(3) / 3, "valid")
    below = np.flatnonzero(curve < FRC_THRESHOLD)
    return float((below[0] + 1) / first.shape[0]) if below.size else 0.5
