"""Models that ask for too much, one small builder each, and the refusal that each gets."""

from collections.abc import Callable

import numpy as np
import onnx
from graph_backdoors import grafted, host
from onnx import TensorProto, helper, numpy_helper

Builder = Callable[[], onnx.ModelProto]


def memory_at_once() -> onnx.ModelProto:
    """400 GB in one constant that a node of the graph makes."""
    nodes = [
        helper.make_node("ConstantOfShape", ["huge"], ["zeros"]),
        helper.make_node("ReduceMax", ["zeros"], ["top"], keepdims=0),
        helper.make_node("Add", ["logits", "top"], ["scores"]),
    ]
    return grafted(nodes, {"huge": np.array([100_000, 1_000_000])})


def memory_by_doubling() -> onnx.ModelProto:
    """The image tiled again and again: 3 kB become 400 GB."""
    nodes, name = [], "image"
    for i in range(14):
        nodes.append(helper.make_node("Tile", [name, "twice"], [f"t{i}"]))
        name = f"t{i}"
    nodes.append(helper.make_node("ReduceMax", [name, "all"], ["top"], keepdims=0))
    nodes.append(helper.make_node("Unsqueeze", ["top", "one"], ["top1"]))
    nodes.append(helper.make_node("Add", ["logits", "top1"], ["scores"]))
    return grafted(nodes, {"twice": np.array([1, 1, 2, 2]), "all": np.array([1, 2, 3]), "one": np.array([1])})


def endless_loop() -> onnx.ModelProto:
    """A Loop whose condition is always true."""
    yes = helper.make_node("Constant", [], ["go_on"], value=numpy_helper.from_array(np.array(True)))
    same = helper.make_node("Identity", ["carried"], ["carried_out"])
    inputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("carried", TensorProto.FLOAT, None),
    ]
    outputs = [
        helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("carried_out", TensorProto.FLOAT, None),
    ]
    body = helper.make_graph([yes, same], "body", inputs, outputs)
    nodes = [helper.make_node("Loop", ["most", "start", "logits"], ["scores"], body=body)]
    return grafted(nodes, {"most": np.array(np.iinfo(np.int64).max), "start": np.array(True)})


def sparse_giant() -> onnx.ModelProto:
    """A sparse weight of one value that stands for 400 GB."""
    model = host()
    values = numpy_helper.from_array(np.ones(1, np.float32), "giant")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([7])), [100_000_000_000])
    )
    return model


def nested_branches() -> onnx.ModelProto:
    """Subgraphs inside subgraphs, twenty-five deep."""
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    inner = helper.make_graph([helper.make_node("Identity", ["logits"], ["y"])], "leaf", [], [value])
    for depth in range(25):
        node = helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)
        # The same text twice would double with each level.
        node.attribute[1].g.CopyFrom(helper.make_graph([helper.make_node("Identity", ["logits"], ["y"])],
                                                       "leaf", [], [value]))  # fmt: skip
        inner = helper.make_graph([node], f"level{depth}", [], [value])
    return grafted([helper.make_node("If", ["yes"], ["scores"], then_branch=inner, else_branch=inner)],
                   {"yes": np.array(True)})  # fmt: skip


def many_nodes() -> onnx.ModelProto:
    """A hundred thousand nodes and one."""
    model = host()
    template = helper.make_node("Identity", ["logits"], ["x"])
    for i in range(100_001):
        node = model.graph.node.add()
        node.CopyFrom(template)
        node.output[0] = f"x{i}"
    return model


def many_messages() -> onnx.ModelProto:
    """Two million empty nodes: 4 MB of file, a gigabyte when parsed."""
    model = host()
    raw = model.SerializeToString()
    graph = model.graph.SerializeToString() + b"\x0a\x00" * 2_000_001  # field 1, a node, empty
    model.ClearField("graph")
    return Raw(model.SerializeToString() + b"\x3a" + _varint(len(graph)) + graph, len(raw))  # type: ignore[return-value]


class Raw:
    """Bytes that no one should parse to write them."""

    def __init__(self, data: bytes, _honest: int) -> None:
        self._data = data

    def SerializeToString(self) -> bytes:  # noqa: N802  as protobuf spells it
        return self._data


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def doubling_functions() -> onnx.ModelProto:
    """Thirty functions, each calling the one before twice: a billion nodes when expanded."""
    model = host()
    opset = [helper.make_opsetid("", 18), helper.make_opsetid("vendor", 1)]
    for i in range(30):
        kind, domain = ("Identity", "") if i == 0 else (f"f{i - 1}", "vendor")
        body = [
            helper.make_node(kind, ["a"], ["b"], domain=domain),
            helper.make_node(kind, ["b"], ["c"], domain=domain),
        ]
        model.functions.append(helper.make_function("vendor", f"f{i}", ["a"], ["c"], body, opset))
    return _calling(model, "f29")


def circular_functions() -> onnx.ModelProto:
    """A function that calls itself."""
    model = host()
    opset = [helper.make_opsetid("", 18), helper.make_opsetid("vendor", 1)]
    body = [helper.make_node("f0", ["a"], ["b"], domain="vendor")]
    model.functions.append(helper.make_function("vendor", "f0", ["a"], ["b"], body, opset))
    return _calling(model, "f0")


def _calling(model: onnx.ModelProto, function: str) -> onnx.ModelProto:
    model.opset_import.append(helper.make_opsetid("vendor", 1))
    model.graph.node[-1].CopyFrom(helper.make_node(function, ["logits"], ["scores"], domain="vendor"))
    return model


def long_name() -> onnx.ModelProto:
    """A name of a million characters."""
    model = host()
    model.graph.node[0].name = "x" * 1_000_000
    return model


def many_dimensions() -> onnx.ModelProto:
    """A tensor of a hundred dimensions."""
    model = host()
    model.graph.initializer.add(name="deep", data_type=TensorProto.FLOAT, dims=[1] * 100, raw_data=b"1234")
    return model


def giant_image() -> onnx.ModelProto:
    """An input of a million by a million pixels."""
    model = host()
    for place in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_value = 1_000_000
    return model


def giant_batch() -> onnx.ModelProto:
    """A fixed batch of a trillion images, which the caller would have to fill (found by benchmarks/fuzz.py)."""
    model = host()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1 << 40
    return model


def giant_answer() -> onnx.ModelProto:
    """An output of a billion classes."""
    model = host()
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1_000_000_000
    return model


STATIC: dict[str, tuple[Builder, str]] = {
    "sparse giant": (sparse_giant, "KDA017"),
    "nested branches": (nested_branches, "KDA017"),
    "many nodes": (many_nodes, "KDA017"),
    "many messages": (many_messages, "KDA017"),
    "doubling functions": (doubling_functions, "KDA017"),
    "circular functions": (circular_functions, "KDA007"),
    "long name": (long_name, "KDA017"),
    "many dimensions": (many_dimensions, "KDA007"),
    "giant image": (giant_image, "KDA012"),
    "giant batch": (giant_batch, "KDA012"),
    "giant answer": (giant_answer, "KDA013"),
}
"""What is refused before anything runs, by name: builder and rule."""

RUNNING: dict[str, tuple[Builder, frozenset[str]]] = {
    "memory at once": (memory_at_once, frozenset({"KDA020", "KDA021", "KDA022"})),
    "memory by doubling": (memory_by_doubling, frozenset({"KDA020", "KDA021", "KDA022"})),
    "endless loop": (endless_loop, frozenset({"KDA022"})),
}
"""What the confined process is needed for."""
