"""Files that must not be read, or must not be believed: always one refusal, never another exception."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_builders import Patterns, classifier

from kdaudit.admission import admit
from kdaudit.admission.external import tensors
from kdaudit.errors import ModelRefused

PATTERNS = Patterns.draw()
RECIPE = "8x8x3-stretch-RGB-NCHW-unit"


def rule_of(path: Path) -> str:
    with pytest.raises(ModelRefused) as caught:
        admit(path)
    assert "\n" not in str(caught.value)
    return caught.value.rule


def external(folder: Path, **entries: str) -> Path:
    """A model in `folder` whose weight is in another file; entries override location, offset and length."""
    folder.mkdir(exist_ok=True, parents=True)
    model = classifier(PATTERNS, RECIPE)
    weight = model.graph.initializer[0]
    (folder / "weights.bin").write_bytes(b"\0" * 64 + weight.raw_data)
    fields = {"location": "weights.bin", "offset": "64", "length": str(len(weight.raw_data))} | entries
    outsource(weight, fields)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def outsource(tensor: onnx.TensorProto, fields: dict[str, str]) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in fields.items():
        if value:
            tensor.external_data.add(key=key, value=value)


def test_no_file(tmp_path):
    assert rule_of(tmp_path / "none.onnx") == "KDA001"
    assert rule_of(tmp_path) == "KDA001"
    assert rule_of(tmp_path / "a\0b") == "KDA001"
    os.mkfifo(tmp_path / "pipe")
    assert rule_of(tmp_path / "pipe") == "KDA001"


@pytest.mark.parametrize(
    ("data", "rule", "word"),
    [
        (b"", "KDA003", "empty"),
        (b"hello world, this is text", "KDA004", "not an ONNX file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "KDA004", "git lfs pull"),
        (b"PK\x03\x04rest", "KDA004", "zip"),
        (b"\x80\x02}q", "KDA004", "pickle"),
        (b"\x89HDF\r\n", "KDA004", "tf2onnx"),
        (b"<!DOCTYPE html>", "KDA004", "web page"),
        (b"\x08\x07", "KDA003", "truncated"),
        (b"\x08\x07\x3a\x80\x08abc", "KDA003", "1,021 bytes"),
        (b"\x3a\x00", "KDA003", "operator set"),
        (b"\xfa" * 5000, "KDA004", "not an ONNX file"),
    ],
)
def test_not_a_model(data, rule, word, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelRefused, match=word) as caught:
        admit(path)
    assert caught.value.rule == rule


def _foreign_name(model: onnx.ModelProto, what: str) -> None:
    """Give a text of the model nine letters that `broken` finds again."""
    node = model.graph.node[-1]
    if what == "attribute":
        node.attribute.add(name="NNNNNNNNN", i=1, type=onnx.AttributeProto.INT)
    elif what == "subgraph":
        inner = helper.make_graph([helper.make_node("Identity", ["NNNNNNNNN"], ["b"])], "inner", [], [])
        node.attribute.add(name="body", type=onnx.AttributeProto.GRAPH).g.CopyFrom(inner)
    elif what == "metadata":
        model.metadata_props.add(key="names", value="NNNNNNNNN")
    elif what == "function":
        model.functions.add(name="F", domain="NNNNNNNNN")
    elif what == "shape":
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "NNNNNNNNN"
    else:
        setattr(model.graph if what == "doc_string" else node, what, "NNNNNNNNN")


@pytest.mark.parametrize(
    ("what", "field"),
    [
        ("name", "NodeProto.name"), ("op_type", "NodeProto.op_type"), ("domain", "NodeProto.domain"),
        ("attribute", "AttributeProto.name"), ("subgraph", "NodeProto.input"), ("function", "FunctionProto.domain"),
        ("metadata", "StringStringEntryProto.value"), ("doc_string", "GraphProto.doc_string"),
        ("shape", "Dimension.dim_param"),
    ],
)  # fmt: skip
def test_a_text_that_is_not_utf_8_is_refused_by_the_name_of_its_field(what, field, tmp_path):
    model = classifier(PATTERNS, RECIPE)
    _foreign_name(model, what)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString().replace(b"NNNNNNNNN", b"N\xff\xfe\x80NNNNN"))
    with pytest.raises(ModelRefused, match=f"{field} is not UTF-8") as caught:
        admit(path)
    assert caught.value.rule == "KDA007"


def test_bytes_that_are_no_text_may_be_any_bytes(tmp_path):
    """Weights and string constants are bytes by ONNX's own types."""
    path = tmp_path / "model.onnx"
    model = classifier(PATTERNS, RECIPE)
    model.graph.initializer.add(name="unused", data_type=TensorProto.STRING, dims=[1], string_data=[b"\xff\xfe"])
    path.write_bytes(model.SerializeToString())
    assert "KDA103" in {finding.rule for finding in admit(path).findings}


def test_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr("kdaudit.admission.reading.MAX_MODEL_BYTES", 100)
    path = tmp_path / "model.onnx"
    path.write_bytes(classifier(PATTERNS, RECIPE).SerializeToString())
    assert rule_of(path) == "KDA002"


def test_external_data_is_taken_in(tmp_path):
    inside = tmp_path / "inside.onnx"
    inside.write_bytes(classifier(PATTERNS, RECIPE).SerializeToString())
    teacher = admit(external(tmp_path))
    assert teacher.model == admit(inside).model
    assert teacher.external == ("weights.bin",)
    folder = tmp_path / "deep"
    path = external(folder, location="parts/weights.bin")
    (folder / "parts").mkdir()
    (folder / "weights.bin").rename(folder / "parts" / "weights.bin")
    assert admit(path).model == teacher.model


