"""Stacks for measurements with a question of their own, outside of the frozen test set.

Their physics is the frozen set's (`training.frozen`): emitters at continuous positions, integrated
analytically over camera pixels. Fields, photons and fluctuation are chosen here, and the camera is
one and the same, so that a measurement varies what it asks for alone. Seeds are others than those
of the frozen set: nothing here is one of its stacks.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from device.errors import UserError
from device.model import Step, load_step
from device.reconstructor import reconstruct_stream, reconstruct_window
from training import baselines, evaluate, frozen, simulators
from training.frozen_specimens import Emitters

log = logging.getLogger(__name__)

FLUCTUATIONS: tuple[frozen.Fluctuation, ...] = ("blinking", "speckle")
SENSOR = frozen.Sensor(
    quantum_efficiency=0.75, read_noise_e=2.0, gain_e_per_adu=0.6, offset_adu=100.0
)
BACKGROUND = 0.1  # of the signal photons
ON_FRACTION = 0.1
ON_TIME_FRAMES = 1.0
DIRECTION = (0.6, 0.8)  # of the drift, (y, x)
COMPARED = (
    *(baselines.REFERENCE, "standard deviation", "SOFI-2 linearized"),
    *(baselines.DECONVOLUTION, "RL blind, 80"),
)
INFORMED = "RL true sigma, 80"

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Conditions:
    """How a specimen is seen.

    Attributes
    ----------
    fluctuation : str
        ``blinking`` (on for a tenth of the time, a frame at a time on average) or ``speckle``.
    photons : float
        Per frame, as the frozen set defines them.
    psf_sigma_px : float
        Standard deviation of the Gaussian PSF in input px.
    strength : float
        Part of the emission that fluctuates, 0 to 1; the rest is steady.
    frames : int
        Length of the stack, up to `frozen.MAX_FRAMES`.
    drift_px : float
        How far the specimen moves within 30 frames, in input px. It is in its place in the middle
        of the last 30.
    """

    fluctuation: frozen.Fluctuation
    photons: float
    psf_sigma_px: float
    strength: float = 1.0
    frames: int = frozen.FRAMES
    drift_px: float = 0.0


def edges_px(size_px: int, upsampling: int = 1) -> np.ndarray:
    """Edges of the pixels of a square field along one axis, in input px, (upsampling x size + 1,).

    Input pixels are centred at whole numbers, output pixel j at (j + 0.5) / 2 - 0.5.
    """
    return np.arange(upsampling * size_px + 1) / upsampling - 0.5


def brightest(emitters: Emitters, psf_sigma_px: float, size_px: int) -> float:
    """Expected mean image at its 99.9th percentile, in the unit of the brightness per pixel."""
    amplitudes = emitters.brightness[:, None]
    mean = frozen.integrate(emitters, amplitudes, psf_sigma_px, edges_px(size_px))[0]
    return float(np.percentile(mean, 99.9))


def scaled(emitters: Emitters, factor: float) -> Emitters:
    """Multiply the brightness."""
    return Emitters(emitters.y_px, emitters.x_px, emitters.brightness * factor)


def relative_brightness(
    rng: np.random.Generator, emitters: Emitters, conditions: Conditions
) -> np.ndarray:
    """Brightness of each emitter in each frame over its mean, (N, T)."""
    if conditions.fluctuation == "speckle":
        change = frozen.speckle(rng, emitters, conditions.psf_sigma_px)
    else:
        change = frozen.blinking(rng, len(emitters.y_px), ON_FRACTION, ON_TIME_FRAMES)
    return 1.0 + conditions.strength * (change[:, : conditions.frames] - 1.0)


def expose(
    emitters: Emitters, conditions: Conditions, size_px: int, rng: np.random.Generator
) -> np.ndarray:
    """Let the camera see emitters whose brightness is in photons per frame.

    Returns
    -------
    ndarray
        Frames in ADU, (T, size, size), uint16.
    """
    amplitudes = emitters.brightness[:, None] * relative_brightness(rng, emitters, conditions)
    light = _moving(emitters, amplitudes, conditions, size_px)  # (T, H, W)
    background = BACKGROUND * conditions.photons
    return np.stack([SENSOR.expose(image + background, rng) for image in light])


def _moving(
    emitters: Emitters, amplitudes: np.ndarray, conditions: Conditions, size_px: int
) -> Iterable[np.ndarray]:
    """Form the image of each frame's amplitudes, (N, T), where the emitters then are."""
    sigma_px, edges = conditions.psf_sigma_px, edges_px(size_px)
    if conditions.drift_px == 0:
        yield from frozen.integrate(emitters, amplitudes, sigma_px, edges)
        return
    frames = amplitudes.shape[1]
    middle = frames - (min(frames, frozen.FRAMES) + 1) / 2  # of the last 30
    for t in range(frames):
        away = conditions.drift_px * (t - middle) / (frozen.FRAMES - 1)
        y, x = emitters.y_px + away * DIRECTION[0], emitters.x_px + away * DIRECTION[1]
        there = Emitters(y, x, emitters.brightness)
        yield frozen.integrate(there, amplitudes[:, t : t + 1], sigma_px, edges)[0]


