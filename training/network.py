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
and no pattern of the folding is left in it. Its channels come in sets of four that are mirror
images of each other (Cohen and Welling, ICML 2016, with the group of the two mirrors): a sample
that is mirrored, along y, x or both, gives the mirrored image, and no emitter is drawn to one side.

The head looks far around with convolutions whose taps lie 4, 8 and 16 px apart (Yu and Koltun, ICLR
2016): whether a smooth brightness is a body or haze is not seen from near by.

The width of the PSF is an input, 0 where it is not known. It scales the channels of the head (after
Perez et al., AAAI 2018), by values that are learned at some widths and interpolated between. It
does not shift them: what is added to whole fields is rounded in int8, always the same way.
Some numbers that the network finds itself, from the whole image at once (after Hu et al., CVPR
2018), scale them, too: a PSF is the same all over a field, and so is the noise.

Everything is in `keras.ops`, runs on any backend, and consists of operators that are delegated in
int8 (see the op gate in `quantize.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops
from pydantic import BaseModel, ConfigDict, Field, field_validator

from device.errors import UserError

Tensors = dict[str, Any]
Rounding = Callable[[Any, tuple[float, float]], Any]
"""What is done to a tensor of the network that lies between these limits."""


class NetworkSettings(BaseModel):
    """Size of the network; channels are counted per camera pixel."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    filters: int = Field(4, ge=4, multiple_of=4)
    """Channels of the cell."""
    products: int = Field(4, ge=4, multiple_of=4)
    """Learned products of the fluctuation that the cell is fed."""
    head_filters: int = Field(8, ge=4, multiple_of=4)
    """Channels of the head."""
    head_layers: int = Field(4, ge=0)
    """Convolutions of the head beyond the first and the last; each adds to what it is given."""
    context_px: tuple[int, ...] = ()
    """How far apart the taps of further convolutions of the head are, camera px, each even; they
    come after the first `NEAR` of the others."""
    estimates: int = Field(0, ge=0)
    """Numbers that the head finds from the whole image, after the first `NEAR` of its layers."""
    psf_knots_px: tuple[float, ...] = Field((0.8, 1.0, 1.2, 1.4, 1.7, 2.0, 2.5, 3.2), min_length=2)
    """Widths of the PSF, camera px, ascending from above 0, between which what they change is
    interpolated."""

    @field_validator("psf_knots_px")
    @classmethod
    def _ascend(cls, knots: tuple[float, ...]) -> tuple[float, ...]:
        if not all(low < high for low, high in pairwise((0.0, *knots))):
            raise ValueError(f"psf_knots_px must ascend from above 0, and are {knots}")
        return knots

    @field_validator("context_px")
    @classmethod
    def _even(cls, apart: tuple[int, ...]) -> tuple[int, ...]:
        if any(each < FOLD or each % FOLD for each in apart):
            raise ValueError(f"context_px must be even and above 0, and are {apart}")
        return apart

    def state_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of `h` and of `c` without the batch, for a frame of height x width."""
        return height // FOLD, width // FOLD, FOLD**2 * self.filters

    def head_limits(self) -> list[HeadLimits]:
        """Limits of the head's layers, in the order in which they are computed."""
        close = min(NEAR, self.head_layers)
        context = [CONTEXT_LIMITS] * len(self.context_px)
        last = [LAST_LIMITS] * (self.head_layers - close)
        return [FIRST_LIMITS, *[CLOSE_LIMITS] * close, *context, *last]


FOLD = 2  # pixels along each axis that are folded into channels
SIZE_MULTIPLE = FOLD  # of the frame's height and width
UPSAMPLING = 2
FRAME_RANGE = (-1.0, 4.0)  # normalized; beyond it an int8 step saturates
MEAN_RANGE = (-0.2, 2.5)  # the same of the mean
INT8_STEPS = 255
CELL_RANGE = (-1.0, 1.0)  # and of what is added to it, in the same steps
HIDDEN_RANGE = (-0.77, 0.77)  # tanh(1) is 0.76
GATE_RANGE = (-6.0, 6.0)  # sigmoid(6) is 1 - 0.0025, less than an int8 step of it
LIMIT = 6.0  # where relu6 ends
ACTIVATION_RANGE = (0.0, LIMIT)  # of the correction's first part and the whole image's features
LOWEST, USUAL = -2.5, 1.0  # of the correction, normalized; the mean ends at 2.5
SCALE_RANGE = (-32 / 128, 223 / 128)  # of what a layer of the head is scaled by; 1 is exact


class HeadLimits(NamedTuple):
    """Of a layer of the head: the range of its activations, and of what is added up to them.

    Both have the same steps, so that nothing is rounded twice within a part of the head: what is
    even and small over many pixels would be lost in a step that is larger, or moved by it.
    """

    activation: tuple[float, float]
    summand: tuple[float, float]

    @classmethod
    def up_to(cls, highest: float, below: int = 106) -> HeadLimits:
        """Let activations end there; `below` of the 255 steps of what is added are below 0."""
        step = highest / INT8_STEPS
        return cls((0.0, highest), (-below * step, (INT8_STEPS - below) * step))


# What simulated stacks reach in each part of the head, or about that, at the released weights'
# scale. A range that is not used costs steps; what these cut off, nothing (docs/experiments.md).
FIRST_LIMITS = HeadLimits.up_to(4.0)  # -1.7 to 2.3 is added
PART_RANGE = HeadLimits.up_to(3.0).summand  # -1.2 to 1.8, of the two whose sum the first layer is
CLOSE_LIMITS = HeadLimits.up_to(LIMIT)  # -2.5 to 3.5
CONTEXT_LIMITS = HeadLimits.up_to(5.0)  # -2.1 to 2.9
# -2.5 to 2.5: where less can be taken away, single lines are drawn as two
LAST_LIMITS = HeadLimits.up_to(5.0, below=128)
NEAR = 2  # of the head's convolutions are made before it looks further around
MIRRORS = 4  # as it is, mirrored along x, along y, and along both


@keras.saving.register_keras_serializable(package="learn2sofi")
class FoldedConv2D(layers.Layer):
    """A convolution at full sampling, computed on pixels folded by `space_to_depth`.

    What a kernel of K x K px does to an image of C channels, a kernel of 3 x 3 does to the folded
    image of 4 C channels: output phase p sees input phase q of the folded pixel t away through the
    tap at 2 t + q - p. Taps that lie an even number of pixels apart see their own phase alone. The
    weights are those of the small kernel; the large one is put together from them, and is a
    constant in the converted file.

    Takes (B, H/2, W/2, 4 C), phase by phase as `space_to_depth` makes it, or several such, whose
    channels C are counted one after the other; returns (B, H/2, W/2, groups x 4 x filters), in this
    order. Several inputs are convolved one by one and summed: joined into one they would have to
    share an int8 scale.

    Channels are mirrored sets: channel ``m x C/4 + f`` is what channel f would be of the sample
    mirrored along x (m = 1), y (2) or both (3). An input of one channel per pixel is an image, and
    the mirror image of itself. The weights are those of the first channels; the others' kernels are
    these, mirrored. The four phases of an image enlarged by two are such a set, too.

    Parameters
    ----------
    filters : int
        Output channels per pixel and group, a multiple of 4.
    groups : int
        Sets of output channels, one after the other, so that they can be split.
    size_px : int
        K, 1, 3 or 5.
    apart_px : int
        From one tap to the next, 1 or an even number.
    activation : str, optional
        As in Keras.
    use_bias : bool
        With a bias per set of mirrored channels.
    kernel_initializer, bias_initializer : str or Initializer
        Of the kernel, (K, K, C, groups x filters / 4), and the bias, (groups x filters / 4,).
    """

    def __init__(
        self,
        filters: int,
        groups: int = 1,
        size_px: int = 5,
        apart_px: int = 1,
        activation: str | None = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.filters, self.groups, self.size_px = filters, groups, size_px
        self.apart_px = apart_px
        self.activation, self.use_bias = keras.activations.get(activation), use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, input_shape: Any) -> None:
        """Create the small kernel and the bias."""
        outputs = self.groups * self.filters // MIRRORS
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

    def mirrored_kernel(self, start: int, channels: int) -> Any:
        """Put the kernel of an input's channels together, (K, K, C, groups x filters)."""
        kernel = self.kernel[:, :, start : start + channels]
        mirrored = []
        for mirror in range(MIRRORS):
            each = ops.flip(kernel, axes) if (axes := mirror_axes(mirror)) else kernel
            each = ops.take(each, mirrored_channels(channels, mirror), axis=2)
            mirrored.append(ops.reshape(each, (*each.shape[:3], self.groups, 1, -1)))
        joined = ops.concatenate(mirrored, axis=4)  # (K, K, C, groups, 4, filters / 4)
        return ops.reshape(joined, (*joined.shape[:3], -1))

    def folded_kernel(self, start: int, channels: int) -> Any:
        """Put an input's large kernel together, (3, 3, 4 C, groups x 4 x filters).

        It is of 1 x 1 where the small one is, and of K x K where its taps lie apart.
        """
        kernel = self.mirrored_kernel(start, channels)
        padded = ops.pad(kernel, [[1, 1], [1, 1], [0, 0], [0, 0]])  # a rim of zeros
        taps = ops.reshape(padded, (-1, channels, self.groups, self.filters))
        of_taps = _folded_taps(self.size_px, self.apart_px)
        taps = ops.take(taps, of_taps, axis=0)  # (ty, tx, q, p, C, groups, f)
        taps = ops.transpose(taps, (0, 1, 2, 4, 5, 3, 6))  # (ty, tx, q, C, groups, p, f)
        outputs = self.groups * FOLD**2 * self.filters
        return ops.reshape(taps, (*of_taps.shape[:2], FOLD**2 * channels, outputs))

    def call(self, x: Any, factor: float = 1.0, offset: float = 0.0) -> Any:
        """Convolve, sum up, and add the bias; the result times the factor, plus the offset."""
        total, start = None, 0
        apart = max(1, self.apart_px // FOLD)
        for each, channels in zip(x if isinstance(x, list) else [x], self.channels, strict=True):
            kernel = factor * self.folded_kernel(start, channels)
            part = ops.conv(each, kernel, padding="same", dilation_rate=apart)
            if self.use_bias and total is None:  # of the first convolution: no sum of its own
                part = ops.add(part, factor * per_channel(self.bias, self.groups) + offset)
            total = part if total is None else ops.add(total, part)
            start += channels
        return self.activation(total)


def per_channel(values: Any, groups: int = 1) -> Any:
    """Repeat a value per set of mirrored channels, (..., groups x F / 4), for all folded channels.

    Returns (..., groups x 4 phases x F), in the order of `FoldedConv2D`.
    """
    *outer, last = values.shape
    sets = ops.reshape(values, (*outer, groups, 1, last // groups))
    repeats = (1,) * (len(outer) + 1) + (FOLD**2 * MIRRORS, 1)
    return ops.reshape(ops.tile(sets, repeats), (*outer, -1))


def mirror_axes(mirror: int) -> tuple[int, ...]:
    """Along which of the axes y, x an image is mirrored."""
    return tuple(axis for axis, bit in ((0, 2), (1, 1)) if mirror & bit)


def mirrored_channels(channels: int, mirror: int) -> np.ndarray:
    """Where each channel of a mirrored set is found when the sample is mirrored, (C,)."""
    if channels == 1:
        return np.zeros(1, np.int64)
    sets = channels // MIRRORS
    m, f = np.divmod(np.arange(channels), sets)
    return (m ^ mirror) * sets + f


def _folded_taps(size_px: int, apart_px: int = 1) -> np.ndarray:
    """Index of the tap in the kernel with its rim, (n, n, 4, 4): t in y and x, phases q and p."""
    near = size_px // 2
    rim = near + 1  # of zeros
    reach = near if apart_px > 1 else min(near, 1)
    t, q, p = np.meshgrid(np.arange(-reach, reach + 1), [0, 1], [0, 1], indexing="ij")
    if apart_px > 1:
        tap = np.where(q == p, t, -rim) + rim
    else:
        tap = np.clip(FOLD * t + q - p, -rim, rim) + rim  # (t, q, p) along one axis
    # (ty, tx, qy, qx, py, px)
    flat = tap[:, None, :, None, :, None] * (size_px + 2) + tap[None, :, None, :, None, :]
    return flat.reshape(len(t), len(t), FOLD**2, FOLD**2)


@keras.saving.register_keras_serializable(package="learn2sofi")
class BilinearUpsampling(keras.Initializer):
    """Kernel (3, 3, 1, 1) of the first phase of bilinear interpolation by two.

    Output pixel j lies at input coordinate ``(j + 0.5) / 2 - 0.5``: 3/4 of the nearest pixel and
    1/4 of the one beyond, along each axis. The other phases are its mirror images;
    `depth_to_space` puts them in order.
    """

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        """Return the kernel; `shape` must be (3, 3, 1, 1)."""
        taps = np.array([0.25, 0.75, 0.0])
        return ops.convert_to_tensor(np.outer(taps, taps).reshape(shape), dtype=dtype or "float32")


@keras.saving.register_keras_serializable(package="learn2sofi")
class GateBias(keras.Initializer):
    """Bias of the gates (input, output, candidate): the cell starts with a memory of 8 frames."""

    INPUT_GATE = -2.0  # sigmoid(-2) is about 1/8

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        """Return the bias, (3 filters / 4,)."""
        bias = np.zeros(shape)
        bias[: shape[0] // 3] = self.INPUT_GATE
        return ops.convert_to_tensor(bias, dtype=dtype or "float32")


def exact(x: Any, limits: tuple[float, float]) -> Any:
    """Leave a tensor as it is."""
    return x


def within(x: Any, limits: tuple[float, float]) -> Any:
    """Clip a tensor to its limits."""
    return ops.clip(x, *limits)


@keras.saving.register_keras_serializable(package="learn2sofi")
class PsfWidth(layers.Layer):
    """Says how near the PSF's width is to each knot: the hats of linear interpolation.

    Between two knots their hats add up to 1 and all others are 0; beyond the last its hat stays 1,
    and below the first its hat falls to 0 at 0, the unknown width, where all are 0. Each is
    ``relu(1 - above - below)`` of what is over and what is missing, in parts of the gap to the next
    knot, as two matrix products, which int8 computes exactly at 0.

    Parameters
    ----------
    knots_px : tuple of float
        Ascending, the first above 0.
    """

    def __init__(self, knots_px: tuple[float, ...], **options: Any) -> None:
        super().__init__(**options)
        knots = np.array(knots_px)
        gaps = np.diff(knots, prepend=0)  # to the one before
        above = 1 / gaps[1:]
        slopes = np.concatenate([above, -1 / gaps])  # (2 n - 1,); beyond the last nothing is over
        offsets = np.concatenate([-knots[:-1] * above, knots / gaps])
        self.slopes, self.offsets = (LIMIT * np.float32(x[None]) for x in (slopes, offsets))
        pairs = np.concatenate([np.eye(len(knots) - 1, len(knots)), np.eye(len(knots))])
        self.pairs = np.float32(pairs / LIMIT)

    def call(self, sigma_px: Any) -> Any:
        """Return the hats, (B, n), for widths (B, 1) in camera px."""
        apart = ops.relu6(ops.add(ops.matmul(sigma_px, self.slopes), self.offsets))  # (B, 2 n - 1)
        return ops.relu(1 - ops.matmul(apart, self.pairs))


@keras.saving.register_keras_serializable(package="learn2sofi")
class PsfModulation(layers.Layer):
    """Scales channels by a function of the PSF's width (after Perez et al., AAAI 2018).

    Takes folded channels, (B, H/2, W/2, 4 F), and `change`, (B, n), the hats of the width and what
    was found from the whole image. Where all are 0 nothing is changed, which int8 holds exactly.
    """

    def build(self, x_shape: Any, change_shape: Any) -> None:
        """Create a scale per feature and set of mirrored channels."""
        sets = x_shape[-1] // (FOLD**2 * MIRRORS)
        shape = (change_shape[-1], sets)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer="zeros")

    def call(self, x: Any, change: Any, rounded: Rounding = exact) -> Any:
        """Return ``(1 + scale) x``."""
        of_scale = per_channel(self.kernel)  # (n, 4 F)
        ones = np.ones(of_scale.shape[1], np.float32)
        scale = ops.add(ops.matmul(change, of_scale), ones)  # (B, 4 F)
        scale = ops.reshape(scale, (-1, 1, 1, scale.shape[-1]))
        return ops.multiply(x, rounded(scale, SCALE_RANGE))


@keras.saving.register_keras_serializable(package="learn2sofi")
class WholeImage(layers.Layer):
    """Finds some numbers from the whole of an image, as its noise and the width of its PSF.

    Features of every pixel, none below 0, are averaged over all pixels, phases and mirror images:
    an image that is moved or mirrored has the same.

    Takes folded channels, (B, H/2, W/2, 4 F); returns (B, n), from 0 to 1.

    Parameters
    ----------
    estimates : int
        n.
    """

    FEATURES, HIDDEN = 32, 16
    GAIN = 8.0  # activations are mostly far below 1

    def __init__(self, estimates: int, **options: Any) -> None:
        super().__init__(**options)
        self.estimates = estimates
        self.features = FoldedConv2D(self.FEATURES, size_px=1, activation="relu6", name="features")

    def build(self, x_shape: Any) -> None:
        """Create the weights of the features and of the two layers behind them."""
        self.features.build(x_shape)
        n, hidden = self.FEATURES // MIRRORS, self.HIDDEN
        self.inner = self.add_weight(name="inner", shape=(n, hidden))
        self.inner_bias = self.add_weight(name="inner_bias", shape=(hidden,), initializer="zeros")
        self.outer = self.add_weight(name="outer", shape=(hidden, self.estimates))
        self.outer_bias = self.add_weight(
            name="outer_bias", shape=(self.estimates,), initializer="zeros"
        )

    def logits(self, x: Any) -> Any:
        """Return the logits of the numbers, (B, n)."""
        averages = ops.mean(self.features(x, factor=self.GAIN), axis=(1, 2))  # (B, 4 FEATURES)
        repeats = FOLD**2 * MIRRORS
        inner = ops.tile(self.inner, (repeats, 1)) / repeats  # (4 FEATURES, HIDDEN)
        hidden = ops.relu6(ops.add(ops.matmul(averages, inner), self.inner_bias))
        return ops.add(ops.matmul(hidden, self.outer), self.outer_bias)

    def call(self, x: Any) -> Any:
        """Return the numbers, (B, n)."""
        return ops.sigmoid(self.logits(x))

    def shrink(self, shrinkage: float, usual: np.ndarray) -> None:
        """Bring the logits nearer to their usual values, (n,): 0 leaves them, 1 makes them these.

        A prediction that was fitted on some cases is too sure about new ones (shrinkage: Copas,
        J. R. Stat. Soc. B 45, 311, 1983), and more so about new kinds of them.
        """
        self.outer.assign((1 - shrinkage) * self.outer)
        self.outer_bias.assign((1 - shrinkage) * self.outer_bias + shrinkage * usual)


def _enlarged(phases: Any) -> Any:
    """Put the phases of folding and of enlarging in their places, (..., 16) to (B, 2H, 2W, 1)."""
    return ops.depth_to_space(ops.depth_to_space(phases, FOLD), UPSAMPLING)


@keras.saving.register_keras_serializable(package="learn2sofi")
class Step(keras.Model):
    """One recurrent step.

    Inputs, NHWC: `frame` and `mean`, (B, H, W, 1), normalized; `psf_sigma_px`, (B, 1), 0 where it
    is not known; the state `h` and `c`, (B, H/2, W/2, 4 filters), folded. Outputs: `image`,
    (B, 2H, 2W, 1), normalized; `h_out` and `c_out`.
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
        self.psf = PsfWidth(s.psf_knots_px, name="psf")
        self.modulations = [PsfModulation(name=f"modulation_{k}") for k in range(s.head_layers + 1)]
        self.head = [conv(s.head_filters, name=f"head_{k}") for k in range(s.head_layers)]
        self.context = [
            conv(
                s.head_filters,
                size_px=3,
                apart_px=apart,
                kernel_initializer="zeros",
                name=f"context_{k}",
            )
            for k, apart in enumerate(s.context_px)
        ]
        self.context_modulations = [
            PsfModulation(name=f"context_modulation_{k}") for k in range(len(s.context_px))
        ]
        self.whole_image = WholeImage(s.estimates, name="whole_image") if s.estimates else None
        self.correction = conv(
            UPSAMPLING**2,
            kernel_initializer="zeros",
            dtype="float32",  # in mixed precision, too: 16 bits are coarser than int8's steps
            name="correction",
        )
        self.upsampling = conv(
            UPSAMPLING**2,
            size_px=3,
            use_bias=False,
            kernel_initializer=BilinearUpsampling(),
            name="upsampling",
        )
        self.upsampling.build((None, None, None, FOLD**2))  # whose kernel alone is used

    @property
    def convolutions(self) -> list[FoldedConv2D]:
        """All that compute on folded pixels: not the upsampling, which lends its kernel alone."""
        found = [each for each in self._flatten_layers() if isinstance(each, FoldedConv2D)]
        return [each for each in found if each is not self.upsampling]

    def recur(
        self, frame: Any, mean: Any, h: Any, c: Any, rounded: Rounding = exact
    ) -> tuple[Any, Any]:
        """Take one frame into the state; returns (h', c').

        In training, `rounded` shows the cell the steps of int8: what would add less than half a
        step to it adds nothing.
        """
        fluctuation = ops.space_to_depth(ops.subtract(frame, mean), FOLD)  # (B, H/2, W/2, 4)
        left, right = ops.split(self.factors(fluctuation), 2, axis=-1)
        products = ops.multiply(left, right)  # (B, H/2, W/2, 4 products)
        x = [fluctuation, ops.space_to_depth(mean, FOLD)]
        gates = ops.add(self.gates_frame(x), self.gates_products(products))
        gates = ops.add(gates, self.gates_hidden(h))  # (B, H/2, W/2, 3 x 4 filters)
        i, o, g = ops.split(rounded(gates, GATE_RANGE), 3, axis=-1)
        update = ops.multiply(ops.sigmoid(i), ops.subtract(ops.tanh(g), c))
        c = rounded(ops.add(c, rounded(update, CELL_RANGE)), CELL_RANGE)
        return rounded(ops.multiply(ops.sigmoid(o), ops.tanh(c)), HIDDEN_RANGE), c

    def read(
        self,
        mean: Any,
        h: Any,
        psf_sigma_px: Any,
        rounded: Rounding = exact,
        seen: Any = None,
    ) -> Any:
        """Make the image, (B, 2H, 2W, 1), from the mean, the state and the PSF's width.

        In the int8 file the mean is interpolated, and what the head makes is added to it, in float:
        see `quantize`. In training, `rounded` shows the head the steps of int8. The mean is
        interpolated as it is; the head is shown it as `seen`, where that is given.
        """
        change = self.psf(psf_sigma_px)  # (B, knots)
        limits = self.settings.head_limits()[1 + len(self.head[:NEAR]) :]
        context, last = limits[: len(self.context)], limits[len(self.context) :]
        x = self._near(mean if seen is None else seen, h, change, rounded)
        if self.whole_image is not None:
            change = ops.concatenate([change, self.whole_image(x)], axis=-1)
        x = self._deepened(x, self.context, self.context_modulations, change, context, rounded)
        modulations = self.modulations[1 + NEAR :]
        x = self._deepened(x, self.head[NEAR:], modulations, change, last, rounded)
        taps = self.upsampling.mirrored_kernel(0, 1)
        phases = ops.conv(mean, ops.cast(taps, mean.dtype), padding="same")
        image = ops.depth_to_space(phases, UPSAMPLING)  # the mean, interpolated, (B, 2H, 2W, 1)
        return ops.relu(ops.add(image, self.correct(x, rounded)))

    def whole_image_logits(
        self, mean: Any, h: Any, psf_sigma_px: Any, rounded: Rounding = exact
    ) -> Any:
        """Return the logits of what is found from the whole image, (B, estimates).

        The mean is that which the head is shown; see `read`.
        """
        assert self.whole_image is not None
        return self.whole_image.logits(self._near(mean, h, self.psf(psf_sigma_px), rounded))

    def _near(self, mean: Any, h: Any, change: Any, rounded: Rounding) -> Any:
        """Make the head's first layers, (B, H/2, W/2, 4 head_filters)."""
        folded = ops.space_to_depth(mean, FOLD)  # (B, H/2, W/2, 4)
        close = self.head[:NEAR]
        first, *further = self.modulations[: 1 + len(close)]
        limits, *of_close = self.settings.head_limits()[: 1 + len(close)]
        of_mean = rounded(self.head_mean(folded), PART_RANGE)
        of_frames = rounded(self.head_hidden(h), PART_RANGE)
        x = rounded(ops.add(of_mean, of_frames), limits.summand)
        x = ops.relu6(first(x, change, rounded=rounded))
        x = rounded(x, limits.activation)
        return self._deepened(x, close, further, change, of_close, rounded)

    @staticmethod
    def _deepened(
        x: Any,
        convolutions: list[FoldedConv2D],
        modulations: list[PsfModulation],
        change: Any,
        limits: list[HeadLimits],
        rounded: Rounding,
    ) -> Any:
        """Let each of these layers of the head add to what it is given."""
        for layer, modulation, (activation, summand) in zip(
            convolutions, modulations, limits, strict=True
        ):
            more = modulation(rounded(layer(x), summand), change, rounded=rounded)
            more = rounded(more, summand)
            x = rounded(ops.relu6(ops.add(x, more)), activation)
        return x

    def correct(self, x: Any, rounded: Rounding) -> Any:
        """Say what is to be added to the interpolated mean, (B, 2H, 2W, 1), from the head.

        It comes in two parts that int8 holds well. One int8 tensor for all that an image may hold,
        from `LOWEST` up to the brightest point, would have steps that show in smooth specimens. The
        first part ends at `USUAL` and so has finer ones; the second, for bright points, begins
        there and is exactly 0 elsewhere. It has another factor, or the converter would take both
        convolutions for one.
        """
        first, last = ACTIVATION_RANGE
        scale = (last - first) / (USUAL - LOWEST)
        usual = ops.relu6(self.correction(x, factor=scale, offset=-scale * LOWEST))
        other = scale / 2
        beyond = ops.relu(self.correction(x, factor=other, offset=-other * USUAL))
        usual = _enlarged(rounded(usual, ACTIVATION_RANGE))
        image = ops.add(usual / scale, _enlarged(beyond) / other)
        return ops.add(image, LOWEST)

    def scale_head(self, gain: float) -> None:
        """Multiply all activations of the head, and nothing that leaves it below the limits.

        Activations at and above 0 may be scaled where what follows is scaled back (cross-layer
        equalization: Nagel et al., ICCV 2019). Typical ones are a hundredth of the largest;
        multiplied, they have more of int8's steps, and the largest end at the limit.

        Raises
        ------
        UserError
            The gain is not a number above 0.
        """
        if not 0 < gain < np.inf:
            raise UserError(f"--head-gain is {gain:g}; a number above 0 is needed.")
        scaled = [self.head_mean.kernel, self.head_mean.bias, self.head_hidden.kernel]
        for weights in (*scaled, *(layer.bias for layer in (*self.head, *self.context))):
            weights.assign(weights * gain)
        if self.whole_image is not None:
            kernel = self.whole_image.features.kernel
            kernel.assign(kernel / gain)
        self.correction.kernel.assign(self.correction.kernel / gain)

    def call(self, inputs: Tensors, limited: bool = True) -> Tensors:
        """Run one step; where `limited`, within limits that training shows it.

        They are those of the frame, of the mean and of all that the head makes; those of the cell's
        sums are the training's and int8's alone. The int8 file has them as ranges of its tensors.
        """
        bounded = within if limited else exact
        frame, mean = bounded(inputs["frame"], FRAME_RANGE), inputs["mean"]
        seen = bounded(mean, MEAN_RANGE)
        h, c = self.recur(frame, seen, inputs["h"], inputs["c"])
        image = self.read(mean, h, inputs["psf_sigma_px"], bounded, seen=seen)
        return {"image": image, "h_out": h, "c_out": c}

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


def straight_through(x: Any, limits: tuple[float, float]) -> Any:
    """Do as `as_int8`, with the gradient of the clipping alone (Bengio et al., arXiv:1308.3432)."""
    clipped = within(x, limits)
    return clipped + ops.stop_gradient(as_int8(x, limits) - clipped)


def as_int8(x: Any, limits: tuple[float, float]) -> Any:
    """Clip to the limits and round to int8's steps between them, of which 0 is one."""
    step = (limits[1] - limits[0]) / INT8_STEPS
    return ops.round(within(x, limits) / step) * step


def take_over(step: Step, smaller: Step) -> None:
    """Give a step the weights of a smaller one, so that it makes the same images.

    The smaller one may lack `context_px` and `estimates`, which, as they begin, change nothing that
    is within their limits; in all else the two must be the same.

    Raises
    ------
    ValueError
        They differ in more.
    """
    lacking: dict[str, Any] = {"context_px": (), "estimates": 0}
    one, other = (each.settings.model_copy(update=lacking) for each in (step, smaller))
    if one != other:
        raise ValueError("the two networks differ in more than context_px and estimates")
    for name, none in lacking.items():
        if getattr(smaller.settings, name) not in (none, getattr(step.settings, name)):
            raise ValueError(f"the {name} of the smaller network would be lost, or mixed up")
    given = {_within(variable): variable for variable in smaller.variables}
    for variable in step.variables:
        old = given.get(_within(variable))
        if old is None:
            continue
        value, known = (np.array(keras.ops.convert_to_numpy(each)) for each in (variable, old))
        value[: len(known)] = known  # the rows behind are of what is newly found
        variable.assign(value)


def _within(variable: Any) -> str:
    """Path of a variable within the network, whatever that is called."""
    return str(variable.path.partition("/")[2])


def build_step(settings: NetworkSettings, height: int = 128, width: int = 128) -> Step:
    """Make a step with its weights created for frames of height x width."""
    step = Step(settings)
    state = keras.KerasTensor((1, *step.state_shape(height, width)))
    frame = keras.KerasTensor((1, height, width, 1))
    psf = keras.KerasTensor((1, 1))
    step({"frame": frame, "mean": frame, "psf_sigma_px": psf, "h": state, "c": state})
    return step


class Unrolled(keras.Model):
    """The step, run over chunks of frames for training by truncated back-propagation.

    Each place of the batch plays stack after stack, a chunk at a time. The state at the end of a
    chunk is kept (as a variable, without gradient) and is where the next chunk starts, unless the
    place's `fresh` says that a new stack begins there.

    Inputs: `frames` and `means`, (B, K, H, W); `psf_sigma_px`, (B, 1), 0 where it is not told;
    `fresh`, (B,), 1 or 0; `gain`, (B, n), what an image of normalized brightness 1 is in units of
    the truth. Output: the images at the n frames of `read_at`, (B, n, 2H, 2W), in units of the
    truth.

    Frames and means are rounded to the steps that an int8 network has of them: what deconvolution
    makes of these steps is to be seen in training, and smoothed there.
    """

    def __init__(
        self, step: Step, batch: int, shape: tuple[int, int], read_at: tuple[int, ...]
    ) -> None:
        super().__init__(dtype="float32")  # whatever the step's layers compute in
        self.step = step
        self.read_at = read_at
        state = (batch, *step.state_shape(*shape))
        self.h = self.add_weight(name="h", shape=state, initializer="zeros", trainable=False)
        self.c = self.add_weight(name="c", shape=state, initializer="zeros", trainable=False)

    @property
    def carried(self) -> tuple[keras.Variable, ...]:
        """What is kept from a chunk to the next."""
        return self.h, self.c

    def call(self, inputs: Tensors) -> Any:
        """Run the chunk from the kept state and keep the state at its end."""
        frames = as_int8(inputs["frames"], FRAME_RANGE)
        means = as_int8(inputs["means"], MEAN_RANGE)
        kept = (1 - inputs["fresh"])[:, None, None, None]
        h, c = (ops.stop_gradient(state * kept) for state in (self.h.value, self.c.value))
        images = []
        for k in range(frames.shape[1]):
            frame, mean = frames[:, k, :, :, None], means[:, k, :, :, None]
            h, c = self.step.recur(frame, mean, h, c, straight_through)
            if k in self.read_at:
                image = self.step.read(mean, h, inputs["psf_sigma_px"], straight_through)
                images.append(image[..., 0])  # (B, 2H, 2W)
        self.h.assign(h)
        self.c.assign(c)
        return ops.stack(images, axis=1) * inputs["gain"][:, :, None, None]
