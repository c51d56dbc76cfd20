"""Ranges are narrowed where that is known to help, and nothing else is touched."""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from training.narrowing import BEYOND_RANGE, PRODUCT_RANGE, narrowed, operator_names
from training.network import (
    ACTIVATION_RANGE,
    CELL_RANGE,
    CLOSE_LIMITS,
    CONTEXT_LIMITS,
    FIRST_LIMITS,
    GATE_RANGE,
    HIDDEN_RANGE,
    LAST_LIMITS,
    LOWEST,
    PART_RANGE,
    SCALE_RANGE,
    USUAL,
    NetworkSettings,
    build_step,
)
from training.quantize import SIZE_PX, convert, operators, trajectory

BLIND = np.zeros((1, 1), np.float32)
SETTINGS = NetworkSettings(head_filters=4, head_layers=0)


@pytest.fixture(scope="module")
def step():
    keras.utils.set_random_seed(1)  # by chance all of the head is dark, and its int8 steps are none
    step = build_step(SETTINGS)
    kernel = step.gates_frame.kernel
    wide = np.random.default_rng(1).normal(0, 1, kernel.shape)
    wide[..., 0] = 0  # of the input gate: as slow a cell as in training, whose updates are small
    kernel.assign(wide)  # wide gates, as a rare bright spot makes
    return step


@pytest.fixture(scope="module")
def frames():
    frames = np.random.default_rng(2).gamma(0.5, 0.6, (12, SIZE_PX, SIZE_PX)).astype(np.float32)
    frames[:, 5, 5] = 4.0
    return frames


@pytest.fixture(scope="module")
def wide(step, frames):
    means = np.broadcast_to(frames.mean(0), frames.shape)
    return convert(step, trajectory(step, frames, means))


def width_and_low(low, high):
    """The width is exact; the ends may be half a step beside, as 0 is one of the steps."""
    return round(float(high - low), 3), round(float(low), 1) + 0.0


def ranges(model):
    """Index of every int8 tensor to the width of its range, and where it begins."""
    graph = schema.ModelT.InitFromPackedBuf(model, 0).subgraphs[0]
    return {
        index: width_and_low(*limits(tensor))
        for index, tensor in enumerate(graph.tensors)
        if tensor.type == schema.TensorType.INT8 and len(tensor.quantization.scale) == 1
    }


def candidates_and_gates(model, frames):
    """Cell state after the frames, through the interpreter, (H/2, W/2, filters)."""
    runner = Interpreter(model_content=model).get_signature_runner("step")
    state = np.zeros((1, *SETTINGS.state_shape(SIZE_PX, SIZE_PX)), np.float32)
    h = c = state
    mean = frames.mean(0)[None, :, :, None]
    for frame in frames:
        out = runner(frame=frame[None, :, :, None], mean=mean, psf_sigma_px=BLIND, h=h, c=c)
        h, c = out["h_out"], out["c_out"]
    return c[0]


def test_ranges_are_those_of_the_gates_and_of_the_training(wide):
    """Mutations: the summands of the gates left as they were; state or head left with the ranges of
    their calibration, which a brighter sample leaves."""
    before, after = ranges(wide), ranges(narrowed(wide, SETTINGS))
    changed = {after[index] for index in before if after[index] != before[index]}
    state = (CELL_RANGE, HIDDEN_RANGE)
    head = (PART_RANGE, *FIRST_LIMITS, SCALE_RANGE)
    products = (-PRODUCT_RANGE, PRODUCT_RANGE)
    expected = (GATE_RANGE, products, *state, *head)
    assert changed == {width_and_low(*each) for each in expected}
    assert operators(narrowed(wide, SETTINGS)) == operators(wide)


def test_the_cell_comes_nearer_to_the_float_network(step, wide, frames):
    """Mutation: a range below what the sigmoid needs, or a scale without its zero point.

    Measured: the error of the cell falls to 0.72 of what it was; the rest is the frame's own step,
    which these wide weights enlarge. On the trained network the gates' share is far larger.
    """
    by_float = candidates_and_gates(convert(step), frames)
    wide_error, error = (
        float(np.sqrt(np.mean((candidates_and_gates(model, frames) - by_float) ** 2)))
        for model in (wide, narrowed(wide, SETTINGS))
    )
    assert 0.5 < error / wide_error < 0.95


def played(model, mean):
    state = np.zeros((1, *SETTINGS.state_shape(SIZE_PX, SIZE_PX)), np.float32)
    runner = Interpreter(model_content=model).get_signature_runner("step")
    return runner(frame=mean, mean=mean, psf_sigma_px=BLIND, h=state, c=state)["image"][0, :, :, 0]


def limits(tensor):
    """Lowest and highest value that an int8 tensor holds."""
    (scale,), (zero,) = tensor.quantization.scale, tensor.quantization.zeroPoint
    return (-128 - zero) * scale, (127 - zero) * scale


