"""Sizes of tensors: what a shape and an element type say, and what is really there."""

from math import prod
from typing import TYPE_CHECKING

from kdaudit.admission.limits import MAX_DIMENSIONS, MAX_ELEMENTS, MAX_MODEL_BYTES
from kdaudit.admission.refusal import refuse

if TYPE_CHECKING:
    from onnx import SparseTensorProto, TensorProto

_BITS: dict[str, int] = {
    "FLOAT": 32, "UINT8": 8, "INT8": 8, "UINT16": 16, "INT16": 16, "INT32": 32, "INT64": 64, "BOOL": 8,
    "FLOAT16": 16, "DOUBLE": 64, "UINT32": 32, "UINT64": 64, "COMPLEX64": 64, "COMPLEX128": 128,
    "BFLOAT16": 16, "FLOAT8E4M3FN": 8, "FLOAT8E4M3FNUZ": 8, "FLOAT8E5M2": 8, "FLOAT8E5M2FNUZ": 8,
    "FLOAT8E8M0": 8, "UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2,
}  # fmt: skip
_TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def elements(tensor: "TensorProto") -> int:
    """Number of elements by the tensor's shape; a scalar has one.

    Raises:
        ModelRefused: KDA007, a negative or absurd dimension.
    """
    few = len(tensor.dims) <= MAX_DIMENSIONS
    count: int = prod(tensor.dims) if few else 0
    if not few or any(size < 0 for size in tensor.dims) or count > MAX_ELEMENTS:
        refuse("KDA007", f"tensor {tensor.name or '(unnamed)'} has an impossible shape {list(tensor.dims)[:8]}")
    return count


def bits(tensor: "TensorProto") -> int:
    """Bits of one element of a numeric tensor.

    Raises:
        ModelRefused: KDA007, an element type without a size (strings, unknown numbers).
    """
    from onnx import TensorProto

    known = TensorProto.DataType.values()
    name = TensorProto.DataType.Name(tensor.data_type) if tensor.data_type in known else str(tensor.data_type)
    if name not in _BITS:
        refuse("KDA007", f"tensor {tensor.name or '(unnamed)'} has element type {name}, which has no size")
    return _BITS[name]


def expected_bytes(tensor: "TensorProto") -> int:
    """Bytes that a tensor's shape and element type ask for.

    Raises:
        ModelRefused: KDA007, an impossible shape or element type.
    """
    return (elements(tensor) * bits(tensor) + 7) // 8


def check_tensor(tensor: "TensorProto") -> int:
    """Compare a tensor's data with its shape; returns its number of elements.

    Raises:
        ModelRefused: KDA007, the data are missing, doubled, or of the wrong length.
    """
    from onnx import TensorProto

    name = tensor.name or "(unnamed)"
    count = elements(tensor)
    if tensor.HasField("segment"):
        refuse("KDA007", f"tensor {name} is cut into segments, which no reader supports")
    held = [field for field in _TYPED if len(getattr(tensor, field))]
    if len(held) + tensor.HasField("raw_data") > 1:
        refuse("KDA007", f"tensor {name} holds its data twice")
    if tensor.data_type == TensorProto.STRING:
        if len(tensor.string_data) != count:
            refuse("KDA007", f"tensor {name} holds {len(tensor.string_data)} strings, its shape needs {count:,}")
        return count
    if tensor.HasField("raw_data"):
        size, expected = len(tensor.raw_data), expected_bytes(tensor)
        if size != expected:
            refuse("KDA007", f"tensor {name} holds {size:,} bytes, its shape needs {expected:,}")
        return count
    width = bits(tensor)
    # Narrow values are packed into bytes, one entry each; complex values take two floats.
    per_entry = 8 // width if width < 8 else 1
    entries = -(-count // per_entry) * (2 if "COMPLEX" in TensorProto.DataType.Name(tensor.data_type) else 1)
    size = len(getattr(tensor, held[0])) if held else 0
    if size != entries:
        refuse("KDA007", f"tensor {name} holds {size:,} values, its shape needs {entries:,}")
    return count


def check_sparse(sparse: "SparseTensorProto") -> None:
    """Check that a sparse tensor is small when it is written out, which onnxruntime does on loading.

    Raises:
        ModelRefused: KDA007, an impossible shape; KDA017, too large; both looked at before anything is allocated.
    """
    name = sparse.values.name or "(unnamed)"
    if len(sparse.dims) > MAX_DIMENSIONS or any(size < 0 for size in sparse.dims):
        refuse("KDA007", f"sparse tensor {name} has an impossible shape {list(sparse.dims)[:8]}")
    size = prod(sparse.dims) * bits(sparse.values) // 8
    if size > MAX_MODEL_BYTES:
        refuse(
            "KDA017", f"sparse tensor {name} stands for {size:,} bytes, more than {MAX_MODEL_BYTES:,}; do not use it"
        )
