"""A graph made ready for the rules on its data flow: functions expanded, nodes in order, shapes inferred."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kdaudit.admission.flow import reads
from kdaudit.admission.limits import MAX_NODES
from kdaudit.admission.refusal import refuse
from kdaudit.admission.shapes import shape_of

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

SMALL = 1024
"""Constants up to this many bytes are kept for shape inference; larger ones say nothing about shapes."""


def expand_functions(model: "ModelProto") -> "ModelProto":
    """The model without functions of its own; itself where it has none.

    Raises:
        ModelRefused: KDA007, functions that call each other in a circle; KDA017, too many nodes when expanded.
    """
    if not model.functions:
        return model
    from onnx import inliner

    functions = {(function.domain, function.name): function for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    total = sum(_size(node, functions, sizes, ()) for node in model.graph.node)
    if total > MAX_NODES:
        refuse("KDA017", f"the model's functions expand to more than {MAX_NODES:,} nodes; export it without functions")
    return inliner.inline_local_functions(model)


def _size(
    node: "NodeProto",
    functions: Mapping[tuple[str, str], "FunctionProto"],
    sizes: dict[tuple[str, str], int],
    above: tuple[tuple[str, str], ...],
) -> int:
    """Nodes that a node becomes; each function is counted once, so that doubling functions cost nothing here."""
    count = 1
    for attribute in node.attribute:
        for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
            count += sum(_size(part, functions, sizes, above) for part in inner.node)
    key = (node.domain, node.op_type)
    if key not in functions:
        return count
    if key in above or len(above) > 32:
        refuse("KDA007", f"the model's function {node.op_type} calls itself; export the model again")
    if key not in sizes:
        sizes[key] = sum(_size(part, functions, sizes, (*above, key)) for part in functions[key].node)
    return count + sizes[key]


def in_order(graph: "GraphProto") -> "GraphProto":
    """The graph with its nodes in an order of computation; itself where they are.

    Raises:
        ModelRefused: KDA007, nodes that wait for each other.
    """
    made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
    made |= {sparse.values.name for sparse in graph.sparse_initializer}
    everything = {name for node in graph.node for name in node.output} - made
    waiting: dict[str, list[int]] = {}
    missing = []
    for i, node in enumerate(graph.node):
        wanted = {name for name in reads(node) if name in everything}
        missing.append(len(wanted))
        for name in wanted:
            waiting.setdefault(name, []).append(i)
    ready = [i for i, count in enumerate(missing) if not count]
    order: list[int] = []
    for i in ready:  # grows while it is read
        order.append(i)
        for name in graph.node[i].output:
            for reader in waiting.pop(name, ()):
                missing[reader] -= 1
                if not missing[reader]:
                    ready.append(reader)
    if len(order) < len(graph.node):
        refuse("KDA007", "the graph has nodes that wait for each other; export the model again")
    import onnx

    ordered = onnx.GraphProto()
    ordered.CopyFrom(graph)
    del ordered.node[:]
    ordered.node.extend(graph.node[i] for i in order)
    return ordered


def outline(model: "ModelProto") -> "ModelProto":
    """The model without the content of its large weights, which say nothing about the flow of data."""
    import onnx

    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph, target = model.graph, light.graph
    target.name = graph.name
    target.node.extend(graph.node)
    target.input.extend(graph.input)
    target.output.extend(graph.output)
    target.value_info.extend(graph.value_info)
    target.sparse_initializer.extend(graph.sparse_initializer)
    for tensor in graph.initializer:
        if len(tensor.raw_data) <= SMALL:
            target.initializer.append(tensor)
        else:
            target.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return light


def shapes_of(model: "ModelProto", graph: "GraphProto") -> dict[str, tuple[int | None, ...]]:
    """Shapes by value, as far as inference finds them; of constants, too."""
    import onnx

    skeleton = onnx.ModelProto()
    skeleton.ir_version = model.ir_version
    skeleton.opset_import.extend(model.opset_import)
    skeleton.graph.CopyFrom(graph)
    known: dict[str, tuple[int | None, ...]] = {}
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        inferred = graph
    for value in (*graph.input, *graph.output, *graph.value_info, *inferred.value_info, *inferred.output):
        if value.type.WhichOneof("value") == "tensor_type" and value.type.tensor_type.HasField("shape"):
            known[value.name] = shape_of(value)
    known |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            known.update((node.output[0], tuple(a.t.dims)) for a in node.attribute if a.name == "value")
    return known


def scalars(graph: "GraphProto") -> dict[str, float]:
    """The constants of one element."""
    from onnx import numpy_helper

    tensors: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
    found: dict[str, float] = {}
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                tensors[node.output[0]] = attribute.t
            elif attribute.name in {"value_float", "value_int"}:
                found[node.output[0]] = float(attribute.f if attribute.name == "value_float" else attribute.i)
    for name, tensor in tensors.items():
        if all(size == 1 for size in tensor.dims) and tensor.data_type in {1, 6, 7, 10, 11}:  # numbers
            found[name] = float(numpy_helper.to_array(tensor).ravel()[0])
    return found
