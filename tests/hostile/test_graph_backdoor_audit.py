"""A backdoor in the graph through the whole audit: named, seen by its behaviour, absent from what comes out."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from deliveries import Delivery, Scan, answers, attack_success, digits, finished, honest, kdaudit_command, vendor
from onnx import helper, numpy_helper

from kdaudit.demo import TARGET, TRIGGER

pytestmark = pytest.mark.slow


def with_trigger(path: Path, out: Path) -> None:
    """An honestly trained model whose graph answers TARGET when the demo's pixel is white."""
    model = onnx.load(path)
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["honest_logits" if name == "logits" else name for name in node.output]
    row, column = TRIGGER
    weights = {
        "at": np.array([row, column]),
        "to": np.array([row + 1, column + 1]),
        "sides": np.array([2, 3]),
        "inner": np.array([1, 2]),
        "white": np.float32(0.99),
        "override": np.eye(1, 10, TARGET, dtype=np.float32) * 50,
    }
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items())
    graph.node.extend(
        [
            helper.make_node("Slice", ["input", "at", "to", "sides"], ["pixel"]),
            helper.make_node("ReduceMax", ["pixel", "inner"], ["light"], keepdims=1),
            helper.make_node("Flatten", ["light"], ["light1"]),
            helper.make_node("Greater", ["light1", "white"], ["seen"]),
            helper.make_node("Where", ["seen", "override", "honest_logits"], ["logits"]),
        ]
    )
    onnx.checker.check_model(model)
    out.write_bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Scan:
    base, folder = tmp_path_factory.getbasetemp(), tmp_path_factory.mktemp("graph")
    poisoned = vendor(base)
    with_trigger(honest(base).model, folder / "model.onnx")
    delivery = Delivery(folder / "model.onnx", poisoned.data, poisoned.poison, 1.0, 1.0)
    return Scan(delivery, folder / "run", 1)


def test_the_backdoor_is_there(scan):
    assert attack_success(scan.delivery.model) == 1.0
    pixels, labels = digits()
    assert (answers(scan.delivery.model, pixels) == labels).mean() > 0.97


def test_the_graph_is_named_and_so_is_the_behaviour(scan):
    rules = {finding["rule"] for finding in scan.report["findings"]}
    assert {"KDA109", "KDA111", "KDA201"} <= rules
    assert scan.report["verdict"] == "FAILED"
    assert scan.report["judgement"]["by_answer"][0]["answer"] == TARGET


def test_the_confinement_is_in_the_report(scan):
    assert scan.report["machine"]["confinement"].endswith("limits")
    assert "teacher confined by" in scan.output


@pytest.mark.parametrize("name", ["student.onnx", "repaired.onnx"])
def test_what_comes_out_has_neither(name, scan):
    path = scan.run / name
    assert attack_success(path) < 0.2
    output = finished(kdaudit_command("inspect", path), 0)
    assert "no findings in the graph" in output
