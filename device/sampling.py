"""How the microscope samples its PSF, and which binning suits the model."""

from __future__ import annotations

from dataclasses import dataclass

MAX_BINNING = 16
AIRY_SIGMA = 0.21  # of the Gaussian closest to a widefield PSF, in wavelengths over NA


@dataclass(frozen=True, slots=True)
class Optics:
    """The microscope's numbers.

    Attributes
    ----------
    na : float
        Numerical aperture of the objective.
    wavelength_nm : float
        Wavelength of the emission in nm.
    camera_pixel_um : float
        Side of the sensor's pixel in um.
    magnification : float
        From the sample to the sensor.
    """

    na: float
    wavelength_nm: float
    camera_pixel_um: float
    magnification: float

    @property
    def pixel_nm(self) -> float:
        """Side of a sensor's pixel in the sample plane in nm."""
        return 1000 * self.camera_pixel_um / self.magnification

    @property
    def psf_sigma_nm(self) -> float:
        """Width of the Gaussian closest to a widefield PSF, in nm: sigma = 0.21 wavelength / NA.

        Zhang, Zerubia and Olivo-Marin, Applied Optics 46, 2007.
        """
        return AIRY_SIGMA * self.wavelength_nm / self.na


@dataclass(frozen=True, slots=True)
class Sampling:
    """What the model is given, after binning.

    Attributes
    ----------
    pixel_nm : float
        Side of a binned pixel in the sample plane in nm.
    psf_sigma_px : float
        Width of the PSF in binned px.
    binning : int
        Side of the blocks of frame px that are averaged.
    warning : str or None
        One sentence, where no binning brings the PSF into the model's range.
    """

    pixel_nm: float
    psf_sigma_px: float
    binning: int
    warning: str | None = None


def sample(optics: Optics, psf_range_px: tuple[float, float], px_per_pixel: float = 1) -> Sampling:
    """Choose the smallest binning that brings the PSF into the range the model was trained for.

    Parameters
    ----------
    optics : Optics
        The microscope.
    psf_range_px : tuple of float
        Smallest and largest sigma that the model was trained for, in px.
    px_per_pixel : float
        Sensor px along a side of a frame's pixel: the mode's binning, and 2 for the green px of a
        Bayer sensor's quads.

    Returns
    -------
    Sampling
        With a warning and the nearest binning where none is right.
    """
    low, high = psf_range_px
    pixel_nm = optics.pixel_nm * px_per_pixel
    sigma_px = optics.psf_sigma_nm / pixel_nm
    for binning in range(1, MAX_BINNING + 1):
        if low <= sigma_px / binning <= high:
            return Sampling(pixel_nm * binning, sigma_px / binning, binning)
    binning = max(1, min(MAX_BINNING, round(sigma_px / high)))
    advice = "more" if sigma_px < low else "less"
    warning = (
        f"the PSF is {sigma_px / binning:.2f} px wide (sigma) where the model was trained for "
        f"{low:g} to {high:g}, and no binning mends it; expected a sampling of "
        f"{optics.psf_sigma_nm / high:.0f} to {optics.psf_sigma_nm / low:.0f} nm a pixel instead "
        f"of {pixel_nm:.0f}; use {advice} magnification"
    )
    return Sampling(pixel_nm * binning, sigma_px / binning, binning, warning)
