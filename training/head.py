"""Train the head of a released network further, on the states that its int8 cell makes.

Back-propagation through time costs many times what one image does, most of it for the cell. Here
the cell stays: simulated stacks are played once through the released int8 step, as a device
would, and the head alone learns from what it is given there. Two processor cores are enough, and
the head sees int8's own states instead of float ones.

A part of the stacks may be drawn by other settings, so that what they have is seen more often.

The weights that are kept are an exponential average over some hundred last updates (after Polyak
and Juditsky, SIAM J. Control Optim. 30, 838, 1992). Of the settings count the network, the forward
model, the normalization, the seed, the size of the fields, the copies (for a twin), the loss, and
the parts of changes and of widths told; batch, rate and streams are the constants here and in
`readings`. The run's folder is like one of `train`, to be quantized and released. The weights of a
release are scaled already; this command can scale them once more (``--head-gain``). An interrupted
run does not go on: name another folder.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from device.errors import UserError
from training import mixture, simulators
from training import settings as settings_file
from training.dataset import Arrays
from training.network import (
    HIDDEN_RANGE,
    INT8_STEPS,
    MEAN_RANGE,
    Rounding,
    Step,
    as_int8,
    straight_through,
)
from training.readings import Player, Reading
from training.settings import TrainingSettings
from training.train import (
    Report,
    Run,
    Trained,
    Validation,
    compile_to_learn,
    keep_memory,
    load_network,
)

log = logging.getLogger(__name__)

HEAD = 6  # first word of the seed after the user's: specimens of no other purpose
HIDDEN_STEP = (HIDDEN_RANGE[1] - HIDDEN_RANGE[0]) / INT8_STEPS
BATCH, LEARNING_RATE, WARMUP = 16, 5e-4, 100
AVERAGED = 0.998  # of the average of the weights is kept at each update
EPOCHS = 12  # between which it is validated
LEAST_STACKS = 8
CELL = ("factors", "gates_frame", "gates_products", "gates_hidden")
"""Layers that are not trained."""


class Head(keras.Model):
    """A step's head, to be trained.

    Inputs: `mean`, (B, H, W); `h`, (B, H/2, W/2, 4 filters), in steps of `HIDDEN_STEP`;
    `psf_sigma_px` and `gain`, (B, 1). Output: the images, (B, 1, 2H, 2W), in units of the truth.
    """

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step
        for name in CELL:
            getattr(step, name).trainable = False

    def call(self, inputs: dict[str, Any], training: bool = False) -> Any:
        """Make the images, with int8's steps."""
        rounded: Rounding = straight_through if training else as_int8
        mean = ops.cast(inputs["mean"], "float32")[..., None]
        h = ops.cast(inputs["h"], "float32") * HIDDEN_STEP
        seen = as_int8(mean, MEAN_RANGE)
        image = self.step.read(mean, h, inputs["psf_sigma_px"], rounded, seen)[..., 0]
        return (image * inputs["gain"][:, :, None])[:, None]


def batch_of(taken: Sequence[Reading], told: np.ndarray) -> tuple[Arrays, np.ndarray]:
    """Put readings side by side: the inputs of `Head`, and the truth, (B, 1, 2H, 2W).

    Parameters
    ----------
    taken : sequence of Reading
        B of them.
    told : ndarray of bool
        (B,), whether the PSF's width is.
    """
    width = np.array([each.psf_sigma_px for each in taken], np.float32) * told
    inputs = {
        "mean": np.stack([each.mean for each in taken]),
        "h": np.stack([each.h for each in taken]),
        "psf_sigma_px": width[:, None],
        "gain": np.array([[each.gain] for each in taken], np.float32),
    }
    return inputs, np.stack([each.truth for each in taken])[:, None].astype(np.float32)


class Readings(keras.utils.PyDataset):
    """All readings in random order, without end; the PSF's width is told in a part of them."""

    def __init__(
        self, found: Sequence[Reading], length: int, told_fraction: float, seed: int
    ) -> None:
        super().__init__()
        self.found, self.length, self.told_fraction = found, length, told_fraction
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return self.length

    def on_epoch_end(self) -> None:
        """Go on with others."""
        self.epoch += 1

    def __getitem__(self, index: int) -> tuple[Arrays, np.ndarray]:
        """Return a batch of the present epoch."""
        first = (self.epoch * self.length + index) * BATCH
        places = [divmod(first + k, len(self.found)) for k in range(BATCH)]
        order = {turn: self._order(turn) for turn in {turn for turn, _ in places}}
        taken = [self.found[order[turn][place]] for turn, place in places]
        rng = np.random.default_rng((self.seed, HEAD, 2, first))
        return batch_of(taken, rng.random(BATCH) < self.told_fraction)

    def _order(self, turn: int) -> np.ndarray:
        return np.random.default_rng((self.seed, HEAD, 1, turn)).permutation(len(self.found))


