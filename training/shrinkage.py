"""Have a network trust less what it finds from the whole image.

What the head finds from a whole image at once (`network.WholeImage`) says, among others, what kind
of specimen it is, and scales channels by it. Of specimens that training did not draw it is as sure
as of others, and wrong: then it may add light to a whole field. Brought nearer to what it usually
is, it errs less there, and costs little elsewhere.

Nothing is trained: the usual values are medians over the run's validation set, on which this prints
what some shrinkages give. Which is best for others, other specimens have to say.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from device.errors import UserError
from device.files import write_text
from training.example import Example
from training.network import FRAME_RANGE, MEAN_RANGE, Step, as_int8
from training.reports import table
from training.train import Run, Trained, Validation, keep_memory, load_network

log = logging.getLogger(__name__)

BATCH = 32
COMPARED = (0.0, 0.2, 0.4, 0.6, 0.8)


class PlayedWindows:
    """Windows of one size that a step's cell has seen, with int8's roundings.

    Parameters
    ----------
    step : Step
        The network; its head may change afterwards.
    examples : sequence of Example
        With the PSF's width as it is told.
    """

    def __init__(self, step: Step, examples: Sequence[Example]) -> None:
        self.step = step
        starts = range(0, len(examples), BATCH)
        self.groups = [list(examples[start : start + BATCH]) for start in starts]
        self.states = [self._state(group) for group in self.groups]

    def _state(self, group: list[Example]) -> np.ndarray:
        frames = as_int8(np.stack([e.frames for e in group], axis=1)[..., None], FRAME_RANGE)
        means = as_int8(np.stack([e.means for e in group], axis=1)[..., None], MEAN_RANGE)
        h = c = np.zeros((len(group), *self.step.state_shape(*frames.shape[2:4])), np.float32)
        for frame, mean in zip(frames, means, strict=True):
            h, c = self.step.recur(frame, mean, h, c, as_int8)
        return np.asarray(ops.convert_to_numpy(h))

    def _shown(self, told: bool) -> Iterator[tuple[np.ndarray, Any, np.ndarray, np.ndarray]]:
        """Give the means, (B, H, W, 1), as they are and as the head is shown them, h and widths."""
        for group, h in zip(self.groups, self.states, strict=True):
            mean = np.stack([e.means[-1] for e in group])[..., None]
            widths = [[e.psf_sigma_px if told else 0.0] for e in group]
            yield mean, as_int8(mean, MEAN_RANGE), h, np.array(widths, np.float32)

    def images(self, told: bool) -> list[np.ndarray]:
        """Make the image of every window, each (2H, 2W)."""
        found: list[np.ndarray] = []
        for mean, seen, h, psf in self._shown(told):
            made = self.step.read(mean, h, psf, as_int8, seen=seen)
            found += list(ops.convert_to_numpy(made)[..., 0])
        return found

    def logits(self) -> np.ndarray:
        """Return the logits found from the whole images, blind, (N, estimates)."""
        found = [
            self.step.whole_image_logits(seen, h, psf, as_int8)
            for _, seen, h, psf in self._shown(told=False)
        ]
        return np.concatenate([ops.convert_to_numpy(each) for each in found])


def shrink(network: Trained, shrinkage: float, usual: np.ndarray) -> None:
    """Give a network the weights it was trained to, shrunk."""
    assert network.step.whole_image is not None
    network.step.load_weights(network.weights)
    network.step.whole_image.shrink(shrinkage, usual)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training shrinkage``."""
    parser.add_argument(
        "--initial", type=Path, required=True, metavar="RUN",
        help="whose weights: a run's folder, or the manifest of a released model",
    )  # fmt: skip
    parser.add_argument("--run", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--shrinkage", type=float, default=0.4, metavar="PART",
        help="0 leaves what is found from the whole image, 1 makes it always the same "
        "(default: 0.4)",
    )  # fmt: skip


def main(arguments: argparse.Namespace) -> int:
    """Run ``python -m training shrinkage``."""
    if not 0 <= arguments.shrinkage <= 1:
        raise UserError(f"--shrinkage is {arguments.shrinkage:g}; give a number from 0 to 1.")
    run = Run(arguments.run)
    run.refuse_if_begun()
    keep_memory()
    network = load_network(arguments.initial)
    if network.step.whole_image is None:
        raise UserError(
            f"{arguments.initial} finds nothing from the whole image (its `estimates` are 0): name "
            "a network that does."
        )
    validation = Validation(network.settings)
    windows = PlayedWindows(network.step, validation.told)
    usual = np.median(windows.logits(), axis=0)
    scores = {}
    for part in sorted({*COMPARED, arguments.shrinkage}):
        shrink(network, part, usual)
        scores[part] = [validation.score_db(windows.images(told)) for told in (False, True)]
    rows = [[f"{part:g}", *(f"{db:.2f}" for db in found)] for part, found in scores.items()]
    sys.stdout.write(table(["shrinkage", "validation, dB", "PSF told, dB"], rows))
    shrink(network, arguments.shrinkage, usual)
    blind, told = scores[arguments.shrinkage]
    best = {"updates": network.made_by.get("updates", 0), "shrinkage": arguments.shrinkage}
    best |= {"validation_db": blind, "validation_told_db": told, "mean_db": validation.mean_db}
    run.begin(network.made_by["settings_given"], network.settings)
    run.note_initial(network.weights, network.made_by)
    network.step.save_weights(run.best)
    write_text(run.of_best, json.dumps(best))
    log.info("%s is written", run.best)
    return 0