def test_the_head_has_fixed_ranges_layer_by_layer(frames):
    """Mutations: what a layer is scaled by, or what is scaled and made, left with what calibration
    saw of it, which here is far less; one kind of product alone, of that which the activation
    follows and that which is added to another; the limits of another part of the head; one that
    ends where a summand does; either part of the correction with what calibration saw of it.

    The ends may be half a step, 0.012, beside: 0 is one of the steps.
    """
    settings = SETTINGS.model_copy(update={"head_layers": 3, "context_px": (2, 4)})
    step = build_step(settings)
    rng = np.random.default_rng(4)
    for modulation in (*step.modulations, *step.context_modulations):
        modulation.kernel.assign(rng.uniform(-0.1, 0.1, modulation.kernel.shape))
    for layer in step.context:
        layer.kernel.assign(rng.normal(0, 0.1, layer.kernel.shape))
    step.correction.kernel.assign(rng.normal(0, 0.1, step.correction.kernel.shape))
    means = np.broadcast_to(frames.mean(0), frames.shape)
    wide = convert(step, trajectory(step, frames[:2], means[:2], 1.4))
    parsed = schema.ModelT.InitFromPackedBuf(narrowed(wide, settings), 0)
    graph, names = parsed.subgraphs[0], operator_names(parsed)
    scaled = [
        op
        for op in graph.operators
        if names[op.opcodeIndex] == "MUL" and b"modulation" in graph.tensors[op.outputs[0]].name
    ]
    products = [[limits(graph.tensors[i]) for i in (*op.inputs, *op.outputs)] for op in scaled]
    layers = [CLOSE_LIMITS, CLOSE_LIMITS, CONTEXT_LIMITS, CONTEXT_LIMITS, LAST_LIMITS]
    added = [[each.summand, SCALE_RANGE, each.summand] for each in layers]
    expected = [[FIRST_LIMITS.summand, SCALE_RANGE, FIRST_LIMITS.activation], *added]
    assert np.shape(products) == np.shape(expected)
    np.testing.assert_allclose(products, expected, atol=0.012)
    outputs = {int(op.outputs[0]) for op in scaled}
    sums = [op for op in graph.operators if names[op.opcodeIndex] == "ADD"]
    after = [limits(graph.tensors[op.outputs[0]]) for op in sums if outputs & {*op.inputs}]
    np.testing.assert_allclose(after, [each.activation for each in layers], atol=0.012)
    correction = [
        limits(graph.tensors[op.outputs[0]])
        for op in graph.operators
        if names[op.opcodeIndex] == "CONV_2D" and op.builtinOptions.fusedActivationFunction
    ]
    np.testing.assert_allclose(correction, [ACTIVATION_RANGE, BEYOND_RANGE], atol=1e-5)


def test_an_untrained_network_gives_the_mean_as_the_float_one_does(step, wide):
    """The int8 part is only what is added: nothing, here, to half a step of its first part.

    Mutations: an image that is rounded to int8's steps, and one that ends where int8 does.
    """
    rng = np.random.default_rng(3)
    mean = rng.gamma(2.0, 0.5, (1, SIZE_PX, SIZE_PX, 1)).astype(np.float32)
    mean[0, 60, 60] = 20.0  # beyond any calibration
    images = [played(model, mean) for model in (convert(step), narrowed(wide, SETTINGS))]
    offset = images[1] - images[0]
    assert np.abs(offset).max() < (USUAL - LOWEST) / 255
    assert np.ptp(offset) < 1e-5  # all pixels have the same: no steps


def test_the_correction_reaches_as_far_as_its_range(step, frames):
    """Mutations: one part only; the second part with the scale of its calibration; a factor that is
    not undone. Of a correction of 8 its int8 steps may miss 0.1."""
    mean = np.full((1, SIZE_PX, SIZE_PX, 1), 0.5, np.float32)
    kept = [np.array(variable) for variable in (step.correction.kernel, step.correction.bias)]
    try:
        # Nothing by itself, but a kernel whose scale can hold its bias.
        step.correction.kernel.assign(np.full_like(kept[0], 1e-3))
        for bias in (-0.4, 0.3, 8.0):
            step.correction.bias.assign(np.full_like(kept[1], bias))
            means = np.broadcast_to(frames.mean(0), frames.shape)
            model = narrowed(convert(step, trajectory(step, frames[:2], means[:2])), SETTINGS)
            by_float, by_int8 = played(convert(step), mean), played(model, mean)
            assert by_float[30:-30, 30:-30].mean() == pytest.approx(0.5 + bias, abs=0.2)
            np.testing.assert_allclose(by_int8, by_float, atol=0.1 if bias > USUAL else 0.015)
    finally:
        for variable, value in zip(
            (step.correction.kernel, step.correction.bias), kept, strict=True
        ):
            variable.assign(value)
