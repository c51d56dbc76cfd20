"""What 30 frames of sparse blinking give, to our network and to one without its limits.

Each against a twin that was trained as long on the same stacks, of which it saw the mean alone; the
one without limits only where its runs are named, as they are not kept. Stacks are drawn from the
forward model that it was trained on (`training/settings/limit.toml`), few emitters and many, seldom
on and less seldom, with seeds that are others than those of training, validation and the frozen
set.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from device.errors import UserError
from device.files import write_text
from device.model import load_step
from training import baselines, evaluate, gains, trials
from training import settings as settings_file
from training.forward_model import WINDOW, ForwardModelSettings, Stack, simulate
from training.metrics import psnr_db
from training.reports import save_json, table
from training.revision import git_revision
from training.settings import TrainingSettings

log = logging.getLogger(__name__)

SEED = 20_135
SIZE_PX = 64
STACKS = 24  # per cell
DENSITIES = ((0.5, 2.0), (2.0, 6.0), (6.0, 16.0))  # emitters per output px of label
ON_FRACTIONS = ((0.02, 0.04), (0.04, 0.08))
LIMIT, LIMIT_TWIN = "without our step's limits", "without our step's limits, twin"
OURS, TWIN = "ours", "ours, twin"
PAIRS = ((LIMIT, LIMIT_TWIN), (OURS, TWIN))

Content = dict[str, Any]
Cell = tuple[tuple[float, float], tuple[float, float]]  # emitters per px, on-fraction


def stack_of(settings: ForwardModelSettings, cell: Cell, number: int) -> Stack:
    """Simulate the stack with this number, (30, SIZE_PX, SIZE_PX)."""
    density, on_fraction = cell
    chosen = settings.model_copy(update={"emitters_per_px": density, "on_fraction": on_fraction})
    seed = (SEED, DENSITIES.index(density), ON_FRACTIONS.index(on_fraction), number)
    return simulate(chosen, WINDOW, (SIZE_PX, SIZE_PX), np.random.default_rng(seed))


def measure(
    settings: ForwardModelSettings, methods: Mapping[str, baselines.Method], stacks: int
) -> Content:
    """Score all methods on so many stacks of each cell.

    Returns
    -------
    dict
        ``cells``: a list of ``emitters_per_px``, ``on_fraction`` and ``psnr_db``, method to the
        PSNR of each stack.
    """
    cells = []
    for cell in product(DENSITIES, ON_FRACTIONS):
        found: dict[str, list[float]] = {name: [] for name in methods}
        for number in range(stacks):
            stack = stack_of(settings, cell, number)
            for name, method in methods.items():
                found[name].append(psnr_db(method(stack.frames), stack.truth))
        cells.append({"emitters_per_px": cell[0], "on_fraction": cell[1], "psnr_db": found})
        log.info("%d of %d cells are done", len(cells), len(DENSITIES) * len(ON_FRACTIONS))
    return {"stacks": stacks, "cells": cells}


def gain(cells: Sequence[Content], one: str, other: str) -> tuple[float, float]:
    """Mean difference of two methods over the stacks of some cells, and its standard error, dB."""
    differences = np.concatenate(
        [np.subtract(cell["psnr_db"][one], cell["psnr_db"][other]) for cell in cells]
    )
    return float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(len(differences)))


def summary_table(content: Content) -> str:
    """Lay out every cell, and all of them: each method's PSNR, each pair's gain, Markdown."""
    cells = content["cells"]
    methods = list(cells[0]["psnr_db"])
    pairs = [pair for pair in PAIRS if set(pair) <= set(methods)]
    head = ["emitters per px", "on-fraction", *methods, *(f"{one}: gain" for one, _ in pairs)]
    rows = []
    for chosen in (*([cell] for cell in cells), cells):
        ranges = [_range(chosen, name) for name in ("emitters_per_px", "on_fraction")]
        scores = [np.mean([cell["psnr_db"][name] for cell in chosen]) for name in methods]
        gained = ["{:+.2f} ± {:.2f}".format(*gain(chosen, *pair)) for pair in pairs]
        rows.append([*ranges, *(f"{score:.2f}" for score in scores), *gained])
    return table(head, rows)


def _range(cells: Sequence[Content], name: str) -> str:
    ends = np.array([cell[name] for cell in cells])
    return f"{ends.min():g} to {ends.max():g}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training sparse``."""
    parser.add_argument(
        "--limit", type=Path, metavar="RUN",
        help="folder of `python -m training train --settings limit`",
    )  # fmt: skip
    parser.add_argument(
        "--limit-twin", type=Path, metavar="RUN", help="the same, --settings limit_twin"
    )
    parser.add_argument(
        "--model", type=Path, metavar="FILE", help="our float32 .tflite file (default: the newest)"
    )
    evaluate.add_twin_argument(parser)
    parser.add_argument("--stacks", type=int, default=STACKS, metavar="N", help="per cell, from 2")
    parser.add_argument("--out", type=Path, default=Path("out/evaluation"), help="folder to write")


def _checked_limit(run: Path, twin: Path) -> TrainingSettings:
    """Return the run's settings, after a look whether the two are a run and its twin."""
    settings, of_twin = (settings_file.of_run(each) for each in (run, twin))
    if settings.dataset.copies or not of_twin.dataset.copies:
        raise UserError(
            "The twin is the run on copies of the mean: name it with --limit-twin, and the run on "
            "frames with --limit."
        )
    return settings


def main(args: argparse.Namespace) -> int:
    """Run ``python -m training sparse``."""
    from training.train import Run  # Keras, which nothing else here needs
    from training.windows import load_method

    if args.stacks < 2:
        raise UserError(f"--stacks is {args.stacks}; at least 2 are needed for a standard error.")
    if (args.limit is None) != (args.limit_twin is None):
        raise UserError("Name both of --limit and --limit-twin, or none: they are compared.")
    if args.limit is None and args.twin is None:
        raise UserError(
            "A gain is one over a twin: name ours with --twin, or both runs of the limit."
        )
    models = [args.model] if args.model else evaluate.default_models()
    ours = load_step(gains.chosen_model(models))
    methods = {baselines.REFERENCE: baselines.methods()[baselines.REFERENCE]}
    settings, runs = settings_file.load("limit"), {}
    if args.limit is not None:
        for name, run in ((LIMIT_TWIN, args.limit_twin), (LIMIT, args.limit)):
            methods[name] = load_method(run, "limit")
            runs[run.name] = json.loads(Run(run).about.read_text())
        settings = _checked_limit(args.limit, args.limit_twin)
    if args.twin is not None:
        methods[TWIN] = partial(evaluate.twin_image, load_step(args.twin))
    methods[OURS] = trials.model_method(ours)
    about = {"git_revision": git_revision(), "models": {ours.name: ours.sha256}, "runs": runs}
    content = about | measure(settings.forward_model, methods, args.stacks)
    args.out.mkdir(parents=True, exist_ok=True)
    save_json(args.out / "sparse.json", content)
    text = summary_table(content)
    write_text(args.out / "sparse.md", text)
    sys.stdout.write(text)
    return 0
