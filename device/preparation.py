"""What is done to a frame before anything is measured on it: calibration, then binning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from device.calibration import Calibration
from device.camera import Frame
from device.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Preparation:
    """Corrections of live frames; recordings of raw frames do without.

    Attributes
    ----------
    calibration : Calibration
        Dark frame, hot pixels and flat field.
    binning : int
        Side of the blocks of pixels that are averaged.
    sampling : Sampling or None
        Where the binning comes from; None where the optics are not known.
    """

    calibration: Calibration = field(default_factory=Calibration)
    binning: int = 1
    sampling: Sampling | None = None

    @property
    def psf_sigma_px(self) -> float | None:
        """Width of the PSF in px of the prepared frames; None where it is not known."""
        return None if self.sampling is None else self.sampling.psf_sigma_px

    def check(self, shape: tuple[int, int]) -> None:
        """Refuse frames of a shape that the calibration was not measured at; raises CameraError."""
        self.calibration.check(shape)

    def shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Tell height and width after binning."""
        return shape[0] // self.binning, shape[1] // self.binning

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Correct and bin an image, (H, W); the very same where there is nothing to do."""
        corrected = self.calibration.apply(image)
        if self.binning == 1:
            return corrected
        height, width = self.shape(image.shape)
        whole = corrected[: height * self.binning, : width * self.binning].astype(np.float32)
        # At a whole ratio, INTER_AREA is the mean of each block.
        return cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)

    def state(self, newest: Frame | None = None) -> dict[str, Any]:
        """Name what is done, for ``/api/state`` and the metadata of images.

        Parameters
        ----------
        newest : Frame, optional
            What the calibration is compared with.
        """
        sampling = self.sampling
        warnings = [
            None if sampling is None else sampling.warning,
            self.calibration.warning(newest),
        ]
        return {
            "calibration": self.calibration.applied,
            "binning": self.binning,
            "pixel_nm": sampling and sampling.pixel_nm,
            "psf_sigma_px": sampling and sampling.psf_sigma_px,
            "warning": "; ".join(filter(None, warnings)) or None,
        }
