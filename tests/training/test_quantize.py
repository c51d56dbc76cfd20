"""From weights to int8: what the converter is shown, and the gate behind it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from device.errors import FaultError, UserError
from training import quantize
from training import settings as settings_file
from training.__main__ import main
from training.inspection import delegated_nodes
from training.narrowing import operator_names
from training.network import NetworkSettings, Step, build_step


def int8_of(function: Callable[[tf.Tensor], tf.Tensor]) -> bytes:
    """Convert a function of an image to int8 as far as the converter can."""
    spec = tf.TensorSpec((1, 8, 8, 4), tf.float32, name="x")
    concrete = tf.function(function, input_signature=[spec]).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    rng = np.random.default_rng(1)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: (
        [rng.normal(0, 1, (1, 8, 8, 4)).astype(np.float32)] for _ in range(4)
    )
    return bytes(converter.convert())


def convolved(x: tf.Tensor) -> tf.Tensor:
    kernel = np.random.default_rng(2).normal(0, 0.2, (3, 3, 4, 4)).astype(np.float32)
    return tf.nn.conv2d(x, kernel, 1, "SAME")


def test_the_gate_lets_a_clean_file_pass() -> None:
    """Catches a gate that refuses everything, by which the next two tests would pass too."""
    quantize.check_int8(int8_of(lambda x: tf.tanh(convolved(x))))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: tf.maximum(convolved(x), 0.1 * x), "MAXIMUM"),
        (lambda x: tf.nn.softmax(convolved(x)), "SOFTMAX"),
        (lambda x: tf.image.resize(convolved(x), (16, 16), "nearest"), "RESIZE_NEAREST_NEIGHBOR"),
    ],
)
def test_an_operator_that_is_not_delegated_is_refused(
    function: Callable[[tf.Tensor], tf.Tensor], name: str
) -> None:
    """Catches a graph that would be cut in pieces: each of these converts without a word."""
    with pytest.raises(FaultError, match=name):
        quantize.check_int8(int8_of(function))


def test_a_node_that_is_left_to_other_kernels_is_counted() -> None:
    """Mutations: all nodes counted as taken; those behind the one that is left not counted."""
    whole = int8_of(lambda x: convolved(tf.nn.relu(convolved(x))))
    taken, nodes = delegated_nodes(whole)
    assert taken == nodes > 2
    broken = int8_of(lambda x: convolved(tf.cumsum(convolved(x), axis=1)))
    taken, nodes = delegated_nodes(broken)
    assert taken == nodes - 1
    assert nodes == sum(quantize.operators(broken).values())


def test_a_late_operator_and_a_large_file_are_refused(
    tiny_files: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutations: versions that are not looked at; a bound on the wrong side."""
    model = tiny_files[1]
    quantize.check_int8(model)
    needed = quantize.versions(model)["CONV_2D"]
    monkeypatch.setitem(quantize.DELEGATED, "CONV_2D", needed)
    quantize.check_int8(model)
    monkeypatch.setitem(quantize.DELEGATED, "CONV_2D", needed - 1)
    with pytest.raises(FaultError, match=r"\['CONV_2D'\], later than tflite-runtime 2.14"):
        quantize.check_int8(model)
    monkeypatch.setattr(quantize, "MOST_BYTES", len(model) - 1)
    with pytest.raises(UserError, match=f"{len(model) - 1} are the most: take fewer filters"):
        quantize.check_int8(model)


def test_a_float_inside_is_refused(tiny_files: tuple[bytes, bytes]) -> None:
    """Catches a file that is float, whole (whose inputs are limited by operators) or in one tensor
    between QUANTIZE and DEQUANTIZE."""
    float32, int8 = tiny_files
    with pytest.raises(FaultError, match="XNNPACK does not take"):
        quantize.check_int8(float32)
    parsed = schema.ModelT.InitFromPackedBuf(int8, 0)
    graph = parsed.subgraphs[0]
    names = operator_names(parsed)
    tanh = next(op for op in graph.operators if names[op.opcodeIndex] == "TANH")
    for tensor in (tanh.inputs[0], tanh.outputs[0]):
        graph.tensors[tensor].type = schema.TensorType.FLOAT32
    builder = flatbuffers.Builder(len(int8))
    builder.Finish(parsed.Pack(builder), b"TFL3")
    with pytest.raises(FaultError, match=r"in float inside: \['TANH'\]"):
        quantize.check_int8(bytes(builder.Output()))


def test_an_image_from_which_int8_computes_on_is_refused(tiny_files: tuple[bytes, bytes]) -> None:
    """Catches a last step that is not the last: the float image quantized again inside."""
    _, int8 = tiny_files
    assert quantize.float_operators(int8) == quantize.LAST_STEP
    assert quantize.fed_back(int8) == []
    parsed = schema.ModelT.InitFromPackedBuf(int8, 0)
    graph, names = parsed.subgraphs[0], operator_names(parsed)
    by_name = {names[op.opcodeIndex]: op for op in graph.operators}
    by_name["QUANTIZE"].inputs = by_name["ADD"].outputs  # the last ADD makes the image
    builder = flatbuffers.Builder(len(int8))
    builder.Finish(parsed.Pack(builder), b"TFL3")
    with pytest.raises(FaultError, match="in float inside"):
        quantize.check_int8(bytes(builder.Output()))


@pytest.fixture(scope="module")
def tiny_files(quantized_run: Path) -> tuple[bytes, bytes]:
    """The float32 and the int8 file of the tiny run."""
    files = [(quantized_run / f"{form}.tflite").read_bytes() for form in ("float32", "int8")]
    return files[0], files[1]


