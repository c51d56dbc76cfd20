"""What happens inside a quantized step: every tensor's noise, and values at the ends of int8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from device.model import Step
from device.reconstructor import reconstruct_window
from training.narrowing import operator_names

INT8_MIN, INT8_MAX = -128, 127

Tensors = dict[str, np.ndarray]


class WatchedStep(Step):
    """A step that can be looked at while it works; it computes what the given one does."""

    def __init__(self, step: Step) -> None:
        self.__dict__.update(step.__dict__)


class RecordingStep(WatchedStep):
    """Keeps the inputs of every call."""

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self.calls: list[Tensors] = []

    def run(self, inputs: dict[str, np.ndarray], image: bool = True) -> dict[str, np.ndarray]:
        """Make one step and keep what went into it."""
        self.calls.append(inputs)
        return super().run(inputs, image)


@dataclass
class Saturation:
    """How many values of a tensor were at the ends of its int8 range."""

    low: int = 0
    high: int = 0
    values: int = 0

    def add(self, other: Saturation) -> None:
        """Take in what was counted elsewhere."""
        self.low += other.low
        self.high += other.high
        self.values += other.values

    def shares(self) -> dict[str, float]:
        """Parts of all values that were -128 and 127."""
        return {"low": self.low / max(self.values, 1), "high": self.high / max(self.values, 1)}


@dataclass(frozen=True)
class Ends:
    """The values that -128 and 127 stand for, and the step between neighbours."""

    low: float
    high: float
    step: float

    def count(self, values: np.ndarray) -> Saturation:
        """Count the values, any shape, dequantized, that lie at the ends."""
        low = int(np.count_nonzero(values < self.low + self.step / 2))
        high = int(np.count_nonzero(values > self.high - self.step / 2))
        return Saturation(low, high, values.size)


class CountingStep(WatchedStep):
    """Counts how much of the state it gives back has saturated; needs the int8 file.

    Every call is counted: those for the stream, for its younger state, for windows beside it, and
    those that see what repeats.
    """

    def __init__(self, step: Step, ends: Mapping[str, Ends]) -> None:
        super().__init__(step)
        self.counts = {name: Saturation() for name in ends}
        self._ends = ends

    def run(self, inputs: dict[str, np.ndarray], image: bool = True) -> dict[str, np.ndarray]:
        """Make one step and count."""
        outputs = super().run(inputs, image)
        for name, ends in self._ends.items():
            self.counts[name].add(ends.count(outputs[name]))
        return outputs


def ends_of_outputs(content: bytes, signature: str) -> dict[str, Ends]:
    """Read what the outputs of an int8 file are dequantized from.

    Parameters
    ----------
    content : bytes
        The file.
    signature : str
        Whose output names are used.

    Returns
    -------
    dict of str to Ends
        Output name to the ends of its int8 range; outputs that are not dequantized are left out.
    """
    parsed = schema.ModelT.InitFromPackedBuf(content, 0)
    graph, names = parsed.subgraphs[0], operator_names(parsed)
    source = {
        op.outputs[0]: graph.tensors[op.inputs[0]].quantization
        for op in graph.operators
        if names[op.opcodeIndex] == "DEQUANTIZE"
    }
    (definition,) = [s for s in parsed.signatureDefs if s.signatureKey.decode() == signature]
    return {
        output.name.decode(): _ends(source[output.tensorIndex])
        for output in definition.outputs
        if output.tensorIndex in source
    }


def _ends(quantization: Any) -> Ends:
    scale, zero = float(quantization.scale[0]), int(quantization.zeroPoint[0])
    return Ends((INT8_MIN - zero) * scale, (INT8_MAX - zero) * scale, scale)


# ------------------------------------------------------------------------------ noise per tensor


@dataclass
class _Power:
    signal: float = 0.0
    noise: float = 0.0

    def add(self, signal: np.ndarray, value: np.ndarray) -> None:
        self.signal += float(np.sum(np.square(signal, dtype=np.float64)))
        self.noise += float(np.sum((value.astype(np.float64) - signal) ** 2))

    def db(self) -> float:
        return float(10 * np.log10(self.signal / self.noise)) if self.noise else float("inf")


class _Opened:
    """A file run without delegate, so that every activation can be read after a step."""

    def __init__(self, path: Path, step: Step) -> None:
        interpreter = Interpreter(
            model_path=str(path),
            num_threads=1,
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        self._interpreter = interpreter
        self._step = Step(step.manifest, interpreter, step.name, step.sha256)
        self._names = activations(path.read_bytes(), step.manifest.signature)

    def after(self, inputs: Tensors) -> Tensors:
        """Make one step; every activation by name, dequantized, outputs by the signature's."""
        self._step.resize(inputs["frame"].shape[1], inputs["frame"].shape[2])
        outputs = self._step.run(inputs)
        details = {each["index"]: each for each in self._interpreter.get_tensor_details()}
        found = {name: self._value(details[index]) for index, name in self._names.items()}
        return found | outputs

    def _value(self, details: Mapping[str, Any]) -> np.ndarray:
        values = self._interpreter.get_tensor(details["index"])
        if details["dtype"] != np.int8:
            return np.asarray(values)
        scale, zero = details["quantization"]
        return np.asarray(scale * (values.astype(np.float32) - zero))


