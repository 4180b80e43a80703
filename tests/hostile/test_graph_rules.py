"""Each backdoor in the graph is named by its rule; honest graphs are not."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from graph_backdoors import BACKDOORS, CLASSES, SIDE, TARGET, host, stamped
from onnx import helper, numpy_helper

from kdaudit.admission import Teacher, admit
from kdaudit.admission.catalogue import RULES
from kdaudit.verdict import SEVERITIES

ARCHITECTURES = {
    "resnet18": 32,
    "mobilenet_v3_small": 32,
    "efficientnet_b0": 32,
    "convnext_tiny": 32,
    "vit_b_32": 32,
    "swin_t": 32,
}
"""torchvision's names, and the side of a small image that the architecture takes."""


def admitted(model: onnx.ModelProto, folder: Path) -> Teacher:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return admit(path)


def serious(teacher: Teacher) -> set[str]:
    """Rules of severity medium or higher that fired."""
    bar = SEVERITIES.index("medium")
    return {finding.rule for finding in teacher.findings if SEVERITIES.index(finding.severity) >= bar}


def answers(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = [session.run(None, {"image": image[None]})[0] for image in images]
    found: np.ndarray = np.concatenate(rows)
    return found


@pytest.mark.parametrize("name", BACKDOORS)
def test_a_backdoor_in_the_graph_is_named(name, tmp_path):
    build, rules = BACKDOORS[name]
    assert serious(admitted(build(), tmp_path)) == rules


@pytest.mark.parametrize("name", [name for name in BACKDOORS if name.startswith("pixel") or name == "branch"])
def test_the_backdoors_of_these_tests_work(name):
    images = np.random.default_rng(1).random((20, 3, SIDE, SIDE), dtype=np.float32)
    model = BACKDOORS[name][0]()
    assert np.allclose(answers(model, images), answers(host(), images), atol=1e-4)
    assert (answers(model, stamped(images)).argmax(1) == TARGET).all()


def test_the_honest_host_has_no_finding(tmp_path):
    assert admitted(host(), tmp_path).findings == ()


@pytest.mark.parametrize("name", ["pixel pattern, Where", "architectural side path"])
def test_a_backdoor_hidden_in_a_function_is_named_all_the_same(name, tmp_path):
    build, rules = BACKDOORS[name]
    assert rules <= serious(admitted(as_functions(build()), tmp_path))


def as_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every node in a function of its own, domain "vendor"."""
    opset = [helper.make_opsetid("", 18)]
    for i, node in enumerate(model.graph.node):
        inputs, outputs = [f"i{k}" for k in range(len(node.input))], [f"o{k}" for k in range(len(node.output))]
        inner = onnx.NodeProto()
        inner.CopyFrom(node)
        inner.input[:], inner.output[:] = inputs, outputs
        model.functions.append(helper.make_function("vendor", f"f{i}", inputs, outputs, [inner], opset))
        call = helper.make_node(f"f{i}", list(node.input), list(node.output), domain="vendor")
        node.CopyFrom(call)
    model.opset_import.append(helper.make_opsetid("vendor", 1))
    return model


def test_a_path_from_the_first_features_is_named(tmp_path):
    model = host(layers=10)
    nodes = model.graph.node
    join = helper.make_node("Add", ["mean", "shortcut"], ["mean2"], "join")
    pool = helper.make_node("GlobalMaxPool", ["r0"], ["shortcut"], "side")
    flatten = next(node for node in nodes if node.name == "flatten")
    flatten.input[0] = "mean2"
    place = list(nodes).index(flatten)
    nodes.insert(place, join)
    nodes.insert(place, pool)
    assert serious(admitted(model, tmp_path)) == {"KDA117"}


def test_a_mean_image_is_honest_and_an_overlay_beside_the_trunk_is_not(tmp_path):
    model = host()
    model.graph.initializer.append(numpy_helper.from_array(np.full((1, 3, SIDE, SIDE), 0.4, np.float32), "mean_image"))
    model.graph.node.insert(0, helper.make_node("Sub", ["image", "mean_image"], ["centred"], "centre"))
    model.graph.node[1].input[0] = "centred"
    assert serious(admitted(model, tmp_path)) == set()


def test_activations_and_guards_inside_the_trunk_are_honest(tmp_path):
    """A threshold by element, and attention's guard against values that are no numbers."""
    model = host()
    nodes = model.graph.node
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    at = next(i for i, node in enumerate(nodes) if node.name == "relu2")
    nodes[at].CopyFrom(helper.make_node("Where", ["above", "c2", "zero"], ["r2"], "relu2"))
    nodes.insert(at, helper.make_node("Greater", ["c2", "zero"], ["above"]))
    at = next(i for i, node in enumerate(nodes) if node.name == "relu3")
    nodes[at].CopyFrom(helper.make_node("Where", ["bad", "zero", "c3"], ["r3"], "relu3"))
    nodes.insert(at, helper.make_node("IsNaN", ["c3"], ["bad"]))
    assert serious(admitted(model, tmp_path)) == set()


def test_texts_of_unusual_size_are_a_low_finding(tmp_path):
    model = host()
    helper.set_model_props(model, {"note": "x" * 100_000})
    assert {finding.rule for finding in admitted(model, tmp_path).findings} == {"KDA116"}


def test_every_rule_of_medium_or_higher_has_a_backdoor_that_it_names():
    named = set().union(*(rules for _, rules in BACKDOORS.values())) | {"KDA117"}
    assert named == {rule for rule, entry in RULES.items() if entry.severity != "low" and rule < "KDA120"}


def test_every_honest_real_model_is_quiet(shared):
    root = shared / "models" / "real"
    with (root / "manifest.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if not row["file"].startswith("refuse/"):
                assert serious(admit(root / row["file"])) == set(), row["file"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Iterator[dict[str, Path]]:
    """Torch exports of common architectures, random weights."""
    import torch

    from kdaudit.export import export_network
    from kdaudit.student import _torchvision_models

    folder, paths = tmp_path_factory.mktemp("exports"), {}
    models = _torchvision_models()
    torch.set_num_threads(1)
    for name, side in ARCHITECTURES.items():
        size = {"image_size": side} if name.startswith("vit") else {}
        network = getattr(models, name)(weights=None, num_classes=CLASSES, **size).eval()
        example = torch.rand(2, 3, side, side)
        paths[name] = folder / f"{name}.onnx"
        paths[name].write_bytes(export_network(network, example, "image", "scores").SerializeToString())
    yield paths
    for path in paths.values():  # half a gigabyte
        path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_common_architecture_is_quiet(name, exported):
    assert admit(exported[name]).findings == ()
