"""The network: one recurrent step, and its unrolled form for training.

The step is a convolutional LSTM cell (Shi et al., NeurIPS 2015) with coupled input and forget
gates (Greff et al., IEEE TNNLS 28, 2222, 2017)::

    c' = c + i * (g - c)        i = sigmoid, g = tanh
    h' = o * tanh(c')           o = sigmoid

so that the cell stays a weighted average of its candidates: always within -1 and 1, whatever comes
and for however long. Nothing has to be clamped, and the int8 scales of `c` and `c_out` are equal by
construction.

What the cell is fed is what SOFI correlates: the fluctuation about the mean, and *products* of
learned local combinations of it (a pixel with itself and with its neighbours), whose running
average in the cell is a local cumulant of second order. What the head is fed is the cell's output
and the mean image; it returns the mean, interpolated to the output grid, plus a correction.

What differs in range (frame, products, state) goes through convolutions of its own, which are
summed: a concatenation would tie all to one int8 scale.

Everything is in `keras.ops`, runs on any backend, and consists of operators that are delegated in
int8 (see the op gate in `quantize.py`).
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops
from pydantic import BaseModel, ConfigDict, Field

Tensors = dict[str, Any]


class NetworkSettings(BaseModel):
    """Size of the network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    filters: int = Field(16, ge=1)
    """Channels of the cell, at half the camera's sampling."""
    products: int = Field(8, ge=1)
    """Learned products of the fluctuation that the cell is fed."""
    head_filters: int = Field(32, ge=4)
    """Channels of the head, at half the camera's sampling."""
    head_layers: int = Field(2, ge=0)
    """Convolutions of the head at half the camera's sampling, beyond the first."""


SIZE_MULTIPLE = 2  # height and width of the frame
UPSAMPLING = 2


def _conv(filters: int, name: str, activation: str | None = None, **options: Any) -> layers.Conv2D:
    return layers.Conv2D(filters, 3, padding="same", activation=activation, name=name, **options)


@keras.saving.register_keras_serializable(package="learn2sofi")
class BilinearUpsampling(keras.Initializer):
    """Kernel (3, 3, 1, 4) whose four channels are the phases of bilinear interpolation by two.

    Output pixel j lies at input coordinate ``(j + 0.5) / 2 - 0.5``: 3/4 of the nearest pixel and
    1/4 of the one beyond, along each axis. `depth_to_space` puts the phases in order.
    """

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        """Return the kernel; `shape` must be (3, 3, 1, 4)."""
        taps = np.array([[0.25, 0.75, 0.0], [0.0, 0.75, 0.25]])  # (phase, tap)
        kernel = np.einsum("ay,bx->yxab", taps, taps).reshape(3, 3, 1, 4)
        return ops.convert_to_tensor(kernel.reshape(shape), dtype=dtype or "float32")


