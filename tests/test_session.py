"""One function from a batch to its scores, whatever the graph leaves to the caller."""

import subprocess
import sys
import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_builders import Patterns, classifier

from kdaudit import opening as door
from kdaudit.admission import admit
from kdaudit.divergence import PROBABILITY_FLOOR, from_probabilities, log_softmax
from kdaudit.errors import DeviceMissing, Exit, ModelRefused, UsageError
from kdaudit.opening import open_session
from kdaudit.preprocess import Preprocess
from kdaudit.runtime import available_providers, cuda_devices

PATTERNS = Patterns.draw()
RECIPE = "8x8x3-stretch-RGB-NCHW-unit"


def opened(model: onnx.ModelProto, tmp_path, **options):
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    teacher = admit(path)
    return open_session(teacher.model, teacher.signature, **options)


def logits_of(session, recipe: str, n: int):
    pixels, labels = PATTERNS.copies(n, noise=4)
    signature = session.signature
    preprocess = Preprocess.parse(recipe, signature.input_type, len(signature.input_shape))
    return session.logits(preprocess.apply(pixels)), labels


@pytest.mark.parametrize("head", ["logits", "probabilities", "log-probabilities", "tall", "zipmap", "half"])
@pytest.mark.parametrize("batch", [None, 1, 4])
def test_every_head_and_batch_gives_the_same_beliefs(head, batch, tmp_path):
    scores, labels = logits_of(opened(classifier(PATTERNS, RECIPE, head=head, batch=batch), tmp_path), RECIPE, 11)
    assert scores.shape == (11, 5)
    assert scores.dtype == np.float32
    assert (scores.argmax(axis=1) == labels).all()
    reference, _ = logits_of(opened(classifier(PATTERNS, RECIPE), tmp_path), RECIPE, 11)
    expected, found = log_softmax(reference), log_softmax(scores)
    close = expected > np.log(PROBABILITY_FLOOR) + 1
    assert np.allclose(found[close], expected[close], atol=0.3 if head == "half" else 1e-2)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("8x8x3-stretch-RGB-NHWC-unit", {}),
        ("8x8x3-stretch-BGR-NHWC-imagenet", {}),
        ("8x8x3-stretch-RGB-flat-unit", {}),
        ("8x8x3-stretch-RGB-flatCHW-unit", {"rank3": True, "batch": 1}),
        (RECIPE, {"dtype": "float16"}),
        ("8x8x3-stretch-RGB-NCHW-raw", {"dtype": "uint8"}),
        (RECIPE, {"weights_as_inputs": True}),
        (RECIPE, {"open_size": True}),
    ],
)
def test_every_input_form(recipe, options, tmp_path):
    scores, labels = logits_of(opened(classifier(PATTERNS, recipe, **options), tmp_path), recipe, 9)
    assert (scores.argmax(axis=1) == labels).all()


def test_empty_batch_and_provider(tmp_path):
    session = opened(classifier(PATTERNS, RECIPE), tmp_path)
    assert session.logits(np.empty((0, 3, 8, 8), np.float32)).shape == (0, 5)
    assert session.provider in available_providers()
    assert not session.one_by_one


def fixed_inside(tmp_path):
    """A graph that declares a free batch and reshapes to one image inside."""
    model = classifier(PATTERNS, RECIPE)
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array([1, 192]), "one"))
    graph.node[1].CopyFrom(helper.make_node("Reshape", ["pixels", "one"], ["flat"]))
    return opened(model, tmp_path)


def test_a_batch_fixed_inside_the_graph_is_run_one_by_one(tmp_path):
    session = fixed_inside(tmp_path)
    scores, labels = logits_of(session, RECIPE, 6)
    assert session.one_by_one
    assert (scores.argmax(axis=1) == labels).all()


