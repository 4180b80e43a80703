"""Static findings: what a look at the graph alone can say, before anything is run."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kdaudit.admission.checking import LEGACY, nodes
from kdaudit.signature import Signature

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

Severity = Literal["low", "medium", "high", "critical"]

RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the graph that a reader should know.

    Attributes:
        rule: stable rule id; never reused for another reason.
        severity: how much it says about a backdoor; honest models stay at "low".
        message: one sentence.
        subject: what it is about, such as "answer 7"; empty where the rule has one subject only. Counts do not
            belong here: it names the same finding in another run.
    """

    rule: str
    severity: Severity
    message: str
    subject: str = ""


FINDINGS: dict[str, str] = {
    "KDA101": "random operators",
    "KDA102": "control flow",
    "KDA103": "weights that nothing reads",
    "KDA104": "nodes whose result nothing reads",
    "KDA105": "several outputs",
    "KDA106": "model-local functions",
    "KDA107": "operators of early ONNX",
    "KDA108": "training graphs or settings in the file",
}
"""Rule ids of static findings and short titles."""


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
    )
    found = (_outputs(model, signature), *(rule(model) for rule in rules))
    return tuple(finding for finding in found if finding is not None)


def _operators(model: "ModelProto") -> Counter[str]:
    count = Counter(node.op_type for node in nodes(model.graph))
    count.update(node.op_type for function in model.functions for node in function.node)
    return count


def _listed(count: Counter[str], among: frozenset[str]) -> str:
    return ", ".join(f"{count[name]} {name}" for name in sorted(among) if count[name])


def _random(model: "ModelProto") -> Finding | None:
    listed = _listed(_operators(model), RANDOM)
    text = f"the graph draws random numbers ({listed}): the same image may get another answer each time"
    return Finding("KDA101", "high", text) if listed else None


def _control_flow(model: "ModelProto") -> Finding | None:
    listed = _listed(_operators(model), CONTROL_FLOW)
    text = f"the graph decides at run time what it computes ({listed}); image classifiers rarely need that"
    return Finding("KDA102", "medium", text) if listed else None


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
    return Finding("KDA103", "low", text) if unused else None


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
    return Finding("KDA104", "low", text) if dead else None


def _outputs(model: "ModelProto", signature: Signature) -> Finding | None:
    known = {signature.output_name, signature.label_output, signature.map_output}
    others = [value.name for value in model.graph.output if value.name not in known]
    text = f"the model has further outputs that are not audited: {', '.join(others[:6])}"
    return Finding("KDA105", "low", text) if others else None


def _functions(model: "ModelProto") -> Finding | None:
    text = f"the model brings {len(model.functions)} functions of its own, checked like the rest"
    return Finding("KDA106", "low", text) if model.functions else None


def _legacy(model: "ModelProto") -> Finding | None:
    listed = _listed(_operators(model), LEGACY)
    text = f"the graph uses operators of early ONNX that only onnxruntime still knows ({listed})"
    return Finding("KDA107", "low", text) if listed else None


def _baggage(model: "ModelProto") -> Finding | None:
    settings = [entry.key for entry in model.metadata_props if entry.key.startswith(("ort_", "session."))]
    parts = [*(["training graphs"] if model.training_info else []), *settings]
    text = f"the file carries {', '.join(parts)}; kdaudit drops them and runs the model without"
    return Finding("KDA108", "low", text) if parts else None
