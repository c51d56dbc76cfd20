"""From a camera's buffer to intensity: stride, planes, bit depth, Bayer quads, gamma.

Nothing here knows picamera2: a buffer is bytes, and what they mean is told by the format that the
camera was read back to deliver. Every function makes exactly one copy, which the caller owns.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from device.camera import CameraError

Transfer = Literal["bt709", "srgb", "linear"]

ROI_PATTERN = r"^(\d+,\d+,[1-9]\d*,[1-9]\d*)?$"
"""How a region is written: ``Y,X,H,W`` in px, or nothing for all."""

_LUMA = frozenset({"NV12", "NV21", "YUV420", "YVU420"})
_RAW = re.compile(r"(?P<pattern>R|SBGGR|SGBRG|SGRBG|SRGGB)(?P<bits>8|10|12|14|16)")
# Where the two green pixels of a quad lie, (row, column), by the pattern's first row.
_GREENS = {
    "SBGGR": ((0, 1), (1, 0)),
    "SRGGB": ((0, 1), (1, 0)),
    "SGBRG": ((0, 0), (1, 1)),
    "SGRBG": ((0, 0), (1, 1)),
}


@dataclass(frozen=True, slots=True)
class Region:
    """A part of an image in px.

    Attributes
    ----------
    top, left : int
        First row and column, from 0.
    height, width : int
        Size.
    """

    top: int
    left: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.top},{self.left},{self.height},{self.width}"

    @property
    def rectangle(self) -> tuple[int, int, int, int]:
        """As libcamera writes it: x, y, width, height."""
        return self.left, self.top, self.width, self.height

    def is_within(self, other: Region) -> bool:
        """Tell whether no px of it lies outside another region."""
        return (
            self.top >= other.top
            and self.left >= other.left
            and self.top + self.height <= other.top + other.height
            and self.left + self.width <= other.left + other.width
        )

    def is_near(self, other: Region, px: int = 8) -> bool:
        """Tell whether none of its four numbers is further off than some px."""
        mine, theirs = self.rectangle, other.rectangle
        return all(abs(a - b) <= px for a, b in zip(mine, theirs, strict=True))


def parse_region(text: str) -> Region | None:
    """Read ``Y,X,H,W`` in px; None for no text."""
    return Region(*map(int, text.split(","))) if text else None


@dataclass(frozen=True, slots=True)
class StreamFormat:
    """What a camera was read back to deliver.

    Attributes
    ----------
    pixel_format : str
        libcamera's name, such as ``NV12``, ``R10`` or ``SRGGB12``.
    width, height : int
        Of the image in sensor px.
    stride_bytes : int
        From one row to the next; it may be longer than a row.
    sensor_bits : int or None
        Bits that the sensor delivers, where the camera tells it. Values in a format of 16 bits are
        left-justified (the Pi 5), in one of 10, 12 or 14 right-justified (the Pi 4).

    Raises
    ------
    CameraError
        The format is none that can be read as linear intensity, or contradicts itself.
    """

    pixel_format: str
    width: int
    height: int
    stride_bytes: int
    sensor_bits: int | None = None

    def __post_init__(self) -> None:
        if self.pixel_format not in _LUMA and not _RAW.fullmatch(self.pixel_format):
            raise CameraError(
                f"the camera delivers {self.pixel_format}, which is packed, compressed or coloured;"
                " expected NV12, YUV420, or an unpacked raw format such as R10 or SRGGB12; set "
                "camera_stream to the other of luma and raw"
            )
        if self.stride_bytes < self.width * self._bytes_per_px:
            raise CameraError(
                f"the camera's rows of {self.width} px {self.pixel_format} would be "
                f"{self.stride_bytes} bytes apart, less than their length; expected at least "
                f"{self.width * self._bytes_per_px}; update libcamera and picamera2"
            )

    @property
    def is_raw(self) -> bool:
        """True where the values are the sensor's own, hence linear."""
        return self.pixel_format not in _LUMA

    @property
    def px_per_pixel(self) -> int:
        """Sensor px along a side of a pixel of ours: 2 for Bayer, where one comes of each quad."""
        return 2 if self._pattern in _GREENS else 1

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the intensity image in px."""
        return self.height // self.px_per_pixel, self.width // self.px_per_pixel

    @property
    def _pattern(self) -> str:
        match = _RAW.fullmatch(self.pixel_format)
        return match["pattern"] if match else ""

    @property
    def _bits(self) -> int:
        match = _RAW.fullmatch(self.pixel_format)
        return int(match["bits"]) if match else 8

    @property
    def _bytes_per_px(self) -> int:
        return 1 if self._bits == 8 else 2

    def whole(self) -> Region:
        """Return the region that is all of the image."""
        return Region(0, 0, *self.shape)

    def decode(
        self, buffer: np.ndarray, region: Region | None = None, transfer: Transfer = "bt709"
    ) -> np.ndarray:
        """Take an image out of a buffer; the one copy that is made of it.

        Parameters
        ----------
        buffer : ndarray
            The camera's bytes, 1-D uint8; planes after the first are not looked at.
        region : Region, optional
            Part of the intensity image; default is all of it.
        transfer : str
            Transfer curve to undo in a luma stream; raw streams have none.

        Returns
        -------
        ndarray
            Intensity in ADU, (H, W): uint8 or uint16 for raw; float32, 0 to 255, for luma whose
            curve was undone.

        Raises
        ------
        CameraError
            The buffer is too short.
        """
        rows = self._rows(buffer)
        part = region or self.whole()
        if self._pattern in _GREENS:
            return _mean_green(rows, self._pattern, part, self._justification)
        view = rows[part.top : part.top + part.height, part.left : part.left + part.width]
        if self.is_raw:
            return view >> self._justification  # (H, W), a copy
        return _linear(view, transfer)

    def _rows(self, buffer: np.ndarray) -> np.ndarray:
        """See the buffer as rows of px, without the padding behind each, (H, W)."""
        needed = self.stride_bytes * (self.height - 1) + self.width * self._bytes_per_px
        if buffer.size < needed:
            raise CameraError(
                f"the camera gave {buffer.size} bytes for an image of {needed}; expected all of "
                f"{self.width} x {self.height} px {self.pixel_format}; update libcamera"
            )
        return np.ndarray(
            (self.height, self.width),
            np.uint8 if self._bytes_per_px == 1 else "<u2",
            buffer,
            strides=(self.stride_bytes, self._bytes_per_px),
        )

    @property
    def _justification(self) -> int:
        """Bits that left-justified values are to be shifted down by to be the sensor's ADU."""
        if self._bits < 16 or self.sensor_bits is None:
            return 0
        return max(0, 16 - self.sensor_bits)


