"""The forms in which an image leaves the device: live message, PNG, TIFF, JPEG.

Every form but JPEG and TIFF carries 16 bit pixels with ``value = offset + scale * pixel``. Integer
frames are passed on as they are (scale 1, offset 0); float images are spread over the full 16 bit,
so that rounding costs at most half of 1/65535 of their range.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import tifffile

if TYPE_CHECKING:
    from device.pipeline import View

UNITS = {
    "raw": "ADU",
    "mean": "ADU",
    "std": "ADU",
    "reconstruction": "ADU above background",
    "error": "ADU, error that 68 % of such pixels are within",
}
_PNG_SIGNATURE_AND_HEADER_BYTES = 8 + 25


@dataclass(frozen=True, slots=True)
class Coded:
    """An image as 16 bit pixels.

    Attributes
    ----------
    pixels : ndarray
        (H, W), little-endian uint16.
    scale : float
        Value of one step of a pixel.
    offset : float
        Value of pixel 0.
    """

    pixels: np.ndarray
    scale: float
    offset: float


def code_uint16(image: np.ndarray) -> Coded:
    """Bring an image to 16 bit.

    Parameters
    ----------
    image : ndarray
        (H, W), uint8 or uint16 (passed on unchanged) or float; what is not finite becomes 0.

    Returns
    -------
    Coded
        A constant float image has scale 0.
    """
    if image.dtype in (np.uint8, np.uint16):
        return Coded(image.astype("<u2"), 1.0, 0.0)
    finite = np.nan_to_num(image, nan=0.0, posinf=0.0, neginf=0.0)  # (H, W)
    low, high = float(finite.min()), float(finite.max())
    scale = (high - low) / 65535
    steps = (finite - low) / scale if scale > 0 else np.zeros_like(finite)
    return Coded(np.rint(steps).clip(0, 65535).astype("<u2"), scale, low)


def live_message(view: View) -> bytes:
    """Encode one image for the `/live` WebSocket.

    Parameters
    ----------
    view : View
        The image and where it stands in the series.

    Returns
    -------
    bytes
        uint32 LE header length; JSON header; uint16 LE pixels, row by row. The header is padded
        with blanks so that the pixels begin at a multiple of 4, as typed arrays want it.
    """
    coded = code_uint16(view.array)
    height, width = coded.pixels.shape
    header = json.dumps(
        {
            "view": view.view,
            "seq": view.seq,
            "timestamp_ns": view.timestamp_ns,
            "height": height,
            "width": width,
            "scale": coded.scale,
            "offset": coded.offset,
        }
    ).encode()
    header += b" " * (-len(header) % 4)
    return struct.pack("<I", len(header)) + header + coded.pixels.tobytes()


def png_texts(view: View, coded: Coded) -> dict[str, str]:
    """Say what the pixels of a PNG mean: its scale, offset and unit."""
    return {"scale": repr(coded.scale), "offset": repr(coded.offset), "unit": UNITS[view.view]}


def png(coded: Coded, texts: Mapping[str, str]) -> bytes:
    """Encode as 16 bit greyscale PNG with texts (Latin-1) in its chunks."""
    _, encoded = cv2.imencode(".png", coded.pixels)
    image = encoded.tobytes()
    chunks = b"".join(_text_chunk(key, text) for key, text in texts.items())
    cut = _PNG_SIGNATURE_AND_HEADER_BYTES
    return image[:cut] + chunks + image[cut:]


def _text_chunk(key: str, text: str) -> bytes:
    body = b"tEXt" + key.encode("latin-1") + b"\0" + text.encode("latin-1")
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def tiff(view: View, context: Mapping[str, Any]) -> bytes:
    """Encode as float32 TIFF, the values as they are.

    Parameters
    ----------
    view : View
        The image.
    context : mapping
        What else to write into the description (JSON), such as the camera; what the image itself
        knows (`View.facts`) comes before it.

    Returns
    -------
    bytes
        The file; `tifffile.TiffFile.shaped_metadata` gives the description back.
    """
    about = {
        "view": view.view,
        "unit": UNITS[view.view],
        "seq": view.seq,
        "index": view.index,
        "timestamp_ns": view.timestamp_ns,
        "frames": view.frames,
        **context,
        **view.facts,
    }
    buffer = io.BytesIO()
    image = np.asarray(view.array, np.float32)  # (H, W)
    tifffile.imwrite(buffer, image, photometric="minisblack", software="learn2sofi", metadata=about)
    return buffer.getvalue()


class JpegEncoder:
    """JPEG for the eye: 8 bit, contrast between two percentiles that follow the image slowly.

    Parameters
    ----------
    quality : int
        JPEG quality, 1 to 100.
    follow : float
        Share of the way that the levels go towards those of each new image, above 0 to 1. Small
        values keep noise from making the picture flicker.
    """

    PERCENTILES = (1.0, 99.8)

    def __init__(self, quality: int = 90, follow: float = 0.1) -> None:
        self._quality = quality
        self._follow = follow
        self._levels: np.ndarray | None = None  # (2,) low, high

    def __call__(self, view: View) -> bytes:
        """Encode one image of the series."""
        image = np.nan_to_num(np.asarray(view.array, np.float32))  # (H, W)
        low, high = self._update(image)
        grey = (image - low) * (255.0 / max(high - low, 1e-6))
        _, encoded = cv2.imencode(
            ".jpg", grey.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, self._quality]
        )
        return encoded.tobytes()

    def _update(self, image: np.ndarray) -> tuple[float, float]:
        step = max(1, int(np.sqrt(image.size / 16384)))  # enough pixels for a percentile
        new = np.percentile(image[::step, ::step], self.PERCENTILES)
        old = new if self._levels is None else self._levels
        self._levels = old + self._follow * (new - old)
        return float(self._levels[0]), float(self._levels[1])
