"""The original's network: what ours is compared with, in time and, trained on our data, in quality.

A Keras ConvLSTM2D of 16 filters over 30 frames, with two convolutions after it
(`training.windows` trains and loads it).
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

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
