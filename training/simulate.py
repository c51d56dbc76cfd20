"""``python -m training simulate``: stacks to look at in Fiji or napari, with their truth."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import tifffile

from device.errors import UserError
from training import settings as settings_file
from training.forward_model import Stack, simulate

log = logging.getLogger(__name__)

PURPOSE = 3  # second word of the seed: none of the training's, validation's or calibration's stacks


def write(stack: Stack, path: Path) -> None:
    """Write frames, (T, H, W) uint16, and beside them the truth, (2H, 2W) float32, as TIFF."""
    about = json.dumps({"psf_sigma_px": stack.psf_sigma_px} | stack.about, default=str)
    tifffile.imwrite(path, stack.frames, imagej=True, metadata={"axes": "TYX", "Info": about})
    truth = path.with_name(f"{path.stem}-truth.tif")
    tifffile.imwrite(truth, stack.truth, imagej=True, metadata={"axes": "YX", "Info": about})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--settings", default="base", help="name or TOML file (default: base)")
    parser.add_argument("--stacks", type=int, default=8)
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--size", type=int, default=128, metavar="PX", help="height and width")
    parser.add_argument("--seed", type=int, default=1)


def main(arguments: argparse.Namespace) -> int:
    """Run ``python -m training simulate``."""
    for name, least in (("stacks", 1), ("frames", 1), ("size", 16), ("seed", 0)):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name} is {getattr(arguments, name)}; give {least} or more.")
    model = settings_file.load(arguments.settings).forward_model
    arguments.out.mkdir(parents=True, exist_ok=True)
    for number in range(arguments.stacks):
        rng = np.random.default_rng([arguments.seed, PURPOSE, number])
        stack = simulate(model, arguments.frames, (arguments.size, arguments.size), rng)
        path = arguments.out / f"stack-{number:03d}.tif"
        write(stack, path)
        log.info("%s: %s", path, stack.about["family"])
    return 0
