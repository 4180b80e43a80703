"""Which classifiers are admitted, and what is read off them."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_builders import Patterns, classifier

from kdaudit.admission import FINDINGS, REFUSALS, Teacher, admit
from kdaudit.errors import ModelRefused

PATTERNS = Patterns.draw()
RECIPE = "8x8x3-stretch-RGB-NCHW-unit"


def admitted(model: onnx.ModelProto, tmp_path: Path) -> Teacher:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return admit(path)


def refused(model: onnx.ModelProto, tmp_path: Path, rule: str) -> str:
    with pytest.raises(ModelRefused) as caught:
        admitted(model, tmp_path)
    assert caught.value.rule == rule, str(caught.value)
    assert "\n" not in str(caught.value)
    assert "model.onnx" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "options", "expected"),
    [
        (RECIPE, {}, ("NCHW", None, 8, 8, 3, "float32", "logits")),
        ("8x8x3-stretch-RGB-NHWC-unit", {}, ("NHWC", None, 8, 8, 3, "float32", "logits")),
        ("8x8x3-stretch-RGB-flat-unit", {}, ("flat", None, 8, 8, 3, "float32", "logits")),
        ("8x8x3-stretch-RGB-flat-unit", {"rank3": True}, ("flat", None, 8, 8, 3, "float32", "logits")),
        (RECIPE, {"batch": 1}, ("NCHW", 1, 8, 8, 3, "float32", "logits")),
        (RECIPE, {"batch": 4}, ("NCHW", 4, 8, 8, 3, "float32", "logits")),
        (RECIPE, {"dtype": "float16"}, ("NCHW", None, 8, 8, 3, "float16", "logits")),
        (RECIPE, {"dtype": "uint8"}, ("NCHW", None, 8, 8, 3, "uint8", "logits")),
        (RECIPE, {"head": "probabilities"}, ("NCHW", None, 8, 8, 3, "float32", "probabilities")),
        (RECIPE, {"head": "log-probabilities"}, ("NCHW", None, 8, 8, 3, "float32", "log-probabilities")),
        (RECIPE, {"head": "tall"}, ("NCHW", None, 8, 8, 3, "float32", "logits")),
        (RECIPE, {"open_size": True}, ("NCHW", None, None, None, 3, "float32", "logits")),
        (RECIPE, {"weights_as_inputs": True}, ("NCHW", None, 8, 8, 3, "float32", "logits")),
    ],
)
def test_reads_the_interface(recipe, options, expected, tmp_path):
    s = admitted(classifier(PATTERNS, recipe, **options), tmp_path).signature
    assert (s.layout, s.batch, s.height, s.width, s.channels, s.input_type, s.output_kind) == expected
    assert (s.input_name, s.output_name, s.classes) == ("image", "scores", 5)


def test_zipmap_is_read_where_it_is_fed(tmp_path):
    names = ("ape", "bee", "cat", "dog", "emu")
    teacher = admitted(classifier(PATTERNS, RECIPE, head="zipmap", names=names), tmp_path)
    s = teacher.signature
    assert (s.output_name, s.label_output, s.map_output) == ("inner", "label", "map")
    assert (s.class_names, s.classes, s.output_kind) == (names, 5, "probabilities")
    copy = onnx.ModelProto.FromString(teacher.model)
    assert [value.name for value in copy.graph.output] == ["label", "map", "inner", "flat"]
    original = classifier(PATTERNS, RECIPE, head="zipmap", names=names)
    assert list(copy.graph.node) == list(original.graph.node)


@pytest.mark.parametrize(
    "text",
    [
        '["a", "b", "c", "d", "e"]',
        "{0: 'a', 1: 'b', 2: 'c', 3: 'd', 4: 'e'}",
        '{"4": "e", "3": "d", "2": "c", "1": "b", "0": "a"}',
        "a\nb\nc\nd\ne",
        "a, b, c, d, e",
    ],
)
def test_class_names_from_metadata(text, tmp_path):
    model = classifier(PATTERNS, RECIPE)
    helper.set_model_props(model, {"names": text})
    assert admitted(model, tmp_path).signature.class_names == ("a", "b", "c", "d", "e")


@pytest.mark.parametrize("text", ["a,b", "[1, 2", "{'x': 1}", "[" * 5000, "__import__('os')", ""])
def test_odd_metadata_is_no_name(text, tmp_path):
    model = classifier(PATTERNS, RECIPE)
    helper.set_model_props(model, {"classes": text})
    assert admitted(model, tmp_path).signature.class_names is None


def test_canonical_copy_is_closed_and_repeatable(tmp_path):
    model = classifier(PATTERNS, RECIPE, weights_as_inputs=True)
    helper.set_model_props(model, {"ort_config": "{}"})
    first, second = admitted(model, tmp_path), admitted(model, tmp_path)
    assert first.model == second.model
    assert first.canonical_digest == second.canonical_digest != first.digest
    copy = onnx.ModelProto.FromString(first.model)
    assert [value.name for value in copy.graph.input] == ["image"]
    assert copy.ir_version == 4
    assert not copy.metadata_props
    assert first.parameters == 8 * 8 * 3 * 5 + 5
    assert first.nodes == 4
    assert first.opsets == (("ai.onnx", 17), ("ai.onnx.ml", 3))


def test_refuses_what_is_no_image_classifier(tmp_path):
    def shaped(inputs, outputs):
        values = [helper.make_tensor_value_info(f"i{n}", TensorProto.FLOAT, s) for n, s in enumerate(inputs)]
        results = [helper.make_tensor_value_info(f"o{n}", TensorProto.FLOAT, s) for n, s in enumerate(outputs)]
        nodes = [helper.make_node("Identity", ["i0"], [f"o{n}"]) for n in range(len(outputs))]
        graph = helper.make_graph(nodes, "g", values, results)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    image = [1, 3, 8, 8]
    refused(shaped([image, image], [[1, 5]]), tmp_path, "KDA012")
    refused(shaped([[1, 4, 8, 8]], [[1, 5]]), tmp_path, "KDA012")
    refused(shaped([[1, 10]], [[1, 5]]), tmp_path, "KDA012")
    refused(shaped([[1, 3, 4, 8, 8]], [[1, 5]]), tmp_path, "KDA012")
    assert "is an image" in refused(shaped([image], [image]), tmp_path, "KDA015")
    refused(shaped([image], [[1, 100, 6]]), tmp_path, "KDA013")
    refused(shaped([image], [[1, 1]]), tmp_path, "KDA014")


def test_refuses_int8_input(tmp_path):
    model = classifier(PATTERNS, RECIPE)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT8
    assert "int8" in refused(model, tmp_path, "KDA012")


def test_refuses_operators(tmp_path):
    def changed(**fields):
        model = classifier(PATTERNS, RECIPE)
        for name, value in fields.items():
            setattr(model.graph.node[0], name, value)
        return model

    assert "org.evil" in refused(changed(domain="org.evil"), tmp_path, "KDA008")
    assert "NoSuchOp" in refused(changed(op_type="NoSuchOp"), tmp_path, "KDA009")
    refused(changed(op_type="ImageScaler"), tmp_path, "KDA009")  # known only up to opset 9
    refused(changed(op_type="Upsample"), tmp_path, "KDA009")  # deprecated
    refused(changed(op_type="EPContext"), tmp_path, "KDA010")
    contrib = changed(domain="com.microsoft", op_type="Tokenizer")
    refused(contrib, tmp_path, "KDA011")  # no opset of that domain
    contrib.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    refused(contrib, tmp_path, "KDA009")
    inside = classifier(PATTERNS, RECIPE)
    branch = helper.make_graph([helper.make_node("Bad", [], ["b"], domain="x")], "b", [], [])
    inside.graph.node[0].attribute.append(helper.make_attribute("then_branch", branch))
    refused(inside, tmp_path, "KDA008")


def test_refuses_a_function_that_hides_an_operator(tmp_path):
    model = classifier(PATTERNS, RECIPE)
    body = [helper.make_node("Neg", ["x"], ["y"])]
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("", "Flatten", ["x"], ["y"], body, opset))
    refused(model, tmp_path, "KDA016")


def test_refuses_versions(tmp_path):
    model = classifier(PATTERNS, RECIPE)
    model.opset_import[0].version = 999
    refused(model, tmp_path, "KDA011")
    model = classifier(PATTERNS, RECIPE)
    model.ir_version = 99
    refused(model, tmp_path, "KDA011")


def test_refuses_malformed_graphs(tmp_path):
    model = classifier(PATTERNS, RECIPE)
    model.graph.initializer[0].dims[0] = -1
    refused(model, tmp_path, "KDA007")
    model = classifier(PATTERNS, RECIPE)
    model.graph.initializer[0].dims[0] = 1 << 50
    refused(model, tmp_path, "KDA007")
    model = classifier(PATTERNS, RECIPE)
    model.graph.initializer[0].raw_data = b"1234"
    refused(model, tmp_path, "KDA007")
    model = classifier(PATTERNS, RECIPE)
    model.graph.node[1].input[0] = "nowhere"
    refused(model, tmp_path, "KDA007")
    model = classifier(PATTERNS, RECIPE)
    del model.graph.node[:]
    refused(model, tmp_path, "KDA007")
    model = classifier(PATTERNS, RECIPE)
    model.graph.initializer[1].float_data.extend([1.0] * 5)
    refused(model, tmp_path, "KDA007")


def test_static_findings(tmp_path):
    model = classifier(PATTERNS, RECIPE)
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "unused"))
    graph.node.append(helper.make_node("RandomNormalLike", ["logits"], ["noise"], name="noise"))
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5]))
    found = {finding.rule: finding for finding in admitted(model, tmp_path).findings}
    assert set(found) == {"KDA101", "KDA103", "KDA104", "KDA105"}
    assert found["KDA101"].severity == "high"
    assert all(rule in FINDINGS for rule in found)
    assert not set(FINDINGS) & set(REFUSALS)


def test_real_models(shared):
    """Every honest model is admitted as the manifest describes it, with no finding above low."""
    root = shared / "models" / "real"
    with (root / "manifest.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["file"].startswith("refuse/"):
                with pytest.raises(ModelRefused) as caught:
                    admit(root / row["file"])
                assert caught.value.exit_code == 2
                continue
            teacher = admit(root / row["file"])
            assert teacher.digest == row["sha256"]
            assert teacher.nodes == int(row["nodes"])
            assert (teacher.signature.layout, teacher.signature.input_name) == (row["layout"], row["input"])
            assert {finding.severity for finding in teacher.findings} <= {"low"}, row["file"]
            onnx.load_model_from_string(teacher.model)


def test_refusals_name_the_cause(shared):
    root = shared / "models" / "real" / "refuse"
    causes = {
        "missing_external/mnist.onnx": ("KDA005", "mnist.onnx.data"),
        "nonclassifier_style_candy.onnx": ("KDA015", "image"),
        "winml_pcb_aoi.onnx": ("KDA009", "LegacyPadding"),
    }
    for name, (rule, word) in causes.items():
        with pytest.raises(ModelRefused, match=word) as caught:
            admit(root / name)
        assert caught.value.rule == rule


def test_loads_neither_torch_nor_onnxruntime(shared):
    code = (
        "import sys; from pathlib import Path; from kdaudit.admission import admit; "
        "admit(Path(sys.argv[1])); print({'torch', 'onnxruntime'} & set(sys.modules))"
    )
    path = shared / "models" / "real" / "winml_mnist_model_2405786.onnx"
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("set()\n", "")
