"""Score every method on simulated stacks of a settings file, the original's own kind among them.

Not the frozen set, whose specimens and optics are a code path of their own: this is the training's
forward model, drawn from as the settings say, with seeds that are no other purpose's.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from device.errors import UserError
from device.files import write_text
from training import evaluate
from training import settings as settings_file
from training.baselines import REFERENCE, Method
from training.forward_model import WINDOW, ForwardModelSettings, Stack, simulate
from training.metrics import psnr_db
from training.pictures import panel_methods, save_panel
from training.reports import save_json, table
from training.revision import git_revision

log = logging.getLogger(__name__)

SEED = 20_136
SIZE_PX = 128
STACKS = 48

Content = dict[str, Any]


def stack_of(settings: ForwardModelSettings, number: int) -> Stack:
    """Simulate the stack with this number, (30, SIZE_PX, SIZE_PX)."""
    rng = np.random.default_rng((SEED, number))
    return simulate(settings, WINDOW, (SIZE_PX, SIZE_PX), rng)


def measure(settings: ForwardModelSettings, methods: Mapping[str, Method], stacks: int) -> Content:
    """Score all methods, the bicubic mean among them, on so many stacks.

    Returns
    -------
    dict
        ``families`` and ``psf_sigma_px`` of the stacks, and ``psnr_db``, method to the PSNR of
        each.
    """
    content: Content = {"families": [], "psf_sigma_px": [], "psnr_db": {m: [] for m in methods}}
    for number in range(stacks):
        stack = stack_of(settings, number)
        content["families"].append(stack.about["family"])
        content["psf_sigma_px"].append(round(stack.psf_sigma_px, 3))
        for name, method in methods.items():
            content["psnr_db"][name].append(psnr_db(method(stack.frames), stack.truth))
        log.info("%d of %d stacks are scored", number + 1, stacks)
    return content


def score_table(content: Content) -> str:
    """Lay out every method's mean PSNR, and how it stands to the bicubic mean, Markdown."""
    reference = np.array(content["psnr_db"][REFERENCE])
    head = ["PSNR, dB", "all", "over the mean", "worst against the mean", "stacks below the mean"]
    rows = []
    for name, scores in content["psnr_db"].items():
        gains = np.array(scores) - reference
        worst = worst_of(content, name)
        where = f"{gains[worst]:+.2f} ({content['families'][worst]}, {worst})"
        below = f"{np.sum(gains < 0)} of {len(gains)}"
        rows.append([name, f"{np.mean(scores):.2f}", f"{gains.mean():+.2f}", where, below])
    return table(head, rows)


def worst_of(content: Content, method: str) -> int:
    """Number of the stack on which a method stands worst against the bicubic mean."""
    scores = content["psnr_db"]
    return int(np.subtract(scores[method], scores[REFERENCE]).argmin())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training simulated``."""
    parser.add_argument(
        "--settings", default="original_drawn", help="name or TOML file (default: original_drawn)"
    )
    evaluate.add_model_argument(parser)
    evaluate.add_trained_arguments(parser)
    parser.add_argument("--stacks", type=int, default=STACKS, metavar="N", help="to simulate")
    parser.add_argument("--out", type=Path, default=Path("out/evaluation"), help="folder to write")


def main(args: argparse.Namespace) -> int:
    """Run ``python -m training simulated``."""
    if args.stacks < 1:
        raise UserError(f"--stacks is {args.stacks}; give 1 or more.")
    settings = settings_file.load(args.settings).forward_model
    models = evaluate.default_models() if args.model is None else args.model
    steps = evaluate.load_steps(models)
    trained = evaluate.trained_methods(args.twin, args.original)
    methods = evaluate.measured_methods(steps, trained)
    content = measure(settings, methods, args.stacks)
    args.out.mkdir(parents=True, exist_ok=True)
    about: Content = {"settings": args.settings, "git_revision": git_revision()}
    about |= {"models": {name: step.sha256 for name, step in steps.items()}}
    save_json(args.out / "simulated.json", about | content)
    text = score_table(content)
    write_text(args.out / "simulated.md", text)
    shown = panel_methods(steps)
    number = worst_of(content, f"{next(iter(steps))}, window")
    stack = stack_of(settings, number)
    images = {name: methods[name](stack.frames) for name in shown} | {"truth": stack.truth}
    save_panel(args.out / "panel-simulated.png", {f"stack {number}": images})
    sys.stdout.write(text)
    return 0
