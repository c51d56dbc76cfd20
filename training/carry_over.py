"""Carry release 0.9.0 over to a network that does not shift; deleted when that is done.

Scales are kept, and what the shifts are on average goes into the biases: blind or told the width,
one as often as the other, over simulated stacks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from device.files import write_text
from training import network
from training import settings as settings_file
from training.dataset import validation_set
from training.network import FOLD, MIRRORS, PsfModulation, build_step, exact, per_channel
from training.train import Run


class Shifting(PsfModulation):
    """As it was."""

    watched = False

    def build(self, x_shape: Any, change_shape: Any) -> None:
        sets = x_shape[-1] // (FOLD**2 * MIRRORS)
        self.kernel = self.add_weight(name="kernel", shape=(change_shape[-1], 2 * sets))
        self.seen: list[np.ndarray] = []

    def call(self, x: Any, change: Any, rounded: Any = exact) -> Any:
        of_scale, of_shift = (per_channel(k) for k in ops.split(self.kernel, 2, axis=-1))
        scale = ops.add(ops.matmul(change, of_scale), np.ones(of_scale.shape[1], np.float32))
        if self.watched:
            self.seen.append(keras.ops.convert_to_numpy(change))
        scale, shift = (ops.reshape(y, (-1, 1, 1, y.shape[-1]))
                        for y in (scale, ops.matmul(change, of_shift)))
        return ops.add(ops.multiply(x, scale), shift)


Shifting.__name__ = "PsfModulation"  # by which weights are found in a file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training carry_over``."""
    parser.add_argument("--manifest", type=Path, default=Path("models/learn2sofi-0.9.0.json"))
    parser.add_argument("--run", type=Path, default=Path("runs/carried"))


def main(args: argparse.Namespace) -> int:
    """Run ``python -m training carry_over``."""
    settings = settings_file.of_file(args.manifest.with_suffix(".settings.json"))
    weights = args.manifest.with_suffix(".weights.h5")
    network.PsfModulation = Shifting  # type: ignore[misc]
    old = build_step(settings.network)
    old.load_weights(weights)
    network.PsfModulation = PsfModulation  # type: ignore[misc]
    new = build_step(settings.network)
    Shifting.watched = True
    few = settings.dataset.model_copy(update={"validation_stacks": 32})
    for example in validation_set(settings.forward_model, few, settings.seed):
        mean = example.means[-1][None, :, :, None]
        h = c = np.zeros((1, *old.state_shape(*mean.shape[1:3])), np.float32)
        for frame in example.frames:
            h, c = old.recur(frame[None, :, :, None], mean, h, c)
        for width in (0.0, example.psf_sigma_px):
            old.read(mean, h, np.full((1, 1), width, np.float32))
    shifted = dict(zip(map(id, old.modulations), (new.head_mean, *new.head), strict=True))
    shifted |= dict(zip(map(id, old.context_modulations), new.context, strict=True))
    for one, other in zip(old.variables, new.variables, strict=True):
        if one.shape == other.shape:
            other.assign(one)
    pairs = zip((*old.modulations, *old.context_modulations),
                (*new.modulations, *new.context_modulations), strict=True)
    for one, other in pairs:
        of_scale, of_shift = np.split(np.array(one.kernel), 2, axis=1)
        other.kernel.assign(of_scale)
        change = np.concatenate(one.seen)
        layer = shifted[id(one)]
        moved = np.mean((change @ of_shift) / np.clip(1 + change @ of_scale, 0.2, None), axis=0)
        layer.bias.assign(np.array(layer.bias) + moved)
    run = Run(args.run)
    run.folder.mkdir(parents=True, exist_ok=True)
    new.save_weights(run.best)
    write_text(run.settings, settings.model_dump_json(indent=2))
    about = json.loads(args.manifest.read_text())["training"]
    about |= {"weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    mine = {"command": "python -m training carry_over", "settings_given": "base", "seed": settings.seed,
            "git_revision": network_revision(), "backend": keras.backend.backend(), "initial": about}
    write_text(run.about, json.dumps(mine, indent=2))
    return 0


def network_revision() -> str:
    """The revision that this runs at."""
    from training.revision import git_revision

    return git_revision()
