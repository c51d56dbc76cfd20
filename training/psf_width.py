"""Train what finds the width of the PSF in the frames (`device.psf_width`).

Stacks of the network's own forward model; some small networks, which learn the logarithm of the
width from the features that the device measures, and how far off they are (the likelihood of a
normal distribution: Nix and Weigend, ICNN 1994; several of them: Lakshminarayanan et al., NIPS
2017). A part of the stacks is held out, to say how good they are.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from device.errors import UserError
from device.files import whole_or_nothing, write_text
from device.normalize import NormalizationSettings
from device.psf_width import LEAST_PX, LIMIT, LOG_ERROR_RANGE, PsfWidthEstimator
from training import mixture, simulators
from training import settings as settings_file
from training.example import psf_example
from training.forward_model import ForwardModelSettings
from training.reports import table
from training.revision import git_revision

log = logging.getLogger(__name__)

PSF_WIDTH = 4  # first word of the seed after the user's: specimens of no other purpose
HELD_OUT = 0.1  # of the stacks
NETWORKS, HIDDEN = 4, 64
EPOCHS, BATCH = 80, 64
LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 2e-3, 1e-3, 0.1
ESTIMATOR, ABOUT = "psf_width.npz", "psf_width.json"
GROUPS = 5  # of the held-out stacks, by the error that is expected


@dataclass(frozen=True)
class Asked:
    """What is simulated: so many stacks of a size, by `models` as in `mixture.chosen`."""

    models: Sequence[ForwardModelSettings]
    also_part: float
    normalization: NormalizationSettings
    seed: int
    stacks: int
    size_px: int

    def content(self) -> dict[str, Any]:
        """Say it in the file that is written beside the networks."""
        said: dict[str, Any] = {"stacks": self.stacks, "size_px": self.size_px, "seed": self.seed}
        first, *also = (model.model_dump(mode="json") for model in self.models)
        if also:
            said |= {"also_part": self.also_part, "also_forward_model": also[0]}
        return said | {"forward_model": first, "normalization": asdict(self.normalization)}


def simulated(asked: Asked, workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Measure simulated windows: features (N, n) and widths in px (N,)."""
    drawn = asked.models, asked.also_part
    one = partial(psf_example, *drawn, asked.normalization, asked.size_px)
    seeds = [(asked.seed, PSF_WIDTH, k) for k in range(asked.stacks)]
    made = simulators.collected(one, seeds, workers)
    return np.stack([each for each, _ in made]), np.array([sigma for _, sigma in made])


def likelihood(truth: keras.KerasTensor, said: keras.KerasTensor) -> keras.KerasTensor:
    """Negative logarithm of a normal distribution's density, scalar.

    Parameters
    ----------
    truth : tensor
        (B, 1).
    said : tensor
        Mean and logarithm of the standard deviation, (B, 2).
    """
    log_error = ops.clip(said[:, 1:], *LOG_ERROR_RANGE)
    off = (truth - said[:, :1]) * ops.exp(-log_error)
    return ops.mean(0.5 * ops.square(off) + log_error)


def trained(found: np.ndarray, sigma_px: np.ndarray, seed: int) -> PsfWidthEstimator:
    """Train the networks on features, (N, n), and widths in px, (N,)."""
    centre, spread = found.mean(axis=0), found.std(axis=0) + 1e-6
    given = np.clip((found - centre) / spread, -LIMIT, LIMIT).astype(np.float32)
    wanted = np.log(sigma_px)[:, None].astype(np.float32)
    networks = [_trained_one(given, wanted, seed + k) for k in range(NETWORKS)]
    weights = [np.stack(each).astype(np.float32) for each in zip(*networks, strict=True)]
    kernels, biases = tuple(weights[0::2]), tuple(weights[1::2])
    return PsfWidthEstimator(centre.astype(np.float32), spread.astype(np.float32), kernels, biases)


