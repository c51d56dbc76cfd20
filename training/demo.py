"""``python -m training demo``: the stack that ``make run`` plays.

A corner of a cell, as a small microscope with a multi-mode waveguide sees it: microtubules that
radiate from one centre, a few mitochondria, diffuse light from the cell body, and excitation that
changes from frame to frame. Made by the same optics and sensor as the training stacks, of a
specimen that is in no training set.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage
from scipy.special import expit

from training.fluctuation import SpeckleExcitation
from training.optics import UPSAMPLING, image_formation
from training.sensor import Sensor
from training.specimen import Grid, worm_like_chain

log = logging.getLogger(__name__)

SHAPE = (128, 128)  # camera px
MARGIN = 6
PSF_SIGMA_PX = 1.6
PHOTONS = 260.0  # on the 99.9th percentile pixel of the mean
PIXEL_SIZE_UM = 0.1  # in the specimen
SENSOR = Sensor(0.7, read_noise_e=2.0, gain_adu_per_e=0.45, offset_adu=8.0, bit_depth=8)


def cell(grid: Grid, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the label of microtubules and mitochondria, and the cell body, both (H', W')."""
    centre = np.array([0.72 * grid.height, 0.3 * grid.width])
    y, x = grid.coordinates()
    distance = np.hypot(y - centre[0], x - centre[1]) / max(grid)
    body = expit(
        (0.62 - distance + 0.05 * np.sin(5 * np.arctan2(y - centre[0], x - centre[1]))) * 25
    )
    label = sum(_microtubule(grid, centre, rng) for _ in range(60)) * body
    for _ in range(11):
        label += 2.0 * _mitochondrion(grid, centre, rng)
    return label.astype(np.float32), (body * expit((distance - 0.08) * 40)).astype(np.float32)


def _microtubule(grid: Grid, centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    start = centre + rng.normal(0, 13, 2)
    chain = worm_like_chain(start, rng.uniform(0.5, 1.0) * max(grid), 260, rng)
    return rng.uniform(0.5, 1.0) * grid.deposit(chain)


def _mitochondrion(grid: Grid, centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    angle, radius = rng.uniform(-2.6, 0.6), rng.uniform(0.15, 0.45) * max(grid)
    start = centre + radius * np.array([np.sin(angle), np.cos(angle)])
    tube = grid.deposit(worm_like_chain(start, rng.uniform(10, 40), 40, rng))
    return 1.6 * ndimage.gaussian_filter((tube > 0).astype(np.float32), 1.8)


def demo_stack(frames: int, seed: int) -> np.ndarray:
    """Simulate the demo, (frames, 128, 128) uint8."""
    rng = np.random.default_rng(seed)
    grid = Grid(*(UPSAMPLING * (n + 2 * MARGIN) for n in SHAPE))
    label, body = cell(grid, rng)
    excitation = SpeckleExcitation(40, 4.0, np.pi, phase_step_rad=0.8, contrast=0.9)
    patterns = excitation.patterns(frames, grid, rng)
    light = image_formation(label * patterns, PSF_SIGMA_PX, MARGIN, SHAPE)  # (T, H, W)
    light *= PHOTONS / np.percentile(light.mean(axis=0), 99.9)
    haze = image_formation(ndimage.gaussian_filter(body, 6), PSF_SIGMA_PX, MARGIN, SHAPE)
    haze *= 0.06 * PHOTONS / haze.max()
    return SENSOR.expose(light + haze + 0.02 * PHOTONS, rng).astype(np.uint8)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--out", type=Path, default=Path("device/demo.ome.tif"))
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--seed", type=int, default=7)


def main(arguments: argparse.Namespace) -> int:
    """Simulate and write."""
    stack = demo_stack(arguments.frames, arguments.seed)
    sizes = {"PhysicalSizeX": PIXEL_SIZE_UM, "PhysicalSizeXUnit": "µm"}
    sizes |= {"PhysicalSizeY": PIXEL_SIZE_UM, "PhysicalSizeYUnit": "µm"}
    tifffile.imwrite(
        arguments.out,
        stack,
        ome=True,
        compression="zlib",
        predictor=True,
        metadata={"axes": "TYX", **sizes},
    )
    log.info("%s: %d frames, %d bytes", arguments.out, len(stack), arguments.out.stat().st_size)
    return 0
