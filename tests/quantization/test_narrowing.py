"""The ranges of the gates are narrowed, and nothing else is touched."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from training import narrowing
from training.narrowing import GATE_RANGE, PARTIAL_RANGE, narrowed
from training.network import NetworkSettings, build_step
from training.quantize import SIZE_PX, convert, operators, trajectory

BLIND = np.zeros((1, 1), np.float32)
SETTINGS = NetworkSettings(head_filters=4, head_layers=0)


@pytest.fixture(scope="module")
def step():
    step = build_step(SETTINGS)
    kernel = step.gates_frame.kernel
    wide = np.random.default_rng(1).normal(0, 1, kernel.shape)
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


def ranges(model):
    graph = schema.ModelT.InitFromPackedBuf(model, 0).subgraphs[0]
    return {
        index: float(tensor.quantization.scale[0]) * 127.5
        for index, tensor in enumerate(graph.tensors)
        if tensor.quantization is not None and tensor.quantization.scale is not None
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


def test_only_what_feeds_the_gates_is_narrowed(wide):
    """Mutations: the image's or the cell's range narrowed too; the summands left as they were."""
    before, after = ranges(wide), ranges(narrowed(wide))
    changed = {after[index] for index in before if after[index] != pytest.approx(before[index])}
    assert {round(limit, 3) for limit in changed} == {GATE_RANGE, PARTIAL_RANGE}
    assert operators(narrowed(wide)) == operators(wide)


def test_the_cell_comes_nearer_to_the_float_network(step, wide, frames):
    """Mutation: a range below what the sigmoid needs, or a scale without its zero point.

    Measured: the error of the cell falls to 0.72 of what it was; the rest is the frame's own step,
    which these wide weights enlarge. On the trained network the gates' share is far larger.
    """
    by_float = candidates_and_gates(convert(step), frames)
    wide_error, error = (
        float(np.sqrt(np.mean((candidates_and_gates(model, frames) - by_float) ** 2)))
        for model in (wide, narrowed(wide))
    )
    assert 0.5 < error / wide_error < 0.95


def test_the_images_range_ends_at_the_limit(wide, monkeypatch):
    """And begins where it did: zero stays exactly zero.

    Mutations: a limit for one of two tensors that share a scale, which the interpreter refuses; a
    zero point that was left as it was.
    """
    monkeypatch.setattr(narrowing, "IMAGE_LIMIT", 0.5)
    model = narrowed(wide)
    mean = np.full((1, SIZE_PX, SIZE_PX, 1), 0.3, np.float32)
    mean[:, :64] = 2.0  # this untrained network's image is the mean, enlarged
    mean[:, 96:] = 0.0
    state = np.zeros((1, *SETTINGS.state_shape(SIZE_PX, SIZE_PX)), np.float32)
    runner = Interpreter(model_content=model).get_signature_runner("step")
    image = runner(frame=mean, mean=mean, psf_sigma_px=BLIND, h=state, c=state)["image"][0, :, :, 0]
    assert image[:120].max() == pytest.approx(0.5, abs=0.004)
    assert image[140:180, 10:-10].mean() == pytest.approx(0.3, abs=0.01)
    assert image[204:].max() == 0
