"""A head on somebody's features, as one graph: a trusted network cut before its last layer, and a control grown on it.

A door to `onnx`. Their nodes are copied as they are, under a prefix; before and behind them stand operators that mean
the same in every opset from 7 on, so that the graph keeps the opset that it came with. Even a resize is one: between
two sizes it is a product with a matrix on either side.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdaudit.errors import UsageError
from kdaudit.fusion.parts import Sheet, arranged
from kdaudit.preprocess import Preprocess
from kdaudit.sample import Geometry
from kdaudit.signature import Signature

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

PIXELS, FEATURES = "kdaudit.pixels", "kdaudit.features"
"""What a trunk takes, x/255 float32 [N, C, H, W], and what it gives, float32 [N, D]; a control holds both inside."""

HEAD = "kdaudit.head."
"""Before the names of the head's weights in a control's file."""

THEIRS = "backbone/"
"""Before all names of the trusted network: teachers call their input "input" too."""

OLDEST = 7
"""From this opset on arithmetic broadcasts as numpy does."""


def cut(model: bytes, signature: Signature, preprocess: Preprocess, geometry: Geometry, *, pooled: bool) -> bytes:
    """The trunk of a trusted network: from x/255 of the teacher's geometry to the network's last features.

    Args:
        model: canonical bytes of the admitted network.
        signature: its input, and where its features are.
        preprocess: how it wants to be fed.
        geometry: the teacher's, which the pixels come in; they are resized as a whole.
        pooled: whether the features are maps [N, C, h, w], of which mean and maximum are taken.

    Returns:
        A graph from `PIXELS` to `FEATURES`.

    Raises:
        UsageError: its opset is too old.
    """
    import onnx
    from onnx import compose

    theirs = onnx.load_model_from_string(model)
    opset = max((entry.version for entry in theirs.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    if opset < OLDEST:
        raise UsageError(f"the backbone's opset {opset} is older than {OLDEST}: export it anew")
    theirs = compose.add_prefix(theirs, THEIRS)
    front, back = Sheet("kdaudit.front/"), Sheet("kdaudit.back/")
    _feed(front, preprocess, geometry, THEIRS + signature.input_name)
    features = f"{THEIRS}{signature.features}"
    found = features
    if pooled:
        pools = [back.put(operator, found) for operator in ("GlobalAveragePool", "GlobalMaxPool")]
        found = back.put("Concat", *pools, axis=1)
    back.put("Cast", back.put("Flatten", found, axis=1), out=FEATURES, to=onnx.TensorProto.FLOAT)
    sides = (geometry.channels, geometry.height, geometry.width)
    trunk = _assembled(
        theirs,
        [*front.nodes, *_needed(theirs.graph, features, THEIRS + signature.input_name), *back.nodes],
        [*front.constants, *back.constants],
        onnx.helper.make_tensor_value_info(PIXELS, onnx.TensorProto.FLOAT, ["batch", *sides]),
        onnx.helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, ["batch", None]),
    )
    return bytes(trunk.SerializeToString(deterministic=True))


def grown(
    trunk: bytes, head: Mapping[str, NDArray[np.float32]], preprocess: Preprocess, signature: Signature
) -> "ModelProto":
    """A control on a trunk, with the teacher's input and scores.

    Args:
        trunk: from `cut`.
        head: weights by name, `kdaudit.student.Head`'s.
        preprocess: what the teacher's users do to their pixels.
        signature: the teacher's.
    """
    import onnx

    theirs = onnx.load_model_from_string(trunk)
    front, back = Sheet("kdaudit.input/"), Sheet("kdaudit.output/")
    _planes(front, preprocess, signature.input_name)
    weights = {name: HEAD + name for name in head}
    hidden = back.put("Div", back.put("Sub", FEATURES, weights["mean"]), weights["std"])
    hidden = back.put("Relu", back.put("Gemm", hidden, weights["hidden.weight"], weights["hidden.bias"], transB=1))
    scores = back.put("Gemm", hidden, weights["scores.weight"], weights["scores.bias"], transB=1)
    if signature.output_kind != "logits":
        scores = back.put("Softmax" if signature.output_kind == "probabilities" else "LogSoftmax", scores, axis=1)
    ones = (1,) * (len(signature.output_shape) - 2)
    if ones:
        scores = back.put("Reshape", scores, np.array([-1, signature.classes, *ones], np.int64))
    back.put("Identity", back.cast(scores, signature.output_type), out=signature.output_name)
    g = preprocess.geometry
    one = preprocess.apply(np.zeros((1, g.height, g.width, g.channels), np.uint8))
    kinds = [onnx.helper.np_dtype_to_tensor_dtype(np.dtype(t)) for t in (one.dtype, signature.output_type)]
    return _assembled(
        theirs,
        [*front.nodes, *theirs.graph.node, *back.nodes],
        [
            *front.constants,
            *back.constants,
            *(onnx.numpy_helper.from_array(values, weights[name]) for name, values in head.items()),
        ],
        onnx.helper.make_tensor_value_info(signature.input_name, kinds[0], ["batch", *one.shape[1:]]),
        onnx.helper.make_tensor_value_info(signature.output_name, kinds[1], ["batch", signature.classes, *ones]),
    )


def parted(control: bytes, geometry: Geometry) -> tuple[bytes, dict[str, NDArray[np.float32]]]:
    """The inverse of `grown`.

    Args:
        control: a file that `grown` gave.
        geometry: the teacher's.

    Returns:
        The trunk, and the head's weights by name; without any where the file holds no such control.
    """
    import onnx

    model = onnx.load_model_from_string(control)
    head = {
        one.name.removeprefix(HEAD): onnx.numpy_helper.to_array(one)
        for one in model.graph.initializer
        if one.name.startswith(HEAD)
    }
    trunk = _assembled(
        model,
        _needed(model.graph, FEATURES, PIXELS),
        [],
        onnx.helper.make_tensor_value_info(
            PIXELS, onnx.TensorProto.FLOAT, ["batch", geometry.channels, geometry.height, geometry.width]
        ),
        onnx.helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, ["batch", None]),
    )
    return bytes(trunk.SerializeToString(deterministic=True)), head


def resampling(old: int, new: int) -> NDArray[np.float32]:
    """Bilinear interpolation of a line of `old` pixels, averaged over all that lie under a new one: [new, old]."""
    scale = old / new
    reach = max(scale, 1.0)
    centre = (np.arange(new) + 0.5) * scale
    weight = np.maximum(0, 1 - np.abs(np.arange(old) + 0.5 - centre[:, None]) / reach)
    weight /= weight.sum(1, keepdims=True)
    return np.asarray(weight, np.float32)


def _feed(sheet: Sheet, preprocess: Preprocess, given: Geometry, name: str) -> None:
    """From x/255 planes of the teacher's geometry to the trusted network's input tensor."""
    wanted, tensor = preprocess.geometry, PIXELS
    if wanted.channels > given.channels:
        tensor = sheet.put("Concat", *[tensor] * wanted.channels, axis=1)
    if wanted.height != given.height:
        tensor = sheet.put("MatMul", resampling(given.height, wanted.height), tensor)
    if wanted.width != given.width:
        tensor = sheet.put("MatMul", tensor, np.ascontiguousarray(resampling(given.width, wanted.width).T))
    tensor = sheet.put("Mul", tensor, np.array(255, np.float32))
    if preprocess.dtype == "uint8":
        tensor = sheet.cast(sheet.put("Add", tensor, np.array(0.5, np.float32)), "uint8")
    else:
        mean, std = (_channels(v, wanted.channels) for v in (preprocess.scale.mean, preprocess.scale.std))
        tensor = sheet.put("Div", sheet.put("Sub", tensor, mean), std)
    tensor = sheet.put("Transpose", tensor, perm=[0, 2, 3, 1])
    sheet.put("Identity", arranged(sheet, tensor, preprocess), out=name)


def _planes(sheet: Sheet, preprocess: Preprocess, name: str) -> None:
    """From the teacher's input tensor back to x/255 planes: `Preprocess.undo`, the same steps."""
    g = preprocess.geometry
    tensor = sheet.cast(name, "float32")
    if preprocess.layout in ("flat", "flatCHW"):
        sides = (g.height, g.width, g.channels) if preprocess.layout == "flat" else (g.channels, g.height, g.width)
        tensor = sheet.put("Reshape", tensor, np.array([-1, *sides], np.int64))
    if preprocess.layout in ("NHWC", "flat"):
        tensor = sheet.put("Transpose", tensor, perm=[0, 3, 1, 2])
    if preprocess.order == "BGR":
        tensor = sheet.put("Gather", tensor, np.arange(g.channels)[::-1].copy(), axis=1)
    std, mean = preprocess.planes
    sheet.put("Add", sheet.put("Mul", tensor, std), mean, out=PIXELS)


