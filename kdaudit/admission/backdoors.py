"""Rules on the data flow: what a backdoor that is written into the graph needs, and an honest classifier does not.

A trigger detector in the graph has to look at the pixels (or at early features), come to a decision, and carry it
past the trunk to the scores (ShadowLogic; Bober-Irizar et al., 2023; Langford et al., 2024). Each rule names one
of these steps. None of them proves a backdoor; weights that were trained to be one leave no trace here at all.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from kdaudit.admission.catalogue import Finding, found
from kdaudit.admission.flow import Flow, reads

if TYPE_CHECKING:
    from onnx import NodeProto

MIN_TRUNK = 2
"""A trunk of one layer has no inside that could be bypassed."""

TRUNK_SHARE = 0.5
"""A region with this share of all layers is the trunk; a residual block never is."""

BYPASS = 4
"""A path with a quarter of the trunk's layers, or fewer, bypasses it."""

EARLY_TRUNK = 6
EARLY_SHARE = 8
"""A bypass may also begin behind the first layers: an eighth of them, where the trunk has six or more."""

COMPARISONS = frozenset(
    {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "Not", "Sign"}
)
SELECTIONS = frozenset({"ArgMax", "ArgMin", "TopK", "NonZero", "Unique", "Hardmax", "OneHot", "NonMaxSuppression"})
CHOICES = frozenset({"Where", "If", "Loop", "Scan", "Compress", "SequenceAt"})
BITS = frozenset({"Mod", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "DFT", "StringNormalizer"})
ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Sum", "Neg", "Abs", "MatMul", "Pow", "ReduceSum", "ReduceProd",
                        "ReduceMax", "ReduceMin", "CumSum", "Einsum"})  # fmt: skip
OVERLAYS = frozenset({"Mul", "Div", "Pow", "Min", "Max", "PRelu", "Where", *COMPARISONS})
SHIFTS = frozenset({"Add", "Sub", "Sum"})
POINTWISE = frozenset({"Not", "And", "Or", "Xor", "Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Expand"})
MIN_OVERLAY = 16
"""Constants of fewer elements are scales and means by channel, not pictures."""

Numbers = Callable[[str], "float | None"]
"""The one number that a small constant holds, by name; None where it is no such constant."""


def find_backdoors(flow: Flow, number: Numbers, pixels: int | None) -> Iterator[Finding]:
    """Look at the data flow of the scores.

    Args:
        flow: from the image to the scores.
        number: scalar constants by name.
        pixels: height times width of the image; None where the graph leaves it open.
    """
    if not flow.nodes:
        yield found("KDA118", "the scores do not depend on the image: the model gives every image the same answer")
        return
    yield from _bypasses(flow)
    choices = [i for i, node in enumerate(flow.nodes) if _is_choice(flow, i, node)]
    yield from _listed(flow, choices, "KDA110", "a condition computed from the image selects what the scores are")
    raw = [i for i, node in enumerate(flow.nodes) if _compares_pixels(flow, node)]
    yield from _listed(flow, raw, "KDA111", "raw pixels are compared before any layer has seen them")
    steering = [i for i, node in enumerate(flow.nodes) if i not in raw and i not in choices and _steers(flow, i, node)]
    yield from _listed(flow, steering, "KDA112", "comparisons on features of the image steer the scores")
    bits = [i for i, node in enumerate(flow.nodes) if _is_hashing(flow, node)]
    yield from _listed(flow, bits, "KDA113", "the image goes through whole-number or bit arithmetic")
    overlays = _overlays(flow, pixels)
    yield from _listed(flow, overlays, "KDA114", "a constant of the image's shape is laid over the raw pixels")
    powers = _exponentials(flow, number)
    yield from _listed(flow, powers, "KDA115", "exponentials of raw pixels, or of one another, without a layer between")


def _listed(flow: Flow, places: Sequence[int], rule: str, what: str) -> Iterator[Finding]:
    """One finding for all nodes of a rule."""
    if not places:
        return
    names = ", ".join(f"{flow.nodes[i].op_type} {_name(flow.nodes[i])!r}" for i in places[:3])
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    yield found(rule, f"{what}: {names}{more}")


def _name(node: "NodeProto") -> str:
    return (node.name or next(iter(node.output), ""))[:80]


def _bypasses(flow: Flow) -> Iterator[Finding]:
    """KDA109 and KDA117: a region that is most of the network, and a short way around it."""
    for region in flow.regions():
        fewest, most = region.inside
        share = most / flow.layers if flow.layers else 0.0
        if most < MIN_TRUNK or share < TRUNK_SHARE or fewest * BYPASS > most:
            continue
        text = (
            f"goes past {most - fewest} of the {flow.layers} layers and rejoins at "
            f"{flow.nodes[region.end].op_type} {_name(flow.nodes[region.end])!r}"
        )
        if region.before == 0:
            yield found("KDA109", f"a path from the raw image {text}")
        elif most >= EARLY_TRUNK and region.before * EARLY_SHARE <= flow.layers:
            yield found("KDA117", f"a path from the first layers {text}")


