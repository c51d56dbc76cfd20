"""Reading a recorded stack page by page: TIFF, OME-TIFF or video.

What is read is linear intensity, one (H, W) image at a time, so that a stack of any length takes
the memory of one frame. A video is reduced to its luma, and the transfer curve of BT.709 that a
video's values carry is undone.
"""

from __future__ import annotations

import logging
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np
import tifffile

from device.camera import DTYPES, MIN_SIDE_PX
from device.errors import UserError

log = logging.getLogger(__name__)

MIN_FRAMES = 2
# A "pixel size" above this is a printer's resolution (72 dpi is 353 um), not a microscope's.
MAX_PIXEL_SIZE_UM = 20.0

_TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")
_VIDEO_SUFFIXES = (".avi", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpg", ".webm")
# These containers state how many frames they hold; of others FFmpeg estimates it by the duration.
_COUNTED_SUFFIXES = (".avi", ".m4v", ".mov", ".mp4")
# What tifffile and its decoders raise on a file that is cut short or damaged.
_BROKEN = (
    OSError,
    ValueError,  # includes tifffile.TiffFileError
    LookupError,
    TypeError,
    RuntimeError,
    struct.error,
    zlib.error,
)
_MICROMETRES = {"m": 1e6, "mm": 1e3, "µm": 1.0, "nm": 1e-3, "pm": 1e-6, "Å": 1e-4}
_IMAGEJ_MICROMETRES = {
    "micron": 1.0,
    "microns": 1.0,
    "um": 1.0,
    "µm": 1.0,
    "\\u00b5m": 1.0,
    "nm": 1e-3,
    "mm": 1e3,
    "cm": 1e4,
}


class StackError(UserError):
    """A stack cannot be read; the text is one sentence for the user."""


class Stack(ABC):
    """A recorded stack of frames, read one at a time; use it as a context manager.

    Attributes
    ----------
    path : Path
        The file.
    height, width : int
        Size of every frame in px.
    dtype : numpy.dtype
        uint8, uint16 or float32, in the machine's byte order.
    pixel_size_um : float or None
        Side of a pixel in um, where the file tells it.
    """

    path: Path
    height: int
    width: int
    dtype: np.dtype
    pixel_size_um: float | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, height, width."""
        return self.frames, self.height, self.width

    @property
    @abstractmethod
    def frames(self) -> int:
        """Number of frames."""

    @abstractmethod
    def _read(self, index: int) -> np.ndarray | None:
        """Frame `index` as (H, W), or None behind the end."""

    @abstractmethod
    def close(self) -> None:
        """Close the file; may be called twice."""

    def read_or_end(self, index: int) -> np.ndarray | None:
        """Read frame `index` as it is recorded, without asking first how many there are.

        Parameters
        ----------
        index : int
            From 0.

        Returns
        -------
        ndarray or None
            (H, W) of `dtype`, NaN and infinity included; None behind the last frame.

        Raises
        ------
        StackError
            The frame cannot be decoded.
        """
        return self._read(index)

    def read(self, index: int) -> np.ndarray:
        """Read frame `index`, from 0, as (H, W) of `dtype`, all values finite.

        Raises
        ------
        IndexError
            There is no such frame.
        StackError
            The frame cannot be decoded, or holds NaN or infinity.
        """
        image = self.read_or_end(index) if index >= 0 else None
        if image is None:
            raise IndexError(f"no frame {index} in {self.path}")
        self._refuse_not_finite(image, index)
        return image

    def _refuse_not_finite(self, image: np.ndarray, index: int) -> None:
        if image.dtype.kind != "f":
            return
        bad = image.size - int(np.count_nonzero(np.isfinite(image)))
        if bad:
            raise StackError(
                f"{self.path}: frame {index} holds NaN or infinity in {bad} of {image.size} "
                "pixels; expected finite intensities; replace those values first"
            )

    def __iter__(self) -> Iterator[np.ndarray]:
        index = 0
        while (image := self.read_or_end(index)) is not None:
            self._refuse_not_finite(image, index)
            yield image
            index += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_stack(path: Path | str) -> Stack:
    """Open a recorded stack.

    Parameters
    ----------
    path : Path or str
        A TIFF whose one long axis is the stack (T or pages), uint8, uint16 or float32, or a
        video; at least 2 frames of at least 16 x 16 px.

    Returns
    -------
    Stack
        Open, the first frame known to be readable.

    Raises
    ------
    StackError
        The file is missing, is of no known kind or breaks one of the rules above.
    """
    path = Path(path)
    if not path.is_file():
        raise StackError(f"{path}: no such file; expected a TIFF stack or a video; check the path")
    stack = _open_by_kind(path)
    try:
        _check(stack)
    except StackError:
        stack.close()
        raise
    return stack


def _open_by_kind(path: Path) -> Stack:
    if _has_tiff_magic(path):
        return TiffStack(path)
    if path.suffix.lower() in _VIDEO_SUFFIXES:
        return VideoStack(path)
    wanted = "a TIFF" if path.suffix.lower() in _TIFF_SUFFIXES else "a TIFF or a video"
    raise StackError(
        f"{path}: not a TIFF, by its first bytes; expected {wanted}; give another file or "
        "convert this one (ImageJ: File > Save As > Tiff)"
    )


def _has_tiff_magic(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise StackError(
            f"{path}: cannot be read ({error.strerror}); expected a readable file; "
            "check its permissions"
        ) from error
    return magic in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _check(stack: Stack) -> None:
    """Refuse a stack that is too small, too short or does not decode."""
    if min(stack.height, stack.width) < MIN_SIDE_PX:
        raise StackError(
            f"{stack.path}: frames of {stack.height} x {stack.width} px are too small; expected "
            f"at least {MIN_SIDE_PX} x {MIN_SIDE_PX}; record a larger region"
        )
    if stack.read_or_end(0) is None:
        raise StackError(
            f"{stack.path}: holds no frame that can be read; expected at least {MIN_FRAMES}; "
            "record it again"
        )
    if stack.read_or_end(MIN_FRAMES - 1) is None:
        raise _too_short(stack.path)


def _too_short(path: Path) -> StackError:
    return StackError(
        f"{path}: holds a single frame; expected a stack of at least {MIN_FRAMES} frames, since "
        "the reconstruction needs their fluctuation; record more frames"
    )


class TiffStack(Stack):
    """A TIFF, BigTIFF, OME-TIFF or ImageJ stack.

    Parameters
    ----------
    path : Path
        An existing file.

    Raises
    ------
    StackError
        The file is damaged, or its axes or type are not those of a stack.
    """

    # Indexed only: tifffile then holds what it needs of them, at any length.
    _pages: tifffile.TiffPages | tifffile.TiffPageSeries

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = tifffile.TiffFile(path)
        except _BROKEN as error:
            raise self._damaged(error) from error
        try:
            self._set_up()
        except StackError:
            self.close()
            raise
        except _BROKEN as error:
            self.close()
            raise self._damaged(error) from error

    def _set_up(self) -> None:
        self._refuse_cut_short(_last_page_is_last(self._file))
        series = _one_series(self._file, self.path)
        if series is None:
            self._data_offset, self._pages = None, self._file.pages
        else:
            self._data_offset, self._pages = series.dataoffset, series.pages
        page = self._file.pages.first
        self._frames = len(self._pages) if series is None else int(series.shape[0])
        self.height, self.width = page.imagelength, page.imagewidth
        _refuse_compressed(page, self.path)
        self._stored_dtype = np.dtype(page.dtype).newbyteorder(self._file.byteorder)
        self.dtype = _checked_dtype(page.dtype, self.path)
        _refuse_inverted(page, self.path)
        self.pixel_size_um = _pixel_size_um(self._file)
        self._refuse_cut_short(self._holds_all_frames())

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self._frames

    def _read(self, index: int) -> np.ndarray | None:
        if index >= self._frames:
            return None
        try:
            stored = self._read_stored(index)
        except _BROKEN as error:
            raise self._damaged(error, f" in frame {index}") from error
        return np.ascontiguousarray(stored, dtype=self.dtype)  # (H, W)

    def _read_stored(self, index: int) -> np.ndarray:
        if self._data_offset is None:
            page = self._pages[index]
            if page is None:
                raise LookupError("the page is missing")
            return page.asarray()
        # Uncompressed and in one piece: ImageJ files above 4 GB have a single page for all frames.
        offset = self._data_offset + index * self._frame_bytes
        pixels = self._file.filehandle.read_array(
            self._stored_dtype, self.height * self.width, offset
        )
        return pixels.reshape(self.height, self.width)

    @property
    def _frame_bytes(self) -> int:
        return self.height * self.width * self._stored_dtype.itemsize

    def _holds_all_frames(self) -> bool:
        if self._data_offset is None:
            return len(self._pages) == self._frames
        end = self._data_offset + self._frames * self._frame_bytes
        return end <= self._file.filehandle.size

    def _refuse_cut_short(self, whole: bool) -> None:
        if not whole:
            raise StackError(
                f"{self.path}: the file is cut short; expected all of its frames; copy or record "
                "it again"
            )

    def _damaged(self, error: Exception, where: str = "") -> StackError:
        return StackError(
            f"{self.path}: not a readable TIFF{where} ({_one_line(error)}); expected an undamaged "
            "TIFF, uncompressed or deflated; save it again"
        )

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()


def _last_page_is_last(file: tifffile.TiffFile) -> bool:
    """Tell whether the chain of pages ends, and does not point behind the end of the file.

    tifffile reads a file that was cut short as a shorter stack.
    """
    position = file.pages.next_page_offset
    if position is None:
        return False
    file.filehandle.seek(position)
    stored = file.filehandle.read(file.tiff.offsetsize)
    return stored == bytes(file.tiff.offsetsize)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _one_series(file: tifffile.TiffFile, path: Path) -> tifffile.TiffPageSeries | None:
    """The file's one series if its axes are those of a stack; None for a row of equal pages."""
    if len(file.series) == 1:
        _check_axes(file.series[0], path)
        return file.series[0]
    kinds = {(page.shape, page.dtype) for page in file.pages}
    if len(kinds) > 1 or file.series[0].axes != "YX":
        raise StackError(
            f"{path}: holds {len(file.series)} images of different kinds; expected pages that all "
            "have one size and type; save the stack alone"
        )
    return None


def _check_axes(series: tifffile.TiffPageSeries, path: Path) -> None:
    """Refuse every order of axes that is not (stack, Y, X)."""
    long_axes = "".join(
        axis for axis, size in zip(series.axes, series.shape, strict=True) if size > 1
    )
    if series.axes == "YX":
        raise _too_short(path)
    if "S" in long_axes:
        raise StackError(
            f"{path}: is a colour image (RGB); expected one intensity a pixel; give one channel "
            "or convert it (ImageJ: Image > Type > 16-bit)"
        )
    for axis, what, cure in (
        ("C", "channels", "save one channel"),
        ("Z", "slices along Z", "save one slice, or swap Z and T in ImageJ's Image > Properties"),
    ):
        if axis in long_axes:
            raise StackError(
                f"{path}: has {series.shape[series.axes.index(axis)]} {what}; expected a stack "
                f"along time or pages only; {cure}"
            )
    if len(series.axes) != 3 or series.axes[1:] != "YX" or series.axes[0] not in "TIQ":
        raise StackError(
            f"{path}: has the axes {series.axes} of sizes {series.shape}; expected one long axis "
            "(time or pages) before Y and X; save it as a plain stack"
        )


def _checked_dtype(stored: np.dtype | None, path: Path) -> np.dtype:
    if stored is not None:
        for dtype in DTYPES:
            if stored.newbyteorder("=") == dtype:
                return dtype
    raise StackError(
        f"{path}: holds {stored} values; expected uint8, uint16 or float32; convert it "
        "(ImageJ: Image > Type)"
    )


def _refuse_compressed(page: tifffile.TiffPage, path: Path) -> None:
    """Refuse what only a package that the device does without would unpack, LZW above all."""
    if page.compression not in tifffile.TIFF.DECOMPRESSORS:
        kind = getattr(page.compression, "name", page.compression)
        raise StackError(
            f"{path}: is compressed with {kind}; expected a TIFF uncompressed or deflated; save "
            "it uncompressed (ImageJ does: File > Save As > Tiff)"
        )


def _refuse_inverted(page: tifffile.TiffPage, path: Path) -> None:
    """Refuse palettes and inverted greys, whose numbers are not intensities."""
    if page.photometric != tifffile.PHOTOMETRIC.MINISBLACK:
        kind = getattr(page.photometric, "name", page.photometric)
        raise StackError(
            f"{path}: its values are {kind} codes; expected intensities with black as zero "
            "(MINISBLACK); save it as greyscale"
        )


def _pixel_size_um(file: tifffile.TiffFile) -> float | None:
    """Side of a pixel in um; None where the file does not tell, or tells two different sides."""
    sizes_um = _ome_pixel_size_um(file) or _imagej_pixel_size_um(file) or _tag_pixel_size_um(file)
    if sizes_um is None or not 0 < sizes_um[0] <= MAX_PIXEL_SIZE_UM:
        return None
    if abs(sizes_um[0] - sizes_um[1]) > 0.01 * sizes_um[0]:
        log.warning("pixels of %g x %g um are not square; their size is not used", *sizes_um)
        return None
    return float(sizes_um[0])


def _ome_pixel_size_um(file: tifffile.TiffFile) -> tuple[float, float] | None:
    if not file.ome_metadata:
        return None
    pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
    pixels = (pixels[0] if isinstance(pixels, list) else pixels)["Pixels"]
    sides = []
    for axis in "XY":
        scale = _MICROMETRES.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        size = pixels.get(f"PhysicalSize{axis}")
        if scale is None or size is None:
            return None
        sides.append(float(size) * scale)
    return sides[0], sides[1]


def _imagej_pixel_size_um(file: tifffile.TiffFile) -> tuple[float, float] | None:
    if not file.imagej_metadata:
        return None
    unit = str(file.imagej_metadata.get("unit", "")).lower()
    scale = _IMAGEJ_MICROMETRES.get(unit)
    per_unit = file.pages.first.resolution  # px per unit, (X, Y)
    if scale is None or min(per_unit) <= 0:
        return None
    return scale / per_unit[0], scale / per_unit[1]


def _tag_pixel_size_um(file: tifffile.TiffFile) -> tuple[float, float] | None:
    page = file.pages.first
    if file.imagej_metadata or page.resolutionunit not in (
        tifffile.RESUNIT.INCH,
        tifffile.RESUNIT.CENTIMETER,
    ):
        return None
    per_um = page.get_resolution("micrometer")  # px per um, (X, Y)
    return (1 / per_um[0], 1 / per_um[1]) if min(per_um) > 0 else None


class VideoStack(Stack):
    """A video's luma on a linear scale: float32, 0 to 255.

    Frames are decoded in order; going back decodes from the start again.

    Parameters
    ----------
    path : Path
        An existing file.

    Raises
    ------
    StackError
        The file cannot be opened as a video.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, path: Path) -> None:
        self.path = path
        self._capture = self._opened()
        self._claimed = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._next = 0
        self._frames: int | None = None
        self.height = int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        self.width = int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH))

    def _opened(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise StackError(
                f"{self.path}: not a readable video; expected one that FFmpeg decodes; convert it "
                "to a TIFF stack or to another codec"
            )
        return capture

    @property
    def frames(self) -> int:
        """Number of frames; counted by decoding, since what a container claims is an estimate."""
        if self._frames is None:
            capture = self._opened()
            count = 0
            while capture.grab():
                count += 1
            capture.release()
            self._end_at(count)
        assert self._frames is not None
        return self._frames

    def _end_at(self, frames: int) -> None:
        """Keep the number of frames, so that they need not be counted again; refuse a cut video."""
        if frames < self._claimed and self.path.suffix.lower() in _COUNTED_SUFFIXES:
            raise StackError(
                f"{self.path}: the video is cut short or damaged; expected {self._claimed} frames, "
                f"of which {frames} can be read; copy or record it again"
            )
        if frames < self._claimed and self._frames is None:
            log.warning("%s: %d of about %d frames read", self.path, frames, self._claimed)
        self._frames = frames

    def _read(self, index: int) -> np.ndarray | None:
        if index < self._next:
            self._capture.release()
            self._capture, self._next = self._opened(), 0
        while self._next < index:
            if not self._capture.grab():
                self._end_at(self._next)
                return None
            self._next += 1
        decoded, colour = self._capture.read()  # (H, W, 3)
        if not decoded:
            self._end_at(self._next)
            return None
        self._next += 1
        return linear_luma(colour)

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._capture.release()


def linear_luma(colour: np.ndarray) -> np.ndarray:
    """Luma of a video frame with the transfer curve of BT.709 undone.

    Parameters
    ----------
    colour : ndarray
        Blue, green, red as the video has them, (H, W, 3) or grey (H, W), uint8.

    Returns
    -------
    ndarray
        Linear intensity, (H, W) float32, 0 to 255.
    """
    if colour.ndim == 2:
        return cv2.LUT(colour, _BT709_LINEAR)
    luma = cv2.transform(colour, _BT709_LUMA_BGR)  # (H, W), rounded to uint8
    return cv2.LUT(luma.reshape(colour.shape[:2]), _BT709_LINEAR)


def _bt709_linear() -> np.ndarray:
    """Inverse of the transfer function of ITU-R BT.709-6, item 1.2, for the 256 codes."""
    code = np.arange(256) / 255.0
    linear = np.where(code < 0.081, code / 4.5, ((code + 0.099) / 1.099) ** (1 / 0.45))
    return (255.0 * linear).astype(np.float32)


_BT709_LINEAR = _bt709_linear()
_BT709_LUMA_BGR = np.array([[0.0722, 0.7152, 0.2126]])  # ITU-R BT.709-6, item 3.2
