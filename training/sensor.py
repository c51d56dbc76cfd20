"""From photons to what the camera delivers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from training.processing import Processing


@dataclass(frozen=True)
class Sensor:
    """A linear camera.

    Attributes
    ----------
    quantum_efficiency : float
        Photoelectrons per photon, 0 to 1.
    read_noise_e : float
        Standard deviation of the read noise in photoelectrons.
    gain_adu_per_e : float
        ADU per photoelectron.
    offset_adu : float
        Level of a dark pixel in ADU.
    bit_depth : int
        Bits of the converter; values are rounded and clipped to 0 .. 2**bits - 1.
    response_spread : float
        Standard deviation of the pixels' sensitivity around 1 (photo-response non-uniformity).
    hot_pixel_fraction : float
        Part of the pixels that are hot.
    hot_pixel_e : float
        Mean dark signal of the hot pixels in photoelectrons per frame, exponentially distributed.
    column_offset_e : float
        Standard deviation of the columns' offsets in photoelectrons: each has an amplifier of its
        own, and even and odd ones differ as much.
    processing : Processing
        What the camera does to the frame afterwards.
    """

    quantum_efficiency: float = 0.7
    read_noise_e: float = 2.0
    gain_adu_per_e: float = 1.0
    offset_adu: float = 100.0
    bit_depth: int = 12
    response_spread: float = 0.0
    hot_pixel_fraction: float = 0.0
    hot_pixel_e: float = 0.0
    column_offset_e: float = 0.0
    processing: Processing = field(default_factory=Processing)

    def electrons(self, photons: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Detect photons, any shape, with shot noise; integers in float32."""
        return rng.poisson(self.quantum_efficiency * np.maximum(photons, 0)).astype(np.float32)

    def expose(self, photons: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Turn expected photons per pixel, (..., H, W), into ADU, uint16.

        Hot pixels, sensitivities and columns are drawn once: the same in all of these frames.
        """
        response, dark = self._fixed_pattern(photons.shape[-2:], rng)  # (H, W) each
        electrons = self.electrons(photons * response + dark, rng)
        electrons += rng.standard_normal(electrons.shape, np.float32) * self.read_noise_e
        electrons += self._columns(photons.shape[-1], rng)
        analogue = self.gain_adu_per_e * electrons + self.offset_adu
        adu = np.rint(self.processing.interpolate(analogue))
        converted = np.clip(adu, 0, 2**self.bit_depth - 1).astype(np.uint16)
        return self.processing.compress(converted)

    def _fixed_pattern(
        self, shape: tuple[int, ...], rng: np.random.Generator
    ) -> tuple[np.ndarray | float, np.ndarray | float]:
        """Sensitivity, around 1, and dark signal in photons of every pixel, (H, W)."""
        response: np.ndarray | float = 1.0
        dark: np.ndarray | float = 0.0
        if self.response_spread > 0:
            response = np.maximum(rng.normal(1, self.response_spread, shape), 0)
        if self.hot_pixel_fraction > 0:
            hot = rng.random(shape) < self.hot_pixel_fraction
            dark = hot * rng.exponential(self.hot_pixel_e / self.quantum_efficiency, shape)
        return response, dark

    def _columns(self, width: int, rng: np.random.Generator) -> np.ndarray | float:
        """Offset of every column in photoelectrons, (W,)."""
        if self.column_offset_e == 0:
            return 0.0
        own, even, odd = rng.normal(0, self.column_offset_e, (3, width))
        return (own + np.where(np.arange(width) % 2, odd[0], even[0])).astype(np.float32)

    def adu_per_photon(self) -> float:
        """Expected ADU above offset for one photon."""
        return self.quantum_efficiency * self.gain_adu_per_e
