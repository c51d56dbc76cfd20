"""From a run's weights to the float32 and the int8 step.

Post-training quantization to int8 throughout: the converter sees real trajectories (simulated
stacks of every kind, state and all) and chooses every tensor's scale from them, where
`training.narrowing` does not know better. The weights are rounded by what they are laid over, see
`training.rounding`. The boundary stays float32, so that no host needs to know a scale. To it
belongs the last step: the mean, interpolated, and the network's correction are added up in float,
because an int8 image has too few steps for what is smooth.

Whatever of a frame lies outside the range of the calibration saturates. That is intended: frames
are clipped to `FRAME_RANGE` here, so that a rare spike does not cost all others resolution.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from device.errors import FaultError, UserError
from training import settings as settings_file
from training.example import make_example
from training.forward_model import WINDOW
from training.inspection import delegated_nodes
from training.narrowing import narrowed, operator_names
from training.network import FRAME_RANGE, MEAN_RANGE, FoldedConv2D, Step, build_step
from training.revision import git_revision
from training.rounding import round_weights
from training.settings import TrainingSettings

log = logging.getLogger(__name__)

SIGNATURE = "step"
SIZE_PX = 128  # of the file; the device resizes it to its field
# First word of the seed after the run's: specimens of neither training nor validation.
CALIBRATION = 2
CALIBRATION_FRAMES = (0, 1, 2, 4, 8, 14, 21, 29, 44, 59)  # of each trajectory
# Of the calibration's inputs, to round the weights by: prime to the 18 that a stream and a window
# have together, so that every place in them is met.
ROUNDING_EVERY = 5

DELEGATED = {
    "ADD": 5,
    "SUB": 5,
    "MUL": 7,
    "CONV_2D": 7,
    "DEPTHWISE_CONV_2D": 7,
    "TRANSPOSE_CONV": 4,
    "FULLY_CONNECTED": 10,
    "LOGISTIC": 3,
    "TANH": 3,
    "LEAKY_RELU": 2,
    "CONCATENATION": 4,
    "SPLIT": 4,
    "DEPTH_TO_SPACE": 2,
    "SPACE_TO_DEPTH": 2,
    "RESIZE_BILINEAR": 4,
    "PAD": 4,
    "RESHAPE": 1,
    "MEAN": 3,
    "MAX_POOL_2D": 3,
    "SLICE": 6,
    "QUANTIZE": 3,
    "DEQUANTIZE": 5,
}
"""What XNNPACK takes in int8, as its own sources for LiteRT 2 list it: anything else would run in
the slow reference kernels and cut the graph in pieces. With each the highest version of it that
TensorFlow Lite of 2023 registers (`register.cc`), as tflite-runtime 2.14 is: it would not load a
file with a later one."""

MOST_BYTES = 1_000_000  # of an int8 step; ours has 0.6 million

LAST_STEP = Counter({"CONV_2D": 1, "DEPTH_TO_SPACE": 1, "MUL": 2, "ADD": 3})
"""What of the int8 step computes in float: the mean's interpolation and the sum of its parts."""

Tensors = dict[str, np.ndarray]


def trajectory(
    step: Step, frames: np.ndarray, means: np.ndarray, psf_sigma_px: float = 0.0
) -> Iterator[Tensors]:
    """Inputs of the step at each frame of a stack, state carried, NHWC with batch 1.

    Parameters
    ----------
    step : Step
        The float network.
    frames, means : ndarray
        (T, H, W), normalized.
    psf_sigma_px : float
        As it is told; 0 where it is not.
    """
    psf = np.full((1, 1), psf_sigma_px, np.float32)
    h = np.zeros((1, *step.state_shape(*frames.shape[1:])), np.float32)
    state = {"h": h, "c": h}
    for frame, mean in zip(frames, means, strict=True):
        images = {"frame": frame[None, :, :, None], "mean": mean[None, :, :, None]}
        inputs = images | {"psf_sigma_px": psf} | state
        yield inputs
        h, c = step.recur(*(inputs[name] for name in ("frame", "mean", "h", "c")))
        state = {"h": keras.ops.convert_to_numpy(h), "c": keras.ops.convert_to_numpy(c)}


def representative_set(step: Step, settings: TrainingSettings, stacks: int) -> Iterator[Tensors]:
    """Inputs from trajectories over simulated stacks, alternately streams and windows.

    At last with every width of the PSF that the network knows, so that all are in its range.
    """
    inputs: Tensors = {}
    for k in range(stacks):
        stream = k % 2 == 0
        length = 2 * WINDOW if stream else WINDOW
        seed = (settings.seed, CALIBRATION, k)
        normalization = settings.dataset.normalization
        example = make_example(
            *(settings.forward_model, length, SIZE_PX, stream, seed, normalization),
            psf_told_fraction=settings.dataset.psf_told_fraction,
        )
        frames = np.clip(example.frames, *FRAME_RANGE)
        means = np.clip(example.means, *MEAN_RANGE)
        steps = trajectory(step, frames, means, example.psf_sigma_px)
        for index, inputs in enumerate(steps):
            if index in CALIBRATION_FRAMES:
                yield inputs
    for width in step.settings.psf_knots_px:
        yield inputs | {"psf_sigma_px": np.full((1, 1), width, np.float32)}


