"""What the frames hold for a network without our step's limits.

Our step sees a frame once, through one layer, and keeps what it makes of it in a few numbers per
pixel: that is what a Raspberry Pi can do. This network is made to find out what 30 frames give
beyond their mean, whatever it costs. It looks at every frame through many layers, puts together
what it finds in all of them, looks at every frame again with that in mind, and then draws the
image. Which frame came when plays no part (Zaheer et al., Deep Sets, NeurIPS 2017): what the order
tells where emitters stay on for some frames is given up.

Trained on copies of the mean it is its own twin. All copies being alike, one does: the averages and
the largest values over one frame are those over thirty of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import layers, ops

FILTERS = 48  # of what looks at the frames
IMAGE_FILTERS = 96  # of what draws the image
LOOK_BLOCKS = 3
CONTEXT_APART_PX = (1, 2, 4)
IMAGE_APART_PX = (1, 2, 4, 8, 4, 2, 1, 1)  # from one tap to the next, block by block
UPSAMPLING = 2


def _conv(filters: int, name: str, size_px: int = 3) -> layers.Layer:
    return layers.Conv2D(filters, size_px, padding="same", activation="relu", name=name)


def _residual(filters: int, apart_px: int, name: str) -> Callable[[Any], Any]:
    """Two convolutions that add to what they are given; as it begins, hardly anything."""
    options: dict[str, Any] = {"padding": "same", "dilation_rate": apart_px}
    first = layers.Conv2D(filters, 3, activation="relu", name=f"{name}_first", **options)
    small = keras.initializers.VarianceScaling(0.01)  # a tenth of what is usual
    second = layers.Conv2D(filters, 3, kernel_initializer=small, name=f"{name}_second", **options)
    return lambda x: layers.add([x, second(first(x))])


def _chain(blocks: list[Callable[[Any], Any]], x: Any) -> Any:
    for block in blocks:
        x = block(x)
    return layers.ReLU()(x)


@keras.saving.register_keras_serializable(package="learn2sofi")
class FluctuationAndMean(layers.Layer):
    """The mean of stacks (B, T, H, W, 1), (B, H, W, 1), and what every frame differs from it.

    The latter is (B T, H, W, 2), the mean beside it.
    """

    def call(self, stack: Any) -> tuple[Any, Any]:
        """Take the mean, and take it off."""
        mean = ops.mean(stack, axis=1, keepdims=True)
        pair = ops.concatenate([stack - mean, ops.broadcast_to(mean, ops.shape(stack))], axis=-1)
        return mean[:, 0], ops.reshape(pair, (-1, *pair.shape[2:]))


@keras.saving.register_keras_serializable(package="learn2sofi")
class OverFrames(layers.Layer):
    """Average and largest value over the frames, (B T, H, W, C) to (B, H, W, 2 C)."""

    def __init__(self, frames: int, **options: Any) -> None:
        super().__init__(**options)
        self.frames = frames

    def call(self, x: Any) -> Any:
        """Put the frames of each stack together."""
        x = ops.reshape(x, (-1, self.frames, *x.shape[1:]))
        return ops.concatenate([ops.mean(x, axis=1), ops.max(x, axis=1)], axis=-1)


@keras.saving.register_keras_serializable(package="learn2sofi")
class ForEachFrame(layers.Layer):
    """Repeat what belongs to a stack for each of its frames, (B, H, W, C) to (B T, H, W, C)."""

    def __init__(self, frames: int, **options: Any) -> None:
        super().__init__(**options)
        self.frames = frames

    def call(self, x: Any) -> Any:
        """Repeat it."""
        return ops.repeat(x, self.frames, axis=0)


@keras.saving.register_keras_serializable(package="learn2sofi")
class Enlarged(layers.Layer):
    """Pixels of channels, (B, H, W, 4 C), in their places, (B, 2H, 2W, C)."""

    def call(self, x: Any) -> Any:
        """Put them there."""
        return ops.depth_to_space(x, UPSAMPLING)


def limit(height: int, width: int, frames: int, batch: int | None = None) -> keras.Model:
    """Build the network for stacks (B, T, H, W, 1), with random weights.

    Returns (B, 2H, 2W, 1): the mean, interpolated, and what is added to it; nothing below 0.
    """
    stack = keras.Input((frames, height, width, 1), batch_size=batch)
    mean, seen = FluctuationAndMean(dtype="float32")(stack)
    x = _conv(FILTERS, "look", size_px=5)(seen)  # (B T, H, W, C)
    x = _chain([_residual(FILTERS, 1, f"look_{k}") for k in range(LOOK_BLOCKS)], x)

    found = layers.concatenate([OverFrames(frames)(x), mean])
    context = _conv(FILTERS, "context")(found)  # (B, H, W, C)
    blocks = [
        _residual(FILTERS, apart_px, f"context_{k}") for k, apart_px in enumerate(CONTEXT_APART_PX)
    ]
    context = _chain(blocks, context)

    again = layers.Conv2D(FILTERS, 1, name="again")(ForEachFrame(frames)(context))
    x = layers.ReLU()(layers.add([x, again]))
    x = _chain([_residual(FILTERS, 1, f"again_{k}") for k in range(LOOK_BLOCKS)], x)

    x = _conv(IMAGE_FILTERS, "draw")(layers.concatenate([OverFrames(frames)(x), context, mean]))
    blocks = [
        _residual(IMAGE_FILTERS, apart_px, f"draw_{k}") for k, apart_px in enumerate(IMAGE_APART_PX)
    ]
    x = Enlarged()(_chain(blocks, x))  # (B, 2H, 2W, IMAGE_FILTERS / 4)
    fine = _chain([_residual(IMAGE_FILTERS // UPSAMPLING**2, 1, "fine")], x)
    options: dict[str, Any] = {"padding": "same", "dtype": "float32", "name": "change"}
    change = layers.Conv2D(1, 3, kernel_initializer="zeros", **options)(fine)
    interpolated = layers.UpSampling2D(UPSAMPLING, interpolation="bilinear", dtype="float32")(mean)
    image = layers.Add(dtype="float32")([interpolated, change])
    return keras.Model(stack, layers.ReLU(dtype="float32")(image))
