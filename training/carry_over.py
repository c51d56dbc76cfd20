"""Carry the weights of a run of 0.6.0 over to the form with knots of the PSF's width.

There the modulation was a function of eight rectified ones of the width; here it is what that is at
the knots, within the new limits. Used once, for 0.7.0.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import h5py
import numpy as np

from training.network import SCALE_RANGE, build_step
from training.revision import git_revision
from training.settings import TrainingSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training carry_over``."""
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def main(arguments: argparse.Namespace) -> int:
    """Write the run's best weights in the new form, with what is known of how they were made."""
    old, new = arguments.run, arguments.out
    given = json.loads((old / "settings.json").read_text())
    del given["network"]["psf_features"], given["head_gain"]
    settings = TrainingSettings.model_validate(given)
    step = build_step(settings.network, 16, 16)
    names = ["correction", "factors", "head_mean", "head_hidden"]
    names += ["gates_frame", "gates_hidden", "gates_products"]
    layers = {name: getattr(step, name) for name in names}
    layers |= {_numbered("head/folded_conv2d", k): layer for k, layer in enumerate(step.head)}
    layers["layers/folded_conv2d_11"] = step.upsampling
    with h5py.File(old / "best.weights.h5") as file:
        for name, layer in layers.items():
            for k, variable in enumerate(layer.variables):
                variable.assign(file[f"{name}/vars/{k}"])
        slope, offset = (np.array(file[f"layers/dense/vars/{k}"]) for k in range(2))
        knots = np.array(step.settings.psf_knots_px)[:, None]
        change = np.maximum(knots * slope + offset, 0) - np.maximum(offset, 0)  # (knots, 8)
        for k, modulation in enumerate(step.modulations):
            name = _numbered("layers/psf_modulation", k)
            values = change @ np.array(file[f"{name}/vars/0"])
            scales = values.shape[1] // 2
            low, high = np.array(SCALE_RANGE) - 1
            values[:, :scales] = np.clip(values[:, :scales], low, 0.97 * high)
            modulation.kernel.assign(values)
    new.mkdir(parents=True)
    step.save_weights(new / "best.weights.h5")
    (new / "settings.json").write_text(settings.model_dump_json(indent=2))
    shutil.copy(old / "best.json", new / "best.json")
    about = json.loads((old / "run.json").read_text())
    command = f"python -m training carry_over --run {old} --out {new}"
    about["carried_over"] = {"command": command, "git_revision": git_revision()}
    (new / "run.json").write_text(json.dumps(about, indent=2))
    return 0


def _numbered(name: str, k: int) -> str:
    return name + (f"_{k}" if k else "")
