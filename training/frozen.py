"""The frozen test set: how every method is judged.

A code path of its own: it shares nothing with the forward model of the training, so that a mistake
there shows here as a bad score. Emitters have continuous positions; camera pixels and the target's
pixels are integrated analytically::

    frame  = Ey^T diag(brightness(t)) Ex     Ey[n, i]: emitter n's part in row i, from erf
    target = 4 Fy^T diag(mean brightness) Fx     the same on the output grid, sigma 0.8 output px

**photons** is the expected number of signal photons per frame, before the quantum efficiency, in
the pixel at the 99.9th percentile of the expected mean image: averaged over the fluctuation's
ensemble, background not counted. The target is in ADU per *input* pixel (4 times the ADU of an
output pixel), so that it compares with the frames' counts above background. Its brightness is the
ensemble's mean: no fluctuation, no background.

No choice is ever made on this set. It is frozen: a change of anything here or in
`training.frozen_specimens` needs a new `VERSION`, and the old scores beside the new ones.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.special import erf

from training import frozen_specimens
from training.frozen_specimens import CONTINUOUS, FIELD_PX, THIN, UNSEEN_IN_TRAINING, Emitters

logger = logging.getLogger(__name__)

VERSION = 1
FRAMES = 30
MAX_FRAMES = 120
UPSAMPLING = 2
TARGET_SIGMA_OUTPUT_PX = 0.8
DEFAULT_CACHE = Path("out/frozen")

Kind = Literal["thin", "continuous"]
Fluctuation = Literal["blinking", "speckle"]

PHOTONS = (25.0, 60.0, 150.0, 400.0)
# Four stacks each, one for each number of photons.
THIN_FAMILIES = (
    "filaments",
    "filaments",
    "rings",
    "clusters",
    "parallel_lines",
    "crossing_lines",
    "siemens_spokes",
    "branching_tree",
)
CONTINUOUS_FAMILIES = ("bacteria", "cell_bodies", "membranes", "perforated_sheet")
# Three of eight are below 8 %. In this order every number of photons meets sparse and dense ones.
ON_FRACTIONS = (0.03, 0.25, 0.55, 0.05, 0.40, 0.07, 0.15, 0.10)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one frozen stack is made of.

    Attributes
    ----------
    stack_id : int
        Number of the stack, and its seed.
    kind, family, fluctuation : str
        Kind of structure, specimen family, and what makes it fluctuate.
    photons : float
        Expected photons per frame; defined in the module's text.
    psf_sigma_px : float
        Standard deviation of the Gaussian PSF in input px.
    on_fraction : float or None
        Part of the time for which an emitter is on; None for speckle.
    """

    stack_id: int
    kind: Kind
    family: str
    fluctuation: Fluctuation
    photons: float
    psf_sigma_px: float
    on_fraction: float | None

    @property
    def unseen(self) -> bool:
        """Whether training never sees this specimen family."""
        return self.family in UNSEEN_IN_TRAINING

    @property
    def name(self) -> str:
        """Short name, such as ``07-filaments-speckle``."""
        return f"{self.stack_id:02d}-{self.family}-{self.fluctuation}"


@dataclass(frozen=True, slots=True)
class FrozenStack:
    """One stack with its truth.

    Attributes
    ----------
    recipe : Recipe
        What it is made of.
    frames : ndarray
        Camera frames in ADU, (T, H, W), uint16.
    target : ndarray
        Emitters' brightness density on the output grid, (2H, 2W), float32, ADU per input px.
    """

    recipe: Recipe
    frames: np.ndarray
    target: np.ndarray


