"""What the training minimizes."""

from __future__ import annotations

from typing import Any

from keras import ops

FLOOR = 1e-4  # of the relative mean square error: 40 dB, beyond what any stack allows


def log_relative_error(truth: Any, image: Any) -> Any:
    """Mean logarithm of each image's relative mean square error, scalar.

    With the truth's own brightness as unit this is, up to a factor, the PSNR that the evaluation
    reports, so that dim, bright, sparse and dense stacks weigh alike. No affine fit is granted:
    the network must also get the counts right.

    Parameters
    ----------
    truth : tensor
        (B, n, 2H + 1, 2W): a stack's target, and in the first pixel of an extra last row its unit,
        the target's 99.9th percentile.
    image : tensor
        (B, n, 2H, 2W).
    """
    unit = truth[:, :, -1:, :1]  # (B, n, 1, 1)
    target = ops.minimum(truth[:, :, :-1, :] / unit, 1.5)
    error = ops.mean(ops.square(image / unit - target), axis=(2, 3))  # (B, n)
    return ops.mean(ops.log(error + FLOOR))
