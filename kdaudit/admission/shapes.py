"""Shapes and element types of graph values, in plain words."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ValueInfoProto

Shape = tuple[int | None, ...]

ELEMENT_TYPES: dict[int, str] = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string",
    9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip
"""`TensorProto.DataType` numbers that a classifier's input or output may have, by the name people use."""


def shape_of(value: "ValueInfoProto") -> Shape:
    """Declared shape of a tensor; None for a free dimension; empty when no shape is declared."""
    if value.type.WhichOneof("value") != "tensor_type":
        return ()
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.WhichOneof("value") == "dim_value" else None for dim in dims)


def describe(shape: Shape) -> str:
    """A shape as people write it: [N,3,32,32], with ? for a free dimension."""
    return "[" + ",".join("?" if size is None else str(size) for size in shape) + "]"
