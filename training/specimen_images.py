"""Specimens cut from a folder of images, such as `python -m training download` fills.

An image of a microscope is blurred and has a background. Scaled down it is sharper, and without its
background it can stand for a label: what is not exactly a specimen becomes one by definition, for
the truth is what is drawn here.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np

from device.errors import UserError
from training.specimen import Grid

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
LARGEST_STEP = 4.0
"""Image pixels to an output pixel, at most."""
BACKGROUND_PERCENTILE = 20.0
LEAST_CONTRAST = 0.2
"""Of a crop, over that of its image: less is a crop beside everything."""
ATTEMPTS = 50


def crop(folder: str, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Draw an image, a part of it, its scale and its orientation.

    Parameters
    ----------
    folder : str
        With images; all others of its files are passed over.
    grid : Grid
        What is drawn on.
    rng : Generator
        The only source of randomness: the same images give the same specimens.

    Returns
    -------
    ndarray
        Brightness density, (H, W) float32 in [0, 1], maximum 1, background 0.

    Raises
    ------
    UserError
        No images are there, one cannot be read, or nothing is to be seen in them.
    """
    paths = images_in(folder)
    for _ in range(ATTEMPTS):
        image = _read(paths[rng.integers(len(paths))])
        background = float(np.percentile(image, BACKGROUND_PERCENTILE))
        # Not a hot pixel alone; nor a percentile, which a few small things do not reach.
        brightest = float(cv2.blur(image, (3, 3)).max())
        part = _part(_oriented(image, rng), grid, rng) - background
        if part.max() > LEAST_CONTRAST * (brightest - background) > 0:
            return (np.clip(part, 0, None) / part.max()).astype(np.float32)
    raise UserError(
        f"{ATTEMPTS} crops of the images in {folder} showed nothing above the background; "
        "use images of fluorescence, bright on dark."
    )


@cache
def images_in(folder: str) -> tuple[Path, ...]:
    """Return the images of a folder by name; looked up once in a process.

    Raises
    ------
    UserError
        There is no such folder, or no image in it.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(
            f"images is {folder!r}, which is no folder; name one with images "
            "(python -m training download fills one)."
        )
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise UserError(
            f"The folder {folder} has no images ({', '.join(sorted(SUFFIXES))}); "
            "fill it (python -m training download) or name another."
        )
    return tuple(found)


def _read(path: Path) -> np.ndarray:
    """Read an image as grey, (h, w) float32, in its own unit."""
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
        image = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    except (OSError, cv2.error):  # cv2: an empty file
        image = None
    if image is None or not np.isfinite(image).all():
        raise UserError(f"{path} is no image that can be read; remove it from the folder.")
    return image.astype(np.float32)


def _oriented(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn by right angles and mirror, without interpolation."""
    turned = np.rot90(image, int(rng.integers(4)))
    return turned[:, ::-1] if rng.random() < 0.5 else turned


def _part(image: np.ndarray, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Cut a part of the grid's shape and scale it to the grid, (H, W).

    Down where the image is large enough, by up to LARGEST_STEP; a smaller one is scaled up.
    """
    largest = min(image.shape[0] / grid.height, image.shape[1] / grid.width)
    limits = (min(1.0, largest), min(LARGEST_STEP, largest))
    step = float(np.exp(rng.uniform(*np.log(limits))))
    height, width = (
        max(1, min(round(step * n), m)) for n, m in zip(grid, image.shape, strict=True)
    )
    top, left = (
        int(rng.integers(m - n + 1)) for n, m in zip((height, width), image.shape, strict=True)
    )
    part = np.ascontiguousarray(image[top : top + height, left : left + width])
    scaling = cv2.INTER_AREA if step > 1 else cv2.INTER_LINEAR
    return cv2.resize(part, (grid.width, grid.height), interpolation=scaling)
