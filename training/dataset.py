"""Simulated stacks, cut into what the network is trained on.

Every stack is a function of (seed, split, place, number) alone: whichever process simulates it,
and whether the training was interrupted or not, it is the same (to the last bit where as many
threads sum up). Training stacks are drawn without end; validation stacks are a fixed set of other
specimens.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import count

import keras
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from device.normalize import NormalizationSettings
from training import simulators
from training.example import Example, make_example
from training.forward_model import WINDOW, ForwardModelSettings

TRAINING, VALIDATION = 0, 1  # first word of the seed after the user's: never the same specimen

Arrays = dict[str, np.ndarray]


class DatasetSettings(BaseModel):
    """How stacks are cut into batches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch: int = Field(8, ge=1)
    """Stacks that are played side by side."""
    size_px: int = Field(64, ge=16, multiple_of=2)
    """Height and width of the frames, camera px."""
    chunk: int = Field(15, ge=1, le=WINDOW)
    """Frames between two updates of the weights; divides 30."""
    read_at: tuple[int, ...] = (7, 14)
    """Frames of the chunk at which the image is compared with the truth, from 0; ascending, the
    last is the chunk's last, so that a window is judged by all of its frames."""
    copies: int = Field(0, ge=0, le=WINDOW)
    """0 plays the frames. Any other number plays so many copies of each window's mean instead:
    what is learned then owes nothing to the fluctuation."""
    pool: int = Field(1, ge=1)
    """Stacks of each place that are played in turns before new ones are drawn."""
    plays: int = Field(1, ge=1)
    """How often each stack is played, each time turned or mirrored another way."""
    stream_fraction: float = Field(0.5, ge=0, le=1)
    """Part of the stacks that are played as a stream, the others as one window."""
    stream_chunks: tuple[int, int] = (3, 8)
    """Length of a stream in chunks, uniform, both ends included."""
    psf_told_fraction: float = Field(0.5, ge=0, le=1)
    """Part of the stacks whose PSF's width the network is told."""
    change_fraction: float = Field(0.0, ge=0, le=1)
    """Part of the streams whose specimen is moved or replaced on the way, without a reset."""
    validation_stacks: int = Field(64, ge=1)
    """Stacks of the validation set."""
    workers: int = Field(2, ge=0)
    """Processes that simulate; 0 simulates in the training's own."""
    normalization: NormalizationSettings = NormalizationSettings()
    """Numbers of the one normalization; they go into the model's manifest."""

    @model_validator(mode="after")
    def _chunks_fit(self) -> DatasetSettings:
        if self.window % self.chunk:
            raise ValueError(f"chunk is {self.chunk}, which does not divide {self.window}")
        if self.copies and self.stream_fraction:
            raise ValueError("copies are of a window's mean: stream_fraction must be 0 with them")
        if sorted({*self.read_at, self.chunk - 1}) != list(self.read_at) or self.read_at[0] < 0:
            raise ValueError(f"read_at must ascend from 0 or more and end with {self.chunk - 1}")
        if not 1 <= self.stream_chunks[0] <= self.stream_chunks[1]:
            raise ValueError("stream_chunks must ascend from 1 or more")
        return self

    @property
    def window(self) -> int:
        """Frames that are played of a window."""
        return self.copies or WINDOW


@dataclass(frozen=True)
class Plan:
    """Which stack a place plays, known before it is simulated.

    Attributes
    ----------
    seed : tuple of int
        What the stack's generator is seeded with.
    stream : bool
        Played as a stream (running statistics) or as one window (statistics of all its frames).
    chunks : int
        Its length.
    changes : bool
        Its specimen is moved or replaced on the way.
    """

    seed: tuple[int, ...]
    stream: bool
    chunks: int
    changes: bool = False


