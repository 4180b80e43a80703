"""Static findings: what a look at the graph alone can say, before anything is run."""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from kdaudit.admission.backdoors import find_backdoors
from kdaudit.admission.catalogue import Finding, found
from kdaudit.admission.checking import LEGACY, nodes
from kdaudit.admission.expansion import expand_functions, in_order, outline, scalars, shapes_of
from kdaudit.admission.flow import trace
from kdaudit.signature import Signature

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
LARGE_TEXT = 1 << 16
"""Characters; a thousand class names take a quarter of it."""

CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})


def find(model: "ModelProto", signature: Signature) -> tuple[Finding, ...]:
    """Look at an admitted model's graph.

    Args:
        model: the model as it was read, external data loaded.
        signature: its interface.
    """
    rules: tuple[Callable[[ModelProto], Finding | None], ...] = (
        _random,
        _control_flow,
        _unused_weights,
        _dead_nodes,
        _functions,
        _legacy,
        _baggage,
        _texts,
    )
    plain = (_outputs(model, signature), *(rule(model) for rule in rules))
    return (*(finding for finding in plain if finding is not None), *_backdoors(model, signature))


def _backdoors(model: "ModelProto", signature: Signature) -> tuple[Finding, ...]:
    """The rules on the data flow, functions expanded."""
    light = expand_functions(outline(model))
    graph = light.graph
    numbers = scalars(graph)
    flow = trace(in_order(graph), signature.input_name, signature.output_name, shapes_of(light, graph))
    pixels = signature.height * signature.width if signature.height and signature.width else None
    return tuple(find_backdoors(flow, numbers.get, pixels))


def _operators(model: "ModelProto") -> Counter[str]:
    count = Counter(node.op_type for node in nodes(model.graph))
    count.update(node.op_type for function in model.functions for node in function.node)
    return count


def _listed(count: Counter[str], among: frozenset[str]) -> str:
    return ", ".join(f"{count[name]} {name}" for name in sorted(among) if count[name])


def _random(model: "ModelProto") -> Finding | None:
    listed = _listed(_operators(model), RANDOM)
    text = f"the graph draws random numbers ({listed}): the same image may get another answer each time"
    return found("KDA101", text) if listed else None


def _control_flow(model: "ModelProto") -> Finding | None:
    listed = _listed(_operators(model), CONTROL_FLOW)
    text = f"the graph decides at run time what it computes ({listed}); image classifiers rarely need that"
    return found("KDA102", text) if listed else None


def _read_names(graph: "GraphProto") -> set[str]:
    """Names that some node reads or that are outputs, subgraphs included."""
    names = {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                names |= _read_names(inner)
    return names


def _unused_weights(model: "ModelProto") -> Finding | None:
    read = _read_names(model.graph)
    unused = [tensor.name for tensor in model.graph.initializer if tensor.name not in read]
    text = f"{len(unused)} weights are never read, such as {unused[0] if unused else ''!r}"
    return found("KDA103", text) if unused else None


def _dead_nodes(model: "ModelProto") -> Finding | None:
    needed = {value.name for value in model.graph.output}
    dead = []
    for node in reversed(model.graph.node):
        if needed.isdisjoint(node.output):
            dead.append(node.name or node.op_type)
            continue
        needed.update(node.input)
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                needed |= _read_names(inner)
    text = f"{len(dead)} nodes compute what no output needs, such as {dead[-1] if dead else ''!r}"
    return found("KDA104", text) if dead else None


def _outputs(model: "ModelProto", signature: Signature) -> Finding | None:
    known = {signature.output_name, signature.label_output, signature.map_output}
    others = [value.name for value in model.graph.output if value.name not in known]
    text = f"the model has further outputs that are not audited: {', '.join(others[:6])}"
    return found("KDA105", text) if others else None


def _functions(model: "ModelProto") -> Finding | None:
    text = f"the model brings {len(model.functions)} functions of its own, checked like the rest"
    return found("KDA106", text) if model.functions else None


def _legacy(model: "ModelProto") -> Finding | None:
    listed = _listed(_operators(model), LEGACY)
    text = f"the graph uses operators of early ONNX that only onnxruntime still knows ({listed})"
    return found("KDA107", text) if listed else None


def _baggage(model: "ModelProto") -> Finding | None:
    settings = [entry.key for entry in model.metadata_props if entry.key.startswith(("ort_", "session."))]
    parts = [*(["training graphs"] if model.training_info else []), *settings]
    text = f"the file carries {', '.join(parts)}; kdaudit drops them and runs the model without"
    return found("KDA108", text) if parts else None


def _texts(model: "ModelProto") -> Finding | None:
    texts = {"the description": model.doc_string, "the graph's description": model.graph.doc_string}
    texts |= {f"the metadata {entry.key[:80]!r}": entry.value for entry in model.metadata_props}
    large = [f"{name} ({len(text):,} characters)" for name, text in texts.items() if len(text) > LARGE_TEXT]
    text = f"the file carries texts that no classifier needs: {', '.join(large[:3])}"
    return found("KDA116", text) if large else None
