"""Where a classifier's last features are: the tensor that its last linear layer reads.

Found in the graph alone. The audit asks for it beside the scores, so it becomes a further output of the copy that
runs; no node is touched.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

PASSING = frozenset(
    {
        *("Softmax", "LogSoftmax", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "Dropout", "Add"),
        *("Sub", "Mul", "Div", "Clip", "Transpose", "DequantizeLinear", "QuantizeLinear", "Relu"),
    }
)
"""Operators between the last linear layer and the scores, as exporters write them."""

LINEAR = frozenset(
    {
        *("Gemm", "MatMul", "Conv", "FusedGemm", "QGemm", "QLinearMatMul", "QLinearConv", "MatMulInteger"),
        "ConvInteger",
    }
)
"""Operators with weights; some networks end in a convolution."""

QUANTISED = frozenset(("DequantizeLinear", "DynamicQuantizeLinear"))
"""What stands before a quantised layer: its input serves as well, and reading it leaves the runtime's fusions alone."""

SKIPPED_AT_MOST = 12
"""Nodes walked over; beyond that the graph is not built as classifiers are."""


def features_of(graph: "GraphProto", scores: str) -> str | None:
    """Name of the tensor that the last linear layer before `scores` reads; None where there is none to be found.

    Args:
        graph: the checked graph.
        scores: name of the tensor that holds the class scores.
    """
    makers = {output: node for node in graph.node for output in node.output if output}
    constant = {tensor.name for tensor in graph.initializer}
    constant |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    name: str | None = scores
    for _ in range(SKIPPED_AT_MOST):
        node = makers.get(name or "")
        if node is None or node.op_type not in PASSING | LINEAR:
            return None
        name = _data(node, constant, makers)
        if node.op_type in LINEAR:
            while name is not None and makers[name].op_type in QUANTISED:
                name = _data(makers[name], constant, makers)
            return name
    return None


def _data(node: "NodeProto", constant: set[str], makers: dict[str, "NodeProto"]) -> str | None:
    """The input of a node that comes from the image through other nodes; the image itself says nothing of the model."""
    return next((name for name in node.input if name in makers and name not in constant), None)
