"""Set the int8 ranges that a calibration by minimum and maximum leaves too wide, or too narrow.

The converter gives every tensor the range of all that it ever saw. What goes into the sigmoid or
the tanh of a gate, flat beyond `GATE_RANGE`, and the products of fluctuations do not need it: they
are large on a rare bright spot, and cost all other pixels their resolution. State and head were
trained within fixed ranges (`training.network`), and get these. Where two such are added up, all
three have the same steps, and nothing is rounded twice, but where a part of the head goes over into
the next. The scales are rewritten in the file: int8 saturates by itself at the new range, so that
no operator is added.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from training.network import (
    ACTIVATION_RANGE,
    CELL_RANGE,
    GATE_RANGE,
    HIDDEN_RANGE,
    PART_RANGE,
    SCALE_RANGE,
    NetworkSettings,
)

PRODUCT_RANGE = 2.0  # of simulated stacks' products, one in 10,000 is beyond 1.6
BEYOND_RANGE = (0.0, 12.0)  # of the correction's second part: points up to 15 above the mean

_RELU6 = schema.ActivationFunctionType.RELU6

Graph = Any  # schema.SubGraphT: the generated classes have no types
Operator = Any


def narrowed(model: bytes, network: NetworkSettings) -> bytes:
    """Rewrite the ranges of the products, of what goes into the gates, of state and head.

    Parameters
    ----------
    model : bytes
        An int8 step of `training.network`.
    network : NetworkSettings
        Of this step.

    Returns
    -------
    bytes
        The same operators with other scales.
    """
    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    graph = parsed.subgraphs[0]
    kinds = _Kinds(parsed)
    _narrow_gates(graph, kinds)
    _set_state(parsed, graph, kinds)
    for product in kinds.of(graph, "MUL"):
        if kinds.feeds(graph, product, "CONV_2D"):
            _limit(graph, product.outputs[0], PRODUCT_RANGE)
    _set_head(graph, kinds, network)
    _set_beyond(graph, kinds)
    _follow_enlarging(graph, kinds)
    _renew_bias_scales(parsed, graph, kinds)
    return packed(parsed)


def packed(parsed: Any) -> bytes:
    """Write a parsed model, `schema.ModelT`, as a TFLite file."""
    builder = flatbuffers.Builder(65536)  # grows
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
        """List the int8 operators of a name."""
        return [
            op
            for op in graph.operators
            if self.name(op) == name and graph.tensors[op.outputs[0]].type == schema.TensorType.INT8
        ]

    def feeds(self, graph: Graph, operator: Operator, name: str) -> bool:
        outputs = {*operator.outputs}
        return any(outputs & {*consumer.inputs} for consumer in self.of(graph, name))


def _narrow_gates(graph: Graph, kinds: _Kinds) -> None:
    """Limit the sum that is split into the gates, and its summands."""
    for split in kinds.of(graph, "SPLIT"):
        if not kinds.feeds(graph, split, "LOGISTIC"):
            continue
        total = split.inputs[1]
        for tensor in (total, *split.outputs):
            _set_range(graph, tensor, *GATE_RANGE)
        for summand in _summands(graph, kinds, total):
            _limit(graph, summand, GATE_RANGE[1])


def _summands(graph: Graph, kinds: _Kinds, tensor: int) -> Iterator[int]:
    """Everything that is added up to a tensor, sums on the way included."""
    for add in kinds.of(graph, "ADD"):
        if add.outputs[0] == tensor:
            for part in add.inputs:
                yield part
                yield from _summands(graph, kinds, part)


def _set_state(parsed: Any, graph: Graph, kinds: _Kinds) -> None:
    """Give the state its ranges, where it comes in and goes out, and the cell's update the cell's.

    Equal steps on both sides: a state that is carried is not rounded anew.
    """
    (signature,) = parsed.signatureDefs
    given = {each.name.decode(): each.tensorIndex for each in signature.inputs}
    made = {each.name.decode(): each.tensorIndex for each in signature.outputs}
    inside = {int(op.inputs[0]): op.outputs[0] for op in kinds.of(graph, "QUANTIZE")}
    outside = {int(op.outputs[0]): op.inputs[0] for op in graph.operators}
    for name, limits in (("h", HIDDEN_RANGE), ("c", CELL_RANGE)):
        for tensor in (inside[given[name]], outside[made[f"{name}_out"]]):
            _set_range(graph, tensor, *limits)
    (cell,) = (op for op in kinds.of(graph, "ADD") if op.outputs[0] == outside[made["c_out"]])
    for update in kinds.of(graph, "MUL"):
        if update.outputs[0] in cell.inputs:
            _set_range(graph, update.outputs[0], *CELL_RANGE)


def _set_head(graph: Graph, kinds: _Kinds, network: NetworkSettings) -> None:
    """Give what is scaled and added, and then the activations, their ranges, layer by layer."""
    for op in kinds.of(graph, "CONV_2D"):
        if op.builtinOptions.fusedActivationFunction == _RELU6:
            _set_range(graph, op.outputs[0], *ACTIVATION_RANGE)
    # Each builds on the one before, so that the graph has them in their order.
    layers = [(op, end) for op in kinds.of(graph, "MUL") if (end := _activation(graph, kinds, op))]
    for (scaled, end), limits in zip(layers, network.head_limits(), strict=True):
        for part in _summands(graph, kinds, scaled.inputs[0]):  # of the first layer alone
            _set_range(graph, part, *PART_RANGE)
        for tensor in (scaled.inputs[0], scaled.outputs[0]):
            _set_range(graph, tensor, *limits.summand)
        _set_range(graph, scaled.inputs[1], *SCALE_RANGE)
        _set_range(graph, end.outputs[0], *limits.activation)  # the product, in the first layer


def _activation(graph: Graph, kinds: _Kinds, scaled: Operator) -> Operator | None:
    """Find what makes the activation of which a product is, or to which it is added; else None."""
    sums = [op for op in kinds.of(graph, "ADD") if scaled.outputs[0] in op.inputs]
    ends = (op for op in (scaled, *sums) if op.builtinOptions.fusedActivationFunction == _RELU6)
    return next(ends, None)


def _set_beyond(graph: Graph, kinds: _Kinds) -> None:
    """Give the correction's second part its range."""
    for conv in kinds.of(graph, "CONV_2D"):
        ends_at_0 = (
            conv.builtinOptions.fusedActivationFunction == schema.ActivationFunctionType.RELU
        )
        if ends_at_0 and kinds.feeds(graph, conv, "DEPTH_TO_SPACE"):
            _set_range(graph, conv.outputs[0], *BEYOND_RANGE)


def _follow_enlarging(graph: Graph, kinds: _Kinds) -> None:
    """What is enlarged keeps its range."""
    for arranged in kinds.of(graph, "DEPTH_TO_SPACE"):
        given = graph.tensors[arranged.inputs[0]].quantization
        made = graph.tensors[arranged.outputs[0]].quantization
        made.scale, made.zeroPoint = given.scale.copy(), given.zeroPoint.copy()


def _limit(graph: Graph, tensor: int, limit: float) -> None:
    """Make a tensor's range -limit .. limit, unless it is narrower."""
    if graph.tensors[tensor].quantization.scale[0] * 127.5 > limit:
        _set_range(graph, tensor, -limit, limit)


def _set_range(graph: Graph, tensor: int, low: float, high: float) -> None:
    """Make a tensor's range low .. high; 0 stays exact."""
    scale = (high - low) / 255
    quantization = graph.tensors[tensor].quantization
    quantization.scale = np.array([scale], np.float32)
    zero = 0 if low == -high else round(-128 - low / scale)
    quantization.zeroPoint = np.array([zero], np.int64)


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
