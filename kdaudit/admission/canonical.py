"""The canonical copy: the only bytes that are ever run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

MODERN_IR = 4
"""From this IR version on an initializer need not be listed among the inputs."""


def canonical(model: "ModelProto", extra_outputs: Sequence["ValueInfoProto"] = ()) -> "ModelProto":
    """Copy a model so that what is audited is exactly what runs.

    External data must be loaded already. Initializers leave the list of inputs, so nobody can feed other
    weights; training graphs and metadata, which onnxruntime could take settings from, are dropped. No node is
    touched.

    Args:
        model: the checked model; left as it is.
        extra_outputs: tensors to add to the graph's outputs.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    constant = {tensor.name for tensor in graph.initializer}
    constant |= {sparse.values.name for sparse in graph.sparse_initializer}
    kept = [value for value in graph.input if value.name not in constant]
    if len(kept) < len(graph.input):
        images = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
        del graph.input[:]
        graph.input.extend(images)
    copy.ir_version = max(copy.ir_version, MODERN_IR)
    del copy.training_info[:]
    del copy.metadata_props[:]
    graph.output.extend(extra_outputs)
    return copy


def serialise(model: "ModelProto") -> bytes:
    """The same bytes for the same model."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data
