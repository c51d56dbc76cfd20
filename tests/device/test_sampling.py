"""From the microscope's numbers to the PSF in px and the binning."""

from __future__ import annotations

import numpy as np
import pytest

from device.errors import UserError
from device.microscope import optics_of
from device.preparation import Preparation
from device.sampling import Optics, sample
from device.settings import Settings

RANGE_PX = (1.0, 2.6)


def _optics(magnification: float) -> Optics:
    return Optics(na=1.0, wavelength_nm=500, camera_pixel_um=1.55, magnification=magnification)


def test_the_psf_in_pixels():
    """Mutations: 0.51 (FWHM) for 0.21 (sigma); um for nm. 105 nm of sigma on pixels of 77.5 nm."""
    sampling = sample(_optics(20), RANGE_PX)
    assert sampling.pixel_nm == pytest.approx(77.5)
    assert sampling.psf_sigma_px == pytest.approx(1.3548, rel=1e-4)
    assert (sampling.binning, sampling.warning) == (1, None)


def test_the_smallest_binning_that_fits():
    """Mutations: binning left out; the largest taken; sigma not divided by it."""
    sampling = sample(_optics(100), RANGE_PX)  # 6.77 px unbinned, 3.39 binned by 2
    assert sampling.binning == 3
    assert sampling.psf_sigma_px == pytest.approx(2.258, rel=1e-3)
    assert sampling.pixel_nm == pytest.approx(46.5)


def test_green_quads_double_the_pixel():
    """Mutation: the sensor's pixel used where the frame's is twice as large."""
    assert sample(_optics(100), RANGE_PX, px_per_pixel=2).pixel_nm == pytest.approx(31 * 2)


@pytest.mark.parametrize(("magnification", "advice"), [(4, "more"), (10, "more")])
def test_undersampling_is_told(magnification, advice):
    """Mutation: no warning, or the wrong way round."""
    sampling = sample(_optics(magnification), RANGE_PX)
    assert sampling.binning == 1
    assert f"use {advice} magnification" in sampling.warning


def test_a_range_too_narrow_for_any_binning_is_told():
    """Mutation: only one side of the range looked at. 1.35 px: above 1.2, and 0.68 binned."""
    sampling = sample(_optics(20), (1.0, 1.2))
    assert "use less magnification" in sampling.warning


def test_binning_is_the_mean_of_blocks():
    """Mutations: sums or every second pixel; the rest of an odd size kept."""
    image = np.random.default_rng(2).integers(0, 4000, (37, 50)).astype(np.uint16)
    binned = Preparation(binning=3).apply(image)
    blocks = image[:36, :48].reshape(12, 3, 16, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(binned, blocks, rtol=1e-6)
    assert Preparation(binning=3).shape(image.shape) == binned.shape == (12, 16)


def test_optics_are_given_together(monkeypatch):
    """Mutation: a missing number taken for 1."""
    assert optics_of(Settings.load()) is None
    monkeypatch.setenv("LEARN2SOFI_NA", "1.2")
    with pytest.raises(UserError, match="wavelength_nm, camera_pixel_um, magnification"):
        optics_of(Settings.load())
