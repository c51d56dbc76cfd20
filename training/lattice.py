"""Does the network's own grid show in its images? Peaks at (k/4, l/4), and a shift by a pixel.

The network folds pixels by two and enlarges by two, so that a fault of its own repeats every two or
four output px: a peak of the power spectrum at (k/4, l/4) cycles per output px, above what lies
around it. And an input that moves by one px must move its image by two and change nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from device.files import write_text
from training import baselines, evaluate, frozen, trials
from training.baselines import DECONVOLUTION, REFERENCE
from training.reports import save_json, table

PERIODS = 4  # the lattice's frequencies are multiples of a quarter cycle per output px
TILE_PX = 64
RING = (3, 6)  # bins around a frequency that count as its surroundings; a Hann peak is 1 wide
RIM_OUTPUT_PX = 16
SHIFTS_PX = ((1, 0), (0, 1), (1, 1))
SHOWN = (REFERENCE, DECONVOLUTION)
LARGEST_ASKED, SHIFT_ASKED_DB = 3.0, 40.0

Content = dict[str, Any]


def spectrum(image: np.ndarray) -> np.ndarray:
    """Power of an image, averaged over half-overlapping tiles (Welch 1967), (TILE_PX, TILE_PX).

    Averaged, because the power of a single spectrum scatters so much that one in eight of its
    values is three times the median by chance. Tiles fade to their borders (Hann), so that edges
    of the frame do not show.

    Raises
    ------
    ValueError
        The image is smaller than a tile.
    """
    if min(image.shape) < TILE_PX:
        raise ValueError(f"{image.shape} px is smaller than a tile of {TILE_PX} px.")
    fade = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(TILE_PX) / TILE_PX)
    window = np.outer(fade, fade)
    starts = [range(0, length - TILE_PX + 1, TILE_PX // 2) for length in image.shape]
    tiles = np.stack(
        [
            image[y : y + TILE_PX, x : x + TILE_PX].astype(np.float64)
            for y in starts[0]
            for x in starts[1]
        ]
    )
    tiles -= tiles.mean(axis=(1, 2), keepdims=True)
    return (np.abs(np.fft.fft2(window * tiles)) ** 2).mean(axis=0)


@dataclass(frozen=True, slots=True)
class Peak:
    """What stands at one frequency of the lattice.

    Attributes
    ----------
    ratio : float
        Power over the median of what lies around it.
    contrast : float
        Root of the part of the image's variance that is above that median: what of it is seen.
        A ratio alone can be large where there is nothing around.
    """

    ratio: float
    contrast: float


def peaks(image: np.ndarray) -> dict[tuple[int, int], Peak]:
    """Find what stands at (k/4, l/4) cycles per px, by (k, l), without (0, 0)."""
    power = spectrum(image)
    inner, outer = RING
    around = [
        (dy, dx)
        for dy in range(-outer, outer + 1)
        for dx in range(-outer, outer + 1)
        if max(abs(dy), abs(dx)) >= inner
    ]
    found = {}
    for k in range(PERIODS):
        for el in range(PERIODS):
            y, x = k * TILE_PX // PERIODS, el * TILE_PX // PERIODS
            median = np.median([power[(y + dy) % TILE_PX, (x + dx) % TILE_PX] for dy, dx in around])
            found[k, el] = _peak(power[y, x], median, power.sum())
    del found[0, 0]  # the mean, which every image has
    return found


def _peak(power: float, around: float, total: float) -> Peak:
    """Compare a peak with its surroundings; the window leaves 4/9 of a wave in its middle bin."""
    if not around > 0:
        return Peak(0.0, 0.0)  # a constant image
    share = max(power - around, 0.0) * (9 / 4) / total
    return Peak(float(power / around), float(np.sqrt(share)))


def shift_db(method: baselines.Method, frames: np.ndarray, shift_px: tuple[int, int]) -> float:
    """Compare the images of two cuts of a stack, one px apart.

    Parameters
    ----------
    method : callable
        Frames to image (2H, 2W).
    frames : ndarray
        (T, H, W) in ADU.
    shift_px : (int, int)
        Shift along y and x in input px, 0 or 1.

    Returns
    -------
    float
        PSNR of the second image, moved back by two px, against the first, inside a rim of
        `RIM_OUTPUT_PX`, dB; at most 120, which is all that float32 holds.
    """
    (dy, dx), (height, width) = shift_px, (2 * (n // 2) - 2 for n in frames.shape[1:])
    first = method(frames[:, :height, :width])
    second = method(frames[:, dy : dy + height, dx : dx + width])
    rim = RIM_OUTPUT_PX
    rows, columns = 2 * height - 2 * rim - 2, 2 * width - 2 * rim - 2
    y, x = rim + 2 * dy, rim + 2 * dx
    a = first[y : y + rows, x : x + columns].astype(np.float64)
    b = second[rim : rim + rows, rim : rim + columns].astype(np.float64)
    peak = max(float(a.max()), 1e-12)
    error = max(float(np.mean((a - b) ** 2)) / peak**2, 1e-12)
    return float(-10.0 * np.log10(error))


# ------------------------------------------------------------------------------------------ stacks

LATTICES: dict[str, Callable[[int, int], bool]] = {
    "folding": lambda k, el: k % 2 == 1 or el % 2 == 1,  # every four output px
    "enlarging": lambda k, el: k % 2 == 0 and el % 2 == 0,  # every two: interpolation has it too
}


@dataclass(frozen=True, slots=True)
class Job:
    """One frozen stack."""

    recipe: frozen.Recipe
    models: tuple[Path, ...]
    cache: Path | None


def look_at(frames: np.ndarray, models: Sequence[Path]) -> Content:
    """Find the largest peak of each method, and each model's worst shift, on one stack."""
    steps = trials.loaded(models)
    methods = trials.methods(steps)
    found: Content = {"peak": {}, "shift_db": {}}
    for name in (*SHOWN, *steps):
        there = peaks(methods[name](frames))
        found["peak"][name] = {what: _largest(there, belongs) for what, belongs in LATTICES.items()}
    for name in steps:
        worst = min(shift_db(methods[name], frames, shift) for shift in SHIFTS_PX)
        found["shift_db"][name] = round(worst, 2)
    return found


