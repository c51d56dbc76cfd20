"""Dark frame, hot pixels and flat field: measured once, applied to live images.

A corrected image is (frame - dark) / flat, and a hot pixel is the median of its neighbourhood.
Measured on the same region and binning of the sensor as it is applied to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import tifffile

from device.camera import CameraError, Frame
from device.errors import UserError
from device.ometiff import write_ometiff

DARK_FILE = "dark.ome.tif"
FLAT_FILE = "flat.ome.tif"
HOT_SIGMAS = 6.0
"""A pixel this many robust standard deviations above the dark frame's median is hot."""
MIN_FLAT = 0.05
"""Where the illumination is weaker than this part of its mean, the flat field is not trusted."""
_ALIKE = 0.05  # relative: sensors count their exposure in rows
_MAD_TO_SIGMA = 1.4826  # of a normal distribution


class CalibrationError(UserError):
    """The calibration cannot be measured or used; the text is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is known of the sensor and the illumination.

    Attributes
    ----------
    dark : ndarray or None
        Mean image without light in ADU, (H, W) float32.
    hot : ndarray or None
        True where a pixel is hot, (H, W) bool.
    flat : ndarray or None
        Relative illumination, mean 1, (H, W) float32.
    dark_exposure_us, dark_gain : float or None
        What the dark frame was measured at, where the camera told it.
    """

    dark: np.ndarray | None = None
    hot: np.ndarray | None = None
    flat: np.ndarray | None = None
    dark_exposure_us: float | None = None
    dark_gain: float | None = None

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width that it was measured at; None where there is nothing to apply."""
        for image in (self.dark, self.flat):
            if image is not None:
                return image.shape[0], image.shape[1]
        return None

    @property
    def applied(self) -> list[str]:
        """Names of the corrections."""
        parts = {"dark": self.dark, "flat": self.flat}
        return [name for name, image in parts.items() if image is not None]

    def check(self, shape: tuple[int, int]) -> None:
        """Refuse frames of another shape than was measured.

        Raises
        ------
        CameraError
            Says both shapes.
        """
        if self.shape not in (None, shape):
            raise CameraError(
                f"the calibration was measured at {self.shape} px, the frames have {shape}; "
                "expected the same; calibrate again, or set dark and flat to false"
            )

    def warning(self, frame: Frame | None) -> str | None:
        """Say what a frame was taken at where the dark frame was not; None where they agree.

        Parameters
        ----------
        frame : Frame or None
            The newest.
        """
        if frame is None:
            return None
        pairs = (
            ("exposure, us", self.dark_exposure_us, frame.exposure_us),
            ("gain", self.dark_gain, frame.gain),
        )
        for name, measured, now in pairs:
            if measured and now and abs(now - measured) > _ALIKE * measured:
                return (
                    f"the dark frame was measured at another {name} ({measured:g}) than the "
                    f"camera's ({now:g}); expected the same; calibrate again"
                )
        return None

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Correct an image, (H, W); float32 in ADU where anything is corrected."""
        if self.shape is None:
            return image
        corrected = image.astype(np.float32)  # (H, W)
        if self.dark is not None:
            corrected -= self.dark
        if self.flat is not None:
            corrected /= self.flat
        if self.hot is not None:
            corrected[self.hot] = cv2.medianBlur(corrected, 3)[self.hot]
        return corrected


