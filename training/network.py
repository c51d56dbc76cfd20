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
and the mean image; it returns the mean, interpolated to the output grid, plus a correction, and
nothing below the background: there is no negative light.

What differs in range (fluctuation, mean, products, state) goes through convolutions of its own,
which are summed: a concatenation would tie all to one int8 scale.

Every convolution is one at the camera's full sampling, of 5 x 5 px, computed on pixels *folded* by
`space_to_depth` (see `FoldedConv2D`): the same numbers in less time, because processors like many
channels. So the network is equivariant: a sample that moves by one pixel moves its image by two,
and no pattern of the folding is left in it.

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
    """Size of the network; channels are counted per camera pixel."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    filters: int = Field(4, ge=1)
    """Channels of the cell."""
    products: int = Field(2, ge=1)
    """Learned products of the fluctuation that the cell is fed."""
    head_filters: int = Field(8, ge=1)
    """Channels of the head."""
    head_layers: int = Field(2, ge=0)
    """Convolutions of the head beyond the first and the last."""

    def state_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of `h` and of `c` without the batch, for a frame of height x width."""
        return height // FOLD, width // FOLD, FOLD**2 * self.filters


FOLD = 2  # pixels along each axis that are folded into channels
SIZE_MULTIPLE = FOLD  # of the frame's height and width
UPSAMPLING = 2