def _largest(there: Mapping[tuple[int, int], Peak], belongs: Callable[[int, int], bool]) -> Content:
    where = max((f for f in there if belongs(*f)), key=lambda frequency: there[frequency].ratio)
    peak = there[where]
    return {
        "ratio": round(peak.ratio, 3),
        "contrast": round(peak.contrast, 6),
        "quarters": list(where),
    }


def do(job: Job) -> Content:
    """Look at the window of one frozen stack."""
    # As long as `evaluate` keeps them, so that one cache serves both.
    stack = frozen.load(job.recipe, max(evaluate.STREAM_FRAMES), job.cache)
    return look_at(stack.frames[: frozen.FRAMES], job.models)


def measure(
    models: Sequence[Path],
    workers: int,
    measured: Path | None = None,
    cache: Path | None = frozen.DEFAULT_CACHE,
    chosen: Sequence[frozen.Recipe] | None = None,
) -> Content:
    """Look at the frozen stacks, and at a measured one.

    Returns
    -------
    dict
        ``stacks``: name of the stack to what `look_at` found; ``measured``: the same with the
        file's name and checksum, where there is one.
    """
    recipes = frozen.recipes() if chosen is None else chosen
    jobs = [Job(recipe, tuple(models), cache) for recipe in recipes]
    found = trials.spread(do, jobs, workers)
    content: Content = {
        "models": {name: step.sha256 for name, step in trials.loaded(models).items()},
        "generator": frozen.version_key(),
        "stacks": {job.recipe.name: each for job, each in zip(jobs, found, strict=True)},
    }
    if measured is not None:
        about = {"file": measured.name, "sha256": hashlib.sha256(measured.read_bytes()).hexdigest()}
        content["measured"] = about | look_at(evaluate.read_window(measured), models)
    return content


# ------------------------------------------------------------------------------------------ report


def _worst_peak(found: Mapping[str, Content], method: str, lattice: str) -> str:
    """Say the largest ratio over some stacks, its part of the contrast, and where it is."""
    stack = max(found, key=lambda name: found[name]["peak"][method][lattice]["ratio"])
    worst = found[stack]["peak"][method][lattice]
    k, el = worst["quarters"]
    return f"{worst['ratio']:.2f} ({worst['contrast']:.2%}), ({k}/4, {el}/4), {stack}"


def _worst_shift(found: Mapping[str, Content], method: str) -> str:
    values = {name: each["shift_db"][method] for name, each in found.items()}
    stack = min(values, key=lambda name: values[name])
    return f"{values[stack]:.1f} ({stack}); mean {np.mean(list(values.values())):.1f}"


def summary_table(content: Content) -> str:
    """Lay out the largest peaks and the lowest shift of each method, frozen and measured stacks."""
    sets = {"frozen": content["stacks"]}
    if "measured" in content:
        sets["measured"] = {content["measured"]["file"]: content["measured"]}
    head = ["stacks", "method", *(f"largest peak, {name}" for name in LATTICES), "lowest shift, dB"]
    rows = []
    for which, found in sets.items():
        for method in (*SHOWN, *content["models"]):
            cells = [_worst_peak(found, method, name) for name in LATTICES]
            ours = method in content["models"]
            rows.append([which, method, *cells, _worst_shift(found, method) if ours else ""])
    return table(head, rows)


SECTION = """
### The network's own grid

Power of the image at (k/4, l/4) cycles per output px over the median around it, tiles of {tile} px
averaged; at most {peak:g} was asked for. *Folding*: k or l is odd, what repeats every four output
px; *enlarging*: both are even, every two, which interpolation leaves too. In brackets the part of
the image's contrast that it is. Then an input that is shifted by 1 px against its image shifted by
2: PSNR inside a rim of {rim} px; at least {shift:g} dB was asked for
(`python -m training lattice`).

{summary}"""


def section(content: Content) -> str:
    """Write the model card's section, Markdown."""
    return SECTION.format(
        tile=TILE_PX,
        peak=LARGEST_ASKED,
        rim=RIM_OUTPUT_PX,
        shift=SHIFT_ASKED_DB,
        summary=summary_table(content),
    )


def report(content: Content, folder: Path) -> None:
    """Write ``lattice.json`` and ``lattice.md`` into a folder."""
    save_json(folder / "lattice.json", content)
    write_text(folder / "lattice.md", section(content))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training lattice``."""
    trials.add_arguments(parser)
    parser.add_argument("--measured", type=Path, metavar="FILE", help="look at this stack too")
    parser.add_argument(
        "--cache", type=Path, default=frozen.DEFAULT_CACHE, help="where frozen stacks are kept"
    )


def main(args: argparse.Namespace) -> int:
    """Run ``python -m training lattice``."""
    content = measure(trials.models_of(args), args.workers, args.measured, args.cache)
    report(content, args.out)
    sys.stdout.write(summary_table(content))
    return 0