def measure_dark(frames: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Average frames taken without light.

    Parameters
    ----------
    frames : iterable of ndarray
        Each (H, W), in ADU.

    Returns
    -------
    dark : ndarray
        Their mean, (H, W) float32.
    hot : ndarray
        True where a pixel stands out of the mean, (H, W) bool.
    """
    dark = _mean(frames)  # (H, W)
    median = np.median(dark)
    sigma = _MAD_TO_SIGMA * np.median(np.abs(dark - median))
    # A quiet sensor's spread rounds to nothing: then an ADU is the measure.
    hot = dark > median + HOT_SIGMAS * max(float(sigma), 1.0 / HOT_SIGMAS)
    return dark, hot


def measure_flat(frames: Iterable[np.ndarray], dark: Calibration) -> np.ndarray:
    """Average frames of an evenly fluorescent field, relative to their mean.

    Parameters
    ----------
    frames : iterable of ndarray
        Each (H, W), in ADU.
    dark : Calibration
        With the dark frame that is taken off first.

    Returns
    -------
    ndarray
        Relative illumination, mean 1, (H, W) float32.

    Raises
    ------
    CalibrationError
        There is no light in the frames.
    """
    light = Calibration(dark.dark, dark.hot).apply(_mean(frames))  # (H, W)
    mean = float(light.mean())
    if mean <= 1.0:
        raise CalibrationError(
            f"the flat field's mean is {mean:.2f} ADU above dark; expected an evenly bright field; "
            "put in a fluorescent slide or turn the light on, and calibrate flat again"
        )
    return np.maximum(light / mean, MIN_FLAT).astype(np.float32)


def _mean(frames: Iterable[np.ndarray]) -> np.ndarray:
    total, count = None, 0
    for frame in frames:  # (H, W)
        total = frame.astype(np.float64) if total is None else total + frame
        count += 1
    if total is None:
        raise CalibrationError("no frame came; expected some; look whether the camera delivers")
    return (total / count).astype(np.float32)


def save_dark(folder: Path, dark: np.ndarray, hot: np.ndarray, notes: Mapping[str, object]) -> Path:
    """Write the dark frame and, as a second image, the map of hot pixels."""
    images = np.stack([dark, hot.astype(np.float32)])  # (2, H, W)
    return _save(folder / DARK_FILE, images, {**notes, "images": "dark in ADU, hot (1) or not (0)"})


def save_flat(folder: Path, flat: np.ndarray, notes: Mapping[str, object]) -> Path:
    """Write the flat field."""
    return _save(folder / FLAT_FILE, flat[np.newaxis], notes)


def _save(path: Path, images: np.ndarray, notes: Mapping[str, object]) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CalibrationError(
            f"{path.parent}: cannot be made ({error.strerror}); expected a folder for the "
            "calibration; choose another with --calibration"
        ) from error
    count, height, width = images.shape
    write_ometiff(path, images, (count, height, width), annotations=notes)
    return path


def load(folder: Path | None, dark: bool = True, flat: bool = True) -> Calibration:
    """Read what was measured.

    Parameters
    ----------
    folder : Path or None
        Where `save_dark` and `save_flat` wrote; None is no calibration.
    dark, flat : bool
        Which parts to take, where they are.

    Raises
    ------
    CalibrationError
        The folder is missing or holds neither, a file cannot be read, or their shapes differ.
    """
    if folder is None:
        return Calibration()
    paths = {"dark": folder / DARK_FILE, "flat": folder / FLAT_FILE}
    found = {name: path for name, path in paths.items() if path.is_file()}
    if not found:
        raise CalibrationError(
            f"{folder}: holds no calibration; expected {DARK_FILE} or {FLAT_FILE}; measure with "
            "`learn2sofi calibrate dark` and `flat`, or clear the setting calibration"
        )
    nothing: list[np.ndarray | None] = [None, None]
    dark_images = _read(found["dark"]) if dark and "dark" in found else nothing
    flat_images = _read(found["flat"]) if flat and "flat" in found else nothing
    measured = _agreeing(folder, dark_images, flat_images[0])
    if measured.dark is None:
        return measured
    notes = _notes(found["dark"])
    return replace(
        measured,
        dark_exposure_us=_number(notes.get("exposure_us")),
        dark_gain=_number(notes.get("gain")),
    )


def _agreeing(
    folder: Path, dark_images: list[np.ndarray | None], flat: np.ndarray | None
) -> Calibration:
    dark, hot = dark_images
    if dark is not None and flat is not None and dark.shape != flat.shape:
        raise CalibrationError(
            f"{folder}: the dark frame is {dark.shape} px, the flat field {flat.shape}; expected "
            "the same; calibrate both again"
        )
    return Calibration(dark, None if hot is None else hot > 0.5, flat)


def _read(path: Path) -> list[np.ndarray | None]:
    try:
        images = tifffile.imread(path)
    except (OSError, ValueError) as error:  # tifffile's own errors are ValueErrors
        raise CalibrationError(
            f"{path}: cannot be read ({error}); expected what `learn2sofi calibrate` wrote; "
            "calibrate again"
        ) from error
    return [np.asarray(image, np.float32) for image in images.reshape(-1, *images.shape[-2:])]


def _notes(path: Path) -> dict[str, str]:
    """Read the names and values that were written with the images."""
    with tifffile.TiffFile(path) as tiff:
        xml = tiff.ome_metadata or ""
    return dict(re.findall(r'<M K="([^"]+)">([^<]*)</M>', xml))


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)
