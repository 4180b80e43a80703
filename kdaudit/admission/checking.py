"""Which operators are admitted: those that the installed libraries know, and nothing else."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from kdaudit.admission.external import sparse_tensors, tensors
from kdaudit.admission.limits import MAX_NAME, MAX_NODES
from kdaudit.admission.refusal import refuse
from kdaudit.admission.tensors import check_sparse, check_tensor

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml"})
"""Domains whose operators are checked against the schemas of the installed `onnx`."""

CONTRIB = frozenset(
    {
        # Quantised arithmetic, as onnxruntime's quantiser writes it.
        *(
            "DequantizeLinear",
            "DynamicQuantizeMatMul",
            "MatMulInteger16",
            "MatMulIntegerToFloat",
            "MatMulNBits",
        ),
        *("QAttention", "QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearConv"),
        *("QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid", "QLinearSoftmax"),
        *("QLinearWhere", "QuantizeLinear"),
        # Fused float operators, as onnxruntime's optimiser writes them.
        *("Attention", "BiasGelu", "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul", "Gelu"),
        *("MultiHeadAttention", "QuickGelu", "SkipLayerNormalization"),
    }
)
"""Operators of `com.microsoft` that onnxruntime's CPU provider has and that image classifiers use."""

LEGACY = frozenset({"ImageScaler", "Affine", "Crop", "ParametricSoftplus", "Scale", "ScaledTanh"})
"""Experimental operators of early ONNX that onnxruntime still runs up to opset 9, unknown to `onnx`."""

LEGACY_OPSET = 9
MIN_IR = 3
PRECOMPILED = frozenset({"EPContext"})

Imports = Mapping[str, int]


def nodes(graph: "GraphProto") -> Iterator["NodeProto"]:
    """Yield all nodes of a graph and of the subgraphs in their attributes."""
    for node in graph.node:
        yield node
        yield from inner_nodes(node)


def inner_nodes(node: "NodeProto") -> Iterator["NodeProto"]:
    """Yield all nodes of the subgraphs that a node carries."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield from nodes(attribute.g)
        for inner in attribute.graphs:
            yield from nodes(inner)


def check(model: "ModelProto") -> int:
    """Check versions, tensors and operators of a model whose external data are loaded.

    Returns:
        The number of nodes, subgraphs and functions included.

    Raises:
        ModelRefused: KDA007 to KDA011, KDA016 or KDA017; the sentence names the node.
    """
    import onnx

    if model.ir_version < MIN_IR or model.ir_version > onnx.IR_VERSION:
        refuse(
            "KDA011",
            f"the model has IR version {model.ir_version}; kdaudit reads {MIN_IR} to {onnx.IR_VERSION}, "
            "export it again",
        )
    imports = _imports(model)
    functions = frozenset((function.domain, function.name) for function in model.functions)
    for tensor in tensors(model):
        check_tensor(tensor)
    for sparse in sparse_tensors(model):
        check_sparse(sparse)
    count = 0
    for function in model.functions:
        _check_function(function.domain, function.name)
        inner = {**imports, **{entry.domain: entry.version for entry in function.opset_import}}
        for outer in function.node:
            for node in (outer, *inner_nodes(outer)):
                _check_node(node, inner, functions)
                count += 1
    for node in nodes(model.graph):
        _check_node(node, imports, functions)
        count += 1
    if not count:
        refuse("KDA007", "the graph has no nodes; export the model again")
    if count > MAX_NODES:
        refuse("KDA017", f"the model has {count:,} nodes, more than {MAX_NODES:,}; do not use it")
    _check_structure(model)
    return count


def _imports(model: "ModelProto") -> dict[str, int]:
    """Opset by domain; "ai.onnx" is another name of the default domain."""
    import onnx

    imports: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if entry.version < 1 or imports.get(domain, entry.version) != entry.version:
            refuse("KDA011", f"opset {entry.version} of domain {domain or 'ai.onnx'!r} is odd or given twice")
        imports[domain] = entry.version
    newest = onnx.defs.onnx_opset_version()
    if imports.get("", 1) > newest:
        refuse("KDA011", f"the model uses opset {imports['']}; kdaudit reads up to {newest}, export it to that")
    return imports


def _check_function(domain: str, name: str) -> None:
    """A model-local function must not stand in for an operator of a known domain."""
    import onnx

    known = CONTRIB if domain == "com.microsoft" else LEGACY if domain in STANDARD else frozenset()
    if name in known or onnx.defs.has(name, "" if domain == "ai.onnx" else domain):
        refuse("KDA016", f"the model redefines the operator {name} by a function of its own; do not trust it")


def _check_node(node: "NodeProto", imports: Imports, functions: frozenset[tuple[str, str]]) -> None:
    """Refuse a node whose operator is not admitted."""
    import onnx

    if any(len(name) > MAX_NAME for name in (node.name, node.op_type, node.domain, *node.input, *node.output)):
        refuse("KDA017", f"a node has a name of more than {MAX_NAME:,} characters; do not use the model")
    domain = "" if node.domain == "ai.onnx" else node.domain
    where = f"node {node.name or node.output[0] if node.output else node.name!r}"
    operator = f"{domain or 'ai.onnx'}.{node.op_type}"
    if node.op_type in PRECOMPILED:
        refuse("KDA010", f"{where} is {operator}, a precompiled binary; give the model it was compiled from")
    if (node.domain, node.op_type) in functions:
        return
    if domain not in STANDARD and domain != "com.microsoft":
        refuse("KDA008", f"{where} uses {operator} of a domain that is not admitted; export without it")
    if domain not in imports:
        refuse("KDA011", f"{where} uses {operator}, but the model imports no opset of that domain")
    version = imports[domain]
    if domain == "com.microsoft":
        if node.op_type not in CONTRIB:
            refuse("KDA009", f"{where} uses the operator {operator}, which is none that kdaudit admits")
        return
    if node.op_type in LEGACY and not domain and version <= LEGACY_OPSET:
        return
    try:
        schema = onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError:
        refuse(
            "KDA009",
            f"{where} uses {operator}, an operator unknown in opset {version}; export the model again",
        )
    if schema.deprecated:
        refuse("KDA009", f"{where} uses {operator}, which opset {version} no longer has; export the model again")


def _check_structure(model: "ModelProto") -> None:
    """Every tensor that is read was written before, once: what `onnx.checker` proves, without its printing.

    The checker itself prints to the standard streams for legacy operators, so it sees models without them.
    """
    import onnx

    if any(node.op_type in LEGACY for node in nodes(model.graph)):
        return
    skeleton = _skeleton(model)
    try:
        onnx.checker.check_model(skeleton)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        line = (str(error).strip().splitlines() or ["no reason given"])[0]
        refuse("KDA007", f"the graph is not valid ONNX ({line[:300]}); export the model again")


def _skeleton(model: "ModelProto") -> "ModelProto":
    """A copy as models are written today, without initializers among the inputs: old graphs pass, too."""
    from kdaudit.admission.canonical import canonical

    return canonical(model)
