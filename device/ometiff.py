"""Writing float32 images as OME-TIFF, page by page, so that a file is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tifffile

from device.errors import FaultError, UserError
from device.files import whole_or_nothing

NAMESPACE = "learn2sofi"
_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")


class OutputError(UserError):
    """The output path cannot be used; the text is one sentence for the user."""


class WriteError(FaultError):
    """Writing failed midway, a full disk perhaps; the text is one sentence for the user."""


def check_output(path: Path) -> None:
    """Refuse, before any work is done, a path that could not be written in the end.

    Parameters
    ----------
    path : Path
        Where the file is to be.

    Raises
    ------
    OutputError
        The folder is missing or not writable, the path is a folder, or no TIFF by its name.
    """
    folder = path.absolute().parent
    if path.suffix.lower() not in _SUFFIXES:
        raise OutputError(f"{path}: not a TIFF's name; expected OUT.tif; change the ending to .tif")
    if not folder.is_dir():
        raise OutputError(
            f"{path}: the folder {folder} does not exist; expected an existing one; "
            f"make it first (mkdir -p {folder})"
        )
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; expected a file's name; add one")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"{path}: the folder {folder} cannot be written to; expected one that can; "
            "choose another or change its permissions"
        )


def write_ometiff(
    path: Path,
    images: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    *,
    channels: Sequence[str] = (),
    pixel_size_um: float | None = None,
    annotations: Mapping[str, object] | None = None,
) -> None:
    """Write images to a BigTIFF with OME metadata, taking them one at a time.

    Parameters
    ----------
    path : Path
        The file; overwritten, if it exists, only when the new one is whole.
    images : iterable of ndarray
        Each (H, W); exactly as many as `shape` says, times the channels.
    shape : tuple of int
        Images, height, width: (T, H, W).
    channels : sequence of str
        Names of the channels of each image, which come one after the other; empty for one alone.
    pixel_size_um : float, optional
        Side of a pixel of these images in um.
    annotations : mapping, optional
        Names and values that the file carries, in an OME map annotation of our namespace; None is
        left out. Read when the last image was taken, so that `images` may add to it.

    Raises
    ------
    WriteError
        The disk is full or failed.
    Exception
        Whatever `images` raises; nothing is left behind then.
    """
    pages = _Pages(images, annotations or {})
    try:
        with (
            whole_or_nothing(path) as beside,
            tifffile.TiffWriter(beside, bigtiff=True, ome=True) as tiff,
        ):
            tiff.write(
                iter(pages),
                shape=(shape[0], len(channels), *shape[1:]) if channels else shape,
                dtype=np.float32,
                photometric="minisblack",
                software=NAMESPACE,
                metadata=_ome_metadata(channels, pixel_size_um, pages.notes),
            )
    except OSError as error:
        if error is pages.error:
            raise
        raise WriteError(
            f"{path}: could not be written ({error.strerror or error}); expected room and a "
            "working disk; nothing was left behind, free some space and run again"
        ) from error


class _Pages:
    """The images as float32 pages.

    Remembers an error of their source, which is not the disk's. Fills `notes` after the last page;
    tifffile writes them when it closes the file.
    """

    def __init__(self, images: Iterable[np.ndarray], annotations: Mapping[str, object]) -> None:
        self._images = images
        self._annotations = annotations
        self.notes = {"Namespace": NAMESPACE}
        self.error: OSError | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        try:
            for image in self._images:
                yield np.ascontiguousarray(image, dtype=np.float32)  # (H, W)
        except OSError as error:
            self.error = error
            raise
        given = self._annotations.items()
        self.notes.update({name: str(value) for name, value in given if value is not None})


def _ome_metadata(
    channels: Sequence[str], pixel_size_um: float | None, notes: dict[str, str]
) -> dict[str, object]:
    metadata: dict[str, object] = {"axes": "TYX", "MapAnnotation": notes}
    if channels:
        metadata |= {"axes": "TCYX", "Channel": {"Name": [*channels]}}
    if pixel_size_um is not None:
        for axis in "XY":
            metadata[f"PhysicalSize{axis}"] = pixel_size_um
            metadata[f"PhysicalSize{axis}Unit"] = "µm"
    return metadata
