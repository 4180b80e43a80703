"""A model that turns on its process while it is run: the culprits lose their scores, the others go on."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_backdoors import BACKDOORS, CORNER, SIDE, _corner_equal, grafted, host, stamped
from hostile_models import endless_loop
from onnx import TensorProto, helper

from kdaudit import session as sessions
from kdaudit.admission import admit_bytes
from kdaudit.admission.catalogue import conduct
from kdaudit.comparison import Subjects, compare_pixels
from kdaudit.errors import Inconclusive, ModelRefused, RunDirectoryError
from kdaudit.incidents import Incidents
from kdaudit.interventions import InterventionPlan
from kdaudit.onegraph import open_one_graph
from kdaudit.opening import open_session
from kdaudit.preprocess import Preprocess
from kdaudit.sandbox import engine
from kdaudit.session import Session

IMAGES = np.random.default_rng(0).random((6, 3, SIDE, SIDE), dtype=np.float32)


def loaded(model: onnx.ModelProto, *, confined: bool = True) -> Session:
    teacher = admit_bytes(model.SerializeToString(), Path("model.onnx"), lambda *_: -1)
    return open_session(teacher.model, teacher.signature, provider="cpu", confined=confined)


@pytest.fixture
def patience(monkeypatch) -> None:
    monkeypatch.setattr(engine, "FIRST_RUN_S", 4)


def on_trigger(nodes: list[onnx.NodeProto], name: str) -> onnx.ModelProto:
    """The host, but where the corner of any image shows the trigger, `nodes` make its scores."""
    value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    evil = helper.make_graph(nodes, "evil", [], [value])
    row = helper.make_tensor_value_info("row", TensorProto.FLOAT, None)
    good = helper.make_graph([helper.make_node("Identity", ["logits"], ["row"])], "good", [], [row])
    weights = CORNER | {"one": np.array([1]), "tolerance": np.float32(0.02)}
    weights |= {"huge": np.array([100_000, 1_000_000])}
    weights |= {"most": np.array(np.iinfo(np.int64).max), "start": np.array(True)}
    choose = helper.make_node("If", ["any_bool"], ["scores"], "choose", then_branch=evil, else_branch=good)
    gate = [
        *_corner_equal(),
        helper.make_node("Cast", ["seen"], ["seen_number"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["seen_number"], ["any"], keepdims=0),
        helper.make_node("Cast", ["any"], ["any_bool"], to=TensorProto.BOOL),
    ]
    model = grafted(gate, weights)
    model.graph.node.append(choose)
    return model


def blocks() -> onnx.ModelProto:
    loop = next(node for node in endless_loop().graph.node if node.op_type == "Loop")
    loop.output[0] = "never"
    return on_trigger([loop], "never")


def exhausts() -> onnx.ModelProto:
    nodes = [
        helper.make_node("ConstantOfShape", ["huge"], ["zeros"]),
        helper.make_node("ReduceMax", ["zeros"], ["top"], keepdims=0),
        helper.make_node("Add", ["logits", "top"], ["sum"]),
    ]
    return on_trigger(nodes, "sum")


def misshapes() -> onnx.ModelProto:
    return on_trigger([helper.make_node("Concat", ["logits", "logits"], ["twice"], axis=1)], "twice")


def mixed() -> np.ndarray:
    images = IMAGES.copy()
    images[2] = stamped(IMAGES[2:3])[0]
    return images


@pytest.mark.parametrize(
    ("build", "how", "rule"),
    [(blocks, "blocked", "KDA122"), (exhausts, "confused", "KDA123"), (misshapes, "confused", "KDA123")],
)
def test_only_the_culprit_loses_its_scores(build, how, rule, patience):
    session = loaded(build())
    scores = session.logits(mixed())
    expected = loaded(host(), confined=False).logits(IMAGES)
    others = [0, 1, 3, 4, 5]
    assert np.isnan(scores[2]).all()
    assert np.allclose(scores[others], expected[others], atol=1e-4)
    assert [incident.how for incident in session.incidents] == [how]
    (finding,) = conduct([(one.how, one.detail) for one in session.incidents])
    assert (finding.rule, finding.severity) == (rule, "high")
    # It goes on answering.
    assert np.isfinite(session.logits(IMAGES)).all()
    session.close()


def test_a_worker_that_is_killed_costs_nothing_but_time():
    session = loaded(host())
    expected = session.logits(IMAGES)
    for _ in range(2):
        os.kill(session._engine._worker.pid, signal.SIGKILL)
        assert np.array_equal(session.logits(IMAGES), expected)
    assert session.incidents == []
    session.close()


def test_a_model_that_blocks_too_often_ends_inconclusive(patience, monkeypatch):
    monkeypatch.setattr(sessions, "MAX_INCIDENTS", 1)
    monkeypatch.setattr(engine, "FIRST_RUN_S", 2)
    session = loaded(blocks())
    with pytest.raises(Inconclusive, match="do not use it"):
        session.logits(stamped(IMAGES))
    session.close()


def test_workers_that_are_lost_too_often_end_inconclusive(monkeypatch):
    monkeypatch.setattr(engine, "MAX_RESTARTS", 1)
    session = loaded(host())
    for _ in range(2):
        os.kill(session._engine._worker.pid, signal.SIGKILL)
        if _ == 0:
            session.logits(IMAGES)
        else:
            with pytest.raises(Inconclusive, match="confined process"):
                session.logits(IMAGES)


def test_random_answers_are_found(monkeypatch):
    session = loaded(BACKDOORS["random answers"][0]())
    session.logits(IMAGES)
    assert {incident.how for incident in session.incidents} == {"differs"}
    (finding,) = conduct([(one.how, one.detail) for one in session.incidents])
    assert finding.rule == "KDA124"
    session.close()


def test_dice_that_are_rolled_later_are_found_by_repetition():
    class Dice:
        """An engine that changes its mind from the 300th run on."""

        provider, confinement, runs = "cpu", "none", 0

        def run(self, inputs, outputs, rows=None):
            self.runs += 1
            (tensor,) = inputs.values()
            row = np.arange(5, dtype=np.float32) + (self.runs if self.runs > 300 else 0)
            return [np.tile(row, (len(tensor), 1))]

    honest = loaded(host(), confined=False)
    session = Session(Dice(), honest.signature, 1)
    for _ in range(2 * sessions.REPEAT_EVERY + 1):
        session.logits(IMAGES[:1])
    assert [incident.how for incident in session.incidents] == ["differs"]


def test_a_settled_session_shares_what_was_noted(patience):
    session = loaded(misshapes())
    settled = session.settled(session.signature)
    settled.logits(mixed())
    assert session.incidents == settled.incidents != []
    session.close()


def test_without_confinement_an_error_is_an_error():
    with pytest.raises(ModelRefused, match="KDA021"):
        loaded(misshapes(), confined=False).logits(mixed())


@pytest.fixture(autouse=True)
def _no_child_is_left() -> Iterator[None]:
    yield
    import gc

    gc.collect()


def test_what_an_interrupted_pass_has_seen_is_kept_and_counted_once(patience, tmp_path):
    file = tmp_path / "incidents.json"
    first = loaded(misshapes())
    first.keep_incidents(file, "this model, these images")
    assert not file.exists()  # nothing to keep
    first.settled(first.signature).logits(mixed())
    first.close()  # the run is killed here

    second = loaded(misshapes())
    second.keep_incidents(file, "this model, these images")
    assert second.incidents == first.incidents
    assert len(second.incidents) == 1
    second.logits(mixed())  # the calibration images, say, are asked about in every pass
    assert second.incidents == first.incidents
    other = mixed()
    other[1] = stamped(IMAGES[1:2])[0]
    second.logits(other)
    assert len(second.incidents) == 2
    second.close()

    third = loaded(host())
    third.keep_incidents(file, "this model, other images")
    assert third.incidents == []
    assert not file.exists()
    third.close()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"recipe": "a"}', b'{"recipe": "a", "incidents": [{"how": 1}]}'])
def test_damaged_incidents_are_one_sentence(content, tmp_path):
    file = tmp_path / "incidents.json"
    file.write_bytes(content)
    with pytest.raises(RunDirectoryError, match=r"incidents\.json is damaged: begin a new run"):
        Incidents().keep(file, "a")


@pytest.mark.parametrize(("build", "how"), [(blocks, "blocked"), (misshapes, "confused")])
def test_one_graph_leaves_to_the_sessions_what_its_teacher_does_to_it(build, how, patience):
    """The rows are those of two sessions, and it is the teacher that is told of, not the control beside it."""
    pixels = (IMAGES.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
    hostile = (mixed().transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
    preprocess = Preprocess.parse(f"{SIDE}x{SIDE}x3-stretch-RGB-NCHW-unit")
    teacher, control = loaded(build()), loaded(host())
    assert np.isfinite(teacher.logits(preprocess.apply(pixels))).all()
    graph = open_one_graph(teacher, control, preprocess, pixels)
    two = Subjects(teacher, control, preprocess, None, InterventionPlan(()))
    found = compare_pixels(replace(two, graph=graph), hostile, [f"{i:032x}" for i in range(6)])
    assert [one.how for one in teacher.incidents] == [how]
    assert control.incidents == []
    expected = compare_pixels(two, hostile, found.ids)
    for name in ("teacher_top1", "student_top1", "gap", "js", "behaviour"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert found.teacher_top1.tolist().index(-1) == 2
    assert graph.look(pixels) is not None  # it goes on answering
    for one in (graph, teacher, control):
        one.close()
