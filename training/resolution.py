"""From which distance on two lines are shown apart, and how often one line is shown as two.

Two parallel lines lie at a random angle and place in the field. A method shows them apart where the
profile across, averaged along the lines, dips by a fifth or more. The counter-test is one line that
is as wide as both together and as bright: whatever dips there is of the method's own making. The
same seeds make both, and every method sees the same frames.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import map_coordinates

from device.errors import UserError
from device.files import write_text
from training import frozen, trials
from training.baselines import REFERENCE
from training.frozen_specimens import Emitters
from training.reports import save_figure, save_json, table
from training.trials import Conditions

SEED = 20_131
SIZE_PX = 48
PSF_SIGMA_PX = 1.4
PHOTONS = (60.0, 400.0)
# The mean needs some 3.8 px here; 2.5 is two thirds of it.
DISTANCES_PX = (1.6, 2.0, 2.3, 2.5, 2.7, 3.0, 3.3, 3.6, 3.8, 4.0, 4.4, 5.0)
TRIALS = 40  # per number of photons and distance; half of them blink
DIP = 0.2
LINE_WIDTH_PX = 0.4
EMITTERS_PER_PX = 6.0  # of each line, as in the frozen set
ALONG_PX = 14.0  # the profile is averaged from -14 to 14 px along the lines
ACROSS_PX = 10.0
BACKGROUND_FROM_PX = 8.0  # from the middle: five sigma away from lines 5 px apart is no light
LEVELS = (0.5, 0.9)

Content = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the lines lie: their middle (y, x) in input px, and their direction."""

    middle_px: tuple[float, float]
    angle_rad: float

    def points(self, along_px: np.ndarray, across_px: np.ndarray) -> np.ndarray:
        """Turn distances along and across the lines, (N,) each, to (y, x), (2, N)."""
        sin, cos = np.sin(self.angle_rad), np.cos(self.angle_rad)
        y, x = self.middle_px
        rows = y + along_px * sin + across_px * cos
        columns = x + along_px * cos - across_px * sin
        return np.stack([rows, columns])


# --------------------------------------------------------------------------------------- specimens


def draw_place(rng: np.random.Generator) -> Place:
    """Draw any angle, and a middle within 1 px of the field's."""
    y, x = (SIZE_PX - 1) / 2 + rng.uniform(-1.0, 1.0, 2)
    return Place((y, x), rng.uniform(0.0, np.pi))


