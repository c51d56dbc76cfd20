"""Fisher information of two emitters: what frames, or their mean, can tell of their distance.

Two emitters, or two spots of several emitters each, lie on one row behind a Gaussian PSF that is
integrated over camera pixels. Unknown are their distance, their centre along the row, and the
brightness of each; PSF, background and noise are known. The smallest standard deviation of any
unbiased estimate of the distance is
``sqrt(inv(I)[0, 0])`` with the Fisher information I (Cramer-Rao: Kay, Fundamentals of Statistical
Signal Processing, 1993, section 3.7; for two emitters: Ram, Ward and Ober, PNAS 103, 4457, 2006).

Read noise is a variance added to that of the photons: counts plus that variance are taken as
Poisson-distributed (Huang et al., Nature Methods 10, 653, 2013), in all that follows. So a pixel of
expectation mu, noise variance included, adds ``(grad mu)(grad mu)^T / mu`` to the information.

The order of the parameters is everywhere: distance, centre (px), brightness of the first and of the
second (photoelectrons per frame when on).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import erf, j1, logsumexp
from scipy.stats import binom

from device.sampling import AIRY_SIGMA

ROWS, COLUMNS = 13, 17  # px; the row of the emitters is in the middle
RARE = 1e-6  # states of less probability are left out


@dataclass(frozen=True, slots=True)
class Pair:
    """Two emitters, and how they are seen.

    Attributes
    ----------
    distance_px, centre_px : float
        Parameters; the field's middle is 0.
    first_e, second_e : float
        Parameters: photoelectrons per frame when on.
    floor_e : float
        Background and variance of the read noise per pixel and frame, photoelectrons; above 0.
    psf_sigma_px : float
        Standard deviation of the PSF.
    """

    distance_px: float
    centre_px: float
    first_e: float
    second_e: float
    floor_e: float
    psf_sigma_px: float

    @property
    def brightness_e(self) -> np.ndarray:
        """Both brightnesses, (2,)."""
        return np.array([self.first_e, self.second_e])

    def basis(self) -> np.ndarray:
        """What every gradient is made of, (4, P).

        The slopes of both spots, by the emitter's place along the row, then both spots: the part of
        an emitter's light that falls on each pixel.
        """
        rows, edges = (np.arange(count + 1) - count / 2 for count in (ROWS, COLUMNS))
        places = self.centre_px + np.array([-0.5, 0.5]) * self.distance_px
        from_place = (edges - places[:, None]) / self.psf_sigma_px  # (2, C + 1)
        density = np.exp(-0.5 * from_place**2) / (np.sqrt(2 * np.pi) * self.psf_sigma_px)
        along = np.concatenate([-np.diff(density), _shares(from_place)])  # (4, C)
        across = _shares(rows / self.psf_sigma_px)  # (R,)
        return (across[:, None] * along[:, None, :]).reshape(4, -1)

    def expectation(self, relative: np.ndarray) -> np.ndarray:
        """Photoelectrons per pixel, noise variance included, at relative brightness (n, 2), (n, P).

        1 is an emitter that is on for the whole frame, or excited as on average.
        """
        return self.floor_e + (relative * self.brightness_e) @ self.basis()[2:]

    def combination(self, relative: np.ndarray) -> np.ndarray:
        """Gradient of the expectation by the parameters in terms of the basis, (n, 4, 4)."""
        light = relative * self.brightness_e  # (n, 2)
        combination = np.zeros((len(relative), 4, 4))
        combination[:, 0, :2] = light * (-0.5, 0.5)
        combination[:, 1, :2] = light
        combination[:, 2, 2], combination[:, 3, 3] = relative[:, 0], relative[:, 1]
        return combination


@dataclass(frozen=True)
class Blinking:
    """Two places with so many emitters each, on or off independently in every frame.

    Attributes
    ----------
    on_fraction : float
        Part of the frames in which an emitter is on, above 0 and up to 1.
    members : int
        Emitters at each of the two places, all as bright: each place's brightness is that of all.
    """

    on_fraction: float
    members: int = 1

    @cached_property
    def _all(self) -> tuple[np.ndarray, np.ndarray]:
        number = np.arange(self.members + 1)
        one = binom.pmf(number, self.members, self.on_fraction)  # (M + 1,)
        weights = np.outer(one, one).ravel()
        pairs = np.stack(np.meshgrid(number, number, indexing="ij"), axis=-1).reshape(-1, 2)
        return pairs[weights > RARE] / self.members, weights[weights > RARE]

    @property
    def states(self) -> np.ndarray:
        """Part of the emitters that is on at each of the two places, (S, 2)."""
        return self._all[0]

    @property
    def weights(self) -> np.ndarray:
        """Probability of each state, (S,)."""
        return self._all[1]


def _shares(edges: np.ndarray) -> np.ndarray:
    """Part of a Gaussian of standard deviation 1 between neighbouring edges, (..., M)."""
    return 0.5 * np.diff(erf(edges / np.sqrt(2)))


# -------------------------------------------------------------------------------------- information


def information(pair: Pair, relative: np.ndarray) -> np.ndarray:
    """Information of one frame at each known relative brightness, (n, 2) to (n, 4, 4)."""
    basis = pair.basis()
    products = (basis[:, None] * basis[None]).reshape(16, -1)  # (16, P)
    of_basis = ((1 / pair.expectation(relative)) @ products.T).reshape(-1, 4, 4)
    combination = pair.combination(relative)
    return combination @ of_basis @ combination.swapaxes(1, 2)


def from_mean(pair: Pair, on_fraction: float) -> np.ndarray:
    """Information of the mean image per frame that is averaged, (4, 4).

    The mean shows the product of brightness and on-time alone; as the brightness is a parameter,
    nothing is lost by taking the on-time for known. It is taken at its expectation.
    """
    return information(pair, np.full((1, 2), on_fraction))[0]


def from_known_states(pair: Pair, blinking: Blinking) -> np.ndarray:
    """Information of a frame of blinking emitters, if it were told which of them are on, (4, 4)."""
    return np.einsum("s,sij->ij", blinking.weights, information(pair, blinking.states))


def _log_parts(pair: Pair, counts: np.ndarray, blinking: Blinking) -> np.ndarray:
    """Log of each state's probability together with the counts, less what has no parameter."""
    expected = pair.expectation(blinking.states)  # (S, P)
    return np.log(blinking.weights) + counts @ np.log(expected).T - expected.sum(axis=1)  # (n, S)