def test_the_whole_step_is_int8_but_for_its_boundary(tiny_files: tuple[bytes, bytes]) -> None:
    """Catches int16 or float left inside, and a boundary that asks hosts for scales."""
    _, int8 = tiny_files
    quantize.check_int8(int8)
    graph = schema.ModelT.InitFromPackedBuf(int8, 0).subgraphs[0]
    float32 = schema.TensorType.FLOAT32
    assert {graph.tensors[i].type for i in [*graph.inputs, *graph.outputs]} == {float32}
    counts = quantize.operators(int8)
    assert counts["QUANTIZE"] >= 5
    assert counts["DEQUANTIZE"] == 4  # state and both parts of the correction
    # factors, 4 of the gates (fluctuation, mean, products, state), 2 of the head and its 1 layer,
    # 2 of the correction, and in float the mean's interpolation
    assert counts["CONV_2D"] == 11
    # how near the PSF's width is to the knots in two, and the scale of the head's sum and layer
    assert counts["FULLY_CONNECTED"] == 2 + 2


def test_c_and_c_out_have_one_scale(tiny_files: tuple[bytes, bytes]) -> None:
    """The cell stays within its range, so that carrying it on costs no rounding but its own.

    Catches a cell that grows between input and output: 10 % covers what calibration on few frames
    sees of one and not of the other.
    """
    parsed = schema.ModelT.InitFromPackedBuf(tiny_files[1], 0)
    graph, signature = parsed.subgraphs[0], parsed.signatureDefs[0]
    indices = {
        entry.name.decode(): entry.tensorIndex for entry in [*signature.inputs, *signature.outputs]
    }
    into = next(op.outputs[0] for op in graph.operators if op.inputs[0] == indices["c"])
    out = next(op.inputs[0] for op in graph.operators if op.outputs[0] == indices["c_out"])
    scales = [float(graph.tensors[i].quantization.scale[0]) for i in (into, out)]
    assert scales[0] == pytest.approx(scales[1], rel=0.1)
    assert max(scales) <= 2.02 / 255


@pytest.fixture(scope="module")
def step() -> Step:
    """An untrained step of one set of mirrored channels."""
    return build_step(NetworkSettings(head_filters=4, head_layers=0), 16, 16)


def test_a_trajectory_carries_the_state(step: Step) -> None:
    """Catches calibration that sees zero states only: c would saturate at run time."""
    frames = np.random.default_rng(3).random((4, 16, 16), np.float32)
    seen = list(quantize.trajectory(step, frames, frames * 0, 1.4))
    assert not seen[0]["h"].any()
    for k, inputs in enumerate(seen):
        assert {name: array.shape for name, array in inputs.items()} == {
            "frame": (1, 16, 16, 1),
            "mean": (1, 16, 16, 1),
            "psf_sigma_px": (1, 1),
            "h": (1, 8, 8, 16),
            "c": (1, 8, 8, 16),
        }
        np.testing.assert_array_equal(inputs["frame"][0, :, :, 0], frames[k])
        assert inputs["psf_sigma_px"] == np.float32(1.4)
        if k:
            outputs = step(seen[k - 1])
            np.testing.assert_allclose(inputs["h"], outputs["h_out"], atol=1e-6)
            np.testing.assert_allclose(inputs["c"], outputs["c_out"], atol=1e-6)
    assert np.abs(seen[3]["c"]).max() > 1e-4


def test_calibration_sees_windows_and_streams_clipped(step: Step) -> None:
    """Catches calibration in one mode only, on frames 0 only, or with spikes that cost resolution;
    and one that knows only those widths of the PSF which two stacks happen to have.

    Of a stream of 60 frames and a window of 30 ten and eight frames are taken.
    """
    settings = settings_file.load("base")
    seen = list(quantize.representative_set(step, settings, 2))
    seen, widths = seen[: 10 + 8], [float(x["psf_sigma_px"].item()) for x in seen[10 + 8 :]]
    assert widths == pytest.approx(step.settings.psf_knots_px)
    first_of_window = seen[10]
    assert not first_of_window["c"].any()
    assert all(inputs["c"].any() for inputs in seen[11:])
    for inputs in seen:
        for name, limits in (("frame", quantize.FRAME_RANGE), ("mean", quantize.MEAN_RANGE)):
            assert inputs[name].min() >= limits[0]
            assert inputs[name].max() <= limits[1]
    # In a window the mean is that of all frames, in a stream it moves.
    np.testing.assert_array_equal(seen[10]["mean"], seen[17]["mean"])
    assert not np.array_equal(seen[0]["mean"], seen[9]["mean"])


def test_an_int8_step_that_does_not_pass_the_gate_is_not_written(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a file that lies there to be released although it was refused."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("*.tflite", "quantized.json"))
    monkeypatch.setattr(quantize, "convert", lambda *_: int8_of(lambda x: tf.nn.softmax(x)))
    assert main(["quantize", "--run", str(run), "--stacks", "1"]) == 1
    assert not [*run.glob("*.tflite"), *run.glob("quantized.json")]


def test_a_head_gain_of_nothing_is_refused(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a head that is switched off."""
    assert main(["quantize", "--run", str(tiny_run), "--head-gain", "0"]) == 2
    assert "--head-gain is 0; a number above 0" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    """Catches a step of random weights that is quantized in all seriousness."""
    with pytest.raises(UserError, match="train first"):
        quantize.load_step(tmp_path)


def test_a_conversion_leaves_the_layers_as_they_were() -> None:
    """Mutation: kernels that stay constant after a conversion, or after one that failed."""
    step = build_step(NetworkSettings(head_filters=4, head_layers=0, estimates=2), 16, 16)
    with pytest.raises(RuntimeError), quantize._constant_kernels(step):
        assert all("folded_kernel" in vars(layer) for layer in step.convolutions)
        raise RuntimeError
    assert not any("folded_kernel" in vars(layer) for layer in step.convolutions)