def target_of(emitters: Emitters, size_px: int) -> np.ndarray:
    """Brightness density on the output grid, as all targets are, (2H, 2W)."""
    sigma_px = frozen.TARGET_SIGMA_OUTPUT_PX / frozen.UPSAMPLING
    edges = edges_px(size_px, frozen.UPSAMPLING)
    return frozen.integrate(emitters, emitters.brightness[:, None], sigma_px, edges)[0]


@cache
def _step(path: Path) -> Step:
    return load_step(path)


def loaded(models: Sequence[Path]) -> dict[str, Step]:
    """Load models once per process, by their file names without ending."""
    return {step.name: step for step in map(_step, models)}


def methods(steps: Mapping[str, Step]) -> dict[str, baselines.Method]:
    """Choose the methods that curves are drawn of: the `COMPARED` ones and ours, by its name."""
    blind = baselines.methods()
    ours = {name: model_method(step) for name, step in steps.items()}
    return {name: blind[name] for name in COMPARED} | ours


def told_methods(steps: Mapping[str, Step], psf_sigma_px: float) -> dict[str, baselines.Method]:
    """Choose the methods that are told the PSF's width: the `INFORMED` one and ours."""
    known = baselines.informed_methods(psf_sigma_px)
    ours = {
        f"{name}, PSF told": model_method(step, psf_sigma_px)
        for name, step in steps.items()
        if step.manifest.takes_psf
    }
    return {INFORMED: known[INFORMED]} | ours


def model_method(step: Step, psf_sigma_px: float | None = None) -> baselines.Method:
    """Reconstruct up to 30 frames as a window, more as a stream."""

    def image(frames: np.ndarray) -> np.ndarray:
        if len(frames) <= step.manifest.frames:
            return reconstruct_window(step, frames, psf_sigma_px).image
        *_, last = reconstruct_stream(step, frames, psf_sigma_px)
        return last.image

    return image


def spread(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> list[Result]:
    """Do all jobs in so many processes, in order; 0 is in this one."""
    pool = simulators.start(workers)
    if pool is None:
        return _counted(map(work, jobs), len(jobs))
    with pool:
        return _counted(pool.map(work, jobs), len(jobs))


def _counted(results: Iterable[Result], total: int) -> list[Result]:
    """Take the results as they come, and say how far it is."""
    taken = []
    for result in results:
        taken.append(result)
        log.info("%d of %d parts are done", len(taken), total)
    return taken


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what all measurements of this kind take on the command line."""
    evaluate.add_model_argument(parser)
    add_output_arguments(parser)


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where results go, and how many processes find them."""
    parser.add_argument("--out", type=Path, default=Path("out/evaluation"), help="folder to write")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes; 0 is only this one"
    )


def check_workers(arguments: argparse.Namespace) -> None:
    """Check the number of processes.

    Raises
    ------
    UserError
        It is negative.
    """
    if arguments.workers < 0:
        raise UserError(f"--workers is {arguments.workers}; give 0 or more.")


def models_of(arguments: argparse.Namespace) -> list[Path]:
    """Check the arguments, make the folder to write, and load the models once to see that they can.

    Raises
    ------
    UserError
        The number of processes is negative, or a model cannot be used.
    """
    check_workers(arguments)
    models = evaluate.default_models() if arguments.model is None else list(arguments.model)
    evaluate.load_steps(models)
    arguments.out.mkdir(parents=True, exist_ok=True)
    return models
