"""How much arithmetic a model takes for one image, by its graph."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_builders import Patterns, classifier

from kdaudit.admission import OPEN_SIDE, admit
from kdaudit.student import StudentSpec, build, multiplications


def saved(tmp_path, nodes, weights, image):
    """A model of the nodes, from `image` to `scores` [N, 5]."""
    values = [helper.make_tensor_value_info("image", TensorProto.FLOAT, image)]
    results = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [image[0], 5])]
    constants = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()]
    graph = helper.make_graph(nodes, "g", values, results, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return admit(path)


def network(tmp_path, batch, side):
    """A convolution with stride in two groups, one that is transposed, a mean, two products."""
    nodes = [
        helper.make_node("Conv", ["image", "a"], ["x"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["x", "b"], ["y"], group=2, pads=[1, 1, 1, 1]),
        helper.make_node("ConvTranspose", ["y", "c"], ["z"], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["z"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "d"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "e"], ["scores"], transB=1),
    ]
    weights = {"a": (8, 3, 3, 3), "b": (8, 4, 3, 3), "c": (8, 6, 2, 2), "d": (6, 7), "e": (5, 7)}
    return saved(tmp_path, nodes, weights, [batch, 3, side, side])


def counted(side):
    half = side // 2
    return half * half * (8 * 3 * 9 + 8 * 4 * 9 + 8 * 6 * 4) + 6 * 7 + 7 * 5


@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_convolutions_and_products_are_counted_for_one_image(tmp_path, batch):
    teacher = network(tmp_path, batch, 32)
    assert teacher.multiplications == counted(32)
    assert teacher.cost(99, 99) == counted(32)  # it takes no other size


def test_of_open_sizes_the_cost_follows_the_area(tmp_path):
    teacher = network(tmp_path, "N", "side")
    assert teacher.multiplications == counted(OPEN_SIDE)
    assert teacher.cost(64, 96) == pytest.approx(counted(OPEN_SIDE) * 64 * 96 / OPEN_SIDE**2, abs=1)


def test_what_the_graph_does_not_show_is_not_counted(tmp_path):
    """A reshape by numbers that are computed: nobody knows what the product after it takes."""
    nodes = [
        helper.make_node("NonZero", ["image"], ["where"]),
        helper.make_node("ReduceMax", ["where"], ["most"], keepdims=0),
        helper.make_node("Reshape", ["most", "one"], ["size"]),
        helper.make_node("Concat", ["first", "size"], ["shape"], axis=0),
        helper.make_node("Reshape", ["image", "shape"], ["unknown"]),
        helper.make_node("MatMul", ["unknown", "w"], ["scores"]),
    ]
    constants = [("one", [1]), ("first", [-1])]
    nodes = [helper.make_node("Constant", [], [name], value_ints=value) for name, value in constants] + nodes
    assert saved(tmp_path, nodes, {"w": (48, 5)}, ["N", 3, 4, 4]).multiplications == 0


def test_a_small_linear_classifier(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(classifier(Patterns.draw(), "8x8x3-stretch-RGB-NCHW-unit").SerializeToString())
    assert admit(path).multiplications == 8 * 8 * 3 * 5


@pytest.mark.parametrize(("side", "channels", "classes"), [(8, 1, 10), (32, 3, 43), (96, 3, 10)])
def test_a_controls_are_those_that_torch_counts(side, channels, classes):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    spec = StudentSpec("residual", channels, side, side, classes, (0.5,) * channels, (0.25,) * channels)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        build(spec, 0).eval()(torch.zeros(1, channels, side, side))
    assert multiplications(spec) == counter.get_total_flops() // 2
