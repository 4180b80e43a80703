"""The teacher's inner features: found in the graph, read from the same run, and no reason to trust the model."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_builders import Patterns, classifier

from kdaudit import divergence
from kdaudit.admission import admit
from kdaudit.divergence import BEHAVIOUR_FEATURES, behaviour
from kdaudit.opening import open_session
from kdaudit.preprocess import Preprocess

PATTERNS = Patterns.draw()
RECIPE = "8x8x3-stretch-RGB-NCHW-unit"
INPUT = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
SCORES = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])


def network(*tail: onnx.NodeProto, scores: onnx.ValueInfoProto = SCORES) -> onnx.ModelProto:
    """A convolution with a ReLU, pooled to 6 features, and whatever comes after."""
    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.normal(0, 1, (6, 3, 3, 3)),
        "head": rng.normal(0, 1, (6, 5)),
        "bias": rng.normal(0, 1, 5),
        "wide": rng.normal(0, 1, (5, 6, 1, 1)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        *tail,
    ]
    used = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(w.astype(np.float32), k) for k, w in weights.items() if k in used]
    graph = helper.make_graph(nodes, "g", [INPUT], [scores], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


HEADS = {
    "gemm": ((helper.make_node("Gemm", ["features", "head", "bias"], ["y"]),), "features"),
    "matmul and bias": (
        (helper.make_node("MatMul", ["features", "head"], ["m"]), helper.make_node("Add", ["m", "bias"], ["y"])),
        "features",
    ),
    "softmax": (
        (helper.make_node("Gemm", ["features", "head", "bias"], ["z"]), helper.make_node("Softmax", ["z"], ["y"])),
        "features",
    ),
    "convolution": (
        (helper.make_node("Conv", ["pooled", "wide"], ["z"]), helper.make_node("Flatten", ["z"], ["y"])),
        "pooled",
    ),
}


def opened(model: onnx.ModelProto, tmp_path, **options):
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    teacher = admit(path)
    return teacher, open_session(teacher.model, teacher.signature, **options)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("confined", [False, True])
def test_the_last_linear_layer_shows_what_it_reads(head, confined, tmp_path):
    tail, name = HEADS[head]
    teacher, session = opened(network(*tail), tmp_path, confined=confined)
    assert teacher.signature.features == name
    x = np.random.default_rng(1).random((7, 3, 8, 8), dtype=np.float32)
    logits, features = session.logits_and_features(x)
    session.close()
    weight = numpy_helper.to_array(next(t for t in network(*tail).graph.initializer if t.name in ("head", "wide")))
    assert features.shape == (7, 6)
    own = features @ (weight if weight.ndim == 2 else weight[:, :, 0, 0].T)
    centred = logits - logits.mean(1, keepdims=True)
    bias = [numpy_helper.to_array(t) for t in network(*tail).graph.initializer if t.name == "bias"]
    own = own + (bias[0] if bias else 0)
    assert np.allclose(own - own.mean(1, keepdims=True), centred, atol=1e-3)


def test_no_node_is_touched_and_the_scores_stay_what_they_were(tmp_path):
    model = network(*HEADS["gemm"][0])
    teacher, session = opened(model, tmp_path)
    copy = onnx.ModelProto.FromString(teacher.model)
    assert list(copy.graph.node) == list(model.graph.node)
    assert list(copy.graph.initializer) == list(model.graph.initializer)
    x = np.random.default_rng(1).random((5, 3, 8, 8), dtype=np.float32)
    logits, _ = session.logits_and_features(x)
    assert np.array_equal(logits, session.logits(x))


def test_a_graph_that_shows_none_has_none(tmp_path):
    pooled = (
        helper.make_node("Conv", ["r", "wide"], ["z"]),
        helper.make_node("GlobalAveragePool", ["z"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    )
    teacher, session = opened(network(*pooled), tmp_path)
    assert teacher.signature.features is None
    logits, features = session.logits_and_features(np.zeros((3, 3, 8, 8), np.float32))
    assert logits.shape == (3, 5)
    assert features.shape == (3, 0)


def test_a_picture_is_no_row_of_features(tmp_path):
    """A convolution at full size before the scores: what it reads is a picture for each image."""
    scores = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 320])
    tail = (helper.make_node("Conv", ["r", "wide"], ["z"]), helper.make_node("Flatten", ["z"], ["y"]))
    teacher, session = opened(network(*tail, scores=scores), tmp_path)
    assert teacher.signature.features == "r"
    logits, features = session.logits_and_features(np.zeros((3, 3, 8, 8), np.float32))
    assert logits.shape == (3, 320)
    assert features.shape == (3, 0)


@pytest.mark.parametrize("batch", [None, 1, 4])
@pytest.mark.parametrize("head", ["logits", "probabilities", "zipmap", "half", "tall"])
def test_features_come_in_every_form_of_batch_and_head(batch, head, tmp_path):
    teacher, session = opened(classifier(PATTERNS, RECIPE, head=head, batch=batch), tmp_path)
    pixels, _ = PATTERNS.copies(11, noise=4)
    signature = session.signature
    tensor = Preprocess.parse(RECIPE, signature.input_type, len(signature.input_shape)).apply(pixels)
    logits, features = session.logits_and_features(tensor)
    assert teacher.signature.features is not None
    assert logits.shape == (11, 5)
    assert features.shape == (11, 192)
    assert np.allclose(features, tensor.reshape(11, -1), atol=1e-3)


# -- what becomes of them


def logits(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (n, 5)).astype(np.float32)


def rows(features: np.ndarray | None) -> np.ndarray:
    n = 20
    nothing = np.zeros(n)
    return behaviour(logits(n, 0), logits(n, 1), (nothing, nothing), [(logits(n, 2), logits(n, 3))], features)


def test_features_are_taken_without_their_unit_and_the_unit_beside_them():
    features = np.random.default_rng(5).gamma(1, 1, (20, 40)).astype(np.float32)
    plain, scaled, none = rows(features), rows(features * 1000), rows(None)
    assert plain.shape[1] == none.shape[1] + 41
    assert np.allclose(plain[:, :-1], scaled[:, :-1], atol=1e-4)
    assert np.allclose(scaled[:, -1] - plain[:, -1], np.log(1000), atol=1e-3)
    assert np.array_equal(rows(np.zeros((20, 0), np.float32)), none)


def test_many_features_become_few_by_the_same_directions_each_time():
    features = np.random.default_rng(5).normal(0, 1, (20, 900)).astype(np.float32)
    one = rows(features)
    assert one.shape[1] == rows(None).shape[1] + BEHAVIOUR_FEATURES + 1
    divergence.directions.cache_clear()
    assert np.array_equal(one, rows(features))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_features_that_are_no_numbers_stay_in_their_row(value):
    features = np.random.default_rng(5).normal(0, 1, (20, 40)).astype(np.float32)
    broken = features.copy()
    broken[3, 7] = value
    found = rows(broken)
    assert np.isfinite(found).all()
    keep = np.arange(20) != 3
    assert np.array_equal(found[keep], rows(features)[keep])
