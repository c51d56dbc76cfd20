"""How well frames could tell two emitters' distance, and how well their mean could.

Cramer-Rao bounds (`training.fisher`) of an unbiased estimate, from the mean image of 30 frames and
from the frames themselves: the ratio is the most that any method can gain by looking at frames, a
network included. *Resolved* is a distance from which on the bound is below half of it, after Ram,
Ward and Ober (PNAS 103, 4457, 2006), who resolve by Fisher information instead of by Rayleigh's
eye. Nothing here knows a network or a stack.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from device.errors import UserError
from device.files import write_text
from training import fisher, trials
from training.fisher import Blinking, Pair
from training.reports import save_figure, save_json, table
from training.resolution import reached

SEED = 20_135
FRAMES = 30
PSF_SIGMA_PX = 1.4
DISTANCES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0)  # over the PSF's sigma
SHOWN = (0.3, 0.5, 1.0, 2.0, 3.0)  # of them, in tables
PHOTONS = (25.0, 150.0, 400.0)
ON_FRACTIONS = (0.02, 0.05, 0.1, 0.3, 0.5)
MEMBERS = (1, 2, 4, 8, 16)
CROWDED = (400.0, 0.1)  # photons of all at one place when on, and on-fraction
APERTURES = (0.5, 0.95, 2.0)  # of the detection's; 0.5 to 0.95 in the frozen set, 2 of a waveguide
SAMPLES = 4000  # frames of each state
BATCHES = 4  # that the samples come in: their scatter is the error
RESOLVED = 0.5  # of the distance

Content = dict[str, Any]
LABELS = {
    "mean": "mean image",
    "unknown": "frames",
    "known": "frames, told",
}


@dataclass(frozen=True, slots=True)
class Job:
    """Two places at every distance under one condition; `aperture` for speckle, else blinking."""

    photons: float
    samples: int
    on_fraction: float = 1.0
    members: int = 1
    aperture: float | None = None


def pair_at(distance: float, photons: float) -> Pair:
    """Two equal emitters so many sigma apart, seen by the camera of `training.trials`.

    Photons are those of one emitter in a frame in which it is on. The background of a pixel is a
    part of what an emitter that is on gives to a pixel at its place.
    """
    electrons = trials.SENSOR.quantum_efficiency * photons
    peak = electrons * Pair(0.0, 0.0, 1.0, 1.0, 1.0, PSF_SIGMA_PX).basis()[2].max()
    floor = trials.BACKGROUND * peak + trials.SENSOR.read_noise_e**2
    return Pair(distance * PSF_SIGMA_PX, 0.0, electrons, electrons, floor, PSF_SIGMA_PX)


def _over_sigma(information: np.ndarray) -> float:
    return fisher.distance_error_px(information, FRAMES) / PSF_SIGMA_PX


def estimated(draw: Callable[[int], np.ndarray], samples: int) -> tuple[float, float]:
    """Bound over sigma from a simulated information, and its standard error by the jackknife.

    `draw` estimates the information from so many samples.
    """
    parts = np.stack([draw(max(1, samples // BATCHES)) for _ in range(BATCHES)])
    without = [_over_sigma(np.delete(parts, k, axis=0).mean(axis=0)) for k in range(BATCHES)]
    error = np.sqrt((BATCHES - 1) * np.var(without)) if np.all(np.isfinite(without)) else np.inf
    return _over_sigma(parts.mean(axis=0)), float(error)


def do(job: Job) -> dict[str, list[float]]:
    """Find the bounds over sigma at every distance: mean, frames unknown and told, the error."""
    found: dict[str, list[float]] = {}
    for number, distance in enumerate(DISTANCES):
        rng = np.random.default_rng((SEED, number))
        bounds = (_blinking if job.aperture is None else _speckle)(job, distance, rng)
        for name, value in bounds.items():
            found.setdefault(name, []).append(float(f"{value:.4g}"))
    return found


def _blinking(job: Job, distance: float, rng: np.random.Generator) -> dict[str, float]:
    pair, blinking = pair_at(distance, job.photons), Blinking(job.on_fraction, job.members)
    samples = max(4 * BATCHES, job.samples * 4 // len(blinking.states))  # in all as for one each
    unknown, error = estimated(
        lambda count: fisher.from_unknown_states(pair, blinking, count, rng), samples
    )
    return {
        "mean": _over_sigma(fisher.from_mean(pair, job.on_fraction)),
        "unknown": unknown,
        "known": _over_sigma(fisher.from_known_states(pair, blinking)),
        "unknown_error": error,
    }


def _speckle(job: Job, distance: float, rng: np.random.Generator) -> dict[str, float]:
    assert job.aperture is not None
    pair, aperture = pair_at(distance, job.photons), job.aperture
    light = fisher.excitation(pair, aperture, job.samples, rng)  # the same for both bounds
    parts = iter(np.array_split(light, BATCHES))
    unknown, error = estimated(
        lambda _: fisher.from_unknown_excitation(pair, next(parts)), job.samples
    )
    return {
        "mean": _over_sigma(fisher.from_mean(pair, 1.0)),
        "unknown": unknown,
        "known": _over_sigma(fisher.from_known_excitation(pair, light)),
        "unknown_error": error,
    }


def jobs(samples: int) -> dict[str, list[Job]]:
    """List all conditions, by what is asked of them."""
    photons, on_fraction = CROWDED
    return {
        "blinking": [Job(n, samples, on_fraction=p) for n in PHOTONS for p in ON_FRACTIONS],
        "crowded": [Job(photons, samples, on_fraction, members) for members in MEMBERS],
        "speckle": [Job(n, samples, aperture=a) for n in PHOTONS for a in APERTURES],
    }


def measure(samples: int, workers: int) -> Content:
    """Find all bounds.

    Returns
    -------
    dict
        ``blinking``, ``crowded`` and ``speckle``: a list of conditions, each with its bounds over
        sigma, one per value of ``distances``. What else is needed to read them stands beside.
    """
    wanted = jobs(samples)
    found = iter(trials.spread(do, [job for each in wanted.values() for job in each], workers))
    return {
        "frames": FRAMES,
        "psf_sigma_px": PSF_SIGMA_PX,
        "samples": samples,
        "distances": list(DISTANCES),
        **{name: [_condition(job) | next(found) for job in each] for name, each in wanted.items()},
    }


def _condition(job: Job) -> Content:
    if job.aperture is not None:
        return {"photons": job.photons, "aperture": job.aperture}
    condition = {"photons": job.photons, "on_fraction": job.on_fraction, "members": job.members}
    return condition | {"never_on": round(never_on(job.on_fraction, job.members), 4)}


def never_on(on_fraction: float, members: int = 1) -> float:
    """Probability that one of the two places stays dark in all the frames."""
    dark = (1 - on_fraction) ** (FRAMES * members)
    return float(1 - (1 - dark) ** 2)


# ------------------------------------------------------------------------------------------- report


def ratios(found: Mapping[str, Any], name: str) -> np.ndarray:
    """Bound from the mean over that from the frames, (D,): what the frames can gain at most."""
    return np.asarray(found["mean"]) / np.asarray(found[name])


def resolved(found: Mapping[str, Any], name: str) -> float | None:
    """Distance over sigma from which on the bound is below half of it; None beyond the largest."""
    part = np.asarray(found[name]) / DISTANCES
    return reached(DISTANCES, -np.log(part), -np.log(RESOLVED))


def _place(value: float | None) -> str:
    if value is None:
        return f"over {DISTANCES[-1]:g}"
    return f"under {value:g}" if value == DISTANCES[0] else f"{value:.2f}"


def condition_table(content: Content, name: str, columns: Mapping[str, str]) -> str:
    """Lay conditions out: where they are resolved, and the ratios at the `SHOWN` distances.

    `columns` are the conditions' keys, with what stands over them.
    """
    at = [DISTANCES.index(distance) for distance in SHOWN]
    head = [*columns.values(), *(f"resolved from, {label}" for label in LABELS.values())]
    head += [f"ratio at {distance:g}" for distance in SHOWN]
    head += [f"told, at {distance:g}" for distance in SHOWN]
    rows = []
    for found in content[name]:
        cells = [f"{found[key]:g}" for key in columns]
        cells += [_place(resolved(found, what)) for what in LABELS]
        cells += [f"{ratios(found, w)[i]:.2f}" for w in ("unknown", "known") for i in at]
        rows.append(cells)
    return table(head, rows)


def largest_error(content: Content) -> float:
    """Largest standard error of a simulated bound over the bound, at the distances shown."""
    at = [DISTANCES.index(distance) for distance in SHOWN]
    return max(
        found["unknown_error"][i] / found["unknown"][i]
        for name in ("blinking", "crowded", "speckle")
        for found in content[name]
        for i in at
    )


SPAN = "- {}: the frames tell {:.2f} to {:.2f} times as well, told {:.2f} to {:.2f}.\n"


def sentences(content: Content) -> str:
    """Say for each number of photons from where on two are resolved, and what is gained."""
    lines = []
    for photons in PHOTONS:
        mine = [found for found in content["blinking"] if found["photons"] == photons]
        ends = "; ".join(map(_clause, (mine[0], mine[-1])))
        lines.append(f"- {photons:g} photons: two emitters are resolved, {ends}.\n")
    for name in CONDITIONS:
        spans = (edge for what in ("unknown", "known") for edge in span(content[name], what))
        lines.append(SPAN.format(TITLES[name], *spans))
    return "".join(lines)


def _clause(found: Mapping[str, Any]) -> str:
    mean, frames, told = (_place(resolved(found, what)) for what in LABELS)
    return (
        f"on in {found['on_fraction']:.0%} of the frames, from {mean} sigma on by the mean, "
        f"{frames} by the frames, {told} if told the states"
    )


def span(conditions: Sequence[Mapping[str, Any]], what: str) -> tuple[float, float]:
    """Smallest and largest ratio over the conditions and the distances shown."""
    at = [DISTANCES.index(distance) for distance in SHOWN]
    every = np.concatenate([ratios(found, what)[at] for found in conditions])
    return float(every.min()), float(every.max())


SECTION = """
### What frames can tell beyond their mean