class WindowValidation(Validation):
    """The validation set of the run's settings, with the states that an int8 step makes of it."""

    def __init__(self, settings: TrainingSettings, player: Player) -> None:
        super().__init__(settings)
        last = self.data.window - 1
        self.found = [each for e in self.told for each in player.readings(e, [last])]

    def images(self, network: Head, told: bool = False) -> list[np.ndarray]:
        """Make the image of every window, each (2H, 2W), blind or with the PSF's width told."""
        batches = range(0, len(self.found), BATCH)
        groups = [self.found[start : start + BATCH] for start in batches]
        made = []
        for group in groups:
            inputs, _ = batch_of(group, np.full(len(group), told))
            made += list(np.asarray(network.predict_on_batch(inputs))[:, 0])
        return made


def train(
    step: Step, found: Sequence[Reading], updates: int, settings: TrainingSettings, report: Report
) -> None:
    """Train a step's head; the report keeps the best weights."""
    keras.utils.set_random_seed(settings.seed)
    head = Head(step)
    own = {"learning_rate": LEARNING_RATE, "updates": updates, "warmup_updates": WARMUP}
    averaging = {"use_ema": True, "ema_momentum": AVERAGED}
    compile_to_learn(head, settings.model_copy(update=own), **averaging)
    length = -(-updates // EPOCHS)
    data = Readings(found, length, settings.dataset.psf_told_fraction, settings.seed)
    averages = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    head.fit(data, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=[averages, report])


def released(manifest: Path, settings: TrainingSettings) -> tuple[Trained, Path]:
    """Load a released network, which must be that of these settings; returns its int8 file, too.

    Raises
    ------
    UserError
        It is not the manifest of a released model of ours, its int8 file is gone, or it is of
        another network.
    """
    try:
        file = manifest.with_name(json.loads(manifest.read_text())["files"]["int8"]["file"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{manifest} is not the manifest of a release: name its .json.") from error
    if not file.exists():
        raise UserError(f"{file} is not there: the int8 file must lie beside its manifest.")
    found = load_network(manifest)
    if found.settings.network != settings.network:
        raise UserError(
            f"{manifest} has another network than the settings: give --settings with its own."
        )
    return found, file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training head``."""
    parser.add_argument(
        "--initial", type=Path, required=True, metavar="MANIFEST",
        help="the released model (its manifest, .json) that is trained further",
    )  # fmt: skip
    parser.add_argument(
        "--settings", default="base", help="name or TOML file, of the same network (default: base)"
    )
    parser.add_argument(
        "--head-gain", type=float, default=1.0, metavar="G",
        help="multiply the head's activations first, as that of quantize does (default: 1)",
    )  # fmt: skip
    mixture.add_arguments(parser)
    parser.add_argument("--run", type=Path, required=True, help="folder to write")
    parser.add_argument("--stacks", type=int, default=6000, help="to simulate (default: 6000)")
    parser.add_argument(
        "--first", type=int, default=0, metavar="N",
        help="number of the first stack: a training that goes on from another draws its own "
        "(default: 0)",
    )  # fmt: skip
    parser.add_argument("--updates", type=int, default=2400, help="of 16 (default: 2400)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")


def main(arguments: argparse.Namespace) -> int:
    """Run ``python -m training head``."""
    for name, least in (("stacks", LEAST_STACKS), ("updates", EPOCHS), ("first", 0)):
        if (given := getattr(arguments, name)) < least:
            raise UserError(f"--{name} is {given}; it must be {least} or more.")
    also_part = mixture.also_part(arguments)
    run = Run(arguments.run)
    run.refuse_if_begun()
    keep_memory()
    settings = settings_file.load(arguments.settings)
    initial, file = released(arguments.initial, settings)
    initial.step.scale_head(arguments.head_gain)
    models = settings_file.forward_models(settings, arguments.also)
    run.begin(arguments.settings, settings)
    run.note_initial(initial.weights, initial.made_by)
    data = settings.dataset
    player = Player(
        *(file, HIDDEN_STEP, models, data.size_px, data.change_fraction, data.normalization),
        copies=data.copies,
        also_part=also_part,
    )
    numbers = range(arguments.first, arguments.first + arguments.stacks)
    seeds = [(settings.seed, HEAD, number) for number in numbers]
    collected = simulators.collected(player.stack, seeds, arguments.workers)
    found = [each for stack in collected for each in stack]
    log.info("%d images to learn from", len(found))
    report = Report(run, WindowValidation(settings, player), checkpoints=False)
    try:
        train(initial.step, found, arguments.updates, settings, report)
    finally:
        report.board.close()
    initial.step.save_weights(run.final)
    return 0
