"""Train what says how far each pixel of a reconstruction may be off (`device.expected_error`).

Stacks of the network's own forward model, reconstructed as a device would, by the int8 step with
the PSF's width as it finds it; a small network, the same for every pixel, which learns from what
the device knows the error within which `PART` of such pixels are (quantile regression: Koenker and
Bassett, Econometrica 46, 33, 1978). A standard deviation would say little: it is made by the few
pixels that are far off. A part of the stacks is held out, to say how good it is.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from functools import partial
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

from device.errors import UserError
from device.expected_error import FEATURES, FLOOR, LIMIT, PART, ErrorEstimator
from device.files import whole_or_nothing, write_text
from device.model import MODELS_DIR, load_step, newest_model
from training import settings as settings_file
from training import simulators
from training.calibration import decile_table, deciles
from training.example import error_example
from training.forward_model import ForwardModelSettings
from training.revision import git_revision

log = logging.getLogger(__name__)

EXPECTED_ERROR = 5  # first word of the seed after the user's: specimens of no other purpose
SIZE_PX = 64
PIXELS = 300  # of each stack; what is off is rare, and in few stacks
HELD_OUT = 0.2  # of the stacks
HIDDEN = 32
EPOCHS, BATCH, LEARNING_RATE = 8, 1024, 3e-3
LEAST_STACKS = 20
ESTIMATOR, ABOUT = "expected_error.npz", "expected_error.json"


def simulated(
    settings: ForwardModelSettings, model: Path, seed: int, stacks: int, workers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Make features, (N, PIXELS, FEATURES), and errors, (N, PIXELS), of simulated stacks."""
    one = partial(error_example, settings, model, SIZE_PX, PIXELS)
    seeds = [(seed, EXPECTED_ERROR, k) for k in range(stacks)]
    made = simulators.collected(one, seeds, workers)
    if len(made) < LEAST_STACKS:
        raise UserError(f"Only {len(made)} of {stacks} stacks show anything: take more.")
    return np.stack([each for each, _ in made]), np.stack([errors for _, errors in made])


def pinball(truth: keras.KerasTensor, said: keras.KerasTensor) -> keras.KerasTensor:
    """Make what is least where `PART` of the truth lies below what is said, scalar.

    Parameters
    ----------
    truth, said : tensor
        Logarithms of the errors and a floor, (B, 1).
    """
    over = truth - said
    return ops.mean(ops.maximum(PART * over, (PART - 1) * over))


def trained(found: np.ndarray, errors: np.ndarray, seed: int) -> ErrorEstimator:
    """Train on features, (N, FEATURES), and errors, (N,)."""
    keras.utils.set_random_seed(seed)
    centre, spread = found.mean(axis=0), found.std(axis=0) + 1e-3
    given = np.clip((found - centre) / spread, -LIMIT, LIMIT).astype(np.float32)
    dense = [layers.Dense(HIDDEN, "relu"), layers.Dense(HIDDEN, "relu"), layers.Dense(1)]
    network = keras.Sequential(dense)
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, EPOCHS * -(-len(given) // BATCH))
    network.compile(keras.optimizers.Adam(rate, global_clipnorm=1.0), loss=pinball)
    wanted = np.log(np.abs(errors) + FLOOR)[:, None].astype(np.float32)
    network.fit(given, wanted, BATCH, EPOCHS, verbose=0)
    weights = [[np.asarray(value) for value in layer.get_weights()] for layer in dense]
    kernels, biases = zip(*weights, strict=True)
    return ErrorEstimator(centre.astype(np.float32), spread.astype(np.float32), kernels, biases)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training expected_error``."""
    parser.add_argument("--settings", default="base", help="whose forward model (default: base)")
    parser.add_argument(
        "--model", type=Path, metavar="FILE", help="whose errors (default: the newest int8 step)"
    )
    parser.add_argument(
        "--run", type=Path, default=Path("runs/expected_error"), help="folder to write"
    )
    parser.add_argument("--stacks", type=int, default=6000, help="to simulate (default: 6000)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")


def main(arguments: argparse.Namespace) -> int:
    """Run ``python -m training expected_error``."""
    if arguments.stacks < LEAST_STACKS:
        raise UserError(f"--stacks is {arguments.stacks}; at least {LEAST_STACKS} are needed.")
    model = arguments.model or newest_model(MODELS_DIR)
    step, settings, run = load_step(model), settings_file.load(arguments.settings), arguments.run
    run.mkdir(parents=True, exist_ok=True)
    found, errors = simulated(
        *(settings.forward_model, model, settings.seed, arguments.stacks, arguments.workers)
    )
    held_out = round(HELD_OUT * len(found))
    learned = found[held_out:].reshape(-1, FEATURES)
    estimator = trained(learned, errors[held_out:].ravel(), settings.seed)
    expected = estimator.of_features(found[:held_out].reshape(-1, FEATURES))
    groups = deciles(expected, errors[:held_out].ravel())
    with whole_or_nothing(run / ESTIMATOR) as beside:
        beside.write_bytes(estimator.save())
    about: dict[str, object] = {"command": "python -m training " + shlex.join(sys.argv[1:])}
    about |= {"git_revision": git_revision(), "backend": keras.backend.backend()}
    about |= {"model": step.name, "model_sha256": step.sha256, "seed": settings.seed}
    about |= {
        "training": step.manifest.training,
        "stacks": len(found),
        "expected_actual_within": groups,
    }
    about |= {"forward_model": settings.forward_model.model_dump(mode="json")}
    write_text(run / ABOUT, json.dumps(about, indent=2))
    log.info("%s is written\n%s", run / ESTIMATOR, decile_table({"held out": groups}))
    return 0
