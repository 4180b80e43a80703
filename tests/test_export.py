"""The exported control: with the teacher's input and output, whatever these are, it answers as torch does."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from kdaudit.admission import Teacher, admit
from kdaudit.divergence import log_softmax
from kdaudit.errors import KdauditError
from kdaudit.export import export_student
from kdaudit.opening import open_session
from kdaudit.preprocess import Preprocess
from kdaudit.signature import Signature
from kdaudit.student import StudentSpec, build
from kdaudit.version import __version__

torch.set_num_threads(1)

K, H, W = 5, 8, 6
NAMES = ("cat", "dog", "ship", "frog", "crow")


class Small(nn.Module):
    """Sensitive to where a pixel stands and to its channel: a wrong layout or order cannot go unseen."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * H * W, K)
        )
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return 20 * self.body(x)


def pictures(n: int = 37, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Noise whose brightness differs from image to image and from channel to channel."""
    rng = np.random.default_rng(seed)
    light = rng.uniform(0.2, 1, (n, 1, 1, channels))
    return (rng.integers(0, 256, (n, H, W, channels)) * light).astype(np.uint8)


def torch_beliefs(network: nn.Module, pixels: np.ndarray) -> np.ndarray:
    planes = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    with torch.inference_mode():
        return np.exp(log_softmax(network(planes).numpy()))


@dataclass(frozen=True)
class Form:
    """A teacher's way to be fed and to answer."""

    recipe: str
    input_type: str = "float32"
    ranks: int = 4
    kind: str = "logits"
    tail: int = 0
    output_type: str = "float32"
    batch: int | None = None
    label: bool = False
    map: bool = False
    names: tuple[str, ...] | None = None
    drop_in: bool = False

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess.parse(self.recipe, self.input_type, self.ranks)  # type: ignore[arg-type]

    @property
    def signature(self) -> Signature:
        pre = self.preprocess
        channels = pre.geometry.channels
        shape = pre.apply(np.zeros((1, H, W, channels), np.uint8)).shape[1:]
        return Signature(
            "image", pre.dtype, (self.batch, *shape), pre.layout, self.batch, H, W, channels, "scores",
            self.output_type, (self.batch, K, *(1,) * self.tail), self.kind, K, self.names,  # type: ignore[arg-type]
            "label" if self.label else None, "map" if self.map else None,
        )  # fmt: skip


def form(scale: str, layout: str = "NCHW", order: str = "RGB", channels: int = 3, **more) -> Form:
    return Form(f"{H}x{W}x{channels}-stretch-{order}-{layout}-{scale}", **more)


FORMS = {
    # Not a drop-in: the teacher's batch of one and its label and map outputs are left out.
    "NCHW": form("imagenet", label=True, map=True, names=NAMES, batch=1),
    "NHWC-uint8-probabilities-4D": form("raw", "NHWC", "BGR", input_type="uint8", kind="probabilities", tail=2),
    "flat-float16-log-probabilities": form(
        "symmetric", "flat", input_type="float16", ranks=3, kind="log-probabilities", output_type="float16"
    ),
    "flatCHW-fixed-batch": form("inverted", "flatCHW", "BGR", ranks=2, batch=4, drop_in=True),
    "label-and-map-by-name": form("unit", kind="probabilities", label=True, map=True, names=NAMES, drop_in=True),
    "map-by-number-batch-one": form(
        "unit",
        "NHWC",
        kind="probabilities",
        label=True,
        map=True,
        batch=1,
        names=("3", "1", "9", "-2", "7"),
        drop_in=True,
    ),
    "label-without-names": form("caffe", label=True, drop_in=True),
}


@dataclass(frozen=True)
class Exported:
    form: Form
    path: Path
    network: nn.Module
    difference: float
    teacher: Teacher


@pytest.fixture(scope="module", params=FORMS.values(), ids=FORMS.keys())
def exported(request, tmp_path_factory) -> Exported:
    chosen: Form = request.param
    channels = chosen.preprocess.geometry.channels
    network, path = Small(channels), tmp_path_factory.mktemp("export") / "student.onnx"
    difference = export_student(
        network, chosen.preprocess, chosen.signature, pictures(channels=channels), path,
        drop_in=chosen.drop_in, metadata={"kdaudit.teacher": "3f0c", "note": "Größe\nzwei"},
    )  # fmt: skip
    return Exported(chosen, path, network, difference, admit(path))


def test_its_answers_are_torchs(exported):
    pixels = pictures(11, exported.form.preprocess.geometry.channels, seed=1)
    expected = torch_beliefs(exported.network, pixels)
    assert len(set(expected.argmax(1))) > 1  # answers that differ from image to image
    assert expected.std(0).max() > 0.05
    teacher = exported.teacher
    session = open_session(teacher.model, replace(teacher.signature, output_kind=exported.form.kind), provider="cpu")
    scores = session.logits(exported.form.preprocess.apply(pixels))
    assert scores.shape == (11, K)
    tolerance = 2e-3 if "float16" in (exported.form.input_type, exported.form.output_type) else 1e-5
    assert np.allclose(np.exp(log_softmax(scores)), expected, rtol=0, atol=tolerance)
    assert exported.difference <= tolerance


def test_it_has_the_teachers_input_and_output(exported):
    wanted, found = exported.form.signature, exported.teacher.signature
    same = ("input_name", "input_type", "output_name", "output_type", "classes")
    assert {n: getattr(found, n) for n in same} == {n: getattr(wanted, n) for n in same}
    assert found.input_shape[1:] == wanted.input_shape[1:]
    batch = wanted.batch if exported.form.drop_in else None
    assert found.batch == batch
    assert found.output_shape[1:] == wanted.output_shape[1:]
    if exported.form.drop_in:
        assert (found.label_output, found.map_output) == (wanted.label_output, wanted.map_output)
        assert not wanted.map_output or found.class_names == wanted.class_names
    else:
        assert (found.label_output, found.map_output) == (None, None)


def test_the_graph_says_what_its_scores_are(exported):
    assert exported.teacher.signature.output_kind == exported.form.kind


def test_its_metadata_can_be_read_back(exported):
    found = {entry.key: entry.value for entry in onnx.load(exported.path).metadata_props}
    assert found == {"kdaudit.teacher": "3f0c", "note": "Größe\nzwei"}
    assert exported.teacher.notes == (("kdaudit.teacher", "3f0c"),)


def test_it_says_which_kdaudit_made_it(exported):
    assert exported.teacher.producer == f"kdaudit {__version__}"


def test_its_parts_are_as_admission_likes_them(exported):
    assert exported.teacher.findings == () or {f.rule for f in exported.teacher.findings} <= {"KDA105"}
    assert exported.teacher.external == ()
    onnx.checker.check_model(onnx.load(exported.path), full_check=True)


def test_label_and_map_outputs_say_the_same_as_the_scores(exported):
    import onnxruntime

    chosen = exported.form
    if not (chosen.drop_in and chosen.label):
        return
    pixels = pictures(chosen.batch or 6, seed=2)
    beliefs = torch_beliefs(exported.network, pixels)
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    names = [n if chosen.names == NAMES else int(n) for n in chosen.names or map(str, range(K))]
    outputs = [o.name for o in session.get_outputs()]
    assert outputs == (["label", "map"] if chosen.map else ["scores", "label"])
    answers = dict(zip(outputs, session.run(None, {"image": chosen.preprocess.apply(pixels)}), strict=True))
    assert answers["label"].tolist() == [names[k] for k in beliefs.argmax(1)]
    if chosen.map:
        for row, found in zip(beliefs, answers["map"], strict=True):
            assert found == pytest.approx(dict(zip(names, row.tolist(), strict=True)), abs=1e-5)


# -- the control's own network, and what is refused


def test_a_residual_control_is_exported_from_a_single_sample(tmp_path):
    network = build(StudentSpec("residual", 1, H, W, K, (0.4,), (0.3,)), 0).eval()
    chosen = form("mnist", channels=1)
    difference = export_student(network, chosen.preprocess, chosen.signature, pictures(1, 1), tmp_path / "s.onnx")
    assert difference < 1e-5
    teacher = admit(tmp_path / "s.onnx")
    session = open_session(teacher.model, teacher.signature, provider="cpu")
    pixels = pictures(20, 1, seed=3)
    found = np.exp(log_softmax(session.logits(chosen.preprocess.apply(pixels))))
    assert np.allclose(found, torch_beliefs(network, pixels), atol=1e-5)


class Twofaced(Small):
    """Computes one thing in torch and another in the file."""

    def __init__(self, in_torch: float, in_file: float) -> None:
        super().__init__()
        self.in_torch, self.in_file = in_torch, in_file

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (self.in_file if torch.compiler.is_exporting() else self.in_torch)


@pytest.mark.parametrize(("in_torch", "in_file"), [(1.0, 1.05), (float("nan"), 1.0)])
def test_a_file_that_computes_something_else_is_refused_and_not_written(tmp_path, in_torch, in_file):
    path = tmp_path / "student.onnx"
    path.write_bytes(b"old")
    chosen = FORMS["NCHW"]
    with pytest.raises(KdauditError, match=r"differs from torch by .* student\.onnx was not written"):
        export_student(Twofaced(in_torch, in_file), chosen.preprocess, chosen.signature, pictures(), path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["student.onnx"]
