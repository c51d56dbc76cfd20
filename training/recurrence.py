"""The part of a converted step that carries the state on, as a file of its own.

Of a window only the last frame's image is looked at; of a stream that is behind, the newest one's.
For all other frames the head, which is most of a step's work, is computed for nothing. What the
state needs is cut out of the step's file, operator by operator: the same numbers to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable

from ai_edge_litert import schema_py_generated as schema

from training.narrowing import packed


def recurrence(model: bytes, outputs: Iterable[str]) -> bytes:
    """Cut out of a step what makes some of its outputs.

    Parameters
    ----------
    model : bytes
        A TFLite file of one signature; its metadata are left out.
    outputs : iterable of str
        Those to keep, by their names in the signature.

    Returns
    -------
    bytes
        A file of the same signature, less the other outputs and the inputs that only they need.
    """
    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    (graph,), (signature,) = parsed.subgraphs, parsed.signatureDefs
    kept = {name.encode() for name in outputs}
    signature.outputs = [each for each in signature.outputs if each.name in kept]
    needed = {each.tensorIndex for each in signature.outputs}
    operators = []
    for operator in reversed(graph.operators):  # in the order in which they are computed
        if needed.intersection(operator.outputs):
            operators.append(operator)
            needed.update(int(index) for index in operator.inputs if index >= 0)
    graph.operators = operators[::-1]
    signature.inputs = [each for each in signature.inputs if each.tensorIndex in needed]
    graph.inputs = [each.tensorIndex for each in signature.inputs]
    graph.outputs = [each.tensorIndex for each in signature.outputs]
    needed.update(int(index) for each in graph.operators for index in each.outputs)
    _drop_tensors(graph, signature, needed)
    _drop_contents(parsed, graph)
    parsed.metadata = []
    return packed(parsed)


def _drop_tensors(
    graph: schema.SubGraphT, signature: schema.SignatureDefT, needed: set[int]
) -> None:
    """Keep the tensors that are needed, and give them new numbers."""
    number = {old: new for new, old in enumerate(sorted(needed))}
    graph.tensors = [graph.tensors[index] for index in sorted(needed)]
    for operator in graph.operators:
        operator.inputs = [number.get(int(index), -1) for index in operator.inputs]  # -1 is none
        operator.outputs = [number[int(index)] for index in operator.outputs]
    for each in (*signature.inputs, *signature.outputs):
        each.tensorIndex = number[each.tensorIndex]
    graph.inputs = [number[index] for index in graph.inputs]
    graph.outputs = [number[index] for index in graph.outputs]


def _drop_contents(parsed: schema.ModelT, graph: schema.SubGraphT) -> None:
    """Keep the contents of the tensors that are left; buffer 0 is the empty one."""
    contents = [0, *sorted({tensor.buffer for tensor in graph.tensors} - {0})]
    number = {old: new for new, old in enumerate(contents)}
    parsed.buffers = [parsed.buffers[index] for index in contents]
    for tensor in graph.tensors:
        tensor.buffer = number[tensor.buffer]