def _channels(values: tuple[float, ...], channels: int) -> NDArray[np.float32]:
    """One number a channel, [1, C, 1, 1]."""
    return np.broadcast_to(np.asarray(values, np.float32), channels).reshape(1, channels, 1, 1).copy()


def _needed(graph: "GraphProto", wanted: str, given: str) -> list["NodeProto"]:
    """The nodes that lead from a tensor to another, in the graph's order; those that need neither among them."""
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    names, kept = [wanted], set[int]()
    while names:
        name = names.pop()
        if name != given and name in makers and makers[name] not in kept:
            kept.add(makers[name])
            names.extend(_read(graph.node[makers[name]]))
    return [graph.node[i] for i in sorted(kept)]


def _nested(node: "NodeProto") -> Iterator["NodeProto"]:
    """A node, and those of the graphs inside it."""
    yield node
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for one in inner.node:
                yield from _nested(one)


def _read(node: "NodeProto") -> Iterator[str]:
    """Names that a node reads; of graphs inside it also those of their own tensors, which no outer node makes."""
    for one in _nested(node):
        yield from one.input
        for attribute in one.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from (value.name for value in inner.output)


def _assembled(
    base: "ModelProto",
    nodes: list["NodeProto"],
    constants: list[object],
    given: "ValueInfoProto",
    wanted: "ValueInfoProto",
) -> "ModelProto":
    """A model of these nodes, with the base's constants as far as they are read, its functions and its opsets."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(base)
    read = {name for node in nodes for name in _read(node)}
    for field in ("node", "initializer", "sparse_initializer", "input", "output", "value_info"):
        made.graph.ClearField(field)
    made.graph.ClearField("quantization_annotation")
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(one for one in base.graph.initializer if one.name in read)
    made.graph.sparse_initializer.extend(one for one in base.graph.sparse_initializer if one.values.name in read)
    made.graph.initializer.extend(constants)
    made.graph.input.append(given)
    made.graph.output.append(wanted)
    # A domain that nothing uses any more would clash with the version that a drop-in's labels need.
    used = {"", "ai.onnx"} | {one.domain for node in nodes for one in _nested(node)}
    used |= {one.domain for function in base.functions for inner in function.node for one in _nested(inner)}
    del made.opset_import[:]
    made.opset_import.extend(one for one in base.opset_import if one.domain in used)
    return made
