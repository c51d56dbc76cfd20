"""What the head of a released step is given, over simulated stacks; imports no Keras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from device.normalize import NormalizationSettings
from training.example import Example, loaded_step, make_example
from training.forward_model import WINDOW, ForwardModelSettings
from training.mixture import ALSO_PART, chosen

STREAMS = 0.3  # part of the stacks that are played as a stream
STREAM_CHUNKS = (4, 6)  # its length in chunks, both ends included
CHUNK = 15
HALF_WAY = 0.15  # part of the windows that are read in their middle, too


@dataclass(frozen=True)
class Reading:
    """What a head is given at one frame of a stack, and what it is to make of it."""

    mean: np.ndarray  # (H, W) float16, normalized
    h: np.ndarray  # (H/2, W/2, 4 filters) int8: the state, in steps of int8's own
    psf_sigma_px: float
    gain: float  # what a normalized brightness of 1 is in units of the truth
    truth: np.ndarray  # (2H, 2W) float16


@dataclass(frozen=True)
class Player:
    """Simulates stacks and plays them through a released int8 step.

    Attributes
    ----------
    file : Path
        The step.
    state_step : float
        What its state is counted in: one of int8's steps.
    models : sequence of ForwardModelSettings
        What is drawn; where there are two, the second in `also_part` of the stacks.
    size_px : int
        Height and width of the frames.
    change_fraction : float
        Part of the streams whose specimen is moved or replaced on the way.
    normalization : NormalizationSettings
        Numbers of the one normalization.
    copies : int
        Play windows alone, as so many copies of their mean; 0 plays the frames.
    also_part : float
        See `models`.
    """

    file: Path
    state_step: float
    models: Sequence[ForwardModelSettings]
    size_px: int
    change_fraction: float
    normalization: NormalizationSettings
    copies: int = 0
    also_part: float = ALSO_PART

    def stack(self, seed: tuple[int, ...]) -> list[Reading]:
        """Simulate the stack of a seed, a window or a stream, and read it at some frames.

        A window is read twice, as it is and turned by a right angle: the network's channels are
        mirror images of each other, so that mirrored ones would tell nothing new.
        """
        rng = np.random.default_rng((*seed, 1))
        model = chosen(self.models, self.also_part, rng)
        stream = not self.copies and bool(rng.random() < STREAMS)
        changes = stream and bool(rng.random() < self.change_fraction)
        length = self.copies or WINDOW
        at = [length - 1]
        if stream:
            chunks = int(rng.integers(*STREAM_CHUNKS, endpoint=True))
            ends = rng.choice(np.arange(3, chunks + 1), 2, replace=False)
            length, at = CHUNK * chunks, [CHUNK * int(end) - 1 for end in ends]
        elif rng.random() < HALF_WAY:
            at.append(length // 2 - 1)
        frames = WINDOW if self.copies else length  # copies are of a whole window's mean
        example = make_example(
            *(model, frames, self.size_px, stream, seed, self.normalization, self.copies, changes),
            psf_told_fraction=1,
        )
        turns = (0,) if stream else (0, 1)
        return [each for turn in turns for each in self.readings(example.turned(turn), at)]

    def readings(self, example: Example, at: Sequence[int]) -> list[Reading]:
        """Play an example, and keep what the head is given at these frames, counted from 0."""
        network = loaded_step(self.file)
        network.resize(*example.frames.shape[1:])
        told = {"psf_sigma_px": np.zeros((1, 1), np.float32)}  # on which no state depends
        state, found = network.zero_state(), []
        for k in range(max(at) + 1):
            frame, mean = (x[k][None, :, :, None] for x in (example.frames, example.means))
            inputs = {"frame": np.ascontiguousarray(frame), "mean": np.ascontiguousarray(mean)}
            made = network.run(inputs | told | state, image=False)
            state = {name: made[out] for name, out in network.manifest.state.items()}
            if k in at:
                found.append(self._reading(example, k, state["h"][0]))
        return found

    def _reading(self, example: Example, frame: int, h: np.ndarray) -> Reading:
        return Reading(
            example.means[frame].astype(np.float16),
            np.rint(h / self.state_step).astype(np.int8),
            example.psf_sigma_px,
            float(example.scales[frame]) / example.unit,
            example.truth_at(frame).astype(np.float16),
        )
