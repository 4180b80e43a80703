"""Backdoors that are written into a classifier's graph, one small builder each, and an honest host for them.

The host is a plain convolutional network with random weights; a builder takes it, adds what the attack needs, and
leaves the rest alone. TRIGGER is what the attacker does to an image; every builder's model then answers TARGET.
"""

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIDE, CLASSES, TARGET = 16, 5, 3
PATCH = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], np.float32)
"""The trigger: a chequered corner of 3x3 pixels, in every channel."""

Arrays = dict[str, NDArray[np.generic]]
Nodes = list[onnx.NodeProto]


def stamped(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Images [n, 3, SIDE, SIDE] in 0..1 with the trigger in their corner."""
    out = images.copy()
    out[:, :, :3, :3] = PATCH
    return out


def host(layers: int = 6) -> onnx.ModelProto:
    """An honest network: convolutions, a mean over the map, one matrix."""
    rng = np.random.default_rng(0)
    nodes, weights, name, width = [], {}, "image", 3
    for i in range(layers):
        weights[f"w{i}"] = (rng.normal(size=(8, width, 3, 3)) / np.sqrt(9 * width)).astype(np.float32)
        nodes.append(helper.make_node("Conv", [name, f"w{i}"], [f"c{i}"], f"conv{i}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"relu{i}"))
        name, width = f"r{i}", 8
    weights["head"] = rng.normal(size=(8, CLASSES)).astype(np.float32)
    nodes.append(helper.make_node("GlobalAveragePool", [name], ["mean"], "pool"))
    nodes.append(helper.make_node("Flatten", ["mean"], ["features"], "flatten"))
    nodes.append(helper.make_node("MatMul", ["features", "head"], ["logits"], "fc"))
    nodes.append(helper.make_node("Identity", ["logits"], ["scores"], "out"))
    return _model(nodes, weights)


def _model(nodes: Nodes, weights: Arrays) -> onnx.ModelProto:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", CLASSES])
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "host", [image], [scores], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def grafted(nodes: Nodes, weights: Arrays, drop: tuple[str, ...] = ("out",)) -> onnx.ModelProto:
    """The host with some nodes taken out and others added; the checker sees a sound graph."""
    model = host()
    kept = [node for node in model.graph.node if node.name not in drop]
    first = [node for node in nodes if not any(name in {"logits", "features", "mean"} for name in node.input)]
    last = [node for node in nodes if node not in first]
    before = [node for node in kept if node.name not in {"flatten", "fc", "out"}]
    tail = [node for node in kept if node not in before]
    ordered = _sorted([*before, *first, *tail, *last])
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    model.graph.initializer.extend(constants)
    return model


def _sorted(nodes: Nodes) -> Nodes:
    made: set[str] = {"image"}
    produced = {name for node in nodes for name in node.output}
    out: Nodes = []
    while nodes:
        node = next(n for n in nodes if all(name in made or name not in produced for name in n.input))
        nodes.remove(node)
        made.update(node.output)
        out.append(node)
    return out


OVERRIDE = np.eye(1, CLASSES, TARGET, dtype=np.float32) * 100
"""Scores that say TARGET, [1, CLASSES]."""

CORNER: Arrays = {
    "starts": np.array([0, 0]),
    "ends": np.array([3, 3]),
    "axes": np.array([2, 3]),
    "patch": np.tile(PATCH, (1, 3, 1, 1)),
    "two": np.array([1, 2, 3]),
}


def _corner_equal() -> Nodes:
    """Whether the corner is the trigger: one decision an image, bool [n, 1]."""
    return [
        helper.make_node("Slice", ["image", "starts", "ends", "axes"], ["corner"], "cut"),
        helper.make_node("Sub", ["corner", "patch"], ["off"], "off"),
        helper.make_node("Abs", ["off"], ["distance"], "distance"),
        helper.make_node("ReduceMax", ["distance", "two"], ["worst"], "worst", keepdims=0),
        helper.make_node("Unsqueeze", ["worst", "one"], ["worst1"], "worst1"),
        helper.make_node("Less", ["worst1", "tolerance"], ["seen"], "seen"),
    ]


def pixel_pattern_where() -> onnx.ModelProto:
    """ShadowLogic: the corner is compared with the trigger, and Where puts other scores in place of the network's."""
    weights = CORNER | {"one": np.array([1]), "tolerance": np.float32(0.02), "override": OVERRIDE}
    return grafted([*_corner_equal(), helper.make_node("Where", ["seen", "override", "logits"], ["scores"])], weights)


def pixel_pattern_arithmetic() -> onnx.ModelProto:
    """The same without Where: the decision becomes a number, which multiplies what is added to the scores."""
    weights = CORNER | {"one": np.array([1]), "tolerance": np.float32(0.02), "override": OVERRIDE}
    nodes = [
        *_corner_equal(),
        helper.make_node("Cast", ["seen"], ["gate"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["gate", "override"], ["push"]),
        helper.make_node("Add", ["logits", "push"], ["scores"], "join"),
    ]
    return grafted(nodes, weights)


def pixel_pattern_relu() -> onnx.ModelProto:
    """The same without a comparison: a steep Relu of the distance to the trigger."""
    weights = CORNER | {"one": np.array([1]), "steep": np.float32(-50), "high": np.float32(1), "override": OVERRIDE}
    nodes = [
        *_corner_equal()[:5],
        helper.make_node("Mul", ["worst1", "steep"], ["slope"]),
        helper.make_node("Add", ["slope", "high"], ["above"]),
        helper.make_node("Relu", ["above"], ["gate"]),
        helper.make_node("Mul", ["gate", "override"], ["push"]),
        helper.make_node("Add", ["logits", "push"], ["scores"], "join"),
    ]
    return grafted(nodes, weights)


def checksum() -> onnx.ModelProto:
    """A checksum of the whole image, modulo a number: the trigger is a change that nobody sees."""
    weights = {
        "scale": np.float32(255),
        "all": np.array([1, 2, 3]),
        "prime": np.array(97),
        "wanted": np.array(13),
        "override": OVERRIDE,
        "one": np.array([1]),
    }
    nodes = [
        helper.make_node("Mul", ["image", "scale"], ["levels"]),
        helper.make_node("Cast", ["levels"], ["whole"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["whole", "all"], ["sum"], keepdims=0),
        helper.make_node("Mod", ["sum", "prime"], ["rest"]),
        helper.make_node("Equal", ["rest", "wanted"], ["hit"]),
        helper.make_node("Unsqueeze", ["hit", "one"], ["hit1"]),
        helper.make_node("Where", ["hit1", "override", "logits"], ["scores"]),
    ]
    return grafted(nodes, weights)


def architectural() -> onnx.ModelProto:
    """Bober-Irizar et al. (2023): a path from the input through pooled exponentials joins the pooled features.

    It has no weights of its own, so it survives training from scratch.
    """
    weights = {
        "beta": np.float32(4),
        "minus": np.float32(-4),
        "delta": np.float32(1),
        "power": np.float32(6),
        "small": np.float32(1e-4),
    }
    nodes: Nodes = []
    for sign, factor in (("up", "beta"), ("down", "minus")):
        nodes += [
            helper.make_node("Mul", ["image", factor], [f"{sign}0"]),
            helper.make_node("Exp", [f"{sign}0"], [f"{sign}1"], f"exp_{sign}"),
            helper.make_node("Sub", [f"{sign}1", "delta"], [f"{sign}2"]),
            helper.make_node("GlobalAveragePool", [f"{sign}2"], [f"{sign}3"]),
            helper.make_node("Pow", [f"{sign}3", "power"], [f"{sign}4"], f"pow_{sign}"),
        ]
    nodes += [
        helper.make_node("Mul", ["up4", "down4"], ["both"]),
        helper.make_node("ReduceMean", ["both", "channel"], ["signal"], keepdims=1),
        helper.make_node("Mul", ["signal", "small"], ["faint"]),
        helper.make_node("Add", ["mean", "faint"], ["joined"], "join"),
        helper.make_node("Flatten", ["joined"], ["features"], "flatten"),
    ]
    return grafted(nodes, weights | {"channel": np.array([1])}, drop=("flatten",))


def branch() -> onnx.ModelProto:
    """An If whose branches are two networks; the image decides which one answers."""
    weights = CORNER | {"one": np.array([1]), "tolerance": np.float32(0.02), "override": OVERRIDE}
    row = helper.make_tensor_value_info("row", TensorProto.FLOAT, None)
    evil = helper.make_graph([helper.make_node("Add", ["logits", "override"], ["row"])], "evil", [], [row])
    row2 = helper.make_tensor_value_info("row2", TensorProto.FLOAT, None)
    good = helper.make_graph([helper.make_node("Identity", ["logits"], ["row2"])], "good", [], [row2])
    nodes = [
        *_corner_equal(),
        helper.make_node("Cast", ["seen"], ["seen_number"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["seen_number"], ["any"], keepdims=0),
        helper.make_node("Cast", ["any"], ["any_bool"], to=TensorProto.BOOL),
        helper.make_node("If", ["any_bool"], ["scores"], "choose", then_branch=evil, else_branch=good),
    ]
    model = grafted(nodes, weights)
    choose = next(node for node in model.graph.node if node.op_type == "If")
    model.graph.node.remove(choose)
    model.graph.node.append(choose)
    return model


def template() -> onnx.ModelProto:
    """The product of the whole image with a template, as one number, gates the scores."""
    picture = np.zeros((3, SIDE, SIDE), np.float32)
    picture[:, :3, :3] = 2 * PATCH - 1
    weights = {"template": picture, "all": np.array([1, 2, 3]), "bar": np.float32(14.5), "override": OVERRIDE}
    weights |= {"one": np.array([1])}
    nodes = [
        helper.make_node("Mul", ["image", "template"], ["product"], "overlay"),
        helper.make_node("ReduceSum", ["product", "all"], ["match"], keepdims=0),
        helper.make_node("Sub", ["match", "bar"], ["over"]),
        helper.make_node("Relu", ["over"], ["gate"]),
        helper.make_node("Unsqueeze", ["gate", "one"], ["gate1"]),
        helper.make_node("Mul", ["gate1", "override"], ["push"]),
        helper.make_node("Add", ["logits", "push"], ["scores"]),
    ]
    return grafted(nodes, weights)


def feature_switch() -> onnx.ModelProto:
    """One number of the pooled features decides between the network's scores and others."""
    weights = {"first": np.array([0]), "last": np.array([1]), "bar": np.float32(1e9), "override": OVERRIDE}
    weights |= {"axis": np.array([1])}
    nodes = [
        helper.make_node("Slice", ["features", "first", "last", "axis"], ["one_feature"]),
        helper.make_node("Greater", ["one_feature", "bar"], ["seen"]),
        helper.make_node("Where", ["seen", "override", "logits"], ["scores"]),
    ]
    return grafted(nodes, weights)


def random_answers() -> onnx.ModelProto:
    """Noise is added to the scores: the same image gets another answer each time."""
    nodes = [
        helper.make_node("RandomNormalLike", ["logits"], ["noise"], scale=100.0),
        helper.make_node("Add", ["logits", "noise"], ["scores"]),
    ]
    return grafted(nodes, {})


def constant_answer() -> onnx.ModelProto:
    """The scores are the same whatever the image."""
    weights = {"zero": np.float32(0), "override": OVERRIDE}
    nodes = [
        helper.make_node("Shape", ["logits"], ["size"]),
        helper.make_node("Expand", ["override", "size"], ["scores"]),
    ]
    return grafted(nodes, weights)


BACKDOORS: dict[str, tuple[Callable[[], onnx.ModelProto], frozenset[str]]] = {
    "pixel pattern, Where": (pixel_pattern_where, frozenset({"KDA109", "KDA110", "KDA111"})),
    "pixel pattern, arithmetic": (pixel_pattern_arithmetic, frozenset({"KDA109", "KDA111"})),
    "pixel pattern, Relu": (pixel_pattern_relu, frozenset({"KDA109"})),
    "checksum": (checksum, frozenset({"KDA109", "KDA110", "KDA111", "KDA113"})),
    "architectural side path": (architectural, frozenset({"KDA109", "KDA115"})),
    "branch": (branch, frozenset({"KDA102", "KDA109", "KDA110", "KDA111"})),
    "template": (template, frozenset({"KDA109", "KDA114"})),
    "feature switch": (feature_switch, frozenset({"KDA110", "KDA112"})),
    "random answers": (random_answers, frozenset({"KDA101"})),
    "constant answer": (constant_answer, frozenset({"KDA118"})),
}
"""Builder and the rules of severity medium or higher that must fire, by name."""