def convert(step: Step, representative: Iterator[Tensors] | None = None) -> bytes:
    """Convert the step to TFLite: float32, or int8 with a representative set.

    Needs Keras on its TensorFlow backend.
    """
    import tensorflow as tf

    size = {"frame": (1, SIZE_PX, SIZE_PX, 1), "mean": (1, SIZE_PX, SIZE_PX, 1)}
    state = (1, *step.state_shape(SIZE_PX, SIZE_PX))
    specs = {
        name: tf.TensorSpec(shape, tf.float32, name=name)
        for name, shape in (size | {"psf_sigma_px": (1, 1), "h": state, "c": state}).items()
    }
    with tempfile.TemporaryDirectory() as folder, _constant_kernels(step):
        archive = keras.export.ExportArchive()
        archive.track(step)
        call = partial(step.call, limited=representative is None)
        archive.add_endpoint(SIGNATURE, call, input_signature=[specs])
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])
        if representative is None:
            return bytes(converter.convert())
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ((SIGNATURE, x) for x in representative)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        return _quantized(converter)


@contextmanager
def _constant_kernels(step: Step) -> Iterator[None]:
    """Have the large kernels put together before the step is traced.

    The converter does not compute in advance what becomes many times larger.
    """

    def constant(layer: FoldedConv2D) -> Callable[[int, int], np.ndarray]:
        starts = [0, *accumulate(layer.channels)]
        kernels = {
            key: keras.ops.convert_to_numpy(layer.folded_kernel(*key))
            for key in zip(starts, layer.channels, strict=False)
        }
        return lambda start, channels: kernels[start, channels]

    kernels = [(layer, constant(layer)) for layer in step.convolutions]
    for layer, kernel in kernels:
        layer.folded_kernel = kernel  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for layer, _ in kernels:
            del layer.folded_kernel


def convert_rounded(step: Step, representative: Iterator[Tensors]) -> bytes:
    """Round the step's weights on int8's grid, and convert it to int8; see `convert`."""
    shown = list(representative)
    round_weights(step, shown[::ROUNDING_EVERY])
    return convert(step, iter(shown))


def _quantized(converter: Any) -> bytes:
    """Calibrate, and quantize all but `last_step`: what TensorFlow's quantization debugger does."""
    from tensorflow.lite.python.convert import mlir_quantize

    converter._experimental_calibrate_only = True
    calibrated = converter.convert()
    return bytes(mlir_quantize(calibrated, denylisted_nodes=last_step(calibrated)))


def last_step(model: bytes) -> list[str]:
    """Name what makes the image at last.

    That is the sums and factors back to the correction's phases, which are enlarged, and the
    interpolation of the input `mean`. A node is named by its output.
    """
    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    graph, (signature,) = parsed.subgraphs[0], parsed.signatureDefs
    names = operator_names(parsed)
    maker = {int(output): op for op in graph.operators for output in op.outputs}
    (mean,) = (each.tensorIndex for each in signature.inputs if each.name == b"mean")
    found, left = [], [each.tensorIndex for each in signature.outputs if each.name == b"image"]
    while left:
        tensor = int(left.pop())
        if tensor not in maker:
            continue
        op = maker[tensor]
        kind, source = names[op.opcodeIndex], maker.get(int(op.inputs[0]))
        of_mean = mean in op.inputs or (source is not None and mean in source.inputs)
        if kind in ("ADD", "MUL") or (kind in ("CONV_2D", "DEPTH_TO_SPACE") and of_mean):
            found.append(graph.tensors[tensor].name.decode())
            left += list(op.inputs)
    return found


def operators(model: bytes) -> Counter[str]:
    """Count the operators of a TFLite file by name."""
    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    names = operator_names(parsed)
    return Counter(names[op.opcodeIndex] for op in parsed.subgraphs[0].operators)


def versions(model: bytes) -> dict[str, int]:
    """Say which version of each operator a TFLite file needs."""
    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    codes = zip(operator_names(parsed), parsed.operatorCodes, strict=True)
    return {name: max(1, code.version) for name, code in codes}


