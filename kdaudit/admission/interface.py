"""The classifier's input and output, read off its graph: one image in, one score per class out."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt, prod
from typing import TYPE_CHECKING, Literal, NamedTuple

from kdaudit.admission.features import features_of
from kdaudit.admission.limits import MAX_BATCH, MAX_CLASSES, MAX_INPUT, MAX_PIXELS
from kdaudit.admission.names import class_names
from kdaudit.admission.outputs import Scores, find_scores
from kdaudit.admission.refusal import refuse
from kdaudit.admission.shapes import ELEMENT_TYPES, Shape, describe, shape_of
from kdaudit.signature import InputType, Layout, Signature

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto


class ImageInput(NamedTuple):
    """Where the pixels go in: sizes are None where the graph leaves them open."""

    layout: Layout
    height: int | None
    width: int | None
    channels: Literal[1, 3]


@dataclass(frozen=True, slots=True)
class Interface:
    """A signature, and the tensors that must become outputs for it to hold (behind a ZipMap; last features)."""

    signature: Signature
    extra_outputs: tuple["ValueInfoProto", ...] = ()


def find_interface(model: "ModelProto") -> Interface:
    """Find the one image input and the one class output.

    Args:
        model: the checked model, external data loaded.

    Raises:
        ModelRefused: KDA012 (inputs), KDA013, KDA014 or KDA015 (outputs).
    """
    graph = model.graph
    value = _image_value(graph)
    shape = shape_of(value)
    element = ELEMENT_TYPES.get(value.type.tensor_type.elem_type, "an unknown type")
    if element not in ("float32", "float16", "uint8"):
        refuse("KDA012", f"input {value.name} takes {element}; kdaudit feeds float32, float16 or uint8")
    input_type: InputType = "float16" if element == "float16" else "uint8" if element == "uint8" else "float32"
    image = _image(value.name, shape, graph)
    if (image.height or 1) * (image.width or 1) > MAX_PIXELS:
        refuse("KDA012", f"input {value.name} {describe(shape)} holds more than {MAX_PIXELS:,} pixels")
    if (shape[0] or 1) > MAX_BATCH or prod(size or 1 for size in shape) > MAX_INPUT:
        refuse(
            "KDA012", f"input {value.name} {describe(shape)} is a batch that nobody can fill; export it for one image"
        )
    scores: Scores = find_scores(model)
    if scores.classes > MAX_CLASSES:
        refuse("KDA013", f"output {scores.name} has {scores.classes:,} scores; kdaudit takes up to {MAX_CLASSES:,}")
    metadata = [(entry.key, entry.value) for entry in model.metadata_props]
    signature = Signature(
        input_name=value.name,
        input_type=input_type,
        input_shape=shape,
        layout=image.layout,
        batch=shape[0],
        height=image.height,
        width=image.width,
        channels=image.channels,
        output_name=scores.name,
        output_type=scores.element,
        output_shape=scores.shape,
        output_kind=scores.kind,
        classes=scores.classes,
        class_names=scores.names or class_names(metadata, scores.classes),
        label_output=scores.label_output,
        map_output=scores.map_output,
        features=features_of(graph, scores.name),
    )
    return Interface(signature, (*scores.extra_outputs, *_features_output(graph, signature.features)))


def _features_output(graph: "GraphProto", name: str | None) -> tuple["ValueInfoProto", ...]:
    """The features as an output; of no stated type, which onnxruntime infers."""
    from onnx import ValueInfoProto

    if name is None or any(value.name == name for value in graph.output):
        return ()
    return (ValueInfoProto(name=name),)


def _image_value(graph: "GraphProto") -> "ValueInfoProto":
    """The one graph input that is not a weight."""
    weights = {tensor.name for tensor in graph.initializer}
    weights |= {sparse.values.name for sparse in graph.sparse_initializer}
    inputs: list[ValueInfoProto] = [value for value in graph.input if value.name not in weights]
    if not inputs:
        refuse("KDA012", "the model has no input beside its weights; nothing can be shown to it")
    if len(inputs) > 1:
        listed = ", ".join(f"{value.name} {describe(shape_of(value))}" for value in inputs[:6])
        refuse("KDA012", f"the model takes {len(inputs)} inputs ({listed}); kdaudit audits models of one image")
    if inputs[0].type.WhichOneof("value") != "tensor_type":
        refuse("KDA012", f"input {inputs[0].name} is not a tensor; kdaudit audits models of one image")
    return inputs[0]


def _image(name: str, shape: Shape, graph: "GraphProto") -> ImageInput:
    """Read layout, size and channels off the input's shape, and off the first convolution where open."""
    what = f"input {name} has the shape {describe(shape)}"
    if any(size is not None and size < 1 for size in shape):
        refuse("KDA012", f"{what}, which holds no image")
    if len(shape) == 4:
        return _square_image(what, shape, first_convolution(graph, name))
    if len(shape) == 2 or (len(shape) == 3 and shape[2] == 1):
        pixels = shape[1]
        for channels in (1, 3):
            side = isqrt((pixels or 0) // channels)
            if side >= 4 and side * side * channels == pixels:
                return ImageInput("flat", side, side, 1 if channels == 1 else 3)
        return refuse("KDA012", f"{what}; a flat input must hold a square image of 1 or 3 channels")
    return refuse("KDA012", f"{what}; kdaudit feeds images as [N,C,H,W], [N,H,W,C] or flat [N,pixels]")


def _square_image(what: str, shape: Shape, trunk: tuple[Layout, int] | None) -> ImageInput:
    """Layout of a four-dimensional input."""
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    layout: Layout
    if first != last:
        layout = "NCHW" if first else "NHWC"
    elif trunk is not None:
        layout = trunk[0]
    elif first or shape[1] is None:
        layout = "NCHW"
    else:
        refuse("KDA012", f"{what}; kdaudit audits models of images with 1 or 3 channels")
    channels, height, width = (shape[1], shape[2], shape[3]) if layout == "NCHW" else (shape[3], shape[1], shape[2])
    if channels is None and trunk is not None:
        channels = trunk[1]
    if channels is None:
        channels = 3
    if channels not in (1, 3):
        refuse("KDA012", f"{what}; kdaudit audits models of images with 1 or 3 channels, not {channels}")
    return ImageInput(layout, height, width, 1 if channels == 1 else 3)


_POINTWISE = frozenset(
    {
        *("Identity", "Cast", "Sub", "Div", "Mul", "Add", "ImageScaler", "BatchNormalization", "Pad", "Clip"),
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Dropout", "Resize", "Upsample"),
    }
)
_CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "FusedConv": 1, "QLinearConv": 3}
"""Operators whose weights show the number of channels, and which of their inputs the weights are."""


def first_convolution(graph: "GraphProto", name: str) -> tuple[Layout, int] | None:
    """Layout and channels as the first convolution behind the input sees them; None where there is none."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for read in node.input:
            readers.setdefault(read, []).append(node)
    transposed = False
    for _ in range(32):
        if name not in readers:
            return None
        reader = readers[name][0]
        if reader.op_type in _CONVOLUTIONS:
            return _channels(reader, weights, "NHWC" if transposed else "NCHW")
        if reader.op_type == "Transpose":
            axes = next((list(a.ints) for a in reader.attribute if a.name == "perm"), [])
            if axes != [0, 3, 1, 2] or transposed:
                return None
            transposed = True
        elif reader.op_type not in _POINTWISE:
            return None
        name = reader.output[0]
    return None


def _channels(node: "NodeProto", weights: dict[str, tuple[int, ...]], layout: Layout) -> tuple[Layout, int] | None:
    """Input channels of a convolution by its weights [out, in / group, ...]."""
    position = _CONVOLUTIONS[node.op_type]
    dims: Sequence[int] = weights.get(node.input[position], ()) if len(node.input) > position else ()
    if len(dims) < 2:
        return None
    group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    return layout, dims[1] * group
