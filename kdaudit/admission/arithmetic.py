"""How much arithmetic a network takes for one image, read off its graph: what its answers cost beside a control's.

Multiplications of its convolutions and products, where nearly all of the time goes; all else is not counted.
"""

from math import prod
from typing import TYPE_CHECKING

from kdaudit.admission.expansion import outline, shapes_of
from kdaudit.signature import Signature

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

    from kdaudit.admission.shapes import Shape

WEIGHTS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "ConvTranspose": 1}
"""Which input holds a convolution's weights, [outputs, inputs of a group, kernel...] ([inputs, ...] if transposed)."""

PRODUCTS = frozenset(("MatMul", "MatMulInteger", "QLinearMatMul", "Gemm", "QGemm"))

MOST = 1 << 62
"""What a graph can claim at most."""


def multiplications(model: "ModelProto", signature: Signature, open_side: int) -> int:
    """Multiplications for one image, at least: what the graph does not show of itself is not among them.

    Args:
        model: the checked model.
        signature: its own.
        open_side: height and width where the signature leaves them open, pixels.
    """
    light = outline(model)
    image = next(value for value in light.graph.input if value.name == signature.input_name)
    batch = signature.batch or 1
    for dim in image.type.tensor_type.shape.dim:
        dim.dim_value = dim.dim_value or open_side
    image.type.tensor_type.shape.dim[0].dim_value = batch
    del light.graph.value_info[:]  # an exporter's own, with names in place of numbers
    shapes = shapes_of(light, light.graph)
    counted = [node for node in light.graph.node if node.op_type in WEIGHTS or node.op_type in PRODUCTS]
    return min(MOST, sum(_of(node, shapes) for node in counted) // batch)


def _of(node: "NodeProto", shapes: "dict[str, Shape]") -> int:
    """Multiplications of one convolution or product; 0 where a shape is not known."""
    transposed = node.op_type == "ConvTranspose"
    spread = shapes.get(node.input[0] if transposed else node.output[0])
    if node.op_type in WEIGHTS:
        kernel = shapes.get(node.input[WEIGHTS[node.op_type]])
        each = kernel[1:] if kernel else None
    else:
        first = shapes.get(node.input[0])
        turned = node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute)
        each = (first[0 if turned else -1],) if first else None
    sizes = (*(spread or (None,)), *(each or (None,)))
    known = [size for size in sizes if size is not None]
    return prod(known) if len(known) == len(sizes) else 0
