"""What the settings say of the microscope: its optics and its calibration."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from device import calibration
from device.camera import Camera
from device.errors import UserError
from device.preparation import Preparation
from device.sampling import Optics, Sampling, sample

if TYPE_CHECKING:
    from device.calibration import Calibration
    from device.settings import Settings

log = logging.getLogger(__name__)

_OPTICS = ("na", "wavelength_nm", "camera_pixel_um", "magnification")


@dataclass(frozen=True, slots=True)
class Microscope:
    """Optics and calibration.

    Attributes
    ----------
    optics : Optics or None
        None where the user did not give all four numbers.
    calibration : Calibration
        May hold nothing.
    """

    optics: Optics | None
    calibration: Calibration

    @classmethod
    def of(cls, settings: Settings) -> Microscope:
        """Take it from the settings.

        Raises
        ------
        UserError
            The optics are given in part, or the calibration cannot be read.
        """
        loaded = calibration.load(settings.calibration, settings.dark, settings.flat)
        return cls(optics_of(settings), loaded)

    def sampling(self, psf_range_px: tuple[float, float], camera: Camera) -> Sampling | None:
        """Sample the PSF with a camera that is open; None where the optics are not known."""
        if self.optics is None:
            return None
        return sample(self.optics, psf_range_px, getattr(camera, "px_per_pixel", 1))

    def prepare(self, psf_range_px: tuple[float, float], camera: Camera) -> Preparation:
        """Say what is to be done to the frames of a camera that is open."""
        sampling = self.sampling(psf_range_px, camera)
        if sampling is None:
            return Preparation(self.calibration)
        if sampling.warning:
            log.warning("sampling: %s", sampling.warning)
        return Preparation(self.calibration, sampling.binning, sampling)

    def pixel_size_um(self, camera: Camera) -> float | None:
        """Side of a frame's pixel in the sample plane in um, unbinned; None where not known."""
        if self.optics is None:
            return None
        return self.optics.pixel_nm * getattr(camera, "px_per_pixel", 1) / 1000

    def notes(self, camera: Camera) -> dict[str, Any]:
        """Numbers for the metadata of recordings; the PSF's width in px is of unbinned frames."""
        optics, pixel_um = self.optics, self.pixel_size_um(camera)
        if optics is None or pixel_um is None:
            return {}
        sigma_nm = optics.psf_sigma_nm
        widths = {"psf_sigma_nm": sigma_nm, "psf_sigma_px": sigma_nm / (1000 * pixel_um)}
        return {**{name: getattr(optics, name) for name in _OPTICS}, **widths}


def optics_of(settings: Settings) -> Optics | None:
    """Take the optics from the settings; None where none of the four numbers is given.

    Raises
    ------
    UserError
        Some are missing.
    """
    numbers = {name: getattr(settings, name) for name in _OPTICS}
    missing = [name for name, value in numbers.items() if value is None]
    if len(missing) == len(_OPTICS):
        return None
    if missing:
        raise UserError(
            f"the PSF's width follows from {', '.join(_OPTICS)} together; expected all four; add "
            f"{', '.join(missing)}"
        )
    return Optics(**numbers)