def plan(settings: DatasetSettings, seed: int, place: int, stack: int) -> Plan:
    """Plan the stack with this number at this place of the batch."""
    key = (seed, TRAINING, place, stack)
    rng = np.random.default_rng([*key, 1])
    if rng.random() < settings.stream_fraction:
        chunks = int(rng.integers(*settings.stream_chunks, endpoint=True))
        return Plan(key, True, chunks, bool(rng.random() < settings.change_fraction))
    return Plan(key, False, settings.window // settings.chunk)


def stack_and_symmetry(settings: DatasetSettings, play: int) -> tuple[int, int]:
    """Number of the stack that is the `play`-th to be played at a place, and how it is turned."""
    pool = settings.pool
    turn, within = divmod(play, pool)
    drawn, turn = divmod(turn, settings.plays)
    return drawn * pool + within, (turn + within) % 8


class TrainingStream(keras.utils.PyDataset):
    """Batches without end, in the order of the updates, whatever index is asked for.

    On TensorFlow, Keras takes `NUM_BATCHES_FOR_TENSOR_SPEC` batches at the beginning of every `fit`
    only to look at their shapes, and drops them. An interrupted run drops as many of its own as the
    unbroken one dropped at its beginning, so that both train on the same batches all the same.

    Parameters
    ----------
    model : ForwardModelSettings
        What stacks are drawn from.
    settings : DatasetSettings
        How they are cut.
    seed : int
        Of the whole run.
    epoch_length : int
        Updates in what Keras calls an epoch.
    start : int
        The update to begin with: where an interrupted run goes on. It must begin where the kept
        state of the network was saved.
    """

    def __init__(
        self,
        model: ForwardModelSettings,
        settings: DatasetSettings,
        seed: int,
        epoch_length: int,
        start: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.settings, self.seed = model, settings, seed
        self.epoch_length, self.start = epoch_length, start
        self._pool = simulators.start(settings.workers)
        self._places = [self._play(place) for place in range(settings.batch)]

    def __len__(self) -> int:
        return self.epoch_length

    def __getitem__(self, index: int) -> tuple[Arrays, np.ndarray]:
        """Return the next batch: Keras asks in order, from one thread."""
        chunks = [next(place) for place in self._places]
        inputs = {key: np.stack([chunk[key] for chunk, _ in chunks]) for key in chunks[0][0]}
        return inputs, np.stack([truth for _, truth in chunks])

    def close(self) -> None:
        """Stop the simulating processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _play(self, place: int) -> Iterator[tuple[Arrays, np.ndarray]]:
        skip, first = self._fast_forward(place)
        pool: dict[int, Future[Example]] = {}
        for play in count(first):
            stack, symmetry = stack_and_symmetry(self.settings, play)
            self._prepare(pool, place, play)
            example = pool[stack].result().turned(symmetry)
            for k in range(skip, len(example.frames) // self.settings.chunk):
                yield example.chunk(k, self.settings.chunk, self.settings.read_at)
            skip = 0

    def _prepare(self, pool: dict[int, Future[Example]], place: int, play: int) -> None:
        """Have this turn's stacks simulated, and so many of the next that they come evenly."""
        s = self.settings
        turn, within = divmod(play, s.pool * s.plays)
        first = turn * s.pool
        for stack in [stack for stack in pool if stack < first]:
            del pool[stack]
        ahead = within // s.plays + 1
        for stack in range(first, first + s.pool + ahead):
            if stack not in pool:
                pool[stack] = self._request(place, stack)

    def _fast_forward(self, place: int) -> tuple[int, int]:
        """Find the chunk and the play that this place is at in update `start`."""
        left = self.start
        for play in count():
            stack, _ = stack_and_symmetry(self.settings, play)
            chunks = plan(self.settings, self.seed, place, stack).chunks
            if left < chunks:
                return left, play
            left -= chunks
        raise AssertionError("unreachable")

    def _request(self, place: int, stack: int) -> Future[Example]:
        p = plan(self.settings, self.seed, place, stack)
        s = self.settings
        length = WINDOW if s.copies else p.chunks * s.chunk
        arguments = (self.model, length, s.size_px, p.stream, p.seed, s.normalization)
        job = partial(
            make_example,
            *arguments,
            copies=s.copies,
            changes=p.changes,
            psf_told_fraction=s.psf_told_fraction,
        )
        if self._pool is not None:
            return self._pool.submit(job)
        done: Future[Example] = Future()
        done.set_result(job())
        return done


def validation_set(
    model: ForwardModelSettings, settings: DatasetSettings, seed: int
) -> list[Example]:
    """Windows of 30 frames of other specimens, always the same, with the PSF's width as told."""
    return [
        make_example(
            model,
            WINDOW,
            settings.size_px,
            False,
            (seed, VALIDATION, k),
            settings.normalization,
            settings.copies,
            psf_told_fraction=1,
        )
        for k in range(settings.validation_stacks)
    ]