def delegated_nodes(content: bytes) -> tuple[int, int]:
    """Count the nodes of a file that XNNPACK takes when it is loaded, and all of them.

    A node is left to the other kernels where its output is needed and no delegate makes it.

    Parameters
    ----------
    content : bytes
        The file; at its own size.
    """
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    nodes = interpreter._get_ops_details()
    own = [each for each in nodes if each["op_name"] != "DELEGATE"]
    delegates = [each for each in nodes if each["op_name"] == "DELEGATE"]
    maker = {int(output): each for each in (*own, *delegates) for output in each["outputs"]}
    needed, reached = [int(each["index"]) for each in interpreter.get_output_details()], set()
    while needed:
        tensor = needed.pop()
        if tensor in maker and tensor not in reached:
            reached.add(tensor)
            needed += [int(index) for index in maker[tensor]["inputs"]]
    run = {maker[tensor]["index"] for tensor in reached}
    return sum(each["index"] not in run for each in own), len(own)


def activations(content: bytes, signature: str) -> dict[int, str]:
    """Name what a file computes between its inputs and its outputs.

    Parameters
    ----------
    content : bytes
        The file.
    signature : str
        Whose input names are used.

    Returns
    -------
    dict of int to str
        Tensor number to the converter's name; the quantized inputs have the signature's names.
    """
    parsed = schema.ModelT.InitFromPackedBuf(content, 0)
    graph, operators = parsed.subgraphs[0], operator_names(parsed)
    (definition,) = [s for s in parsed.signatureDefs if s.signatureKey.decode() == signature]
    inputs = {each.tensorIndex: each.name.decode() for each in definition.inputs}
    boundary = {*graph.inputs, *graph.outputs}
    found = {}
    for op in graph.operators:
        quantizes = operators[op.opcodeIndex] == "QUANTIZE" and op.inputs[0] in inputs
        for index in op.outputs:
            if index not in boundary:
                name = graph.tensors[index].name.decode()
                found[int(index)] = inputs[op.inputs[0]] if quantizes else name
    return found


def signal_to_noise_db(
    files: Mapping[str, Path], steps: Mapping[str, Step], stacks: Sequence[np.ndarray]
) -> tuple[dict[str, float], list[str]]:
    """Compare every tensor of two files of one network on the same inputs of single steps.

    The inputs are those of windows run by the float32 form, state included, so that a tensor's
    figure is the noise of everything before it *within one step*, not of the steps before. Tensors
    are matched by the name that the converter gave both.

    Parameters
    ----------
    files : mapping of str to Path
        The files of the forms ``float32`` and ``int8``.
    steps : mapping of str to Step
        The same, made ready.
    stacks : sequence of ndarray
        Frames, each (T, H, W); a third, two thirds and all of the way through each is looked at.

    Returns
    -------
    dict of str to float
        Name to 10 log10(signal power / noise power), in the order of the graph.
    list of str
        Names of activations of the int8 file that have no twin in the float32 file.
    """
    calls = [call for frames in stacks for call in _some(steps["float32"], frames)]
    opened = {form: _Opened(path, steps[form]) for form, path in files.items()}
    powers: dict[str, _Power] = {}
    unmatched: dict[str, None] = {}
    for inputs in calls:
        twins = opened["float32"].after(inputs) | inputs
        for name, value in opened["int8"].after(inputs).items():
            if name in twins and twins[name].shape == value.shape:
                powers.setdefault(name, _Power()).add(twins[name], value)
            else:
                unmatched[name] = None
    return {name: power.db() for name, power in powers.items()}, list(unmatched)


def _some(step: Step, frames: np.ndarray) -> list[Tensors]:
    """Inputs of a window's steps a third, two thirds and all of the way through it."""
    recording = RecordingStep(step)
    reconstruct_window(recording, frames)  # as they are first, then transposed and in halves
    last = len(frames) - 1
    return [recording.calls[k] for k in (last // 3, 2 * last // 3, last)]