def _trained_one(given: np.ndarray, wanted: np.ndarray, seed: int) -> list[np.ndarray]:
    """Train one network; returns kernel and bias of its three layers."""
    keras.utils.set_random_seed(seed)
    dense = [layers.Dense(HIDDEN, "relu"), layers.Dense(HIDDEN, "relu"), layers.Dense(2)]
    drops = [layers.Dropout(DROPOUT), layers.Dropout(DROPOUT)]
    network = keras.Sequential([dense[0], drops[0], dense[1], drops[1], dense[2]])
    updates = EPOCHS * -(-len(given) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, updates)
    network.compile(keras.optimizers.AdamW(rate, weight_decay=WEIGHT_DECAY), loss=likelihood)
    network.fit(given, wanted, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    return [np.asarray(value) for layer in dense for value in layer.get_weights()]


def judged(
    estimator: PsfWidthEstimator, found: np.ndarray, sigma_px: np.ndarray
) -> list[tuple[float, float]]:
    """Compare expected with actual errors: both, rms and relative, of groups by the expected."""
    estimates = [estimator.of_features(each) for each in found]
    expected = np.array([each.relative_error for each in estimates])
    off = np.log([each.sigma_px for each in estimates]) - np.log(sigma_px)
    groups = np.array_split(np.argsort(expected), GROUPS)
    return [
        (float(np.sqrt(np.mean(expected[g] ** 2))), float(np.sqrt(np.mean(off[g] ** 2))))
        for g in groups
        if len(g)
    ]


def report(groups: list[tuple[float, float]]) -> str:
    """Lay out what `judged` found."""
    head = ["held-out stacks, by the error that is expected", "expected", "actual"]
    rows = [
        [f"{k + 1} of {len(groups)}", f"{100 * expected:.0f} %", f"{100 * actual:.0f} %"]
        for k, (expected, actual) in enumerate(groups)
    ]
    return table(head, rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training psf_width``."""
    parser.add_argument("--settings", default="base", help="whose forward model (default: base)")
    mixture.add_arguments(parser)
    parser.add_argument("--run", type=Path, default=Path("runs/psf_width"), help="folder to write")
    parser.add_argument("--stacks", type=int, default=12000, help="to simulate (default: 12000)")
    parser.add_argument("--size-px", type=int, default=96, help="of their frames (default: 96)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")


def main(arguments: argparse.Namespace) -> int:
    """Run ``python -m training psf_width``; simulated features are kept and taken again."""
    if arguments.stacks < 10 * GROUPS:
        raise UserError(f"--stacks is {arguments.stacks}; at least {10 * GROUPS} are needed.")
    if arguments.size_px < LEAST_PX:
        raise UserError(f"--size-px is {arguments.size_px}; at least {LEAST_PX} is needed.")
    also_part = mixture.also_part(arguments)
    settings, run = settings_file.load(arguments.settings), arguments.run
    models = settings_file.forward_models(settings, arguments.also)
    run.mkdir(parents=True, exist_ok=True)
    drawn = models, also_part, settings.dataset.normalization
    asked = Asked(*drawn, settings.seed, arguments.stacks, arguments.size_px)
    found, sigma_px = _kept(run, asked, arguments.workers)
    held_out = max(GROUPS, round(HELD_OUT * len(found)))
    estimator = trained(found[held_out:], sigma_px[held_out:], settings.seed)
    groups = judged(estimator, found[:held_out], sigma_px[:held_out])
    with whole_or_nothing(run / ESTIMATOR) as beside:
        beside.write_bytes(estimator.save())
    about = {"command": "python -m training " + shlex.join(sys.argv[1:])}
    about |= {"git_revision": git_revision(), "backend": keras.backend.backend()}
    about |= asked.content() | {"expected_and_actual_error": groups}
    write_text(run / ABOUT, json.dumps(about, indent=2))
    log.info("%s is written\n%s", run / ESTIMATOR, report(groups))
    return 0


def _kept(run: Path, asked: Asked, workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Take the features that an earlier call simulated for the same, or simulate them."""
    path, key = run / "features.npz", json.dumps(asked.content(), sort_keys=True)
    if path.exists():
        with np.load(path) as file:
            if str(file["asked"]) == key:
                return file["features"], file["sigma_px"]
    found, sigma_px = simulated(asked, workers)
    with whole_or_nothing(path) as beside, beside.open("wb") as file:
        np.savez(file, asked=key, features=found, sigma_px=sigma_px)
    return found, sigma_px
