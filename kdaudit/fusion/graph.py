"""Composing the audit graph: the teacher's nodes as they are, the control's under names of our own.

Nothing of the teacher is renamed, converted or left out: its nodes, constants and functions are copied byte for byte,
and only its graph's inputs and outputs give way to ours. The control is ours, so it is what moves to the teacher's
opset. Whether the whole answers as its parts do is proven by running it (`kdaudit.onegraph`).
"""

from typing import TYPE_CHECKING

from kdaudit.fusion.blueprint import Blueprint, Fused, NotFused
from kdaudit.fusion.parts import Sheet, feed, head

if TYPE_CHECKING:
    from onnx import ModelProto

OLDEST = 11
"""The oldest opset that knows the operators of `parts`."""

CONVERTED = 14
"""onnx's converter goes down to this opset and no further."""

UNCHANGED = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Conv", "Gemm", "Relu", "Concat", "ReduceMax", "ReduceMean", "HardSigmoid"),
        *("MaxPool", "Flatten", "GlobalAveragePool", "Identity"),
    }
)
"""What a control may hold to be taken from opset `CONVERTED` to `OLDEST` as it is: these only lost element types."""


def compose(teacher: bytes, control: bytes, blueprint: Blueprint) -> Fused:
    """Write the audit graph.

    Args:
        teacher: canonical bytes of the admitted teacher.
        control: the control's bytes.
        blueprint: what they have in common.

    Raises:
        NotFused: the two do not go into one graph.
    """
    import onnx

    theirs, ours = (onnx.load_model_from_string(data) for data in (teacher, control))
    opset = _opset(theirs)
    if opset < OLDEST:
        raise NotFused(f"the model's opset {opset} lacks what the comparison needs; from {OLDEST} on it would do")
    ours = _prefixed(_at_opset(ours, opset), blueprint)
    front, back = (Sheet(f"{blueprint.prefix}{part}/") for part in ("feed", "head"))
    feed(front, blueprint, blueprint.teacher.input_name, blueprint.own + blueprint.control.input_name)
    head(back, blueprint)

    made = onnx.ModelProto()
    made.CopyFrom(theirs)
    made.ir_version = max(theirs.ir_version, ours.ir_version)
    graph = made.graph
    for field in ("node", "initializer", "input", "output"):
        graph.ClearField(field)
    for nodes in (front.nodes, theirs.graph.node, ours.graph.node, back.nodes):
        graph.node.extend(nodes)
    for constants in (theirs.graph.initializer, ours.graph.initializer, front.constants, back.constants):
        graph.initializer.extend(constants)
    geometry = blueprint.preprocess.geometry
    rows = blueprint.batch or f"{blueprint.prefix}batch"
    shape = [rows, geometry.height, geometry.width, geometry.channels]
    graph.input.append(onnx.helper.make_tensor_value_info(blueprint.pixels, onnx.TensorProto.UINT8, shape))
    graph.output.append(
        onnx.helper.make_tensor_value_info(blueprint.rows, onnx.TensorProto.FLOAT, [rows, blueprint.length])
    )
    try:
        onnx.checker.check_model(made)
        return Fused(bytes(made.SerializeToString(deterministic=True)), blueprint)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise NotFused(f"the composed graph does not check: {_line(error)}") from error


def _opset(model: "ModelProto") -> int:
    """Version of the default domain."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)


def _at_opset(control: "ModelProto", opset: int) -> "ModelProto":
    """The control, which uses the default domain alone, in the teacher's opset.

    Raises:
        NotFused: it cannot be had there.
    """
    import onnx
    from onnx import version_converter

    if control.functions or any(a.HasField("g") or a.graphs for n in control.graph.node for a in n.attribute):
        raise NotFused("the control has graphs inside its graph, and no control of `kdaudit distill` has")
    if any(node.domain not in ("", "ai.onnx") for node in control.graph.node):
        raise NotFused("the control uses operators that are not ONNX's own")
    if _opset(control) == opset:
        return control
    try:
        made: ModelProto = version_converter.convert_version(control, max(opset, CONVERTED))
        for node in made.graph.node:
            # The converter leaves a default behind that older opsets do not know.
            extra = [a for a in node.attribute if a.name == "noop_with_empty_axes" and not a.i and opset < 18]
            for attribute in extra:
                node.attribute.remove(attribute)
        if opset < CONVERTED:
            foreign = {node.op_type for node in made.graph.node} - UNCHANGED
            if foreign:
                raise NotFused(f"the control's {min(foreign)} is not to be had in the model's opset {opset}")
            del made.opset_import[:]
            made.opset_import.append(onnx.helper.make_opsetid("", opset))
        onnx.checker.check_model(made, full_check=True)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:  # what the converter raises is its own
        raise NotFused(f"the control does not go from opset {_opset(control)} to {opset}: {_line(error)}") from error
    return made


def _prefixed(control: "ModelProto", blueprint: Blueprint) -> "ModelProto":
    """The control with all its names under our prefix."""
    from onnx import compose as onnx_compose

    return onnx_compose.add_prefix(control, blueprint.own)


def _line(error: BaseException) -> str:
    """The first line of what a library says, cut short."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