@dataclass(frozen=True, slots=True)
class Sensor:
    """A linear camera.

    Attributes
    ----------
    quantum_efficiency : float
        Electrons per photon, 0 to 1.
    read_noise_e : float
        Standard deviation of the read noise in electrons.
    gain_e_per_adu : float
        Electrons per ADU.
    offset_adu : float
        Mean of a dark frame in ADU.
    """

    quantum_efficiency: float
    read_noise_e: float
    gain_e_per_adu: float
    offset_adu: float

    @property
    def adu_per_photon(self) -> float:
        """Mean ADU that one photon gives."""
        return self.quantum_efficiency / self.gain_e_per_adu

    def expose(self, photons: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Turn expected photons (H, W) into a noisy frame (H, W), uint16."""
        electrons = rng.poisson(self.quantum_efficiency * photons).astype(np.float64)
        electrons += rng.normal(0.0, self.read_noise_e, photons.shape)
        adu = np.rint(electrons / self.gain_e_per_adu + self.offset_adu)
        return np.clip(adu, 0, np.iinfo(np.uint16).max).astype(np.uint16)


def _recipe(index: int, stack_id: int, kind: Kind, families: tuple[str, ...]) -> Recipe:
    """Lay out one kind: each family at every number of photons, both fluctuations in each."""
    count = len(families) * len(PHOTONS)
    block, level = divmod(index, len(PHOTONS))
    # Chessboard, so that each family and each number of photons has both fluctuations equally.
    blinking = (block + level) % 2 == 0
    low, high = (1.1, 1.7) if kind == "thin" else (1.3, 2.6)
    # 5 is prime to 32 and to 16: every sigma of an even scale comes once, in a mixed order.
    sigma = low + (high - low) * (5 * index % count) / (count - 1)
    turn = index // 2 + index // 16  # the second round is shifted by one
    on_fraction = ON_FRACTIONS[turn % len(ON_FRACTIONS)] if blinking else None
    return Recipe(
        stack_id=stack_id,
        kind=kind,
        family=families[block],
        fluctuation="blinking" if blinking else "speckle",
        photons=PHOTONS[level],
        psf_sigma_px=round(sigma, 4),
        on_fraction=on_fraction,
    )


def recipes() -> list[Recipe]:
    """List all 48 stacks: 32 thin ones, then 16 continuous ones, `stack_id` from 0."""
    thin = len(THIN_FAMILIES) * len(PHOTONS)
    continuous = len(CONTINUOUS_FAMILIES) * len(PHOTONS)
    return [_recipe(i, i, "thin", THIN_FAMILIES) for i in range(thin)] + [
        _recipe(i, thin + i, "continuous", CONTINUOUS_FAMILIES) for i in range(continuous)
    ]


def _rng(stack_id: int, *purpose: int) -> np.random.Generator:
    """Independent generator for one stack and one purpose."""
    return np.random.Generator(np.random.PCG64([20_010 + VERSION, stack_id, *purpose]))


def _shares(at_px: np.ndarray, sigma_px: float, edges_px: np.ndarray) -> np.ndarray:
    """Part of each emitter's Gaussian between neighbouring edges, (N, len(edges) - 1)."""
    below = erf((edges_px[None, :] - at_px[:, None]) / (np.sqrt(2.0) * sigma_px))
    return 0.5 * np.diff(below, axis=1)


def integrate(
    emitters: Emitters, amplitudes: np.ndarray, sigma_px: float, edges_px: np.ndarray
) -> np.ndarray:
    """Integrate the emitters' Gaussians over square pixels.

    Parameters
    ----------
    emitters : Emitters
        Positions in input px; the brightness is not used.
    amplitudes : ndarray
        Photons that each emitter sends in each frame, (N, T).
    sigma_px : float
        Standard deviation of the Gaussian in input px.
    edges_px : ndarray
        Pixel edges along both axes in input px, (M + 1,), ascending.

    Returns
    -------
    ndarray
        Photons in each pixel, (T, M, M).
    """
    size, frames = len(edges_px) - 1, amplitudes.shape[1]
    images = np.zeros((frames, size, size))
    order = np.argsort(emitters.y_px, kind="stable")
    # Sorted by row, a block of emitters reaches few rows: 7 sigma hold all but 1e-11 of the light.
    for block in np.array_split(order, max(1, len(order) // 1024)):
        y, reach = emitters.y_px[block], 7.0 * sigma_px
        low = max(0, int(np.searchsorted(edges_px, y[0] - reach)) - 1)
        high = min(size, int(np.searchsorted(edges_px, y[-1] + reach)) + 1)
        if low >= high:
            continue
        rows = _shares(y, sigma_px, edges_px[low : high + 1])  # (n, R)
        columns = _shares(emitters.x_px[block], sigma_px, edges_px)  # (n, M)
        for frame in range(frames):
            images[frame, low:high] += (rows * amplitudes[block, frame, None]).T @ columns
    return images


def _input_edges() -> np.ndarray:
    return np.arange(FIELD_PX + 1) - 0.5  # (H + 1,)


def _output_edges() -> np.ndarray:
    """Edges of the output pixels in input px: pixel j is centred at (j + 0.5) / 2 - 0.5."""
    return np.arange(UPSAMPLING * FIELD_PX + 1) / UPSAMPLING - 0.5  # (2H + 1,)


def blinking(
    rng: np.random.Generator, count: int, on_fraction: float, on_time_frames: float
) -> np.ndarray:
    """Simulate two-state emitters in continuous time.

    On- and off-times are exponentially distributed, the start is drawn from equilibrium, and an
    emitter that is on for part of a frame counts for that part.

    Parameters
    ----------
    rng : Generator
        Source of chance.
    count : int
        Number of emitters, N.
    on_fraction : float
        Part of the time spent on, 0 to 1.
    on_time_frames : float
        Mean length of an on-time in frames.

    Returns
    -------
    ndarray
        Part of each frame spent on over `on_fraction`: mean 1, (N, MAX_FRAMES).
    """
    off_time_frames = on_time_frames * (1.0 - on_fraction) / on_fraction
    cycles = MAX_FRAMES / (on_time_frames + off_time_frames)
    pairs = int(np.ceil(cycles + 8.0 * np.sqrt(cycles) + 8.0))  # more would be needed in 1e-12
    starts_on = rng.random(count) < on_fraction  # (N,)
    lasts = rng.exponential(1.0, (count, pairs, 2)) * (on_time_frames, off_time_frames)
    lasts[~starts_on, 0, 0] = 0.0
    switches = np.cumsum(lasts.reshape(count, -1), axis=1)  # (N, 2 pairs)
    on_so_far = np.repeat(np.cumsum(lasts[:, :, 0], axis=1), 2, axis=1)  # (N, 2 pairs)
    zero = np.zeros((count, 1))
    knots, values = np.hstack([zero, switches]), np.hstack([zero, on_so_far])
    # All emitters one after another on one time axis, so that one call interpolates them all.
    origins = np.concatenate([[0.0], np.cumsum(knots[:-1, -1] + 1.0)])[:, None]  # (N, 1)
    queries = origins + np.arange(MAX_FRAMES + 1.0)  # (N, T + 1)
    on_until = np.interp(queries, (origins + knots).ravel(), values.ravel())
    return np.diff(on_until, axis=1) / on_fraction


def speckle(rng: np.random.Generator, emitters: Emitters, psf_sigma_px: float) -> np.ndarray:
    """Illuminate with the interference of plane waves within a cone.

    The waves' phases are drawn anew for each frame, or (one stack in three) walk at random. The
    cone is 0.5 to 0.95 of the detection aperture, sigma = 0.21 wavelength / NA.

    Returns
    -------
    ndarray
        Excitation at each emitter over its ensemble mean, (N, MAX_FRAMES).
    """
    modes = int(rng.integers(16, 48))
    cutoff = 2 * np.pi * 0.21 / psf_sigma_px * rng.uniform(0.5, 0.95)  # rad per px
    radius, angle = cutoff * np.sqrt(rng.random(modes)), rng.uniform(0, 2 * np.pi, modes)
    phases = rng.uniform(0, 2 * np.pi, (modes, MAX_FRAMES))
    walks = np.cumsum(rng.normal(0.0, 1.2, (modes, MAX_FRAMES)), axis=1) + phases[:, :1]
    phases = walks if rng.random() < 1 / 3 else phases  # (M, T)
    contrast = rng.uniform(0.6, 1.0)
    along = np.outer(emitters.y_px, radius * np.sin(angle))
    along += np.outer(emitters.x_px, radius * np.cos(angle))  # (N, M)
    field = np.exp(1j * along) @ np.exp(1j * phases) / np.sqrt(modes)  # (N, T)
    return 1.0 - contrast + contrast * np.abs(field) ** 2


def _fluctuation(recipe: Recipe, emitters: Emitters) -> np.ndarray:
    """Relative brightness of each emitter in each frame, mean 1, (N, MAX_FRAMES)."""
    rng = _rng(recipe.stack_id, 2)
    if recipe.on_fraction is None:
        return speckle(rng, emitters, recipe.psf_sigma_px)
    on_time_frames = float(np.exp(rng.uniform(np.log(0.3), np.log(2.5))))
    return blinking(rng, len(emitters.y_px), recipe.on_fraction, on_time_frames)


def _sensor(rng: np.random.Generator) -> Sensor:
    return Sensor(
        quantum_efficiency=rng.uniform(0.6, 0.9),
        read_noise_e=rng.uniform(1.2, 4.0),
        gain_e_per_adu=rng.uniform(0.3, 1.2),
        offset_adu=rng.uniform(60.0, 200.0),
    )


def _background_photons(rng: np.random.Generator, photons: float) -> np.ndarray:
    """Level of 3 to 25 % of the signal, with a slope of up to a fifth of it, (H, W)."""
    level, tilt_y, tilt_x = photons * rng.uniform(0.03, 0.25), *rng.uniform(-0.1, 0.1, 2)
    ramp = np.linspace(-1.0, 1.0, FIELD_PX)
    return level * (1.0 + tilt_y * ramp[:, None] + tilt_x * ramp[None, :])


def _specimen(recipe: Recipe) -> Emitters:
    """Emitters whose brightness is in photons per frame, scaled to the recipe's number."""
    family = (THIN if recipe.kind == "thin" else CONTINUOUS)[recipe.family]
    emitters = family(_rng(recipe.stack_id, 1))
    mean = integrate(emitters, emitters.brightness[:, None], recipe.psf_sigma_px, _input_edges())[0]
    scale = recipe.photons / np.percentile(mean, 99.9)
    return Emitters(emitters.y_px, emitters.x_px, emitters.brightness * scale)


def target_of(emitters: Emitters) -> np.ndarray:
    """Brightness density on the output grid, sigma 0.8 output px, per input px, (2H, 2W)."""
    sigma_px = TARGET_SIGMA_OUTPUT_PX / UPSAMPLING
    image = integrate(emitters, emitters.brightness[:, None], sigma_px, _output_edges())[0]
    return UPSAMPLING**2 * image


def generate(recipe: Recipe, frames: int = FRAMES) -> FrozenStack:
    """Make one stack; the same recipe gives the same frames, and fewer frames are the first ones.

    Parameters
    ----------
    recipe : Recipe
        One of `recipes`.
    frames : int
        Number of frames T, 1 to `MAX_FRAMES`.

    Returns
    -------
    FrozenStack
        Frames (T, 128, 128) and target (256, 256).

    Raises
    ------
    ValueError
        `frames` is out of range.
    """
    if not 1 <= frames <= MAX_FRAMES:
        raise ValueError(f"{frames} frames asked for; a frozen stack has 1 to {MAX_FRAMES}.")
    emitters = _specimen(recipe)
    amplitudes = emitters.brightness[:, None] * _fluctuation(recipe, emitters)[:, :frames]
    signal = integrate(emitters, amplitudes, recipe.psf_sigma_px, _input_edges())  # (T, H, W)
    camera_rng = _rng(recipe.stack_id, 3)
    sensor, background = _sensor(camera_rng), _background_photons(camera_rng, recipe.photons)
    exposed = [
        sensor.expose(image + background, _rng(recipe.stack_id, 4, index))
        for index, image in enumerate(signal)
    ]
    target = sensor.adu_per_photon * target_of(emitters)
    return FrozenStack(recipe, np.stack(exposed), target.astype(np.float32))


def version_key() -> str:
    """Version and digest of the generator's source: what a cached stack was made by."""
    digest = hashlib.sha256()
    for source in (Path(__file__), Path(frozen_specimens.__file__)):
        digest.update(source.read_bytes())
    return f"v{VERSION}-{digest.hexdigest()[:12]}"


def load(recipe: Recipe, frames: int = FRAMES, cache: Path | None = DEFAULT_CACHE) -> FrozenStack:
    """Read a stack from the cache, or make it and put it there.

    Parameters
    ----------
    recipe, frames
        As in `generate`.
    cache : Path or None
        Folder of the cache; None makes the stack anew.

    Returns
    -------
    FrozenStack
        As from `generate`.
    """
    if cache is None:
        return generate(recipe, frames)
    path = cache / version_key() / f"{recipe.name}-{frames}.npz"
    if not path.exists():
        _save(generate(recipe, frames), path)
    with np.load(path) as data:
        return FrozenStack(recipe, data["frames"], data["target"])


def _save(stack: FrozenStack, path: Path) -> None:
    """Write beside, then rename: a stack that is there is whole."""
    logger.info("frozen stack %s made", stack.recipe.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    with beside.open("wb") as file:
        np.savez(file, frames=stack.frames, target=stack.target)
    beside.replace(path)


def load_all(
    frames: int = FRAMES,
    cache: Path | None = DEFAULT_CACHE,
    chosen: Iterable[Recipe] | None = None,
) -> Iterator[FrozenStack]:
    """Go through the stacks, all of them or those `chosen`, one in memory at a time."""
    for recipe in recipes() if chosen is None else chosen:
        yield load(recipe, frames, cache)