def _even(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw numbers from 0 to 1, one from each of `count` equal parts, in any order, (count,)."""
    return rng.permutation((np.arange(count) + rng.random(count)) / count)


def strip(rng: np.random.Generator, place: Place, middle_px: float, width_px: float) -> np.ndarray:
    """Scatter one line's emitters evenly over a strip that crosses the field, (y, x), (2, N)."""
    length = 2.0 * SIZE_PX
    count = int(EMITTERS_PER_PX * length)
    along = length * (_even(rng, count) - 0.5)
    return place.points(along, middle_px + width_px * (_even(rng, count) - 0.5))


def pair(rng: np.random.Generator, place: Place, distance_px: float) -> Emitters:
    """Two lines of brightness 1 per emitter, their middles so far apart."""
    sides = [strip(rng, place, side * distance_px / 2, LINE_WIDTH_PX) for side in (-1, 1)]
    return _emitters(np.hstack(sides))


def single(rng: np.random.Generator, place: Place, distance_px: float) -> Emitters:
    """One line of the pair's total width and as many emitters."""
    width = distance_px + LINE_WIDTH_PX
    return _emitters(np.hstack([strip(rng, place, 0.0, width) for _ in range(2)]))


def _emitters(points_px: np.ndarray) -> Emitters:
    return Emitters(points_px[0], points_px[1], np.ones(points_px.shape[1]))


SHAPES: dict[str, Callable[[np.random.Generator, Place, float], Emitters]] = {
    "pair": pair,
    "single": single,
}


def frames_of(
    shape: str, distance_px: float, conditions: Conditions, seed: Sequence[int]
) -> tuple[Place, np.ndarray]:
    """Simulate one trial; photons are counted on the pair, whatever is shown.

    Returns
    -------
    Place
        Where the lines are.
    ndarray
        Frames in ADU, (T, H, W).
    """
    place = draw_place(np.random.default_rng((*seed, 0)))
    two = pair(np.random.default_rng((*seed, 1)), place, distance_px)
    factor = conditions.photons / trials.brightest(two, conditions.psf_sigma_px, SIZE_PX)
    shown = SHAPES[shape](np.random.default_rng((*seed, 1)), place, distance_px)
    rng = np.random.default_rng((*seed, 2))
    return place, trials.expose(trials.scaled(shown, factor), conditions, SIZE_PX, rng)


# ----------------------------------------------------------------------------------------- the dip


def across() -> np.ndarray:
    """Places of the profile in input px from the middle, (S,)."""
    return np.linspace(-ACROSS_PX, ACROSS_PX, 201)


def profile(image: np.ndarray, place: Place) -> np.ndarray:
    """Average an image (2H, 2W) along the lines, background taken off, at `across`, (S,)."""
    along = np.linspace(-ALONG_PX, ALONG_PX, 57)
    s, t = (grid.ravel() for grid in np.meshgrid(across(), along, indexing="ij"))
    points = frozen.UPSAMPLING * (place.points(t, s) + 0.5) - 0.5  # in output px
    samples = map_coordinates(image.astype(np.float64), points, order=3, mode="nearest")
    averaged = samples.reshape(len(across()), -1).mean(axis=1)
    return averaged - np.median(averaged[np.abs(across()) >= BACKGROUND_FROM_PX])


def deepest_dip(values: np.ndarray, distance_px: float) -> float:
    """Find the deepest valley of a profile, as a part of the lower of the peaks beside it, 0 to 1.

    Looked at is what lies up to 1 px outside of the lines' middles.
    """
    seen = values[np.abs(across()) <= distance_px / 2 + 1.0]
    left = np.maximum.accumulate(seen)
    right = np.maximum.accumulate(seen[::-1])[::-1]
    peaks = np.minimum(left, right)
    depth = np.divide(peaks - seen, peaks, out=np.zeros_like(seen), where=peaks > 0)
    return float(np.clip(depth.max(), 0.0, 1.0))


# ------------------------------------------------------------------------------------------ trials


@dataclass(frozen=True, slots=True)
class Job:
    """All trials at one number of photons and one distance."""

    photons: float
    distance_px: float
    trials: int
    models: tuple[Path, ...]


Counts = dict[tuple[str, str, str], int]  # shape, method, fluctuation


def do(job: Job) -> Counts:
    """Count the trials in which each method shows two lines."""
    methods = trials.methods(trials.loaded(job.models))
    counts: Counts = {}
    for shape in SHAPES:
        for trial in range(job.trials):
            fluctuation = trials.FLUCTUATIONS[trial % 2]
            conditions = Conditions(fluctuation, job.photons, PSF_SIGMA_PX)
            seed = (SEED, int(job.photons), round(1000 * job.distance_px), trial)
            place, frames = frames_of(shape, job.distance_px, conditions, seed)
            for name, method in methods.items():
                dip = deepest_dip(profile(method(frames), place), job.distance_px)
                key = (shape, name, fluctuation)
                counts[key] = counts.get(key, 0) + (dip >= DIP)
    return counts


def measure(
    models: Sequence[Path],
    count: int,
    workers: int,
    distances_px: Sequence[float] = DISTANCES_PX,
    photons: Sequence[float] = PHOTONS,
) -> Content:
    """Run all trials, `count` (even) at each distance and number of photons.

    Returns
    -------
    dict
        ``shown`` and ``split``: method to photons to fluctuation to the fraction of trials of the
        pair, and of the single line, in which two lines were shown, one per distance. What else is
        needed to read them stands beside.
    """
    jobs = [Job(light, d, count, tuple(models)) for light in photons for d in distances_px]
    results = dict(zip(jobs, trials.spread(do, jobs, workers), strict=True))
    content: Content = {
        "models": {name: step.sha256 for name, step in trials.loaded(models).items()},
        "psf_sigma_px": PSF_SIGMA_PX,
        "trials": count,
        "photons": list(photons),
        "distances_px": list(distances_px),
    }
    for what, shape in (("shown", "pair"), ("split", "single")):
        content[what] = _fractions(shape, results, count // 2)
    return content


def _fractions(shape: str, results: Mapping[Job, Counts], of: int) -> Content:
    fractions: Content = {}
    for job, counts in results.items():
        for (its_shape, method, fluctuation), number in counts.items():
            if its_shape == shape:
                series = fractions.setdefault(method, {}).setdefault(f"{job.photons:.0f}", {})
                series.setdefault(fluctuation, []).append(number / of)
    return fractions


# ------------------------------------------------------------------------------------------ report


def curve(content: Content, what: str, method: str, photons: float) -> np.ndarray:
    """Fraction of trials at each distance, both fluctuations alike, (D,)."""
    series = content[what][method][f"{photons:.0f}"]
    return np.mean([series[fluctuation] for fluctuation in trials.FLUCTUATIONS], axis=0)


def reached(distances_px: Sequence[float], fractions: np.ndarray, level: float) -> float | None:
    """Find the distance from which on the fraction stays at a level or above, between points too.

    None where it is not there at the largest distance; the smallest where it always is.
    """
    below = np.flatnonzero(np.asarray(fractions) < level)
    if not below.size:
        return float(distances_px[0])
    last = int(below[-1])
    if last + 1 == len(distances_px):
        return None
    ends = fractions[last], fractions[last + 1]
    return float(np.interp(level, ends, (distances_px[last], distances_px[last + 1])))


def summary(content: Content, method: str, photons: float) -> dict[str, float | None]:
    """Bring a method's curves to ``px_LEVEL``, ``ratio_LEVEL`` (to the mean's) and ``split``."""
    distances = content["distances_px"]
    found: dict[str, float | None] = {}
    for level in LEVELS:
        own, mean = (
            reached(distances, curve(content, "shown", name, photons), level)
            for name in (method, REFERENCE)
        )
        found[f"px_{level:.0%}"] = own
        found[f"ratio_{level:.0%}"] = own / mean if own and mean else None
    found["split"] = float(curve(content, "split", method, photons).mean())
    return found


def summary_table(content: Content) -> str:
    """Lay out distances, ratios and false splits of every method."""
    head = ["photons", "method", "half shown apart at, px", "over the mean's"]
    head += ["90 % at, px", "over the mean's", "one line split", "worst width"]
    rows = []
    for photons in content["photons"]:
        for method in content["shown"]:
            found = summary(content, method, photons)
            worst = curve(content, "split", method, photons).max()
            names = [f"{what}_{level:.0%}" for level in LEVELS for what in ("px", "ratio")]
            cells = [_number(found[name]) for name in names]
            rows.append([f"{photons:.0f}", method, *cells, f"{found['split']:.1%}", f"{worst:.0%}"])
    return table(head, rows)


def _number(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f}"


def curve_table(content: Content, what: str) -> str:
    """Lay out one kind of curve: a line for each method, a column for each distance."""
    head = ["photons", "method", *(f"{d:g} px" for d in content["distances_px"])]
    rows = [
        [f"{photons:.0f}", method, *(f"{f:.0%}" for f in curve(content, what, method, photons))]
        for photons in content["photons"]
        for method in content[what]
    ]
    return table(head, rows)


SECTION = """
### Two lines, or one

![Two lines shown apart, and one line falsely split, against the distance]({picture})

{trials} trials at each distance, half of them blinking and half under speckle, PSF sigma
{psf_sigma_px} px. Two parallel lines at any angle are *shown apart* where the profile across dips
by a fifth or more; *one line* is as wide as both together and as bright, and should never dip.
Distances are in camera px; *worst width* is the largest part of the trials at any one width
(`python -m training resolution`).

{summary}
Shown apart:

{shown}
One line of the same total width, falsely split:

{split}"""


def section(content: Content, picture: str = "resolution.png") -> str:
    """Write the model card's section, Markdown, with the name of the picture beside the card."""
    tables = {what: curve_table(content, what) for what in ("shown", "split")}
    return SECTION.format(picture=picture, summary=summary_table(content), **content | tables)


def save_plot(path: Path, content: Content) -> None:
    """Draw the fractions against the distance: shown apart above, falsely split below."""
    from matplotlib.figure import Figure  # slow, and only this needs it

    photons, distances = content["photons"], content["distances_px"]
    figure = Figure(figsize=(6 * len(photons), 8), layout="constrained")
    axes = figure.subplots(2, len(photons), squeeze=False, sharex=True)
    titles = {"shown": "two lines, shown apart", "split": "one line, falsely split"}
    for line, (what, title) in zip(axes, titles.items(), strict=True):
        for axis, light in zip(line, photons, strict=True):
            for method in content[what]:
                axis.plot(distances, curve(content, what, method, light), ".-", label=method)
            axis.set(title=f"{title}, {light:.0f} photons", ylabel="part of the trials")
            axis.set(xlabel="distance, or width less one line's, camera px", ylim=(-0.03, 1.03))
    axes[0, 0].legend(fontsize=7)
    save_figure(path, figure)


def report(content: Content, folder: Path) -> None:
    """Write ``resolution.json``, ``resolution.md`` and ``resolution.png`` into a folder."""
    save_json(folder / "resolution.json", content)
    write_text(folder / "resolution.md", section(content))
    save_plot(folder / "resolution.png", content)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training resolution``."""
    trials.add_arguments(parser)
    parser.add_argument(
        "--trials", type=int, default=TRIALS, metavar="N", help="at each distance, even"
    )


def main(args: argparse.Namespace) -> int:
    """Run ``python -m training resolution``."""
    if args.trials < 2 or args.trials % 2:
        raise UserError(f"--trials is {args.trials}; give an even number: one half of them blinks.")
    content = measure(trials.models_of(args), args.trials, args.workers)
    report(content, args.out)
    sys.stdout.write(summary_table(content))
    return 0