@keras.saving.register_keras_serializable(package="learn2sofi")
class GateBias(keras.Initializer):
    """Bias of the gates (input, output, candidate): the cell starts with a memory of 8 frames."""

    INPUT_GATE = -2.0  # sigmoid(-2) is about 1/8

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        """Return the bias, (3 filters,)."""
        bias = np.zeros(shape)
        bias[: shape[0] // 3] = self.INPUT_GATE
        return ops.convert_to_tensor(bias, dtype=dtype or "float32")


@keras.saving.register_keras_serializable(package="learn2sofi")
class Step(keras.Model):
    """One recurrent step.

    Inputs, NHWC: `frame` and `mean`, (B, H, W, 1), normalized; the state `h` and `c`,
    (B, H/2, W/2, filters). Outputs: `image`, (B, 2H, 2W, 1), normalized; `h_out` and `c_out`.
    """

    def __init__(self, settings: NetworkSettings | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.settings = settings or NetworkSettings()
        s = self.settings
        gates = 3 * s.filters
        self.factors = _conv(2 * s.products, "factors")
        self.gates_frame = _conv(gates, "gates_frame", bias_initializer=GateBias())
        self.gates_products = _conv(gates, "gates_products", use_bias=False)
        self.gates_hidden = _conv(gates, "gates_hidden", use_bias=False)
        self.head_mean = _conv(s.head_filters, "head_mean")
        self.head_hidden = _conv(s.head_filters, "head_hidden", use_bias=False)
        self.head = [_conv(s.head_filters, f"head_{k}", "relu") for k in range(s.head_layers)]
        self.correction = _conv(4, "correction", kernel_initializer="zeros")
        self.upsampling = _conv(
            4, "upsampling", use_bias=False, kernel_initializer=BilinearUpsampling()
        )

    def recur(self, frame: Any, mean: Any, h: Any, c: Any) -> tuple[Any, Any]:
        """Take one frame into the state; returns (h', c')."""
        fluctuation = ops.subtract(frame, mean)  # (B, H, W, 1)
        left, right = ops.split(self.factors(ops.space_to_depth(fluctuation, 2)), 2, axis=-1)
        products = ops.multiply(left, right)  # (B, H/2, W/2, products)
        x = ops.space_to_depth(ops.concatenate([fluctuation, mean], axis=-1), 2)  # (..., 8)
        gates = ops.add(self.gates_frame(x), self.gates_products(products))
        gates = ops.add(gates, self.gates_hidden(h))  # (B, H/2, W/2, 3 filters)
        i, o, g = ops.split(gates, 3, axis=-1)
        c = ops.add(c, ops.multiply(ops.sigmoid(i), ops.subtract(ops.tanh(g), c)))
        return ops.multiply(ops.sigmoid(o), ops.tanh(c)), c

    def read(self, mean: Any, h: Any) -> Any:
        """Make the image, (B, 2H, 2W, 1), from the mean and the state."""
        x = ops.add(self.head_mean(ops.space_to_depth(mean, 2)), self.head_hidden(h))
        x = ops.relu(x)  # (B, H/2, W/2, head_filters)
        for layer in self.head:
            x = layer(x)
        correction = self.correction(ops.depth_to_space(x, 2))  # (B, H, W, 4)
        return ops.depth_to_space(ops.add(self.upsampling(mean), correction), 2)

    def call(self, inputs: Tensors) -> Tensors:
        """Run one step."""
        frame, mean = inputs["frame"], inputs["mean"]
        h, c = self.recur(frame, mean, inputs["h"], inputs["c"])
        return {"image": self.read(mean, h), "h_out": h, "c_out": c}

    def state_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of `h` and of `c` without the batch, for a frame of height x width."""
        return height // 2, width // 2, self.settings.filters

    def get_config(self) -> dict[str, Any]:
        """Return the settings."""
        return {"settings": self.settings.model_dump()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Step:
        """Build from `get_config`."""
        return cls(NetworkSettings(**config["settings"]))


def build_step(settings: NetworkSettings, height: int = 128, width: int = 128) -> Step:
    """Make a step with its weights created for frames of height x width."""
    step = Step(settings)
    state = np.zeros((1, *step.state_shape(height, width)), np.float32)
    frame = np.zeros((1, height, width, 1), np.float32)
    step({"frame": frame, "mean": frame, "h": state, "c": state})
    return step


class Unrolled(keras.Model):
    """The step, run over chunks of frames for training by truncated back-propagation.

    Each place of the batch plays stack after stack, a chunk at a time. The state at the end of a
    chunk is kept (as a variable, without gradient) and is where the next chunk starts, unless the
    place's `fresh` says that a new stack begins there.

    Inputs: `frames` and `means`, (B, K, H, W); `fresh`, (B,), 1 or 0; `gain`, (B, n), what an image
    of normalized brightness 1 is in units of the truth. Output: the images at the n frames of
    `read_at`, (B, n, 2H, 2W), in units of the truth.
    """

    def __init__(
        self, step: Step, batch: int, shape: tuple[int, int], read_at: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.step = step
        self.read_at = read_at
        state = (batch, *step.state_shape(*shape))
        self.h = self.add_weight(name="h", shape=state, initializer="zeros", trainable=False)
        self.c = self.add_weight(name="c", shape=state, initializer="zeros", trainable=False)

    def call(self, inputs: Tensors) -> Any:
        """Run the chunk from the kept state and keep the state at its end."""
        kept = (1 - inputs["fresh"])[:, None, None, None]
        h, c = (ops.stop_gradient(state * kept) for state in (self.h.value, self.c.value))
        images = []
        for k in range(inputs["frames"].shape[1]):
            frame, mean = inputs["frames"][:, k, :, :, None], inputs["means"][:, k, :, :, None]
            h, c = self.step.recur(frame, mean, h, c)
            if k in self.read_at:
                images.append(self.step.read(mean, h)[..., 0])  # (B, 2H, 2W)
        self.h.assign(h)
        self.c.assign(c)
        return ops.stack(images, axis=1) * inputs["gain"][:, :, None, None]
