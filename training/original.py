"""The original's network: what ours is compared with, in time and, trained on our data, in quality.

A Keras ConvLSTM2D of 16 filters over 30 frames, with two convolutions after it. It is fed frames
that are normalized as ours are, of stacks from the same forward model, and trained with the same
loss.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from device.errors import UserError
from training import settings as settings_file
from training.example import normalized

FILTERS = 16
SIZE_PX = 128


def hard_sigmoid(x: Any) -> Any:
    """Clip 0.2 x + 0.5 to 0..1: that of Keras 2, with which the original was trained."""
    return ops.clip(0.2 * x + 0.5, 0.0, 1.0)


def original(
    height: int,
    width: int,
    frames: int | None = None,
    batch: int | None = None,
    unroll: bool = False,
) -> keras.Model:
    """Build the original's network for stacks (B, T, H, W, 1), with random weights.

    ConvLSTM2D of 16 filters (3 x 3, tanh, hard sigmoid), convolution of 16 (relu), enlarged by
    two to the nearest pixel, convolution to one: 12,321 parameters. Returns (B, 2H, 2W, 1).

    Parameters
    ----------
    height, width : int
        H and W; Keras's ConvLSTM2D wants them known.
    frames, batch : int, optional
        T and B; any where they are not given.
    unroll : bool
        As a chain of T steps instead of a loop, which a runtime's fast kernels would not take.
    """
    stack = keras.Input((frames, height, width, 1), batch_size=batch)
    cell = layers.ConvLSTM2D(
        FILTERS, 3, padding="same", recurrent_activation=hard_sigmoid, unroll=unroll
    )
    x = cell(stack)  # (B, H, W, 16): the state after the last frame
    x = layers.Conv2D(FILTERS, 3, padding="same", activation="relu")(x)
    x = layers.UpSampling2D(2)(x)  # (B, 2H, 2W, 16)
    return keras.Model(stack, layers.Conv2D(1, 3, padding="same", dtype="float32")(x))


class Windows(keras.Model):
    """The original's network, to be trained on windows; takes and returns what `Unrolled` does.

    Of the inputs it reads `frames`, (B, 30, H, W), and `gain`, (B, 1). Output (B, 1, 2H, 2W).
    """

    carried: tuple[keras.Variable, ...] = ()
    """Nothing is carried from a window to the next."""

    def __init__(self, step: keras.Model) -> None:
        super().__init__(dtype="float32")
        self.step = step

    def call(self, inputs: dict[str, Any]) -> Any:
        """Reconstruct the windows."""
        image = self.step(inputs["frames"][..., None])[..., 0]  # (B, 2H, 2W)
        return image[:, None] * inputs["gain"][:, :, None, None]


def load_method(run: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Load a run of this architecture as a method: frames (T, H, W) to an image (2H, 2W), ADU.

    Raises
    ------
    UserError
        The folder is not that of such a run, or holds no weights yet.
    """
    try:
        settings = settings_file.of_run(run)
        if settings.architecture != "original":
            raise UserError(f"{run} is no run of the original's architecture: name such a run.")
        trained = original(SIZE_PX, SIZE_PX)
        trained.load_weights(run / "best.weights.h5")
    except (OSError, ValueError) as error:
        raise UserError(f"{run} holds no best weights of it: train first.") from error

    @cache
    def network(height: int, width: int) -> keras.Model:
        built = original(height, width)
        built.set_weights(trained.get_weights())
        return built

    def image(frames: np.ndarray) -> np.ndarray:
        prepared, _, scales = normalized(frames, False, settings.dataset.normalization)
        made = network(*frames.shape[1:])(prepared[None, ..., None], training=False)
        return scales[-1] * ops.convert_to_numpy(made)[0, ..., 0]

    return image
