"""Carry the weights of a run over from the form that models up to 0.5.0 have.

There the PSF's modulation had a bias of its own, a scale s and a shift t of the channels where the
width is not known. They go into the convolution before it, exactly; the modulation becomes what
the width changes of it. Used once, for 0.6.0.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
from keras import ops

from training.network import build_step
from training.revision import git_revision
from training.settings import TrainingSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training carry_over``."""
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def main(arguments: argparse.Namespace) -> int:
    """Write the run's best weights in the new form, with what is known of how they were made."""
    old, new = arguments.run, arguments.out
    settings = TrainingSettings.model_validate_json((old / "settings.json").read_text())
    step = build_step(settings.network, 16, 16)
    with h5py.File(old / "best.weights.h5") as file:
        weights = {k: np.array(v["vars/1"]) for k, v in _groups(file) if "1" in v["vars"]}
        kernels = {k: np.array(v["vars/0"]) for k, v in _groups(file)}
    layers = {"correction": step.correction, "factors": step.factors}
    layers |= {f"gates_{x}": getattr(step, f"gates_{x}") for x in ("frame", "hidden", "products")}
    layers |= {"head_mean": step.head_mean, "head_hidden": step.head_hidden}
    layers |= {"layers/dense": step.psf, "layers/folded_conv2d_11": step.upsampling}
    heads = ["head/folded_conv2d" + (f"_{k}" if k else "") for k in range(len(step.head))]
    layers |= dict(zip(heads, step.head, strict=True))
    for name, layer in layers.items():
        layer.kernel.assign(kernels[name])
        if name in weights:
            layer.bias.assign(weights[name])
    unknown = ops.convert_to_numpy(step.psf(np.zeros((1, 1), np.float32)))[0]  # (n,)
    for k, modulation in enumerate(step.modulations):
        name = "layers/psf_modulation" + (f"_{k}" if k else "")
        kernel, bias = kernels[name], weights[name]
        scale, shift = np.split(unknown @ kernel + bias, 2)  # (sets,) each
        of_scale, of_shift = np.split(kernel, 2, axis=1)
        relative = of_scale / scale
        modulation.kernel.assign(np.hstack([relative, of_shift - shift * relative]))
        before = [step.head_mean, step.head_hidden] if k == 0 else [step.head[k - 1]]
        for layer in before:
            layer.kernel.assign(layer.kernel * scale)
        before[0].bias.assign(before[0].bias * scale + shift)
    new.mkdir(parents=True)
    step.save_weights(new / "best.weights.h5")
    for name in ("settings.json", "best.json"):
        shutil.copy(old / name, new / name)
    about = json.loads((old / "run.json").read_text())
    command = f"python -m training carry_over --run {old} --out {new}"
    about["carried_over"] = {"command": command, "git_revision": git_revision()}
    (new / "run.json").write_text(json.dumps(about, indent=2))
    return 0


def _groups(file: h5py.File) -> list[tuple[str, h5py.Group]]:
    found: list[tuple[str, h5py.Group]] = []
    file.visititems(
        lambda name, item: (
            found.append((name, item))
            if isinstance(item, h5py.Group) and "vars" in item and "0" in item["vars"]
            else None
        )
    )
    return found
