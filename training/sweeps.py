"""Quality against number of frames, photons, PSF width, strength of the fluctuation, and drift.

One of the five is varied at a time, the others stay at `BASE`. The specimens are families of the
frozen set, drawn with other seeds and cut to a smaller field; each is seen blinking and under
speckle, at every point with the same seeds, so that neighbouring points differ by what is varied.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from device.errors import UserError
from device.files import write_text
from training import evaluate, frozen, trials
from training.frozen_specimens import CONTINUOUS, FIELD_PX, MARGIN_PX, THIN, Emitters
from training.metrics import psnr_db
from training.reports import save_figure, save_json, table
from training.trials import Conditions

SEED = 20_132
SIZE_PX = 64
BASE = Conditions("blinking", photons=100.0, psf_sigma_px=1.4)
SWEEPS: dict[str, tuple[float, ...]] = {
    "frames": (4, 8, 15, 30, 60, 120),
    "photons": (12, 25, 50, 100, 200, 400, 800),
    "psf_sigma_px": (0.8, 1.1, 1.4, 1.8, 2.2, 2.7, 3.2),
    "strength": (0.0, 0.25, 0.5, 0.75, 1.0),
    "drift_px": (0.0, 0.5, 1.0, 2.0, 4.0),
}
LABELS = {
    "frames": "frames",
    "photons": "photons per frame",
    "psf_sigma_px": "sigma of the PSF, camera px",
    "strength": "part of the light that fluctuates",
    "drift_px": "drift within 30 frames, camera px",
}
FAMILIES: dict[str, tuple[str, ...]] = {
    "thin": ("filaments", "rings", "clusters", "crossing_lines"),
    "continuous": ("bacteria", "cell_bodies", "membranes", "perforated_sheet"),
}
KINDS = evaluate.KINDS
STACKS = 8  # per point and kind: a family and a fluctuation each

Content = dict[str, Any]
Point = tuple[str, float]  # what is varied, and its value


@dataclass(frozen=True, slots=True)
class Job:
    """One specimen under one fluctuation, at every point."""

    kind: str
    number: int
    models: tuple[Path, ...]


def specimen(kind: str, number: int) -> Emitters:
    """Draw a specimen and cut the middle of its field out, `SIZE_PX` wide, margin included."""
    names = FAMILIES[kind]
    family = (THIN if kind == "thin" else CONTINUOUS)[names[number % len(names)]]
    emitters = family(np.random.default_rng((SEED, KINDS.index(kind), number)))
    origin = (FIELD_PX - SIZE_PX) / 2
    y, x = emitters.y_px - origin, emitters.x_px - origin
    low, high = -0.5 - MARGIN_PX, SIZE_PX - 0.5 + MARGIN_PX
    inside = (low < y) & (y < high) & (low < x) & (x < high)
    return Emitters(y[inside], x[inside], emitters.brightness[inside])


def conditions_at(point: Point, fluctuation: frozen.Fluctuation) -> Conditions:
    """Vary one of the conditions of `BASE`."""
    name, value = point
    varied: dict[str, Any] = {name: int(value) if name == "frames" else float(value)}
    return replace(BASE, fluctuation=fluctuation, **varied)


def points() -> list[Point]:
    """List every point of every sweep."""
    return [(name, value) for name, values in SWEEPS.items() for value in values]


def do(job: Job) -> dict[Conditions, dict[str, float]]:
    """Score every method at every point; points that are alike are scored once, PSNR in dB."""
    steps = trials.loaded(job.models)
    blind = trials.methods(steps)
    emitters = specimen(job.kind, job.number)
    turn = job.number // len(FAMILIES[job.kind])  # each family once, then with the other one
    fluctuation = trials.FLUCTUATIONS[(job.number + turn) % 2]
    scores = {}
    for conditions in dict.fromkeys(conditions_at(point, fluctuation) for point in points()):
        factor = conditions.photons / trials.brightest(emitters, conditions.psf_sigma_px, SIZE_PX)
        seen = trials.scaled(emitters, factor)
        rng = np.random.default_rng((SEED, KINDS.index(job.kind), job.number, 1))
        frames = trials.expose(seen, conditions, SIZE_PX, rng)
        truth = trials.target_of(seen, SIZE_PX)
        methods = blind | trials.told_methods(steps, conditions.psf_sigma_px)
        images = {name: method(frames) for name, method in methods.items()}
        scores[conditions] = {name: psnr_db(image, truth) for name, image in images.items()}
    return scores


def measure(models: Sequence[Path], stacks: int, workers: int) -> Content:
    """Score all methods at all points on so many stacks of each kind.

    Returns
    -------
    dict
        ``psnr_db``: kind to method to what is varied to the means over the stacks, one per value
        of ``values``. What else is needed to read them stands beside.
    """
    jobs = [Job(kind, n, tuple(models)) for kind in KINDS for n in range(stacks)]
    results = dict(zip(jobs, trials.spread(do, jobs, workers), strict=True))
    base = {name: value for name, value in asdict(BASE).items() if name in SWEEPS}
    return {
        "models": {name: step.sha256 for name, step in trials.loaded(models).items()},
        "stacks": stacks,
        "base": base,
        "values": {name: list(values) for name, values in SWEEPS.items()},
        "psnr_db": {
            kind: _means([scores for job, scores in results.items() if job.kind == kind])
            for kind in KINDS
        },
    }


def _means(found: Sequence[Mapping[Conditions, Mapping[str, float]]]) -> Content:
    """Average over the stacks; each of them was seen under its own fluctuation."""
    means: Content = {}
    for point in points():
        rows = [scores[conditions_at(point, next(iter(scores)).fluctuation)] for scores in found]
        for method in rows[0]:
            mean = round(float(np.mean([row[method] for row in rows])), 3)
            means.setdefault(method, {}).setdefault(point[0], []).append(mean)
    return means


def tables(content: Content) -> str:
    """Lay out all numbers: a table for each kind and each of the five, Markdown."""
    parts = []
    for kind, methods in content["psnr_db"].items():
        for name, values in content["values"].items():
            head = [f"{kind}: {LABELS[name]}", *(f"{value:g}" for value in values)]
            rows = [[m, *(f"{db:.2f}" for db in means[name])] for m, means in methods.items()]
            parts.append(table(head, rows))
    return "\n".join(parts)


SECTION = """
### Against frames, photons, PSF, fluctuation and drift

