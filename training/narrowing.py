"""Narrow the int8 ranges that a calibration by minimum and maximum leaves too wide.

The converter gives every tensor the range of all that it ever saw. Three kinds of tensor do not
need it: what goes into the sigmoid or the tanh of a gate, which are flat beyond `GATE_RANGE`, the
products of fluctuations, and the image. They are large on a rare bright spot, and cost all other
pixels their resolution. The scales are rewritten in the file: int8 saturates by itself at the new
range, so that no operator is added.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

GATE_RANGE = 6.0  # sigmoid(6) is 1 - 0.0025, less than an int8 step of it
PARTIAL_RANGE = 7.0  # of the summands, which may cancel
PRODUCT_RANGE = 8.0
IMAGE_LIMIT = 9.0  # normalized; a single point in an empty field may be brighter, and is drawn flat

Graph = Any  # schema.SubGraphT: the generated classes have no types
Operator = Any


def narrowed(model: bytes) -> bytes:
    """Rewrite the ranges of the products, of what goes into the gates and of the image.

    Parameters
    ----------
    model : bytes
        An int8 step of `training.network`.

    Returns
    -------
    bytes
        The same operators with other scales.
    """
    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    graph = parsed.subgraphs[0]
    kinds = _Kinds(parsed)
    for split in kinds.of(graph, "SPLIT"):
        if not kinds.feeds(graph, split, "LOGISTIC"):
            continue
        total = split.inputs[1]
        for tensor in (total, *split.outputs):
            _set_range(graph, tensor, GATE_RANGE)
        for summand in _summands(graph, kinds, total):
            _set_range(graph, summand, PARTIAL_RANGE)
    for product in kinds.of(graph, "MUL"):
        if kinds.feeds(graph, product, "CONV_2D"):
            _set_range(graph, product.outputs[0], PRODUCT_RANGE)
    _limit_image(graph, kinds)
    _renew_bias_scales(parsed, graph, kinds)
    builder = flatbuffers.Builder(len(model) + 65536)
    builder.Finish(parsed.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def operator_names(parsed: Any) -> list[str]:
    """Name each of a parsed model's operator codes; an operator's `opcodeIndex` points into it."""
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    return [
        names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in parsed.operatorCodes
    ]


class _Kinds:
    """Names the operators of a parsed model."""

    def __init__(self, parsed: Any) -> None:
        self._names = operator_names(parsed)

    def name(self, operator: Operator) -> str:
        return self._names[operator.opcodeIndex]

    def of(self, graph: Graph, name: str) -> list[Operator]:
        return [op for op in graph.operators if self.name(op) == name]

    def feeds(self, graph: Graph, operator: Operator, name: str) -> bool:
        outputs = {*operator.outputs}
        return any(outputs & {*consumer.inputs} for consumer in self.of(graph, name))


def _summands(graph: Graph, kinds: _Kinds, tensor: int) -> Iterator[int]:
    """Everything that is added up to a tensor, sums on the way included."""
    for add in kinds.of(graph, "ADD"):
        if add.outputs[0] == tensor:
            for part in add.inputs:
                yield part
                yield from _summands(graph, kinds, part)


def _set_range(graph: Graph, tensor: int, limit: float) -> None:
    """Make a tensor's range -limit .. limit, unless it is narrower."""
    quantization = graph.tensors[tensor].quantization
    if quantization.scale[0] * 127.5 > limit:
        quantization.scale = np.array([limit / 127.5], np.float32)
        quantization.zeroPoint = np.array([0], np.int64)


def _limit_image(graph: Graph, kinds: _Kinds) -> None:
    """Cut the range of the image, of its phases and of the two that are added up to them."""
    for arranged in kinds.of(graph, "DEPTH_TO_SPACE"):
        (phases,) = arranged.inputs
        for tensor in (*arranged.outputs, phases, *_summands(graph, kinds, phases)):
            _set_limit(graph, tensor, IMAGE_LIMIT)


def _set_limit(graph: Graph, tensor: int, limit: float) -> None:
    """Let a tensor's range end at the limit, unless it ends before; it begins where it did."""
    quantization = graph.tensors[tensor].quantization
    scale, zero = float(quantization.scale[0]), int(quantization.zeroPoint[0])
    low, high = (-128 - zero) * scale, (127 - zero) * scale
    if high > limit:
        scale = (limit - low) / 255
        quantization.scale = np.array([scale], np.float32)
        quantization.zeroPoint = np.array([round(-128 - low / scale)], np.int64)


def _renew_bias_scales(parsed: Any, graph: Graph, kinds: _Kinds) -> None:
    """Keep every bias's scale the product of input's and kernel's, as int8 convolutions demand."""
    for conv in kinds.of(graph, "CONV_2D"):
        data, kernel, bias = (graph.tensors[i] for i in conv.inputs)
        wanted = (data.quantization.scale[0] * kernel.quantization.scale).astype(np.float32)
        ratio = bias.quantization.scale / wanted
        if np.allclose(ratio, 1, rtol=1e-6):
            continue
        buffer = parsed.buffers[bias.buffer]
        values = np.frombuffer(bytes(buffer.data), np.int32) * ratio
        buffer.data = np.rint(values).astype(np.int32).view(np.uint8)
        bias.quantization.scale = wanted
