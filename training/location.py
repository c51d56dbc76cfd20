"""Where is a single emitter drawn? Its image's centre against the output's grid.

Single emitters at places of every kind within the pixel, each with noise of its own, seen through
PSFs of several widths. A network that is not symmetric draws them all to one side, one that does
not know where in the pixel they lie draws them to its middle.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from device.files import write_text
from training import frozen, trials
from training.baselines import DECONVOLUTION, REFERENCE
from training.frozen_specimens import Emitters
from training.reports import save_json, table

SIGMAS_PX = (1.1, 1.4, 1.7, 2.4)
EMITTERS = 40
FIELD_PX = 48
PHOTONS = (2000.0, 8000.0)  # of an emitter in each frame, uniform
BACKGROUND_PHOTONS = 20.0
WINDOW_SIGMA_PX = 2.0  # output px
ITERATIONS = 30
SEED = 40_000
ASKED_PX = 0.1
SHOWN = (REFERENCE, DECONVOLUTION)

Content = dict[str, Any]


def centre(image: np.ndarray) -> np.ndarray:
    """Windowed centre (y, x) of the brightest spot, (2,).

    The centre of mass under a Gaussian window that is moved to the centre found, until it rests
    (the windowed position of SExtractor, Bertin and Arnouts, A&AS 117, 393, 1996). It has no edge
    that would cut a spot unevenly.
    """
    y, x = np.indices(image.shape)
    at = np.array(np.unravel_index(int(image.argmax()), image.shape), np.float64)
    for _ in range(ITERATIONS):
        r2 = (y - at[0]) ** 2 + (x - at[1]) ** 2
        weight = image * np.exp(-r2 / (2 * WINDOW_SIGMA_PX**2))
        moment = np.array([(weight * (y - at[0])).sum(), (weight * (x - at[1])).sum()])
        at += 2 * moment / weight.sum()
    return at


def one_emitter(place: np.ndarray, psf_sigma_px: float, rng: np.random.Generator) -> np.ndarray:
    """Let an emitter at input coordinates (y, x) flicker, (30, FIELD_PX, FIELD_PX) uint16, ADU."""
    emitter = Emitters(place[:1], place[1:], np.ones(1))
    amplitudes = rng.uniform(*PHOTONS, (1, frozen.FRAMES))
    edges = trials.edges_px(FIELD_PX)
    light = frozen.integrate(emitter, amplitudes, psf_sigma_px, edges)
    return np.stack([trials.SENSOR.expose(each + BACKGROUND_PHOTONS, rng) for each in light])


@dataclass(frozen=True, slots=True)
class Job:
    """All emitters behind one PSF."""

    psf_sigma_px: float
    emitters: int
    models: tuple[Path, ...]


def do(job: Job) -> dict[str, list[list[float]]]:
    """Measure the error (y, x) of every emitter in output px, by method."""
    steps = trials.loaded(job.models)
    methods = trials.methods(steps)
    errors: dict[str, list[list[float]]] = {name: [] for name in (*SHOWN, *steps)}
    for number in range(job.emitters):
        rng = np.random.default_rng((SEED, round(100 * job.psf_sigma_px), number))
        place = FIELD_PX / 2 + rng.uniform(-2, 2, 2)
        frames = one_emitter(place, job.psf_sigma_px, rng)
        expected = 2 * (place + 0.5) - 0.5  # the output's grid
        for name, found in errors.items():
            found.append([round(float(e), 4) for e in centre(methods[name](frames)) - expected])
    return errors


def measure(models: Sequence[Path], emitters: int, workers: int) -> Content:
    """Draw single emitters with every model and the methods that are shown beside.

    Returns
    -------
    dict
        ``errors``: PSF sigma in input px to method to the error (y, x) of each emitter, output px.
    """
    jobs = [Job(sigma_px, emitters, tuple(models)) for sigma_px in SIGMAS_PX]
    found = trials.spread(do, jobs, workers)
    errors = {str(job.psf_sigma_px): each for job, each in zip(jobs, found, strict=True)}
    shas = {name: step.sha256 for name, step in trials.loaded(models).items()}
    return {"models": shas, "emitters": emitters, "errors": errors}


def summary_table(content: Content) -> str:
    """Lay out, by PSF and method, the shift of all, the median distance and the worst."""
    rows = []
    for sigma_px, by_method in content["errors"].items():
        for method, errors in by_method.items():
            found = np.array(errors)  # (N, 2)
            distance = np.hypot(found[:, 0], found[:, 1])
            within = float(np.mean(distance <= ASKED_PX))
            shift = float(np.hypot(*found.mean(axis=0)))
            figures = (shift, float(np.median(distance)), float(distance.max()))
            rows.append([sigma_px, method, *(f"{f:.3f}" for f in figures), f"{within:.0%}"])
    within_head = f"within {ASKED_PX} px"
    head = ["PSF sigma, px", "method", "shift of all, px", "median, px", "worst, px", within_head]
    return table(head, rows)


SECTION = """
### Where single emitters are drawn

Distance of a single bright emitter's centre from where it is, in output px (pixel j lies at input
coordinate (j + 0.5) / 2 - 0.5);
{emitters} emitters at random places behind each PSF, flickering. *Shift of all* is the length of
their mean error: what a network that is not symmetric does. {asked} px was asked for
(`python -m training location`).

{summary}"""


def section(content: Content) -> str:
    """Write the model card's section, Markdown."""
    return SECTION.format(
        emitters=content["emitters"], asked=ASKED_PX, summary=summary_table(content)
    )


def report(content: Content, folder: Path) -> None:
    """Write ``location.json`` and ``location.md`` into a folder."""
    save_json(folder / "location.json", content)
    write_text(folder / "location.md", section(content))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training location``."""
    trials.add_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Run ``python -m training location``."""
    content = measure(trials.models_of(args), EMITTERS, args.workers)
    report(content, args.out)
    sys.stdout.write(summary_table(content))
    return 0