@keras.saving.register_keras_serializable(package="learn2sofi")
class FoldedConv2D(layers.Layer):
    """A convolution at full sampling, computed on pixels folded by `space_to_depth`.

    What a kernel of K x K px does to an image of C channels, a kernel of 3 x 3 does to the folded
    image of 4 C channels: output phase p sees input phase q of the folded pixel t away through the
    tap at 2 t + q - p. The weights are those of the small kernel; the large one is put together
    from them, and is a constant in the converted file.

    Takes (B, H/2, W/2, 4 C), phase by phase as `space_to_depth` makes it, or several such, whose
    channels C are counted one after the other; returns (B, H/2, W/2, groups x 4 x filters), in this
    order. Several inputs are convolved one by one and summed: joined into one they would have to
    share an int8 scale.

    Parameters
    ----------
    filters : int
        Output channels per pixel and group.
    groups : int
        Sets of output channels, one after the other, so that they can be split.
    size_px : int
        K, 3 or 5.
    activation : str, optional
        As in Keras.
    use_bias : bool
        With a bias per filter and group.
    kernel_initializer, bias_initializer : str or Initializer
        Of the kernel, (K, K, C, groups x filters), and the bias, (groups x filters,).
    """

    def __init__(
        self,
        filters: int,
        groups: int = 1,
        size_px: int = 5,
        activation: str | None = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.filters, self.groups, self.size_px = filters, groups, size_px
        self.activation, self.use_bias = keras.activations.get(activation), use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, input_shape: Any) -> None:
        """Create the small kernel and the bias."""
        outputs = self.groups * self.filters
        inputs = input_shape if isinstance(input_shape, list) else [input_shape]
        self.channels = [each[-1] // FOLD**2 for each in inputs]
        shape = (self.size_px, self.size_px, sum(self.channels), outputs)
        self.kernel = self.add_weight(
            name="kernel", shape=shape, initializer=self.kernel_initializer
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(outputs,), initializer=self.bias_initializer
            )

    def folded_kernel(self, start: int, channels: int) -> Any:
        """Put an input's large kernel together, (3, 3, 4 C, groups x 4 x filters)."""
        kernel = self.kernel[:, :, start : start + channels]
        padded = ops.pad(kernel, [[1, 1], [1, 1], [0, 0], [0, 0]])  # a rim of zeros
        taps = ops.reshape(padded, (-1, channels, self.groups, self.filters))
        taps = ops.take(taps, _folded_taps(self.size_px), axis=0)  # (ty, tx, q, p, C, groups, f)
        taps = ops.transpose(taps, (0, 1, 2, 4, 5, 3, 6))  # (ty, tx, q, C, groups, p, f)
        outputs = self.groups * FOLD**2 * self.filters
        return ops.reshape(taps, (3, 3, FOLD**2 * channels, outputs))

    def call(self, x: Any) -> Any:
        """Convolve, sum up, and add the bias."""
        parts, start = [], 0
        for each, channels in zip(x if isinstance(x, list) else [x], self.channels, strict=True):
            parts.append(ops.conv(each, self.folded_kernel(start, channels), padding="same"))
            start += channels
        x = sum(parts[1:], start=parts[0])
        if self.use_bias:
            bias = ops.reshape(self.bias, (self.groups, 1, self.filters))
            x = ops.add(x, ops.reshape(ops.tile(bias, (1, FOLD**2, 1)), (-1,)))
        return self.activation(x)


def _folded_taps(size_px: int) -> np.ndarray:
    """Index of the tap in the kernel with its rim, (3, 3, 4, 4): t in y and x, phases q and p."""
    t, q, p = np.meshgrid([-1, 0, 1], [0, 1], [0, 1], indexing="ij")
    reach = size_px // 2 + 1  # the rim of zeros
    tap = np.clip(FOLD * t + q - p, -reach, reach) + reach  # (t, q, p) along one axis
    # (ty, tx, qy, qx, py, px)
    flat = tap[:, None, :, None, :, None] * (size_px + 2) + tap[None, :, None, :, None, :]
    return flat.reshape(3, 3, FOLD**2, FOLD**2)


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
    (B, H/2, W/2, 4 filters), folded. Outputs: `image`, (B, 2H, 2W, 1), normalized; `h_out` and
    `c_out`.
    """

    def __init__(self, settings: NetworkSettings | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.settings = s = settings or NetworkSettings()
        conv = FoldedConv2D
        self.factors = conv(s.products, groups=2, name="factors")
        self.gates_frame = conv(s.filters, 3, bias_initializer=GateBias(), name="gates_frame")
        self.gates_products = conv(s.filters, 3, use_bias=False, name="gates_products")
        self.gates_hidden = conv(s.filters, 3, use_bias=False, name="gates_hidden")
        self.head_mean = conv(s.head_filters, name="head_mean")
        self.head_hidden = conv(s.head_filters, use_bias=False, name="head_hidden")
        self.head = [
            conv(s.head_filters, activation="relu", name=f"head_{k}") for k in range(s.head_layers)
        ]
        self.correction = conv(UPSAMPLING**2, kernel_initializer="zeros", name="correction")
        self.upsampling = conv(
            UPSAMPLING**2,
            size_px=3,
            use_bias=False,
            kernel_initializer=BilinearUpsampling(),
            name="upsampling",
        )

    def recur(self, frame: Any, mean: Any, h: Any, c: Any) -> tuple[Any, Any]:
        """Take one frame into the state; returns (h', c')."""
        fluctuation = ops.space_to_depth(ops.subtract(frame, mean), FOLD)  # (B, H/2, W/2, 4)
        left, right = ops.split(self.factors(fluctuation), 2, axis=-1)
        products = ops.multiply(left, right)  # (B, H/2, W/2, 4 products)
        x = [fluctuation, ops.space_to_depth(mean, FOLD)]
        gates = ops.add(self.gates_frame(x), self.gates_products(products))
        gates = ops.add(gates, self.gates_hidden(h))  # (B, H/2, W/2, 3 x 4 filters)
        i, o, g = ops.split(gates, 3, axis=-1)
        c = ops.add(c, ops.multiply(ops.sigmoid(i), ops.subtract(ops.tanh(g), c)))
        return ops.multiply(ops.sigmoid(o), ops.tanh(c)), c

    def read(self, mean: Any, h: Any) -> Any:
        """Make the image, (B, 2H, 2W, 1), from the mean and the state."""
        folded = ops.space_to_depth(mean, FOLD)  # (B, H/2, W/2, 4)
        x = ops.relu(ops.add(self.head_mean(folded), self.head_hidden(h)))
        for layer in self.head:
            x = layer(x)  # (B, H/2, W/2, 4 head_filters)
        image = ops.relu(ops.add(self.upsampling(folded), self.correction(x)))
        return ops.depth_to_space(ops.depth_to_space(image, FOLD), UPSAMPLING)

    def call(self, inputs: Tensors) -> Tensors:
        """Run one step."""
        frame, mean = inputs["frame"], inputs["mean"]
        h, c = self.recur(frame, mean, inputs["h"], inputs["c"])
        return {"image": self.read(mean, h), "h_out": h, "c_out": c}

    def state_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of `h` and of `c` without the batch, for a frame of height x width."""
        return self.settings.state_shape(height, width)

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
