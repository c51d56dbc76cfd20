"""What the training minimizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

# Of the relative mean square error. A single point in the field that is drawn a quarter of an
# output pixel beside its place makes 6e-6, and 1e-7 when it is blurred.
FLOOR = 1e-5
COARSE_FLOOR = 1e-7
COARSE_SIGMA_PX = 2.0  # in output pixels: finer than any PSF, coarser than what can be resolved


def log_relative_error(truth: Any, image: Any) -> Any:
    """Mean logarithm of each image's relative mean square error, scalar.

    In units of the truth's 99.9th percentile this is, up to a factor, the PSNR that the evaluation
    reports, so that dim, bright, sparse and dense stacks weigh alike. No affine fit is granted: the
    network must also get the counts right.

    Parameters
    ----------
    truth, image : tensor
        (B, n, 2H, 2W), in units of the truth's 99.9th percentile.
    """
    return _mean_log_square(image - truth, FLOOR)


def log_coarse_error(truth: Any, image: Any) -> Any:
    """Mean logarithm of the same after a blur by `COARSE_SIGMA_PX`, scalar.

    Blurred, an image must be what was seen. A point that is drawn a tenth of a pixel beside its
    place costs little in the sharp image and much here, as does light that is made or lost.

    Parameters
    ----------
    truth, image : tensor
        (B, n, 2H, 2W), in units of the truth's 99.9th percentile.
    """
    return _mean_log_square(_blurred(image - truth), COARSE_FLOOR)


def loss_with(coarse_weight: float) -> Callable[[Any, Any], Any]:
    """Make the loss: `log_relative_error` and so many times `log_coarse_error`."""
    if coarse_weight == 0:
        return log_relative_error

    def loss(truth: Any, image: Any) -> Any:
        coarse = log_coarse_error(truth, image)
        return log_relative_error(truth, image) + coarse_weight * coarse

    return loss


def _mean_log_square(error: Any, floor: float) -> Any:
    return ops.mean(ops.log(ops.mean(ops.square(error), axis=(2, 3)) + floor))


def _blurred(images: Any) -> Any:
    """Convolve with a Gaussian along both axes, (B, n, H, W); zeros beyond the edge."""
    radius = int(3 * COARSE_SIGMA_PX)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / COARSE_SIGMA_PX) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    shape = ops.shape(images)
    x = ops.reshape(images, (-1, *shape[2:], 1))
    x = ops.conv(x, taps.reshape(-1, 1, 1, 1), padding="same")
    return ops.reshape(ops.conv(x, taps.reshape(1, -1, 1, 1), padding="same"), shape)
