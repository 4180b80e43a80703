"""A control on a backbone: however that is fed, its features are what torch computes, and a head learns from them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from deliveries import STEPS, kdaudit_command, vendor
from hypothesis import given, settings
from hypothesis import strategies as st
from test_export import FORMS, Form, H, K, Small, W, form, pictures
from torch import Tensor, nn

from kdaudit import showings
from kdaudit.admission import Teacher, admit
from kdaudit.backbone import Backbone, check_backbone, trunk_of
from kdaudit.errors import Inconclusive, UsageError
from kdaudit.export import export_student
from kdaudit.grafting import cut, parted, resampling
from kdaudit.machine import Placement
from kdaudit.preprocess import Preprocess
from kdaudit.sample import Geometry
from kdaudit.student import Head, Headed, headed
from kdaudit.tuning import Kept, tune
from kdaudit.views import to_planes

torch.set_num_threads(1)

TALL, WIDE = 12, 12
"""The backbone's own size, square because a flat input must be; the teacher's is 8 x 6."""


class Trusted(nn.Module):
    """Features that depend on place and channel, and a last layer that the trunk must not need."""

    def __init__(self, channels: int = 3, *, maps: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU())
        size = 8 * TALL * WIDE // 4
        self.last = nn.Conv2d(8, 7, (TALL // 2, WIDE // 2)) if maps else nn.Linear(size, 7)
        self.maps = maps
        self.eval()

    def features(self, x: Tensor) -> Tensor:
        return self.first(x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        found = self.first(x)
        return self.last(found).flatten(1) if self.maps else self.last(found.flatten(1))


def trusted(folder: Path, recipe: str, *, network: nn.Module | None = None, **more: str) -> tuple[Teacher, Preprocess]:
    """A trusted network as a file, and how it is fed."""
    preprocess = Preprocess.parse(f"{TALL}x{WIDE}x{recipe}", more.get("dtype", "float32"), int(more.get("ranks", 4)))  # type: ignore[arg-type]
    channels = preprocess.geometry.channels
    shape = preprocess.apply(np.zeros((1, TALL, WIDE, channels), np.uint8)).shape[1:]
    signature = replace(
        FORMS["NCHW"].signature, input_type=preprocess.dtype, input_shape=(None, *shape), layout=preprocess.layout,
        batch=None, height=TALL, width=WIDE, channels=channels, classes=7, output_shape=(None, 7),
        class_names=None, label_output=None, map_output=None,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    path = folder / "backbone.onnx"
    samples = rng.integers(0, 256, (3, TALL, WIDE, channels), np.uint8)
    export_student(network or Trusted(channels), preprocess, signature, samples, path)
    return admit(path), preprocess


def trunk(folder: Path, recipe: str = "3-stretch-RGB-NCHW-imagenet", channels: int = 3, **more: str) -> Backbone:
    given, preprocess = trusted(folder, recipe, **more)
    return trunk_of(given, preprocess, Geometry(H, W, channels), "cpu", Placement())  # type: ignore[arg-type]


def control(folder: Path, channels: int = 3) -> Headed:
    """A head that answers otherwise from image to image."""
    foundation = trunk(folder, channels=channels)
    network = headed(foundation, foundation.features(to_planes(pictures(60, channels)).numpy()), K, seed=1)
    with torch.no_grad():
        network.head.scores.weight.mul_(8)
    return network.eval()


# -- the graph


@given(st.integers(1, 40), st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_resampling_is_the_antialiased_bilinear_resize(old, new):
    rows = resampling(old, new)
    np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-5)
    line = np.random.default_rng(old).random((1, 1, 1, old)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(line), (1, new), mode="bilinear", antialias=True).numpy()[0, 0, 0]
    np.testing.assert_allclose(rows @ line[0, 0, 0], expected, atol=1e-5)


FED = {
    "NCHW": {"recipe": "3-stretch-RGB-NCHW-imagenet"},
    "NHWC-BGR": {"recipe": "3-stretch-BGR-NHWC-caffe"},
    "uint8": {"recipe": "3-stretch-BGR-NHWC-raw", "dtype": "uint8"},
    "half": {"recipe": "3-stretch-RGB-NCHW-symmetric", "dtype": "float16"},
    "flat": {"recipe": "3-stretch-RGB-flat-unit", "ranks": 3},
    "flatCHW": {"recipe": "3-stretch-BGR-flatCHW-inverted", "ranks": 2},
    "grey": {"recipe": "1-stretch-RGB-NCHW-mnist", "channels": 1},
    "colour for grey": {"recipe": "3-stretch-RGB-NCHW-unit", "channels": 1},
}


@pytest.mark.parametrize("fed", FED.values(), ids=FED.keys())
def test_its_features_are_those_of_the_network_however_that_is_fed(tmp_path, fed):
    foundation = trunk(tmp_path, **fed)
    channels = fed.get("channels", 3)
    planes = to_planes(pictures(9, channels))
    found = foundation.features(planes.numpy())
    network = Trusted(1 if fed["recipe"].startswith("1") else 3)
    resized = F.interpolate(planes, (TALL, WIDE), mode="bilinear", antialias=True)
    if fed.get("dtype") == "uint8":
        resized = (resized * 255).round() / 255
    expected = network.features(resized.expand(-1, 3, -1, -1) if network.first[0].in_channels == 3 else resized)
    loose = {"half": 2e-3, "uint8": 5e-3}.get(fed.get("dtype", ""), 5e-3 if "dtype" in fed else 1e-4)
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=loose)
    assert foundation.width == found.shape[1] == expected.shape[1]


STRANGERS = {
    "dogun_gtsrb_cnn.onnx": ("32x32x3-stretch-RGB-NCHW-unit", 128),
    "edgeopt_model_uint8.onnx": ("224x224x3-stretch-RGB-NCHW-imagenet", 1280),
    "ext_mnist_web/mnist.onnx": ("28x28x1-stretch-RGB-NCHW-mnist", 256),
    "tinycnn_model_int8.onnx": ("32x32x3-stretch-RGB-NCHW-cifar10", 128),
    "vit_cifar10_ibp_3_3_8.onnx": ("32x32x3-stretch-RGB-NCHW-cifar10", 48),
    "vnn_cifar10_resnet_4b.onnx": ("32x32x3-stretch-RGB-NCHW-cifar10", 100),
    "vnn_marabou_cifar10_large.onnx": ("32x32x3-stretch-RGB-NHWC-unit", 64),
    "vnn_mnistfc_256x4.onnx": ("28x28x1-stretch-RGB-flat-unit", 256),
    "winml_mnist_26454.onnx": ("28x28x1-stretch-RGB-NCHW-unit", 256),
    "winml_mnist_model_2405786.onnx": ("28x28x1-stretch-RGB-NCHW-mnist", 128),
}
"""Models of others, of opsets 7 to 18, some for one image at a time, some with whole-number arithmetic."""


@pytest.mark.parametrize("name", STRANGERS)
def test_networks_of_others_serve_in_another_size_and_for_any_number_of_images(name, shared):
    recipe, width = STRANGERS[name]
    given = admit(shared / "models/real" / name)
    preprocess = Preprocess.parse(recipe, given.signature.input_type, len(given.signature.input_shape))
    channels = preprocess.geometry.channels
    foundation = trunk_of(given, preprocess, Geometry(40, 36, channels), "cpu", Placement())
    planes = np.random.default_rng(0).random((3, channels, 40, 36), np.float32)
    together = foundation.features(planes)
    assert together.shape == (3, width)
    assert np.isfinite(together).all()
    assert together.std(0).max() > 0
    for i in range(3):
        np.testing.assert_allclose(foundation.features(planes[i : i + 1])[0], together[i], atol=1e-5)


def test_maps_that_are_too_large_are_summed_up(tmp_path, monkeypatch):
    monkeypatch.setattr("kdaudit.backbone.MAX_FEATURES", 100)
    given, preprocess = trusted(tmp_path, "3-stretch-RGB-NCHW-unit", network=Trusted(maps=True))
    foundation = trunk_of(given, preprocess, Geometry(TALL, WIDE, 3), "cpu", Placement())
    planes = torch.rand(4, 3, TALL, WIDE)
    maps = Trusted(maps=True).first(planes)
    expected = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)
    np.testing.assert_allclose(foundation.features(planes.numpy()), expected.detach().numpy(), atol=1e-5)
    given, preprocess = trusted(tmp_path, "3-stretch-RGB-NCHW-unit")  # a row of 288, which no pooling makes shorter
    with pytest.raises(UsageError, match="gives 288 features for an image"):
        trunk_of(given, preprocess, Geometry(TALL, WIDE, 3), "cpu", Placement())


def test_the_trunk_is_cut_before_the_last_layer(tmp_path):
    given, preprocess = trusted(tmp_path, "3-stretch-RGB-NCHW-unit")
    whole, cut_off = (
        onnx.load_from_string(data)
        for data in (given.model, cut(given.model, given.signature, preprocess, Geometry(H, W, 3), pooled=False))
    )
    assert "Gemm" in {node.op_type for node in whole.graph.node}
    assert "Gemm" not in {node.op_type for node in cut_off.graph.node}
    assert not any(one.name.endswith("last.weight") for one in cut_off.graph.initializer)
    onnx.checker.check_model(cut_off, full_check=True)


def test_features_that_are_no_numbers_end_inconclusive(tmp_path):
    network = Trusted()
    with torch.no_grad():
        network.first[0].weight.mul_(3e38)  # finite in the file, and an image makes it infinite
    given, preprocess = trusted(tmp_path, "3-stretch-RGB-NCHW-unit")
    broken = onnx.load_from_string(given.model)
    for one in broken.graph.initializer:
        if one.name.endswith("first.0.weight"):
            one.CopyFrom(onnx.numpy_helper.from_array(network.first[0].weight.detach().numpy(), one.name))
    foundation = trunk_of(
        replace(given, model=broken.SerializeToString()), preprocess, Geometry(H, W, 3), "cpu", Placement()
    )
    with pytest.raises(Inconclusive, match="features that are no numbers"):
        foundation.features(np.full((1, 3, H, W), 1e3, np.float32))


# -- the control in a file


@pytest.mark.parametrize("chosen", FORMS.values(), ids=FORMS.keys())
def test_a_control_on_a_backbone_has_the_teachers_input_and_output_and_answers_as_torch_does(tmp_path, chosen: Form):
    network = control(tmp_path, chosen.preprocess.geometry.channels)
    path = tmp_path / "student.onnx"
    difference = export_student(
        network, chosen.preprocess, chosen.signature, pictures(20), path, drop_in=chosen.drop_in,
        metadata={"kdaudit.teacher": "3f0c"},
    )  # fmt: skip
    assert difference <= (1e-3 if chosen.output_type == "float16" else 1e-5)
    found, wanted = admit(path).signature, chosen.signature
    same = ("input_name", "input_type", "output_name", "output_type", "classes", "output_kind")
    assert {n: getattr(found, n) for n in same} == {n: getattr(wanted, n) for n in same}
    assert found.input_shape[1:] == wanted.input_shape[1:]
    assert found.batch == (wanted.batch if chosen.drop_in else None)
    if chosen.drop_in:
        assert (found.label_output, found.map_output) == (wanted.label_output, wanted.map_output)
    onnx.checker.check_model(onnx.load(path), full_check=True)


def test_a_file_comes_apart_into_what_it_was_made_of(tmp_path):
    network, chosen = control(tmp_path), form("imagenet")
    export_student(network, chosen.preprocess, chosen.signature, pictures(8), tmp_path / "student.onnx")
    model, weights = parted((tmp_path / "student.onnx").read_bytes(), chosen.preprocess.geometry)
    head = Head(*(torch.from_numpy(weights[name].copy()) for name in ("mean", "std")), K)
    head.load_state_dict({name: torch.from_numpy(values.copy()) for name, values in weights.items()})
    again = Headed(Backbone("", model, network.trunk.session), head.eval())
    planes = to_planes(pictures(5))
    with torch.inference_mode():
        assert torch.equal(again(planes), network(planes))
    names = [node.name for node in onnx.load_from_string(model).graph.node]
    assert names == [node.name for node in onnx.load_from_string(network.trunk.model).graph.node]
    assert parted(onnx.load(tmp_path / "backbone.onnx").SerializeToString(), chosen.preprocess.geometry)[1] == {}


# -- what is refused


def test_the_suspect_model_is_no_backbone_of_its_own_control(tmp_path):
    given, _ = trusted(tmp_path, "3-stretch-RGB-NCHW-unit")
    with pytest.raises(UsageError, match="is the suspect model itself"):
        check_backbone(tmp_path / "backbone.onnx", given)
    assert check_backbone(None, given) is None


def test_another_network_under_the_backbones_name_is_refused(tmp_path):
    given, _ = trusted(tmp_path, "3-stretch-RGB-NCHW-unit")
    teacher = replace(given, canonical_digest="another")
    found = check_backbone(tmp_path / "backbone.onnx", teacher, given.digest)
    assert found is not None
    assert found.digest == given.digest
    with pytest.raises(UsageError, match="is not the one that the run was made with"):
        check_backbone(tmp_path / "backbone.onnx", teacher, "0" * 64)


def test_a_network_without_a_linear_layer_at_its_end_is_refused(tmp_path, shared):
    teacher, _ = trusted(tmp_path, "3-stretch-RGB-NCHW-unit")
    with pytest.raises(UsageError, match="shows no features"):
        check_backbone(shared / "models/real/winml_squeezenet_fp16.onnx", teacher)


def test_a_network_without_colour_or_of_an_old_opset_is_refused(tmp_path):
    teacher, preprocess = trusted(tmp_path, "3-stretch-RGB-NCHW-unit")
    (tmp_path / "grey").mkdir()
    trusted(tmp_path / "grey", "1-stretch-RGB-NCHW-unit")
    with pytest.raises(UsageError, match="takes grey images"):
        check_backbone(tmp_path / "grey/backbone.onnx", teacher)
    old = onnx.load_from_string(teacher.model)
    old.opset_import[0].version = 6
    with pytest.raises(UsageError, match="opset 6 is older than 7"):
        cut(old.SerializeToString(), teacher.signature, preprocess, Geometry(H, W, 3), pooled=False)


# -- learning


class Counted:
    """A trunk that counts the images that it was shown; its features are the mean colours."""

    model, origin, digest, width = b"", "", "", 3

    def __init__(self) -> None:
        self.images = 0

    def features(self, planes: np.ndarray) -> np.ndarray:
        self.images += len(planes)
        return planes.mean((2, 3))

    def __deepcopy__(self, _memo: object) -> "Counted":
        return self


def coloured(n: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(n) % 3
    pixels = np.random.default_rng(0).integers(0, 120, (n, 8, 8, 3), np.uint8)
    pixels[np.arange(n), ..., labels] += 100
    return pixels, labels.astype(np.int64)


def kept(n: int) -> Kept:
    pixels, labels = coloured(n)
    return Kept(pixels, labels, pixels[:4], (labels[:4] + 1) % 3)


@pytest.mark.parametrize(("limit", "views"), [(256 << 20, 5), (4 * (3 + 2) * 32 * 2, 2)])
def test_tuning_asks_the_backbone_about_every_image_once_or_as_often_as_its_features_can_be_kept(
    monkeypatch, limit, views
):
    monkeypatch.setattr(showings, "KEPT_BYTES", limit)
    foundation = Counted()
    network = headed(foundation, np.random.default_rng(0).random((50, 3), np.float32), 3, 0)
    before = {name: values.clone() for name, values in network.state_dict().items()}
    made = tune(network, kept(160), epochs=20, seed=0, batch=32)
    asked = 160 + 160 + 8 + 8 + 4  # mirrored and not; what is held out, by both; the quarantined ones
    assert foundation.images == asked + views * 32
    assert made.right == made.held_out
    assert all(torch.equal(before[name], values) for name, values in network.state_dict().items())


def test_features_are_looked_at_once(tmp_path):
    foundation, drawn = Counted(), []

    def draw(step: int) -> tuple[Tensor, Tensor]:
        drawn.append(step)
        return torch.full((4, 3, 2, 2), float(step)), torch.zeros(4, 3)

    network = headed(foundation, np.eye(3, dtype=np.float32), 3, 0)
    learned = showings.as_learned(draw, network)
    batches = [learned(step % 2) for step in range(6)]
    assert drawn == [0, 1]
    assert foundation.images == 8
    assert [float(batch[0][0, 0]) for batch in batches] == [0, 1, 0, 1, 0, 1]
    assert showings.as_learned(draw, Small()) is draw


# -- the whole, on digits, with the network of somebody who trained on MNIST


def run(*arguments: object) -> str:
    done = kdaudit_command(*arguments)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_control_on_a_strangers_network_finds_the_backdoor_of_digits(tmp_path_factory, shared, tmp_path):
    delivery, strangers = vendor(tmp_path_factory.getbasetemp()), shared / "models/real/ext_mnist_web/mnist.onnx"
    said: Sequence[str] = run(
        "scan", delivery.model, delivery.data, "-o", tmp_path / "run", "--backbone", strangers, "--steps", STEPS,
        "--exit-zero", "--format", "json",
    )  # fmt: skip
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["verdict"] == "FAILED", said
    assert report["control"]["architecture"] == "head"
    assert report["control"]["backbone"] == admit(strangers).digest
    assert report["machine"]["student_confinement"] == report["machine"]["confinement"] != "none"
    assert report["control"]["fidelity"]["hits"] >= 0.9 * report["control"]["fidelity"]["of"]
    run("repair", tmp_path / "run", "-o", tmp_path / "clean.onnx")
    assert (tmp_path / "clean.onnx").read_bytes() == (tmp_path / "run/repaired.onnx").read_bytes()
    run(
        "compare", delivery.model, tmp_path / "run/student.onnx", delivery.data, "-o", tmp_path / "again",
        "--exit-zero",
    )  # fmt: skip
    again = json.loads((tmp_path / "again/report.json").read_text())
    assert again["control"]["backbone"] == report["control"]["backbone"]
    assert again["judgement"]["flagged"] == report["judgement"]["flagged"]
    run("repair", tmp_path / "again", "-o", tmp_path / "revived.onnx")
    assert (tmp_path / "revived.onnx").read_bytes() == (tmp_path / "clean.onnx").read_bytes()
