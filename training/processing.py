"""What many cameras do to a frame before anyone sees it: interpolation and compression.

Both make the noise of neighbouring pixels similar. A network that never saw that takes it for
structure.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage


@dataclass(frozen=True)
class Processing:
    """From the values of the pixels, ADU, to what is delivered; the default changes nothing.

    Attributes
    ----------
    bayer : bool
        Only every second pixel, as on a checkerboard, sees green; the others are interpolated.
    resampling_sigma_px : float
        Blur of a frame that was scaled, Gaussian, in px; 0 for none.
    jpeg_quality : int or None
        Of a JPEG of every frame, 1 to 100; only for 8 bit.
    """

    bayer: bool = False
    resampling_sigma_px: float = 0.0
    jpeg_quality: int | None = None

    def interpolate(self, frames: np.ndarray) -> np.ndarray:
        """Interpolate frames, (..., H, W) float32."""
        if self.bayer:
            frames = interpolate_green(frames)
        if self.resampling_sigma_px > 0:
            sigma = [0.0] * (frames.ndim - 2) + [self.resampling_sigma_px] * 2
            frames = ndimage.gaussian_filter(frames, sigma, mode="nearest")
        return frames

    def compress(self, frames: np.ndarray) -> np.ndarray:
        """Compress converted frames, (..., H, W) of 8 bit, and decode them again.

        Raises
        ------
        ValueError
            A value is above 255.
        """
        if self.jpeg_quality is None:
            return frames
        if frames.max(initial=0) > 255:
            raise ValueError(f"JPEG holds 8 bit; a pixel is {frames.max()}")
        flat = frames.reshape(-1, *frames.shape[-2:]).astype(np.uint8)
        decoded = [_through_jpeg(frame, self.jpeg_quality) for frame in flat]
        return np.stack(decoded).reshape(frames.shape).astype(frames.dtype)


def interpolate_green(frames: np.ndarray) -> np.ndarray:
    """Keep the pixels of even row plus column; the others become the mean of their neighbours.

    Bilinear demosaicing of the green channel of a Bayer mosaic, (..., H, W) float32; the pixels
    beyond the edge mirror those inside, so that they are green ones too.
    """
    padded = np.pad(frames, [(0, 0)] * (frames.ndim - 2) + [(1, 1), (1, 1)], mode="reflect")
    above, below = padded[..., :-2, 1:-1], padded[..., 2:, 1:-1]
    left, right = padded[..., 1:-1, :-2], padded[..., 1:-1, 2:]
    rows, columns = np.indices(frames.shape[-2:])
    green = (rows + columns) % 2 == 0
    return np.where(green, frames, (above + below + left + right) / 4).astype(np.float32)


def _through_jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
    _, coded = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE))