def log_likelihood(pair: Pair, counts: np.ndarray, blinking: Blinking) -> np.ndarray:
    """Log-likelihood of frames whose states are unknown, but for a constant, (n, P) to (n,)."""
    return np.asarray(logsumexp(_log_parts(pair, counts, blinking), axis=1))


def scores(pair: Pair, counts: np.ndarray, blinking: Blinking) -> np.ndarray:
    """Gradient of `log_likelihood` by the parameters, (n, 4).

    That of a mixture is the mean of its states' gradients, by what the counts say of the state.
    """
    states = blinking.states
    gradients = pair.combination(states) @ pair.basis()  # (S, 4, P)
    over = (gradients / pair.expectation(states)[:, None]).reshape(-1, gradients.shape[-1])
    of_states = (counts @ over.T).reshape(len(counts), -1, 4) - gradients.sum(axis=2)  # (n, S, 4)
    parts = _log_parts(pair, counts, blinking)
    posterior = np.exp(parts - logsumexp(parts, axis=1, keepdims=True))  # (n, S)
    return np.einsum("ns,nsi->ni", posterior, of_states)


def from_unknown_states(
    pair: Pair, blinking: Blinking, samples: int, rng: np.random.Generator
) -> np.ndarray:
    """Estimate the information of a frame whose states nobody tells, the on-fraction known.

    The expectation of ``score score^T`` is taken over so many simulated frames of each state, each
    state by its probability: those in which all are off, nearly all at a low on-fraction, would
    otherwise be nearly all that is simulated.

    Returns
    -------
    ndarray
        (4, 4); other calls with the same generator tell how far it is off.
    """
    found = np.zeros((4, 4))
    expectations = pair.expectation(blinking.states)  # (S, P)
    for expected, weight in zip(expectations, blinking.weights, strict=True):
        counts = rng.poisson(expected, (samples, expected.size)).astype(np.float64)
        score = scores(pair, counts, blinking)
        found += weight * score.T @ score / samples
    return found


# ------------------------------------------------------------------------------------------ speckle


def excitation(pair: Pair, aperture: float, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the speckle's intensity at both emitters, of mean 1, (n, 2).

    Fully developed speckle through a round aperture: the field is complex Gaussian, its correlation
    over a distance r is ``2 J1(k r) / (k r)`` (Goodman, Speckle Phenomena in Optics). k is
    `aperture` times the detection's cutoff ``2 pi NA / wavelength``, sigma = 0.21 wavelength / NA.
    """
    at = max(2 * np.pi * AIRY_SIGMA / pair.psf_sigma_px * aperture * pair.distance_px, 1e-9)
    correlation = 2 * j1(at) / at
    real = rng.normal(0, np.sqrt(0.5), (samples, 2, 2))
    first, other = (real @ (1, 1j)).T  # (n,) each
    second = correlation * first + np.sqrt(1 - correlation**2) * other
    return np.abs(np.stack([first, second], axis=1)) ** 2


def from_known_excitation(pair: Pair, relative: np.ndarray) -> np.ndarray:
    """Information of a frame under speckle, if the excitation, (n, 2), were told, (4, 4)."""
    return np.asarray(information(pair, relative).mean(axis=0))


def from_unknown_excitation(pair: Pair, relative: np.ndarray) -> np.ndarray:
    """Information on distance and centre of a frame whose excitation is any, (2, 2).

    The brightness of both emitters is free in each frame: of each frame's information its Schur
    complement is left. Nothing is made of how speckle is distributed.
    """
    whole = information(pair, relative)  # (n, 4, 4)
    places = whole[:, :2, :2]
    mixed = whole[:, :2, 2:] / relative[:, None]  # by the brightness as it is in the frame
    lights = whole[:, 2:, 2:] / (relative[:, :, None] * relative[:, None, :])
    left = places - mixed @ np.linalg.solve(lights, mixed.swapaxes(1, 2))
    return np.asarray(left.mean(axis=0))


def distance_error_px(information: np.ndarray, frames: int) -> float:
    """Cramer-Rao bound of the distance from so many frames of this information each.

    Infinity where the information does not suffice for an estimate at all.
    """
    scale = np.sqrt(np.diag(information))
    if not np.all(scale > 0):
        return float("inf")
    relative = information / np.outer(scale, scale)  # (k, k), 1 on the diagonal
    if np.linalg.eigvalsh(relative)[0] < 1e-12:
        return float("inf")
    variance = np.linalg.inv(relative)[0, 0] / scale[0] ** 2
    return float(np.sqrt(variance / frames))