![Bound from the mean over that from the frames, against the distance]({picture})

Cramer-Rao bounds of the distance of two equal emitters from {frames} frames, PSF sigma
{psf_sigma_px} px (`python -m training bound`). Distances are in sigma. *Ratio* is the bound from
the mean over that from the frames, *told* the same if the states, or the excitation, of each frame
were known: no method gains more by looking at them. Of emitters that blink the on-fraction is
known, so that the ratio itself is a ceiling; the excitation may be any in each frame, so that under
speckle a method may come to between the two. *Resolved* is a distance from which on the bound is
below half of it. *One never on* is how often one of the two stays dark in all the frames; the
bounds are those of the average stack. Photons are those of one emitter in a frame in which it is
on. The largest standard error of a simulated bound in the tables is {error:.1%} of it.

{sentences}
{tables}"""
CONDITIONS: dict[str, dict[str, str]] = {  # keys of a condition, and what stands over them
    "blinking": {"photons": "photons", "on_fraction": "on-fraction", "never_on": "one never on"},
    "crowded": {"members": "emitters per place", "never_on": "one never on"},
    "speckle": {"photons": "photons", "aperture": "aperture of the speckle"},
}
TITLES = {
    "blinking": "Two blinking emitters",
    "crowded": f"Several blinking emitters at each of two places, {CROWDED[0]:g} photons together "
    f"when all are on, on-fraction {CROWDED[1]:g}",
    "speckle": "Two emitters under speckle, its aperture over that of the detection",
}


def section(content: Content, picture: str = "bound.png") -> str:
    """Write a report's section, Markdown, with the name of the picture beside it."""
    tables = "\n".join(
        f"{TITLES[name]}:\n\n{condition_table(content, name, columns)}"
        for name, columns in CONDITIONS.items()
    )
    return SECTION.format(
        picture=picture,
        error=largest_error(content),
        sentences=sentences(content),
        tables=tables,
        **{name: content[name] for name in ("frames", "psf_sigma_px")},
    )


