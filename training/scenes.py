"""Specimens that stay, under a fluctuation without end: frames made one by one, nothing kept.

What is shown does not bleach and does not move, so that a stream of any length has one truth. The
parts are the forward model's own. Fluctuation is drawn `CHUNK` frames at a time: from one chunk to
the next it forgets its phase, which is one frame in sixty of a process that forgets within frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from training.fluctuation import Blinking, SpeckleExcitation
from training.optics import UPSAMPLING, image_formation, target_image
from training.sensor import Sensor
from training.specimen import FAMILIES, Grid

CHUNK = 60
EMITTERS = 3000
PHOTONS = 150.0  # on the 99.9th percentile pixel of the mean image, per frame
BACKGROUND_PHOTONS = 15.0
PSF_SIGMA_PX = 1.4
MARGIN_PX = 5
SENSOR = Sensor()
MIN_COVERED = 0.03  # part of the field that a specimen has to fill to be worth looking at
COVERED_LEVEL = 0.1

KINDS: dict[str, tuple[str, Blinking | SpeckleExcitation]] = {
    "filaments, blinking": ("filaments", Blinking(on_fraction=0.1, on_time_frames=1.5)),
    "rings, speckle": ("rings", SpeckleExcitation(16, 4.0, np.pi, 4.0, 0.9)),
    "tissue, blinking": ("tissue", Blinking(on_fraction=0.3, on_time_frames=1.5)),
    "rods, speckle": ("filled_rods", SpeckleExcitation(16, 4.0, np.pi, 4.0, 0.9)),
}
"""Name to family and fluctuation."""


@dataclass(frozen=True)
class Scene:
    """A specimen under a microscope.

    Attributes
    ----------
    brightness : ndarray
        Mean emission of each output pixel, margin included, (2(H+2m), 2(W+2m)).
    fluctuation : Blinking or SpeckleExcitation
        How it fluctuates; never bleaching.
    site, strength : ndarray
        Of blinking emitters: flat index into `brightness`, and brightness when on, (n,).
    photons : float
        Photons per unit of the brightness's image.
    """

    brightness: np.ndarray
    fluctuation: Blinking | SpeckleExcitation
    site: np.ndarray
    strength: np.ndarray
    photons: float

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a frame in camera px."""
        height, width = (n // UPSAMPLING - 2 * MARGIN_PX for n in self.brightness.shape)
        return height, width

    def truth(self) -> np.ndarray:
        """Target image, (2H, 2W) float32, ADU above background per camera px."""
        unit = self.photons * SENSOR.adu_per_photon()
        return (target_image(self.brightness, MARGIN_PX) * unit).astype(np.float32)

    def moved(self, right_px: int) -> Scene:
        """Move the specimen by whole camera px; what leaves the field comes in on the left."""
        shift, width = UPSAMPLING * right_px, self.brightness.shape[1]
        row, column = np.divmod(self.site, width)
        site = row * width + (column + shift) % width
        return replace(self, brightness=np.roll(self.brightness, shift, axis=1), site=site)

    def frames(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Expose frames without end, each (H, W) uint16 in ADU."""
        while True:
            emission = self._emission(rng)  # (CHUNK, H', W')
            for light in image_formation(emission, PSF_SIGMA_PX, MARGIN_PX, self.shape):
                yield SENSOR.expose(self.photons * light + BACKGROUND_PHOTONS, rng)

    def _emission(self, rng: np.random.Generator) -> np.ndarray:
        shape = self.brightness.shape
        if isinstance(self.fluctuation, SpeckleExcitation):
            return self.brightness * self.fluctuation.patterns(CHUNK, shape, rng)
        on = self.fluctuation.brightness(CHUNK, len(self.site), rng) * self.strength  # (CHUNK, n)
        flat = [np.bincount(self.site, each, self.brightness.size) for each in on]
        return np.stack(flat).reshape(CHUNK, *shape).astype(np.float32)


def draw_scene(kind: str, size_px: int, rng: np.random.Generator) -> Scene:
    """Draw a specimen of one of `KINDS` that fills some of a square field."""
    family, fluctuation = KINDS[kind]
    density = _specimen(family, size_px, rng)  # (H', W')
    site, strength = np.zeros(0, np.int64), np.zeros(0, np.float32)
    brightness = density
    if isinstance(fluctuation, Blinking):
        probability = density.ravel() / density.sum(dtype=np.float64)
        site = rng.choice(density.size, EMITTERS, p=probability / probability.sum())
        strength = rng.lognormal(0, 0.3, EMITTERS).astype(np.float32)
        mean = np.bincount(site, strength * fluctuation.on_fraction, density.size)
        brightness = mean.reshape(density.shape).astype(np.float32)
    light = image_formation(brightness, PSF_SIGMA_PX, MARGIN_PX, (size_px, size_px))
    photons = PHOTONS / float(np.percentile(light, 99.9))
    return Scene(brightness, fluctuation, site, strength, photons)


def _specimen(family: str, size_px: int, rng: np.random.Generator) -> np.ndarray:
    """Draw until the field is not next to empty."""
    side = UPSAMPLING * (size_px + 2 * MARGIN_PX)
    while True:
        density = FAMILIES[family](Grid(side, side), rng).astype(np.float64)
        image = target_image(density, MARGIN_PX)
        if np.mean(image > COVERED_LEVEL * image.max()) > MIN_COVERED:
            return density