![PSNR of all methods, one of five conditions varied at a time]({picture})

Mean PSNR over {stacks} simulated stacks of each kind outside of the frozen set, one condition
varied at a time, the others at {base}. All are blind but
those that are told the PSF's width, or its true sigma. Beyond 30 frames the
network runs as a stream, which is played once and not twice (`python -m training sweeps`; the
numbers are in the evaluation's JSON).
"""


def section(content: Content, picture: str = "sweeps.png") -> str:
    """Write the model card's section, Markdown, with the name of the picture beside the card."""
    base = ", ".join(f"{LABELS[name]} {value:g}" for name, value in content["base"].items())
    return SECTION.format(picture=picture, stacks=content["stacks"], base=base)


def save_plot(path: Path, content: Content) -> None:
    """Draw the five plots, thin specimens above, continuous ones below."""
    from matplotlib.figure import Figure  # slow, and only this needs it

    kinds, values = content["psnr_db"], content["values"]
    figure = Figure(figsize=(5 * len(values), 4.5 * len(kinds)), layout="constrained")
    axes = figure.subplots(len(kinds), len(values), squeeze=False, sharey="row")
    for line, (kind, methods) in zip(axes, kinds.items(), strict=True):
        for axis, (name, places) in zip(line, values.items(), strict=True):
            for method, means in methods.items():
                axis.plot(places, means[name], ".-", label=method)
            axis.set(xlabel=LABELS[name], title=f"{kind}: {LABELS[name]}", ylabel="PSNR, dB")
            if name in ("frames", "photons"):
                axis.set_xscale("log")
    axes[0, 0].legend(fontsize=7)
    save_figure(path, figure)


def report(content: Content, folder: Path) -> None:
    """Write ``sweeps.json``, ``sweeps.md`` and ``sweeps.png`` into a folder."""
    save_json(folder / "sweeps.json", content)
    write_text(folder / "sweeps.md", tables(content))
    save_plot(folder / "sweeps.png", content)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training sweeps``."""
    trials.add_arguments(parser)
    parser.add_argument(
        "--stacks", type=int, default=STACKS, metavar="N", help="at each point, of each kind"
    )


def main(args: argparse.Namespace) -> int:
    """Run ``python -m training sweeps``."""
    if args.stacks < 1:
        raise UserError(f"--stacks is {args.stacks}; at least 1 is needed.")
    content = measure(trials.models_of(args), args.stacks, args.workers)
    report(content, args.out)
    sys.stdout.write(tables(content))
    return 0