def save_plot(path: Path, content: Content) -> None:
    """Draw the ratios against the distance: states unknown above, told below."""
    from matplotlib.figure import Figure  # slow, and only this needs it

    groups = [
        *(
            (f"{photons:g} photons", [f for f in content["blinking"] if f["photons"] == photons])
            for photons in PHOTONS
        ),
        ("several emitters", content["crowded"]),
        ("speckle", content["speckle"]),
    ]
    figure = Figure(figsize=(4.2 * len(groups), 8), layout="constrained")
    axes = figure.subplots(2, len(groups), squeeze=False, sharey=True)
    for line, what in zip(axes, ("unknown", "known"), strict=True):
        for axis, (title, conditions) in zip(line, groups, strict=True):
            for found in conditions:
                axis.loglog(DISTANCES, ratios(found, what), ".-", label=_label(found))
            axis.axhline(1.0, color="grey", linewidth=0.8)
            axis.set(title=f"{title}: {LABELS[what]}", xlabel="distance over sigma")
            axis.legend(fontsize=7)
        line[0].set_ylabel("bound from the mean over that from the frames")
    save_figure(path, figure)


def _label(found: Mapping[str, Any]) -> str:
    if "aperture" in found:
        return f"{found['photons']:g} photons, aperture {found['aperture']:g}"
    if found["members"] > 1:
        return f"{found['members']} at each place"
    return f"on for {found['on_fraction']:.0%}"


def report(content: Content, folder: Path) -> None:
    """Write ``bound.json``, ``bound.md`` and ``bound.png`` into a folder."""
    save_json(folder / "bound.json", content)
    write_text(folder / "bound.md", section(content))
    save_plot(folder / "bound.png", content)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training bound``."""
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, metavar="N", help="simulated frames of each state"
    )
    trials.add_output_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Run ``python -m training bound``."""
    if args.samples < BATCHES:
        raise UserError(f"--samples is {args.samples}; give {BATCHES} or more, better {SAMPLES}.")
    trials.check_workers(args)
    args.out.mkdir(parents=True, exist_ok=True)
    content = measure(args.samples, args.workers)
    report(content, args.out)
    sys.stdout.write(sentences(content))
    return 0
