"""The class scores among a graph's outputs."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from kdaudit.admission.refusal import refuse
from kdaudit.admission.shapes import ELEMENT_TYPES, Shape, describe, shape_of
from kdaudit.signature import OutputKind

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

_PASSES = frozenset(
    {
        "Identity",
        "Cast",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Dropout",
        "Transpose",
        "DequantizeLinear",
    }
)
"""Operators that hand scores on without changing what they are."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The tensor that holds one score per class."""

    name: str
    shape: Shape
    element: Literal["float32", "float16"]
    classes: int
    kind: OutputKind
    names: tuple[str, ...] | None = None
    label_output: str | None = None
    map_output: str | None = None
    extra_outputs: tuple["ValueInfoProto", ...] = field(default=())


def find_scores(model: "ModelProto") -> Scores:
    """Find the class output.

    A ZipMap (a map from label to probability for every image) is read at the tensor that feeds it. Of several
    outputs that could be scores the first is taken; the findings say that there are others.

    Raises:
        ModelRefused: KDA013, KDA014 or KDA015.
    """
    graph = model.graph
    if not graph.output:
        refuse("KDA013", "the model has no output; export it again")
    makers = {name: node for node in graph.node for name in node.output if name}
    values = {value.name: value for value in _inferred(model).output}
    label = next((value.name for value in graph.output if _is_label(value)), None)
    for output in graph.output:
        node = makers.get(output.name)
        if node is not None and node.op_type == "ZipMap" and node.domain == "ai.onnx.ml":
            return _zipmap(model, node, output.name, label, makers)
    found: list[Scores] = []
    for output in graph.output:
        value = values.get(output.name, output)
        shape, declared = _merge(shape_of(output), shape_of(value)), value.type.tensor_type.elem_type
        element = ELEMENT_TYPES.get(declared or output.type.tensor_type.elem_type, "an unknown type")
        if element in ("float32", "float16") and _is_scores(shape):
            classes = shape[1]
            assert classes is not None
            kind = _kind(output.name, makers)
            float_type: Literal["float32", "float16"] = "float16" if element == "float16" else "float32"
            found.append(Scores(output.name, shape, float_type, classes, kind, None, label))
    if not found:
        _refuse_outputs(graph, values)
    best = next((scores for scores in found if scores.classes > 1), found[0])
    if best.classes < 2:
        refuse(
            "KDA014",
            f"output {best.name} {describe(best.shape)} holds one score only; "
            "kdaudit needs a score for each of at least two classes",
        )
    return best


def _is_label(value: "ValueInfoProto") -> bool:
    """Whether an output is the index or the name of the best class."""
    element = ELEMENT_TYPES.get(value.type.tensor_type.elem_type)
    shape = shape_of(value)
    return element in ("int64", "int32", "string") and (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1))


def _is_scores(shape: Shape) -> bool:
    """[N, K], or [N, K, 1, ...]."""
    return len(shape) >= 2 and shape[1] is not None and all(size == 1 for size in shape[2:])


def _merge(declared: Shape, inferred: Shape) -> Shape:
    """A declared shape with its open dimensions filled from inference, where both have the same rank."""
    if len(declared) != len(inferred):
        return declared or inferred
    return tuple(inner if outer is None else outer for outer, inner in zip(declared, inferred, strict=True))


def _inferred(model: "ModelProto") -> "GraphProto":
    """The graph with inferred shapes; as it is where inference gives up."""
    import onnx

    if all(_is_scores(shape_of(value)) or _is_label(value) for value in model.graph.output):
        return model.graph
    try:
        return onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return model.graph


def _kind(name: str, makers: dict[str, "NodeProto"]) -> OutputKind:
    """What the scores are, by the operator that makes them."""
    for _ in range(32):
        node = makers.get(name)
        if node is None or not node.input:
            break
        if node.op_type == "Softmax":
            return "probabilities"
        if node.op_type == "LogSoftmax":
            return "log-probabilities"
        if node.op_type not in _PASSES:
            break
        name = node.input[0]
    return "logits"


def _zipmap(
    model: "ModelProto", node: "NodeProto", output: str, label: str | None, makers: dict[str, "NodeProto"]
) -> Scores:
    """The probabilities that feed a ZipMap become an output of their own; the ZipMap stays as it is."""
    from onnx import TensorProto, helper

    attributes = {attribute.name: attribute for attribute in node.attribute}
    names: tuple[str, ...] = ()
    if "classlabels_strings" in attributes:
        names = tuple(entry.decode("utf-8", "replace") for entry in attributes["classlabels_strings"].strings)
    elif "classlabels_int64s" in attributes:
        names = tuple(str(entry) for entry in attributes["classlabels_int64s"].ints)
    if len(names) < 2:
        refuse("KDA014", f"output {output} maps {len(names)} classes; kdaudit needs at least two")
    source = node.input[0]
    if source not in makers:
        refuse("KDA013", f"output {output} maps {source!r}, which no node computes; export the model again")
    present = next((value for value in model.graph.output if value.name == source), None)
    kind = _kind(source, makers)
    value = present or helper.make_tensor_value_info(source, TensorProto.FLOAT, [None, len(names)])
    extra = () if present is not None else (value,)
    return Scores(source, (None, len(names)), "float32", len(names), kind, names, label, output, extra_outputs=extra)


def _refuse_outputs(graph: "GraphProto", values: dict[str, "ValueInfoProto"]) -> None:
    """Say why none of the outputs is a class output."""
    shapes = {
        output.name: _merge(shape_of(output), shape_of(values.get(output.name, output))) for output in graph.output
    }
    listed = ", ".join(f"{name} {describe(shape)}" for name, shape in list(shapes.items())[:6])
    image = [name for name, shape in shapes.items() if len(shape) == 4 and (shape[1] in (1, 3) or shape[3] in (1, 3))]
    if image:
        refuse("KDA015", f"not a classifier: output {listed} is an image; give a model with one score per class")
    refuse(
        "KDA013",
        f"not a classifier: no output holds one score per class as [N,K] (outputs: {listed}); "
        "give the model's scores as its output",
    )