def _mean_green(rows: np.ndarray, pattern: str, part: Region, shift: int) -> np.ndarray:
    """Average the two green px of each 2 x 2 quad of a region of quads, (H, W).

    The mean's half is rounded to even, so that the rounding adds no offset.
    """
    quads = rows[2 * part.top :, 2 * part.left :][: 2 * part.height, : 2 * part.width]
    (row_a, column_a), (row_b, column_b) = _GREENS[pattern]
    total = quads[row_a::2, column_a::2].astype(np.uint32)  # (H, W)
    total += quads[row_b::2, column_b::2]
    total >>= shift
    total += (total >> 1) & 1
    total >>= 1
    return total.astype(rows.dtype)


def _linear(view: np.ndarray, transfer: Transfer) -> np.ndarray:
    if transfer == "linear":
        return view.copy()
    return cv2.LUT(view, _CURVES[transfer])  # (H, W) float32


def _bt709() -> np.ndarray:
    """Inverse of the transfer function of ITU-R BT.709-6, item 1.2, for the 256 codes."""
    code = np.arange(256) / 255
    linear = np.where(code < 0.081, code / 4.5, ((code + 0.099) / 1.099) ** (1 / 0.45))
    return (255.0 * linear).astype(np.float32)


def _srgb() -> np.ndarray:
    """Inverse of the transfer function of IEC 61966-2-1 for the 256 codes."""
    code = np.arange(256) / 255
    linear = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
    return (255.0 * linear).astype(np.float32)


_CURVES = {"bt709": _bt709(), "srgb": _srgb()}
