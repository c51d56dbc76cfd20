"""What makes a specimen's light fluctuate: its excitation, or its emitters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SpeckleExcitation:
    """Multi-mode excitation: an interference pattern that changes from frame to frame.

    Plane waves of random amplitude and phase, with directions within a cone around an axis, are
    superposed. A waveguide gives them one spatial frequency; through an objective's aperture all
    frequencies up to its edge come, evenly over its area (Goodman, Speckle Phenomena in Optics).
    Their phases walk at random (a fibre that is shaken, a coupling that is scanned).

    Attributes
    ----------
    modes : int
        Number of plane waves, 2 or more.
    grain_px : float
        Half the wavelength of the light in the sample plane in output px: the finest fringe's
        period.
    cone_rad : float
        Half angle of the cone of directions; pi is all round.
    phase_step_rad : float
        Standard deviation of each phase's step from frame to frame; 3 or more is a new pattern.
    contrast : float
        0 (even illumination) to 1 (full interference).
    fills_aperture : bool
        The waves come through an objective, not from a waveguide.
    """

    modes: int
    grain_px: float
    cone_rad: float
    phase_step_rad: float
    contrast: float
    fills_aperture: bool = False

    def patterns(self, n: int, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Intensity of `n` successive frames, (n, H, W) float32, of mean 1 over the ensemble."""
        angle = rng.uniform(-self.cone_rad, self.cone_rad, self.modes) + rng.uniform(0, 2 * np.pi)
        part = np.sqrt(rng.random(self.modes)) if self.fills_aperture else np.ones(self.modes)
        k = np.pi / self.grain_px * part  # (modes,), rad per px
        rows = np.exp(1j * np.outer(np.arange(shape[0]), k * np.sin(angle))).astype(np.complex64)
        columns = np.exp(1j * np.outer(k * np.cos(angle), np.arange(shape[1])))
        amplitude = rng.rayleigh(1, self.modes)
        amplitude /= np.sqrt(np.sum(amplitude**2))
        steps = rng.normal(0, self.phase_step_rad, (n, self.modes))
        steps[0] = rng.uniform(0, 2 * np.pi, self.modes)
        waves = (amplitude * np.exp(1j * np.cumsum(steps, axis=0))).astype(np.complex64)
        field = (rows[None] * waves[:, None, :]) @ columns.astype(np.complex64)  # (n, H, W)
        return 1 - self.contrast + self.contrast * (field.real**2 + field.imag**2)


@dataclass(frozen=True)
class BlinkingUnderSpeckle:
    """Both together: emitters that blink of themselves, excited unevenly."""

    blinking: Blinking
    excitation: SpeckleExcitation


@dataclass(frozen=True)
class Blinking:
    """Two-state emitters: on and off, as a continuous-time Markov chain seen by exposures.

    Attributes
    ----------
    on_fraction : float
        Part of the time that an emitter is on, above 0 and below 1.
    on_time_frames : float
        Mean duration of the on state in frames.
    bleach_time_frames : float
        Mean time to bleaching in frames; infinity for none.
    """

    on_fraction: float
    on_time_frames: float
    bleach_time_frames: float = np.inf

    SUBSTEPS = 3  # of an exposure: an emitter may be on for a part of a frame

    def brightness(self, n: int, emitters: int, rng: np.random.Generator) -> np.ndarray:
        """Part of each exposure that each emitter is on, (n, emitters) float32, 0 to 1."""
        rate_off = 1 / (self.on_time_frames * self.SUBSTEPS)
        rate_on = rate_off * self.on_fraction / (1 - self.on_fraction)
        decay = np.exp(-(rate_on + rate_off))  # exact transition over one substep
        on_to_on = self.on_fraction + (1 - self.on_fraction) * decay
        off_to_on = self.on_fraction * (1 - decay)
        on = rng.random(emitters) < self.on_fraction
        result = np.zeros((n, emitters), np.float32)
        for frame in range(n):
            for _ in range(self.SUBSTEPS):
                on = rng.random(emitters, np.float32) < np.where(on, on_to_on, off_to_on)
                result[frame] += on
        return result / self.SUBSTEPS * self._alive(n, emitters, rng)

    def survival(self, n: int) -> np.ndarray:
        """Part of the emitters that is not bleached at each of `n` frames, (n,) float32."""
        return np.exp(-np.arange(n) / self.bleach_time_frames).astype(np.float32)

    def _alive(self, n: int, emitters: int, rng: np.random.Generator) -> np.ndarray:
        if not np.isfinite(self.bleach_time_frames):
            return np.ones((1, 1), np.float32)
        death = rng.exponential(self.bleach_time_frames, emitters)
        return (np.arange(n)[:, None] < death[None, :]).astype(np.float32)
