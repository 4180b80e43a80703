"""Data flow in a classifier's graph: what the scores are computed from, and along which paths.

Plain walks over an acyclic graph: each is linear in its nodes. Nothing of the model is run.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

LAYERS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Conv", "ConvInteger", "FusedConv", "ConvTranspose", "DeformConv"), (1,)),
    **dict.fromkeys(("MatMul", "Gemm", "MatMulInteger", "FusedMatMul", "FusedGemm", "MatMulNBits"), (0, 1)),
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger16"), (0, 1)),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), (0, 3)),
    **dict.fromkeys(("Attention", "QAttention", "LSTM", "GRU", "RNN"), (1,)),
}
"""Operators that weigh their input with constants, and which of their inputs may be the weights."""

OPENINGS = frozenset({"Shape", "Size", "ConstantOfShape", "EyeLike"})
"""Operators whose result says nothing about the values that go in."""

INTEGERS = frozenset({5, 3, 4, 6, 7, 12, 13})
"""`TensorProto.DataType` numbers of whole numbers wider than a pixel's uint8."""


class Reach(NamedTuple):
    """Fewest and most layers on the paths from one place to another."""

    fewest: int
    most: int


class Region(NamedTuple):
    """What lies between two places that every path from the image to the scores passes.

    Attributes:
        start: index of the node where it begins; None: the image itself.
        end: index of the node where all its paths have met again.
        inside: layers on its paths, both ends left out.
        before: most layers on the way to its start, the start included.
    """

    start: int | None
    end: int
    inside: Reach
    before: int


@dataclass(slots=True)
class Flow:
    """The part of a graph that lies between the image and the scores.

    Attributes:
        image: name of the input.
        nodes: the nodes on some path from the image to the scores, in an order of computation.
        reach: layers on the paths from the image to a value that derives from it, itself included.
        after: most layers on the paths from a node (left out) to the scores, by index.
        constants: values that do not derive from the image.
        integer: image-derived values that were cast to whole numbers.
        shapes: inferred shapes; None for an open dimension.
        layers: most layers on a path from the image to the scores.
    """

    image: str
    nodes: list["NodeProto"]
    shapes: Mapping[str, tuple[int | None, ...]]
    reach: dict[str, Reach] = field(default_factory=dict)
    after: list[int] = field(default_factory=list)
    constants: set[str] = field(default_factory=set)
    integer: set[str] = field(default_factory=set)
    layers: int = 0

    def derived(self, node: "NodeProto") -> list[str]:
        """A node's inputs that derive from the image, those that its subgraphs take included."""
        return [name for name in reads(node) if name in self.reach]

    def is_layer(self, node: "NodeProto") -> bool:
        """Whether a node weighs an image-derived input with constants."""
        places = LAYERS.get(node.op_type, ())
        given = [node.input[place] for place in places if place < len(node.input)]
        return any(name and name not in self.reach for name in given) and bool(self.derived(node))

    def per_image(self, name: str) -> int | None:
        """Elements of a value for one image, by its inferred shape without the first dimension."""
        shape = self.shapes.get(name)
        if shape is None or any(size is None for size in shape[1:]):
            return None
        count = 1
        for size in shape[1:]:
            count *= size or 0
        return count

    def regions(self) -> list[Region]:
        """The scores' dominators cut the graph into regions, from the image on (Cooper et al., 2001)."""
        maker = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        before = [
            tuple({-1 if name == self.image else maker[name] for name in self.derived(node)}) for node in self.nodes
        ]
        chain = _dominators_of_last(before)
        weight = [int(self.is_layer(node)) for node in self.nodes]
        regions, passed = [], 0
        for start, end in pairwise(chain):
            inside = _between(before, weight, start, end)
            passed += weight[start] if start >= 0 else 0
            regions.append(Region(None if start < 0 else start, end, inside, passed))
            passed += inside.most
        return regions


def trace(graph: "GraphProto", image: str, scores: str, shapes: Mapping[str, tuple[int | None, ...]]) -> Flow:
    """Follow the data from the image to the scores.

    Args:
        graph: of an admitted model, functions expanded, nodes in an order of computation.
        image: name of the input.
        scores: name of the output.
        shapes: inferred shapes by value.

    Returns:
        The flow; it has no nodes when the scores do not derive from the image.
    """
    needed = {scores}
    wanted = []
    for node in reversed(graph.node):
        if needed.isdisjoint(node.output):
            continue
        needed.update(reads(node))
        wanted.append(node)
    flow = Flow(image, [], shapes, {image: Reach(0, 0)})
    for node in reversed(wanted):
        derived = flow.derived(node)
        if not derived or node.op_type in OPENINGS:
            flow.constants.update(node.output)
            continue
        own = int(flow.is_layer(node))
        reached = [flow.reach[name] for name in derived]
        here = Reach(min(r.fewest for r in reached) + own, max(r.most for r in reached) + own)
        whole = _is_whole(node, any(name in flow.integer for name in derived))
        for name in filter(None, node.output):
            flow.reach[name] = here
            if whole:
                flow.integer.add(name)
        flow.nodes.append(node)
    if scores not in flow.reach or not flow.nodes:
        flow.nodes = []
        return flow
    flow.layers = flow.reach[scores].most
    _count_after(flow)
    return flow


def reads(node: "NodeProto") -> Iterable[str]:
    """Names that a node takes, those that its subgraphs take from outside included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
            made = {value.name for value in inner.input} | {tensor.name for tensor in inner.initializer}
            for part in inner.node:
                yield from (name for name in reads(part) if name not in made)
                made.update(part.output)
            yield from (value.name for value in inner.output if value.name not in made)


def _is_whole(node: "NodeProto", integer: bool) -> bool:
    if node.op_type == "Cast":
        return any(attribute.name == "to" and attribute.i in INTEGERS for attribute in node.attribute)
    return integer


def _count_after(flow: Flow) -> None:
    most: dict[str, int] = {}
    flow.after = [0] * len(flow.nodes)
    for i in range(len(flow.nodes) - 1, -1, -1):
        node = flow.nodes[i]
        flow.after[i] = max((most.get(name, 0) for name in node.output), default=0)
        here = flow.after[i] + int(flow.is_layer(node))
        for name in flow.derived(node):
            most[name] = max(most.get(name, 0), here)


def _dominators_of_last(before: Sequence[tuple[int, ...]]) -> list[int]:
    """The dominators of the last node, from the root (-1) to the node itself.

    In an order of computation every predecessor comes first, so one pass finds each node's immediate
    dominator: where the dominator chains of its predecessors meet.
    """
    above, depth = {-1: -1}, {-1: 0}
    for i, sources in enumerate(before):
        meet = sources[0]
        for source in sources[1:]:
            one, other = meet, source
            while one != other:
                if depth[one] < depth[other]:
                    one, other = other, one
                one = above[one]
            meet = one
        above[i], depth[i] = meet, depth[meet] + 1
    chain = [len(before) - 1]
    while chain[-1] >= 0:
        chain.append(above[chain[-1]])
    return chain[::-1]


def _between(before: Sequence[tuple[int, ...]], weight: Sequence[int], start: int, end: int) -> Reach:
    """Fewest and most layers strictly between two nodes of the dominator chain."""
    known = {start: Reach(0, 0)}
    for i in range(start + 1, end):
        reached = [known[source] for source in before[i] if source in known]
        if reached:
            known[i] = Reach(min(r.fewest for r in reached) + weight[i], max(r.most for r in reached) + weight[i])
    reached = [known[source] for source in before[end] if source in known]
    return Reach(min(r.fewest for r in reached), max(r.most for r in reached))