def float_operators(model: bytes) -> Counter[str]:
    """Count the operators of a TFLite file that compute in float, by name."""
    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    graph, names = parsed.subgraphs[0], operator_names(parsed)
    floats = {k for k, t in enumerate(graph.tensors) if t.type == schema.TensorType.FLOAT32}
    return Counter(
        names[op.opcodeIndex]
        for op in graph.operators
        if floats.intersection(op.inputs) and floats.intersection(op.outputs)
    )


def fed_back(model: bytes) -> list[str]:
    """Name the float tensors, made inside, from which the int8 part computes on."""
    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    graph, names = parsed.subgraphs[0], operator_names(parsed)
    quantized = {int(op.inputs[0]) for op in graph.operators if names[op.opcodeIndex] == "QUANTIZE"}
    return [
        graph.tensors[index].name.decode()
        for index in sorted(quantized - {int(i) for i in graph.inputs})
        if graph.tensors[index].type == schema.TensorType.FLOAT32
    ]


def check_int8(model: bytes) -> None:
    """Refuse a file that would not run in int8 from end to end.

    Raises
    ------
    FaultError
        It holds an operator that XNNPACK does not take, or one later than tflite-runtime 2.14, or
        computes in float elsewhere than where the image is added up.
    UserError
        It is larger than `MOST_BYTES`.
    """
    if len(model) > MOST_BYTES:
        raise UserError(
            f"The int8 step has {len(model)} bytes; {MOST_BYTES} are the most: take fewer filters."
        )
    foreign = set(operators(model)) - set(DELEGATED)
    if foreign:
        raise FaultError(f"The int8 step holds {sorted(foreign)}, which XNNPACK does not take.")
    late = [name for name, version in versions(model).items() if version > DELEGATED[name]]
    if late:
        raise FaultError(f"The int8 step holds {late}, later than tflite-runtime 2.14 knows.")
    floats = float_operators(model) - LAST_STEP
    if floats or fed_back(model):
        raise FaultError(f"The int8 step computes in float inside: {[*floats, *fed_back(model)]}.")


def load_step(run: Path, weights: str = "best") -> tuple[Step, TrainingSettings]:
    """Load a run's network, ``best`` or ``final``.

    Raises
    ------
    UserError
        The folder is not that of a run of ours, or holds no such weights yet.
    """
    try:
        settings = settings_file.of_run(run)
        if settings.architecture != "step":
            raise UserError(
                f"{run} is a run of the architecture {settings.architecture}: name one of ours."
            )
        step = build_step(settings.network, SIZE_PX, SIZE_PX)
        step.load_weights(run / f"{weights}.weights.h5")
    except (OSError, ValueError) as error:
        raise UserError(f"{run} holds no {weights} weights: train first, or name a run.") from error
    return step, settings


def conversion(run: Path) -> dict[str, Any]:
    """Say how the run's TFLite files were made: of which weights, on how many stacks, by what."""
    return dict(json.loads((run / "quantized.json").read_text()))


def load_converted(run: Path) -> Step:
    """Load the network that the run's TFLite files were made of."""
    about = conversion(run)
    return _scaled(run, about["weights"], about["head_gain"])[0]


def _scaled(run: Path, weights: str, head_gain: float) -> tuple[Step, TrainingSettings]:
    step, settings = load_step(run, weights)
    step.scale_head(head_gain)
    return step, settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m training quantize``."""
    parser.add_argument("--run", type=Path, default=Path("runs/base"), help="folder of the run")
    parser.add_argument("--weights", choices=["best", "final"], default="best")
    parser.add_argument("--stacks", type=int, default=32, help="stacks to calibrate on")
    parser.add_argument(
        "--head-gain", type=float, default=1.0, metavar="G",
        help="multiply the head's activations: below 1 bright points reach further before they "
        "saturate, above 1 dim ones have finer steps (default: 1)",
    )  # fmt: skip


def main(arguments: argparse.Namespace) -> int:
    """Run ``python -m training quantize``: write both files into the run's folder."""
    if arguments.stacks < 1:
        raise UserError(f"--stacks is {arguments.stacks}; at least 1 is needed to calibrate on.")
    step, settings = _scaled(arguments.run, arguments.weights, arguments.head_gain)
    float32 = convert(step)
    model = convert_rounded(step, representative_set(step, settings, arguments.stacks))
    check_int8(model)
    model = narrowed(model, settings.network)
    (arguments.run / "float32.tflite").write_bytes(float32)
    (arguments.run / "int8.tflite").write_bytes(model)
    about = {
        "weights": arguments.weights,
        "calibration_stacks": arguments.stacks,
        "head_gain": arguments.head_gain,
        "conversion_git_revision": git_revision(),
    }
    (arguments.run / "quantized.json").write_text(json.dumps(about))
    log.info("int8 step: %d bytes, %s", len(model), dict(operators(model)))
    log.info("XNNPACK takes %d of its %d nodes", *delegated_nodes(model))
    return 0
