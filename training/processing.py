"""What many cameras do to a frame before anyone sees it: interpolation and compression.

Both make the noise of neighbouring pixels similar. A network that never saw that takes it for
structure.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import av
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
    video_crf : int or None
        Constant rate factor of an H.264 video of the frames, 0 (hardly any loss) to 51; only for
        8 bit. Between its frames video keeps what it takes for noise, or drops it.
    """

    bayer: bool = False
    resampling_sigma_px: float = 0.0
    jpeg_quality: int | None = None
    video_crf: int | None = None

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
        if self.jpeg_quality is None and self.video_crf is None:
            return frames
        if frames.max(initial=0) > 255:
            raise ValueError(f"JPEG and video hold 8 bit; a pixel is {frames.max()}")
        flat = frames.reshape(-1, *frames.shape[-2:]).astype(np.uint8)
        if self.jpeg_quality is not None:
            flat = np.stack([_through_jpeg(frame, self.jpeg_quality) for frame in flat])
        if self.video_crf is not None:
            flat = _through_video(flat, self.video_crf)
        return flat.reshape(frames.shape).astype(frames.dtype)


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


def _through_video(frames: np.ndarray, crf: int) -> np.ndarray:
    """Encode grey frames, (T, H, W) uint8, by libx264 and decode them again."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.height, encoder.width = frames.shape[1:]
    encoder.pix_fmt, encoder.time_base = "gray", Fraction(1, 30)
    encoder.color_range = av.video.reformatter.ColorRange.JPEG  # all 256 values
    encoder.thread_count = 1  # the same bits on every machine
    encoder.options = {"crf": str(crf), "preset": "veryfast", "tune": "zerolatency"}
    packets = []
    for number, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="gray")
        picture.pts = number
        packets += encoder.encode(picture)
    packets += encoder.encode(None)
    decoder = av.CodecContext.create("h264", "r")
    pictures = [picture for packet in [*packets, None] for picture in decoder.decode(packet)]
    return np.stack([picture.to_ndarray(format="gray") for picture in pictures])