@pytest.mark.parametrize("batch", [None, 4])
def test_answers_never_depend_on_batch_mates(batch, tmp_path):
    """A graph that normalises by its batch, as one exported in training mode does."""
    model = classifier(PATTERNS, RECIPE, batch=batch)
    graph = model.graph
    graph.node[0].CopyFrom(helper.make_node("ReduceMax", ["image"], ["top"], keepdims=0))
    graph.node.insert(1, helper.make_node("Div", ["image", "top"], ["pixels"]))
    session = opened(model, tmp_path)
    pixels = np.concatenate([PATTERNS.copies(5)[0] // 8, PATTERNS.copies(2)[0]])
    tensor = Preprocess.parse(RECIPE).apply(pixels)
    alone = np.concatenate([session.logits(tensor[i : i + 1]) for i in range(7)])
    assert session.one_by_one
    assert np.array_equal(session.logits(tensor), alone)


def test_threads_may_share_a_session(tmp_path):
    session = opened(classifier(PATTERNS, RECIPE, batch=1), tmp_path)
    tensor = Preprocess.parse(RECIPE).apply(PATTERNS.copies(40)[0])
    expected = session.logits(tensor)
    found: list[np.ndarray] = []
    workers = [threading.Thread(target=lambda: found.append(session.logits(tensor))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    assert all(np.array_equal(one, expected) for one in found)


def test_non_finite_scores_are_left_in(tmp_path):
    session = opened(classifier(PATTERNS, RECIPE), tmp_path)
    tensor = np.full((2, 3, 8, 8), np.nan, np.float32)
    assert np.isnan(session.logits(tensor)).all()
    assert np.isnan(from_probabilities(np.full((1, 3), np.nan, np.float32))).all()


def test_probabilities_are_floored_and_renormalised():
    logs = from_probabilities(np.array([[1.0, 0.0], [0.3, 0.3]], np.float32))
    assert np.allclose(np.exp(logs).sum(axis=1), 1)
    assert logs[0, 1] == pytest.approx(np.log(PROBABILITY_FLOOR), abs=1e-3)


def test_what_onnxruntime_refuses(tmp_path):
    model = classifier(PATTERNS, RECIPE)
    model.graph.initializer[0].dims[:] = [5, 192]  # the product is right, the matrix product is not
    with pytest.raises(ModelRefused) as caught:
        opened(model, tmp_path)
    assert caught.value.rule in {"KDA007", "KDA020", "KDA021"}
    assert "\n" not in str(caught.value)
    teacher = tmp_path / "model.onnx"
    teacher.write_bytes(classifier(PATTERNS, RECIPE).SerializeToString())
    admitted = admit(teacher)
    with pytest.raises(ModelRefused, match="cannot load") as caught:
        open_session(b"\x08\x07", admitted.signature)
    assert caught.value.rule == "KDA020"
    session = open_session(admitted.model, admitted.signature)
    with pytest.raises(ModelRefused, match="cannot run") as caught:
        session.logits(np.zeros((1, 3, 9, 9), np.float32))
    assert caught.value.rule == "KDA021"


def test_an_output_of_another_size_is_refused(tmp_path):
    model = classifier(PATTERNS, RECIPE)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    with pytest.raises(ModelRefused) as caught:
        opened(model, tmp_path)
    assert caught.value.rule in {"KDA007", "KDA020", "KDA021"}


def test_demanded_providers(tmp_path, monkeypatch):
    model = classifier(PATTERNS, RECIPE)
    assert opened(model, tmp_path, provider="cpu").provider == "cpu"
    with pytest.raises(UsageError, match="auto, cpu, cuda, tensorrt"):
        opened(model, tmp_path, provider="gpu")
    monkeypatch.setattr(door, "available_providers", lambda: ["cpu"])
    for provider in ("cuda", "tensorrt"):
        with pytest.raises(DeviceMissing, match=provider) as caught:
            opened(model, tmp_path, provider=provider)
        assert caught.value.exit_code == Exit.INCONCLUSIVE


@pytest.mark.skipif(cuda_devices() > 0, reason="this machine has a GPU")
def test_a_provider_that_is_offered_and_not_obtained(tmp_path, monkeypatch):
    """onnxruntime-gpu offers CUDA everywhere and falls back silently."""
    monkeypatch.setattr(door, "available_providers", lambda: ["cuda", "cpu"])
    with pytest.raises((DeviceMissing, ModelRefused)):
        opened(classifier(PATTERNS, RECIPE), tmp_path, provider="cuda")


def test_nothing_is_printed_on_a_machine_without_a_gpu(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(classifier(PATTERNS, RECIPE).SerializeToString())
    code = (
        "import sys; from pathlib import Path; from kdaudit.admission import admit; "
        "from kdaudit.opening import open_session; from kdaudit.runtime import available_providers; "
        "t = admit(Path(sys.argv[1])); open_session(t.model, t.signature); available_providers(); "
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("False\n", "")


def test_settled_shares_the_loaded_model(tmp_path):
    from dataclasses import replace

    session = opened(classifier(PATTERNS, RECIPE, head="probabilities"), tmp_path)
    tensor = Preprocess.parse(RECIPE).apply(PATTERNS.copies(3)[0])
    raw = session.settled(replace(session.signature, output_kind="logits"))
    assert np.allclose(raw.logits(tensor).sum(axis=1), 1)
    assert np.allclose(np.exp(session.logits(tensor)), raw.logits(tensor), atol=1e-5)


def test_every_real_model_runs(shared):
    for path in sorted((shared / "models" / "real").rglob("*.onnx")):
        if "refuse" in path.parts:
            continue
        teacher = admit(path)
        session = open_session(teacher.model, teacher.signature)
        shape = teacher.signature.input_shape[1:]
        tensor = np.random.default_rng(0).random((3, *shape), dtype=np.float32)
        scores = session.logits(tensor)
        assert scores.shape == (3, teacher.signature.classes)
        assert np.isfinite(scores).all()
        for row in range(3):
            assert np.allclose(scores[row], session.logits(tensor[row : row + 1])[0], atol=1e-3), path.name


def test_int_output_is_no_score(tmp_path):
    model = classifier(PATTERNS, RECIPE)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(ModelRefused):
        opened(model, tmp_path)
