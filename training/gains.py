"""What the frames give beyond their mean: maps of the gain over the twin.

The network fed the frames against its twin, which was trained on copies of the mean alone and is
fed such (`training.evaluate.twin_image`), on thin simulated stacks of the training's own forward
model. Two conditions span each map, the others stay at `BASE`. The stack of a number has the same
PSF and specimen in every cell, so that neighbouring cells differ by what is varied, and every gain
is one of two images of the same frames. Where nothing fluctuates the frames tell no more than their
mean: what is gained there is the difference of two trainings. *Net* is what is left of a gain
without that, stack by stack. Seeds are others than those of training, validation, calibration and
the frozen set.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from device.errors import UserError
from device.files import write_text
from device.model import load_step
from training import evaluate, trials
from training.forward_model import ForwardModelSettings, Stack, simulate
from training.metrics import psnr_db
from training.reports import save_figure, save_json, table

SEED = 20_134
SIZE_PX = 64
STACKS = 6  # per cell
ON_TIME_FRAMES = 1.0
ERRORS = 2.0  # standard errors by which a gain must differ from 0 to be told from it

Content = dict[str, Any]
Fluctuation = Literal["blinking", "speckle", "none"]


@dataclass(frozen=True, slots=True)
class Cell:
    """Conditions under which stacks are drawn.

    Attributes
    ----------
    fluctuation : str
        ``blinking``, ``speckle`` (of full contrast, through an objective), or ``none`` (even
        excitation, emitters that do not blink: only the camera's noise changes).
    photons : float
        Per frame, as the forward model defines them.
    on_fraction : float
        Of blinking emitters.
    emitters_per_px : float
        Blinking emitters per output px of label.
    grain_px : float
        Finest fringe of the speckle in output px.
    frames : int
        Length of the stack.
    """

    fluctuation: Fluctuation
    photons: float = 150.0
    on_fraction: float = 0.1
    emitters_per_px: float = 4.0
    grain_px: float = 4.0
    frames: int = 30


Axis = tuple[str, tuple[Any, ...]]  # the attribute that is varied, and its values
PHOTONS: Axis = ("photons", (25.0, 60.0, 150.0, 400.0))
ON_FRACTIONS: Axis = ("on_fraction", (0.02, 0.05, 0.1, 0.3, 0.5))
DENSITIES: Axis = ("emitters_per_px", (1.0, 4.0, 16.0, 64.0))
GRAINS: Axis = ("grain_px", (2.0, 4.0, 8.0, 16.0))
FRAMES: Axis = ("frames", (4, 8, 15, 30, 60, 120))
KINDS: Axis = ("fluctuation", ("blinking", "speckle", "none"))

BASE = Cell("blinking")
MAPS: dict[str, tuple[Cell, Axis, Axis]] = {  # the base, what goes down, what goes across
    "density": (BASE, DENSITIES, ON_FRACTIONS),
    "photons": (BASE, PHOTONS, ON_FRACTIONS),
    "grain": (replace(BASE, fluctuation="speckle"), PHOTONS, GRAINS),
    "kind": (BASE, PHOTONS, KINDS),
    "frames": (BASE, KINDS, FRAMES),
}
LABELS = {
    "photons": "photons per frame",
    "on_fraction": "on-fraction",
    "emitters_per_px": "emitters per output px",
    "grain_px": "finest fringe, output px",
    "frames": "frames",
    "fluctuation": "fluctuation",
}


@dataclass(frozen=True, slots=True)
class Job:
    """One stack of one cell, for a model and its twin."""

    cell: Cell
    number: int
    model: Path
    twin: Path


# ------------------------------------------------------------------------------------------ a stack


def settings_of(cell: Cell) -> ForwardModelSettings:
    """Fix what a cell fixes; all else is drawn as for the training, of thin specimens alone."""
    return ForwardModelSettings(
        thin_fraction=1.0,
        both_fraction=0.0,
        usual_psf_fraction=1.0,
        photons=(cell.photons, cell.photons),
        blinking_fraction=float(cell.fluctuation == "blinking"),
        bleaching_fraction=0.0,
        on_fraction=(cell.on_fraction, cell.on_fraction),
        on_time_frames=(ON_TIME_FRAMES, ON_TIME_FRAMES),
        emitters_per_px=(cell.emitters_per_px, cell.emitters_per_px),
        speckle_grain_px=(cell.grain_px, cell.grain_px),
        speckle_modes=(40, 40),
        diffuser_fraction=1.0,
        speckle_contrast=(0.0, 0.0) if cell.fluctuation == "none" else (1.0, 1.0),
    )


def stack_of(cell: Cell, number: int) -> Stack:
    """Simulate the stack with this number, (T, SIZE_PX, SIZE_PX)."""
    rng = np.random.default_rng((SEED, number))
    return simulate(settings_of(cell), cell.frames, (SIZE_PX, SIZE_PX), rng)


def do(job: Job) -> float:
    """PSNR of the model, fed the frames, less that of the twin, fed copies of their mean, in dB."""
    (model,) = trials.loaded([job.model]).values()
    (twin,) = trials.loaded([job.twin]).values()
    stack = stack_of(job.cell, job.number)
    ours = trials.model_method(model)(stack.frames)
    twins = evaluate.twin_image(twin, stack.frames)
    return psnr_db(ours, stack.truth) - psnr_db(twins, stack.truth)


# ---------------------------------------------------------------------------------------- all cells


def cells_of(name: str) -> list[list[Cell]]:
    """List the cells of a map, row by row."""
    base, (down, rows), (across, columns) = MAPS[name]
    return [[replace(base, **{down: row, across: column}) for column in columns] for row in rows]


def measure(model: Path, twin: Path, stacks: int, workers: int) -> Content:
    """Measure the gain in every cell on so many stacks; cells that are alike are measured once.

    Parameters
    ----------
    model, twin : Path
        Float32 .tflite files.
    stacks : int
        Per cell, 2 or more.
    workers : int
        Processes; 0 is only this one.

    Returns
    -------
    dict
        ``maps``: name to ``gain_db``, ``net_db`` (less the gain of the same stacks where nothing
        fluctuates) and their standard errors ``gain_error_db`` and ``net_error_db``, each a list of
        rows, the axes beside. ``overall``: see there. What else is needed to read them stands
        beside.
    """
    cells = list(dict.fromkeys(cell for name in MAPS for row in cells_of(name) for cell in row))
    jobs = [Job(cell, number, model, twin) for cell in cells for number in range(stacks)]
    gains = np.reshape(trials.spread(do, jobs, workers), (len(cells), stacks))
    found = dict(zip(cells, gains, strict=True))
    return {
        "model": {name: step.sha256 for name, step in trials.loaded([model]).items()},
        "twin": {name: step.sha256 for name, step in trials.loaded([twin]).items()},
        "stacks": stacks,
        "base": asdict(BASE),
        "overall": overall(found),
        "maps": {name: _map(name, found) for name in MAPS},
    }


def still(cell: Cell) -> Cell:
    """Take the fluctuation from a cell."""
    return replace(BASE, fluctuation="none", photons=cell.photons, frames=cell.frames)


def overall(found: Mapping[Cell, np.ndarray]) -> Content:
    """Bring all cells' gains, (stacks,) each, to a few numbers.

    Returns
    -------
    dict
        For ``gain`` and ``net`` over the cells with a fluctuation, and for ``none``, the gain over
        those without at `BASE`'s number of frames: ``cells``; ``above`` and ``below``, of them more
        than `ERRORS` standard errors over and under 0; ``largest_db`` and ``smallest_db``;
        ``mean_db`` and its standard error ``error_db`` over the stacks, which all cells share.
    """
    moving = [cell for cell in found if cell.fluctuation != "none"]
    steady = [cell for cell in found if cell.fluctuation == "none" and cell.frames == BASE.frames]
    return {
        "gain": _numbers(np.array([found[cell] for cell in moving])),
        "net": _numbers(np.array([found[cell] - found[still(cell)] for cell in moving])),
        "none": _numbers(np.array([found[cell] for cell in steady])),
    }


def _error(values: np.ndarray) -> np.ndarray:
    """Give the standard error of means over the last axis."""
    return np.asarray(np.std(values, axis=-1, ddof=1) / np.sqrt(values.shape[-1]))


def _numbers(gains: np.ndarray) -> Content:
    """Summarize gains, (cells, stacks)."""
    mean, error = gains.mean(axis=1), _error(gains)
    return {
        "cells": len(gains),
        "above": int(np.sum(mean > ERRORS * error)),
        "below": int(np.sum(mean < -ERRORS * error)),
        "largest_db": round(float(mean.max()), 3),
        "smallest_db": round(float(mean.min()), 3),
        "mean_db": round(float(mean.mean()), 3),
        "error_db": round(float(_error(gains.mean(axis=0))), 3),
    }


def _map(name: str, found: Mapping[Cell, np.ndarray]) -> Content:
    """Average the gains, (stacks,) per cell, and what is left of them beyond the still cells'."""
    _, (down, rows), (across, columns) = MAPS[name]
    gains = np.array([[found[cell] for cell in row] for row in cells_of(name)])  # (R, C, stacks)
    steady = np.array([[found[still(cell)] for cell in row] for row in cells_of(name)])
    content: Content = {
        "down": {"name": down, "values": list(rows)},
        "across": {"name": across, "values": list(columns)},
    }
    for what, values in (("gain", gains), ("net", gains - steady)):
        content[f"{what}_db"] = np.round(values.mean(axis=2), 3).tolist()
        content[f"{what}_error_db"] = np.round(_error(values), 3).tolist()
    return content


# ------------------------------------------------------------------------------------------- report


TITLES = {"gain": "Over the twin", "net": "Net, less the same without fluctuation"}
SUMMARY = (
    "- {title}: {mean_db:+.2f} ± {error_db:.2f} dB on average over {cells} cells with a "
    "fluctuation, from {smallest_db:+.2f} to {largest_db:+.2f}; in {above} more than two standard "
    "errors above 0, in {below} below.\n"
)
STILL = "- Over the twin where nothing fluctuates: {mean_db:+.2f} ± {error_db:.2f} dB.\n"


def summaries(content: Content) -> str:
    """Bring all maps to three lines, Markdown."""
    found = content["overall"]
    lines = [SUMMARY.format(title=title, **found[what]) for what, title in TITLES.items()]
    return "".join([*lines, STILL.format(**found["none"])])


def _named(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def map_table(found: Content, what: str) -> str:
    """Lay one map out: gain, or net gain, and its standard error in dB, Markdown."""
    down, across = found["down"], found["across"]
    head = [f"{LABELS[down['name']]} \\ {LABELS[across['name']]}", *map(_named, across["values"])]
    lines = zip(down["values"], found[f"{what}_db"], found[f"{what}_error_db"], strict=True)
    rows = [
        [_named(value), *(f"{gain:+.2f} ± {error:.2f}" for gain, error in zip(*row, strict=True))]
        for value, *row in lines
    ]
    return table(head, rows)


def tables(content: Content) -> str:
    """Lay all maps out, the summary first, Markdown."""
    maps = content["maps"].values()
    parts = [
        f"{title}:\n\n" + "\n".join(map_table(found, what) for found in maps)
        for what, title in TITLES.items()
    ]
    return "\n".join([summaries(content), *parts])


SECTION = """
### What the fluctuation gives

![Gain over the twin, over pairs of conditions]({picture})

PSNR of the network fed the frames less that of its twin fed copies of their mean, in dB, with its
standard error over {stacks} thin simulated stacks per cell, outside of the frozen set
(`python -m training gains`). *Net* is less what is gained on the same specimen, photons and frames
where nothing fluctuates: there the frames tell no more than their mean, and a gain is that of one
training over the other. What is not varied stays at: {base}. A stack of more
than 30 frames is a stream for the network, which is played once; the twin is fed the mean of all
of them, twice as any window.

{tables}"""


def section(content: Content, picture: str = "gains.png") -> str:
    """Write a model card's section, Markdown, with the name of the picture beside the card."""
    at = content["base"].items()
    base = ", ".join(f"{LABELS[n]} {_named(value)}" for n, value in at if n != "fluctuation")
    shown = tables(content)
    return SECTION.format(picture=picture, stacks=content["stacks"], base=base, tables=shown)


def save_plot(path: Path, content: Content) -> None:
    """Draw the maps side by side, net below, one scale of colours for all, white at 0."""
    from matplotlib.figure import Figure  # slow, and only this needs it

    maps = content["maps"]
    figure = Figure(figsize=(5.2 * len(maps), 4.5 * len(TITLES)), layout="constrained")
    axes = figure.subplots(len(TITLES), len(maps), squeeze=False)
    limit = max(np.abs(found["gain_db"]).max() for found in maps.values())
    for line, (what, title) in zip(axes, TITLES.items(), strict=True):
        for axis, found in zip(line, maps.values(), strict=True):
            image = _draw(axis, found, what, limit)
            axis.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axes, label="gain, dB")
    save_figure(path, figure)


def _draw(axis: Any, found: Content, what: str, limit: float) -> Any:
    """Draw one map with its numbers; returns what the scale of colours belongs to."""
    gains, errors = found[f"{what}_db"], found[f"{what}_error_db"]
    image = axis.imshow(gains, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), gain in np.ndenumerate(gains):
        colour = "white" if abs(gain) > 0.7 * limit else "black"
        text = f"{gain:+.2f}\n± {errors[row][column]:.2f}"
        axis.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    down, across = found["down"], found["across"]
    axis.set_xticks(range(len(across["values"])), map(_named, across["values"]))
    axis.set_yticks(range(len(down["values"])), map(_named, down["values"]))
    axis.set(xlabel=LABELS[across["name"]], ylabel=LABELS[down["name"]])
    return image


def report(content: Content, folder: Path) -> None:
    """Write ``gains.json``, ``gains.md`` and ``gains.png`` into a folder."""
    save_json(folder / "gains.json", content)
    write_text(folder / "gains.md", section(content))
    save_plot(folder / "gains.png", content)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training gains``."""
    trials.add_arguments(parser)
    evaluate.add_twin_argument(parser)
    parser.add_argument("--stacks", type=int, default=STACKS, metavar="N", help="per cell, from 2")


def chosen_model(models: Sequence[Path]) -> Path:
    """Take the float32 model: the one named, or that of the newest in models/.

    Raises
    ------
    UserError
        There is none, or more than one is named.
    """
    floats = [path for path in models if not path.stem.endswith("int8")]
    if len(floats) != 1:
        raise UserError(
            f"{len(floats)} of {len(models)} files are float32 models; name one float32 .tflite "
            "file with --model."
        )
    return floats[0]


def main(args: argparse.Namespace) -> int:
    """Run ``python -m training gains``."""
    if args.stacks < 2:
        raise UserError(f"--stacks is {args.stacks}; at least 2 are needed for a standard error.")
    if args.twin is None:
        raise UserError("No twin is named; give its float32 .tflite file with --twin.")
    load_step(args.twin)  # refused before anything is simulated
    model = chosen_model(trials.models_of(args))
    content = measure(model, args.twin, args.stacks, args.workers)
    report(content, args.out)
    sys.stdout.write(tables(content))
    return 0
