"""What stands before and behind the two networks, node by node.

Before them pixels become a tensor as `kdaudit.preprocess` does it, behind them answers become columns as
`kdaudit.divergence` does it. Only operators that mean the same in every opset from 11 on are used, so that the graph
keeps the teacher's opset: sums are products with a column of ones, since the Reduce operators have changed their form
twice. All that follows the networks is float64, as in `kdaudit.divergence`, and leaves as float32.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdaudit.divergence import BEHAVIOUR_FEATURES, BEHAVIOUR_LOGITS, FAINT, LEAST, PROBABILITY_FLOOR, Column, directions
from kdaudit.fusion.blueprint import Blueprint
from kdaudit.preprocess import Preprocess
from kdaudit.signature import OutputKind

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto


class Sheet:
    """Nodes and constants in the order in which they are written, under names of our own.

    Attributes:
        nodes: so far.
        constants: so far.
    """

    def __init__(self, prefix: str) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._prefix = prefix

    def put(self, operator: str, *inputs: str | NDArray[Any], out: str | None = None, **attributes: Any) -> str:
        """Write a node.

        Args:
            operator: of the default domain.
            inputs: tensors by name; arrays become constants.
            out: name of its output; None: a fresh one.
            attributes: of the node.

        Returns:
            The name of its output.
        """
        from onnx import helper, numpy_helper

        names = []
        for given in inputs:
            if isinstance(given, str):
                names.append(given)
            else:
                names.append(f"{self._prefix}constant{len(self.constants)}")
                self.constants.append(numpy_helper.from_array(given, names[-1]))
        out = out or f"{self._prefix}value{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(operator, names, [out], f"{self._prefix}node{len(self.nodes)}", **attributes)
        )
        return out

    def cast(self, tensor: str, kind: str) -> str:
        """Write a conversion to a numpy element type."""
        from onnx import helper

        return self.put("Cast", tensor, to=helper.np_dtype_to_tensor_dtype(np.dtype(kind)))


def feed(sheet: Sheet, blueprint: Blueprint, *inputs: str) -> None:
    """From the graph's pixels to each network's input tensor: `Preprocess.apply`, the same steps in the same types."""
    preprocess = blueprint.preprocess
    geometry = preprocess.geometry
    tensor = blueprint.pixels
    if preprocess.dtype != "uint8":
        mean, std = (
            np.broadcast_to(np.asarray(v, np.float32), geometry.channels)
            for v in (preprocess.scale.mean, preprocess.scale.std)
        )
        tensor = sheet.put("Mul", sheet.put("Sub", sheet.cast(tensor, "float32"), mean), np.float32(1) / std)
    tensor = arranged(sheet, tensor, preprocess)
    for name in inputs:
        sheet.put("Identity", tensor, out=name)


def arranged(sheet: Sheet, tensor: str, preprocess: Preprocess) -> str:
    """Scaled pixels [n, H, W, C], RGB, as the model takes them: channel order, layout, element type."""
    geometry = preprocess.geometry
    if preprocess.order == "BGR":
        tensor = sheet.put("Gather", tensor, np.arange(geometry.channels)[::-1].copy(), axis=3)
    if preprocess.layout in ("NCHW", "flatCHW"):
        tensor = sheet.put("Transpose", tensor, perm=[0, 3, 1, 2])
    if preprocess.layout in ("flat", "flatCHW"):
        size = geometry.height * geometry.width * geometry.channels
        tensor = sheet.put("Reshape", tensor, np.array([0, size, *(1,) * (preprocess.ranks - 2)], np.int64))
    return sheet.cast(tensor, "float16") if preprocess.dtype == "float16" else tensor


def head(sheet: Sheet, blueprint: Blueprint) -> None:
    """From both networks' answers to the graph's rows: `divergence.answers`, then `divergence.behaviour`."""
    from onnx import TensorProto

    k = blueprint.classes
    ones = np.ones((k, 1))
    networks = ((blueprint.teacher, ""), (blueprint.control, blueprint.own))
    known, control = (_logits(sheet, prefix + one.output_name, one.output_kind, k) for one, prefix in networks)
    teacher, student, finite = _finite(sheet, known, control, ones)
    log_t, log_s = (sheet.put("LogSoftmax", z, axis=1) for z in (teacher, student))
    top_t, top_s = (sheet.put("ArgMax", z, axis=1, keepdims=1) for z in (log_t, log_s))
    at_t, at_s, there = (
        sheet.put("GatherElements", z, top, axis=1) for z, top in ((log_t, top_t), (log_s, top_s), (log_s, top_t))
    )
    js = _jensen_shannon(sheet, log_t, log_s, ones)
    columns = [sheet.cast(top_t, "float64"), sheet.cast(top_s, "float64"), sheet.put("Exp", at_t)]
    columns += [sheet.put("Exp", at_s), sheet.put("Sub", at_t, there), js, sheet.cast(finite, "float64")]
    for z in (log_t, log_s):
        columns.append(_few(sheet, sheet.put("Max", z, np.array(LEAST)), k, BEHAVIOUR_LOGITS))
    columns.append(sheet.put("Log", sheet.put("Add", js, np.array(FAINT))))
    if blueprint.teacher.features is not None:
        columns += _features(sheet, blueprint.teacher.features, blueprint.width)
    rows = sheet.put("Concat", *columns, axis=1)
    sheet.put("Cast", rows, out=blueprint.rows, to=TensorProto.FLOAT)


def _logits(sheet: Sheet, name: str, kind: OutputKind, k: int) -> tuple[str, str]:
    """A network's scores [n, K] as they are, and as logits, float64: `Session.logits`."""
    scores = sheet.put("Reshape", sheet.cast(name, "float32"), np.array([-1, k], np.int64))
    logits = scores
    if kind == "probabilities":
        floored = sheet.put("Max", scores, np.array(PROBABILITY_FLOOR, np.float32))
        total = sheet.put("MatMul", floored, np.ones((k, 1), np.float32))
        logits = sheet.put("Log", sheet.put("Div", floored, total))
    return sheet.cast(scores, "float64"), sheet.cast(logits, "float64")