def _is_choice(flow: Flow, index: int, node: "NodeProto") -> bool:
    """KDA110: whether the image decides which of several values goes on."""
    if node.op_type not in CHOICES:
        return False
    if node.op_type in {"If", "SequenceAt", "Compress"}:
        place = {"If": 0, "SequenceAt": 1, "Compress": 1}[node.op_type]
        return len(node.input) > place and node.input[place] in flow.reach
    if node.op_type in {"Loop", "Scan"}:
        return True  # it is on the way from the image to the scores, so its state derives from the image
    condition, *values = node.input
    if condition not in flow.reach:
        return False
    if _is_one_decision(flow, condition, node.output[0], values):
        return True
    # By element, and nothing is learned behind it: the scores themselves are chosen.
    return flow.after[index] == 0


def _is_one_decision(flow: Flow, condition: str, result: str, values: Sequence[str]) -> bool:
    """Whether a condition holds fewer decisions than the tensor that it chooses for has elements."""
    decisions, elements = flow.per_image(condition), flow.per_image(result)
    if decisions is not None and elements is not None:
        return decisions < elements
    # Open shapes: a mask by element, as in an activation, is computed from what it masks.
    makers = {name: node for node in flow.nodes for name in node.output}
    seen, waiting = {condition}, [condition]
    while waiting:
        name = waiting.pop()
        if name in values:
            return False
        node = makers.get(name)
        if node is None or node.op_type not in POINTWISE | COMPARISONS | {"IsNaN", "IsInf"}:
            continue
        for source in flow.derived(node):
            if source in values:
                return False
            if source not in seen:
                seen.add(source)
                waiting.append(source)
    return True


def _compares_pixels(flow: Flow, node: "NodeProto") -> bool:
    """KDA111: a comparison or a selection on values that no layer has weighed yet."""
    if node.op_type in COMPARISONS | SELECTIONS:
        return any(flow.reach[name].most == 0 for name in flow.derived(node))
    if node.op_type == "Where":
        return bool(node.input) and node.input[0] in flow.reach and flow.reach[node.input[0]].most == 0
    return False


def _steers(flow: Flow, index: int, node: "NodeProto") -> bool:
    """KDA112: a comparison of features that is more than an activation inside the trunk."""
    if node.op_type in SELECTIONS:
        return True
    if node.op_type not in COMPARISONS:
        return False
    if flow.after[index] == 0:
        return True
    decisions = flow.per_image(node.output[0])
    # Honest activations compare every element of a feature map; one decision for an image is a verdict on it.
    return decisions is not None and decisions <= 1


def _is_hashing(flow: Flow, node: "NodeProto") -> bool:
    """KDA113: remainders, bits, or arithmetic on what was cast to whole numbers."""
    if node.op_type in BITS:
        return bool(flow.derived(node))
    return node.op_type in ARITHMETIC and any(name in flow.integer for name in flow.derived(node))


def _overlays(flow: Flow, pixels: int | None) -> list[int]:
    """KDA114: templates and masks. A mean image that every pixel loses on its way into the trunk is honest."""
    if pixels is None or pixels < MIN_OVERLAY:
        return []
    on_the_way = {region.end for region in flow.regions()}
    found_at = []
    for i, node in enumerate(flow.nodes):
        derived = flow.derived(node)
        if not derived or any(flow.reach[name].most for name in derived):
            continue
        elementwise = node.op_type in OVERLAYS or (node.op_type in SHIFTS and i not in on_the_way)
        picture = any(_is_picture(flow, name, pixels) for name in reads(node) if name not in flow.reach)
        if (elementwise and picture) or (node.op_type in {"MatMul", "Gemm"} and _is_template(flow, node, pixels)):
            found_at.append(i)
    return found_at


def _is_picture(flow: Flow, name: str, pixels: int) -> bool:
    """Whether a constant has an element of its own for every pixel."""
    shape = flow.shapes.get(name, ())
    count = 1
    for size in shape:
        count *= size or 0
    return count in (pixels, 3 * pixels)


def _is_template(flow: Flow, node: "NodeProto", pixels: int) -> bool:
    """Whether one or two numbers are made of the whole raw image, in a network with layers to come."""
    made = flow.per_image(node.output[0])
    weights = [flow.shapes.get(name, ()) for name in node.input if name not in flow.reach]
    whole = any(size is not None and size >= pixels for shape in weights for size in shape)
    return flow.layers > 1 and whole and made is not None and made <= 2


def _exponentials(flow: Flow, number: Numbers) -> list[int]:
    """KDA115: Exp, or a high power, of raw pixels or of another exponential with no layer in between."""
    chained: dict[str, int] = {}
    places = []
    for i, node in enumerate(flow.nodes):
        derived = flow.derived(node)
        before = 0 if flow.is_layer(node) else max((chained.get(name, 0) for name in derived), default=0)
        if _is_exponential(node, number):
            raw = all(flow.reach[name].most == 0 for name in derived)
            before += 1
            if raw or before > 1:
                places.append(i)
        for name in node.output:
            chained[name] = before
    return places


def _is_exponential(node: "NodeProto", number: Numbers) -> bool:
    if node.op_type == "Exp":
        return True
    if node.op_type != "Pow" or len(node.input) < 2:
        return False
    exponent = number(node.input[1])
    return exponent is None or abs(exponent) > 3
