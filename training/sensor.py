"""From photons to what the camera delivers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
    """

    quantum_efficiency: float = 0.7
    read_noise_e: float = 2.0
    gain_adu_per_e: float = 1.0
    offset_adu: float = 100.0
    bit_depth: int = 12

    def electrons(self, photons: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Detect photons, any shape, with shot noise; integers in float32."""
        return rng.poisson(self.quantum_efficiency * np.maximum(photons, 0)).astype(np.float32)

    def expose(self, photons: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Turn expected photons per pixel, any shape, into ADU, uint16."""
        electrons = self.electrons(photons, rng)
        electrons += rng.standard_normal(electrons.shape, np.float32) * self.read_noise_e
        adu = np.rint(self.gain_adu_per_e * electrons + self.offset_adu)
        return np.clip(adu, 0, 2**self.bit_depth - 1).astype(np.uint16)

    def adu_per_photon(self) -> float:
        """Expected ADU above offset for one photon."""
        return self.quantum_efficiency * self.gain_adu_per_e