@pytest.mark.parametrize(
    "location",
    [
        "/etc/passwd",
        "../outside.bin",
        "a/../../outside.bin",
        "..",
        ".",
        "a\\b",
        "weights.bin\0",
        "",
        "*/_ORT_MEM_ADDR_/*",
    ],
)
def test_external_data_elsewhere(location, tmp_path):
    (tmp_path / "outside.bin").write_bytes(b"secret" * 4000)
    assert rule_of(external(tmp_path / "model", location=location)) == "KDA005"


def test_external_data_links(tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\0" * 8000)
    folder = tmp_path / "model"
    path = external(folder)
    data = folder / "weights.bin"
    kept = data.read_bytes()
    data.unlink()
    data.symlink_to(secret)
    assert rule_of(path) == "KDA005"
    data.unlink()
    data.hardlink_to(secret)
    assert rule_of(path) == "KDA005"
    data.unlink()
    os.mkfifo(data)
    assert rule_of(path) == "KDA005"
    data.unlink()
    data.mkdir()
    assert rule_of(path) == "KDA005"
    data.rmdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "weights.bin").write_bytes(kept)
    (folder / "link").symlink_to(outside, target_is_directory=True)
    assert rule_of(external(folder, location="link/weights.bin")) == "KDA005"


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "-1"},
        {"offset": "99999999999999999999999"},
        {"offset": "65"},
        {"length": "-5"},
        {"length": "4"},
        {"length": ""},  # to the end of the file: fits only with the right offset
        {"offset": "0x40"},
    ],
)
def test_external_data_ranges(entries, tmp_path):
    path = external(tmp_path, **entries)
    if entries == {"length": ""}:
        admit(path)
    else:
        assert rule_of(path) == "KDA006"


def test_external_data_keys(tmp_path):
    assert rule_of(external(tmp_path, __class__="x")) == "KDA005"
    path = external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data.add(key="location", value="other.bin")
    path.write_bytes(model.SerializeToString())
    assert rule_of(path) == "KDA005"


def test_external_data_amplification(tmp_path, monkeypatch):
    monkeypatch.setattr("kdaudit.admission.external.MAX_MODEL_BYTES", 12_000)
    path = external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    for number in range(4):
        copy = model.graph.initializer.add()
        copy.CopyFrom(model.graph.initializer[0])
        copy.name = f"copy{number}"
    path.write_bytes(model.SerializeToString())
    assert rule_of(path) == "KDA002"


def hidden(place: str) -> onnx.ModelProto:
    """A model with an external tensor in a place that loaders forgot."""
    model = classifier(PATTERNS, RECIPE)
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), "hidden")
    outsource(tensor, {"location": "/etc/hostname"})
    indices = numpy_helper.from_array(np.array([0, 1]), "indices")
    sparse = helper.make_sparse_tensor(tensor, indices, [4])
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    if place == "sparse initializer":
        model.graph.sparse_initializer.append(sparse)
    elif place == "sparse attribute":
        model.graph.node.append(helper.make_node("Constant", [], ["c"], sparse_value=sparse))
    elif place == "attribute":
        model.graph.node.append(constant)
    elif place == "attribute list":
        node = helper.make_node("Constant", [], ["c"])
        node.attribute.append(helper.make_attribute("values", [tensor]))
        model.graph.node.append(node)
    elif place == "subgraph":
        inner = helper.make_graph([], "inner", [], [], [tensor])
        node = helper.make_node("If", ["c"], ["d"], then_branch=inner, else_branch=inner)
        model.graph.node.append(node)
    elif place == "function":
        opset = [helper.make_opsetid("", 17)]
        model.functions.append(helper.make_function("local", "f", [], ["c"], [constant], opset))
    elif place == "training":
        model.training_info.add().algorithm.initializer.append(tensor)
    return model


@pytest.mark.parametrize(
    "place",
    [
        "sparse initializer",
        "sparse attribute",
        "attribute",
        "attribute list",
        "subgraph",
        "function",
        "training",
    ],
)
def test_external_data_in_hiding(place, tmp_path):
    model = hidden(place)
    assert "hidden" in {tensor.name for tensor in tensors(model)}
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert rule_of(path) == "KDA005"


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory) -> tuple[bytes, Path]:
    """A real model whose last field is needed, and a place to write its pieces."""
    data = (shared / "models" / "real" / "winml_mnist_26454.onnx").read_bytes()
    return data, tmp_path_factory.mktemp("cut") / "model.onnx"


@settings(max_examples=300, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_anywhere(real, share):
    data, path = real
    path.write_bytes(data[: int(share * len(data))])
    assert rule_of(path) in {"KDA003", "KDA004"}


@settings(max_examples=60, deadline=None)
@given(last=st.integers(1, 60))
def test_truncated_near_the_end(real, last):
    data, path = real
    path.write_bytes(data[:-last])
    assert rule_of(path).startswith("KDA")


@settings(max_examples=300, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_one_wrong_byte_never_crashes(real, position, value):
    data, path = real
    changed = bytearray(data)
    changed[int(position * len(data))] = value
    path.write_bytes(changed)
    try:
        admit(path)
    except ModelRefused as error:
        assert "\n" not in str(error)  # noqa: PT017
