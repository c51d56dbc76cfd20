"""What the training minimizes."""

from __future__ import annotations

from typing import Any

from keras import ops

FLOOR = 1e-4  # of the relative mean square error: 40 dB, beyond what any stack allows


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
    error = ops.mean(ops.square(image - truth), axis=(2, 3))  # (B, n)
    return ops.mean(ops.log(error + FLOOR))