def _finite(sheet: Sheet, teacher: tuple[str, str], student: tuple[str, str], ones: Column) -> tuple[str, str, str]:
    """Both networks' logits with noughts in rows where one of the two is not finite, and which rows are, [n, 1].

    Nought times a number is nought, and times anything else it is no number: so the sum of a row's noughts tells. The
    scores are asked as well as the logits, because a floor swallows what is no number.
    """
    nought = np.array(0.0)
    noughts = [sheet.put("Mul", tensor, nought) for tensor in (*teacher, *student)]
    row = sheet.put("Add", sheet.put("Add", *noughts[:2]), sheet.put("Add", *noughts[2:]))
    finite = sheet.put("Equal", sheet.put("MatMul", row, ones), nought)
    known, control = (sheet.put("Where", finite, logits, nought) for logits in (teacher[1], student[1]))
    return known, control, finite


def _jensen_shannon(sheet: Sheet, log_t: str, log_s: str, ones: Column) -> str:
    """Of two arrays of log-probabilities [n, K], [n, 1]."""
    apart = sheet.put("Abs", sheet.put("Sub", log_t, log_s))
    tail = sheet.put("Log", sheet.put("Add", sheet.put("Exp", sheet.put("Neg", apart)), np.array(1.0)))
    log_m = sheet.put("Sub", sheet.put("Add", sheet.put("Max", log_t, log_s), tail), np.array(np.log(2.0)))
    parts = [sheet.put("Mul", sheet.put("Exp", z), sheet.put("Sub", z, log_m)) for z in (log_t, log_s)]
    js = sheet.put("MatMul", sheet.put("Add", *parts), ones / 2)
    return _within(sheet, js, 0.0, np.log(2.0))


def _features(sheet: Sheet, name: str, width: int) -> list[str]:
    """Few of the features, at mean square one, and the logarithm of their size; what is no number is nought."""
    features = sheet.cast(sheet.put("Reshape", name, np.array([-1, width], np.int64)), "float32")
    features = sheet.cast(features, "float64")
    nought = np.array(0.0)
    number = sheet.put("Equal", sheet.put("Mul", features, nought), nought)
    sound = sheet.put("Where", number, features, nought)
    square = sheet.put("MatMul", sheet.put("Mul", sound, sound), np.full((width, 1), 1 / width))
    size = sheet.put("Add", sheet.put("Sqrt", square), np.array(1e-30))
    few = _few(sheet, sheet.put("Div", sound, size), width, BEHAVIOUR_FEATURES)
    return [few, _within(sheet, sheet.put("Log", size), -30.0, 30.0)]


def _few(sheet: Sheet, rows: str, width: int, most: int) -> str:
    """At most so many columns, as `kdaudit.divergence` projects them."""
    if width <= most:
        return rows
    mean = sheet.put("MatMul", rows, np.full((width, 1), 1 / width))
    return sheet.put("MatMul", sheet.put("Sub", rows, mean), directions(width, most))


def _within(sheet: Sheet, tensor: str, low: float, high: float) -> str:
    return sheet.put("Min", sheet.put("Max", tensor, np.array(low)), np.array(high))
