"""Weights on int8's grid: the converter finds it again, and the layer's output suffers least."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from training import quantize
from training.network import FIRST_LIMITS, FOLD, FoldedConv2D, NetworkSettings, Step, build_step
from training.rounding import STEPS, Inputs, round_weights, rounded

from .test_network import randomized

TINY = NetworkSettings(head_filters=4, head_layers=1)
SIZE = 32


def nearest(kernel: np.ndarray, channels: list[int]) -> np.ndarray:
    """Every weight to the nearest step of its output channel and input."""
    parts = []
    for part in np.split(kernel, np.cumsum(channels)[:-1], axis=2):
        grid = np.abs(part).max(axis=(0, 1, 2), keepdims=True) / STEPS
        parts.append(np.rint(part / grid) * grid)
    return np.concatenate(parts, axis=2)


def smooth(rng: np.random.Generator, channels: int) -> np.ndarray:
    """An image whose neighbours are much alike, as all that is seen through a PSF is."""
    noise = rng.normal(size=(SIZE + 8, SIZE + 8, channels)) @ rng.normal(size=(channels, channels))
    windows = np.lib.stride_tricks.sliding_window_view(noise, (9, 9), (0, 1))
    return windows.mean(axis=(-2, -1)).astype(np.float32)  # (SIZE, SIZE, C)


def folded(image: np.ndarray) -> object:
    return keras.ops.space_to_depth(image[None], FOLD)


@pytest.fixture
def layer() -> FoldedConv2D:
    """Of two inputs of different channels."""
    made = FoldedConv2D(8, kernel_initializer=keras.initializers.RandomNormal(seed=1))
    half = SIZE // FOLD
    made.build([(None, half, half, FOLD**2 * 4), (None, half, half, FOLD**2)])
    return made


def test_what_is_rounded_together_errs_less(layer: FoldedConv2D) -> None:
    """Mutations: nothing made good; made good with the wrong sign, or with another weight's inputs:
    on images that were not seen, less than two thirds of the error are left."""
    rng = np.random.default_rng(2)
    inputs = Inputs(layer)
    for _ in range(4):
        inputs.add([folded(smooth(rng, 4)), folded(smooth(rng, 1))])
    kernel = np.asarray(layer.kernel)
    candidates = {
        "together": rounded(kernel, inputs.squares, layer.channels),
        "alone": nearest(kernel, layer.channels),
    }
    other = [folded(smooth(rng, 4)), folded(smooth(rng, 1))]
    exact, errors = np.asarray(layer(other)), {}
    for name, candidate in candidates.items():
        layer.kernel.assign(candidate)
        errors[name] = float(np.std(np.asarray(layer(other)) - exact))
    assert 0 < errors["together"] < errors["alone"] * 2 / 3


def test_inputs_are_seen_in_all_four_mirror_images() -> None:
    """The kernels of a set are one another's mirror images: so must be what they are laid over.

    Mutations: as it is alone; mirrored along one axis alone.
    """
    layer = FoldedConv2D(4)
    layer.build((None, SIZE // FOLD, SIZE // FOLD, FOLD**2))
    inputs = Inputs(layer)
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    inputs.add(folded((y + 2 * x)[..., None]))
    moments = np.diag(inputs.squares).reshape(5, 5)
    assert moments[:, 0] == pytest.approx(moments[:, 4], rel=0.05)  # 8,000 places: 1 % each
    assert moments[0] == pytest.approx(moments[4], rel=0.05)


@pytest.mark.parametrize(("size_px", "apart_px"), [(3, 4), (1, 1)])
def test_inputs_are_seen_where_the_taps_lie(size_px: int, apart_px: int) -> None:
    """On stripes that repeat every eight pixels, whose neighbours four away are their opposites.

    Mutations: taps side by side; a reach of the wrong size.
    """
    layer = FoldedConv2D(4, size_px=size_px, apart_px=apart_px)
    layer.build((None, SIZE // FOLD, SIZE // FOLD, FOLD**2))
    inputs = Inputs(layer)
    x = np.arange(SIZE)[None, :, None] + np.zeros((SIZE, 1, 1))
    inputs.add(folded(np.cos(2 * np.pi * x / 8).astype(np.float32)))
    moments = inputs.squares / inputs.squares.max()
    assert moments.shape == (size_px**2, size_px**2)
    if size_px == 3:
        assert moments[4, 5] < -0.5 < 0.5 < moments[4, 4]


def test_every_weight_is_on_the_grid_of_its_channel_and_input(layer: FoldedConv2D) -> None:
    """Mutations: one grid for both inputs; a weight beyond the largest; the largest moved."""
    rng = np.random.default_rng(3)
    inputs = Inputs(layer)
    inputs.add([folded(smooth(rng, 4)), folded(smooth(rng, 1))])
    kernel = np.asarray(layer.kernel).copy()
    kernel[:, :, 4:] *= 30
    found = rounded(kernel, inputs.squares, layer.channels)
    np.testing.assert_allclose(found, nearest(found, layer.channels), atol=1e-6)
    for cut in (slice(0, 4), slice(4, 5)):
        largest = [np.abs(each[:, :, cut]).max(axis=(0, 1, 2)) for each in (kernel, found)]
        np.testing.assert_allclose(*largest, rtol=1e-6)


def test_without_inputs_it_is_the_nearest(layer: FoldedConv2D) -> None:
    """Mutation: a layer that nothing was seen of is divided by zero."""
    kernel = np.asarray(layer.kernel)
    blank = rounded(kernel, np.zeros((125, 125)), layer.channels)
    np.testing.assert_allclose(blank, nearest(kernel, layer.channels), atol=1e-7)


def test_the_whole_step_is_rounded_and_nothing_else_of_it() -> None:
    """Mutations: a layer left out; the fixed interpolation or a bias rounded; a layer that goes on
    watching."""
    step = randomized(build_step(TINY, SIZE, SIZE), 5)
    before = {v.path: np.asarray(v) for v in step.weights}
    rng = np.random.default_rng(6)
    frame, mean = (smooth(rng, 1)[None] for _ in range(2))
    round_weights(step, list(quantize.trajectory(step, frame[..., 0], mean[..., 0])))
    for variable in step.weights:
        same = np.array_equal(np.asarray(variable), before[variable.path])
        kernel = variable.path.endswith("kernel") and "modulation" not in variable.path
        assert same == (not kernel or "upsampling" in variable.path), variable.path
    assert not any("call" in vars(layer) for layer in step.layers)


def weights_of_int8(content: bytes) -> dict[str, np.ndarray]:
    """Kernels of the int8 convolutions of a file as numbers, by the names of what they make."""
    schema = quantize.schema
    parsed = schema.ModelT.InitFromPackedBuf(content, 0)
    graph, names = parsed.subgraphs[0], quantize.operator_names(parsed)
    found = {}
    for op in graph.operators:
        tensor = graph.tensors[op.inputs[1]] if len(op.inputs) > 1 else None
        if names[op.opcodeIndex] == "CONV_2D" and tensor.type == schema.TensorType.INT8:
            steps = np.frombuffer(bytes(parsed.buffers[tensor.buffer].data), np.int8)
            scales = np.array(tensor.quantization.scale).reshape(-1, 1, 1, 1)
            found[graph.tensors[op.outputs[0]].name.decode()] = scales * steps.reshape(tensor.shape)
    return found


def test_the_converter_finds_the_grid_again() -> None:
    """Mutation: any other grid than the converter's, on which it would round a second time."""
    step: Step = randomized(build_step(TINY, quantize.SIZE_PX, quantize.SIZE_PX), 7)
    rng = np.random.default_rng(8)
    images = np.stack([np.pad(smooth(rng, 1)[..., 0], 48, "wrap") for _ in range(6)])
    shown = list(quantize.trajectory(step, images[:3], images[3:]))
    round_weights(step, shown)
    found = weights_of_int8(quantize.convert(step, iter(shown)))
    (name,) = (name for name in found if "head_0" in name)
    kernel = np.asarray(step.head[0].folded_kernel(0, 4)).transpose(3, 0, 1, 2)
    np.testing.assert_allclose(found[name], kernel, atol=1e-6)


def test_the_weights_are_rounded_by_what_int8_lays_under_them(monkeypatch) -> None:
    """Mutation: sums beyond the limits of the head, which end there in int8."""
    step = randomized(build_step(TINY.model_copy(update={"head_layers": 0}), SIZE, SIZE), 3)
    step.head_mean.kernel.assign(100 * step.head_mean.kernel)
    seen, add = [], Inputs.add

    def noted(inputs, x):
        seen.append(max(np.max(each) for each in (x if isinstance(x, list) else [x])))
        add(inputs, x)

    monkeypatch.setattr(Inputs, "add", noted)
    state = np.zeros((1, *TINY.state_shape(SIZE, SIZE)), np.float32)
    image = np.random.default_rng(4).random((1, SIZE, SIZE, 1), np.float32)
    psf = np.zeros((1, 1), np.float32)
    sample = {"frame": image, "mean": image, "psf_sigma_px": psf, "h": state, "c": state}
    round_weights(step, [sample])
    assert max(seen) == pytest.approx(FIRST_LIMITS.summand[1])
